"""The composition root: from a configuration and the ports of a system to a running daemon, and to the next one."""

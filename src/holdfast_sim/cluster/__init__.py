"""Hosts, daemons and virtual machines of one history."""

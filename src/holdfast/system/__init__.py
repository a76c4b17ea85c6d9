"""The only home of system calls: what the simulator replaces, and nothing above it."""

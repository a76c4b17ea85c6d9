"""Processes, descriptors and other programs of this host."""

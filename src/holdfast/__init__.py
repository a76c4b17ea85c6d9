"""Holdfast: a lock manager for the disks of virtual machines (see ARCHITECTURE.md)."""

__version__ = "0.1.0"

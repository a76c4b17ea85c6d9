"""`holdfast who`: who holds a disk."""

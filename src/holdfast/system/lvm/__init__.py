"""LVM's shared volume groups, as far as a lock is concerned."""

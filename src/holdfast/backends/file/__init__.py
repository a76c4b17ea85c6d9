"""The file backend: locks on the disks themselves or on files beside them, as virtlockd takes them."""

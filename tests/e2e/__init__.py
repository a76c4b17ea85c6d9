"""End to end: two real libvirt hosts, real QEMU, and a lock daemon between them and the disks."""

"""Shared logical volumes: hosts with libvirt, lvmlockd and the reconciler, in histories of their own."""

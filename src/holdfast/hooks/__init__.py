"""Programs that libvirt starts."""

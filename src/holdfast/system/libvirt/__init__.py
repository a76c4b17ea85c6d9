"""libvirt on this host: its domains, pools and daemons."""

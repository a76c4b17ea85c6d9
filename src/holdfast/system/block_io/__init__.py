"""Storage of leases: bounded direct I/O on worker threads, and the ports that protocols run on."""

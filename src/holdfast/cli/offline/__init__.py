"""What commands read and make on shared storage without a daemon."""

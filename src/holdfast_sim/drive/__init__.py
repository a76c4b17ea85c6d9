"""What happens to a cluster: users, operators and faults."""

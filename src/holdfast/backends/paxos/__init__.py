"""The paxos backend: a lease on shared storage for each disk, in sanlock's format."""

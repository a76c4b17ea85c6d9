"""A simulated host below the daemon."""

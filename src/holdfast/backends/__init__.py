"""How a lock is held: one module per driver behind the `Backend` protocol."""

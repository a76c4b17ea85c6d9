"""Storage that simulated hosts share."""

"""Simulator: whole hosts, virtual time, storage that fails, hangs and reorders; one history per seed (docs/safety.md)."""

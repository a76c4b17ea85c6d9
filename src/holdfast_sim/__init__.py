"""The simulator: whole hosts with virtual time and nasty storage, one history for each seed (docs/safety.md)."""

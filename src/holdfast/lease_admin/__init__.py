"""Operators' orders about leases: broken, collected, freed with their host; and what a lost lockspace does to owners."""

"""Operators' orders about leases: break, collect, free with their host; and the reaction to a lost lockspace."""

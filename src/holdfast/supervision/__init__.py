"""Membership in lockspaces: renews leases, measures their age, feeds or starves the watchdog."""

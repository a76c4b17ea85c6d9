"""Frontends: each translates one protocol into calls of the manager, and its results into replies."""

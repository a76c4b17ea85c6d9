"""Backends: ways to hold a lock, one module or package per driver, with the `Backend` protocol."""

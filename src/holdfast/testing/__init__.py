"""Shipped testing kit: what a third-party backend or a simulator needs to prove itself."""

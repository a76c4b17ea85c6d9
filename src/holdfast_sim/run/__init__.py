"""Runs seeds, one or many, and prints their histories."""

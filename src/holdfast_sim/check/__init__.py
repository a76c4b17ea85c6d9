"""Checkers of the safety claims, outside the code under test."""

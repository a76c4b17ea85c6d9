"""Bytes in, replies out: each frontend translates one protocol into calls of the manager."""

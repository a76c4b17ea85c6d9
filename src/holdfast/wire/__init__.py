"""Bytes to calls and back: pure codecs, no sockets, no decisions."""

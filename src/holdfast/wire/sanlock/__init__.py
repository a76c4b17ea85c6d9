"""sanlock's client protocol: bytes to values and back, for daemon and clients (docs/specs/sanlock-socket.md)."""

"""The sanlock frontend: serves sanlock's clients with sanlock's protocol (docs/specs/sanlock-socket.md).

It is NOT part of the daemon yet: no socket of holdfastd leads here. There is the connection layer (framing, order, who is
registered, whose leases a command is about, what is answered without storage), and the `engine` behind it, which needs
the daemon only through `engine_ports`.
"""

"""The sanlock frontend: serves sanlock's clients with sanlock's protocol (docs/specs/sanlock-socket.md).

There is the connection layer (framing, order, who is registered, whose leases a command is about, what is answered without
storage), and the `engine` behind it, which needs the daemon only through `engine_ports`. `[sanlock] socket` leads here
(`daemon/sanlock_socket`).
"""

"""The sanlock frontend: serves sanlock's clients with sanlock's protocol (docs/specs/sanlock-socket.md).

It is NOT part of the daemon yet: no socket of holdfastd leads here, because no `SanlockService` but the tests'
exists. What is here is the connection layer: framing, order, who is registered, whose leases a command is about, what
is answered without storage.
"""

"""Messages with descriptors between two processes of this host, over a SOCK_SEQPACKET socket (unix(7)).

One message is a JSON object and some descriptors; more descriptors than one takes follow in packets of their own. What may
be long is passed as a memory file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

FDS_PER_PACKET = 200
"""SCM_MAX_FD of the kernel is 253."""
HEADER_BYTES_MAX = 4096


def send(sock: socket.socket, header: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Raises OSError."""
    raw = msgspec.json.encode({**header, "fds": len(fds)})
    assert len(raw) <= HEADER_BYTES_MAX
    sock.sendall(raw)
    for first in range(0, len(fds), FDS_PER_PACKET):
        socket.send_fds(sock, [b"f"], list(fds[first : first + FDS_PER_PACKET]))


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """A message with its descriptors, which are closed over exec; None if the other end has closed. Raises OSError."""
    raw = sock.recv(HEADER_BYTES_MAX)
    if not raw:
        return None
    header = msgspec.json.decode(raw, type=dict[str, Any])
    found: list[int] = []
    while len(found) < header["fds"]:
        some, fds, _, _ = socket.recv_fds(sock, 1, FDS_PER_PACKET, socket.MSG_CMSG_CLOEXEC)
        found += fds
        if not some or not fds:
            for fd in found:
                os.close(fd)
            return None
    return header, found


def memory_file(raw: bytes, name: str) -> int:
    """Closed over exec; raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(raw)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def read_memory_file(fd: int, bytes_max: int) -> bytes:
    """Its content, and closes it."""
    with os.fdopen(fd, "rb") as f:
        f.seek(0)
        return f.read(bytes_max)

"""holdfastd's part of a switch by a keeper: fetches locks and connections at its start, as the state of a re-exec."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import msgspec

from holdfast.system.host import fd_messages
from holdfast.system.host.descriptors import (
    REEXEC_BYTES_MAX,
    ReexecState,
    SavedConnection,
    decode_state,
)

log = logging.getLogger(__name__)

WAIT_S = 60.0
"""A keeper serves one client after the other, and none of them for long."""


def fetch(path: str) -> tuple[ReexecState, Callable[[], None]] | None:
    """What a keeper at that socket has, and what is to be called when it is safe here; None if there is no keeper, or it has
    nothing. Raises OSError if there is one and it does not answer.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(WAIT_S)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        fd_messages.send(sock, {"kind": "fetch"})
        message = fd_messages.receive(sock)
    except BaseException:
        sock.close()
        raise
    if message is None or message[0]["kind"] != "state":
        sock.close()
        return None
    memory, *fds = message[1]
    state = decode_state(fd_messages.read_memory_file(memory, REEXEC_BYTES_MAX))
    moved = msgspec.structs.replace(
        state,
        locks={number: fds[at] for number, at in state.locks.items()},
        connections=[
            SavedConnection(fds[each.fd], each.owner, each.restricted, b"", b"", "")
            for each in state.connections
        ],
    )

    def taken() -> None:
        with sock:
            fd_messages.send(sock, {"kind": "taken"})
        log.info("locks and connections of virtlockd are here, and in the descriptor store")

    return moved, taken

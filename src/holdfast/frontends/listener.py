"""Listening sockets: admission of peers, and a limit on their number.

A listener accepts, reads the peer's credentials (SO_PEERCRED), and passes the connection on. At its cap it stops accepting,
as virtlockd does: further clients wait in the backlog and are served when one leaves; that is logged once. Out of
descriptors it pauses instead of spinning.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from holdfast.system.epoll import Readiness
from holdfast.system.logs.log_limit import LimitedLog

log = logging.getLogger(__name__)

BACKLOG = 512
"""Connections that may wait for accept; virtlockd has 30, a host that boots has hundreds of VMs at once."""
EMFILE_PAUSE_S = 5.0
"""As virtlockd (virtlockd-rpc.md 1)."""

_UCRED = struct.Struct("iII")


class Peer(NamedTuple):
    """The peer's credentials when it connected."""

    pid: int
    uid: int
    gid: int


# Plain integers: the socket module's enumerations cost more than the system calls.
_SOCKETS, _PEER_CREDENTIALS = int(socket.SOL_SOCKET), int(socket.SO_PEERCRED)
_UNIX, _STREAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM)


def peer_of(sock: socket.SocketType) -> Peer:
    raw = sock.getsockopt(_SOCKETS, _PEER_CREDENTIALS, _UCRED.size)
    return tuple.__new__(Peer, _UCRED.unpack(raw))


class Listener:
    """One listening socket. `admit` returns the reason to refuse a peer, or an empty text.

    `serve` takes over an admitted socket; the frontend calls `left` when that connection has closed.
    """

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        *,
        clients_max: int,
        cap_key: str,
        readiness: Readiness,
        admit: Callable[[Peer, socket.SocketType], str],
        serve: Callable[[socket.SocketType, Peer], None],
    ) -> None:
        self.name = name
        self.socket = sock
        self.clients = 0
        self._clients_max = clients_max
        self._cap_key = cap_key
        self._readiness = readiness
        self._admit = admit
        self._serve = serve
        # At the cap each client that leaves admits another, at a rate that clients may control.
        self._full = LimitedLog(log, logging.ERROR)
        self._refused = LimitedLog(log)
        self._accepting = False
        self._resume_later: asyncio.TimerHandle | None = None
        self.closed = False

    def start(self) -> None:
        self.socket.setblocking(False)
        self.socket.listen(BACKLOG)
        self._accept_again()

    def _accept_again(self) -> None:
        self._resume_later = None
        if not self._accepting and not self.closed and self.clients < self._clients_max:
            self._accepting = True
            self._readiness.add(self.socket.fileno(), self._on_readable)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._readiness.remove(self.socket.fileno())

    def _on_readable(self) -> None:
        if self.clients >= self._clients_max:
            self._full.write(
                "%s: all %d connections are taken; further clients (VM starts!) wait until one closes; "
                "raise %s if your host runs that many VMs",
                self.name,
                self._clients_max,
                self._cap_key,
            )
            self._pause()
            return
        try:
            # Not accept(): making its socket object takes longer than the system call, and each libvirt request needs one.
            fd, _ = self.socket._accept()  # type: ignore[attr-defined]
            sock = socket.SocketType(_UNIX, _STREAM, 0, fd)
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as e:
            if e.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            log.error("%s: can't accept: %s; next try in %g s", self.name, e.strerror, EMFILE_PAUSE_S)
            self._pause()
            self._resume_later = asyncio.get_running_loop().call_later(EMFILE_PAUSE_S, self._accept_again)
            return
        peer = peer_of(sock)
        if reason := self._admit(peer, sock):
            self._refused.write("%s: refused client pid %d uid %d: %s", self.name, peer.pid, peer.uid, reason)
            sock.close()
            return
        self.clients += 1
        self._serve(sock, peer)

    def adopted(self) -> None:
        """A connection from before a re-exec counts like an accepted one."""
        self.clients += 1

    def left(self) -> None:
        """A connection has closed: accept another one."""
        self.clients -= 1
        if not self._accepting and self._resume_later is None:
            self._accept_again()

    def close(self) -> None:
        self.closed = True
        self._pause()
        if self._resume_later is not None:
            self._resume_later.cancel()
        self.socket.close()

"""A client of wdmd, the daemon that has the watchdog device where sanlock is installed too.

wdmd pings the device as long as no registered client has expired; one that has expired, or will before its next
test, makes it close the device without the disarm character. So a client only tells until when all is good:

    connect ──► STATUS: the fire timeout must be ours       (newer ones open the device first: OPEN_WATCHDOG)
    register ─► REGISTER, REFCOUNT_SET                      from now on wdmd does not exit
    feed ─────► TEST_LIVE(renewal, expire)                  in whole seconds of CLOCK_MONOTONIC
    disarm ───► TEST_LIVE(0, 0), REFCOUNT_CLEAR, close      a close without it leaves the entry: reset

All lockspaces are one client here, with the earliest of their bounds. A message is 176 bytes in host byte order.
Nothing waits for wdmd while leases are held: a socket that takes no more bytes means that nobody is fed.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol

from holdfast.protocol.words import Instant
from holdfast.system.watchdog import WatchdogRefused

SOCKET_PATH = "/run/wdmd/wdmd.sock"
CLIENT_NAME = b"holdfast"
_MESSAGE = struct.Struct("=IIIIIIQQQ128s")
MESSAGE_BYTES = _MESSAGE.size

REGISTER, REFCOUNT_SET, REFCOUNT_CLEAR, TEST_LIVE, STATUS, _DUMP, OPEN_WATCHDOG = range(1, 8)

_ANSWER_TIMEOUT_S = 5.0
"""wdmd serves its clients between two tests of the device, in no time."""


def pack(
    command: int, *, fire_timeout_s: int = 0, renewal: int = 0, expire: int = 0, name: bytes = b""
) -> bytes:
    return _MESSAGE.pack(0, command, 0, 0, 0, fire_timeout_s, 0, renewal, expire, name)


def unpack(raw: bytes) -> tuple[int, int, int, int, bytes]:
    """(command, fire timeout, renewal time, expire time, name)."""
    _, command, _, _, _, fire, _, renewal, expire, name = _MESSAGE.unpack(raw)
    return command, fire, renewal, expire, name.split(b"\0", 1)[0]


class Connection(Protocol):
    """What is used of a socket, so that a double of wdmd can be at its other end."""

    def settimeout(self, seconds: float | None, /) -> None: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def connect(self, path: str, /) -> None: ...
    def sendall(self, raw: bytes, /) -> None: ...
    def send(self, raw: bytes, flags: int, /) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...


def real_connection(fd: int | None) -> Connection:
    """A new socket, or the one of that descriptor."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) if fd is None else socket.socket(fileno=fd)


def monotonic() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class WdmdWatchdog:
    """`watchdog = "wdmd"`."""

    fences = True

    def __init__(
        self,
        fire_timeout_s: int,
        now: Callable[[], Instant],
        *,
        path: str = SOCKET_PATH,
        their_now: Callable[[], float] = monotonic,
        connection: Callable[[int | None], Connection] = real_connection,
        fd: int | None = None,
    ) -> None:
        """`fd`: the connection of an earlier program, which is registered there."""
        self._fire_timeout_s = fire_timeout_s
        self._now = now
        self._path = path
        self._their_now = their_now
        self._new_connection = connection
        self._socket = connection(fd) if fd is not None else None
        if self._socket is not None:
            self._socket.setblocking(False)
        self._registered = self._socket is not None
        self._broken = False
        self._told_until: Instant | None = None

    def prove(self) -> None:
        if self._socket is not None:
            return
        connection = self._new_connection(None)
        try:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.connect(self._path)
            fire = self._ask(connection, pack(STATUS))
            if fire == 0:
                fire = self._ask(connection, pack(OPEN_WATCHDOG, fire_timeout_s=self._fire_timeout_s))
            if fire != self._fire_timeout_s:
                raise WatchdogRefused(
                    f"wdmd: its fire timeout is {fire} s where {self._fire_timeout_s} s are configured, and all "
                    "hosts count on them"
                )
            connection.setblocking(False)
        except OSError as e:
            connection.close()
            raise WatchdogRefused(f"wdmd at {self._path}: {e.strerror or e}") from None
        except WatchdogRefused:
            connection.close()
            raise
        self._socket = connection

    def feed(self, until: Instant) -> bool:
        # Their clock first: a pause between the two makes the bound earlier then, never later.
        their_now = self._their_now()
        now = self._now()
        if self._socket is None or now >= until:
            return False
        if until == self._told_until:
            return True  # wdmd knows, and counts by itself
        expire = int(their_now + (until - now))  # downwards: a part of a second earlier, never later
        if expire <= their_now:
            return False
        messages = b""
        if not self._registered:
            messages = pack(REGISTER, name=CLIENT_NAME) + pack(REFCOUNT_SET)
        messages += pack(TEST_LIVE, renewal=int(their_now), expire=expire)
        if not self._send(messages):
            return False
        self._registered = True
        self._told_until = until
        return True

    def disarm(self) -> None:
        if self._socket is None:
            return
        if self._registered and not self._send(pack(TEST_LIVE) + pack(REFCOUNT_CLEAR)):
            return  # closing now would reset the host all the same, only with less to see
        self._socket.close()
        self._socket, self._registered, self._told_until = None, False, None

    def descriptor(self) -> int | None:
        return self._socket.fileno() if self._socket is not None else None

    def _send(self, messages: bytes) -> bool:
        """All of it at once or never again: half a message on a stream cannot be taken back."""
        if self._socket is None or self._broken:
            return False
        try:
            if self._socket.send(messages, socket.MSG_NOSIGNAL) == len(messages):
                return True
        except OSError:
            pass
        # wdmd counts on: what it was told last ends when it ends.
        self._broken = True
        return False

    @staticmethod
    def _ask(connection: Connection, message: bytes) -> int:
        connection.sendall(message)
        raw = b""
        while len(raw) < MESSAGE_BYTES:
            piece = connection.recv(MESSAGE_BYTES - len(raw))
            if not piece:
                raise WatchdogRefused("wdmd closed the connection")
            raw += piece
        return unpack(raw)[1]

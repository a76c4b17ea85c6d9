"""A client of wdmd, the daemon that has the watchdog device where sanlock is installed too.

wdmd pings the device as long as no registered client has expired; one that has expired, or will before its next
test, makes it close the device without the disarm character. So a client only says until when all is good:

    connect ──► OPEN_WATCHDOG(fire timeout), STATUS         first, and both answers are read: see below
    register ─► REGISTER, REFCOUNT_SET                      from now on wdmd does not exit
    feed ─────► TEST_LIVE(renewal, expire)                  in whole seconds of CLOCK_MONOTONIC
    disarm ───► TEST_LIVE(0, 0), REFCOUNT_CLEAR, close      a close without it leaves the entry: reset

Two generations are in use, and only one of them has the device open by itself:

                                     3.8.5 (Debian 12)         3.9 and later (Debian 13, 14)
    the device is open               from its start            while a client has asked for it
    OPEN_WATCHDOG                    unknown, no answer        opens it; answers with the timeout in force, 0: failed
    STATUS before that               its fire timeout          its fire timeout just as well, and nothing is open
    REGISTER, TEST_LIVE before that  pings                     accepted; nothing is pinged, and nothing ever fires

So the device is asked for on our own connection before anything else, which makes it stay open as long as that does.
STATUS follows in the same write: its answer is the last one of either generation, so that none has to be waited for in
vain. wdmd is taken at its word only if it says that it opened the device with our timeout; or if it does not know the
question and has pinged the device, which needs no asking then.

All lockspaces are one client here, with the earliest of their bounds. A message is 176 bytes in host byte order.
Nothing waits for wdmd while leases are held: a socket that takes no more bytes means that nobody is fed.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol

from holdfast.protocol.types import Instant
from holdfast.system.watchdog.device import WatchdogRefused

log = logging.getLogger(__name__)

SOCKET_PATH = "/run/wdmd/wdmd.sock"
CLIENT_NAME = b"holdfast"
_MESSAGE = struct.Struct("=IIIIIIQQQ128s")
MESSAGE_BYTES = _MESSAGE.size

REGISTER, REFCOUNT_SET, REFCOUNT_CLEAR, TEST_LIVE, STATUS, _DUMP, OPEN_WATCHDOG = range(1, 8)

_ANSWER_TIMEOUT_S = 5.0
"""wdmd serves its clients between two tests of the device, in no time."""


def pack(
    command: int,
    *,
    fire_timeout_s: int = 0,
    last_keepalive: int = 0,
    renewal: int = 0,
    expire: int = 0,
    name: bytes = b"",
) -> bytes:
    return _MESSAGE.pack(0, command, 0, 0, 0, fire_timeout_s, last_keepalive, renewal, expire, name)


def unpack(raw: bytes) -> tuple[int, int, int, int, bytes]:
    """(command, fire timeout, renewal time, expire time, name)."""
    _, command, _, _, _, fire, _, renewal, expire, name = _MESSAGE.unpack(raw)
    return command, fire, renewal, expire, name.split(b"\0", 1)[0]


def last_keepalive_of(raw: bytes) -> int:
    """When wdmd says that it pinged the device last, by its clock; 0: never."""
    keepalive: int = _MESSAGE.unpack(raw)[6]
    return keepalive


class Connection(Protocol):
    """What is used of a socket, so that a double of wdmd can be at its other end."""

    def settimeout(self, seconds: float | None, /) -> None: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def connect(self, path: str, /) -> None: ...
    def sendall(self, raw: bytes, /) -> None: ...
    def send(self, raw: bytes, flags: int, /) -> int: ...
    def recv(self, size: int, flags: int = 0, /) -> bytes: ...
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
        # An earlier program that did not ask for the device may have left a wdmd that watches nothing.
        self._asked_for_device = False
        self._broken = ""
        """Why nothing is sent on this connection any more."""
        self._ended = False
        """wdmd has closed it, so nothing that was sent there counts any more."""
        self._unread = b""
        self._reported_until: Instant | None = None

    def prove(self) -> None:
        if self._socket is not None:
            self._read_answers()
            if self._registered and not self._broken:
                return  # it is in use: closing it would reset the host
            if self._registered and not self._ended:
                raise WatchdogRefused(
                    f"wdmd at {self._path}: {self._broken}; and it still counts on the last bound that it was given"
                )
            # Nothing at the other end counts on this connection: it is not registered, or wdmd has gone.
            self._forget()
        connection = self._new_connection(None)
        try:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.connect(self._path)
            self._ask_for_device(connection)
            connection.setblocking(False)
        except OSError as e:
            connection.close()
            raise WatchdogRefused(f"wdmd at {self._path}: {e.strerror or e}") from None
        except WatchdogRefused:
            connection.close()
            raise
        self._socket = connection
        self._asked_for_device = True

    def feed(self, until: Instant) -> bool:
        # Their clock first: a pause between the two makes the bound earlier then, never later.
        their_now = self._their_now()
        now = self._now()
        if self._socket is None or now >= until:
            return False
        self._read_answers()
        if self._broken:
            return False
        if until == self._reported_until:
            return True  # wdmd knows, and counts by itself
        expire = int(their_now + (until - now))  # downwards: a part of a second earlier, never later
        if expire <= their_now:
            return False
        messages = b""
        if not self._asked_for_device:
            messages = pack(OPEN_WATCHDOG, fire_timeout_s=self._fire_timeout_s)
        if not self._registered:
            messages += pack(REGISTER, name=CLIENT_NAME) + pack(REFCOUNT_SET)
        messages += pack(TEST_LIVE, renewal=int(their_now), expire=expire)
        if not self._send(messages):
            return False
        self._registered = self._asked_for_device = True
        self._reported_until = until
        return True

    def disarm(self) -> None:
        if self._socket is None:
            return
        if self._registered and not self._send(pack(TEST_LIVE) + pack(REFCOUNT_CLEAR)) and not self._ended:
            return  # closing now would reset the host all the same, only with less to see
        self._forget()

    def descriptor(self) -> int | None:
        return self._socket.fileno() if self._socket is not None else None

    def _forget(self) -> None:
        """Close the connection; what was known of it says nothing about the next one."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._registered, self._reported_until, self._unread = None, False, None, b""
        self._asked_for_device, self._broken, self._ended = False, "", False

    def _send(self, messages: bytes) -> bool:
        """All of it at once or never again: half a message on a stream cannot be taken back."""
        if self._socket is None or self._broken:
            return False
        try:
            if self._socket.send(messages, socket.MSG_NOSIGNAL) == len(messages):
                return True
        except ConnectionError:
            self._has_gone()
            return False
        except OSError:
            pass
        # wdmd counts on: the last bound that it was given stands.
        self._broken = "it takes no more messages"
        return False

    def _has_gone(self) -> None:
        self._broken, self._ended = "it has closed the connection", True

    def _read_answers(self) -> None:
        """What wdmd has said since, without waiting: that it has gone, or did not open the device after all."""
        while self._socket is not None and not self._broken:
            try:
                piece = self._socket.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                piece = b""
            if not piece:
                self._has_gone()
                return
            self._unread += piece
            while len(self._unread) >= MESSAGE_BYTES:
                command, fire_s, *_ = unpack(self._unread[:MESSAGE_BYTES])
                self._unread = self._unread[MESSAGE_BYTES:]
                if command == OPEN_WATCHDOG and fire_s != self._fire_timeout_s:
                    self._broken = self._not_opened(fire_s)
                    log.error("wdmd at %s: %s", self._path, self._broken)

    def _ask_for_device(self, connection: Connection) -> None:
        """See the module: whether wdmd has the device open now, with our timeout, and for this connection."""
        connection.sendall(pack(OPEN_WATCHDOG, fire_timeout_s=self._fire_timeout_s) + pack(STATUS))
        opened_s: int | None = None
        while True:
            raw = self._answer(connection)
            command, fire_s, *_ = unpack(raw)
            if command == STATUS:
                break
            if command == OPEN_WATCHDOG:
                opened_s = fire_s
        if opened_s is not None and opened_s != self._fire_timeout_s:
            raise WatchdogRefused(f"wdmd: {self._not_opened(opened_s)}")
        if fire_s != self._fire_timeout_s:
            raise WatchdogRefused(f"wdmd: {self._other_timeout(fire_s)}")
        if opened_s is None and not last_keepalive_of(raw):
            raise WatchdogRefused(
                "wdmd: it has never pinged its watchdog device, and can't be asked to open it: it would fence nobody"
            )

    def _not_opened(self, fire_s: int) -> str:
        if fire_s:
            return self._other_timeout(fire_s)
        return "it could not open its watchdog device; its log says why (is there one, and has nobody else opened it?)"

    def _other_timeout(self, fire_s: int) -> str:
        return f"its fire timeout is {fire_s} s where {self._fire_timeout_s} s are configured, and all hosts count on them"

    @staticmethod
    def _answer(connection: Connection) -> bytes:
        raw = b""
        while len(raw) < MESSAGE_BYTES:
            piece = connection.recv(MESSAGE_BYTES - len(raw))
            if not piece:
                raise WatchdogRefused("wdmd closed the connection")
            raw += piece
        return raw

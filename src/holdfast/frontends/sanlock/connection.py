"""One client of sanlock's protocol: bytes in, answers out, one command after the other (ADR 0199).

Nothing is read from a client while one of its commands is under way or an answer of its is not sent: at most one
chunk waits here. Meanwhile only the connection's end is watched for, so that a long command of a client that died can
end.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Coroutine
from typing import Any, Protocol

from holdfast.frontends.listener import Peer
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.event_channels import END
from holdfast.system import eager_tasks
from holdfast.system.epoll import WRITE, Readiness
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.framer import Framed, Framer
from holdfast.wire.sanlock.header import Header
from holdfast.wire.sanlock.replies import refusal
from holdfast.wire.sanlock.result import Result

log = logging.getLogger(__name__)

READ_BYTES = 16384
"""At a time: most requests are below 2 KiB."""
_HANGUP_ONLY = 0
"""epoll reports EPOLLHUP always."""
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT)
_SEND_FLAGS = int(socket.MSG_DONTWAIT) | int(socket.MSG_NOSIGNAL)


class Answer:
    """What is sent for a request, and what happens to the connection then."""

    __slots__ = ("closes", "events", "raw")

    def __init__(self, raw: bytes = b"", *, closes: bool = False, events: bool = False) -> None:
        self.raw = raw
        self.closes = closes
        self.events = events
        """From here on it is an event channel."""


class Frontend(Protocol):
    """What a connection asks of the frontend that it belongs to."""

    readiness: Readiness
    commands: frozenset[Command]

    def admit(self, connection: SanlockConnection, header: Header) -> Result | None: ...
    def answer(
        self, connection: SanlockConnection, framed: Framed
    ) -> Answer | Coroutine[Any, Any, Answer]: ...
    def hung_up(self, connection: SanlockConnection) -> None: ...
    def closed(self, connection: SanlockConnection) -> None: ...


class SanlockConnection:
    """`start` begins to serve it; `close` ends it for whatever reason."""

    __slots__ = (
        "_busy",
        "_closed",
        "_closes",
        "_end",
        "_events",
        "_fd",
        "_framer",
        "_frontend",
        "_out",
        "_pumping",
        "_sock",
        "_watched",
        "client",
        "peer",
    )

    def __init__(self, frontend: Frontend, sock: socket.SocketType, peer: Peer, client: Client) -> None:
        self._frontend = frontend
        self._sock = sock
        self._fd = sock.fileno()
        self._framer = Framer(commands=frontend.commands, admit=self._admit)
        self._out = b""
        self._busy = False
        self._pumping = False
        self._closes = False  # when everything is sent
        self._closed = False
        self._events = False
        self._end = b""  # the first bytes that came on an event channel
        self._watched = False
        self.peer = peer
        self.client = client

    def start(self) -> None:
        self.catch_up()  # the first request is usually there already
        self._read_on()

    def catch_up(self) -> None:
        """Read what has arrived, before its turn: another client's command may be about it."""
        if not (self._busy or self._out or self._pumping or self._closed or self._events):
            self._on_readable()

    def restrict(self) -> None:
        """No further command is accepted."""
        self._framer.rejecting = True

    # --- reading ---

    def _read_on(self) -> None:
        if not (self._watched or self._busy or self._out or self._closed):
            self._watched = True
            self._frontend.readiness.add(
                self._fd, self._on_event_bytes if self._events else self._on_readable
            )

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._frontend.readiness.remove(self._fd)

    def _receive(self, size: int) -> bytes | None:
        """Empty at the end; None if nothing is there."""
        try:
            return self._sock.recv(size, _RECEIVE_FLAGS)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as e:
            log.debug("%s: %s", self.client, e)
            return b""

    def _on_readable(self) -> None:
        chunk = self._receive(READ_BYTES)
        if chunk is None:
            return
        if chunk:
            self._framer.feed(chunk)
            self._pump()
        else:
            self._ended()

    def _ended(self) -> None:
        """The client sends no more; half of a request is answered: its sender may still read."""
        if (header := self._framer.unfinished) is not None:
            self._closes = True
            self._send(refusal(header, b"", Result.ENOTCONN).encode(header))
            if self._out:
                return
        self.close()

    def _on_hangup(self) -> None:
        if self._has_hung_up():
            self._unwatch()
            self._frontend.hung_up(self)

    def _has_hung_up(self) -> bool:
        """Whether the other end is closed: an event of the same round whose bytes were read early leads here too."""
        try:
            self._sock.send(b"", _SEND_FLAGS)
        except OSError:
            return True
        return False

    # --- serving ---

    def _admit(self, header: Header) -> Result | None:
        return self._frontend.admit(self, header)

    def _pump(self) -> None:
        """Serve what has arrived, until a command has to wait."""
        if self._pumping:
            return
        self._pumping = True
        while not (self._busy or self._out or self._closed or self._events):
            framed = self._framer.next()
            if framed is None:
                break
            self._serve(framed)
        self._pumping = False
        self._read_on()

    def _serve(self, framed: Framed) -> None:
        answer = self._frontend.answer(self, framed)
        if isinstance(answer, Answer):
            self._answered(answer)
            return
        self._busy = True
        if not eager_tasks.start(answer, self._finished):
            self._unwatch()
            self._watched = True
            self._frontend.readiness.add(self._fd, self._on_hangup, _HANGUP_ONLY)

    def _finished(self, answer: Answer) -> None:
        self._busy = False
        self._unwatch()
        self._answered(answer)
        self._pump()

    def _answered(self, answer: Answer) -> None:
        self._closes = answer.closes
        if answer.events:
            self._events = True
            self._unwatch()  # its bytes mean something else from here on
        self._send(answer.raw)
        if self._closes and not self._out:
            self.close()

    # --- sending ---

    def _send(self, raw: bytes) -> None:
        if self._closed:
            return
        try:
            sent = self._sock.send(raw, _SEND_FLAGS) if raw else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as e:
            log.debug("%s: %s", self.client, e)
            self.close()
            return
        self._out = raw[sent:]
        if self._out:
            self._unwatch()
            self._watched = True
            self._frontend.readiness.add(self._fd, self._on_writable, WRITE)

    def _on_writable(self) -> None:
        self._unwatch()
        self._send(self._out)
        if self._out or self._closed:
            return
        if self._closes:
            self.close()
        else:
            self._pump()

    # --- as an event channel ---

    def read_end(self) -> bool:
        while (chunk := self._receive(READ_BYTES)) is not None:
            if not chunk:
                return True
            self._end = (self._end + chunk)[: len(END)]
        return self._end == END

    def _on_event_bytes(self) -> None:
        chunk = self._receive(READ_BYTES)
        if chunk:
            self._end = (self._end + chunk)[: len(END)]
        elif chunk is not None:
            self.close()

    def send_event(self, raw: bytes) -> bool:
        if self._out:
            return False  # not even its REG_EVENT is answered yet
        try:
            return self._sock.send(raw, _SEND_FLAGS) == len(raw)
        except OSError:
            return False

    # --- the end ---

    def close(self) -> None:
        """The client has gone, or must go."""
        if self._closed:
            return
        self._closed = True
        self._unwatch()
        self._out = b""
        self._frontend.closed(self)
        self._sock.close()

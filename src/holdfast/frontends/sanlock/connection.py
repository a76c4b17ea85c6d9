"""One client of sanlock's protocol: bytes in, answers out, one command after the other (ADR 0199).

Nothing is read from a client while one of its commands is under way or an answer of its is not sent: at most one
chunk waits here. Meanwhile only the connection's end is watched for, so that a long command of a client that died can
end.

Requests are read without being removed from the socket (MSG_PEEK); that comes with the answer. So the next daemon, which
gets the socket, finds there what was not answered (ADR 0203):

    a request is whole │ its number in the slot │ carried out │ BROKEN │ request removed │ answer sent │ GOOD
                       └── killed here: the next daemon answers ──┘    └── killed here: it closes ──┘
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Coroutine
from typing import Any, NamedTuple, Protocol

from holdfast.frontends.listener import Peer
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.connection_slots import BROKEN, CHANNEL, GOOD, REGISTERED, Entry, encoded
from holdfast.frontends.sanlock.event_channels import END
from holdfast.system import eager_tasks
from holdfast.system.epoll import READ_ONCE, WRITE, Readiness
from holdfast.system.host.kept_memory import inode_of
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
_PEEK_FLAGS = _RECEIVE_FLAGS | int(socket.MSG_PEEK)
_SOCKET_LEVEL = int(socket.SOL_SOCKET)
_SO_PEEK_OFF = 42
"""Of asm-generic/socket.h: each MSG_PEEK begins where the last one has ended (socket(7))."""
_SEND_FLAGS = int(socket.MSG_DONTWAIT) | int(socket.MSG_NOSIGNAL)


class Answer:
    """What is sent for a request, and what happens to the connection then."""

    __slots__ = ("closes", "events", "raw")

    def __init__(self, raw: bytes = b"", *, closes: bool = False, events: bytes = b"") -> None:
        self.raw = raw
        self.closes = closes
        self.events = events
        """From here on it is an event channel of that lockspace."""


class Leftovers(NamedTuple):
    """What a re-exec passes on, beside the slot: the rest of an answer, and whether the connection closes behind it."""

    client_id: int
    fd: int
    unsent: bytes
    closes: bool


class Frontend(Protocol):
    """What a connection asks of the frontend that it belongs to."""

    readiness: Readiness
    is_ending: bool
    """This daemon ends: its connections are the next one's."""
    commands: frozenset[Command]

    def keep(self, client: Client, fd: int | None) -> None:
        """Have the connection outlive this daemon, or not any more (None)."""

    def next_request(self) -> int:
        """A number that no request of this boot has had."""

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
        "_changed",
        "_closed",
        "_closes",
        "_end",
        "_events",
        "_fd",
        "_framer",
        "_frontend",
        "_held",
        "_lockspace",
        "_once",
        "_out",
        "_pumping",
        "_request",
        "_sock",
        "_stored",
        "_unserved",
        "_watched",
        "client",
        "peer",
        "was_begun",
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
        self._lockspace = b""  # of an event channel
        self._watched = False
        self._once = False  # watched by `READ_ONCE`
        self._held = False
        self._changed = False
        self._unserved = 0  # bytes that were read and are in the socket still
        self._request = 0  # the number of the one that is under way
        self._stored = False
        self.was_begun = False
        """An earlier daemon has begun with the request that is served now: it may have been carried out."""
        self.peer = peer
        self.client = client
        sock.setsockopt(_SOCKET_LEVEL, _SO_PEEK_OFF, 0)  # also after another daemon had it

    def start(self) -> None:
        self._store()  # before anything is read: no request of its is lost from here on
        self.catch_up()  # the first request is usually there already
        self._read_on()

    def catch_up(self) -> None:
        """Read what has arrived, before its turn: another client's command may be about it."""
        if not (self._busy or self._out or self._pumping or self._closed or self._events or self._held):
            self._on_readable()

    # --- over a restart ---

    def resume(self, entry: Entry, left: Leftovers | None) -> None:
        """As `start`, for a connection that an earlier daemon had: `left` is what a re-exec has passed on."""
        self._stored = True
        self._request, self.was_begun = entry.request, entry.request != 0
        if entry.kind & CHANNEL:
            self._events, self._lockspace = True, entry.lockspace
        if left is not None and left.unsent:
            self._closes = left.closes
            self._send(left.unsent)
            if not self._out:
                self._sent()
                self._read_on()
        elif self._has_hung_up() and not self._events:
            self.close()  # nobody waits for what it asked of a daemon that was gone
        else:
            self.start()

    def leftovers(self) -> Leftovers | None:
        """What the next program needs; None: it can't go on with this connection."""
        if self.client.slot is None or self._framer.is_dropping:
            return None
        self.note()
        return Leftovers(self.client.client_id, self._fd, self._out, self._closes)

    @property
    def busy(self) -> bool:
        return self._busy

    def hold(self) -> None:
        """Take no further request, until `go_on` or a re-exec."""
        self._held = True
        if not (self._busy or self._out):
            self._unwatch()

    def go_on(self) -> None:
        self._held = False
        self._pump()

    def note(self) -> None:
        """Write down what the next daemon has to know of this connection."""
        client = self.client
        if client.slot is None:
            return
        kind = REGISTERED * client.registered | CHANNEL * self._events
        client.slot.write(
            Entry(
                BROKEN if self._out else GOOD,
                kind,
                client.restricted,
                self._request,
                inode_of(self._fd),
                client.owner_id,
                encoded(client.name),
                self._lockspace,
            )
        )

    def _store(self) -> None:
        """Have it outlive this daemon."""
        if not self._stored and self.client.slot is not None:
            self._stored = True
            self.note()
            self._frontend.keep(self.client, self._fd)

    def restrict(self) -> None:
        """No further command is accepted."""
        self._framer.rejecting = True

    def changed(self) -> None:
        """The next daemon has to know more of this connection than before, once the answer is sent."""
        self._changed = True

    # --- reading ---

    def _read_on(self) -> None:
        if not (self._watched or self._busy or self._out or self._closed or self._held):
            self._watched = True
            add = self._frontend.readiness.add
            if self._events:
                add(self._fd, self._on_event_bytes)
            elif self._unserved:
                self._once = True
                add(self._fd, self._on_readable, READ_ONCE)  # half a request stays there
            else:
                add(self._fd, self._on_readable)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = self._once = False
            self._frontend.readiness.remove(self._fd)

    def _receive(self, size: int, flags: int = _RECEIVE_FLAGS) -> bytes | None:
        """Empty at the end; None if nothing is there."""
        try:
            return self._sock.recv(size, flags)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as e:
            log.debug("%s: %s", self.client, e)
            return b""

    def _on_readable(self) -> None:
        chunk = self._receive(READ_BYTES, _PEEK_FLAGS)
        if chunk is None:
            return
        if chunk:
            self._unserved += len(chunk)
            self._framer.feed(chunk)
            self._pump()
        else:
            self._ended()

    def _remove_served(self) -> None:
        """From the socket, so that it holds what is not answered, and no more."""
        if self._framer.is_dropping and self.client.slot is not None:
            self.client.slot.state(BROKEN)  # until the next request begins
        size = self._unserved - self._framer.unserved_bytes
        while size > 0:
            chunk = self._receive(size)
            if not chunk:
                self.close()  # somebody else reads from it
                return
            size -= len(chunk)
            self._unserved -= len(chunk)

    def _ended(self) -> None:
        """The client sends no more; half of a request is answered: its sender may still read."""
        if (header := self._framer.unfinished) is not None:
            self._closes = True
            if self.client.slot is not None:
                self.client.slot.state(BROKEN)
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
        while not (self._busy or self._out or self._closed or self._events or self._held):
            framed = self._framer.next()
            if framed is None:
                self._remove_served()
                break
            self._serve(framed)
        self._pumping = False
        if not (self._busy or self._out or self._closed):
            self._is_good()
            if self._unserved or self._once:
                self._unwatch()  # so that what came meanwhile is reported
        self._read_on()

    def begun(self) -> int:
        """The number of the request that is served now, before anything is done for it."""
        if not self._request:
            self._request = self._frontend.next_request()
            if self.client.slot is not None:
                self.client.slot.request(self._request)
        return self._request

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
        if self._closed:
            return  # the next daemon answers, or nobody waits
        self._unwatch()
        self._answered(answer)
        self._pump()

    def _answered(self, answer: Answer) -> None:
        self._closes = answer.closes
        slot = self.client.slot
        if slot is not None and (answer.raw or answer.closes):
            slot.state(BROKEN)
        if answer.events:
            self._events = self._changed = True
            self._lockspace = answer.events
            self._unwatch()  # its bytes mean something else from here on
        # Before the answer: a client that has it may have us killed at once.
        self._remove_served()
        self.was_begun = False
        if self._request and not self._closed:
            self._request = 0
            if slot is not None:
                slot.request(0)
        self._send(answer.raw)
        if not self._out:
            self._sent()

    def _sent(self) -> None:
        """The whole answer."""
        if self._closes:
            self.close()
        elif not self._closed:
            self._is_good()

    def _is_good(self) -> None:
        """The next daemon may go on with it."""
        if self.client.slot is None or self._framer.is_dropping:
            return
        if self._changed:
            self._changed = False
            self.note()
        self.client.slot.state(GOOD)

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
        self._sent()
        if not self._closed:
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
        goes_on = self._frontend.is_ending and self._stored
        if self._unserved and not goes_on:
            self._receive(self._unserved)  # else the kernel reports a reset in place of the end
        if self._stored and not goes_on:
            self._let_go()
        self._frontend.closed(self)
        self._sock.close()

    def _let_go(self) -> None:
        """The copy in the descriptor store must not keep it open."""
        if self.client.slot is not None:
            self.client.slot.free()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._frontend.keep(self.client, None)

"""Received bytes to requests: one at a time, in order, in sync whatever a client sends (sanlock-socket.md 1.3).

A partial header or body waits for its rest. A header that is none (other magic, other major version, unknown command)
is dropped without a word, and the next 32 bytes are read as another one. A request that is refused before its body is
read (`admit`, too many resources, num_disks out of range) comes out at once; its body is counted away, so the request
behind it is found. At most one request is kept (`KEPT_BYTES_MAX`), and what was fed and not asked for yet.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

from holdfast.wire.sanlock.command import EVERY_COMMAND, Command
from holdfast.wire.sanlock.header import HEADER_BYTES, Header, accepted, decode_header
from holdfast.wire.sanlock.request_table import BODY_BYTES_MAX, Piece, pieces
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import RESOURCE_BYTES

KEPT_BYTES_MAX = HEADER_BYTES + BODY_BYTES_MAX
"""Of one unfinished request: 34 KiB, an ACQUIRE with 8 resources of 4 disks."""


class Framed(NamedTuple):
    """A whole request; or one that is `refused`: then `body` is what was read of it, and no more of it comes out."""

    header: Header
    body: bytes
    refused: Result | None = None


class Framer:
    """One connection's bytes. `feed` takes any chunk, `next` gives the next request or None until more is fed.

    `admit` sees each accepted header before its body is read, and returns the result to refuse it with, or None.
    """

    __slots__ = (
        "_admit",
        "_body",
        "_commands",
        "_header",
        "_left",
        "_piece",
        "_refused",
        "_started",
        "_unread",
        "_walk",
        "rejecting",
    )

    def __init__(
        self,
        *,
        commands: frozenset[Command] = EVERY_COMMAND,
        admit: Callable[[Header], Result | None] | None = None,
    ) -> None:
        self._commands = commands
        self._admit = admit
        self._unread = bytearray()
        self._header: Header | None = None  # of the request that is being read
        self._walk: Generator[Piece, bytes | None, None] = iter_nothing()
        self._started = False  # the first step of the walk is done
        self._refused = False
        self._piece = self._left = 0  # bytes of the current piece, and of it still to come
        self._body = (
            bytearray()
        )  # of a refused request the current piece alone, if it may be a resource's first part
        self.rejecting = False
        """Every header is dropped: RESTRICT_ALL."""

    @property
    def waiting_bytes(self) -> int:
        """What is kept: the unfinished request and what was fed behind it."""
        return len(self._unread) + len(self._body) + (HEADER_BYTES if self._header else 0)

    @property
    def is_dropping(self) -> bool:
        """Whether the body of a refused request is still to come, and is counted away."""
        return self._refused and self._header is not None

    @property
    def unserved_bytes(self) -> int:
        """How many of the bytes that were fed belong to requests that have not come out, whole or refused."""
        return len(self._unread) if self.is_dropping else self.waiting_bytes

    @property
    def unfinished(self) -> Header | None:
        """The header whose body is not whole yet, if that was not refused: the connection's end makes it a short body."""
        return None if self._refused else self._header

    def feed(self, chunk: bytes) -> None:
        """Take what was received; call `next` until it returns None before the next one, or memory is not bounded."""
        self._unread += chunk

    def next(self) -> Framed | None:
        while (self._header is not None or self._take_header()) and self._take_piece():
            if (framed := self._advance()) is not None:
                return framed
        return None

    def _take_header(self) -> bool:
        """Begin with the next header that is one; what is none is dropped."""
        at = 0
        while len(self._unread) - at >= HEADER_BYTES:
            header = decode_header(self._unread, at)
            at += HEADER_BYTES
            if not self.rejecting and accepted(header, self._commands):
                self._header, self._walk = header, pieces(header)
                self._started = self._refused = False
                self._piece = self._left = 0
                break
        del self._unread[:at]
        return self._header is not None

    def _take_piece(self) -> bool:
        """Move what has arrived of the current piece; whether it is whole."""
        size = min(self._left, len(self._unread))
        if not self._refused or self._piece <= RESOURCE_BYTES:
            self._body += self._unread[:size]
        del self._unread[:size]
        self._left -= size
        return not self._left

    def _advance(self) -> Framed | None:
        """Go to the next piece; the request, if it is whole now, or refused from here on."""
        header, refusal = self._header, None
        assert header is not None
        passed = bytes(self._body[-RESOURCE_BYTES:]) if self._started else None
        if not self._started:
            self._started = True
            refusal = self._admit(header) if self._admit is not None else None
        try:
            piece = self._walk.send(passed)
        except StopIteration:
            piece, self._header = None, None
        if piece is not None:
            self._piece = self._left = piece.size
            if not self._refused and refusal is None:
                refusal = piece.refused
        body = bytes(self._body) if refusal is not None or piece is None else b""
        if self._refused or refusal is not None or piece is None:
            self._body.clear()
        if refusal is not None:
            self._refused = True
            return Framed(header, body, refusal)
        return Framed(header, body) if piece is None and not self._refused else None


def iter_nothing() -> Generator[Piece, bytes | None, None]:
    """The walk before the first header."""
    yield from ()

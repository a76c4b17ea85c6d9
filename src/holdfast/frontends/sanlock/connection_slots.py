"""What the next daemon has to know of each connection of sanlock's clients, in memory that outlives this one (ADR 0203).

A connection has the slot of its client id. `BROKEN` says that nobody can go on with it: an answer may be sent in part or in
whole, or bytes of a refused request are being dropped. It is written before, and taken back when the socket holds exactly
what is not answered. So after a crash a connection is either at the beginning of a request, or it is closed.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

from holdfast.ondisk.padded_name import NAME_BYTES

SLOTS = 8192
"""Twice the connections that a daemon serves by default; what is beyond has no slot and ends with the daemon."""
FREE, GOOD, BROKEN = 0, 1, 2
REGISTERED, CHANNEL = 1, 2

_SLOT = struct.Struct(f"<BBxxIQQQ{NAME_BYTES}s{NAME_BYTES}s")
SLOT_BYTES = 128
SLOTS_BYTES = SLOTS * SLOT_BYTES
_NAME_AT = SLOT_BYTES - 2 * NAME_BYTES
_REQUEST_AT, _REQUEST = 8, struct.Struct("<Q")
assert _SLOT.size == SLOT_BYTES


class Entry(NamedTuple):
    """`inode`: the socket's. `request`: the number of the first request in the socket, if it was begun; else 0. `owner`: the
    number of a registered client's owner. `name`: what STATUS calls it. `lockspace`: of an event channel.
    """

    state: int
    kind: int = 0
    restricted: int = 0
    request: int = 0
    inode: int = 0
    owner: int = 0
    name: bytes = b""
    lockspace: bytes = b""


class Slots:
    """All of them. The first one, which no connection has, has the number of the last request."""

    def __init__(self, raw: bytearray | memoryview) -> None:
        self._raw = raw

    def of(self, client_id: int) -> Slot | None:
        """None: connections of that number end with this daemon."""
        return Slot(self._raw, client_id) if client_id < SLOTS else None

    def next_request(self) -> int:
        """A number that no request has had since these slots are there."""
        number: int = _REQUEST.unpack_from(self._raw, _REQUEST_AT)[0] + 1
        _REQUEST.pack_into(self._raw, _REQUEST_AT, number)
        return number

    def free_all_but(self, client_ids: Collection[int]) -> None:
        """Only these connections have outlived the last daemon."""
        for client_id, state in enumerate(bytes(self._raw[::SLOT_BYTES])):
            if state != FREE and client_id not in client_ids:
                Slot(self._raw, client_id).free()


class Slot:
    """One, written field by field."""

    __slots__ = ("_at", "_raw", "_state")

    def __init__(self, raw: bytearray | memoryview, number: int) -> None:
        self._raw = raw
        self._at = number * SLOT_BYTES
        self._state = raw[self._at]

    def read(self) -> Entry:
        entry = Entry._make(_SLOT.unpack_from(self._raw, self._at))
        return entry._replace(name=entry.name.rstrip(b"\0"), lockspace=entry.lockspace.rstrip(b"\0"))

    def write(self, entry: Entry) -> None:
        """The state last: half of an entry is never good."""
        self._raw[self._at] = BROKEN
        _SLOT.pack_into(self._raw, self._at, *entry._replace(state=BROKEN))
        self._raw[self._at] = self._state = entry.state

    def state(self, state: int) -> None:
        if self._state != state:
            self._raw[self._at] = self._state = state

    def request(self, number: int) -> None:
        _REQUEST.pack_into(self._raw, self._at + _REQUEST_AT, number)

    def name(self, name: str) -> None:
        at = self._at + _NAME_AT
        self._raw[at : at + NAME_BYTES] = encoded(name).ljust(NAME_BYTES, b"\0")

    def free(self) -> None:
        self.state(FREE)
        self.request(0)


def encoded(name: str) -> bytes:
    """As much of it as a slot has room for."""
    return name.encode("utf-8", "surrogateescape")[:NAME_BYTES]

"""Until when the leases of this host are good, in memory that outlives the daemon: by that a next one feeds the watchdog at
once, before it has read anything on storage (ADR 0242).

    a daemon          fed, until E1      fed, until E2 │ exec, or killed
    the memory        E1                 E2            │ E2
    the next one                                         ├─ fed by E2 ──────────────────┤ fed by what storage says
                                                         starts, reads, adopts            its leases are guarded

That the leases are good until E2 is a fact about the past: each was renewed 8 io before its bound at the latest, and others
count from there. Who feeds does not matter, nor whether anybody renews. So nothing is fed that the killed daemon would not
have fed had it only lost its storage.
"""

from __future__ import annotations

import struct
from typing import Protocol

from holdfast.protocol.types import Instant
from holdfast.system.host.kept_memory import KeptMemory

FED_UNTIL_NAME = "fed-until"
"""Of the memory's descriptor in the store."""
NO_FD = -1
_RECORD = struct.Struct("=dd")
"""The bound, twice: a daemon that is killed between the two leaves none."""
RECORD_BYTES = _RECORD.size


class FedUntil(Protocol):
    """The bound of the last feeding, for the next program."""

    def read(self) -> Instant | None:
        """None: there is none."""

    def write(self, until: Instant | None) -> None: ...

    def descriptor(self) -> int: ...


class NotKept:
    """Where nothing outlives the daemon."""

    def read(self) -> Instant | None:
        return None

    def write(self, until: Instant | None) -> None:
        """Nothing is kept."""

    def descriptor(self) -> int:
        return NO_FD


class KeptFedUntil:
    """In memory that an earlier daemon has left (`fd`), or in its own."""

    def __init__(self, fd: int = NO_FD) -> None:
        self._memory = KeptMemory(RECORD_BYTES, fd)

    def read(self) -> Instant | None:
        return bound_in(bytes(self._memory.raw))

    def write(self, until: Instant | None) -> None:
        _RECORD.pack_into(self._memory.raw, 0, *(2 * (until if until is not None else 0.0,)))

    def descriptor(self) -> int:
        return self._memory.fd


def bound_in(raw: bytes) -> Instant | None:
    """The content of the memory as a bound; None if it is none."""
    if len(raw) != RECORD_BYTES:
        return None
    bound, again = _RECORD.unpack(raw)
    return Instant(bound) if bound == again and bound > 0 else None

"""The seams: everything that protocol code can wait for, measure or roll.

The contracts below are part of the safety argument, so every implementation (worker threads over O_DIRECT
files, the simulator, a plain file in a test) has to keep them:

Disk
* A write of one sector is atomic; a longer one is not, and neither is a longer read.
* Nothing raises for a failed request: it answers `IoFailed`. A timed-out write answers `in_flight=True`.
* While a write is in flight, every further write that touches one of its sectors is refused with
  `IoFailed(EBUSY, in_flight=True)` and not issued. So an old write can never land on top of a newer one of
  ours.

Clock
* `now` never goes backwards, counts suspended time, and runs at the same rate on all hosts of a lockspace.
* `sleep` returns not before the time has passed; later is always possible.

A caller abandons a waiting coroutine by cancelling it from outside: any exception of the caller's that a
port raises passes through this package unhandled.
"""

from typing import Protocol

from holdfast.protocol.types import Instant, IoFailed


class Disk(Protocol):
    """One path on shared storage."""

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        """Read exactly `length_bytes`; a short transfer is `IoFailed(EMSGSIZE)`."""
        ...

    async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        """Write `content`; None when it is on stable storage."""
        ...

    def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether a write of ours to these bytes was given up and has not completed yet."""
        ...

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        """Return as soon as no write to these bytes is in flight, however long that takes."""
        ...


class Clock(Protocol):
    """Our own clock."""

    def now(self) -> Instant: ...

    async def sleep(self, seconds: float) -> None: ...


class Rng(Protocol):
    """Randomness: what keeps two equal contenders from outbidding each other for ever."""

    def uniform(self, least: float, greatest: float) -> float: ...

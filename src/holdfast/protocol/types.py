"""The words of the protocols: ids, the two kinds of time, and how a disk may fail.

Two kinds of time exist and must not meet. An `Instant` is a reading of our own clock (CLOCK_BOOTTIME, in
seconds). A `HostTimestamp` is a number that another host wrote, by a clock of its own that started when
that host did. It can be asked whether it equals an earlier sample of the same field, and nothing else: it
has no order, and subtracting from it does not type-check.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType

from holdfast import model

HostId = NewType("HostId", int)
Generation = NewType("Generation", int)
Lver = NewType("Lver", int)
Instant = model.Instant  # the same type above and below

# A timestamp of 0 means "free" on disk, so the first second after boot is written as 1.
_EARLIEST_TIMESTAMP = 1


@dataclass(frozen=True, slots=True)
class HostTimestamp:
    """A timestamp written by another host: equal to an earlier one or not, nothing more."""

    written: int

    @property
    def means_free(self) -> bool:
        return self.written == 0


def timestamp_of(now: Instant) -> int:
    """What we write for our own `now`: whole seconds, rounded down, never the value that means free."""
    return max(_EARLIEST_TIMESTAMP, int(now))


@dataclass(frozen=True, slots=True)
class IoFailed:
    """A request to a disk that did not succeed.

    `in_flight` is the dangerous kind: nobody waits any more, but the write may still reach the disk at any
    later moment, until the port sees it complete or this host is reset.
    """

    errno: int
    in_flight: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a coroutine is about to wait, for a person who looks on; it decides nothing."""

    reason: str
    seconds_left: float
    recorded_io_timeout_s: int = 0
    """What the record that is waited for says of its last host; 0: it says nothing, or is not the reason."""


OnWait = Callable[[Waiting], None]


def ignore_wait(_: Waiting) -> None:
    """The default for `OnWait`."""

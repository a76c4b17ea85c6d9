"""The port through which a backend asks whether this host is in a lockspace, and if not, why and for how long.

It is all that a backend knows of supervision. Answers come from memory without waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import FAIL_FACTOR, RENEWAL_FACTOR, Timing

_WDMD_TESTS_EVERY_S = ((60, 10), (30, 5), (10, 2))
"""Least fire timeout, and seconds between two tests."""
_WDMD_WHOLE_SECONDS_S = 2
"""wdmd compares whole seconds, and a renewal takes its time."""


@dataclass(frozen=True, slots=True)
class NotAMember:
    """This host is not in the lockspace. `seconds_left`: until that may change by itself; None if not known."""

    reason: str
    seconds_left: float | None = None

    def __str__(self) -> str:
        if self.seconds_left is None:
            return self.reason
        return f"{self.reason}, {self.seconds_left:.0f} s left"


@dataclass(frozen=True, slots=True)
class WatchdogSpec:
    """Which watchdog resets this host: `device`, `wdmd`, or, spelled out, `none`. A host has one."""

    driver: str
    path: str
    fire_timeout_s: int

    def too_slow_for(self, io_timeout_s: int) -> str:
        """Why leases with that io_timeout would look expired to it although each is renewed in time; empty if not.

        wdmd tests its clients at intervals that depend on the fire timeout, and counts one that expires before the next test
        as expired (docs/specs/sanlock-disk.md 5.3).
        """
        if self.driver != "wdmd":
            return ""
        interval_s = next((s for least, s in _WDMD_TESTS_EVERY_S if self.fire_timeout_s >= least), 1)
        least_s = -(-(interval_s + _WDMD_WHOLE_SECONDS_S) // (FAIL_FACTOR - RENEWAL_FACTOR))
        if io_timeout_s >= least_s:
            return ""
        return (
            f"wdmd tests its clients every {interval_s} s with fire_timeout_s = {self.fire_timeout_s}, and would reset this "
            f"host although its leases are renewed every {RENEWAL_FACTOR * io_timeout_s} s: io_timeout_s = {least_s} or more"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LockspaceSpec:
    """A lockspace as a backend's table names it. `host_id` None: that of this host's name, else a free one."""

    name: str
    path: str
    host_id: int | None
    hosts_max: int | None
    timing: Timing
    offset_bytes: int = 0
    page_cache: bool = False
    """Whether storage that refuses O_DIRECT will do: the operator vouches that no other host uses it."""


class LockspacePort(Protocol):
    """One lockspace, as its users see it."""

    name: str

    @property
    def fences(self) -> bool:
        """Whether this host is reset when it loses its lease."""

    def membership(self) -> Membership | NotAMember: ...

    def refuses_new(self) -> str:
        """Why no new lock may depend on this lockspace although it is joined; empty if one may."""

"""The port through which a backend asks whether this host is in a lockspace, and if not, why and for how long.

It is all that a backend knows of supervision. Answers come from memory without waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import Timing


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

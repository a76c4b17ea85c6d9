"""News of a lockspace, as values: what this host's membership comes to goes to one function, in order, on the event loop.

    Joined ─ (Changed …) ─┬─ Lost ─ UsersGone ─┬─ Joined …
                          └─ Leaving           └─ (left)

    Over: the incarnation to be resumed has ended, and no VM depends on it

`lockspace_supervisor` sends what it has become; `UsersGone` is the answer of the layer above to `Lost`. Each value names
its lockspace and says all that its reader needs, as that was when it was sent.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.ondisk.delta import Event
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, Instant
from holdfast.supervision.host_identity import Incarnation


@dataclass(frozen=True, slots=True)
class Joined:
    """This host is a member, as this incarnation. `resumed`: an earlier daemon began it, and VMs may depend on it."""

    lockspace: str
    incarnation: Incarnation
    resumed: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """Its io_timeout is being changed, or has been: this is what is known of the incarnation from now on."""

    lockspace: str
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Lost:
    """Its lease is over: every owner that depends on it has to be stopped; then `UsersGone` is the answer.

    `renewed_at`: from which renewal the grace of owners counts; None if they have none.
    """

    lockspace: str
    reason: str
    timing: Timing
    lost_at: Instant
    renewed_at: Instant | None


@dataclass(frozen=True, slots=True)
class UsersGone:
    """After a loss: every owner that depended on it is provably gone, so the host need not be reset."""

    lockspace: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """No owner depends on it, and this host is about to leave."""

    lockspace: str


@dataclass(frozen=True, slots=True)
class Over:
    """The incarnation that was to be resumed is over, and no VM depends on it: no lock that can't be named is held in it."""

    lockspace: str


@dataclass(frozen=True, slots=True)
class Notified:
    """Another host has set this host's bit: it has an event for its clients, or a request for a lease that is held here. It
    comes with each renewal of that host while the bit is set.
    """

    lockspace: str
    host_id: HostId
    generation: Generation
    event: Event


LockspaceNews = Joined | Changed | Lost | UsersGone | Leaving | Over | Notified

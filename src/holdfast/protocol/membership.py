"""What the lease protocols need to know of the lockspace that their host has joined."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from holdfast.ondisk.host_block import Value
from holdfast.ondisk.leader import Leader
from holdfast.protocol.host_status import HostView
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.ports import Disk
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, Instant

# Nobody has so many leases of vanished terms; a forged lease area might name any.
MISSED_MAX = 1000


class MissedTerms:
    """Terms that a lease knows of and the lockspace does not (any more), and since when this host has known that."""

    def __init__(self) -> None:
        self._since: dict[tuple[HostId, Generation], Instant] = {}

    def since(self, host_id: HostId, term: Generation, now: Instant) -> Instant:
        """When it was first missed; now, if never before."""
        if len(self._since) >= MISSED_MAX and (host_id, term) not in self._since:
            self._since.clear()
        return self._since.setdefault((host_id, term), now)


@dataclass(frozen=True, slots=True)
class Membership:
    """One incarnation of our own host in a lockspace.

    `may_write` is asked right before each write to a lease: a host whose delta lease has failed issues no
    more of them. `bounds` returns those by which this host counts now, as its io_timeout may change. `view` returns what
    the table of hosts knows. `beside_others`: a host that may be none of Holdfast's uses the lockspace, or did. All four
    answer from memory, at once. `missed` is kept for as long as the incarnation lasts, in which no two reads of the other
    hosts are further apart than its fail bound.
    """

    lockspace: LockspaceArea
    host_id: HostId
    generation: Generation
    bounds: Callable[[], Timing]
    may_write: Callable[[], bool]
    view: Callable[[HostId], HostView]
    missed: MissedTerms = field(default_factory=MissedTerms)
    beside_others: Callable[[], bool] = lambda: False
    ended_generation: int = 0
    """What the record that was claimed proved: every generation of this host id up to this one is over."""

    def over(self, disk: Disk) -> "Membership":
        """The same membership over another port to the lockspace's path."""
        return replace(self, lockspace=replace(self.lockspace, disk=disk))

    @property
    def timing(self) -> Timing:
        return self.bounds()

    @property
    def io_timeout_s(self) -> int:
        return self.timing.io_timeout_s

    def has_ended(self, term: tuple[HostId, Generation]) -> bool:
        """Whether an earlier incarnation of our host id is proven to be over. One between the record that was claimed and
        our own is not: another host's, if the lockspace was restored from an older copy or made again.
        """
        host_id, generation = term
        return host_id == self.host_id and generation <= self.ended_generation

    def owns(self, leader: Leader) -> bool:
        """Whether this leader names this very term of our host."""
        return (leader.owner_id, leader.owner_generation) == (self.host_id, self.generation)

    def is_named_by(self, value: Value) -> bool:
        return (value.owner_id, value.generation) == (self.host_id, self.generation)

"""What the engine of sanlock's clients needs of the daemon around it: ports, and the values that go through them.

The daemon owns lockspaces, signals and its own end; the engine knows the commands. Every method that is no coroutine
answers from memory, at once. Lockspaces are named by their plain names, without `SANLOCK_PREFIX`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.ondisk.delta import Event
from holdfast.ondisk.geometry import Geometry
from holdfast.protocol.host_status import HostView
from holdfast.protocol.types import HostId, IoFailed
from holdfast.supervision.join_errors import NotJoined
from holdfast.supervision.lockspace_port import LockspaceSpec
from holdfast.supervision.named_lockspace import Named, Removal, Standing
from holdfast.supervision.renewal import RenewalTimes
from holdfast.system.block_io.lease_files import LeaseDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class LockspaceView:
    """One lockspace of this host, also a configured one. Times are of our clock in whole seconds, 0 where there is none."""

    name: str
    path: str
    offset_bytes: int
    host_id: int
    standing: Standing
    """ADDING, JOINED or REMOVING."""
    io_timeout_s: int
    generation: int = 0
    geometry: Geometry | None = None
    """None until it is joined."""
    version: int = 0
    """Of its records; 0 until it is joined."""
    no_timeout: bool = False
    failing: bool = False
    """It is lost: nothing new may depend on it, and its clients are being stopped."""
    renewal_fails: bool = False
    """The last renewal failed; the lease may be good still."""
    corrupt_result: int = 0
    acquired_at_s: int = 0
    renewal_began_at_s: int = 0
    renewed_at_s: int = 0


class Uses(NamedTuple):
    """SET_CONFIG's marks. A lockspace with such a use is not left, as with a process that can't be killed."""

    used: bool = False
    used_by_orphans: bool = False


NO_USES = Uses()


class LeasesOfLockspaces(Protocol):
    """The lockspaces that this host is in, or has to leave still."""

    def backend_of(self, lockspace: str) -> AreaBackend | None:
        """Holds the leases of clients in that lockspace; None if this host is not in it."""


class Lockspaces(Protocol):
    """Joins and leaves."""

    def standing(self, named: Named) -> Standing:
        """From memory."""

    async def add(self, spec: LockspaceSpec) -> NotJoined | Standing | None:
        """Join, in one try; None: joined. A `Standing` is what was there before this call, so that nothing was tried."""

    async def remove(self, named: Named) -> Removal:
        """Leave, also while it is being joined; returns when nothing of it can reach storage any more. BUSY: it is used."""

    def why_not_removed(self, lockspace: str) -> str:
        """Why no client may have it removed or written over; empty if one may.

        It is configured; owners that are no clients of sanlock's depend on it; or locks that can't be named may.
        """

    async def stop_clients(self, lockspace: str) -> None:
        """Stop every client with a lease there; returns when none has one any more.

        By SIGKILL, or SIGTERM where that is restricted, once a second.
        """


class LockspaceFacts(Protocol):
    """What there is to say about the lockspaces, and what clients may set in them while they are joined."""

    def views(self) -> Sequence[LockspaceView]:
        """All of them, in the order in which they were added."""

    def hosts(self, lockspace: str) -> Sequence[HostView]:
        """The hosts that were ever seen to use an id, by ascending id; none until the first renewal was evaluated."""

    def renewals(self, lockspace: str) -> Sequence[RenewalTimes]:
        """The history, oldest first."""

    def uses(self, lockspace: str) -> Uses: ...

    def set_uses(self, lockspace: str, uses: Uses) -> None:
        """A restart must not forget them."""

    def set_io_timeout(self, lockspace: str, io_timeout_s: int) -> bool:
        """Of a joined lockspace: on storage with the next renewal. False: it stays as it is."""

    def post_event(self, lockspace: str, event: Event) -> None:
        """Our renewals carry it from now on, until it is replaced; `NO_EVENT` takes it back."""

    def notify(self, lockspace: str, host_id: HostId) -> None:
        """Set the bit of that host in our renewals for a while."""

    def notify_no_more(self, lockspace: str, host_id: HostId) -> None: ...

    def examine(self, lockspace: str, resource: str) -> None:
        """Have the request records of held leases read now; `resource` empty: of all in that lockspace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonFacts:
    """What STATUS says of the daemon. `version` as VERSION answers it: 0xMMmmpp00."""

    host_name: str
    version: int
    use_watchdog: bool
    io_timeout_s: int
    """Of a lockspace whose client says none."""
    fire_timeout_s: int
    kill_grace_s: int
    renewal_history: int
    uid: int = 0
    gid: int = 0
    helper_pid: int = 0


class Daemon(Protocol):
    """The process itself."""

    def facts(self) -> DaemonFacts: ...

    def log_text(self) -> bytes:
        """The latest lines of its log."""

    def why_not_ended(self) -> str:
        """Why no client may end it, beside joined lockspaces: others depend on it. Empty if one may."""

    async def end(self) -> None:
        """Have it exit; returns when answers that are sent now are the last ones."""


class ForeignAreas(Protocol):
    """Storage at places that clients name, with workers of its own. `LeaseStorage` is one."""

    async def open(self, path: str, *, writable: bool = True) -> LeaseDisk | IoFailed: ...

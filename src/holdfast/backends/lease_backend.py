"""What a backend offers whose locks are leases on shared storage, beyond what every backend does.

The manager breaks, collects, fences and guards leases by this alone, so that a driver of a third party can have all of it.
`isinstance(backend, LeaseBackend)` asks whether a backend has the parts; `backends/paxos/backend` is the one that ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from holdfast.backends.base import Backend, Held, NotedOwner
from holdfast.model import LockFailureAction, Mode, ProcessId, Protection, Resource
from holdfast.protocol.dead_mark import Marked, NotMarked
from holdfast.protocol.holders import HostTerm
from holdfast.protocol.membership import Membership
from holdfast.protocol.resource_index import UnindexedLease
from holdfast.protocol.takeover import Attested
from holdfast.protocol.types import Generation, HostId, HostTimestamp, IoFailed
from holdfast.supervision.lockspace_port import LockspacePort
from holdfast.system.block_io.offload import TimedOut
from holdfast.system.files.disk_identity import DiskIdentity
from holdfast.system.files.ofd_lock import FileKey


@dataclass(frozen=True, slots=True)
class LeftLease:
    """A lease that an earlier daemon of this incarnation took, held again; what its note says of the owner."""

    held: Held
    resource: Resource
    mode: Mode
    noted: NotedOwner


class LeaseNaming(Protocol):
    """Which lease a disk has."""

    @property
    def by_path(self) -> bool:
        """Whether a disk that is reached by another path has another lease."""

    async def of(self, resource: Resource) -> tuple[str, DiskIdentity]:
        """The name of its lease, and what the disk is; raises a `LockError`. May wait for the storage of the disk."""

    def makes(self, name: str) -> bool:
        """Whether it is a name of the kind that this backend gives: leases that others named are not ours to remove."""

    def key(self, lease: str) -> FileKey:
        """The key that a lock on it has in the lock table: the first one."""

    def path_of(self, lease: str) -> str:
        """The disk that a lease is for, if this daemon has met it or its holder says; else the lease's name."""


class LeaseMaintenance(Protocol):
    """What is done to leases that no lock of this daemon has. All of it raises a `LockError` where storage or the
    lockspace says no, and is called with the turn on the lease's key, unless it only reads.
    """

    async def break_lease(self, resource: Resource, attest_off: str) -> str:
        """Free the lease of a disk whose holders are proven, or attested by the name of their host, to be off; the proof."""

    async def break_of(self, lease: str, terms: Attested) -> str:
        """Free a lease if it is of one of these terms, which are attested to be over; the proof, empty if it is of none."""

    async def claims_of_term(self, lease: str, term: HostTerm, *, older_too: bool) -> frozenset[HostTerm]:
        """What a host has on a lease: this term of it, and with `older_too` its earlier ones."""

    async def mark_dead(
        self, member: Membership, host_id: HostId, generation: Generation, timestamp: HostTimestamp
    ) -> Marked | NotMarked | IoFailed | TimedOut[Marked | NotMarked | IoFailed]:
        """Mark a host's term as dead in its record, where the format has a mark (`protocol/dead_mark`)."""

    async def all_names(self) -> list[str]:
        """Every lease on the storage of this backend."""

    async def lease_names(self) -> list[str]:
        """Those that this backend may have made."""

    async def unindexed(self) -> list[UnindexedLease]:
        """Those that their names do not lead to."""

    async def take_out(self, name: str, *, dry_run: bool) -> str:
        """Remove a lease that nobody holds, proven by taking it; empty, or why it stays."""

    async def take_out_stray(self, stray: UnindexedLease, *, dry_run: bool) -> str:
        """The same for a lease that its name does not lead to."""

    async def take_up(self, name: str) -> LeftLease | None:
        """Hold what storage says this incarnation of this host holds; None if it holds nothing that a VM may depend on."""

    async def free_left_behind(self, name: str) -> bool:
        """Release what storage says this incarnation holds; whether it held it. `AttemptLeft`: others are in the way."""

    async def free_own(self) -> None:
        """Give back what an earlier daemon of this incarnation held only to make or remove a lease."""

    async def free_of_older_terms(self) -> None:
        """Where leases never expire: the same for what earlier terms of this host held so, which nobody else gets."""

    async def noted_process(self, name: str) -> ProcessId | None:
        """The process that this host's note beside a lease names; None without a note."""


@runtime_checkable
class LeaseBackend(Backend, Protocol):
    """See the module."""

    presence: LockspacePort
    names: LeaseNaming
    maintenance: LeaseMaintenance
    on_lockfailure: LockFailureAction
    """What happens to a VM of a lost lockspace whose XML does not say."""
    resets: bool
    """Whether a VM that ends for a lost lockspace has this host reset, for its writes may still be under way."""

    def promised(self) -> tuple[Protection, str]:
        """What a lease is worth while the lockspace is joined, and why not more."""

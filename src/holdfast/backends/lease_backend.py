"""The `LeaseBackend` protocol: what a backend with leases on shared storage has in addition to `Backend`.

The manager breaks, collects, fences and guards leases through this protocol only, so a third party's driver can support all
of that. `isinstance(backend, LeaseBackend)` checks for the parts; `backends/paxos/backend` is the one that ships.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

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

NOBODY_HELD = "nobody held it"
"""The proof of a break that found no holder."""
UNACCOUNTED = "an earlier daemon of this host took it, and it is not known yet for whom; try again"
"""The refusal while leases of an earlier daemon are being read, or storage fails."""


@dataclass(frozen=True, slots=True)
class LeftLease:
    """A lease that an earlier daemon of this incarnation took, held again, with the owner from its note."""

    held: Held
    resource: Resource
    mode: Mode
    noted: NotedOwner
    area: str = ""
    """Where it is, as `path:offset`."""


class LeaseNaming(Protocol):
    """Maps disks to leases."""

    @property
    def by_path(self) -> bool:
        """Whether leases are named by path, so that a second path to a disk has another lease."""

    async def of(self, resource: Resource) -> tuple[str, DiskIdentity]:
        """The name of its lease, and what the disk is; raises a `LockError`. May wait for the storage of the disk."""

    async def identity(self, resource: Resource) -> Resource | None:
        """What the disk at a path is, as a resource with a lease of its own (`manager/identity_locks`); None without one."""

    def makes(self, name: str) -> bool:
        """Whether this backend may have given that name: leases that others named are not ours to remove."""

    def key(self, lease: str) -> FileKey:
        """The first key of a lock on that lease in the lock table."""

    def path_of(self, lease: str) -> str:
        """The disk of a lease, if this daemon has seen it or its holder's note names it; else the lease's name."""


class OffWord(NamedTuple):
    """An operator's word that one incarnation of a host is off, given when its record had that timestamp.

    It counts for as long as the record has it. `broken` is called with a lease's name and the proof.
    """

    term: HostTerm
    timestamp: HostTimestamp
    broken: Callable[[str, str], None]


@runtime_checkable
class TakesOverByWord(Protocol):
    """A backend that does not know all leases of its lockspace: those of a host that is off are taken over when they are
    asked for.
    """

    def believe(self, word: OffWord) -> None: ...


class LeaseMaintenance(Protocol):
    """Maintenance of leases on which this daemon has no lock. Every method raises a `LockError` where storage or the
    lockspace refuses; all but those that only read are called with the key lock on the lease's key.
    """

    async def break_lease(self, resource: Resource, attest_off: str) -> str:
        """Free a disk's lease whose holders are off, by proof or by attestation of their host's name; returns the proof."""

    async def break_of(self, lease: str, terms: Attested) -> str:
        """Free a lease that one of these incarnations has, which are attested to be over; the proof, empty if none has."""

    async def claims_of_term(self, lease: str, term: HostTerm, *, older_too: bool) -> frozenset[HostTerm]:
        """The claims of one host's incarnation on a lease; with `older_too` also those of its earlier ones."""

    async def mark_dead(
        self, member: Membership, host_id: HostId, generation: Generation, timestamp: HostTimestamp
    ) -> Marked | NotMarked | IoFailed | TimedOut[Marked | NotMarked | IoFailed]:
        """Mark a host's incarnation as dead in its record, where the format has a mark (`protocol/dead_mark`)."""

    @property
    def lists_all(self) -> bool:
        """Whether `all_names` has every lease that this host may hold."""

    async def all_names(self) -> list[str]:
        """Every lease on the storage of this backend."""

    async def lease_names(self) -> list[str]:
        """The leases that this backend may have made."""

    async def unindexed(self) -> list[UnindexedLease]:
        """The leases to which their names do not lead."""

    async def take_out(self, name: str, *, dry_run: bool) -> str:
        """Remove a lease that no host holds, proven by taking it; empty, or why it stays."""

    async def take_out_stray(
        self, unindexed: UnindexedLease, *, dry_run: bool, has_ended: Callable[[ProcessId], bool]
    ) -> str:
        """Remove an unindexed lease that no host holds, proven by taking it; empty, or why it stays. This host's own is
        removed if it was taken for maintenance, or for a process that `has_ended`.
        """

    async def take_up(self, name: str) -> LeftLease | None:
        """Hold the lease if storage shows this incarnation of this host as holder; None if no VM may depend on it."""

    async def free_left_behind(self, name: str) -> bool:
        """Release the lease if storage shows this incarnation as holder; whether it was. `AttemptLeft`: others interfere."""

    async def free_own(self) -> None:
        """Release what an earlier daemon of this incarnation held only to make or remove a lease."""

    async def free_of_older_terms(self) -> None:
        """As `free_own` for earlier incarnations of this host, where leases never expire and no other host gets them."""

    async def noted_process(self, name: str) -> ProcessId | None:
        """The process that this host's note beside a lease names; None without a note."""


@runtime_checkable
class LeaseBackend(Backend, Protocol):
    """A backend whose locks are leases on shared storage."""

    presence: LockspacePort
    names: LeaseNaming
    maintenance: LeaseMaintenance
    on_lockfailure: LockFailureAction
    """What happens to a VM of a lost lockspace whose XML does not say."""
    resets: bool
    """Whether a VM that ends for a lost lockspace has this host reset, for its writes may still be under way."""

    def promised(self) -> tuple[Protection, str]:
        """What a lease is worth while the lockspace is joined, and why not more."""

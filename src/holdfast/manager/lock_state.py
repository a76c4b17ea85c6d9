"""What acquires and releases decide on, and change: one host's locks, and where each name leads."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.backends.base import Held, MayBeLost, OwnerNote, why_weaker
from holdfast.manager.events import Events
from holdfast.manager.file_lockspaces import FileLockspaces
from holdfast.manager.hashed_names import HashedNames
from holdfast.manager.holders import HolderDescriptions
from holdfast.manager.key_locks import KeyLocks
from holdfast.manager.lock_registry import HostLock, LockRegistry
from holdfast.manager.lock_table import LockTable
from holdfast.manager.owners import Owner, Owners
from holdfast.manager.repeated_acquire import RepeatedAcquirePolicy
from holdfast.manager.routing import Routing
from holdfast.manager.unknown_locks import UnknownLocks
from holdfast.model import SANLOCK_PREFIX, Mode, Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class LockState:
    """The parts that both share. Everything runs on one event loop."""

    routing: Routing
    lockspaces: FileLockspaces
    table: LockTable[Held]
    key_locks: KeyLocks
    owners: Owners
    book: LockRegistry
    events: Events
    descriptions: HolderDescriptions
    hashed: HashedNames
    repeated: RepeatedAcquirePolicy
    unknown: UnknownLocks

    def claimed(self, owner: Owner, resource: Resource) -> Mode | None:
        """The mode in which an owner claims a resource; None if it does not."""
        lock = self.table.named(resource)
        return None if lock is None else lock.claims.get(owner.id, {}).get(resource)

    def why_lost(self, lock: HostLock) -> str:
        """Why a lock protects nothing now: it could not be retaken, or its lockspace is lost; empty if it is held."""
        if lock.held is None:
            return lock.lost_reason or "it is not held"
        if weaker := why_weaker(lock.held):
            return weaker
        backend: object = self.routing.backends.get(lock.backend)
        return backend.lost if isinstance(backend, MayBeLost) else ""


def note_of(owner: Owner, resource: Resource, mode: Mode) -> OwnerNote:
    """The note that is written to its lock file or lease, for people and for the next daemon. A lease that clients of
    sanlock's share outlives each of them, as others of this host may have it, too, and one note names one.
    """
    libvirtd = owner.prepared.pid if owner.prepared is not None else 0
    is_shared_by_clients = mode is Mode.SHARED and resource.lockspace.startswith(SANLOCK_PREFIX)
    persists = resource in owner.persistent or is_shared_by_clients
    return OwnerNote(owner.name, owner.pid, owner.process_id.start_ticks, libvirtd, persists)

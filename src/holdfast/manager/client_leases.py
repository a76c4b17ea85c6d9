"""Leases of sanlock's clients, as claims of the lock table like all others.

A client is a connection, and its owner the process that opened it. The owner lives as long as one of its connections does,
also when only a descendant has that open; after a restart of this daemon, which ends the connections, as long as the
process. What a client holds persistently becomes an *orphan* when the client ends: held on for an owner without a process
(a keeper), until a client asks for it as an orphan, releases it as one, or the lockspace is left.

The names of these leases lead to no file, so nothing of libvirt's is asked about them: no lockspace directory, no
migration, no second lease.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from holdfast.errors import HoldfastError, Refused
from holdfast.manager import events as ev
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import NO_HOLD, Hold, Owner, Wishes
from holdfast.model import SANLOCK_PREFIX, AcquireRequest, Mode, OwnerName, Resource
from holdfast.system.files.ofd_lock import FileKey

T = TypeVar("T")


class ClientLeases:
    """The use cases. Errors are those of the manager; a refusal has changed nothing."""

    def __init__(self, manager: LockManager) -> None:
        self._manager = manager

    # --- clients ---

    def opened(self, pid: int, name: str) -> Owner:
        """The owner of a registered connection of that process, from now on until `closed`. Raises `Refused`."""
        manager = self._manager
        known = manager.owners.with_pid(pid)
        if known is not None and known.alive() and (not name or known.name.uuid):
            shown = known.name
        else:
            shown = OwnerName(name or manager.owners.program(pid) or str(pid))
        owner = manager.register(pid, shown)
        owner.clients += 1
        manager.book.registered(owner)
        return owner

    def wishes(self, owner: Owner, wishes: Wishes) -> None:
        """How a client wants to be stopped when its leases have to end."""
        self._manager.book.wishes(owner, wishes)

    def of_earlier_daemon(self) -> list[Owner]:
        """The registered processes, when a daemon begins."""
        return [owner for owner in self._manager.owners if owner.registered]

    def begins_to_hold(
        self,
        owner: Owner,
        client_id: int,
        resource: Resource,
        request: int,
        *,
        value_block: bool,
        was_orphan: bool,
    ) -> None:
        """Before a connection of that process gets a lease: by which command. Raises `Refused`."""
        try:
            self._manager.book.holds(
                owner, client_id, resource, Hold(request, value_block=value_block, was_orphan=was_orphan)
            )
        except OSError as e:
            raise Refused(reason=f"the journal can't record a lease: {e.strerror}; free space for it") from e

    def holds_no_more(self, owner: Owner, client_id: int, resource: Resource, request: int) -> None:
        """Before a connection's lease is released, or what is left of it becomes another's."""
        before = owner.holds.get((client_id, resource))
        if before is not None and before.stays:
            lock = self.held(resource)
            path = lock.path if lock is not None else ""
            self._manager.book.holds(owner, client_id, resource, Hold(request, stays=False, path=path))

    def released_by(self, owner: Owner, client_id: int, request: int) -> dict[Resource, str]:
        """What that command has released, or is about to, with the paths of the locks."""
        return {
            resource: hold.path
            for (each, resource), hold in owner.holds.items()
            if each == client_id and not hold.stays and hold.request == request
        }

    def moves_hold(self, owner: Owner, client_id: int, resource: Resource, after: int) -> None:
        """Another connection of that process has it now."""
        hold = owner.holds.get((client_id, resource), NO_HOLD)
        try:
            self._manager.book.holds(owner, after, resource, hold)
        except OSError:
            owner.holds[after, resource] = hold  # the journal is rewritten later
        self.holds_no_more(owner, client_id, resource, hold.request)
        owner.holds.pop((client_id, resource), None)

    def forget_released(self, owner: Owner, client_id: int, request: int) -> None:
        """A further command of that connection begins: all earlier ones are answered."""
        for key in [
            key
            for key, hold in owner.holds.items()
            if key[0] == client_id and not hold.stays and hold.request != request
        ]:
            del owner.holds[key]

    def of_owner(self, owner: Owner) -> list[tuple[Resource, Mode, HostLock]]:
        """All that it has in lockspaces of sanlock's clients."""
        return [
            (resource, mode, lock)
            for lock in self._manager.table.of_owner(owner.id)
            for resource, mode in lock.claims[owner.id].items()
            if resource.lockspace.startswith(SANLOCK_PREFIX)
        ]

    def renamed(self, owner: Owner, name: str) -> None:
        if name and not owner.name.uuid:
            owner.name = OwnerName(name)

    def closed(self, owner: Owner) -> None:
        """A connection has ended, after its leases were released or orphaned."""
        owner.clients -= 1
        if owner.clients <= 0:
            self._manager.book.no_more_registered(owner)
            if not owner.alive():
                self._manager.owner_ended(owner)
        self._manager.unregister(owner, holder=False, why="")

    # --- leases ---

    def held(self, resource: Resource) -> HostLock | None:
        """The lock of that lease on this host, also of an orphan."""
        return self._manager.table.named(resource)

    def with_key(self, key: FileKey) -> HostLock | None:
        """The lock of a lease by its key: also of a disk of libvirt's that has the same lease."""
        return self._manager.table.of_lock_file(key)

    async def while_not_taken(self, keys: Sequence[FileKey], work: Coroutine[Any, Any, T]) -> T:
        """Do work on storage while nobody on this host takes or releases a lease with one of these keys."""
        locks = self._manager.key_locks
        while (busy := locks.first_taken(keys)) is not None:
            await locks.wait(busy)
        return await locks.holding(keys, work)

    def claimed(self, owner: Owner, resource: Resource) -> Mode | None:
        return self._manager.claimed(owner, resource)

    def keeper(self, resource: Resource) -> Owner | None:
        """Who keeps this lease as an orphan; None if it is none."""
        lock = self.held(resource)
        owners = self._manager.owners
        for owner_id in lock.claims if lock is not None else ():
            owner = owners.get(owner_id)
            if owner is not None and owner.keeps_orphans:
                return owner
        return None

    def lockspaces(self) -> list[str]:
        """Every lockspace of the manager's in which a client or a keeper of orphans has a lease."""
        names = {resource.lockspace for lock in self._manager.table for resource in lock.names()}
        return sorted(name for name in names if name.startswith(SANLOCK_PREFIX))

    def orphans(self, lockspace: str) -> list[tuple[Owner, Resource, HostLock]]:
        """All orphans of one lockspace of the manager's."""
        return [
            (owner, resource, lock)
            for owner in self._manager.owners
            if owner.keeps_orphans
            for lock in self._manager.table.of_owner(owner.id)
            for resource in lock.claims[owner.id]
            if resource.lockspace == lockspace
        ]

    async def acquire(self, owner: Owner, want: AcquireRequest, *, persistent: bool) -> HostLock:
        """Hold a lease for a client, in this mode; or convert it to that mode."""
        manager = self._manager
        before = manager.claimed(owner, want.resource)
        if persistent:
            self._persists(owner, want.resource)
        try:
            await manager.acquire_one(owner, want)
        except HoldfastError:
            if before is None:
                manager.book.persists_no_more(owner, want.resource)
            raise
        lock = manager.table.named(want.resource)
        assert lock is not None
        return lock

    def no_more_persistent(self, owner: Owner, resource: Resource) -> None:
        """The lease ends with its client, like any other."""
        self._manager.book.persists_no_more(owner, resource)

    def refused(self, owner: Owner, want: AcquireRequest, why: str) -> None:
        """A request of a client is over, without what it wanted."""
        self._manager.events.emit(ev.REFUSED, owner.name, owner.pid, want.resource, want.mode, why)

    async def release(self, owner: Owner, resource: Resource) -> None:
        """Release a lease at once, whatever libvirt may be doing with a VM of that name."""
        manager = self._manager
        manager.book.persists_no_more(owner, resource)
        lock = manager.table.named(resource)
        if lock is not None:
            await manager.release_one(owner, lock, resource)

    def orphan(self, owner: Owner, resource: Resource) -> None:
        """The client of a persistent lease has ended; other clients of its process may live on."""
        lock = self.held(resource)
        if lock is not None and resource in lock.claims.get(owner.id, {}):
            keeper = self._manager.owners.add_orphan_keeper(owner.name)
            owner.persistent.add(resource)
            self._manager.book.orphaned(lock, owner, keeper)

    def take_up(self, keeper: Owner, owner: Owner, resource: Resource) -> HostLock:
        """A client gets an orphan, without a request to storage."""
        lock = self.held(resource)
        assert lock is not None
        self._manager.book.taken_up(lock, keeper, owner)
        self._idle(keeper)
        return lock

    async def release_orphan(self, keeper: Owner, resource: Resource) -> None:
        await self.release(keeper, resource)
        self._idle(keeper)

    def _idle(self, keeper: Owner) -> None:
        if not self._manager.table.holds_any(keeper.id):
            self._manager.owner_ended(keeper)

    def _persists(self, owner: Owner, resource: Resource) -> None:
        try:
            self._manager.book.persists(owner, resource)
        except OSError as e:
            raise Refused(reason=f"the journal can't record a lease: {e.strerror}; free space for it") from e

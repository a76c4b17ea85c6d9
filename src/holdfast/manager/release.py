"""How a lock is released: the order of the steps, and what goes with it.

leave the table ─ journal ─ key lock on the lock ─ release it ─ answer. The caller is `lock_manager`, also for an
owner that has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from holdfast.backends.base import Creation, knows_writers
from holdfast.errors import NotAnOwner, ResourceNotLocked
from holdfast.manager.departures import Departures
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.lock_state import LockState, note_of
from holdfast.manager.owners import Owner
from holdfast.model import AcquireRequest, Mode, Resource
from holdfast.system.files.ofd_lock import IoFailed

log = logging.getLogger(__name__)

GoesWith = Callable[[Owner, HostLock], tuple[HostLock, Resource] | None]


class HoldsReleasesBack(Protocol):
    """Claims of VMs that are released by libvirt, and may still be written to (`lease_admin.held_back_releases`)."""

    @property
    def any_lost(self) -> bool:
        """Whether a lockspace is lost now."""

    def holds_back(
        self, owner: Owner, lock: HostLock, resource: Resource, beside: HostLock | None = None
    ) -> bool:
        """Whether this RELEASE is answered while the claim stays for now; `beside`: the lock that would go with it."""

    def has(self, owner: Owner, resource: Resource) -> bool:
        """Whether that claim is one that libvirt has released already."""

    def takes_back(self, owner: Owner, resource: Resource) -> bool:
        """Whether such a claim, which libvirt acquires again, is one like any other from now on."""

    def awaits_qemu(self, lock: HostLock) -> bool:
        """Whether a lock has such claims, which may end soon."""


class ReleasesIdentities(Protocol):
    """The second locks of disks, by what they are (`identity_locks`)."""

    def beside(self, owner: Owner, lock: HostLock, path: Resource) -> HostLock | None:
        """The lock of what the disk at a path is, if the owner has it."""

    def released_with(self, owner: Owner, lock: HostLock, path: Resource) -> tuple[HostLock, Resource] | None:
        """The lock, with its name, that is released after that path, which its owner has released."""


class LockReleaser:
    """Releases locks. Everything runs on one event loop."""

    def __init__(self, state: LockState, *, departures: Departures, idle: Callable[[Owner], None]) -> None:
        """`idle` is called for an owner that may have nothing left here."""
        self._state = state
        self._routing = state.routing
        self._lockspaces = state.lockspaces
        self._table = state.table
        self._key_locks = state.key_locks
        self._owners = state.owners
        self._book = state.book
        self._hashed = state.hashed
        self._repeated = state.repeated
        self._unknown = state.unknown
        self._departures = departures
        self._idle = idle
        self.identities: ReleasesIdentities | None = None
        """Releases what disks are with their paths (`identity_locks`); None: only paths count."""
        self.held_back: HoldsReleasesBack | None = None
        """Holds releases back until QEMU answers; None: there are no lockspaces."""
        self.goes_with: GoesWith | None = None
        """The lease that is released with a lock that its owner has released (`moved_disks`); None: never any."""

    async def release(self, owner: Owner, resource: Resource) -> None:
        """Release one claim. Raises `ResourceNotLocked` or `NotAnOwner`, which are normal results, not alarms."""
        rest = self.begin_release(owner, resource)
        if rest is not None:
            await rest

    def begin_release(self, owner: Owner, resource: Resource) -> Coroutine[Any, Any, None] | None:
        """None if it was released at once; otherwise a coroutine that releases it."""
        lock = self._table.named(resource)
        if lock is None or self._key_locks.on or resource not in lock.claims.get(owner.id, ()):
            return self._release(owner, resource)
        return self._begin_giving_up(owner, lock, resource)

    def _begin_giving_up(
        self, owner: Owner, lock: HostLock, resource: Resource
    ) -> Coroutine[Any, Any, None] | None:
        """Begin to release a claim that exists, on a lock with no operation under way."""
        if owner.unasked:
            self._book.asked(owner, resource)
        if self._repeated.is_undone(owner, resource):
            return None
        if self._departures.holds_back(owner, lock, resource):
            return None
        if self.held_back is not None:
            beside = None
            if self.held_back.any_lost and self.identities is not None:
                beside = self.identities.beside(owner, lock, resource)
            if self.held_back.holds_back(owner, lock, resource, beside):
                return None
        rest = self._drop_claim(owner, lock, resource)
        if rest is not None:
            return self._release_rest(owner, rest)
        self._released(owner)
        return None

    def _released(self, owner: Owner) -> None:
        if owner.connections <= 0 and not owner.gone:
            self._idle(owner)

    async def _release_rest(self, owner: Owner, rest: Coroutine[Any, Any, object]) -> None:
        await rest
        self._released(owner)

    async def _release(self, owner: Owner, resource: Resource) -> None:
        """Release one claim, with all necessary waits."""
        if self._state.claimed(owner, resource) is None:
            resource = await self._hashed.claimed(owner, resource)
        if resource.lockspace and self._table.named(resource) is None:
            self._lockspaces.check_name(resource)
            await self._lockspaces.need(resource.lockspace, make=False)
        while self._key_locks.is_locked(resource):
            await self._key_locks.wait(resource)
        lock = self._table.named(resource)
        while lock is not None and self._key_locks.is_locked(lock):
            await self._key_locks.wait(lock)
            lock = self._table.named(resource)
        if len(self._unknown) and (lock is None or resource not in lock.claims.get(owner.id, {})):
            lock = await self._adopted(owner, resource, lock) or lock
        if lock is None:
            raise ResourceNotLocked(name=resource.name)
        if resource not in lock.claims.get(owner.id, {}):
            raise NotAnOwner()
        if (rest := self._begin_giving_up(owner, lock, resource)) is not None:
            await rest

    async def is_held_by_other_rules(self, owner: Owner, want: AcquireRequest) -> bool:
        """A VM runs on after a stop (`held_back`): whether what it has is not the lock that the rules name now. It gets that
        one when the other is released, as after any suspend.
        """
        resource = want.resource
        lock = self._table.named(resource)
        if self.held_back is None or lock is None or not self.held_back.has(owner, resource):
            return False
        route = self._routing.route(resource, want.path)
        beside = self.identities.beside(owner, lock, resource) if self.identities is not None else None
        second = route.guard or route.backend
        if beside is not None and beside.backend != second.name:
            return True
        if lock.backend == route.backend.name:
            return False
        leases = self._routing.leases.get(route.backend.name)
        if leases is None:
            return True
        # A client of sanlock's may have had the lease first: then the lock is of these clients' backend.
        lease, _ = await leases.names.of(resource)
        return leases.names.key(lease) not in lock.keys

    def is_held_back(self, owner: Owner, resource: Resource) -> bool:
        """Whether libvirt has released that claim, and QEMU has not answered since."""
        return self.held_back is not None and self.held_back.has(owner, resource)

    def awaits_qemu(self, resource: Resource) -> bool:
        """Whether a lock of that name is released by libvirt, and QEMU may answer soon (`held_back`)."""
        if self.held_back is None or (lock := self._table.named(resource)) is None:
            return False
        return self.held_back.awaits_qemu(lock)

    async def _adopted(self, owner: Owner, resource: Resource, lock: HostLock | None) -> HostLock | None:
        """The unknown lock that an owner may release under that name, now its own; None if there is none."""
        if lock is None:
            backend = self._routing.route(resource).backend
            if (leases := self._routing.leases.get(backend.name)) is not None:
                # To open one is refused while no new lease may be taken; this one is held.
                lease, _ = await leases.names.of(resource)
                lock = self._table.of_lock_file(leases.names.key(lease))
            else:
                candidate = await backend.open(resource, create=Creation.NONE)
                if isinstance(candidate, IoFailed):
                    return None
                lock = self._table.of_lock_file(candidate.keys[0]) if candidate.keys else None
                await candidate.abandon()
        if (
            lock is None
            or self._key_locks.is_locked(lock)
            or not await self._unknown.adopt(owner, resource, lock, to_release=True)
        ):
            return None
        return self._table.named(resource)

    async def give_up(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
        """End a claim with all necessary waits, when no task has the key lock on its lock."""
        if (rest := self._drop_claim(owner, lock, resource)) is not None:
            await rest
        self._released(owner)

    def _drop_claim(
        self, owner: Owner, lock: HostLock, resource: Resource
    ) -> Coroutine[Any, Any, object] | None:
        """End one claim, and the lock with the last one. No task has the key lock on the lock now.

        The caller must await the result immediately.
        """
        rest = self._drop_one(owner, lock, resource)
        moved = self.goes_with(owner, lock) if self.goes_with is not None else None
        identity = self.identities.released_with(owner, lock, resource) if self.identities else None
        also = [found for found in (moved, identity) if found is not None]
        return self._drop_all(rest, owner, also) if also else rest

    async def _drop_all(
        self,
        rest: Coroutine[Any, Any, object] | None,
        owner: Owner,
        also: Iterable[tuple[HostLock, Resource]],
    ) -> None:
        if rest is not None:
            await rest
        for lock, resource in also:
            await self.release_one(owner, lock, resource)

    async def release_one(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
        """End a claim alone, if it still exists, with all necessary waits."""
        while self._key_locks.is_locked(lock):
            await self._key_locks.wait(lock)
        if resource in lock.claims.get(owner.id, {}):
            await self.give_up(owner, lock, resource)

    def _drop_one(
        self, owner: Owner, lock: HostLock, resource: Resource
    ) -> Coroutine[Any, Any, object] | None:
        left = self._book.unclaim(owner, lock, resource)
        self._repeated.forget(owner, resource)
        held: object = lock.held
        if owner.id not in lock.claims and knows_writers(held):
            held.owner_left(note_of(owner, resource, lock.mode))
        if left.last:
            if lock.held is None or lock.held.release_nowait():
                return None
            # New acquires of this file must wait, by its name and by its keys, until it is really free.
            return self._key_locks.holding((lock, resource, *lock.keys), lock.held.release())
        if left.mode_needed is not None and left.mode_needed < lock.mode and lock.held is not None:
            return self.weaken(lock, left.mode_needed)
        return None

    async def weaken(self, lock: HostLock, mode: Mode) -> None:
        """The strongest claim ended: hold no more than the others need. Holding more for a while is safe."""
        rest = next((o for i in lock.claims if (o := self._owners.get(i)) is not None), None)
        if rest is None or lock.held is None:
            return
        note = note_of(rest, next(iter(lock.claims[rest.id])), mode)
        refused = await self._key_locks.holding((lock,), lock.held.convert(mode, note))
        if refused is None:
            self._book.converted(lock, mode)
        else:
            log.error("lock on %s stays %s: %s", lock.path, lock.mode.word, refused)

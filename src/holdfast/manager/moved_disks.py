"""Disks of running VMs whose rule names another backend by now: the VM has the lock that it was started with.

libvirt acquires again only when the VM is resumed or started. Until then a host that uses the new rule would not conflict
with the old lock. So this daemon takes the disk's lease as well, for the same owner, under the name of the lease: it is in
the table and the journal like any other, a loss of its lockspace stops the VM, and it is released with the old lock.

Only leases are taken so. A rule that leads from leases to files is only reported as a problem in `status` and `doctor`: two
names of one file in one table would be two locks.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.backends.base import Creation, HeldElsewhere, LeftBehind, Stale
from holdfast.backends.lease_backend import LeaseBackend
from holdfast.control.api import MOVED_PROBLEM
from holdfast.errors import LockError
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Owner
from holdfast.model import DIRECT_LOCKSPACE, AcquireRequest, Mode, Resource
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.files.ofd_lock import IoFailed

log = logging.getLogger(__name__)

AGAIN_S = 30.0
"""Between two attempts for leases that were refused: the lockspace is not joined yet, or another host has them."""


@dataclass(frozen=True, slots=True)
class MovedDisk:
    """A claim on a disk whose rule names `backend` now."""

    owner: Owner
    resource: Resource
    mode: Mode
    lock: HostLock
    backend: str

    def __str__(self) -> str:
        return (
            f"{MOVED_PROBLEM}{self.resource} of {self.owner} is of backend '{self.lock.backend}', and its rule names "
            f"'{self.backend}'"
        )


class MovedDisks:
    """Takes the leases that new rules demand for running VMs."""

    def __init__(self, manager: LockManager, *, clock: Clock) -> None:
        self._manager = manager
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._refused: dict[tuple[int, Resource], str] = {}

    def begin(self) -> None:
        """Begin, when all restored locks are in the table. Rules change only with a new daemon."""
        moved = any(True for _ in self._moved())
        if moved or any(
            _is_lease(self._manager, lock, name) for lock in self._manager.table for name in lock.names()
        ):
            self._manager.goes_with = self.goes_with
        if moved:
            self._task = eager_tasks.keep_watch(
                self._until_none_is_left(), "disks whose rule names leases are not guarded any more"
            )

    def joined(self) -> None:
        """A lockspace was joined, so its leases can be acquired: try again."""
        self._news.set()

    def problems(self) -> list[str]:
        """Messages for operators: each VM whose disk has the lock of an old rule, and how it gets that of the new rule."""
        return [f"{moved}; {self._what_else(moved)}; {_fix(moved.owner)}" for moved in self._moved()]

    def goes_with(self, owner: Owner, lock: HostLock) -> tuple[HostLock, Resource] | None:
        """The lease, with its name, that was taken in addition to a lock that the owner has released; None without one."""
        if owner.id in lock.claims:
            return None
        return next(((also, name) for also, name in self._leases(owner, lock)), None)

    def _moved(self) -> Iterator[MovedDisk]:
        manager = self._manager
        for lock in manager.table:
            for owner_id, names in list(lock.claims.items()):
                owner = manager.owners.get(owner_id)
                if owner is None or owner.gone or owner.unknown is not None or lock.held is None:
                    continue
                for resource, mode in list(names.items()):
                    if resource.lockspace or _is_lease(manager, lock, resource):
                        continue
                    backend = manager.routing.route(resource).backend
                    if backend.name != lock.backend:
                        yield MovedDisk(owner, resource, mode, lock, backend.name)

    def _leases(self, owner: Owner, lock: HostLock) -> Iterator[tuple[HostLock, Resource]]:
        """Leases that an owner holds, by the lease's own name, on the disk of a lock."""
        for other in self._manager.table.of_owner(owner.id):
            if other is not lock and not set(other.keys[1:]).isdisjoint(lock.keys):
                for name in other.claims[owner.id]:
                    if _is_lease(self._manager, other, name):
                        yield other, name

    def _what_else(self, moved: MovedDisk) -> str:
        if any(lock.backend == moved.backend for lock, _ in self._leases(moved.owner, moved.lock)):
            return "both are held, so no host is granted the disk by either"
        why = self._refused.get((moved.owner.id, moved.resource), "it is no lease")
        return f"'{moved.backend}' does not guard it ({why}): a host that goes by the new rule can start a second VM on it"

    async def _until_none_is_left(self) -> None:
        while not self._manager.closing:
            self._news.clear()
            left = False
            for moved in list(self._moved()):
                left = not await self._guarded(moved) or left
            if not left:
                return
            waited = {
                asyncio.ensure_future(self._news.wait()),
                asyncio.ensure_future(self._clock.sleep(AGAIN_S)),
            }
            _, rest = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for each in rest:
                each.cancel()

    async def _guarded(self, moved: MovedDisk) -> bool:
        """Whether nothing is left to do for this disk."""
        backend = self._manager.routing.leases.get(moved.backend)
        if backend is None or any(self._leases(moved.owner, moved.lock)):
            return True
        try:
            why = await self._take(moved, backend)
        except LockError as e:
            why = str(e)
        key = moved.owner.id, moved.resource
        before = self._refused.pop(key, "")
        if not why:
            log.warning("%s: both are held from now on", moved)
            return True
        self._refused[key] = why
        if why != before:
            log.error("%s, which does not guard it: %s", moved, why)
        return False

    async def _take(self, moved: MovedDisk, backend: LeaseBackend) -> str:
        """Take the lease as well. Returns why that failed, or empty."""
        manager, owner = self._manager, moved.owner
        lease, _ = await backend.names.of(moved.resource)
        candidate = await backend.open(moved.resource, create=Creation.NONE)
        if isinstance(candidate, IoFailed):
            return str(candidate)
        keys = candidate.keys
        if manager.key_locks.is_locked(moved.lock) or manager.key_locks.first_taken(keys) is not None:
            return "something else is being done with it"
        if (twin := manager.table.of_lock_file(keys[0])) is not None:
            return f"this host holds lease {lease} for {', '.join(str(manager.owners.get(i)) for i in twin.claims)}"
        if manager.table.in_the_way(owner.id, moved.mode, keys=keys):
            return "another owner has the disk"
        outcome = await manager.key_locks.holding(
            (moved.lock, *keys), candidate.take(moved.mode, manager.note(owner))
        )
        if isinstance(outcome, LeftBehind):
            await manager.on_left_behind(backend.name, outcome.lease)
            return "what an earlier daemon held of it is found out first"
        if isinstance(outcome, Stale):
            return "it has just been removed"
        if isinstance(outcome, HeldElsewhere):
            return f"it is held by {'; '.join(str(holder) for holder in outcome.holders)}"
        if isinstance(outcome, IoFailed):
            return str(outcome)
        if owner.gone or moved.resource not in moved.lock.claims.get(owner.id, {}):
            await outcome.release()
            return ""
        try:
            manager.book.enter(
                owner, AcquireRequest(Resource(DIRECT_LOCKSPACE, lease), moved.mode), backend, keys, outcome
            )
        except OSError as e:
            await outcome.release()
            return f"the journal can't record it: {e.strerror}"
        return ""


def _is_lease(manager: LockManager, lock: HostLock, resource: Resource) -> bool:
    """Whether a claim has the name of the lease itself, not of a disk."""
    backend = manager.routing.leases.get(lock.backend)
    return backend is not None and bool(lock.keys) and lock.keys[0] == backend.names.key(resource.name)


def _fix(owner: Owner) -> str:
    if not owner.name.uuid:
        return "end it and start it again"
    name = shlex.quote(owner.name.name)
    return f"to move it: virsh suspend {name} && virsh resume {name}"

"""Disks of running VMs whose rule names another backend by now: the VM has the lock that it was started with.

libvirt acquires again only when the VM is resumed or started. Until then a host that uses the new rule would not conflict
with the old lock. So this daemon takes the disk's lease as well, for the same owner, under the name of the lease: it is in
the table and the journal like any other, a loss of its lockspace stops the VM, and it is released with the old lock.

Which locks those are is found at the daemon's start, and for each lock that it can hold or attribute only later, then. The
rule of a disk that libvirt names by a hash is known when the VM's status file shows its path.

Only leases are taken so. A rule that leads from leases to files is only reported as a problem in `status` and `doctor`: two
names of one file in one table would be two locks.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from holdfast.backends.base import Creation, HeldElsewhere, LeftBehind, Stale
from holdfast.backends.lease_backend import LeaseBackend
from holdfast.control.api import MOVED_PROBLEM
from holdfast.errors import LockError
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Owner
from holdfast.manager.repeated_attempts import RepeatedAttempts
from holdfast.model import DIRECT_LOCKSPACE, HOST_LOCKSPACE, AcquireRequest, Mode, Resource
from holdfast.system.clock import Clock
from holdfast.system.files.ofd_lock import IoFailed

log = logging.getLogger(__name__)

READ_PAUSE_S = 0.001
"""Between two status files that are read for the paths of hashed names, so that requests are served meanwhile."""


@dataclass(frozen=True, slots=True)
class MovedDisk:
    """A claim on a disk whose rule names `backend` now."""

    owner: Owner
    resource: Resource
    mode: Mode
    lock: HostLock
    backend: str
    disk: Resource
    """The disk by its path: `resource`, or what that hash stands for."""

    @property
    def stands(self) -> bool:
        """Whether the owner still has the claim."""
        return not self.owner.gone and self.resource in self.lock.claims.get(self.owner.id, {})

    def __str__(self) -> str:
        return (
            f"{MOVED_PROBLEM}{self.disk} of {self.owner} is of backend '{self.lock.backend}', and its rule names "
            f"'{self.backend}'"
        )


class MovedDisks:
    """Takes the leases that new rules demand for running VMs."""

    def __init__(self, manager: LockManager, *, clock: Clock) -> None:
        self._manager = manager
        self._clock = clock
        self._begun = False
        self._attempts = RepeatedAttempts(
            self._all_guarded,
            clock=clock,
            is_closing=lambda: manager.closing,
            failed="disks whose rule names leases are not guarded any more",
        )
        self._refused: dict[tuple[int, Resource], str] = {}
        self._paths: dict[tuple[int, Resource], str] = {}
        """By owner and hashed name: the path of the disk."""
        self._unclear: dict[tuple[int, Resource], HostLock] = {}
        """By owner and hashed name: locks of disks whose path is not known yet."""

    def begin(self) -> None:
        """Begin, when all restored locks are in the table. Rules change only with a new daemon."""
        self._begun = True
        self._watch(self._manager.table)

    def joined(self) -> None:
        """A lockspace was joined, so its leases can be acquired: try again."""
        self._attempts.news()

    def known(self, lock: HostLock) -> None:
        """A lock of an earlier daemon is held again, or attributed to an owner, maybe after `begin`."""
        self._watch((lock,))

    def _watch(self, locks: Iterable[HostLock]) -> None:
        """Guard those of some locks whose rule names leases, from now on."""
        if not self._begun:
            return
        moved = taken = False
        for lock in locks:
            self._unclear.update((key, lock) for key in self._hashed(lock))
            moved = moved or any(self._moved_of(lock))
            taken = taken or any(_is_lease(self._manager, lock, name) for name in lock.names())
        if moved or taken or self._unclear:
            self._manager.releaser.goes_with = self.goes_with
        if moved or self._unclear:
            self._attempts.begin()

    def problems(self) -> list[str]:
        """Messages for operators: each VM whose disk has the lock of an old rule, and how it gets that of the new rule."""
        return [f"{moved}; {self._what_else(moved)}; {_fix(moved.owner)}" for moved in self._moved()] + [
            f"{MOVED_PROBLEM}{resource} of {owner} may be of another backend than its rule names: libvirt's status file of "
            f"the VM shows no disk with that hash; {_fix(owner)}"
            for owner, resource in self._still_unclear()
        ]

    def goes_with(self, owner: Owner, lock: HostLock) -> tuple[HostLock, Resource] | None:
        """The lease, with its name, that was taken in addition to a lock that the owner has released; None without one."""
        if owner.id in lock.claims:
            return None
        return next(((also, name) for also, name in self._leases(owner, lock)), None)

    def _moved(self) -> Iterator[MovedDisk]:
        for lock in self._manager.table:
            yield from self._moved_of(lock)

    def _moved_of(self, lock: HostLock) -> Iterator[MovedDisk]:
        manager = self._manager
        for owner, resource, mode in self._claims(lock):
            path = self._paths.get((owner.id, resource), "")
            if _is_lease(manager, lock, resource) or (resource.lockspace and not path):
                continue
            backend = manager.routing.route(resource, path).backend
            if backend.name != lock.backend and (not path or backend.name in manager.routing.leases):
                disk = Resource(DIRECT_LOCKSPACE, path) if path else resource
                yield MovedDisk(owner, resource, mode, lock, backend.name, disk)

    def _claims(self, lock: HostLock) -> Iterator[tuple[Owner, Resource, Mode]]:
        """The claims of known owners on a lock that is held."""
        for owner_id, names in list(lock.claims.items()):
            owner = self._manager.owners.get(owner_id)
            if owner is None or owner.gone or owner.unknown is not None or lock.held is None:
                continue
            for resource, mode in list(names.items()):
                yield owner, resource, mode

    def _hashed(self, lock: HostLock) -> Iterator[tuple[int, Resource]]:
        """Claims by a hash, (owner, name), whose rule may name leases.

        Only the lock file of a disk is made with its lock: that of a <lease> is there before.
        """
        leases = self._manager.routing.leases
        if leases and lock.create and lock.backend not in leases:
            for owner, resource, _ in self._claims(lock):
                if resource.lockspace in (DIRECT_LOCKSPACE, HOST_LOCKSPACE):
                    continue
                if (owner.id, resource) not in self._paths:
                    yield owner.id, resource

    def _still_unclear(self) -> Iterator[tuple[Owner, Resource]]:
        for (owner_id, resource), lock in list(self._unclear.items()):
            owner = self._manager.owners.get(owner_id)
            if owner is not None and not owner.gone and resource in lock.claims.get(owner_id, {}):
                yield owner, resource
            else:
                del self._unclear[owner_id, resource]

    def _leases(self, owner: Owner, lock: HostLock) -> Iterator[tuple[HostLock, Resource]]:
        """Leases that an owner holds, by the lease's own name, on the disk of a lock."""
        for other in self._manager.table.others_on_disk(owner.id, lock):
            for name in other.claims[owner.id]:
                if _is_lease(self._manager, other, name):
                    yield other, name

    def _what_else(self, moved: MovedDisk) -> str:
        if any(lock.backend == moved.backend for lock, _ in self._leases(moved.owner, moved.lock)):
            return "both are held, so no host is granted the disk by either"
        why = self._refused.get((moved.owner.id, moved.resource), "it is no lease")
        return f"'{moved.backend}' does not guard it ({why}): a host that goes by the new rule can start a second VM on it"

    async def _all_guarded(self) -> bool:
        """One attempt for every disk; whether nothing is left to do."""
        done = await self._paths_are_known()
        for moved in list(self._moved()):
            done = await self._guarded(moved) and done
        return done

    async def _paths_are_known(self) -> bool:
        """Read the paths of disks that libvirt names by a hash; whether all are known."""
        for owner, resource in list(self._still_unclear()):
            try:
                path = await self._manager.path_of(owner, resource)
            except LockError as e:
                log.info("the path of %s of %s can't be read: %s", resource, owner, e)
                path = ""
            if path:
                self._paths[owner.id, resource] = path
                self._unclear.pop((owner.id, resource), None)
            await self._clock.sleep(READ_PAUSE_S)
        return not self._unclear

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
        lease, _ = await backend.names.of(moved.disk)
        name = Resource(DIRECT_LOCKSPACE, lease)
        candidate = await backend.open(moved.disk, create=Creation.NONE)
        if isinstance(candidate, IoFailed):
            return str(candidate)
        keys = candidate.keys
        if manager.key_locks.is_locked(moved.lock) or manager.key_locks.first_taken(keys) is not None:
            return "something else is being done with it"
        if not keys[1:]:
            return "its disk can't be read, so the lease could not be released with the lock"
        if (twin := manager.table.of_lock_file(keys[0])) is not None:
            # A daemon that was killed may have taken it, and its journal may be lost.
            await manager.unknown.adopt(owner, name, twin)
            if name in twin.claims.get(owner.id, {}) and moved.stands:
                for lock in (twin, moved.lock):
                    manager.table.learn(lock, keys[1:])
                return ""
            return f"this host holds lease {lease} for {', '.join(str(manager.owners.get(i)) for i in twin.claims)}"
        if manager.table.in_the_way(owner.id, moved.mode, keys=keys):
            return "another owner has the disk"
        outcome = await manager.key_locks.holding(
            (moved.lock, *keys), candidate.take(moved.mode, manager.note(owner, name, moved.mode))
        )
        if isinstance(outcome, LeftBehind):
            await manager.acquirer.on_left_behind(backend.name, outcome.lease)
            return "what an earlier daemon held of it is found out first"
        if isinstance(outcome, Stale):
            return "it has just been removed"
        if isinstance(outcome, HeldElsewhere):
            return f"it is held by {'; '.join(str(holder) for holder in outcome.holders)}"
        if isinstance(outcome, IoFailed):
            return str(outcome)
        if not moved.stands:
            await outcome.release()
            return ""
        try:
            manager.book.enter(owner, AcquireRequest(name, moved.mode), backend, keys, outcome)
        except OSError as e:
            await outcome.release()
            return f"the journal can't record it: {e.strerror}"
        # The lock file of a hash, or of a disk on other storage, shows no disk: its lease is found by the disk's key.
        manager.table.learn(moved.lock, keys[1:])
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

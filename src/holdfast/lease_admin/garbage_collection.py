"""Removes leases that no host holds.

To a host its own leases are free on storage, so only the lock table knows what this daemon holds: a lease is tried only
while no lock has it, and with the key lock on its key, so that no start of this host interferes.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from holdfast.backends.lease_backend import UNACCOUNTED, LeaseBackend
from holdfast.errors import AttemptLeft, LockError, Refused, StorageFailed
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.owners import Evidence
from holdfast.model import DIRECT_LOCKSPACE, SANLOCK_PREFIX, ProcessId, Resource
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.files.ofd_lock import FileKey

log = logging.getLogger(__name__)

ALL_OTHERS = "every other lease"
"""The name in the answer of what a backend that can't be asked has."""
ATTEMPTS_MAX = 2
"""Of a lease that no lock accounts for: the second comes after it was accounted for."""


@dataclass(frozen=True, slots=True)
class Collected:
    """One lease: removed (or would be), or why it stays."""

    backend: str
    name: str
    kept_because: str


class LeaseCollector:
    """Collects leases, and accounts for those that an earlier daemon left."""

    def __init__(self, manager: LockManager, *, clock: Clock) -> None:
        self._manager = manager
        self._clock = clock
        manager.acquirer.on_left_behind = self.account_for
        self._begun = False
        self._waiting: set[str] = set()
        self._attempts: dict[str, set[str]] = {}
        """By backend: leases that no VM has, and of which an attempt of an earlier daemon is still to be withdrawn."""
        self.ended: Mapping[FileKey, Collection[ProcessId]] = {}
        """Leases whose end the last daemon has recorded, and the processes that have released them. A journal that was cut
        between two appends seems whole: so the end of one process proves nothing about a lease that another took.
        """

    async def collect(self, *, dry_run: bool) -> list[Collected]:
        """Collect leases of every backend that has them; raises a `LockError` if there is none, or none can be read."""
        backends = [b for b in self._manager.backends.values() if isinstance(b, LeaseBackend)]
        if not backends:
            raise Refused(reason='no backend has leases (driver = "paxos")')
        collected: list[Collected] = []
        failed: list[LockError] = []
        for backend in backends:
            try:
                await self._collect_of(backend, collected, dry_run=dry_run)
            except LockError as e:
                # A lockspace that this host is not in, or failing storage, does not stop the others.
                failed.append(e)
                collected.append(Collected(backend.name, ALL_OTHERS, str(e)))
        if len(failed) == len(backends):
            raise failed[0]
        out = sum(not each.kept_because for each in collected)
        log.info("leases: %d of %d %s", out, len(collected), "could be taken out" if dry_run else "taken out")
        return collected

    async def _collect_of(self, backend: LeaseBackend, collected: list[Collected], *, dry_run: bool) -> None:
        maintenance = backend.maintenance
        if not dry_run:
            await maintenance.free_of_older_terms()
        # One after the other: it is not urgent.
        for name in await maintenance.lease_names():
            kept_because = await self._collect_one(backend, name, dry_run=dry_run)
            collected.append(Collected(backend.name, name, kept_because))
        for unindexed in await maintenance.unindexed():
            taking = partial(
                maintenance.take_out_stray, unindexed, dry_run=dry_run, has_ended=self._has_ended
            )
            kept_because = await self._unless_in_use(backend, unindexed.name, taking)
            shown = f"{unindexed.name} at {unindexed.offset_bytes}, which its name does not lead to"
            collected.append(Collected(backend.name, shown, kept_because))

    async def _collect_one(self, backend: LeaseBackend, name: str, *, dry_run: bool) -> str:
        """Remove a lease, or show that it could be; why it stays, empty if it does not."""
        taking = partial(backend.maintenance.take_out, name, dry_run=dry_run)
        attempts_left = 1 if dry_run else ATTEMPTS_MAX
        while True:
            kept_because = await self._unless_in_use(backend, name, taking)
            attempts_left -= 1
            if (
                kept_because != UNACCOUNTED
                or not attempts_left
                or not await self._is_accounted_for(backend.name, name)
            ):
                return kept_because

    def _has_ended(self, process: ProcessId) -> bool:
        return not self._manager.owners.process_lives(process)

    def begin(self) -> None:
        """All restored locks are in the table: read the resumed backends from now on."""
        self._begun = True
        waiting, self._waiting = self._waiting, set()
        self.account_for_left_behind(waiting)

    def resumed(self, backends: Collection[str]) -> None:
        """The incarnation of an earlier daemon was resumed, now or before `begin`."""
        if self._begun:
            self.account_for_left_behind(backends)
        else:
            self._waiting.update(backends)

    def account_for_left_behind(self, backends: Collection[str]) -> None:
        """After an incarnation of an earlier daemon was resumed: hold or free that daemon's leases which no lock here has.

        As long as this host lives, no other host may take those leases. So storage that fails is read again, until the
        incarnation ends.
        """
        for backend in self._manager.backends.values():
            if isinstance(backend, LeaseBackend) and backend.name in backends:
                eager_tasks.start(self._account_for_all(backend))

    async def account_for(self, backend_name: str, name: str) -> None:
        """Account for one lease that an acquire found; raises a `LockError` while storage does not answer."""
        backend = self._manager.backends[backend_name]
        assert isinstance(backend, LeaseBackend)
        await self._taken_up(backend, name, backend.names.key(name))

    async def _is_accounted_for(self, backend_name: str, name: str) -> bool:
        """Hold or free a lease that only storage says this host has: an earlier daemon left it, or it was restored from an
        older copy. Whether it was possible.
        """
        try:
            await self.account_for(backend_name, name)
        except LockError as e:
            log.warning("lease %s, which storage says this host has, can't be accounted for: %s", name, e)
            return False
        return True

    async def _account_for_all(self, backend: LeaseBackend) -> None:
        incarnation = backend.presence.membership()
        names: list[str] | None = None
        self._attempts[backend.name] = set()
        while names != [] and not isinstance(incarnation, NotAMember):
            try:
                if names is None:
                    await backend.maintenance.free_own()
                    # All of them, whatever made their names: a VM may depend on one of ours.
                    names = await backend.maintenance.all_names()
                names = [name for name in names if not await self._accounted_for(backend, name)]
            except StorageFailed as e:
                log.warning("leases that may have been left behind can't be read: %s; trying again", e)
            except LockError as e:
                log.warning("leases that may have been left behind can't be read: %s", e)
                return
            # What sanlock's clients held is found when they ask for it: until then it may be held.
            is_complete = names is not None and backend.maintenance.lists_all
            if is_complete and self._attempts[backend.name].issuperset(names or ()):
                self._manager.unknown.drop_place(backend.name)
            if names != []:
                await self._clock.sleep(2 * incarnation.io_timeout_s)
                if self._manager.closing or backend.presence.membership() is not incarnation:
                    return

    async def _accounted_for(self, backend: LeaseBackend, name: str) -> bool:
        """Whether nothing is left to do. If not, storage fails, or failed when this daemon tried to resume a lease of the
        journal: if its owner ends before that succeeds, nothing else releases it.
        """
        key = backend.names.key(name)
        lock = self._manager.table.of_lock_file(key)
        if lock is not None or self._manager.key_locks.is_locked(key):
            return lock is not None and lock.held is not None
        try:
            await self._taken_up(backend, name, key)
        except AttemptLeft as e:
            log.info("%s; trying again to withdraw what an earlier daemon began", e)
            self._attempts[backend.name].add(name)
            return False
        except StorageFailed as e:
            if e.errno == errno.ENOENT and not backend.maintenance.lists_all:
                return True  # where a client had said that it is, there is no file any more
            log.warning("lease %s may have been left behind by an earlier daemon: %s; trying again", name, e)
            return False
        except LockError as e:
            log.debug("lease %s: %s", name, e)
        return True

    async def _taken_up(self, backend: LeaseBackend, name: str, key: FileKey) -> None:
        manager = self._manager
        while manager.key_locks.is_locked(key):
            await manager.key_locks.wait(key)
        if manager.table.of_lock_file(key) is not None:
            return
        await manager.key_locks.holding((key,), self._take_up(backend, name, key))

    async def _take_up(self, backend: LeaseBackend, name: str, key: FileKey) -> None:
        """Called with the key lock on its key until the lock is in the table, so that no start of this host interferes."""
        if key in self.ended and await self._is_of_ended(backend, name, self.ended[key]):
            if await backend.maintenance.free_left_behind(name):
                log.warning("lease %s was left behind by an earlier daemon; it is free now", name)
            return
        left = await backend.maintenance.take_up(name)
        if left is None:
            return
        keys: tuple[FileKey, ...] = (key,)
        if left.noted.disk:
            lease, identity = await backend.names.of(left.resource)
            if lease == name and identity.key is not None:
                keys += (identity.key,)
        why = self._manager.doubt or "the journal doesn't name it"
        resource = left.resource
        if self._manager.table.named(resource) is not None:
            # The disk has a lock of another backend, beside which an earlier daemon took the lease (`moved_disks`).
            resource = Resource(DIRECT_LOCKSPACE, name)
        # What a client of sanlock's has is adopted by the backend of these clients, which goes by the place of a lease.
        is_clients = (
            resource.lockspace.startswith(SANLOCK_PREFIX) and resource.lockspace in self._manager.backends
        )
        self._manager.unknown.hold(
            backend=resource.lockspace if is_clients else backend.name,
            path=left.area if is_clients else left.held.path,
            held=left.held,
            resource=resource,
            mode=left.mode,
            keys=keys,
            name=left.noted.owner,
            evidence=Evidence(
                why=f"{why}; lease {name}",
                process=left.noted.process,
                disk=left.noted.disk,
                may_persist=left.noted.may_persist,
            ),
        )

    async def _is_of_ended(self, backend: LeaseBackend, name: str, ended: Collection[ProcessId]) -> bool:
        """Whether the last owner of this host, by the lease's note, is one that has released it."""
        process = await backend.maintenance.noted_process(name)
        return process is None or process in ended

    async def _unless_in_use(
        self, backend: LeaseBackend, name: str, taking: Callable[[], Coroutine[Any, Any, str]]
    ) -> str:
        manager = self._manager
        key = backend.names.key(name)
        if busy := self._in_use(key):
            return busy
        try:
            return await manager.key_locks.holding((key,), taking())
        except LockError as e:
            return str(e)

    def _in_use(self, key: FileKey) -> str:
        """Why no other operation of this host may try that lease now; empty if it may be tried."""
        if self._manager.table.of_lock_file(key) is not None:
            return "held here"
        return "being taken here" if self._manager.key_locks.is_locked(key) else ""

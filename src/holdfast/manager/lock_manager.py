"""The lock manager decides which owner may hold a lock. All frontends call it, and it calls all backends.

Use cases: an owner is registered, acquires, releases, dies; a connection that spoke for it closes. The order of the steps
matters for safety; `acquire` and `release` have those of a request. Here is what happens at the end of an owner:

death     seen by pidfd, or by a conflict that checks whether the holder still lives: release everything
lost connection of the owner itself, process alive: stop it, wait for its death, then release
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from holdfast.backends.base import Held, OwnerNote
from holdfast.errors import HoldfastError, Refused, ResourceInUse
from holdfast.manager import events as ev
from holdfast.manager import journal_kinds as jn
from holdfast.manager.acquire import LockAcquirer, Outcome
from holdfast.manager.arrivals import Arrivals
from holdfast.manager.closed_disks import closed
from holdfast.manager.departures import Departures
from holdfast.manager.events import Events
from holdfast.manager.file_lockspaces import FileLockspaces
from holdfast.manager.hashed_names import HashedNames, Identify, nothing_known
from holdfast.manager.holders import HolderDescriptions
from holdfast.manager.journal import Journal
from holdfast.manager.key_locks import KeyLocks
from holdfast.manager.lock_registry import HostLock, LockRegistry
from holdfast.manager.lock_state import LockState, note_of
from holdfast.manager.lock_table import LockTable
from holdfast.manager.lost_locks import DeadHolder, LostLocks
from holdfast.manager.owners import Owner, Owners
from holdfast.manager.prepared_locks import PreparedLocks
from holdfast.manager.process_stopper import ProcessStopper
from holdfast.manager.release import LockReleaser
from holdfast.manager.repeated_acquire import RepeatedAcquirePolicy
from holdfast.manager.routing import Routing
from holdfast.manager.unknown_locks import DiskKey, UnknownLocks
from holdfast.model import AcquireRequest, Mode, OwnerName, Protection, Resource
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.files.open_files import OpenFiles
from holdfast.system.host.process import Processes
from holdfast.system.libvirt.domains import DomainStatus

log = logging.getLogger(__name__)


class LockManager:
    """The use cases of locking. Everything runs on one event loop."""

    def __init__(
        self,
        *,
        routing: Routing,
        lockspaces: FileLockspaces,
        journal: Journal,
        processes: Processes,
        clock: Clock,
        events: Events,
        host: str,
        owners_max: int,
        open_files: OpenFiles,
        disk_key: DiskKey,
        audit: Callable[[str], None],
        domains: DomainStatus | None = None,
        identify: Identify = nothing_known,
        keep: Callable[[int, int | None], None] | None = None,
        dead_holder: DeadHolder = lambda _, __: None,
        acquire_wait_s: float = 0.0,
        lends: bool = False,
    ) -> None:
        self.routing = routing
        self.backends = routing.backends
        self.lockspaces = lockspaces
        self.events = events
        self.table: LockTable[Held] = LockTable()
        self.key_locks = KeyLocks()
        self.owners = Owners(processes, self.owner_ended)
        self.descriptions = HolderDescriptions(self.table, self.owners, host)
        self.lost = LostLocks(
            table=self.table,
            key_locks=self.key_locks,
            backends=routing.backends,
            descriptions=self.descriptions,
            keep=keep,
            dead_holder=dead_holder,
        )
        self.on_client_ended: Callable[[Owner], None] = lambda _: None
        """A registered client of sanlock's protocol whose connection an earlier daemon had has ended."""
        self.closing = False
        """True once the daemon is going down: lost connections and owners mean nothing any more."""
        self.book = LockRegistry(table=self.table, journal=journal, events=events, clock=clock, keep=keep)
        self._owners_max = owners_max
        self._open_files = open_files
        self._clock = clock
        self._hashed = HashedNames(
            routing,
            domains=domains,
            clock=clock,
            identify=identify,
            claims=lambda owner: [
                each for lock in self.table.of_owner(owner.id) for each in lock.claims[owner.id]
            ],
        )
        self.departures = Departures(
            table=self.table,
            key_locks=self.key_locks,
            owners=self.owners,
            book=self.book,
            events=events,
            clock=clock,
            domains=domains,
            give_up=self._give_up,
            acquire=self.acquire,
            idle=self._forget_if_idle,
            is_closing=lambda: self.closing,
            lends=lends,
        )
        self._stopper = ProcessStopper(clock, self._stopped)
        self.unknown = UnknownLocks(
            table=self.table,
            owners=self.owners,
            book=self.book,
            events=events,
            clock=clock,
            open_files=open_files,
            disk_key=disk_key,
            domains=domains,
            end=self.owner_ended,
            release=self.release_one,
            audit=audit,
            is_closing=lambda: self.closing,
            on_attributed=self.departures.found,
        )
        self.prepared = PreparedLocks(
            table=self.table,
            owners=self.owners,
            book=self.book,
            clock=clock,
            domains=domains,
            end=self.owner_ended,
            idle=self._forget_if_idle,
            is_closing=lambda: self.closing,
        )
        self.state = LockState(
            routing=routing,
            lockspaces=lockspaces,
            table=self.table,
            key_locks=self.key_locks,
            owners=self.owners,
            book=self.book,
            events=events,
            descriptions=self.descriptions,
            hashed=self._hashed,
            repeated=RepeatedAcquirePolicy(domains, clock),
            unknown=self.unknown,
        )
        self.releaser = LockReleaser(self.state, departures=self.departures, idle=self._forget_if_idle)
        self.acquirer = LockAcquirer(
            self.state,
            releaser=self.releaser,
            prepared=self.prepared,
            lost=self.lost,
            arrivals=Arrivals(domains, clock, acquire_wait_s),
            domains=domains,
            end=self.owner_ended,
            is_closing=lambda: self.closing,
        )
        self.doubt = ""
        """Why the last daemon's journal is not all that was held; empty if it is."""

    # --- owners and the connections that speak for them ---

    def register(self, pid: int, name: OwnerName, *, until_closed: bool = False, family: str = "") -> Owner:
        """A connection speaks for this owner from now on; `unregister` ends that.

        `until_closed`: the process keeps locks for its descendants, which may outlive it. When it has ended, a lock that
        it did not release stays until no process of this host has the disk open. `family`: their control group. Then the
        lock also stays until the group is empty, as a process in it may not have opened the disk yet.
        """
        if self.owners.with_pid(pid) is None:
            self.room_for_another()
        owner = self.owners.find(pid, name)
        if until_closed and not owner.until_closed:
            self.book.until_closed(owner, self.owners.family(family))
        owner.connections += 1
        self.prepared.started(owner)
        return owner

    def room_for_another(self) -> None:
        """Raises `Refused` if there may be no further owner."""
        if len(self.owners) >= self._owners_max:
            raise Refused(reason=f"more than {self._owners_max} owners (limits.owners_max)")

    def unregister(self, owner: Owner, *, holder: bool, why: str) -> None:
        """A connection closed. `holder`: it belonged to the owner process, so its close means that the process exited."""
        owner.connections -= 1
        if self.closing or owner.gone:
            return
        # The kernel reports the end of a process that we watch; here it is checked only where it decides.
        if (holder or owner.process is None) and not owner.alive():
            self.owner_ended(owner)
        elif holder and self.table.holds_any(owner.id):
            eager_tasks.start(self._stopper.stop(owner, why))
        else:
            self._forget_if_idle(owner)

    def _forget_if_idle(self, owner: Owner) -> None:
        if owner.connections <= 0 and not self.book.needs(owner):
            owner.gone = True
            self.book.owner_gone(owner)
            self.owners.forget(owner)

    def _stopped(self, owner: Owner, what: str) -> None:
        self.events.emit(ev.OWNER_STOPPED, owner=owner.name, pid=owner.pid, detail=what)

    def stop_owner(self, owner: Owner, why: str) -> None:
        """End an owner's process; its locks are released when it has died."""
        eager_tasks.start(self._stopper.stop(owner, why))

    def owner_ended(self, owner: Owner) -> None:
        """The process has ended, or an invisible one has no connection left: release its claims."""
        if owner.gone or self.closing or owner.clients:
            return
        orphans = [o for o in self.table.of_owner(owner.id) if owner.persistent & o.claims[owner.id].keys()]
        if orphans and not owner.keeps_orphans:
            keeper = self.owners.add_orphan_keeper(owner.name)
            for orphan in orphans:
                self.book.orphaned(orphan, owner, keeper)
        owner.gone = True
        if owner.registered:
            self.on_client_ended(owner)
        locks = self.table.of_owner(owner.id)
        if locks:
            what = "locks stay until their disks are closed" if owner.until_closed else "locks released"
            self.events.emit(ev.OWNER_DIED, owner=owner.name, pid=owner.pid, detail=f"{len(locks)} {what}")
            log.info("%s ended; %d %s", owner, len(locks), what, extra=ev.logged(ev.OWNER_DIED, owner.name))
        for lock in locks:
            eager_tasks.start(self._release_dead(owner, lock))
        if owner.process is not None:
            owner.process.close()
        if not self.table.holds_any(owner.id):
            self.book.owner_gone(owner)
            self.owners.forget(owner)

    def end_orphans(self, keeper: Owner) -> None:
        """Release all that a keeper of orphans has."""
        self.owner_ended(keeper)

    async def _release_dead(self, owner: Owner, lock: HostLock) -> None:
        if owner.until_closed:
            await closed(
                owner, lock, open_files=self._open_files, clock=self._clock, is_closing=lambda: self.closing
            )
            if self.closing:
                return
        while True:
            while self.key_locks.is_locked(lock):
                await self.key_locks.wait(lock)
            mine = lock.claims.get(owner.id)
            if not mine:
                break
            await self._give_up(owner, lock, next(iter(mine)))
        if not self.table.holds_any(owner.id):
            self.book.owner_gone(owner)
            self.owners.forget(owner)
            if owner.family is not None:
                owner.family.remove()

    # --- acquire ---

    async def acquire(self, owner: Owner, want: AcquireRequest) -> bool:
        """Hold a resource for an owner. True if it is newly claimed or its mode changed, False if nothing changed.

        Raises an error of the `LockError` tree; then nothing has changed.
        """
        return await self.acquirer.acquire(owner, want)

    async def acquire_waiting(self, owner: Owner, want: AcquireRequest, *, by_hook: bool = False) -> bool:
        """As `acquire`, for a request for which `acquire_nowait` returned RETRY. `by_hook`: libvirt does not ask for it."""
        return await self.acquirer.acquire_waiting(owner, want, by_hook=by_hook)

    async def acquire_one(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """Acquire a resource alone, not what its disk is; raises as `acquire`."""
        return await self.acquirer.acquire_one(owner, want)

    def acquire_nowait(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """Acquire in one step, without waiting. RETRY: nothing has changed, and `acquire_waiting` has to decide."""
        return self.acquirer.acquire_nowait(owner, want)

    def report_refusal(self, owner: Owner, want: AcquireRequest, error: HoldfastError) -> None:
        """An event, and a line of the log: users' own refusals are logged with a limit."""
        self.acquirer.report_refusal(owner, want, error)

    def claimed(self, owner: Owner, resource: Resource) -> Mode | None:
        """The mode in which an owner claims a resource; None if it does not."""
        return self.state.claimed(owner, resource)

    async def path_of(self, owner: Owner, resource: Resource) -> str:
        """The path of the disk that libvirt names by a hash, by the VM's status file as it is now; empty if not known."""
        return await self._hashed.path(owner, resource)

    # --- release ---

    async def release(self, owner: Owner, resource: Resource) -> None:
        """Release one claim. Raises `ResourceNotLocked` or `NotAnOwner`, which are normal results, not alarms."""
        await self.releaser.release(owner, resource)

    def begin_release(self, owner: Owner, resource: Resource) -> Coroutine[Any, Any, None] | None:
        """None if it was released at once; otherwise a coroutine that releases it."""
        return self.releaser.begin_release(owner, resource)

    async def release_one(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
        """End a claim alone, if it still exists, with all necessary waits."""
        await self.releaser.release_one(owner, lock, resource)

    async def _give_up(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
        await self.releaser.give_up(owner, lock, resource)

    # --- CREATE_RESOURCE and DELETE_RESOURCE ---

    async def create_resource(self, resource: Resource) -> None:
        if resource.lockspace:
            await self.lockspaces.need(resource.lockspace, make=True)
        await self._not_in_use(resource)
        await self.lockspaces.create_file(resource)

    async def delete_resource(self, resource: Resource) -> None:
        await self._not_in_use(resource)
        await self.lockspaces.delete_file(resource)

    async def _not_in_use(self, resource: Resource) -> None:
        self.lockspaces.check_name(resource)
        if resource.lockspace:
            await self.lockspaces.need(resource.lockspace, make=False)
        if self.table.named(resource) is None:
            key = await self.lockspaces.key_of(resource)
            if key is None or not self.table.with_key(key):
                return
        raise ResourceInUse(name=resource.name)

    # --- small things ---

    def protection(self, lock: HostLock) -> tuple[Protection, str]:
        """What a lock is worth now, and why not more."""
        backend = self.backends.get(lock.backend)
        if backend is None or lock.held is None:
            return Protection.NONE, lock.lost_reason
        return backend.protection(lock.path)

    def why_lost(self, lock: HostLock) -> str:
        """Why a lock protects nothing now; empty if it is held."""
        return self.state.why_lost(lock)

    def note(self, owner: Owner, resource: Resource, mode: Mode) -> OwnerNote:
        """The note that is written to its lock file or lease, for people and for the next daemon."""
        return note_of(owner, resource, mode)

    def remember_incarnation(self, lockspace: str, state: str) -> None:
        """Keep a copy of this host's incarnation in the journal, beside the locks that depend on it."""
        self.book.remember(lockspace, state)

    def journal_lines(self, *, everybody: bool = False) -> list[jn.Line]:
        """The whole state as lines, to rewrite the journal; `everybody`: also owners that hold nothing."""
        return self.book.lines(self.lockspaces, self.owners, everybody=everybody)

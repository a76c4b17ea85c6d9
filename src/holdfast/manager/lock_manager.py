"""The lock manager decides which owner may hold a lock. All frontends call it, and it calls all backends.

Use cases: an owner is registered, acquires, releases, dies; a connection that spoke for it closes. The order of the steps
matters for safety:

acquire   key lock on the name ─ open ─ compare keys with what this host holds ─ key locks on the keys
          ─ take the lock ─ enter it in the table ─ journal ─ answer
release   leave the table ─ journal ─ key lock on the lock ─ release it ─ answer
death     seen by pidfd, or by a conflict that checks whether the holder still lives: release everything
lost connection of the owner itself, process alive: stop it, wait for its death, then release

A refusal is an exception of the `errors` tree; backends return failed storage, which is raised as one here.
"""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from holdfast.backends.base import (
    Candidate,
    Creation,
    Held,
    HeldElsewhere,
    LeftBehind,
    MayBeLost,
    OwnerNote,
    Stale,
)
from holdfast.errors import (
    DiskNotKnown,
    HoldfastError,
    LockspaceNotDirectory,
    LockspaceUnknown,
    NameRefused,
    NotAnOwner,
    OwnerGone,
    ProtectionTooWeak,
    Refused,
    ResourceBusy,
    ResourceInUse,
    ResourceNotLocked,
    StorageFailed,
    storage_failed,
)
from holdfast.manager import events as ev
from holdfast.manager import journal_kinds as jn
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
from holdfast.manager.lock_table import Conflict, Convert, Key, LockTable
from holdfast.manager.lost_locks import DeadHolder, LostLocks
from holdfast.manager.migration_roles import ran_before
from holdfast.manager.owners import Owner, Owners
from holdfast.manager.prepared_locks import PreparedLocks
from holdfast.manager.process_stopper import ProcessStopper
from holdfast.manager.repeated_acquire import RepeatedAcquirePolicy
from holdfast.manager.routing import Route, Routing
from holdfast.manager.unknown_locks import DiskKey, UnknownLocks
from holdfast.model import HOST_LOCKSPACE, AcquireRequest, Mode, OwnerName, Protection, Resource
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.system.files.open_files import OpenFiles
from holdfast.system.host.process import Processes
from holdfast.system.libvirt.domains import DomainStatus
from holdfast.system.logs.log_limit import LimitedLog

log = logging.getLogger(__name__)
T = TypeVar("T")

refused_users = LimitedLog(log)
"""Logged refusals to users other than root, who can ask in a loop; each refusal is an event all the same."""

REOPEN_ATTEMPTS_MAX = 100
"""How often a lock file may vanish between open and lock before that is an error: each time needs another release."""
OnLeftBehind = Callable[[str, str], Awaitable[None]]
"""Called with backend and lease; raises a `LockError` while the answer is not known."""


class Identities(Protocol):
    """The second locks of disks, by what they are (`identity_locks`)."""

    async def acquire(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """Acquire a disk by its identity and by its path."""

    def released_with(self, owner: Owner, lock: HostLock, path: Resource) -> tuple[HostLock, Resource] | None:
        """The lock, with its name, that is released after that path, which its owner has released."""


GoesWith = Callable[[Owner, HostLock], tuple[HostLock, Resource] | None]


async def _can_not_be_found_out(backend: str, lease: str) -> None:
    raise Refused(reason=f"lease {lease} of backend '{backend}' is held by this host for an unknown owner")


COMPLETE_REFUSALS = (DiskNotKnown, OwnerGone, LockspaceUnknown, LockspaceNotDirectory, NameRefused)
"""Refusals to which words about the disk add nothing: they are about something else, most in virtlockd's own words."""


class Outcome(enum.Enum):
    """The result of one attempt to acquire a lock."""

    ACQUIRED = enum.auto()
    """A claim is new, or its mode has changed."""
    UNCHANGED = enum.auto()
    """The owner had it in this mode already."""
    RETRY = enum.auto()
    """Nothing was decided: the state has changed during a wait, or the decision needs one."""


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
        self._domains = domains
        self._second_acquires = RepeatedAcquirePolicy(domains, clock)
        self._arrivals = Arrivals(domains, clock, acquire_wait_s)
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
        self.on_left_behind: OnLeftBehind = _can_not_be_found_out
        """Finds out for whom this host holds a lease that no lock here accounts for: it is held or free afterwards."""
        self.identities: Identities | None = None
        """Acquires and releases what disks are with their paths (`identity_locks`); None: only paths count."""
        self.goes_with: GoesWith | None = None
        """The lease that is released with a lock that its owner has released (`moved_disks`); None: never any."""
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
        if self.acquire_nowait(owner, want) is Outcome.ACQUIRED:
            return True
        return await self.acquire_waiting(owner, want)

    async def acquire_waiting(self, owner: Owner, want: AcquireRequest, *, by_hook: bool = False) -> bool:
        """As `acquire`, for a request for which `acquire_nowait` returned RETRY. `by_hook`: libvirt does not ask for it."""
        resource = want.resource
        try:
            want = await self._hashed.meant(owner, want)
            resource = want.resource
            own_file = resource.lockspace == HOST_LOCKSPACE and (by_hook or owner.prepared is not None)
            if resource.lockspace and not own_file:
                self.lockspaces.check_name(resource)
                await self.lockspaces.need(resource.lockspace, make=True)
            outcome = await self._arrivals.tries(owner, lambda: self._acquire_all(owner, want))
            for prepared in self.prepared.asked(owner, resource) if owner.unasked and not by_hook else ():
                if self.claimed(owner, prepared) is not None:
                    await self.release(owner, prepared)
            return outcome is Outcome.ACQUIRED
        except HoldfastError as error:
            if not isinstance(error, COMPLETE_REFUSALS) and resource.lockspace != HOST_LOCKSPACE:
                holders = error.holders if isinstance(error, ResourceBusy) else ()
                error.add(await self._hashed.words(owner, want, holders))
            self.report_refusal(owner, want, error)
            raise

    def report_refusal(self, owner: Owner, want: AcquireRequest, error: HoldfastError) -> None:
        """An event, and a line of the log: users' own refusals are logged with a limit."""
        resource = want.resource
        holders = error.holders if isinstance(error, ResourceBusy) else ()
        self.events.emit(ev.REFUSED, owner.name, owner.pid, resource, want.mode, str(error))
        about = ev.logged(ev.REFUSED, owner.name, resource, holders[0].host if holders else "")
        if want.only is None:
            log.warning("refused %s to %s: %s", resource, owner, error, extra=about)
        else:
            refused_users.write("refused %s to %s: %s", resource, owner, error, about=about)

    async def _acquire_all(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """The resource, and what its disk is."""
        if self.identities is None:
            return await self.acquire_one(owner, want)
        return await self.identities.acquire(owner, want)

    async def acquire_one(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """Acquire a resource alone, with all necessary waits; raises as `acquire`."""
        resource = want.resource
        done = Outcome.RETRY
        while done is Outcome.RETRY:
            if owner.gone:
                raise OwnerGone(pid=owner.pid, name=resource.name)
            if resource in self.key_locks.on:
                await self.key_locks.wait(resource)
            elif (lock := self.table.named(resource)) is not None:
                done = await self._acquire_known(owner, want, lock)
            elif want.hashed is not None and (lock := self.table.named(want.hashed)) is not None:
                # It was taken by a daemon that named leases by hashes: the disk is in use, under another lease.
                done = await self._acquire_known(
                    owner, want._replace(resource=want.hashed, hashed=None), lock
                )
            else:
                done = await self.key_locks.holding((resource,), self._acquire_new(owner, want))
        return done

    def acquire_nowait(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """The common case in one step, without waiting: a disk that this host does not know, whose lock is free.

        RETRY: nothing has changed, and `acquire_waiting` has to decide.
        """
        resource = want.resource
        if self.key_locks.on or owner.gone or want.create or resource.lockspace or want.only is not None:
            return Outcome.RETRY
        if owner.unasked:
            return Outcome.RETRY
        route = self.routing.route(resource)
        if route.min_at_start or self.table.named(resource) is not None:
            return Outcome.RETRY
        taken = route.backend.take_nowait(resource, want.mode)
        if taken is None:
            return Outcome.RETRY
        keys, held = taken
        if self.table.knows_none(keys):
            try:
                self.book.enter(owner, want, route.backend, keys, held)
            except OSError as e:
                log.debug("%s goes the long way: %s", resource, e)
            else:
                return Outcome.ACQUIRED
        held.release_nowait()
        return Outcome.RETRY

    async def _acquire_new(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """Acquire a name that no lock has."""
        route = self.routing.route(want.resource, want.path)
        if owner.process is None and owner.prepared is None and route.backend.capabilities.fenced:
            raise Refused(
                reason=f"process {owner.pid} is not visible to holdfastd (another PID namespace?): the owner of a lease "
                "must be one that can be stopped when the lease is lost"
            )
        create = Creation.NONE
        if want.create:
            create = Creation.TEMPORARY
        elif want.resource.lockspace and self.lockspaces.made_on_demand(want.resource.lockspace):
            create = Creation.LASTING
        for _ in range(REOPEN_ATTEMPTS_MAX):
            candidate = await route.backend.open(want.resource, create=create)
            if isinstance(candidate, IoFailed):
                raise storage_failed(candidate)
            done = await self._take(owner, want, route, candidate)
            if done is not Outcome.RETRY:
                return done
        raise StorageFailed(
            what="Unable to keep hold of", path=route.backend.lock_path(want.resource), errno=errno.EAGAIN
        )

    async def _take(self, owner: Owner, want: AcquireRequest, route: Route, candidate: Candidate) -> Outcome:
        keys = candidate.keys
        if want.only is not None and want.only not in keys:
            await candidate.abandon()
            raise _another_disk(want)
        if self.key_locks.on and (busy := self.key_locks.first_taken(keys)) is not None:
            await candidate.abandon()
            await self.key_locks.wait(busy)
            return Outcome.RETRY
        if keys and (twin := self.table.of_lock_file(keys[0])) is not None:
            await candidate.abandon()
            self.table.learn(twin, keys)
            return await self._acquire_known(owner, want, twin)
        others = self.table.in_the_way(owner.id, want.mode, keys=keys)
        if others:
            await candidate.abandon()
            await self._make_way(owner, want, others, keys)
            return Outcome.RETRY
        if route.min_at_start:
            backend = route.backend
            level, fix = backend.protection(backend.lock_path(want.resource))
            need = route.protection_min
            if level < route.start_min and self._starts(owner):
                need = route.min_at_start
            if level < need:
                await candidate.abandon()
                raise ProtectionTooWeak(
                    name=want.resource.name,
                    need=need,
                    got=level,
                    backend=backend.name,
                    fix=fix,
                )
        outcome = await self.key_locks.holding(keys, candidate.take(want.mode, self.note(owner)))
        if isinstance(outcome, Stale):
            return Outcome.RETRY
        if isinstance(outcome, LeftBehind):
            await self.on_left_behind(route.backend.name, outcome.lease)
            return Outcome.RETRY
        if isinstance(outcome, HeldElsewhere):
            holders = self.descriptions.with_programs(outcome.holders)
            raise ResourceBusy(want.resource, holders, cause=outcome.cause)
        if isinstance(outcome, IoFailed):
            raise storage_failed(outcome)
        if owner.gone:
            await outcome.release()
            raise OwnerGone(pid=owner.pid, name=want.resource.name)
        try:
            self.book.enter(owner, want, route.backend, keys, outcome)
        except OSError as e:
            await outcome.release()
            raise Refused(
                reason=f"the journal can't record a new lock: {e.strerror}; free space for it"
            ) from e
        return Outcome.ACQUIRED

    def _starts(self, owner: Owner) -> bool:
        """Whether the owner's VM did not run before, or may not have."""
        domains = self._domains
        return domains is None or not ran_before(domains.look(owner.name.name, owner.name.uuid, owner.pid))

    async def _acquire_known(self, owner: Owner, want: AcquireRequest, lock: HostLock) -> Outcome:
        """Acquire a file on which this host has a lock, by this name or another."""
        if owner.gone:
            raise OwnerGone(pid=owner.pid, name=want.resource.name)
        if want.only is not None and want.only not in lock.keys:
            raise _another_disk(want)
        # The keys too: the same disk may be being taken through another lock file.
        if self.key_locks.on and (busy := self.key_locks.first_taken((lock, *lock.keys))) is not None:
            await self.key_locks.wait(busy)
            return Outcome.RETRY
        if lock.held is None:
            if not await self.lost.regain(lock):
                raise ResourceBusy(
                    want.resource, self.descriptions.holders(lock), note=f"; {lock.lost_reason}"
                )
            return Outcome.RETRY
        decision = self.table.decide(lock, owner.id, want.resource, want.mode)
        match decision:
            case Conflict(others):
                await self._make_way(owner, want, others, lock.keys)
                return Outcome.RETRY
            case Convert(mode) if mode > lock.mode:
                await self._strengthen(owner, want, lock, mode)
            case _ if (owner.id, want.resource) in lock.departing:
                # Its migration failed, and libvirt asks for what it released: a claim like any other, if the lock is held.
                if why := self.why_lost(lock):
                    raise Refused(reason=f"{want.resource.name} can't be used now: {why}")
            case _ if lock.claims.get(owner.id, {}).get(want.resource) is want.mode:
                if want.mode is Mode.EXCLUSIVE:
                    self._second_acquires.question(
                        owner,
                        want.resource,
                        lambda: self.descriptions.holder(owner.id, want.resource, lock.keys, lock),
                    )
                return Outcome.UNCHANGED  # one hold, whatever the number of acquires
        try:
            self.book.claim(owner, want, lock, converted=isinstance(decision, Convert))
        except OSError as e:
            raise Refused(reason=f"the journal can't record a claim: {e.strerror}; free space for it") from e
        if isinstance(decision, Convert) and decision.mode < lock.mode:
            await self._weaken(lock, decision.mode)
        return Outcome.ACQUIRED

    async def _strengthen(self, owner: Owner, want: AcquireRequest, lock: HostLock, mode: Mode) -> None:
        assert lock.held is not None
        things = (lock, *lock.keys)
        refused = await self.key_locks.holding(things, lock.held.convert(mode, self.note(owner)))
        if isinstance(refused, HeldElsewhere):
            holders = self.descriptions.with_programs(refused.holders)
            raise ResourceBusy(want.resource, holders, cause=refused.cause)
        if isinstance(refused, IoFailed):
            raise storage_failed(refused)
        self.book.converted(lock, mode)
        if owner.gone:  # its claims on this lock are being released, and the lock with them
            raise OwnerGone(pid=owner.pid, name=want.resource.name)

    async def _make_way(
        self, owner: Owner, want: AcquireRequest, others: Iterable[int], keys: Sequence[Key]
    ) -> None:
        """Refuse, unless a conflicting owner has ended without its end being reported yet, or is unknown and proves to be
        the asking owner or to be over. After that the state must be read again.

        While the daemon is going down no owner's end counts: the same state would be read for ever (seed 107002195).
        """
        if self.closing:
            raise self._busy(want, others, keys)
        dead = [o for i in others if (o := self.owners.get(i)) is not None and not o.gone and not o.alive()]
        if dead:
            for each in dead:
                self.owner_ended(each)
            return
        if self.prepared.started(owner):
            return
        if len(self.unknown):
            claimed = {lock for i in others for lock in self.table.of_owner(i)}
            for lock in claimed:
                its_own = self.table.named(want.resource) is lock or keys[:1] == lock.keys[:1] != ()
                if not its_own and set(keys).isdisjoint(lock.keys):
                    continue
                if await self.unknown.adopt(owner, want.resource, lock, is_of_disk_only=not its_own):
                    return
        raise self._busy(want, others, keys)

    def _busy(self, want: AcquireRequest, others: Iterable[int], keys: Sequence[Key]) -> ResourceBusy:
        return ResourceBusy(want.resource, [self.descriptions.holder(i, want.resource, keys) for i in others])

    def claimed(self, owner: Owner, resource: Resource) -> Mode | None:
        """The mode in which an owner claims a resource; None if it does not."""
        lock = self.table.named(resource)
        return None if lock is None else lock.claims.get(owner.id, {}).get(resource)

    async def path_of(self, owner: Owner, resource: Resource) -> str:
        """The path of the disk that libvirt names by a hash, by the VM's status file as it is now; empty if not known."""
        return await self._hashed.path(owner, resource)

    # --- release ---

    async def release(self, owner: Owner, resource: Resource) -> None:
        """Release one claim. Raises `ResourceNotLocked` or `NotAnOwner`, which are normal results, not alarms."""
        rest = self.begin_release(owner, resource)
        if rest is not None:
            await rest

    def begin_release(self, owner: Owner, resource: Resource) -> Coroutine[Any, Any, None] | None:
        """None if it was released at once; otherwise a coroutine that releases it."""
        lock = self.table.named(resource)
        if lock is None or self.key_locks.on or resource not in lock.claims.get(owner.id, ()):
            return self._release(owner, resource)
        return self._begin_giving_up(owner, lock, resource)

    def _begin_giving_up(
        self, owner: Owner, lock: HostLock, resource: Resource
    ) -> Coroutine[Any, Any, None] | None:
        """Begin to release a claim that exists, on a lock with no operation under way."""
        if owner.unasked:
            self.book.asked(owner, resource)
        if self._second_acquires.is_undone(owner, resource):
            return None
        if self.departures.holds_back(owner, lock, resource):
            return None
        rest = self._drop_claim(owner, lock, resource)
        if rest is not None:
            return self._release_rest(owner, rest)
        self._released(owner)
        return None

    def _released(self, owner: Owner) -> None:
        if owner.connections <= 0 and not owner.gone:
            self._forget_if_idle(owner)

    async def _release_rest(self, owner: Owner, rest: Coroutine[Any, Any, object]) -> None:
        await rest
        self._released(owner)

    async def _release(self, owner: Owner, resource: Resource) -> None:
        """Release one claim, with all necessary waits."""
        if self.claimed(owner, resource) is None:
            resource = await self._hashed.claimed(owner, resource)
        if resource.lockspace and self.table.named(resource) is None:
            self.lockspaces.check_name(resource)
            await self.lockspaces.need(resource.lockspace, make=False)
        while self.key_locks.is_locked(resource):
            await self.key_locks.wait(resource)
        lock = self.table.named(resource)
        while lock is not None and self.key_locks.is_locked(lock):
            await self.key_locks.wait(lock)
            lock = self.table.named(resource)
        if len(self.unknown) and (lock is None or resource not in lock.claims.get(owner.id, {})):
            lock = await self._adopted(owner, resource, lock) or lock
        if lock is None:
            raise ResourceNotLocked(name=resource.name)
        if resource not in lock.claims.get(owner.id, {}):
            raise NotAnOwner()
        if (rest := self._begin_giving_up(owner, lock, resource)) is not None:
            await rest

    async def _adopted(self, owner: Owner, resource: Resource, lock: HostLock | None) -> HostLock | None:
        """The unknown lock that an owner may release under that name, now its own; None if there is none."""
        if lock is None:
            backend = self.routing.route(resource).backend
            if (leases := self.routing.leases.get(backend.name)) is not None:
                # To open one is refused while no new lease may be taken; this one is held.
                lease, _ = await leases.names.of(resource)
                lock = self.table.of_lock_file(leases.names.key(lease))
            else:
                candidate = await backend.open(resource, create=Creation.NONE)
                if isinstance(candidate, IoFailed):
                    return None
                lock = self.table.of_lock_file(candidate.keys[0]) if candidate.keys else None
                await candidate.abandon()
        if (
            lock is None
            or self.key_locks.is_locked(lock)
            or not await self.unknown.adopt(owner, resource, lock, to_release=True)
        ):
            return None
        return self.table.named(resource)

    async def _give_up(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
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
        while self.key_locks.is_locked(lock):
            await self.key_locks.wait(lock)
        if resource in lock.claims.get(owner.id, {}):
            await self._give_up(owner, lock, resource)

    def _drop_one(
        self, owner: Owner, lock: HostLock, resource: Resource
    ) -> Coroutine[Any, Any, object] | None:
        left = self.book.unclaim(owner, lock, resource)
        self._second_acquires.forget(owner, resource)
        if left.last:
            if lock.held is None or lock.held.release_nowait():
                return None
            # New acquires of this file must wait, by its name and by its keys, until it is really free.
            return self.key_locks.holding((lock, resource, *lock.keys), lock.held.release())
        if left.mode_needed is not None and left.mode_needed < lock.mode and lock.held is not None:
            return self._weaken(lock, left.mode_needed)
        return None

    async def _weaken(self, lock: HostLock, mode: Mode) -> None:
        """The strongest claim ended: hold no more than the others need. Holding more for a while is safe."""
        rest = next((o for i in lock.claims if (o := self.owners.get(i)) is not None), None)
        if rest is None or lock.held is None:
            return
        refused = await self.key_locks.holding((lock,), lock.held.convert(mode, self.note(rest)))
        if refused is None:
            self.book.converted(lock, mode)
        else:
            log.error("lock on %s stays %s: %s", lock.path, lock.mode.word, refused)

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
        """Why a lock protects nothing now: it could not be retaken, or its lockspace is lost; empty if it is held."""
        if lock.held is None:
            return lock.lost_reason or "it is not held"
        backend: object = self.backends.get(lock.backend)
        return backend.lost if isinstance(backend, MayBeLost) else ""

    def note(self, owner: Owner) -> OwnerNote:
        """The note that is written to lock files and leases, for people and for the next daemon."""
        libvirtd = owner.prepared.pid if owner.prepared is not None else 0
        return OwnerNote(owner.name, owner.pid, owner.process_id.start_ticks, libvirtd)

    def remember_incarnation(self, lockspace: str, state: str) -> None:
        """Keep a copy of this host's incarnation in the journal, beside the locks that depend on it."""
        self.book.remember(lockspace, state)

    def journal_lines(self, *, everybody: bool = False) -> list[jn.Line]:
        """The whole state as lines, to rewrite the journal; `everybody`: also owners that hold nothing."""
        return self.book.lines(self.lockspaces, self.owners, everybody=everybody)


def _another_disk(want: AcquireRequest) -> Refused:
    return Refused(
        reason=f"disk '{want.resource.name}' can't be shown to be the file that the asking user may open: its path leads to "
        "another one by now, or its lock is known by its name only; root may ask for it"
    )

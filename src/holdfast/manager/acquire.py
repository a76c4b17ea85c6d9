"""How a lock is acquired: the order of the steps, and what refuses one.

key lock on the name ─ open ─ compare keys with what this host holds ─ key locks on the keys ─ take the lock
─ enter it in the table ─ journal ─ answer. The caller is `lock_manager`.

A refusal is an exception of the `errors` tree; backends return failed storage, which is raised as one here.
"""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from holdfast.backends.base import (
    Candidate,
    Creation,
    HeldElsewhere,
    LeftBehind,
    RefusesNew,
    Stale,
    knows_writers,
)
from holdfast.errors import (
    DiskNotKnown,
    HoldfastError,
    LockspaceNotDirectory,
    LockspaceUnknown,
    NameRefused,
    OwnerGone,
    ProtectionTooWeak,
    Refused,
    ResourceBusy,
    StorageFailed,
    storage_failed,
)
from holdfast.manager import events as ev
from holdfast.manager.arrivals import Arrivals
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.lock_state import LockState, note_of
from holdfast.manager.lock_table import Conflict, Convert, Key
from holdfast.manager.lost_locks import LostLocks
from holdfast.manager.migration_roles import ran_before
from holdfast.manager.owners import Owner
from holdfast.manager.prepared_locks import PreparedLocks
from holdfast.manager.release import LockReleaser
from holdfast.manager.routing import Route
from holdfast.model import HOST_LOCKSPACE, AcquireRequest, Mode, Resource
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.system.libvirt.domains import DomainStatus
from holdfast.system.logs.log_limit import LimitedLog

log = logging.getLogger(__name__)

refused_users = LimitedLog(log)
"""Logged refusals to users other than root, who can ask in a loop; each refusal is an event all the same."""

REOPEN_ATTEMPTS_MAX = 100
"""How often a lock file may vanish between open and lock before that is an error: each time needs another release."""
OnLeftBehind = Callable[[str, str], Awaitable[None]]
"""Called with backend and lease; raises a `LockError` while the answer is not known."""


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


class AcquiresIdentities(Protocol):
    """The second locks of disks, by what they are (`identity_locks`)."""

    async def acquire(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """Acquire a disk by its identity and by its path."""


class LockAcquirer:
    """Acquires locks. Everything runs on one event loop."""

    def __init__(
        self,
        state: LockState,
        *,
        releaser: LockReleaser,
        prepared: PreparedLocks,
        lost: LostLocks,
        arrivals: Arrivals,
        domains: DomainStatus | None,
        end: Callable[[Owner], None],
        is_closing: Callable[[], bool],
    ) -> None:
        """`end` is called for an owner whose process has ended; `is_closing`: whether the daemon is going down."""
        self._state = state
        self._routing = state.routing
        self._lockspaces = state.lockspaces
        self._table = state.table
        self._key_locks = state.key_locks
        self._owners = state.owners
        self._book = state.book
        self._events = state.events
        self._descriptions = state.descriptions
        self._hashed = state.hashed
        self._repeated = state.repeated
        self._unknown = state.unknown
        self._releaser = releaser
        self._prepared = prepared
        self._lost = lost
        self._arrivals = arrivals
        self._domains = domains
        self._end = end
        self._is_closing = is_closing
        self.on_left_behind: OnLeftBehind = _can_not_be_found_out
        """Finds out for whom this host holds a lease that no lock here accounts for: it is held or free afterwards."""
        self.identities: AcquiresIdentities | None = None
        """Acquires what disks are with their paths (`identity_locks`); None: only paths count."""

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
                self._lockspaces.check_name(resource)
                await self._lockspaces.need(resource.lockspace, make=True)
            if await self._releaser.is_held_by_other_rules(owner, want):
                await self._await_release(owner, resource)
            outcome = await self._arrivals.tries(
                owner, lambda: self._acquire_all(owner, want), lambda: self._releaser.awaits_qemu(resource)
            )
            for prepared in self._prepared.asked(owner, resource) if owner.unasked and not by_hook else ():
                if self._state.claimed(owner, prepared) is not None:
                    await self._releaser.release(owner, prepared)
            return outcome is Outcome.ACQUIRED
        except HoldfastError as error:
            if not isinstance(error, COMPLETE_REFUSALS) and resource.lockspace != HOST_LOCKSPACE:
                holders = error.holders if isinstance(error, ResourceBusy) else ()
                error.add(await self._hashed.words(owner, want, holders))
            self.report_refusal(owner, want, error)
            raise

    async def _await_release(self, owner: Owner, resource: Resource) -> None:
        """Before the owner gets another lock in place of one that it gives up, requests under that one have to end."""
        releaser = self._releaser
        if not await self._arrivals.qemu_answers(lambda: not releaser.is_held_back(owner, resource)):
            raise Refused(
                reason=f"the rules name another lock for {resource.name} by now, and QEMU has not answered since the VM "
                "stopped: requests may be under way. Resume it again when its storage answers"
            )

    def report_refusal(self, owner: Owner, want: AcquireRequest, error: HoldfastError) -> None:
        """An event, and a line of the log: users' own refusals are logged with a limit."""
        resource = want.resource
        holders = error.holders if isinstance(error, ResourceBusy) else ()
        self._events.emit(ev.REFUSED, owner.name, owner.pid, resource, want.mode, str(error))
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
            if resource in self._key_locks.on:
                await self._key_locks.wait(resource)
            elif (lock := self._table.named(resource)) is not None:
                done = await self._acquire_known(owner, want, lock)
            elif want.hashed is not None and (lock := self._table.named(want.hashed)) is not None:
                # It was taken by a daemon that named leases by hashes: the disk is in use, under another lease.
                done = await self._acquire_known(
                    owner, want._replace(resource=want.hashed, hashed=None), lock
                )
            else:
                done = await self._key_locks.holding((resource,), self._acquire_new(owner, want))
        return done

    def acquire_nowait(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """The common case in one step, without waiting: a disk that this host does not know, whose lock is free.

        RETRY: nothing has changed, and `acquire_waiting` has to decide.
        """
        resource = want.resource
        if self._key_locks.on or owner.gone or want.create or resource.lockspace or want.only is not None:
            return Outcome.RETRY
        if owner.unasked:
            return Outcome.RETRY
        route = self._routing.route(resource)
        if route.min_at_start or self._table.named(resource) is not None:
            return Outcome.RETRY
        taken = route.backend.take_nowait(resource, want.mode)
        if taken is None:
            return Outcome.RETRY
        keys, held = taken
        if self._table.knows_none(keys):
            try:
                self._book.enter(owner, want, route.backend, keys, held)
            except OSError as e:
                log.debug("%s goes the long way: %s", resource, e)
            else:
                return Outcome.ACQUIRED
        held.release_nowait()
        return Outcome.RETRY

    async def _acquire_new(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """Acquire a name that no lock has."""
        route = self._routing.route(want.resource, want.path)
        if owner.process is None and owner.prepared is None and route.backend.capabilities.fenced:
            raise Refused(
                reason=f"process {owner.pid} is not visible to holdfastd (another PID namespace?): the owner of a lease "
                "must be one that can be stopped when the lease is lost"
            )
        create = Creation.NONE
        if want.create:
            create = Creation.TEMPORARY
        elif want.resource.lockspace and self._lockspaces.made_on_demand(want.resource.lockspace):
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
        if self._key_locks.on and (busy := self._key_locks.first_taken(keys)) is not None:
            await candidate.abandon()
            await self._key_locks.wait(busy)
            return Outcome.RETRY
        if keys and (twin := self._table.of_lock_file(keys[0])) is not None:
            await candidate.abandon()
            self._table.learn(twin, keys)
            return await self._acquire_known(owner, want, twin)
        others = self._table.in_the_way(owner.id, want.mode, keys=keys)
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
        outcome = await self._key_locks.holding(
            keys, candidate.take(want.mode, note_of(owner, want.resource, want.mode))
        )
        if isinstance(outcome, Stale):
            return Outcome.RETRY
        if isinstance(outcome, LeftBehind):
            await self.on_left_behind(route.backend.name, outcome.lease)
            return Outcome.RETRY
        if isinstance(outcome, HeldElsewhere):
            holders = self._descriptions.with_programs(outcome.holders)
            raise ResourceBusy(want.resource, holders, cause=outcome.cause)
        if isinstance(outcome, IoFailed):
            raise storage_failed(outcome)
        if owner.gone:
            await outcome.release()
            raise OwnerGone(pid=owner.pid, name=want.resource.name)
        try:
            self._book.enter(owner, want, route.backend, keys, outcome)
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
        if self._key_locks.on and (busy := self._key_locks.first_taken((lock, *lock.keys))) is not None:
            await self._key_locks.wait(busy)
            return Outcome.RETRY
        held_back = self._releaser.held_back
        is_taken_back = held_back is not None and held_back.has(owner, want.resource)
        if held_back is not None and is_taken_back and not held_back.takes_back(owner, want.resource):
            raise Refused(
                reason=f"{want.resource.name} was released while its lockspace was lost, and QEMU has not answered since: "
                "requests of the VM may still be under way"
            )
        if lock.held is None:
            if not await self._lost.regain(lock):
                raise ResourceBusy(
                    want.resource, self._descriptions.holders(lock), note=f"; {lock.lost_reason}"
                )
            return Outcome.RETRY
        decision = self._table.decide(lock, owner.id, want.resource, want.mode)
        is_new = asks = True
        match decision:
            case Conflict(others):
                await self._make_way(owner, want, others, lock.keys)
                return Outcome.RETRY
            case Convert(mode) if mode > lock.mode:
                await self._strengthen(owner, want, lock, mode)
                asks = False
            case _ if (owner.id, want.resource) in lock.departing:
                # Its migration failed, and libvirt asks for what it released: a claim like any other, if the lock is held.
                if why := self._state.why_lost(lock):
                    raise Refused(reason=f"{want.resource.name} can't be used now: {why}")
            case _ if lock.claims.get(owner.id, {}).get(want.resource) is want.mode:
                if want.mode is Mode.EXCLUSIVE and not is_taken_back:
                    self._repeated.question(
                        owner,
                        want.resource,
                        lambda: self._descriptions.holder(owner.id, want.resource, lock.keys, lock),
                    )
                is_new = False
        if (
            owner.id not in lock.claims
            and isinstance(lock.held, RefusesNew)
            and (why := lock.held.refuses_new())
        ):
            raise Refused(reason=f"{want.resource.name} can't have another owner now: {why}")
        if asks:
            await self._ask_again(owner, want, lock)
        if not is_new:
            return Outcome.UNCHANGED  # one hold, whatever the number of acquires
        try:
            self._book.claim(owner, want, lock, converted=isinstance(decision, Convert))
        except OSError as e:
            raise Refused(reason=f"the journal can't record a claim: {e.strerror}; free space for it") from e
        if isinstance(decision, Convert) and decision.mode < lock.mode:
            await self._releaser.weaken(lock, decision.mode)
        return Outcome.ACQUIRED

    async def _ask_again(self, owner: Owner, want: AcquireRequest, lock: HostLock) -> None:
        """Ask a lock that other hosts may share whether this owner may write now; raises if it may not."""
        held: object = lock.held
        if not knows_writers(held):
            return
        note = note_of(owner, want.resource, want.mode)
        refused = await self._key_locks.holding((lock, *lock.keys), held.ask_again(want.mode, note))
        if isinstance(refused, HeldElsewhere):
            raise ResourceBusy(want.resource, self._descriptions.with_programs(refused.holders))
        if isinstance(refused, IoFailed):
            raise storage_failed(refused)
        if owner.gone:
            held.owner_left(note)
            raise OwnerGone(pid=owner.pid, name=want.resource.name)

    async def _strengthen(self, owner: Owner, want: AcquireRequest, lock: HostLock, mode: Mode) -> None:
        assert lock.held is not None
        things = (lock, *lock.keys)
        refused = await self._key_locks.holding(
            things, lock.held.convert(mode, note_of(owner, want.resource, mode))
        )
        if isinstance(refused, HeldElsewhere):
            holders = self._descriptions.with_programs(refused.holders)
            raise ResourceBusy(want.resource, holders, cause=refused.cause)
        if isinstance(refused, IoFailed):
            raise storage_failed(refused)
        self._book.converted(lock, mode)
        if owner.gone:  # its claims on this lock are being released, and the lock with them
            raise OwnerGone(pid=owner.pid, name=want.resource.name)

    async def _make_way(
        self, owner: Owner, want: AcquireRequest, others: Iterable[int], keys: Sequence[Key]
    ) -> None:
        """Refuse, unless a conflicting owner has ended without its end being reported yet, or is unknown and proves to be
        the asking owner or to be over. After that the state must be read again.

        While the daemon is going down no owner's end counts: the same state would be read for ever (seed 107002195).
        """
        if self._is_closing():
            raise self._busy(want, others, keys)
        dead = [o for i in others if (o := self._owners.get(i)) is not None and not o.gone and not o.alive()]
        if dead:
            for each in dead:
                self._end(each)
            return
        if self._prepared.started(owner):
            return
        if len(self._unknown):
            claimed = {lock for i in others for lock in self._table.of_owner(i)}
            for lock in claimed:
                its_own = self._table.named(want.resource) is lock or keys[:1] == lock.keys[:1] != ()
                if not its_own and set(keys).isdisjoint(lock.keys):
                    continue
                if await self._unknown.adopt(owner, want.resource, lock, is_of_disk_only=not its_own):
                    return
        raise self._busy(want, others, keys)

    def _busy(self, want: AcquireRequest, others: Iterable[int], keys: Sequence[Key]) -> ResourceBusy:
        return ResourceBusy(
            want.resource, [self._descriptions.holder(i, want.resource, keys) for i in others]
        )


def _another_disk(want: AcquireRequest) -> Refused:
    return Refused(
        reason=f"disk '{want.resource.name}' can't be shown to be the file that the asking user may open: its path leads to "
        "another one by now, or its lock is known by its name only; root may ask for it"
    )

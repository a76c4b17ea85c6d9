"""Locks of guests that migrate away: released by libvirt, and held until the migration is over.

libvirt sends RELEASE at the switch-over, and nothing more if the target dies before the source's QEMU has handed over;
then the guest continues here (`migration_roles`). So the RELEASE is answered, as libvirt expects, and the claim stays, as a
*departing* one, in table and journal:

    RELEASE ─ departing ─┬─ the status file says that the guest has left ─ released
                         ├─ … that it runs on here, or ACQUIRE          ─ a claim like any other again
                         └─ QEMU ends                                   ─ released

The target waits for that (`arrivals`). A target with another lock manager asks once, maybe too early, so with
`migration_peers = "any"` the lock is *lent*: released at RELEASE, and taken back when the guest continues here. If it has
another holder by then, `on_refused` acts on the VM.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from holdfast.backends.base import Held, knows_writers
from holdfast.control.api import MIGRATION_PROBLEM
from holdfast.errors import LockError
from holdfast.manager import events as ev
from holdfast.manager.events import Events
from holdfast.manager.key_locks import KeyLocks
from holdfast.manager.lock_registry import HostLock, LockRegistry
from holdfast.manager.lock_table import LockTable
from holdfast.manager.migration_roles import Outcome, has_left, holds_back, not_understood, outcome, stands
from holdfast.manager.owners import Owner, Owners
from holdfast.model import AcquireRequest, Mode, Resource
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.libvirt.domains import Domain, DomainStatus, WatchedStatus

log = logging.getLogger(__name__)

READ_S = 0.1
"""Between two reads of departing guests' status files, in case a change was missed; changes are handled at once."""
WORDS_KEPT_MAX = 10
"""Unknown words of status files that are remembered: a newer libvirt has a few."""

GiveUp = Callable[[Owner, HostLock, Resource], Awaitable[None]]
Acquire = Callable[[Owner, AcquireRequest], Awaitable[bool]]


async def _nobody_acts(_: Owner, __: str) -> None:
    """The default until the daemon is built."""


def _no_news() -> None:
    """Stops a subscription that does not exist."""


class Departures:
    """Claims of guests that migrate away. `give_up` ends a claim, `acquire` takes a lock, `idle` forgets an owner without
    either; `lends` is `migration_peers = "any"`.
    """

    def __init__(
        self,
        *,
        table: LockTable[Held],
        key_locks: KeyLocks,
        owners: Owners,
        book: LockRegistry,
        events: Events,
        clock: Clock,
        domains: DomainStatus | None,
        give_up: GiveUp,
        acquire: Acquire,
        idle: Callable[[Owner], None],
        is_closing: Callable[[], bool],
        lends: bool = False,
    ) -> None:
        self._table = table
        self._key_locks = key_locks
        self._owners = owners
        self._book = book
        self._events = events
        self._clock = clock
        self._domains = domains
        self._give_up = give_up
        self._acquire = acquire
        self._idle = idle
        self._is_closing = is_closing
        self._lends = lends
        self._claims: dict[tuple[int, Resource], HostLock] = {}
        """The departing ones; an entry whose claim departs no more is dropped at the next read."""
        self._to_stop: set[int] = set()
        """Owners that migrate away, with locks that were found for them: their RELEASE may have come before that."""
        self._watching = False
        self.on_refused: Callable[[Owner, str], Awaitable[None]] = _nobody_acts
        """Acts, by `on_lockfailure`, on a VM that continues here while the lock that it lent has another holder."""
        self.not_understood: dict[str, str] = {}
        """By VM: words of its status file that are not known, for as long as this daemon runs."""

    def problems(self) -> list[str]:
        """Messages for operators: VMs with migration states that this version does not understand."""
        return [
            f"{MIGRATION_PROBLEM}{name} had the {words}, which this version does not know: its locks are let go when "
            "libvirt releases them, and stay gone if the migration fails"
            for name, words in self.not_understood.items()
        ]

    def __len__(self) -> int:
        return sum(len(lock.departing) for lock in self._table)

    # --- a RELEASE ---

    def holds_back(self, owner: Owner, lock: HostLock, resource: Resource) -> bool:
        """Whether this RELEASE is answered while the claim stays for now."""
        if self._domains is None or owner.unknown is not None:
            return False
        domain = self._status_of(owner)
        departs = (owner.id, resource) in lock.departing
        if not (holds_back(domain) or (departs and domain is None)):
            return False
        if departs:
            return True
        held: object = lock.held
        if self._lends and not knows_writers(held):
            self._book.lends(owner, lock, resource)
            log.info("%s lets go of %s for its migration, until the guest runs on here", owner, resource)
            self._watch()
            return False
        self._book.departs(owner, lock, resource)
        about = ev.logged(ev.DEPARTING, owner.name, resource)
        log.info("%s released %s for its migration: held until that is over", owner, resource, extra=about)
        self._claims[owner.id, resource] = lock
        self._watch()
        return True

    def go_with(self, owner: Owner, resources: Iterable[Resource]) -> None:
        """libvirt stops a guest for its migration: what it never releases is held on like the rest, and never lent."""
        for resource in resources:
            lock = self._table.named(resource)
            if lock is None or resource not in lock.claims.get(owner.id, {}):
                continue
            if (owner.id, resource) not in lock.departing:
                self._book.departs(owner, lock, resource)
            self._claims[owner.id, resource] = lock
        if self._claims:
            self._watch()

    def _status_of(self, owner: Owner) -> Domain | None:
        assert self._domains is not None
        domain = self._domains.look(owner.name.name, owner.name.uuid, owner.pid)
        if words := not_understood(domain):
            name = owner.name.name
            if self.not_understood.get(name) != words and len(self.not_understood) < WORDS_KEPT_MAX:
                self.not_understood[name] = words
                log.error(
                    "libvirt's status file of %s has the %s, which is not known: its locks are not held "
                    "over a failed migration",
                    name,
                    words,
                )
        return domain

    # --- after a restart ---

    def have_left(self, lock: HostLock) -> bool:
        """Whether every guest with a claim on a lock has left this host, so that the lock may be released; False without a
        claim.
        """
        if self._domains is None or not lock.claims:
            return False
        owners = [self._owners.get(owner_id) for owner_id in lock.claims]
        return all(
            owner is not None and owner.unknown is None and has_left(self._status_of(owner))
            for owner in owners
        )

    def restore(self, lent: dict[tuple[int, Resource], tuple[Mode, bool]]) -> None:
        """Watch departing and lent claims of the journal again; their locks are in the table.

        A guest that has stopped for its migration was released, although no daemon may have run to receive that.
        """
        if self._domains is None:
            return
        for owner in self._owners:
            self._depart_if_it_stands(owner)
        self._claims = {claim: lock for lock in self._table for claim in lock.departing}
        self._book.lent.update(
            {key: how for key, how in lent.items() if self._owners.get(key[0]) is not None}
        )
        if self._claims or self._book.lent:
            self._watch()
            self.read()

    def found(self, owner: Owner) -> None:
        """A lock was found held for an owner by its note, not by the journal: its RELEASE may have been answered before
        storage or the journal was lost.
        """
        if self._domains is None:
            return
        if self._depart_if_it_stands(owner):
            self._watch()
        elif holds_back(self._status_of(owner)):
            # It is still to stop, or has just stopped and its RELEASE came before the lock was found.
            self._to_stop.add(owner.id)
            self._watch()

    def _has_stopped(self, owner: Owner) -> bool:
        """Whether a guest that was to stop for its migration has stopped, and departs now, or does not migrate any more."""
        return self._depart_if_it_stands(owner) or not holds_back(self._status_of(owner))

    def _depart_if_it_stands(self, owner: Owner) -> bool:
        """Marks all claims of a guest that has stopped for its migration as departing; whether it has."""
        locks = self._table.of_owner(owner.id)
        if not locks or owner.unknown is not None or not stands(self._status_of(owner)):
            return False
        for lock in locks:
            for name in lock.claims[owner.id]:
                if (owner.id, name) not in lock.departing:
                    self._book.departs(owner, lock, name)
                self._claims[owner.id, name] = lock
        return True

    def lends_for(self, owner: Owner) -> bool:
        """Whether an owner must be kept although it may hold nothing: it may take back what it lent."""
        return any(owner_id == owner.id for owner_id, _ in self._book.lent)

    # --- until it is over ---

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            eager_tasks.start(self._watched())

    async def _watched(self) -> None:
        news = self._domains
        stop: Callable[[], None] = news.watch(self.read) if isinstance(news, WatchedStatus) else _no_news
        try:
            while not self._is_closing() and (self._claims or self._book.lent or self._to_stop):
                await self._clock.sleep(READ_S)
                self.read()
        finally:
            stop()
            self._watching = False

    def read(self, name: str = "") -> None:
        """Read the status of the departing guests, or of the one of that name, and act on it."""
        if self._is_closing():
            return
        for owner_id in list(self._to_stop):
            owner = self._owners.get(owner_id)
            if owner is None or owner.gone or self._has_stopped(owner):
                self._to_stop.discard(owner_id)
        for (owner_id, resource), lock in list(self._claims.items()):
            if (owner_id, resource) not in lock.departing:
                del self._claims[owner_id, resource]
        seen: dict[int, Outcome] = {}
        for owner_id, resource in [*self._claims, *self._book.lent]:
            owner = self._owners.get(owner_id)
            if owner is None:
                self._book.lent_is_over(owner_id, resource)
                continue
            if owner.gone or (name and owner.name.name != name):
                continue
            if owner_id not in seen:
                seen[owner_id] = outcome(self._status_of(owner))
            if (owner_id, resource) in self._book.lent:
                self._settle_lent(owner, resource, seen[owner_id])
            else:
                self._settle(owner, self._claims[owner_id, resource], resource, seen[owner_id])

    def _settle(self, owner: Owner, lock: HostLock, resource: Resource, seen: Outcome) -> None:
        if seen is Outcome.GONE:
            eager_tasks.start(self._let_go(owner, lock, resource))
        elif seen is Outcome.STAYED:
            self._book.stayed(owner, lock, resource)
            about = ev.logged(ev.STAYED, owner.name, resource)
            log.warning(
                "%s runs on here: its migration failed, and %s was never given up",
                owner,
                resource,
                extra=about,
            )

    async def _let_go(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
        while self._key_locks.is_locked(lock):
            await self._key_locks.wait(lock)
        if (owner.id, resource) in lock.departing and not self._is_closing():
            self._book.asked(owner, resource)
            await self._give_up(owner, lock, resource)

    # --- lent ---

    def _settle_lent(self, owner: Owner, resource: Resource, seen: Outcome) -> None:
        lock = self._table.named(resource)
        is_ours = lock is not None and resource in lock.claims.get(owner.id, {})
        if seen is Outcome.OPEN and not is_ours:
            return
        mode, create = self._book.lent[owner.id, resource]
        self._book.lent_is_over(owner.id, resource)
        if seen is Outcome.STAYED and not is_ours:
            eager_tasks.start(self._take_back(owner, AcquireRequest(resource, mode, create)))
        else:
            self._idle(owner)

    async def _take_back(self, owner: Owner, want: AcquireRequest) -> None:
        try:
            await self._acquire(owner, want)
        except LockError as error:
            about = ev.logged(ev.LOCK_LOST, owner.name, want.resource)
            log.critical(
                "LOCK LOST: %s runs on here after a failed migration, and %s can't be taken back: %s",
                owner,
                want.resource,
                error,
                extra=about,
            )
            self._events.emit(ev.LOCK_LOST, owner.name, owner.pid, want.resource, want.mode, str(error))
            domain = self._status_of(owner)
            await self.on_refused(owner, domain.on_lockfailure if domain is not None else "")
            return
        about = ev.logged(ev.LOCK_REGAINED, owner.name, want.resource)
        log.warning(
            "%s runs on here: its migration failed, and %s was taken back", owner, want.resource, extra=about
        )
        self._events.emit(ev.LOCK_REGAINED, owner.name, owner.pid, want.resource, want.mode)

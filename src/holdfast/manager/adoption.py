"""Adoption after a restart: every lock of the last daemon is held again, or reported as lost.

The journal says who owned what. Owners that have ended are forgotten. The claims of the living go into the lock table at
once, so that no other owner of this host can take the locks; then each lock is held again: by its own descriptor if one was
kept (it was never released), else by taking it again.

A journal that is missing, damaged or of another version (`SavedState.is_whole`) may prove that a lock was held, never that
it was not. Then an owner whose process is not found, and a claim without an owner, become *unknown* instead of ended
(`unknown_locks`), and no lock that was found held is released.

A lock that can't be retaken is *lost*: the log and an event report it, `holdfast status` shows it, and
* it certainly has another holder: the owner gets the configured action, for two may be writing;
* that is not known (storage silent, file gone): the daemon keeps trying, and touches no VM because of its own doubt.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping

from holdfast.backends.base import why_weaker
from holdfast.manager import events as ev
from holdfast.manager.journal_replay import SavedOwner, SavedState
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.lock_state import note_of
from holdfast.manager.owners import Evidence, Owner
from holdfast.model import LockFailureAction, OwnerName, ProcessId, Resource
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.host.process import Processes
from holdfast.system.libvirt.virsh import DomainControl

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Between attempts to retake a lost lock: often enough after storage recovers, seldom enough for an idle host."""
ADOPTION_WAIT_S = 10.0
"""How long the start waits for slow storage before it serves requests; the rest continues in the background."""

BEGUN_AT_ONCE = 100
"""So many locks are begun with before the event loop gets a turn: clients connect meanwhile."""


async def _at_once() -> None:
    return None


class Recovery:
    """Adopts owners and locks of the last daemon."""

    def __init__(
        self,
        manager: LockManager,
        *,
        processes: Processes,
        clock: Clock,
        domains: DomainControl,
        on_lock_lost: LockFailureAction,
    ) -> None:
        self._manager = manager
        self._processes = processes
        self._clock = clock
        self._domains = domains
        self._on_lock_lost = on_lock_lost
        self.connected: Mapping[tuple[int, int], int] = {}
        """By number and pid of the owner: how many connections of sanlock's clients have outlived the last daemon."""
        self._pending = 0
        self._retrying = False
        self._acted: set[int] = set()

    def owners(self, state: SavedState) -> dict[int, Owner]:
        """Restores the journal's owners that live or may; an owner that was never visible lives by its connections."""
        living: dict[int, Owner] = {}
        self._manager.owners.reserve(
            [*state.owners, *(i for lock in state.locks.values() for i in lock.claims)]
        )
        for saved in state.owners.values():
            owner = self._owner(state, saved)
            if owner is not None:
                owner.journaled = True
                self._manager.book.had_locks(owner.process_id)
                owner.until_closed = saved.until_closed
                owner.unasked = dict(saved.unasked)
                owner.persistent = set(saved.persistent)
                if saved.registered:
                    owner.clients = self.connected.get((saved.id, saved.process.pid), 0)
                    owner.connections += owner.clients
                owner.registered = saved.registered and (owner.process is not None or owner.clients > 0)
                owner.wishes, owner.holds = saved.wishes, dict(saved.holds)
                owner.family = self._manager.owners.family(saved.family)
                living[saved.id] = owner
        for lock in state.locks.values():
            for owner_id in lock.claims:
                if owner_id not in state.owners and owner_id not in living:
                    evidence = Evidence(why=state.doubt or "the journal doesn't say whose it is")
                    owner = self._manager.unknown.owner(OwnerName(""), evidence, owner_id=owner_id)
                    owner.journaled = (
                        True  # from the next rewriting on, which comes before requests are served
                    )
                    living[owner_id] = owner
        return living

    def _owner(self, state: SavedState, saved: SavedOwner) -> Owner | None:
        """None if it is proven that it has ended."""
        if saved.prepared is not None and state.is_whole:
            return self._manager.prepared.restored(saved.name, saved.prepared, owner_id=saved.id)
        if saved.keeps_orphans:
            return self._manager.owners.add_orphan_keeper(saved.name, owner_id=saved.id)
        was_unknown = state.unknown.get(saved.id)
        process = self._processes.open(saved.process.pid) if saved.process.start_ticks else None
        if process is not None and process.id != saved.process:
            process.close()
            process = None
        if process is not None:
            return self._manager.owners.add(saved.process.pid, saved.name, process, owner_id=saved.id)
        if saved.registered and self.connected.get((saved.id, saved.process.pid)):
            # The process has ended; a descendant has its connection open.
            return self._manager.owners.add(saved.process.pid, saved.name, None, owner_id=saved.id)
        doubtful = saved.prepared is not None or (saved.process.start_ticks and not state.is_whole)
        if was_unknown is not None or doubtful:
            evidence = Evidence(
                why=was_unknown.why if was_unknown is not None else state.doubt,
                process=saved.process if saved.process.pid > 0 else None,
                unseen=was_unknown is not None and was_unknown.unseen,
            )
            return self._manager.unknown.owner(saved.name, evidence, owner_id=saved.id)
        if saved.persistent:
            return self._manager.owners.add_orphan_keeper(saved.name, owner_id=saved.id)
        if saved.process.start_ticks and not saved.until_closed:
            return None
        # An ended owner that kept locks for its descendants is restored: `owner_ended` decides.
        return self._manager.owners.add(saved.process.pid, saved.name, None, owner_id=saved.id)

    def unseen(self, owner: Owner) -> None:
        """Handles an owner that was never visible and has no connection left: nothing here proves that it has ended."""
        evidence = Evidence(
            why=f"process {owner.pid} is not visible to holdfastd, and its connection was not kept over the restart",
            process=owner.process_id,
            unseen=True,
        )
        self._manager.unknown.becomes(owner, evidence)

    async def locks(
        self,
        state: SavedState,
        living: Mapping[int, Owner],
        descriptors: Mapping[int, int],
        ready: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        """Hold again every lock with a living owner; release those of the dead. `ready`: called once claims are known."""
        manager = self._manager
        restored = []
        for saved in state.locks.values():
            claimants = [i for i, names in saved.claims.items() if _still_claims(living.get(i), names)]
            restored.append((saved, manager.lost.restore(saved, claimants or list(saved.claims)), claimants))
        await ready()
        for number, (saved, lock, claimants) in enumerate(restored, 1):
            if not number % BEGUN_AT_ONCE:
                await self._clock.sleep(0)
            if claimants and not lock.claims:
                # Its last owner ended while we waited; storage does not know yet.
                lock, claimants = manager.lost.restore(saved, list(saved.claims)), []  # noqa: PLW2901
            self._pending += 1
            ended = {state.owners[i].process for i in saved.claims if i in state.owners}
            eager_tasks.start(
                self._adopt(lock, descriptors.get(lock.id), ended if not claimants else None),
                lambda _: self._adopted(),
            )
        waited = 0.0
        while self._pending and waited < ADOPTION_WAIT_S:
            await self._clock.sleep(0.05)
            waited += 0.05
        if self._pending:
            log.error(
                "%d locks are still being retaken: their storage is slow; serving others meanwhile",
                self._pending,
            )

    def _adopted(self) -> None:
        self._pending -= 1

    async def _adopt(self, lock: HostLock, fd: int | None, ended: Collection[ProcessId] | None) -> None:
        """Hold one lock again. `ended`: the processes that had it, if all of them have ended."""
        manager = self._manager
        over = ended is not None or (bool(lock.departing) and manager.departures.have_left(lock))
        owners = [manager.owners.get(owner_id) for owner_id in lock.claims]
        gone = {*(ended or ()), *(owner.process_id for owner in owners if owner is not None)}
        regained = await manager.lost.regain(lock, fd)
        if regained:
            await manager.unknown.read_note(lock)
            if manager.doubt:
                await manager.unknown.read_whether_it_persists(lock)
                if not over:
                    await manager.unknown.hold_for_noted(lock)
        if over or (not regained and manager.departures.have_left(lock)):
            # Held for a moment, so that its release removes the lock file as usual.
            kept = regained and await manager.unknown.keep_for_noted(lock, gone)
            if not kept and lock.claims:  # else its guest ended meanwhile, and it went with it
                await manager.lost.drop(lock)
        elif not regained or why_weaker(lock.held):
            self.lost(lock)

    def lost(self, lock: HostLock) -> None:
        """Log and announce a lost lock, act if another holder is certain, and keep trying. One that is held and less than
        its claims need is announced alike; no VM is touched for it.
        """
        what, why = ("LOCK LOST", lock.lost_reason)
        if lock.held is not None:
            what, why = ("LOCK IN DOUBT", why_weaker(lock.held))
        for owner_id in list(lock.claims):
            owner = self._manager.owners.get(owner_id)
            if owner is None:
                continue
            for resource, mode in lock.claims[owner_id].items():
                about = ev.logged(ev.LOCK_LOST, owner.name, resource)
                log.critical("%s: %s of %s: %s", what, resource, owner, why, extra=about)
                self._manager.events.emit(
                    ev.LOCK_LOST,
                    owner=owner.name,
                    pid=owner.pid,
                    resource=resource,
                    mode=mode,
                    detail=why,
                )
            # Of an unknown owner nothing is certain, so no process is touched for it.
            if lock.lost_for_certain and owner.unknown is None and owner.id not in self._acted:
                self._acted.add(owner.id)
                eager_tasks.start(self.act(owner))
        if not self._retrying:
            self._retrying = True
            eager_tasks.start(self._retry())

    async def act(self, owner: Owner, wanted: str = "") -> None:
        """Stop a VM from writing whose lock has another holder. `wanted`: the action in the VM's definition, or empty."""
        action = self._on_lock_lost
        if wanted in (LockFailureAction.PAUSE.value, LockFailureAction.POWEROFF.value):
            action = LockFailureAction(wanted)
        log.critical("%s: action on lock failure: %s", owner, action.value)
        if action in (LockFailureAction.POWEROFF, LockFailureAction.RESTART):
            self._manager.stop_owner(owner, "somebody else has its lock")
        elif action is LockFailureAction.PAUSE and owner.process is not None:
            if owner.name.uuid and await self._domains.suspend(owner.name.uuid):
                log.critical("%s is paused; 'virsh resume' takes its locks again", owner)
                return
            owner.signal(signal.SIGSTOP)
            log.critical(
                "%s is stopped by SIGSTOP; when the other user is gone: kill -CONT %d", owner, owner.pid
            )

    async def _retry(self) -> None:
        while not self._manager.closing:
            await self._clock.sleep(RETRY_S)
            lost = [
                lock
                for lock in self._manager.table
                if lock.claims and (lock.held is None or why_weaker(lock.held))
            ]
            if not lost:
                break
            for lock in lost:
                if lock.claims and not self._manager.key_locks.is_locked(lock):
                    was_certain = lock.lost_for_certain
                    if lock.held is not None:
                        if await self._strengthened(lock):
                            self.regained(lock)
                    elif await self._manager.lost.regain(lock):
                        self.regained(lock)
                    elif lock.lost_for_certain and not was_certain:
                        self.lost(lock)
        self._retrying = False

    async def _strengthened(self, lock: HostLock) -> bool:
        claims = ((self._manager.owners.get(owner_id), names) for owner_id, names in lock.claims.items())
        owner, resource = next(
            ((owner, next(iter(names))) for owner, names in claims if owner is not None and names),
            (None, None),
        )
        if owner is None or resource is None:
            return False
        return await self._manager.lost.strengthen(lock, note_of(owner, resource, lock.mode))

    def regained(self, lock: HostLock) -> None:
        """Log and announce a lost lock that is held again."""
        about = ev.logged(ev.LOCK_REGAINED, None, next(lock.names(), None))
        log.warning("lock on %s is held again", lock.path, extra=about)
        for owner_id, names in lock.claims.items():
            owner = self._manager.owners.get(owner_id)
            for resource, mode in names.items():
                self._manager.events.emit(
                    ev.LOCK_REGAINED,
                    owner=owner.name if owner else None,
                    pid=owner.pid if owner else 0,
                    resource=resource,
                    mode=mode,
                )


def _still_claims(owner: Owner | None, names: Collection[Resource]) -> bool:
    """Whether an owner of the journal still claims a lock under these names; a keeper has what was persistent alone."""
    if owner is None:
        return False
    return not owner.keeps_orphans or not owner.persistent.isdisjoint(names)

"""Carries out `supervision.escalation`: pauses, stops and kills the owners that depended on a lost lockspace.

One background task per lost lockspace. Owners are read from the lock table each time, so an owner whose locks were released
meanwhile (libvirt does that when a VM is paused, and they are once QEMU answers: `held_back_releases`) is left alone.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from holdfast.backends.paxos.names import is_lease
from holdfast.lease_admin.held_back_releases import HeldBackReleases
from holdfast.manager import events as ev
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Owner
from holdfast.model import LockFailureAction, OwnerName
from holdfast.supervision.escalation import Act, AllGone, Escalation, Kill, LadderAction, OutOfTime, Terminate
from holdfast.supervision.lockspace_news import Lost, UsersGone
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.libvirt.domains import DomainStatus
from holdfast.system.libvirt.virsh import DomainControl

log = logging.getLogger(__name__)

STEP_S = 0.2
"""Between two checks for remaining owners: five a second, as sanlock."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A lockspace that was lost, and the backends that depended on it."""

    news: Lost
    backends: Collection[str]

    @property
    def lockspace(self) -> str:
        return self.news.lockspace

    @property
    def reason(self) -> str:
        return self.news.reason


class LockspaceLoss:
    """Reacts to lost lockspaces. `actions`: `on_lockfailure` of each backend's table; `resets`: the backends with
    `on_loss = "reset"`; `report` gets `UsersGone` when all owners of a lost lockspace are gone.
    """

    def __init__(
        self,
        manager: LockManager,
        *,
        clock: Clock,
        domains: DomainControl,
        status: DomainStatus | None,
        actions: Mapping[str, LockFailureAction],
        resets: Collection[str] = (),
        report: Callable[[UsersGone], None],
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._domains = domains
        self._status = status
        self._actions = actions
        self._resets = frozenset(resets)
        self._report = report
        self.stop_client: Callable[[Owner, signal.Signals], bool] = lambda _, __: False
        """Stops a client of sanlock's protocol in its own way, in place of this signal; False if the owner is none."""
        self._losses: dict[str, Loss] = {}
        """By lockspace: those whose users are not all gone."""
        self._held_back = HeldBackReleases(
            manager,
            clock=clock,
            domains=domains,
            status=status,
            losses=self._losses.keys(),
            is_lease=lambda lock: is_lease(lock.keys),
            is_lost=self._is_lost,
            has_failed=self._has_failed,
        )
        manager.releaser.held_back = self._held_back
        self._marked: dict[str, set[str]] = {}
        """By lockspace: UUIDs of domains whose metadata says why they are paused."""

    def _has_failed(self, lock: HostLock) -> bool:
        """Whether its lease is not good now, although its loss may not have been reported yet."""
        backend = self._manager.routing.leases.get(lock.backend)
        return backend is not None and isinstance(backend.presence.membership(), NotAMember)

    def in_use(self, backends: Collection[str]) -> bool:
        """Whether a lock of these backends, the backends of one lockspace, has an owner that lives."""
        owners = self._manager.owners
        return any(
            self._may_be_of(lock, backends) and any(owners.get(i) is not None for i in lock.claims)
            for lock in self._manager.table
        )

    def users_beside_clients(self, backends: Collection[str]) -> list[str]:
        """Owners that depend on these backends, but for clients of sanlock's protocol and their orphans."""
        owners = {i for lock in self._manager.table if self._may_be_of(lock, backends) for i in lock.claims}
        found = [self._manager.owners.get(i) for i in sorted(owners)]
        return [str(each) for each in found if each is not None and not (each.clients or each.keeps_orphans)]

    def count(self, backends: Collection[str]) -> int:
        """Locks of these backends, the backends of one lockspace."""
        return sum(self._may_be_of(lock, backends) for lock in self._manager.table)

    def _may_be_of(self, lock: HostLock, backends: Collection[str]) -> bool:
        """Whether a lock's lease is in the lockspace of these backends. If its backend is in no table any more, or can't be
        made, it may be in any lockspace and counts for each: leaving a lockspace that a VM needs costs its disks.
        """
        if lock.backend in backends:
            return True
        return is_lease(lock.keys) and lock.backend not in self._manager.routing.leases

    def _is_lost(self, lock: HostLock) -> bool:
        return any(self._may_be_of(lock, loss.backends) for loss in self._losses.values())

    def lost(self, loss: Loss) -> None:
        """Act first, log second: a log call may block, so it must not precede the first step of the escalation."""
        self._losses[loss.lockspace] = loss
        lost = self._announce(loss)
        eager_tasks.start(self._recover(loss))
        for line, about in lost:
            log.critical("LEASE LOST: %s", line, extra=about)

    def joined(self, lockspace: str) -> None:
        """The lockspace is joined again: start the VMs that were stopped to be restarted."""
        self._losses.pop(lockspace, None)
        self._manager.events.emit(ev.LOCKSPACE_JOINED, detail=lockspace)
        for uuid in self._marked.pop(lockspace, set()):
            eager_tasks.start(self._domains.mark(uuid, ""), lambda _: None)
        for uuid, name in list(self._manager.book.restarts.get(lockspace, {}).items()):
            eager_tasks.start(self._start_again(lockspace, uuid, name))

    async def _start_again(self, lockspace: str, uuid: str, name: str) -> None:
        owner = OwnerName(name, uuid)
        if any(each.name.uuid == uuid and each.alive() for each in self._manager.owners):
            self._manager.book.restart_is_tried(lockspace, uuid)  # it never ended, or was started already
            return
        log.warning("starting %s again: lockspace %s is joined", name, lockspace)
        started = await self._domains.start(uuid)
        # Not before: if this daemon ends meanwhile, the next one starts it, and a second start does no harm.
        self._manager.book.restart_is_tried(lockspace, uuid)
        kind = ev.OWNER_RESTARTED if started else ev.OWNER_NOT_RESTARTED
        self._manager.events.emit(kind, owner=owner, detail=f"lockspace {lockspace} is joined")
        if not started:
            about = ev.logged(kind, owner)
            log.error(
                "%s was stopped for lockspace %s and can't be started again", name, lockspace, extra=about
            )

    def _announce(self, loss: Loss) -> list[tuple[str, dict[str, object]]]:
        """Emit the events, which only fills a bounded memory; returns the lines for the log."""
        lines = []
        self._manager.events.emit(ev.LOCKSPACE_LOST, detail=f"{loss.lockspace}: {loss.reason}")
        for owner in self._users(loss):
            for lock in self._manager.table.of_owner(owner.id):
                if self._may_be_of(lock, loss.backends):
                    for resource, mode in lock.claims[owner.id].items():
                        about = ev.logged(ev.LEASE_LOST, owner.name, resource)
                        lines.append((f"{resource} of {owner}: {loss.reason}", about))
                        self._manager.events.emit(
                            ev.LEASE_LOST, owner.name, owner.pid, resource, mode, loss.reason
                        )
        return lines

    def _users(self, loss: Loss) -> list[Owner]:
        found: dict[int, Owner] = {}
        for lock in self._manager.table:
            if self._may_be_of(lock, loss.backends):
                for owner_id in lock.claims:
                    owner = self._manager.owners.get(owner_id)
                    if owner is not None:
                        found[owner_id] = owner
        return list(found.values())

    def _action(self, loss: Loss, owner: Owner) -> LockFailureAction:
        """The action from libvirt's live XML, else from the backend's table. Only the table may say `ignore`. What a client
        of sanlock's protocol wants, it has said itself (`stop_client`).
        """
        if owner.registered:
            return LockFailureAction.POWEROFF
        configured = {
            self._configured(lock.backend)
            for lock in self._manager.table.of_owner(owner.id)
            if self._may_be_of(lock, loss.backends)
        }
        strictest = next(
            (a for a in LockFailureAction if a in configured and a is not LockFailureAction.IGNORE), None
        )
        domain = (
            self._status.look(owner.name.name, owner.name.uuid, owner.pid)
            if self._status is not None
            else None
        )
        wanted = domain.on_lockfailure if domain is not None else ""
        if wanted in ("pause", "poweroff", "restart"):
            return LockFailureAction(wanted)
        action = LockFailureAction.IGNORE
        if strictest is not None or not configured:
            action = strictest or LockFailureAction.PAUSE
        if wanted == LockFailureAction.IGNORE.value and action is not LockFailureAction.IGNORE:
            log.warning(
                "%s: its XML says on_lockfailure 'ignore', but only on_lockfailure = \"ignore\" in the [backend] table can "
                "say that, because the watchdog then resets this host: %s",
                owner,
                action.value,
            )
        return action

    def _configured(self, backend: str) -> LockFailureAction:
        """Of a backend's table; that of sanlock's clients has none, and says by itself."""
        if (action := self._actions.get(backend)) is not None:
            return action
        leases = self._manager.routing.leases.get(backend)
        return LockFailureAction.PAUSE if leases is None else leases.on_lockfailure

    async def _recover(self, loss: Loss) -> None:
        news = loss.news
        escalation = Escalation(news.timing, lost_at=news.lost_at, renewed_at=news.renewed_at)
        decided: dict[int, LockFailureAction] = {}
        met: dict[int, Owner] = {}
        while not self._manager.closing:
            users = {owner.id: owner for owner in self._users(loss)}
            met |= users
            for owner in users.values():
                if owner.prepared is not None:
                    # It has no process that could be stopped, and its VM gets no lock any more.
                    self._manager.prepared.give_up(owner)
                    decided[owner.id] = LockFailureAction.IGNORE
                elif owner.keeps_orphans:
                    self._manager.end_orphans(owner)  # there is nobody to be stopped, as in sanlock
                    decided[owner.id] = LockFailureAction.IGNORE
                elif not owner.alive():
                    self._manager.owner_ended(owner)  # its end is not reported yet
                elif owner.id not in decided:
                    decided[owner.id] = self._action(loss, owner)
            wanted = {i: decided.get(i, LockFailureAction.PAUSE) for i in users}
            for action in escalation.step(self._clock.now(), wanted):
                if isinstance(action, AllGone):
                    self._losses.pop(loss.lockspace, None)
                    log.warning("lockspace %s: nobody depends on it any more", loss.lockspace)
                    if not self._is_to_be_reset(loss, met.values()):
                        self._report(UsersGone(loss.lockspace))
                    return
                self._perform(loss, users, action)
            await self._clock.sleep(STEP_S)

    def _is_to_be_reset(self, loss: Loss, met: Iterable[Owner]) -> bool:
        """Whether the watchdog stays unfed, although the lockspace has no users any more.

        A process that has ended may have writes under way, in the page cache or on a path that hangs, and they would land
        after another host has taken over. A VM that is paused has none: QEMU has answered since (`held_back_releases`).
        """
        ended = [str(owner) for owner in met if not owner.alive()]
        if not ended or self._resets.isdisjoint(loss.backends):
            return False
        reason = (
            f"{', '.join(ended)} ended and may have writes under way: the watchdog resets this host (on_loss)"
        )
        self._manager.events.emit(ev.HOST_RESET_AWAITED, detail=f"{loss.lockspace}: {reason}")
        log.critical("lockspace %s: %s", loss.lockspace, reason)
        return True

    def _perform(self, loss: Loss, users: Mapping[int, Owner], action: LadderAction) -> None:
        match action:
            case Act(owner_id, what):
                self._act(loss, users[owner_id], what)
            case Terminate(owner_id):
                self._signal(users[owner_id], signal.SIGTERM)
            case Kill(owner_id):
                self._signal(users[owner_id], signal.SIGKILL)
            case OutOfTime(owner_ids):
                log.critical(
                    "lockspace %s: another host may take its leases over, and %s still run here",
                    loss.lockspace,
                    ", ".join(str(users[i]) for i in owner_ids),
                )
            case AllGone():
                pass
            case _:
                assert_never(action)

    def _act(self, loss: Loss, owner: Owner, action: LockFailureAction) -> None:
        self._manager.events.emit(
            ev.OWNER_STOPPED, owner=owner.name, pid=owner.pid, detail=f"{action.value}: lease lost"
        )
        if action is LockFailureAction.PAUSE and owner.name.uuid:
            eager_tasks.start(self._suspend(loss, owner))
        elif action is LockFailureAction.RESTART and owner.name.uuid:
            self._manager.book.owe_restart(loss.lockspace, owner.name.uuid, owner.name.name)
        about = ev.logged(ev.OWNER_STOPPED, owner.name)
        log.critical("%s: action on lock failure: %s", owner, action.value, extra=about)

    async def _suspend(self, loss: Loss, owner: Owner) -> None:
        """Pause the VM. libvirt releases its locks meanwhile; until QEMU has answered after that it is still a user."""
        uuid = owner.name.uuid
        self._held_back.pausing(owner)
        try:
            paused = await self._domains.suspend(uuid)
        finally:
            self._held_back.paused(owner)
        if paused:
            reason = f"paused because lockspace {loss.lockspace} was lost: {loss.reason}"
            self._marked.setdefault(loss.lockspace, set()).add(uuid)
            await self._domains.mark(uuid, reason)

    def _signal(self, owner: Owner, number: signal.Signals) -> None:
        if self.stop_client(owner, number):
            return
        owner.signal(number)
        log.critical("%s still depends on a lost lease: %s", owner, number.name)

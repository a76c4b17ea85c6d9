"""Releases that wait for QEMU: answered, and carried out when the VM's QEMU has no request under way.

QEMU reports a stop (QMP event STOP), and libvirt sends RELEASE at that event, *before* QEMU waits for the guest's requests
and flushes its disks (`do_vm_stop` in QEMU's system/cpus.c). On storage that hangs that wait lasts as long as the storage
hangs, and the requests land afterwards. QEMU answers no command of its monitor meanwhile: its main loop is in that wait.

    RELEASE ─ answered, the claim stays ─┬─ QEMU answers a query that was sent later ─ released
                                         ├─ QEMU ends                                ─ released, as at any end
                                         └─ libvirt acquires it again, nothing lost  ─ a claim like any other

So it is with each lease of a lost lockspace. While the claim stays, the VM is a user of the lockspace (`lockspace_loss`):
the escalation goes on, the watchdog is not fed, and an ACQUIRE of it is refused. Outside a loss it is so with the last lease
that a VM may write by, as at a stop (ADR 0244): while it is held nobody can start the same VM elsewhere. The source of a
migration is exempt: its QEMU hands over after that wait. The journal has the claim, so a restarted daemon has it too, and
releases it at the VM's end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Owner
from holdfast.model import IDENTITY_LOCKSPACE, Resource
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.libvirt.domains import DomainStatus
from holdfast.system.libvirt.status_words import OUT
from holdfast.system.libvirt.virsh import DomainControl

log = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
"""Between two queries to a QEMU that did not answer one in time."""
QUERIES_MAX = 4
"""At once, while nothing is lost: a query to a QEMU that hangs keeps one of libvirtd's workers (20 by default), and an
outage may stop all VMs of a host.
"""
SLOT_S = 0.25
"""Between two attempts to be one of them."""


@dataclass(eq=False)
class HeldBack:
    """One RELEASE of a claim; after the claim was acquired again, the next RELEASE is another. `beside`: the lock that goes
    with it.
    """

    lock: HostLock
    beside: HostLock | None


class HeldBackReleases:
    """The claims of VMs whose RELEASE is answered and not carried out. `is_lease`: whether a lock is a lease, of whatever
    lockspace; `is_lost`: whether it may be one of a lost lockspace whose users are not all gone.
    """

    def __init__(
        self,
        manager: LockManager,
        *,
        clock: Clock,
        domains: DomainControl,
        status: DomainStatus | None,
        losses: Collection[str],
        is_lease: Callable[[HostLock], bool],
        is_lost: Callable[[HostLock], bool],
        has_failed: Callable[[HostLock], bool] = lambda _: False,
    ) -> None:
        """`has_failed`: whether a lock's lease is not good now. `losses`: the names of lost lockspaces, as they are at any
        time. `status` None: libvirt's status files are not read, and releases are held back in losses only.
        """
        self._manager = manager
        self._clock = clock
        self._domains = domains
        self._status = status
        self._losses = losses
        self._is_lease = is_lease
        self._is_lost = is_lost
        self._has_failed = has_failed
        self._claims: dict[int, dict[Resource, HeldBack]] = {}
        """By owner."""
        self._asking: set[int] = set()
        """Owners that a task asks, or `paused` is about to be called for."""
        self._queries = 0
        """Under way."""

    @property
    def any_lost(self) -> bool:
        """Whether a lockspace is lost now: what nearly no release finds."""
        return bool(self._losses)

    def holds_back(
        self, owner: Owner, lock: HostLock, resource: Resource, beside: HostLock | None = None
    ) -> bool:
        """Whether this RELEASE is answered while the claim stays for now; `beside`: the lock that would go with it, of which
        the lockspace may be the lost one (a volume's guard). Clients of sanlock's protocol release by themselves what their
        VM needs no more.
        """
        if owner.registered or owner.prepared is not None or not owner.name.uuid:
            return False
        lost = self._lost(lock, beside)
        if not lost and not self._is_last(owner, lock, resource):
            return False
        claims = self._claims.setdefault(owner.id, {})
        if resource not in claims:
            claims[resource] = HeldBack(lock, beside)
            if lost:
                log.warning(
                    "%s: libvirt has released %s; it stays held until QEMU answers, as requests may be under way",
                    owner,
                    resource,
                )
            else:
                log.info(
                    "%s has released its last lease, %s: it stays held until QEMU answers", owner, resource
                )
        if owner.id not in self._asking:
            self._asking.add(owner.id)
            eager_tasks.start(self._ask(owner))
        return True

    def _lost(self, lock: HostLock, beside: HostLock | None) -> bool:
        return bool(self._losses) and (self._is_lost(lock) or (beside is not None and self._is_lost(beside)))

    def _is_last(self, owner: Owner, lock: HostLock, resource: Resource) -> bool:
        """Whether a VM of libvirt's gives up the last lease of that mode that it has, and does not migrate: it has stopped,
        or has no such disk any more.
        """
        if self._status is None or owner.unknown is not None or not self._is_lease(lock):
            return False
        mode, released = lock.claims[owner.id][resource], self._claims.get(owner.id, {})
        of_disk = list(self._manager.table.others_on_disk(owner.id, lock))
        for other in self._manager.table.of_owner(owner.id):
            if other.held is None or other in of_disk:
                continue  # it is lost and keeps nobody out, or is another name's of the same disk
            for name, others in other.claims[owner.id].items():
                goes_too = name in released or name.lockspace == IDENTITY_LOCKSPACE
                if name != resource and others >= mode and not goes_too and self._is_lease(other):
                    return False
        domain = self._status.look(owner.name.name, owner.name.uuid, owner.pid)
        # Without a disk there is nothing that libvirt could ask QEMU about (`DomainControl.answers`).
        return domain is not None and bool(domain.disks) and domain.async_job != OUT

    def has(self, owner: Owner, resource: Resource) -> bool:
        """Whether that claim is one that libvirt has released already."""
        return resource in self._claims.get(owner.id, {})

    def takes_back(self, owner: Owner, resource: Resource) -> bool:
        """libvirt acquires such a claim again, as the guest runs on: whether it is one like any other from now on. False if
        its lockspace is lost, also if that is not reported yet: a guest that stands still must not run on then.
        """
        held = self._claims[owner.id][resource]
        if self._lost(held.lock, held.beside):
            return False
        if any(lock is not None and self._has_failed(lock) for lock in (held.lock, held.beside)):
            return False
        self._forget(owner, resource)
        return True

    def awaits_qemu(self, lock: HostLock) -> bool:
        """Whether a lock has claims of that kind, and nothing is lost: they may end soon."""
        return not self._lost(lock, None) and any(
            name in self._claims.get(owner_id, {})
            for owner_id in lock.claims
            for name in lock.claims[owner_id]
        )

    def pausing(self, owner: Owner) -> None:
        """libvirt is being asked to pause it. QEMU is not asked before `paused`: libvirt would keep the query waiting, and
        one of its few workers with it, until QEMU has answered the pause.
        """
        self._asking.add(owner.id)

    def paused(self, owner: Owner) -> None:
        """libvirt has answered that, or has not in time: QEMU is asked from now on."""
        eager_tasks.start(self._ask(owner))

    async def _ask(self, owner: Owner) -> None:
        is_said = False
        try:
            while (claims := dict(self._claims.get(owner.id, {}))) and not (
                owner.gone or self._manager.closing
            ):
                if self._queries >= QUERIES_MAX and not self._losses:
                    await self._clock.sleep(SLOT_S)
                    continue
                if not await self._answers(owner):
                    if not is_said:
                        log.warning(
                            "%s: QEMU does not answer; what libvirt has released stays held: %s",
                            owner,
                            ", ".join(map(str, claims)),
                        )
                    is_said = True
                    await self._clock.sleep(ASK_AGAIN_S)
                    continue
                for resource, held in claims.items():
                    if self._claims.get(owner.id, {}).get(resource) is held:
                        self._forget(owner, resource)
                        await self._manager.release_one(owner, held.lock, resource)
        finally:
            self._asking.discard(owner.id)
            if owner.gone:
                self._claims.pop(owner.id, None)

    async def _answers(self, owner: Owner) -> bool:
        self._queries += 1
        try:
            return await self._domains.answers(owner.name.uuid)
        finally:
            self._queries -= 1

    def _forget(self, owner: Owner, resource: Resource) -> None:
        left = self._claims.get(owner.id, {})
        left.pop(resource, None)
        if not left:
            self._claims.pop(owner.id, None)

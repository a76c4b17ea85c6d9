"""Releases of a lost lockspace: answered, and carried out when the VM's QEMU has no request under way.

QEMU reports a stop (QMP event STOP), and libvirt sends RELEASE at that event, *before* QEMU waits for the guest's requests
and flushes its disks (`do_vm_stop` in QEMU's system/cpus.c). On storage that hangs that wait lasts as long as the storage
hangs, and the requests land afterwards. QEMU answers no command of its monitor meanwhile: its main loop is in that wait.

    RELEASE ─ answered, the claim stays ─┬─ QEMU answers a query that was sent later ─ released
                                         └─ QEMU ends                                ─ released, as at any end

While the claim stays, the VM is a user of the lockspace (`lockspace_loss`): the escalation goes on, the watchdog is not fed,
the journal has the claim, so a restarted daemon has it too, and an ACQUIRE of it is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Owner
from holdfast.model import Resource
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.libvirt.virsh import DomainControl

log = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
"""Between two queries to a QEMU that did not answer one in time."""


class HeldBackReleases:
    """The claims of VMs whose RELEASE is answered and not carried out. `is_lost`: whether a lock may be a lease of a lost
    lockspace whose users are not all gone.
    """

    def __init__(
        self,
        manager: LockManager,
        *,
        clock: Clock,
        domains: DomainControl,
        losses: Collection[str],
        is_lost: Callable[[HostLock], bool],
    ) -> None:
        """`losses`: the names of lost lockspaces, as they are at any time."""
        self._manager = manager
        self._clock = clock
        self._domains = domains
        self._losses = losses
        self._is_lost = is_lost
        self._claims: dict[int, dict[Resource, HostLock]] = {}
        """By owner."""
        self._asking: set[int] = set()
        """Owners that a task asks, or `paused` is about to be called for."""

    @property
    def may_hold_back(self) -> bool:
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
        if not self._is_lost(lock) and (beside is None or not self._is_lost(beside)):
            return False
        claims = self._claims.setdefault(owner.id, {})
        if resource not in claims:
            claims[resource] = lock
            log.warning(
                "%s: libvirt has released %s; it stays held until QEMU answers, as requests may be under way",
                owner,
                resource,
            )
        if owner.id not in self._asking:
            self._asking.add(owner.id)
            eager_tasks.start(self._ask(owner))
        return True

    def has(self, owner: Owner, resource: Resource) -> bool:
        """Whether that claim is one that libvirt has released already."""
        return resource in self._claims.get(owner.id, {})

    def pausing(self, owner: Owner) -> None:
        """libvirt is being asked to pause it. QEMU is not asked before `paused`: libvirt would keep the query waiting, and
        one of its few workers with it, until QEMU has answered the pause.
        """
        self._asking.add(owner.id)

    def paused(self, owner: Owner) -> None:
        """libvirt has answered that, or has not in time: QEMU is asked from now on."""
        eager_tasks.start(self._ask(owner))

    async def _ask(self, owner: Owner) -> None:
        try:
            while (claims := dict(self._claims.get(owner.id, {}))) and not (
                owner.gone or self._manager.closing
            ):
                if not await self._domains.answers(owner.name.uuid):
                    await self._clock.sleep(ASK_AGAIN_S)
                    continue
                for resource, lock in claims.items():
                    self._forget(owner, resource)
                    await self._manager.release_one(owner, lock, resource)
        finally:
            self._asking.discard(owner.id)
            if owner.gone:
                self._claims.pop(owner.id, None)

    def _forget(self, owner: Owner, resource: Resource) -> None:
        left = self._claims.get(owner.id, {})
        left.pop(resource, None)
        if not left:
            self._claims.pop(owner.id, None)

"""An acquire that waits for a lock that is about to be released: on a migration's target, and after a stop.

The source releases it when libvirt's status file there shows that the guest has left (`departures`), a few milliseconds
before the target's request. That may be too short, above all for a lease; and libvirt asks only once.

A VM of this host that was stopped has its last lease until its QEMU answers (`lease_admin.held_back_releases`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from holdfast.errors import ResourceBusy
from holdfast.manager.migration_roles import is_arriving
from holdfast.manager.owners import Owner
from holdfast.system.clock import Clock
from holdfast.system.libvirt.domains import DomainStatus

T = TypeVar("T")

PAUSE_S_MIN, PAUSE_S_MAX = 0.005, 0.1
"""Between two attempts: the guest is stopped meanwhile; an attempt for a lease costs reads of shared storage."""


AWAITS_QEMU_S = 3.0
"""For a QEMU that has been asked, which answers in a tenth of a second unless its storage hangs."""


class Arrivals:
    """Retries refused acquires of arriving guests, for `wait_s` seconds at most, and of disks whose last user's QEMU is
    asked whether it has requests under way.
    """

    def __init__(self, domains: DomainStatus | None, clock: Clock, wait_s: float) -> None:
        self._domains = domains
        self._clock = clock
        self._wait_s = wait_s

    async def tries(
        self, owner: Owner, acquire: Callable[[], Awaitable[T]], awaits_qemu: Callable[[], bool]
    ) -> T:
        """Returns or raises what `acquire` does; retries it for a while if it is refused and the owner's guest arrives, or
        the disk's last user is asked.
        """
        until, pause_s = math.inf, PAUSE_S_MIN
        while True:
            try:
                return await acquire()
            except ResourceBusy:
                wait_s = self._wait_s if self._arrives(owner) else AWAITS_QEMU_S if awaits_qemu() else 0.0
                if not wait_s or owner.gone:
                    raise
                now = self._clock.now()
                if now >= until:
                    raise
                until = min(until, now + wait_s)
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def qemu_answers(self, has: Callable[[], bool]) -> bool:
        """Whether what depends on QEMU's answer is so within `AWAITS_QEMU_S`."""
        until = self._clock.now() + AWAITS_QEMU_S
        while not (so := has()) and self._clock.now() < until:
            await self._clock.sleep(PAUSE_S_MAX)
        return so

    def _arrives(self, owner: Owner) -> bool:
        if self._domains is None or owner.unknown is not None:
            return False
        return is_arriving(self._domains.look(owner.name.name, owner.name.uuid, owner.pid))

"""Acquire on a migration's target: waits for a lock that the source is about to release.

The source releases it when libvirt's status file there shows that the guest has left (`departures`), a few milliseconds
before the target's request. That may be too short, above all for a lease; and libvirt asks only once.
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


class Arrivals:
    """Retries refused acquires of arriving guests, for `wait_s` seconds at most."""

    def __init__(self, domains: DomainStatus | None, clock: Clock, wait_s: float) -> None:
        self._domains = domains
        self._clock = clock
        self._wait_s = wait_s

    async def tries(self, owner: Owner, acquire: Callable[[], Awaitable[T]]) -> T:
        """Returns or raises what `acquire` does; retries it for a while if it is refused and the owner's guest arrives."""
        until, pause_s = math.inf, PAUSE_S_MIN
        while True:
            try:
                return await acquire()
            except ResourceBusy:
                if not self._wait_s or owner.gone or not self._arrives(owner):
                    raise
                now = self._clock.now()
                if now >= until:
                    raise
                until = min(until, now + self._wait_s)
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _arrives(self, owner: Owner) -> bool:
        if self._domains is None or owner.unknown is not None:
            return False
        return is_arriving(self._domains.look(owner.name.name, owner.name.uuid, owner.pid))

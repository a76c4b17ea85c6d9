"""The other end of a migration: a target asks for a lock that its source is about to let go of, and waits for it.

The source lets go when libvirt's status file says there that the guest has left (`departures`), which is a few milliseconds
before the target asks.  Those may be too few, for a lease above all; and libvirt asks once.
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
"""Between two tries: the guest stands still meanwhile; a try for a lease costs reads of shared storage."""


class Arrivals:
    """See the module.  ``wait_s``: for so long, and not at all if it is 0."""

    def __init__(self, domains: DomainStatus | None, clock: Clock, wait_s: float) -> None:
        self._domains = domains
        self._clock = clock
        self._wait_s = wait_s

    async def tries(self, owner: Owner, acquire: Callable[[], Awaitable[T]]) -> T:
        """What `acquire` returns or raises; one that is refused, for a guest that arrives, is asked again for a while."""
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

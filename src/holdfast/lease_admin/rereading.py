"""Reads held leases again periodically: a lease area that an operator restored from a backup shows the lease as free.

The protocol never reads a lease that it holds, so it would not notice before the release, and another host may win the
lease meanwhile (safety.md A8). A lease whose sectors are not what this host wrote is taken again, if no other host has it;
else it is a lost lock as after a restart (`adoption`): log, event and the configured action.

One lease at a time, each after `ROUND_S`, or `PAUSE_MIN_S` times the number of leases if that is longer.
"""

from __future__ import annotations

import asyncio
import logging

from holdfast.backends.base import Rereadable
from holdfast.manager.adoption import Recovery
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock

log = logging.getLogger(__name__)

ROUND_S = 60.0
"""Each held lease is read again within this time."""
PAUSE_MIN_S = 0.5
"""Between two reads: a host with thousands of leases must not read all day."""


class LeaseRereading:
    """Rereads held leases. `round_s`: 0 for never."""

    def __init__(self, manager: LockManager, recovery: Recovery, *, clock: Clock, round_s: float) -> None:
        self._manager = manager
        self._recovery = recovery
        self._clock = clock
        self._round_s = round_s
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin, when all restored locks are in the table."""
        if self._round_s:
            self._task = eager_tasks.keep_watch(self._for_ever(), "held leases are not read again any more")

    async def _for_ever(self) -> None:
        manager = self._manager
        while not manager.closing:
            held = [lock for lock in manager.table if isinstance(lock.held, Rereadable)]
            pause_s = max(PAUSE_MIN_S, self._round_s / max(1, len(held)))
            for lock in held:
                await self._clock.sleep(pause_s)
                if not manager.closing:
                    await self._reread(lock)
            if not held:
                await self._clock.sleep(self._round_s)

    async def _reread(self, lock: HostLock) -> None:
        held: object = lock.held
        if not isinstance(held, Rereadable) or self._manager.key_locks.is_locked(lock):
            return
        if not await held.why_not_held():
            return
        # Another operation may be under way on the lease: only a read without one counts.
        if why := await self._manager.lost.reread(lock):
            log.critical("%s: %s: it is taken again, unless another host has it", lock.path, why)
            if await self._manager.lost.regain(lock):
                self._recovery.regained(lock)
            elif lock.claims:
                self._recovery.lost(lock)

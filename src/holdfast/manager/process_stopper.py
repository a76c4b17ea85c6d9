"""Stopping an owner: SIGTERM, SIGKILL, and its locks only after its death.

virtlockd releases first and kills afterwards, so for some time two VMs can write one disk; it also makes all other requests
wait meanwhile. Here the locks stay until the kernel reports that the process has ended, and only requests for these locks
wait.

    t = 0      the connection closed. Usually the process is just ending: give it a moment
    GRACE      still alive: SIGTERM
    + TERM     still alive: SIGKILL
    then       wait for its end, however long (a process in uninterruptible sleep still writes), and say so
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

from holdfast.manager.owners import Owner
from holdfast.system.clock import Clock

log = logging.getLogger(__name__)

GRACE_S = 0.3
"""A process that ends closes its files some milliseconds before it is gone; a big guest's memory takes longer."""
TERM_S = 1.6
"""From SIGTERM to SIGKILL, as virtlockd (virtlockd-rpc.md 3.6)."""
REMIND_S = 30.0


class ProcessStopper:
    """Runs these steps for owners; `on_stopped` is called with a description of each step."""

    def __init__(self, clock: Clock, on_stopped: Callable[[Owner, str], None]) -> None:
        self._clock = clock
        self._on_stopped = on_stopped

    async def stop(self, owner: Owner, why: str) -> None:
        """Returns when the owner's process has ended; the watcher of the process releases its locks."""
        if owner.stopping or owner.process is None:
            return
        owner.stopping = why
        await self._clock.sleep(GRACE_S)
        if not owner.alive():
            return
        log.warning("stopping %s: %s", owner, why)
        owner.signal(signal.SIGTERM)
        self._on_stopped(owner, f"SIGTERM: {why}")
        await self._clock.sleep(TERM_S)
        if not owner.alive():
            return
        log.warning("%s ignored SIGTERM: killing it", owner)
        owner.signal(signal.SIGKILL)
        self._on_stopped(owner, f"SIGKILL: {why}")
        while owner.alive():
            await self._clock.sleep(REMIND_S)
            if owner.alive():
                log.error("%s does not die; its locks stay as long as it lives", owner)
                owner.signal(signal.SIGKILL)

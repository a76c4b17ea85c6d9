"""Time as a port: CLOCK_BOOTTIME for decisions, wall clock for people, and waiting.

Boot time goes on while a host is suspended, so a resumed host knows how much of a lease it slept away.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from holdfast.model import Instant


class Clock(Protocol):
    """What the layers above may know of time."""

    def now(self) -> Instant:
        """Seconds of CLOCK_BOOTTIME."""

    def wall(self) -> float:
        """Seconds since the epoch, for display only."""

    async def sleep(self, seconds: float) -> None:
        """Suspend the caller for at least `seconds`."""


class SystemClock:
    """The kernel's clocks and the running event loop."""

    def now(self) -> Instant:
        return Instant(time.clock_gettime(time.CLOCK_BOOTTIME))

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

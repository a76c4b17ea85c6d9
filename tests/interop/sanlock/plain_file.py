"""The ports over a plain file and the system's clock: enough to be one host beside a real sanlock."""

import asyncio
import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from holdfast.ondisk.geometry import Geometry
from holdfast.protocol import delta_lease as delta
from holdfast.protocol.host_status import HostTable, Sampled
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId, Instant, IoFailed

T = TypeVar("T")

# Generous: a stuck test shall end, a slow machine shall pass.
_CALL_TIMEOUT_S = 60
_HOSTS_WATCHED = 4


class PlainFileDisk:
    """The `Disk` port over an ordinary file; requests never suspend and never time out.

    Past the page cache, as sanlock does: a page that a buffered request keeps busy cannot be thrown out for a direct write
    of its neighbour sector, and the kernel then lets that write of sanlock's fail with EIO.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_SYNC | os.O_DIRECT)

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        with mmap.mmap(-1, length_bytes) as buffer:
            done = os.preadv(self._fd, [buffer], offset_bytes)
            return buffer[:] if done == length_bytes else IoFailed(errno.EMSGSIZE)

    async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        with mmap.mmap(-1, len(content)) as buffer:
            buffer[:] = content
            done = os.pwritev(self._fd, [buffer], offset_bytes)
        return None if done == len(content) else IoFailed(errno.EMSGSIZE)

    def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
        return False

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        return None

    def close(self) -> None:
        os.close(self._fd)


class SystemClock:
    def now(self) -> Instant:
        return Instant(time.clock_gettime(time.CLOCK_BOOTTIME))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SystemChance:
    def uniform(self, least: float, greatest: float) -> float:
        return random.uniform(least, greatest)


class OurHost:
    """One host of ours: joined to a lockspace, renewing on a thread of its own, watching the others."""

    def __init__(self, path: Path, geometry: Geometry, host_id: int, timing: Timing) -> None:
        self.disk = PlainFileDisk(path)
        self.clock = SystemClock()
        self.rng = SystemChance()
        self.timing = timing
        self.geometry = geometry
        self.lockspace = LockspaceArea(self.disk, 0, geometry, "LS1")
        self.claim = delta.Claim(HostId(host_id), f"holdfast-{host_id}", timing)
        self.table = HostTable("LS1", HostId(host_id), timing)
        self.notified: set[int] = set()
        self.lost = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._renewing: Future[None] | None = None

    def begin_join(self) -> Future[delta.AcquireOutcome]:
        return self._submit(delta.acquire(self.lockspace, self.clock, self.claim))

    def joined(self, outcome: delta.AcquireOutcome) -> None:
        assert isinstance(outcome, delta.Held), outcome
        self.held = outcome
        self.member = Membership(
            lockspace=self.lockspace,
            host_id=self.claim.host_id,
            generation=outcome.generation,
            bounds=lambda: self.timing,
            may_write=lambda: not self.lost and self.clock.now() < self.held.renewed_at + self.timing.fail_s,
            view=lambda host_id: self.table.view(host_id, self.clock.now()),
        )
        self._renewing = self._submit(self._keep_renewing())

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._submit(coroutine).result(_CALL_TIMEOUT_S)

    def leave(self) -> delta.ReleaseOutcome:
        if self._renewing is not None:
            self._renewing.cancel()
        return self.do(delta.release(self.lockspace, self.clock, self.held))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.disk.close()

    def lease(self, path: Path, resource: str) -> LeaseArea:
        return LeaseArea(PlainFileDisk(path), 0, self.geometry, "LS1", resource)

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _keep_renewing(self) -> None:
        while True:
            outcome = await delta.renew(
                self.lockspace,
                self.clock,
                self.held,
                notified=tuple(self.notified),
                hosts_watched=_HOSTS_WATCHED,
            )
            if not isinstance(outcome, delta.Renewed):
                self.lost = repr(outcome)
                return
            self.held = outcome.held
            size = self.geometry.sector_bytes
            sectors = {
                HostId(n + 1): outcome.sectors[n * size : (n + 1) * size] for n in range(_HOSTS_WATCHED)
            }
            self.table.step(self.clock.now(), Sampled(outcome.read_at, sectors))
            await self.clock.sleep(self.timing.renewal_s)

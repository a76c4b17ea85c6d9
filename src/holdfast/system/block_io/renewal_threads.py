"""Threads that renew leases, each with a disk and a clock of its own.

A renewal runs on a thread over blocking ports (`blocking_ports`); its worker pool is its own, so leases that hang
can't use up its workers. A thread reports by callbacks on the event loop, in order.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from holdfast.protocol.ports import Clock, Disk
from holdfast.protocol.types import IoFailed
from holdfast.system import eager_tasks
from holdfast.system.block_io.blocking_ports import BlockingClock, start_thread
from holdfast.system.block_io.disk import OPEN_TIMEOUT_S, open_blocking
from holdfast.system.block_io.disk_file import DiskFacts
from holdfast.system.block_io.worker_pool import WorkerPool

RENEWAL_WORKERS = 2
"""One for a request that hangs, one for the next read."""

HANGING_MAX = 4
"""Workers of earlier tries on one path that still hang, before no more are added to them: a path that is dead for a day
is tried thousands of times, and each try may leave a thread in the kernel."""


class FoundDisk(Disk, Protocol):
    """A disk that reports what was found when it was opened."""

    @property
    def facts(self) -> DiskFacts: ...


Life = Callable[[FoundDisk, Clock, Callable[[], None]], Coroutine[Any, Any, object]]
"""(disk, clock, how to interrupt the clock) -> what the thread does."""


class LeaseThreads(Protocol):
    """The port."""

    def start_on_disk(self, name: str, path: str, life: Life, on_end: Callable[[object], None]) -> None:
        """Run it over the disk at `path`. `on_end` gets its result, `IoFailed` if the path can't be opened, or
        what it raised; called on the event loop."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """From such a thread: have it called on the event loop."""


class SystemLeaseThreads:
    """Real threads beside the running event loop."""

    def __init__(
        self, prepare: Callable[[], None] = lambda: None, *, open_timeout_s: float = OPEN_TIMEOUT_S
    ) -> None:
        """`prepare` is called first on each thread: priorities."""
        self._open_timeout_s = open_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prepare = prepare
        self._left: dict[str, list[WorkerPool]] = {}
        """For each path the pools of earlier attempts that have not ended yet."""

    def start_on_disk(self, name: str, path: str, life: Life, on_end: Callable[[object], None]) -> None:
        self._loop = asyncio.get_running_loop()
        clock = BlockingClock()

        async def whole() -> object:
            self._prepare()
            left = self._left[path] = [each for each in self._left.get(path, []) if each.workers]
            if sum(each.workers for each in left) >= HANGING_MAX:
                return IoFailed(errno.ETIMEDOUT)
            pool = WorkerPool(name, RENEWAL_WORKERS)
            left.append(pool)
            disk = open_blocking(path, pool, timeout_s=self._open_timeout_s)
            if isinstance(disk, IoFailed):
                pool.close()
                return disk
            # Hosts that open the path from now on must be in the same file, or they don't see us renew.
            disk.must_be_named = True
            try:
                return await life(disk, clock, clock.interrupt)
            finally:
                disk.close()
                pool.close()

        start_thread(name, whole(), lambda result: self.call_soon(lambda: on_end(result)))

    def call_soon(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        eager_tasks.post_to_loop(self._loop, callback)

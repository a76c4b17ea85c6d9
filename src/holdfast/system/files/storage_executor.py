"""Calls that may block run beside the event loop, by one worker pool per file system, so that one sick storage
delays only its own callers.

A call on a local file system runs inline: no thread, no suspension. Every other call runs by the pool of its
storage: a queue and a few threads that exist only while there is work. The caller gives up a call that does not
return in time; when it returns late, the pool undoes it.

    caller ──► pool "nfs /srv" ──► thread: open() … hangs … returns fd
       │ gives up after timeout_s                      │
       └── StorageSilent                               └─► undo(fd): closed, nothing leaks
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from holdfast.errors import Refused, StorageSilent
from holdfast.system import eager_tasks
from holdfast.system.block_io.request_gate import GATE, Place, RequestGate
from holdfast.system.block_io.thread_name import name_this_thread
from holdfast.system.files.mounts import MountTable

T = TypeVar("T")

POOL_THREADS_MAX = 4
"""Threads of one pool: lock calls are short, a hung server hangs them all the same."""
POOLS_MAX = 128
"""File systems with work under way at once: 50 hosts' worth of NFS exports; above it something is wrong."""
POOL_QUEUE_MAX = 4096
"""Calls that wait for one file system; a VM start has a handful."""
THREAD_IDLE_S = 5.0
"""How long a thread waits for more before it ends: no thread on an idle host."""
VERDICTS_MAX = 10_000
VERDICT_AGE_S = 30.0
"""How long a directory's verdict is trusted: a symbolic link may be turned to other storage meanwhile."""


class Storage(Protocol):
    """The port: run calls on the storage that a path is on."""

    def pool(self, path: str) -> str:
        """Name of the worker pool for calls on this path; empty: inline. Inline calls must not follow a link at its end."""

    def pool_of_link(self, path: str) -> str:
        """The name for a path whose last component has turned out to be a symbolic link."""

    async def run(
        self,
        pool: str,
        path: str,
        function: Callable[[], T],
        *,
        undo: Callable[[T], None] | None = None,
        patient: bool = False,
    ) -> T:
        """Run it by that pool and return its result. Raises `StorageSilent` after the bound, unless `patient`."""

    async def call(
        self, path: str, function: Callable[[], T], *, undo: Callable[[T], None] | None = None
    ) -> T:
        """`run` by the pool of the path, links followed."""


class InlineStorage:
    """Every call at once, for tools that have no loop to hold up and for tests."""

    def pool(self, path: str) -> str:
        return ""

    def pool_of_link(self, path: str) -> str:
        return ""

    async def run(
        self,
        pool: str,
        path: str,
        function: Callable[[], T],
        *,
        undo: Callable[[T], None] | None = None,
        patient: bool = False,
    ) -> T:
        return function()

    async def call(
        self, path: str, function: Callable[[], T], *, undo: Callable[[T], None] | None = None
    ) -> T:
        return function()


def gate_name(pool: str) -> str:
    """The name of such a pool at the gate, and in reasons that an admin reads."""
    return f"storage {pool}"


class _Pool:
    """A queue and the threads that empty it."""

    def __init__(self, name: str, gate: RequestGate) -> None:
        self.name = name
        self._gate = gate
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self.pending = 0

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            self.pending += 1
            start = self._idle < self.pending and self._threads < POOL_THREADS_MAX
            if start:
                self._threads += 1
                self._idle += 1
        self._queue.put(job)
        if start:
            threading.Thread(target=self._work, name=f"pool {self.name}", daemon=True).start()

    def _work(self) -> None:
        name_this_thread(self.name)
        place = self._gate.place(gate_name(self.name))
        try:
            self._serve(place)
        finally:
            self._gate.forget(place)

    def _serve(self, place: Place) -> None:
        while True:
            try:
                job = self._queue.get(timeout=THREAD_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self.pending:
                        continue  # a job was announced while we woke up
                    self._threads -= 1
                    self._idle -= 1
                return
            place.enter()
            with self._lock:
                self._idle -= 1
                self.pending -= 1
            job()
            place.leave()
            with self._lock:
                self._idle += 1

    @property
    def empty(self) -> bool:
        return self._threads == 0 and self.pending == 0


class StorageExecutor:
    """Runs calls inline for local file systems, and by a pool for each storage that may block."""

    def __init__(
        self, mounts: MountTable, *, timeout_s: float, now: Callable[[], float], gate: RequestGate = GATE
    ) -> None:
        self._gate = gate
        self._mounts = mounts
        self._timeout_s = timeout_s
        self._now = now
        self._pools: dict[str, _Pool] = {}
        self._verdicts: dict[str, tuple[float, str]] = {}
        self._verdicts_of = 0

    def pool(self, path: str) -> str:
        if path.startswith("/dev/"):
            # Opening a device may wait for the device (a path that queues, a drive that spins up).
            return "device " + path
        mounts = self._mounts
        mounts.refresh()
        directory = path.rpartition("/")[0]
        now = self._now()
        if self._verdicts_of != mounts.changes or len(self._verdicts) > VERDICTS_MAX:
            self._verdicts.clear()
            self._verdicts_of = mounts.changes
        known = self._verdicts.get(directory)
        if known is None or now - known[0] > VERDICT_AGE_S:
            mount, _ = mounts.locate(directory)
            known = (now, f"{mount.type} {mount.point}" if mount.may_block else "")
            self._verdicts[directory] = known
        if not known[1] and (mounted := mounts.mounted_at(path)) is not None and mounted.may_block:
            return f"{mounted.type} {mounted.point}"
        return known[1]

    def pool_of_link(self, path: str) -> str:
        mount, resolved = self._mounts.locate(path)
        if mount.may_block:
            return f"{mount.type} {mount.point}"
        return "device " + resolved if resolved.startswith("/dev/") else ""

    async def call(
        self, path: str, function: Callable[[], T], *, undo: Callable[[T], None] | None = None
    ) -> T:
        name = self.pool(path) or (self.pool_of_link(path) if os.path.islink(path) else "")
        return await self._in_pool(name, path, function, undo, False) if name else function()

    async def run(
        self,
        pool: str,
        path: str,
        function: Callable[[], T],
        *,
        undo: Callable[[T], None] | None = None,
        patient: bool = False,
    ) -> T:
        return await self._in_pool(pool, path, function, undo, patient) if pool else function()

    async def _in_pool(
        self,
        name: str,
        path: str,
        function: Callable[[], T],
        undo: Callable[[T], None] | None,
        patient: bool,
    ) -> T:
        pool = self._pool(name)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        guard = threading.Lock()
        state = {"given_up": False, "done": False}

        def job() -> None:
            try:
                result = function()
            except BaseException as e:  # carried to the caller, whatever it is
                eager_tasks.post_to_loop(loop, eager_tasks.fail, future, e)
                return
            with guard:
                state["done"] = True
                late = state["given_up"]
            if not late:
                eager_tasks.post_to_loop(loop, eager_tasks.resolve, future, result)
            elif undo is not None:
                undo(result)

        pool.submit(job)
        if patient:
            return await future
        # wait(), not wait_for(): a timeout must not race with a result that is already on its way.
        done, _ = await asyncio.wait((future,), timeout=self._timeout_s)
        if not done:
            with guard:
                state["given_up"] = not state["done"]
            if state["given_up"]:
                raise StorageSilent(path=path, timeout_s=f"{self._timeout_s:g}")
        return await future

    def _pool(self, name: str) -> _Pool:
        pool = self._pools.get(name)
        if pool is None:
            if len(self._pools) >= POOLS_MAX:
                self._pools = {n: each for n, each in self._pools.items() if not each.empty}
            if len(self._pools) >= POOLS_MAX:
                raise Refused(
                    reason=f"{POOLS_MAX} storages have calls that do not end; see 'holdfast doctor'"
                )
            pool = self._pools[name] = _Pool(name, self._gate)
        if pool.pending >= POOL_QUEUE_MAX:
            raise Refused(reason=f"{POOL_QUEUE_MAX} calls already wait for the storage '{name}'")
        return pool

    @property
    def waiting(self) -> dict[str, int]:
        """Calls not yet begun, by pool, for status."""
        return {name: pool.pending for name, pool in self._pools.items() if pool.pending}

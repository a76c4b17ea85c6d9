"""Time, processes and the journal's file, simulated: the same ports as `system`, without waiting and without a kernel.

Nothing here is patched into anything: what is under test gets these by its constructor, as it gets the real ones.
The contract tests run the same cases on these and on the kernel's own.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import signal
from collections.abc import Callable, Collection

from holdfast.model import Instant, ProcessId
from holdfast.system.files.ofd_lock import FileKey
from holdfast.system.files.open_files import Users

SETTLE_TURNS = 50
"""Turns of the event loop in which whatever can go on has gone on: chains of callbacks here are far shorter."""


async def settle() -> None:
    """Let every task and callback that can go on do so; what waits for time or storage still waits."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)


class SimulatedClock:
    """A clock that moves when the test says so."""

    def __init__(self, *, now: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._now = now
        self._wall_ahead = wall - now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> Instant:
        return Instant(self._now)

    def wall(self) -> float:
        return self._now + self._wall_ahead

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, future))
        await future

    @property
    def sleepers(self) -> int:
        """How many wait for time to pass."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def advance(self, duration_s: float) -> None:
        """Let time pass; each sleeper that wakes acts at its own moment, in order."""
        end = self._now + duration_s
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            if not future.done():
                future.set_result(None)
            await settle()
        self._now = end


class SimulatedProcess:
    """One pinned process of a `SimulatedProcesses`."""

    def __init__(self, table: SimulatedProcesses, process_id: ProcessId) -> None:
        self.id = process_id
        self._table = table
        self._on_exit: Callable[[], None] | None = None
        self._closed = False

    def alive(self) -> bool:
        return not self._closed and self._table.is_alive(self.id)

    def signal(self, number: int, *, tree: bool = False) -> None:
        if not self._closed:
            self._table.signalled(self.id, number)

    def watch(self, on_exit: Callable[[], None]) -> None:
        self._on_exit = on_exit
        if not self._table.is_alive(self.id):
            self._table.call_soon(self.exited)

    def exited(self) -> None:
        on_exit, self._on_exit = self._on_exit, None
        if on_exit is not None and not self._closed:
            on_exit()

    def close(self) -> None:
        self._closed = True
        self._on_exit = None
        self._table.unpinned(self)


class SimulatedFamily:
    """A control group of a `SimulatedProcesses`."""

    def __init__(self, table: SimulatedProcesses, path: str) -> None:
        self.path = path
        self._table = table

    def members(self) -> tuple[int, ...] | None:
        pids = self._table.families.get(self.path, set())
        return None if pids is None else tuple(sorted(pid for pid in pids if self._table.is_running(pid)))

    def signal(self, number: int) -> None:
        for pid in self.members() or ():
            process = self._table.open(pid)
            if process is not None:
                process.signal(number)
                process.close()

    def remove(self) -> None:
        self._table.families.pop(self.path, None)


class SimulatedProcesses:
    """A process table.  Processes are started and ended by the test; signals are written down.

    ``ignoring`` of a process: signals that it survives.  ``news_withheld``: ends are known to `alive` at once, but
    nobody is called until `deliver_news`, as between a process's end and the next turn of the event loop.
    """

    def __init__(self) -> None:
        self._living: dict[int, ProcessId] = {}
        self._programs: dict[int, str] = {}
        self._ignoring: dict[int, frozenset[int]] = {}
        self._hidden: set[int] = set()
        self._pinned: list[SimulatedProcess] = []
        self._last_ticks = 0
        self._news: list[SimulatedProcess] = []
        self.news_withheld = False
        self.families: dict[str, set[int] | None] = {}
        """The pids in control groups, by path; None for one that can't be read."""
        self.signals: list[tuple[int, signal.Signals]] = []
        """(pid, signal) of everything that was sent to a living process, in order."""

    # --- what the test does ---

    def start(
        self, pid: int, *, program: str = "qemu", ignoring: frozenset[int] = frozenset(), hidden: bool = False
    ) -> ProcessId:
        """A new process; its pid must be free.  ``hidden``: it lives in a PID namespace that we cannot see."""
        if pid in self._living:
            raise ValueError(f"pid {pid} is in use")
        self._last_ticks += 1
        process_id = ProcessId(pid, self._last_ticks)
        self._living[pid] = process_id
        self._programs[pid] = program
        self._ignoring[pid] = ignoring
        self._hidden.discard(pid)
        if hidden:
            self._hidden.add(pid)
        return process_id

    def is_running(self, pid: int) -> bool:
        return pid in self._living

    def end(self, pid: int) -> None:
        """The process ends; its watchers are called from the event loop."""
        process_id = self._living.pop(pid)
        for process in [p for p in self._pinned if p.id == process_id]:
            self._news.append(process)
        if not self.news_withheld:
            self.deliver_news()

    def deliver_news(self) -> None:
        news, self._news = self._news, []
        for process in news:
            self.call_soon(process.exited)

    # --- the port ---

    def open(self, pid: int) -> SimulatedProcess | None:
        process_id = self._living.get(pid)
        if process_id is None or pid in self._hidden:
            return None
        process = SimulatedProcess(self, process_id)
        self._pinned.append(process)
        return process

    def family(self, path: str) -> SimulatedFamily | None:
        return SimulatedFamily(self, path)

    def program(self, pid: int) -> str:
        return "" if pid in self._hidden else self._programs.get(pid, "")

    # --- what a process asks ---

    def is_alive(self, process_id: ProcessId) -> bool:
        return self._living.get(process_id.pid) == process_id

    def signalled(self, process_id: ProcessId, number: int) -> None:
        if not self.is_alive(process_id):
            return
        pid = process_id.pid
        self.signals.append((pid, signal.Signals(number)))
        deadly = number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
        if deadly and number not in self._ignoring[pid]:
            self.end(pid)

    def unpinned(self, process: SimulatedProcess) -> None:
        if process in self._pinned:
            self._pinned.remove(process)

    @property
    def pinned(self) -> int:
        """How many processes are held by somebody: for tests that nothing leaks."""
        return len(self._pinned)

    @staticmethod
    def call_soon(callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)


class SimulatedAppendFile:
    """The journal's file in memory, on a disk that can be full (``room_bytes``)."""

    def __init__(self, raw: bytes = b"", *, room_bytes: int | None = None) -> None:
        self.raw = raw
        self.earlier = b""
        """The last whole content before it was rewritten."""
        self.room_bytes = room_bytes
        self.size_bytes = len(raw)
        self.is_short = False

    def read(self) -> bytes:
        return self.raw

    def append(self, raw: bytes, *, urgent: bool = False) -> None:
        self._need(len(self.raw) + len(raw))
        self.raw += raw
        self.size_bytes = len(self.raw)

    def replace(self, raw: bytes) -> None:
        self._need(len(raw))
        self.earlier = self.raw
        self.raw = raw
        self.size_bytes = len(raw)

    def _need(self, size_bytes: int) -> None:
        if self.room_bytes is not None and size_bytes > self.room_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")


class SimulatedRecord:
    """A `FixedRecord` in memory."""

    def __init__(self) -> None:
        self.raw = b""

    def read(self) -> bytes:
        return self.raw

    def write(self, raw: bytes) -> None:
        self.raw = raw


class SimulatedOpenFiles:
    """`OpenFiles`: which processes have which files open is written down by the test."""

    def __init__(self) -> None:
        self.open: dict[int, set[FileKey]] = {}
        """By pid."""
        self.unclear: set[int] = set()
        """Processes that can't be inspected."""
        self.scans = 0

    async def users(self, keys: Collection[FileKey]) -> Users:
        self.scans += 1
        pids = tuple(sorted(pid for pid, files in self.open.items() if files & set(keys)))
        return Users(pids, complete=not self.unclear, unclear=tuple(sorted(self.unclear)))

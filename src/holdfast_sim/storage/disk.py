"""Storage that several hosts share, with every fault that `protocol.ports` allows.

    SharedDisk   the device: its bytes, the requests under way, its present fault profile
    Path         one host's path to it: working, failing, or hanging until it is repaired
    PathDisk     the `Disk` port of one process over one path, for the whole device or an extent of it

A sector is atomic, nothing else is. A write takes effect at some moment between its issue and its completion, a long one
sector by sector. A read sees each sector at a different moment within the read, so it may be torn, and all of it may be
as old as the start of the read (slow answers are stale answers). A caller that gives up gets a timeout; its write still
takes effect later, in any order with others. A failed write may have taken effect or not. After the reset of a host its
pending writes never take effect.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from holdfast.protocol.types import IoFailed
from holdfast_sim.event_loop import Process
from holdfast_sim.world import World

LATENCY_LEAST_S = 0.0015
"""No request is faster. The drift of two clocks must not shorten a bound by more than this."""
HANDOVER_MAX_S = 0.004
"""From the call of the port to the kernel, as a worker thread has to be woken."""
SECTORS_APART_MAX = 16
"""So many sectors of a long write, those with content, take effect one by one; the rest together."""


@dataclass
class FaultProfile:
    """The fault rates of the device, per request; the nemesis changes them."""

    latency_s: float = 0.02
    error_rate: float = 0.0
    late_rate: float = 0.0
    late_max_s: float = 20.0
    late_leader_rate: float = 0.0
    stale_rate: float = 0.2


@dataclass(eq=False)
class _Read:
    begun_at: float
    offset: int
    length: int
    before: bytes
    landed: list[tuple[float, int, bytes]] = field(default_factory=list)


@dataclass(eq=False)
class Write:
    """A write that the kernel of a host has accepted."""

    process: Process
    offset: int
    content: bytes
    cancelled: bool = False
    handed_over: bool = False
    effective: bool = True
    failed: bool = False
    done: bool = False
    waiters: list[Callable[[], None]] = field(default_factory=list)

    def touches(self, offset: int, length: int) -> bool:
        return self.offset < offset + length and offset < self.offset + len(self.content)

    @property
    def changes(self) -> bool:
        """Whether any part of it may still take effect."""
        return True


@dataclass(eq=False)
class NameRequest(Write):
    """A request about names of files: open, link, unlink, list. It takes effect in steps, each at one moment."""

    steps: tuple[Callable[[], object], ...] = ()
    only_looks: bool = True
    result: object = None
    errno: int = 0

    @property
    def changes(self) -> bool:
        return not self.only_looks

    def step(self, number: int) -> None:
        if self.cancelled or not self.effective or self.errno:
            return
        try:
            self.result = self.steps[number]()
        except OSError as e:
            self.errno = e.errno or errno.EIO


W = TypeVar("W", bound=Write)
OnLanded = Callable[["SharedDisk", Process, int, bytes], None]


class SharedDisk:
    """One device. `on_issued` and `on_landed` are callbacks of the checkers."""

    def __init__(self, world: World, name: str, size_bytes: int, sector_bytes: int, number: int = 0) -> None:
        self.world = world
        self.name = name
        self.number = number
        self.sector_bytes = sector_bytes
        self.content = bytearray(size_bytes)
        self.manners = FaultProfile()
        self.leader_offsets: frozenset[int] = frozenset()
        self.on_issued: OnLanded = lambda *_: None
        self.on_landed: OnLanded = lambda *_: None
        self._reads: list[_Read] = []

    # --- the stages of a request ---

    def latency(self) -> float:
        random, manners = self.world.random, self.manners
        if manners.late_rate and random.random() < manners.late_rate:
            return random.uniform(0.5, manners.late_max_s)
        return LATENCY_LEAST_S + random.expovariate(1 / manners.latency_s)

    def write_latency(self, offset: int) -> float:
        random, manners = self.world.random, self.manners
        late_rate = manners.late_leader_rate if offset in self.leader_offsets else 0.0
        if late_rate and random.random() < late_rate:
            return random.uniform(0.5, manners.late_max_s)
        return self.latency()

    def fails(self) -> bool:
        rate = self.manners.error_rate
        return bool(rate) and self.world.random.random() < rate

    def begin_read(self, offset: int, length: int) -> _Read:
        read = _Read(self.world.now, offset, length, bytes(self.content[offset : offset + length]))
        self._reads.append(read)
        return read

    def end_read(self, read: _Read) -> bytes:
        """The result of the read: every sector as it was at some moment between the start of the read and now."""
        self._reads.remove(read)
        if not read.landed:
            return read.before
        random = self.world.random
        if random.random() < self.manners.stale_rate:
            return read.before
        moments: dict[int, float] = {}
        seen = bytearray(read.before)
        for moment, offset, content in read.landed:
            sector = offset // self.sector_bytes
            if sector not in moments:
                moments[sector] = random.uniform(read.begun_at, self.world.now)
            if moment <= moments[sector]:
                begin, end = max(offset, read.offset), min(offset + len(content), read.offset + read.length)
                seen[begin - read.offset : end - read.offset] = content[begin - offset : end - offset]
        return bytes(seen)

    def drop_read(self, read: _Read) -> None:
        if read in self._reads:
            self._reads.remove(read)

    def land(self, write: Write, offset: int, content: bytes) -> None:
        if write.cancelled or not write.effective:
            return
        self._change(offset, content)
        self.on_landed(self, write.process, offset, content)

    def put(self, offset: int, content: bytes) -> None:
        """Written at one moment by somebody who is none of the hosts; requests that are under way land later."""
        for at in range(0, len(content), self.sector_bytes):
            self._change(offset + at, content[at : at + self.sector_bytes])

    def _change(self, offset: int, content: bytes) -> None:
        self.content[offset : offset + len(content)] = content
        for read in self._reads:
            if offset < read.offset + read.length and read.offset < offset + len(content):
                read.landed.append((self.world.now, offset, content))


class Path:
    """One machine's path to a device."""

    def __init__(self, disk: SharedDisk) -> None:
        self.disk = disk
        self.errors = False
        self.hanging = False
        self._held_up: list[Callable[[], None]] = []
        self.writes: list[Write] = []

    def through(self, proceed: Callable[[], None]) -> None:
        """Continue now, or when the path works again."""
        if self.hanging:
            self._held_up.append(proceed)
        else:
            proceed()

    def mend(self) -> None:
        self.errors = self.hanging = False
        held_up, self._held_up = self._held_up, []
        for proceed in held_up:
            self.disk.world.after(self.disk.world.random.uniform(0, 0.5), proceed)

    def reset(self) -> None:
        """The machine is off: its pending requests never take effect."""
        self._held_up.clear()
        for write in self.writes:
            write.cancelled = True
        self.writes.clear()

    def write(self, write: Write) -> None:
        """The kernel issues it."""
        disk, world = self.disk, self.disk.world
        if write.cancelled:
            return
        write.handed_over = True
        if self.hanging:
            self._held_up.append(lambda: self.write(write))
            return
        write.failed = self.errors or disk.fails()
        took = disk.write_latency(write.offset)
        # A failed write may have taken effect before it failed.
        write.effective = not write.failed or (not self.errors and world.random.random() < 0.5)
        for offset, piece in _pieces(write, disk.sector_bytes):
            world.after(
                world.random.uniform(LATENCY_LEAST_S / 3, took),
                lambda piece=piece, offset=offset: disk.land(write, offset, piece),  # type: ignore[misc]
            )
        world.after(took + 1e-6, lambda: self.through(lambda: self._complete(write)))

    def ask(self, request: NameRequest) -> None:
        """The kernel issues a request about names."""
        disk, world = self.disk, self.disk.world
        if request.cancelled:
            return
        request.handed_over = True
        if self.hanging:
            self._held_up.append(lambda: self.ask(request))
            return
        request.failed = self.errors or disk.fails()
        took = disk.latency()
        request.effective = not request.failed or (not self.errors and world.random.random() < 0.5)
        moments = sorted(world.random.uniform(LATENCY_LEAST_S / 3, took) for _ in request.steps)
        for number, moment in enumerate(moments):
            world.after(moment, lambda number=number: request.step(number))  # type: ignore[misc]
        world.after(took + 1e-6, lambda: self.through(lambda: self._complete(request)))

    def process_gone(self, process: Process) -> None:
        """The process has ended: the kernel completes the requests that it has; the others never reach it."""
        self.writes = [w for w in self.writes if w.process is not process or w.handed_over]

    def busy_for(self, process: Process) -> bool:
        """Whether the kernel still has requests of a process: it can't exit before they have ended."""
        return any(w.process is process for w in self.writes)

    def may_land_for(self, process: Process) -> bool:
        """Whether a request of the process may still change the stored bytes."""
        return any(w.process is process and w.changes for w in self.writes)

    def _complete(self, write: Write) -> None:
        if write.cancelled:
            return
        write.done = True
        self.writes.remove(write)
        for wake in write.waiters:
            wake()


def _pieces(write: Write, size: int) -> list[tuple[int, bytes]]:
    """The parts of a write, each of which takes effect separately."""
    apart = len(write.content)
    if apart > 4 * SECTORS_APART_MAX * size:
        apart = SECTORS_APART_MAX * size
    pieces = [(write.offset + at, write.content[at : at + size]) for at in range(0, apart, size)]
    if apart < len(write.content):
        pieces.append((write.offset + apart, write.content[apart:]))
    return pieces


class PathDisk:
    """The `Disk` port of one process. Tracks its writes in flight as `system.block_io.inflight_writes` does."""

    def __init__(self, process: Process, path: Path, begin: int = 0, size: int | None = None) -> None:
        self._process = process
        self._path = path
        self._begin = begin
        self._size = size

    def _extent(self, offset_bytes: int, length_bytes: int) -> tuple[int, int]:
        """The range on the device, cut at the end of the opened extent."""
        size = len(self._path.disk.content) if self._size is None else self._size
        return self._begin + offset_bytes, max(0, min(length_bytes, size - offset_bytes))

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        self._process.port("disk")
        disk, world, path = self._path.disk, self._path.disk.world, self._path
        offset, length = self._extent(offset_bytes, length_bytes)
        if length < length_bytes:
            return IoFailed(errno.EMSGSIZE)
        answered = self._future()
        reading: list[_Read] = []

        def issue() -> None:
            failed = path.errors or disk.fails()
            reading.append(disk.begin_read(offset, length))
            world.after(disk.latency(), lambda: path.through(lambda: complete(failed)))

        def complete(failed: bool) -> None:
            if reading[0] in disk._reads:
                seen = disk.end_read(reading[0])
                _resolve(answered, IoFailed(errno.EIO) if failed else seen)

        world.after(world.random.uniform(0, HANDOVER_MAX_S), lambda: path.through(issue))
        world.after(timeout_s, lambda: _resolve(answered, None))
        answer: bytes | IoFailed | None = await answered
        if reading:
            disk.drop_read(reading[0])
        return IoFailed(errno.ETIMEDOUT) if answer is None else answer

    async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        disk, path = self._path.disk, self._path
        offset, length = self._extent(offset_bytes, len(content))
        disk.on_issued(disk, self._process, offset, content)
        self._process.port("disk")
        if length < len(content):
            return IoFailed(errno.EMSGSIZE)
        if self.in_flight(offset_bytes, len(content)):
            return IoFailed(errno.EBUSY, in_flight=True)
        write = Write(self._process, offset, bytes(content))
        await self._handed_over(write, path.write, timeout_s)
        if not write.done:
            return IoFailed(errno.ETIMEDOUT, in_flight=True)
        return IoFailed(errno.EIO) if write.failed else None

    async def _handed_over(self, write: W, issue: Callable[[W], None], timeout_s: float) -> None:
        """Wait until it is done, or until the timeout is over."""
        world = self._path.disk.world
        answered = self._future()
        write.waiters.append(lambda: _resolve(answered, None))
        self._path.writes.append(write)
        # The worker belongs to the process: that of a frozen or ended process delivers nothing.
        handover_s = world.random.uniform(0, HANDOVER_MAX_S)
        world.after(handover_s, lambda: issue(write), self._process)
        world.after(timeout_s, lambda: _resolve(answered, None))
        await answered

    def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
        offset, length = self._extent(offset_bytes, length_bytes)
        return any(
            write.process is self._process and write.touches(offset, length) for write in self._path.writes
        )

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        offset, length = self._extent(offset_bytes, length_bytes)
        while self.in_flight(offset_bytes, length_bytes):
            completed = self._future()
            for write in self._path.writes:
                if write.process is self._process and write.touches(offset, length):
                    write.waiters.append(lambda: _resolve(completed, None))  # noqa: B023
            await completed

    def _future(self) -> asyncio.Future:  # type: ignore[type-arg]
        return self._process.loop.create_future()


def _resolve(future: asyncio.Future, answer: object) -> None:  # type: ignore[type-arg]
    if not future.done():
        future.set_result(answer)

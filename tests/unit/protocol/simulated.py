"""A world in one thread: hosts, their clocks and one shared disk, all moved by one seed.

Coroutines of several hosts run until they wait at a port; the world decides how long that takes and who
goes on next. So every port call is a point where others may come between, and a seed is a whole history.

* Clocks of hosts have different readings and the same rate. A paused host does nothing until it wakes.
* A request to the disk takes a random time. A write takes effect at one moment within that time; a read of
  several sectors sees each of them at a moment of its own. A request may fail, or stall: then the caller
  hears of a time-out, while the write still takes effect later.
* Resetting a host drops its coroutines and its writes in flight, as power off does.
"""

import errno
import heapq
import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Generic, TypeVar

from holdfast.protocol.types import Instant, IoFailed
from holdfast.system.block_io.disk_file import DiskFacts

T = TypeVar("T")
Resume = Callable[[Any], None]
Arrange = Callable[[Resume], None]

# No test of ours has more events than this: beyond it, something waits for ever.
EVENTS_MAX = 2_000_000


@types.coroutine
def _suspend(arrange: Arrange) -> Generator[Arrange, Any, Any]:
    return (yield arrange)


@dataclass
class Faults:
    """How the storage misbehaves; all rates are per request."""

    latency_s: float = 0.05
    error_rate: float = 0.0
    stall_rate: float = 0.0
    stall_max_s: float = 30.0


class StuckError(AssertionError):
    """Nothing can happen any more, but a coroutine still waits."""


class Task(Generic[T]):
    """A coroutine of one host."""

    def __init__(self, host: "Host", coroutine: Coroutine[Any, Any, T]) -> None:
        self.host = host
        self.done = False
        self.dropped = False
        self._coroutine = coroutine
        self._result: T | None = None

    @property
    def result(self) -> T:
        assert self.done, "the coroutine has not ended"
        return self._result  # type: ignore[return-value]

    def resume(self, value: Any) -> None:
        world = self.host.world
        if self.dropped:
            return
        if self.host.paused_until > world.now:
            world.at(self.host.paused_until, lambda: self.resume(value))
            return
        try:
            arrange = self._coroutine.send(value)
        except StopIteration as stop:
            self.done, self._result = True, stop.value
            return
        arrange(self.resume)

    def drop(self) -> None:
        self.dropped = True
        self._coroutine.close()


class World:
    """Time, chance, the events to come, and the bytes of the shared disk."""

    def __init__(self, seed: int, size_bytes: int = 0, faults: Faults | None = None) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.faults = faults or Faults()
        self.content = bytearray(size_bytes)
        self.hosts: list[Host] = []
        self.writes: list[tuple[float, Host, int, bytes]] = []
        self.on_write: Callable[[Host, int, bytes], None] | None = None
        self._events: list[tuple[float, float, int, Callable[[], None]]] = []
        self._serial = 0

    def host(self, name: str = "") -> "Host":
        return Host(self, name or f"host{len(self.hosts) + 1}")

    def at(self, time: float, happen: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (time, self.random.random(), self._serial, happen))

    def run(self, *tasks: Task[Any], until: float | None = None) -> None:
        """Let things happen until all `tasks` have ended, or until that time."""
        for _ in range(EVENTS_MAX):
            if tasks and all(task.done or task.dropped for task in tasks):
                return
            if not self._events or (until is not None and self._events[0][0] > until):
                if tasks and until is None:
                    raise StuckError([task.host.name for task in tasks if not task.done])
                self.now = max(self.now, until or self.now)
                return
            time, _, _, happen = heapq.heappop(self._events)
            self.now = max(self.now, time)
            happen()
        raise StuckError("too many events")

    def apply(self, host: "Host", offset: int, content: bytes) -> None:
        self.content[offset : offset + len(content)] = content
        self.writes.append((self.now, host, offset, content))
        if self.on_write is not None:
            self.on_write(host, offset, content)


@dataclass(eq=False)
class Host:
    """One host: its ports, its coroutines, its writes in flight."""

    world: World
    name: str
    paused_until: float = 0.0
    tasks: list[Task[Any]] = field(default_factory=list)
    in_flight: list["_Write"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world.hosts.append(self)
        self.clock = SimulatedClock(self, self.world.random.uniform(1, 1e6))
        self.disk = SimulatedDisk(self)
        self.rng = self.world.random

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Task[T]:
        task = Task(self, coroutine)
        self.tasks.append(task)
        self.world.at(self.world.now, lambda: task.resume(None))
        return task

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = self.spawn(coroutine)
        self.world.run(task)
        return task.result

    def pause(self, seconds: float) -> None:
        self.paused_until = self.world.now + seconds

    def kill(self) -> None:
        """The process ends; the kernel still finishes what it was given."""
        for task in self.tasks:
            task.drop()
        self.tasks.clear()

    def reset(self) -> None:
        """Power off: nothing that was in flight takes effect any more."""
        self.kill()
        for write in self.in_flight:
            write.cancelled = True
        self.in_flight.clear()


class SimulatedClock:
    def __init__(self, host: Host, offset_s: float) -> None:
        self._host = host
        self._offset_s = offset_s

    def now(self) -> Instant:
        return Instant(self._host.world.now + self._offset_s)

    async def sleep(self, seconds: float) -> None:
        world = self._host.world
        until = world.now + max(0.0, seconds) + world.random.uniform(0, world.faults.latency_s)
        await _suspend(lambda resume: world.at(until, lambda: resume(None)))


@dataclass(eq=False)
class _Write:
    offset: int
    content: bytes
    cancelled: bool = False

    def touches(self, offset: int, length: int) -> bool:
        return self.offset < offset + length and offset < self.offset + len(self.content)


class SimulatedDisk:
    """One host's way to the shared disk."""

    SECTOR = 512

    def __init__(self, host: Host) -> None:
        self._host = host
        self.reads: list[tuple[int, int]] = []
        self.cut = False
        self.facts = DiskFacts("/shared", True, True, self.SECTOR, 0)
        # What a test wants to happen to the requests to come, each for one request, before chance is asked.
        self.script: list[str] = []

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        self.reads.append((offset_bytes, length_bytes))
        world = self._host.world
        fate, took = self._fate("read", timeout_s)
        if fate == "error":
            return await self._answer(took, IoFailed(errno.EIO))
        if fate == "stall":
            return await self._answer(timeout_s, IoFailed(errno.ETIMEDOUT))
        seen = bytearray(length_bytes)

        def look(at: int, length: int) -> None:
            piece = world.content[offset_bytes + at : offset_bytes + min(at + length, length_bytes)]
            seen[at : at + len(piece)] = piece

        torn = min(length_bytes, 64 * self.SECTOR)
        for at in range(0, torn, self.SECTOR):
            world.at(world.now + world.random.uniform(0, took), lambda at=at: look(at, self.SECTOR))  # type: ignore[misc]
        if length_bytes > torn:
            # Nobody is there in these histories: no need for a moment of its own for each.
            world.at(world.now + world.random.uniform(0, took), lambda: look(torn, length_bytes - torn))
        if offset_bytes + length_bytes > len(world.content):
            return await self._answer(took, IoFailed(errno.EMSGSIZE))
        await self._answer(took, None)
        return bytes(seen)

    async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        world, host = self._host.world, self._host
        if self.in_flight(offset_bytes, len(content)):
            return await self._answer(0, IoFailed(errno.EBUSY, in_flight=True))
        fate, took = self._fate("write", timeout_s)
        if fate == "error":
            return await self._answer(took, IoFailed(errno.EIO))
        write = _Write(offset_bytes, bytes(content))
        host.in_flight.append(write)

        def land() -> None:
            if not write.cancelled:
                world.apply(host, offset_bytes, write.content)

        def complete() -> None:
            if write in host.in_flight:
                host.in_flight.remove(write)

        world.at(world.now + world.random.uniform(0, took), land)
        world.at(world.now + took, complete)
        if fate == "stall":
            return await self._answer(timeout_s, IoFailed(errno.ETIMEDOUT, in_flight=True))
        return await self._answer(took, None)

    def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
        return any(write.touches(offset_bytes, length_bytes) for write in self._host.in_flight)

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        while self.in_flight(offset_bytes, length_bytes):
            await self._answer(0.5, None)

    def _fate(self, kind: str, timeout_s: float) -> tuple[str, float]:
        random, faults = self._host.world.random, self._host.world.faults
        fate = ""
        if self.script and self.script[0].startswith(kind):
            fate = self.script.pop(0).removeprefix(kind).strip()
        elif self.cut or random.random() < faults.error_rate:
            fate = "error"
        elif random.random() < faults.stall_rate:
            fate = "stall"
        if fate == "stall":
            return fate, timeout_s + random.uniform(0.001, faults.stall_max_s)
        return fate, random.uniform(0, faults.latency_s)

    async def _answer(self, after_s: float, answer: T) -> T:
        world = self._host.world
        # Strictly after what was arranged for the same moment.
        return await _suspend(  # type: ignore[no-any-return]
            lambda resume: world.at(world.now + after_s + 1e-9, lambda: resume(answer))
        )

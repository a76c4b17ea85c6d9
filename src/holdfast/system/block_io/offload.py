"""Offloaded jobs: whole lease protocols run on a worker of their storage, instead of one request at a time from the loop.

A lease takes a dozen requests, one after the other. Were each handed from the event loop to a worker and its answer
back, the handing would take longer than the disk. So a worker runs the whole coroutine, which is given its `Job`: the
disks that it gets from that call the kernel themselves:

    event loop    run ──► waits … ─────────────────────────────────────────── answer ─►
    worker             └─ read, write, read … pause ─┐   ┌─ write, read … end ─┘
    event loop                                       └ … ┘  what can't be done there is done on the loop

No caller waits longer than one request may take. After that it gets `TimedOut`, and the job keeps running. The caller must
undo the late result, for the job may have won a lease that is not wanted any more.
"""

from __future__ import annotations

import asyncio
import errno
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from holdfast.protocol.ports import Clock, Disk
from holdfast.protocol.types import Instant, IoFailed
from holdfast.system import eager_tasks
from holdfast.system.block_io.answers import answered
from holdfast.system.block_io.worker_pool import AlignedBuffer, JobFate, PoolFull, Request, WorkerPool

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D", bound=Disk)

LOOK_AGAIN_S = 1.0
"""How often a waiting caller checks a job that has no request under way: it computes, or is on the event loop."""


@dataclass(frozen=True, slots=True)
class TimedOut(Generic[T]):
    """Storage is silent; `over` gets the result of the job, however late, or what it raised."""

    over: asyncio.Future[T | IoFailed]


class Job(Protocol):
    """What work is given when it is offloaded: its ports on the worker that runs it. Of use only within that work."""

    def disk(self, disk: D) -> D:
        """The same open path, whose requests are made by this job."""

    def request(
        self, timeout_s: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | IoFailed:
        """One request, on this very thread; a system call that fails is an answer."""

    async def on_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have it done on the event loop; the job waits without a worker."""


Work = Callable[[Job], Coroutine[Any, Any, T]]


class Offload(Protocol):
    """The port."""

    async def run(self, work: Work[T], timeout_s: float) -> T | IoFailed | TimedOut[T]:
        """Take the work to the disk. `IoFailed` is for work that was not begun: no worker was free within `timeout_s`."""


class WorkersDisk(ABC):
    """A disk whose requests are made by workers: an offloaded job, that is on one already, makes its own."""

    @abstractmethod
    def within(self, job: OffloadedJob) -> Disk: ...


@dataclass(frozen=True, slots=True)
class _OnLoop:
    work: Callable[[], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class _Ended:
    result: Any


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


class OffloadedJob:
    """One coroutine on its way: `Job`. `until` is when its request under way, if any, has taken too long
    (`time.monotonic`).
    """

    __slots__ = ("_answer", "_loop", "_over", "_pool", "_request", "_timer", "_work", "buffer", "until")

    def __init__(self, work: Work[Any], pool: WorkerPool) -> None:
        self.buffer: AlignedBuffer  # the worker's, as long as it is there
        self.until: float | None = None
        self._work = work(self)
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Any] = self._loop.create_future()
        self._over: asyncio.Future[Any] | None = None
        self._request: Request[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, timeout_s: float) -> Any:
        self.until = time.monotonic() + timeout_s
        self._request = Request(lambda buffer: self._step(buffer, self._work.send, None))
        try:
            self._pool.submit(self._request)
        except PoolFull:
            self._work.close()
            return IoFailed(errno.EBUSY)
        self._timer = self._loop.call_later(timeout_s, self._look_after)
        try:
            return await self._answer
        finally:
            self._timer.cancel()

    # --- on the worker ---

    def _step(self, buffer: AlignedBuffer, go_on: Callable[[Any], Any], value: Any) -> None:
        self.buffer, self.until = buffer, None
        try:
            left: object = go_on(value)
        except StopIteration as end:
            left = _Ended(end.value)
        except BaseException as e:  # carried to the loop, whatever it is
            left = _Raised(e)
        eager_tasks.post_to_loop(self._loop, self._left_worker, left)

    def disk(self, disk: D) -> D:
        return cast(D, disk.within(self)) if isinstance(disk, WorkersDisk) else disk

    def request(
        self, timeout_s: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | IoFailed:
        self.until = time.monotonic() + timeout_s
        try:
            return answered(call, *args, **kwargs)
        finally:
            self.until = None

    async def on_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await _leave(work)

    # --- on the event loop ---

    def _left_worker(self, left: object) -> None:
        match left:
            case _OnLoop(work):
                eager_tasks.start(self._do_on_loop(work))
            case _Ended(result):
                eager_tasks.resolve(self._over or self._answer, result)
            case _Raised(error):
                eager_tasks.fail(self._over or self._answer, error)
            case _:
                self._work.close()
                error = RuntimeError(f"{self._work!r} waited on a worker for {left!r}")
                eager_tasks.fail(self._over or self._answer, error)

    async def _do_on_loop(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        go_on: Callable[[Any], Any] = self._work.send
        try:
            value = await work()
        except Exception as e:
            go_on, value = self._work.throw, e
        while True:
            try:
                self._pool.submit(Request(lambda buffer: self._step(buffer, go_on, value)))
                return
            except PoolFull:  # it is half done: there is no refusing any more
                await asyncio.sleep(LOOK_AGAIN_S)

    def _look_after(self) -> None:
        until = self.until
        left_s = LOOK_AGAIN_S if until is None else until - time.monotonic()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look_after)
            return
        assert self._request is not None
        if self._pool.give_up(self._request) is JobFate.WITHDRAWN:
            self._work.close()
            eager_tasks.resolve(self._answer, IoFailed(errno.ETIMEDOUT))
        elif not self._answer.done():
            self._over = self._loop.create_future()
            self._answer.set_result(TimedOut(self._over))


@types.coroutine
def _leave(work: Callable[[], Coroutine[Any, Any, T]]) -> Generator[_OnLoop, T, T]:
    return (yield _OnLoop(work))


class JobClock:
    """A job's clock: it sleeps on the event loop, so that no worker does."""

    __slots__ = ("_clock", "_job", "now")

    def __init__(self, clock: Clock, job: Job) -> None:
        self._clock = clock
        self._job = job
        self.now: Callable[[], Instant] = clock.now

    async def sleep(self, seconds: float) -> None:
        await self._job.on_loop(lambda: self._clock.sleep(seconds))


class PoolOffload:
    """`Offload` on the workers of a pool."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def run(self, work: Work[T], timeout_s: float) -> T | IoFailed | TimedOut[T]:
        answer: T | IoFailed | TimedOut[T] = await OffloadedJob(work, self._pool).run(timeout_s)
        return answer

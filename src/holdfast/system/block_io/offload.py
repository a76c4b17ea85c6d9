"""Offloaded jobs: whole lease protocols run on a worker of their storage, instead of one request at a time from the loop.

A lease takes a dozen requests, one after the other. Were each handed from the event loop to a worker and its answer
back, the handing would take longer than the disk. So a worker runs the whole coroutine; the ports that it awaits there
(`disk`, `lease_files`) notice that they are in a job and call the kernel themselves:

    event loop    run ──► waits … ─────────────────────────────────────────── answer ─►
    worker             └─ read, write, read … pause ─┐   ┌─ write, read … end ─┘
    event loop                                       └ … ┘  what can't be done there is done on the loop

No caller waits longer than one request may take. After that it gets `TimedOut`, and the job keeps running. The caller must
undo the late result, for the job may have won a lease that is not wanted any more.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from holdfast.protocol.ports import Clock
from holdfast.protocol.types import Instant, IoFailed
from holdfast.system import eager_tasks
from holdfast.system.block_io.answers import answered
from holdfast.system.block_io.worker_pool import AlignedBuffer, JobFate, PoolFull, Request, WorkerPool

P = ParamSpec("P")
T = TypeVar("T")

LOOK_AGAIN_S = 1.0
"""How often a waiting caller checks a job that has no request under way: it computes, or is on the event loop."""


@dataclass(frozen=True, slots=True)
class TimedOut(Generic[T]):
    """Storage is silent; `over` gets the result of the job, however late, or what it raised."""

    over: asyncio.Future[T | IoFailed]


class Offload(Protocol):
    """The port."""

    async def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T | IoFailed | TimedOut[T]:
        """Take the work to the disk. `IoFailed` is for work that was not begun: no worker was free within `timeout_s`."""


@dataclass(frozen=True, slots=True)
class _AtHome:
    work: Callable[[], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class _Ended:
    result: Any


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


class OffloadedJob:
    """One coroutine on its way. `until` is when its request under way, if any, has taken too long (`time.monotonic`)."""

    __slots__ = ("_answer", "_loop", "_over", "_pool", "_request", "_timer", "_work", "buffer", "until")

    def __init__(self, work: Coroutine[Any, Any, Any], pool: WorkerPool) -> None:
        self.buffer: AlignedBuffer  # the worker's, as long as it is there
        self.until: float | None = None
        self._work = work
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
        _here.errand = self
        try:
            left: object = go_on(value)
        except StopIteration as end:
            left = _Ended(end.value)
        except BaseException as e:  # carried home, whatever it is
            left = _Raised(e)
        finally:
            _here.errand = None
        eager_tasks.post_to_loop(self._loop, self._came_home, left)

    def request(
        self, timeout_s: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | IoFailed:
        """One request, on this very thread; a system call that fails is an answer."""
        self.until = time.monotonic() + timeout_s
        try:
            return answered(call, *args, **kwargs)
        finally:
            self.until = None

    # --- at home ---

    def _came_home(self, left: object) -> None:
        match left:
            case _AtHome(work):
                eager_tasks.start(self._at_home(work))
            case _Ended(result):
                eager_tasks.resolve(self._over or self._answer, result)
            case _Raised(error):
                eager_tasks.fail(self._over or self._answer, error)
            case _:
                self._work.close()
                error = RuntimeError(f"{self._work!r} waited on a worker for {left!r}")
                eager_tasks.fail(self._over or self._answer, error)

    async def _at_home(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
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


class _Here(threading.local):
    errand: OffloadedJob | None = None


_here = _Here()


def here() -> OffloadedJob | None:
    """The job that the calling thread runs, if any: it may block, for at most one request at a time."""
    return _here.errand


@types.coroutine
def _leave(work: Callable[[], Coroutine[Any, Any, T]]) -> Generator[_AtHome, T, T]:
    return (yield _AtHome(work))


async def at_home(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Have it done on the event loop, from wherever this is called."""
    if _here.errand is None:
        return await work()
    return await _leave(work)


class HomeClock:
    """A clock for jobs: they sleep on the event loop, so that no worker does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.now: Callable[[], Instant] = clock.now

    async def sleep(self, seconds: float) -> None:
        await at_home(lambda: self._clock.sleep(seconds))


class PoolOffload:
    """`Offload` on the workers of a pool."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T | IoFailed | TimedOut[T]:
        answer: T | IoFailed | TimedOut[T] = await OffloadedJob(work, self._pool).run(timeout_s)
        return answer

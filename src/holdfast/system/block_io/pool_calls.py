"""Calls from asyncio on the workers of a pool: the caller waits so long and no longer, the worker stays with its call."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TypeVar

from holdfast.protocol.types import IoFailed
from holdfast.system import eager_tasks
from holdfast.system.block_io.answers import answered
from holdfast.system.block_io.offload import Job
from holdfast.system.block_io.worker_pool import JobFate, PoolFull, Request, WorkerPool

T = TypeVar("T")


def future_and_wake() -> tuple[asyncio.Future[None], Callable[[], None]]:
    """A future of the running loop, and how any thread resolves it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        eager_tasks.post_to_loop(loop, eager_tasks.resolve, done, None)

    return done, wake


async def in_time(done: asyncio.Future[None], timeout_s: float) -> None:
    """Returns when the future of `future_and_wake` is done, or after that time.

    asyncio.wait() and wait_for() do the same, in three times as many steps; each lease takes a dozen of these waits.
    """
    timer = asyncio.get_running_loop().call_later(timeout_s, eager_tasks.resolve, done, None)
    try:
        await done
    finally:
        timer.cancel()


async def on_worker(
    pool: WorkerPool, function: Callable[[], T], timeout_s: float, job: Job | None = None
) -> T | IoFailed:
    """Run it on a worker of the pool, in a job on that job's; a system call that fails, or does not end in time, is an
    answer.
    """
    if job is not None:
        return job.request(timeout_s, function)
    done, wake = future_and_wake()
    request: Request[T | IoFailed] = Request(lambda _: answered(function), on_done=wake)
    try:
        pool.submit(request)
    except PoolFull:
        return IoFailed(errno.EBUSY)
    await in_time(done, timeout_s)
    if pool.give_up(request) is not JobFate.COMPLETED:
        return IoFailed(errno.ETIMEDOUT)
    return request.result()

"""Offloaded jobs in the simulator: they suspend like all simulated code, and their callers time out at random."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from holdfast.protocol.ports import Disk
from holdfast.protocol.types import IoFailed
from holdfast.system import eager_tasks
from holdfast.system.block_io.answers import answered
from holdfast.system.block_io.offload import TimedOut, Work

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D", bound=Disk)


class SimulatedJob:
    """`Job`: there are no threads here, so a job uses the ports of its process."""

    def disk(self, disk: D) -> D:
        return disk

    def request(
        self, timeout_s: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | IoFailed:
        return answered(call, *args, **kwargs)

    async def on_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await work()


class SimulatedErrands:
    """`Offload`. ``patience`` draws how many timeouts a caller waits for a whole job."""

    def __init__(self, patience: Callable[[], float]) -> None:
        self._patience = patience

    async def run(self, work: Work[T], timeout_s: float) -> T | IoFailed | TimedOut[T]:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[T | IoFailed] = loop.create_future()
        waiting: asyncio.Future[None] = loop.create_future()

        async def go() -> None:
            try:
                over.set_result(await work(SimulatedJob()))
            except Exception as e:
                over.set_exception(e)
            eager_tasks.resolve(waiting, None)

        if not eager_tasks.start(go()):
            timer = loop.call_later(self._patience() * timeout_s, eager_tasks.resolve, waiting, None)
            await waiting
            timer.cancel()
        return over.result() if over.done() else TimedOut(over)

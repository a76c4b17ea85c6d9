"""Offloaded jobs in the simulator: they suspend like all simulated code, and their callers time out at random."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from holdfast.protocol.types import IoFailed
from holdfast.system import eager_tasks
from holdfast.system.block_io.offload import TimedOut

T = TypeVar("T")


class SimulatedErrands:
    """`Offload`. ``patience`` draws how many timeouts a caller waits for a whole job."""

    def __init__(self, patience: Callable[[], float]) -> None:
        self._patience = patience

    async def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T | IoFailed | TimedOut[T]:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[T | IoFailed] = loop.create_future()
        waiting: asyncio.Future[None] = loop.create_future()

        async def go() -> None:
            try:
                over.set_result(await work)
            except Exception as e:
                over.set_exception(e)
            eager_tasks.resolve(waiting, None)

        if not eager_tasks.start(go()):
            timer = loop.call_later(self._patience() * timeout_s, eager_tasks.resolve, waiting, None)
            await waiting
            timer.cancel()
        return over.result() if over.done() else TimedOut(over)

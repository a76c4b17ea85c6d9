"""Repeats an attempt in the background until nothing is left to do: at once on news, else after 1, 2, 4 .. 30 s."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from holdfast.system import eager_tasks
from holdfast.system.clock import Clock

AGAIN_FIRST_S, AGAIN_S = 1.0, 30.0
"""Between two attempts without news, at first and at most, doubling: the lockspace is not joined yet, a start has not found
yet what an earlier daemon held, or another host has the lease.
"""


class RepeatedAttempts:
    """On the event loop. `attempt` returns whether nothing is left to do; `failed` says what it means if it raises."""

    def __init__(
        self,
        attempt: Callable[[], Awaitable[bool]],
        *,
        clock: Clock,
        is_closing: Callable[[], bool],
        failed: str,
    ) -> None:
        self._attempt = attempt
        self._clock = clock
        self._is_closing = is_closing
        self._failed = failed
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def news(self) -> None:
        """If attempts are under way, the next one begins now."""
        self._news.set()

    def begin(self) -> None:
        """There is something to do."""
        self._news.set()
        if self._task is None or self._task.done():
            self._task = eager_tasks.keep_watch(self._until_none_is_left(), self._failed)

    async def _until_none_is_left(self) -> None:
        again_s = AGAIN_FIRST_S
        while not self._is_closing():
            if self._news.is_set():
                again_s = AGAIN_FIRST_S
            self._news.clear()
            if await self._attempt() and not self._news.is_set():
                return
            waited = {
                asyncio.ensure_future(self._news.wait()),
                asyncio.ensure_future(self._clock.sleep(again_s)),
            }
            _, rest = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for each in rest:
                each.cancel()
            again_s = min(2 * again_s, AGAIN_S)

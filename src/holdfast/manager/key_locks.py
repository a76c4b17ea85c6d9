"""Key locks: state may change between two awaits, so a task that waits for storage first takes the key lock.

A key lock is held on a resource name, a file key or a lock while a storage call about it is under way. Other tasks that
need the same thing wait for its end and then start over; no decision uses state from before the wait. Names are locked
before keys, and the holder of a key never waits for a name, so there is no deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from holdfast.system import eager_tasks

T = TypeVar("T")


class KeyLocks:
    """The key locks that are held, with their waiters."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on: dict[Hashable, list[asyncio.Future[None]]] = {}
        """The key locks that are held, with the futures of their waiters; others may only read it."""

    def take(self, thing: Hashable) -> None:
        self.on[thing] = []

    def is_locked(self, thing: Hashable) -> bool:
        return thing in self.on

    def first_taken(self, things: Iterable[Hashable]) -> Hashable | None:
        for thing in things:
            if thing in self.on:
                return thing
        return None

    def end(self, thing: Hashable) -> None:
        for waiter in self.on.pop(thing):
            eager_tasks.resolve(waiter, None)

    async def wait(self, thing: Hashable) -> None:
        """Returns when the present holder has ended; there may be another one by then."""
        waiters = self.on.get(thing)
        if waiters is not None:
            future = asyncio.get_running_loop().create_future()
            waiters.append(future)
            await future

    async def holding(self, things: Sequence[Hashable], work: Coroutine[Any, Any, T]) -> T:
        """Do the work; if it has to wait, hold the key locks on these things until it has ended."""
        try:
            waits_for = work.send(None)
        except StopIteration as end:
            result: T = end.value
            return result
        # Nothing else has run since the first step, so it is early enough to take the key locks now.
        free = [thing for thing in things if not self.is_locked(thing)]
        for thing in free:
            self.take(thing)
        try:
            return await eager_tasks.rest(work, waits_for)
        finally:
            for thing in free:
                self.end(thing)

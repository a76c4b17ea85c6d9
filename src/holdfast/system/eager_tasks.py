"""Coroutines that start at once, in the caller's own step.

Most calls of the manager never wait: their storage is local, nobody is in the way.  A task would cost a
turn of the event loop for each; here the coroutine runs straight away, and only what is left of it when it
first waits becomes a task.  (Python 3.12's eager tasks do the same; this is for 3.11.)

So the first step of a started coroutine runs outside of any task.  `asyncio.timeout` and, since Python 3.12,
`asyncio.wait_for` work in a task only: nothing in this package uses them (a rule of the house).  `asyncio.wait`
with a timeout works in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

_running: set[asyncio.Task[Any]] = set()
"""asyncio keeps only weak references to tasks; these are the strong ones."""


def start(coroutine: Coroutine[Any, Any, T], on_done: Callable[[T], None] | None = None) -> bool:
    """Run the coroutine now as far as it goes; `on_done` gets its result, now or later.

    Returns True if it has already ended.  An exception in the first step is raised here; a later one is
    logged as what it is, a bug.  Before its first wait the coroutine may not ask for the current task.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration as end:
        if on_done is not None:
            on_done(end.value)
        return True
    task = asyncio.get_running_loop().create_task(rest(coroutine, waits_for))
    _running.add(task)

    def ended(task: asyncio.Task[T]) -> None:
        _running.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("unexpected failure in the background", exc_info=error)
        elif on_done is not None:
            on_done(task.result())

    task.add_done_callback(ended)
    return False


def keep_watch(coroutine: Coroutine[Any, Any, None], failed: str) -> asyncio.Task[None]:
    """Run a loop that sleeps most of the time, as a task of its own: a stop waits for what `start` begins, and not for it.

    The caller keeps the task. A failure is logged, with `failed` as what it means.
    """
    task = asyncio.get_running_loop().create_task(coroutine)

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: unexpected failure", failed, exc_info=error)

    task.add_done_callback(ended)
    return task


async def rest(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> T:
    """The remainder of a coroutine that has already waited once, as a coroutine: a task takes nothing else since 3.12."""
    return await _rest(coroutine, waits_for)


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Hand what it waits for to the task, then the answer back to it, until it ends.

    The future still carries the mark that `await` put on it, so the task takes it as its own.
    """
    while True:
        try:
            answer = yield waits_for
        except BaseException as error:
            step: Callable[[], Any] = lambda error=error: coroutine.throw(error)  # type: ignore[misc]  # noqa: E731
        else:
            step = lambda answer=answer: coroutine.send(answer)  # type: ignore[misc]  # noqa: E731
        try:
            waits_for = step()
        except StopIteration as end:
            result: T = end.value
            return result


def resolve(future: asyncio.Future[T], result: T) -> None:
    """Give a future its result, unless it is done already: its waiter was cancelled, or somebody was quicker."""
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """The same with an exception."""
    if not future.done():
        future.set_exception(error)


def post_to_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object
) -> None:
    """From another thread: have it called on the event loop, unless that is gone: the daemon is exiting then."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def under_way() -> bool:
    """Whether something that was started waits for the event loop to go on with it."""
    return bool(_running)


async def all_ended(timeout_s: float | None = None) -> bool:
    """Wait until everything that was started has ended, or for that long; whether it has. For shutdown and tests."""
    loop = asyncio.get_running_loop()
    until = None if timeout_s is None else loop.time() + timeout_s
    while _running:
        left_s = None if until is None else until - loop.time()
        if left_s is not None and left_s <= 0:
            return False
        await asyncio.wait(set(_running), timeout=left_s)
    return True

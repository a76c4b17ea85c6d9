"""Coroutines that start at once, in the caller's own step.

Most calls of the manager never wait: their storage is local, nobody is in the way.  A task would cost a
turn of the event loop for each; here the coroutine runs straight away, and only what is left of it when it
first waits becomes a task.  (Python 3.12's eager tasks do the same; this is for 3.11.)
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


@types.coroutine
def rest(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Goes on with a coroutine that has already waited once: hand its future to the task, then the answer back.

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


def tell_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """From another thread: have it called on the event loop, unless that is gone: the daemon is exiting then."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def under_way() -> bool:
    """Whether something that was started waits for the event loop to go on with it."""
    return bool(_running)


async def all_ended() -> None:
    """Wait for everything that was started and has not ended; for shutdown and tests."""
    while _running:
        await asyncio.wait(set(_running))

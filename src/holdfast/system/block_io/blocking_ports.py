"""Protocol code on a thread of its own: ports that block instead of suspending.

A renewal must not wait for its turn in an event loop that serves clients. So it runs on a thread that does nothing
else, over ports whose coroutines never suspend; one `send` then runs the whole coroutine to its end.

Such a thread is stopped by interrupting its clock: the `sleep` that it is in, and every later one, raises
`Interrupted`, which passes through protocol code unhandled. A sleep never ends early otherwise: protocols depend
on the time having passed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from holdfast.protocol.types import Instant

T = TypeVar("T")


class Interrupted(Exception):
    """Somebody wants this thread to stop waiting."""


class BlockingClock:
    """The `Clock` port for one thread: CLOCK_BOOTTIME, and sleeping that blocks."""

    def __init__(self) -> None:
        self._interrupted = threading.Event()

    def now(self) -> Instant:
        return Instant(time.clock_gettime(time.CLOCK_BOOTTIME))

    async def sleep(self, seconds: float) -> None:
        until = self.now() + seconds
        while True:
            # The wait counts by a clock that stops during suspend; measured is what counts.
            if self._interrupted.wait(max(0.0, until - self.now())):
                raise Interrupted
            if self.now() >= until:
                return

    def interrupt(self) -> None:
        """From any thread, once for all: there is no more sleeping with this clock."""
        self._interrupted.set()


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose ports never suspend; one that suspends all the same is a bug."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} suspended where nothing can resume it")


def start_thread(
    name: str, coroutine: Coroutine[Any, Any, T], on_end: Callable[[T | BaseException], None]
) -> threading.Thread:
    """Run it on a new thread; `on_end` is called there with its result or with what it raised."""

    def run() -> None:
        try:
            ended: T | BaseException = run_blocking(coroutine)
        except BaseException as e:  # carried, whatever it is
            ended = e
        on_end(ended)

    # A daemon thread: one that hangs in the kernel cannot be waited for at exit.
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread

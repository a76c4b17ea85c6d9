"""A thread of its own for protocol code: it blocks, it can be interrupted, and its end is told."""

import asyncio
import threading

import pytest

from holdfast.system.block_io.blocking_ports import BlockingClock, Interrupted, run_blocking, start_thread

# A stuck test shall end.
AMPLE_S = 20.0


def test_sleep_returns_not_before_the_time_has_passed() -> None:
    clock = BlockingClock()
    begun = clock.now()
    run_blocking(clock.sleep(0.05))
    assert clock.now() - begun >= 0.05


def test_an_interrupted_thread_ends_its_sleep_at_once_and_that_is_told() -> None:
    clock, ended, found = BlockingClock(), threading.Event(), []

    def on_end(result: object) -> None:
        found.append(result)
        ended.set()

    start_thread("sleeper", clock.sleep(3600), on_end)
    clock.interrupt()
    assert ended.wait(AMPLE_S)
    assert isinstance(found[0], Interrupted)
    with pytest.raises(Interrupted):
        run_blocking(clock.sleep(0))


def test_a_coroutine_that_suspends_where_nothing_resumes_it_is_a_bug() -> None:
    async def suspends() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="suspended where nothing can resume it"):
        run_blocking(suspends())

"""The heartbeat beside the clock: what arrives while it measures, and what its listeners do to it."""

import logging

import pytest

from holdfast.protocol.timing import Timing
from holdfast.protocol.words import Instant
from holdfast.supervision.heartbeat import Heartbeat, Watched
from holdfast.system.watchdog import NoWatchdog

TIMING = Timing(10, 60)


class RacingClock:
    """Time goes on by a second with each reading; `between` happens right after one."""

    def __init__(self) -> None:
        self.time = 100.0
        self.between: list[Watched] = []

    def now(self) -> Instant:
        read = Instant(self.time)
        self.time += 1
        while self.between:
            self.between.pop().renewed(Instant(self.time))
        return read

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


def test_a_renewal_that_is_reported_while_the_clock_is_read_counts_at_the_next_beat() -> None:
    clock = RacingClock()
    heartbeat = Heartbeat(clock=clock, watchdog=NoWatchdog())
    watched = heartbeat.watch("A", TIMING, Instant(100))
    assert watched is not None
    clock.between.append(watched)
    heartbeat.beat()
    before = watched.expiry.renewed_at
    heartbeat.beat()
    assert before == Instant(100)
    assert watched.expiry.renewed_at == Instant(102)


def test_a_listener_that_fails_keeps_nobody_else_from_being_told(caplog: pytest.LogCaptureFixture) -> None:
    clock = RacingClock()
    heartbeat = Heartbeat(clock=clock, watchdog=NoWatchdog())
    told: list[str] = []

    def broken(_: str) -> None:
        raise ZeroDivisionError

    heartbeat.watch("A", TIMING, Instant(100), on_lost=broken)
    heartbeat.watch("B", TIMING, Instant(100), on_lost=told.append)
    clock.time += TIMING.fail_s
    with caplog.at_level(logging.ERROR):
        heartbeat.beat()
    assert len(told) == 1
    assert "lockspace A: a callback failed" in caplog.text


def test_a_listener_may_dismiss_its_lease() -> None:
    clock = RacingClock()
    heartbeat = Heartbeat(clock=clock, watchdog=NoWatchdog())
    watched = heartbeat.watch(
        "A", TIMING, Instant(100), on_lost=lambda _: watched.dismiss(lambda: False) if watched else None
    )
    clock.time += TIMING.fail_s
    heartbeat.beat()
    assert heartbeat.watch("B", TIMING, Instant(clock.time)) is not None

"""The heartbeat beside the clock: what arrives while it measures, and what its listeners do to it."""

import logging

import pytest

from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant
from holdfast.supervision.lease_monitor import Heartbeat, Watched
from holdfast.system.watchdog.device import NoWatchdog, WatchdogRefused

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


class FedWatchdog(NoWatchdog):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.fed = self.proven = self.disarmed = 0

    def prove(self) -> None:
        self.proven += 1

    def feed(self, until: Instant) -> bool:
        self.fed += 1
        return True

    def disarm(self) -> None:
        self.disarmed += 1


def test_owners_that_are_not_guarded_yet_starve_the_watchdog_and_keep_it_from_being_proven() -> None:
    watchdog = FedWatchdog()
    heartbeat = Heartbeat(clock=RacingClock(), watchdog=watchdog)
    heartbeat.owe("A")
    heartbeat.owe("B")
    assert heartbeat.watch("A", TIMING, Instant(100)) is not None
    heartbeat.beat()
    with pytest.raises(WatchdogRefused, match="lockspace B has owners"):
        heartbeat.prove()
    assert heartbeat.watch("C", TIMING, Instant(100)) is None
    assert (watchdog.fed, watchdog.proven, watchdog.disarmed) == (0, 0, 0)
    heartbeat.settle("B")
    heartbeat.beat()
    heartbeat.prove()
    assert (watchdog.fed, watchdog.proven) == (1, 1)

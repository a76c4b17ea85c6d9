"""The heartbeat beside the clock: what arrives while it measures, and what its listeners do to it."""

import logging

import pytest

from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant
from holdfast.supervision.lease_monitor import LeaseMonitor, MonitoredLease
from holdfast.system.watchdog.device import NoWatchdog, WatchdogRefused

TIMING = Timing(10, 60)


class RacingClock:
    """Time goes on by a second with each reading; `between` happens right after one."""

    def __init__(self) -> None:
        self.time = 100.0
        self.between: list[MonitoredLease] = []

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
    lease_monitor = LeaseMonitor(clock=clock, watchdog=NoWatchdog())
    watched = lease_monitor.watch("A", TIMING, Instant(100))
    assert watched is not None
    clock.between.append(watched)
    lease_monitor.beat()
    before = watched.expiry.renewed_at
    lease_monitor.beat()
    assert before == Instant(100)
    assert watched.expiry.renewed_at == Instant(102)


def test_a_listener_that_fails_keeps_nobody_else_from_being_told(caplog: pytest.LogCaptureFixture) -> None:
    clock = RacingClock()
    lease_monitor = LeaseMonitor(clock=clock, watchdog=NoWatchdog())
    calls: list[str] = []

    def broken(_: str) -> None:
        raise ZeroDivisionError

    lease_monitor.watch("A", TIMING, Instant(100), on_lost=broken)
    lease_monitor.watch("B", TIMING, Instant(100), on_lost=calls.append)
    clock.time += TIMING.fail_s
    with caplog.at_level(logging.ERROR):
        lease_monitor.beat()
    assert len(calls) == 1
    assert "lockspace A: a callback failed" in caplog.text


def test_a_listener_may_dismiss_its_lease() -> None:
    clock = RacingClock()
    lease_monitor = LeaseMonitor(clock=clock, watchdog=NoWatchdog())
    watched = lease_monitor.watch(
        "A", TIMING, Instant(100), on_lost=lambda _: watched.dismiss(lambda: False) if watched else None
    )
    clock.time += TIMING.fail_s
    lease_monitor.beat()
    assert lease_monitor.watch("B", TIMING, Instant(clock.time)) is not None


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
    lease_monitor = LeaseMonitor(clock=RacingClock(), watchdog=watchdog)
    lease_monitor.block_feeding("A")
    lease_monitor.block_feeding("B")
    assert lease_monitor.watch("A", TIMING, Instant(100)) is not None
    lease_monitor.beat()
    with pytest.raises(WatchdogRefused, match="lockspace B has owners"):
        lease_monitor.prove()
    assert lease_monitor.watch("C", TIMING, Instant(100)) is None
    assert (watchdog.fed, watchdog.proven, watchdog.disarmed) == (0, 0, 0)
    lease_monitor.settle("B")
    lease_monitor.beat()
    lease_monitor.prove()
    assert (watchdog.fed, watchdog.proven) == (1, 1)
    assert (lease_monitor.feeds, lease_monitor.fed_s_ago is not None) == (1, True)

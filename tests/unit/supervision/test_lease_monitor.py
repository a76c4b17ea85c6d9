"""The heartbeat beside the clock: what arrives while it measures, and what its listeners do to it."""

import logging

import pytest

from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant
from holdfast.supervision.lease_monitor import ARM_PAUSE_S, LeaseMonitor, MonitoredLease
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
    assert watchdog.fed == 1, "A has waited for it"
    lease_monitor.beat()
    lease_monitor.prove()
    assert (watchdog.fed, watchdog.proven) == (2, 1)
    assert (lease_monitor.feeds, lease_monitor.fed_s_ago is not None) == (2, True)


class Bound:
    """`FedUntil`, and every bound that was written."""

    def __init__(self, left: float | None = None) -> None:
        self.until: Instant | None = Instant(left) if left is not None else None
        self.written: list[Instant | None] = []

    def read(self) -> Instant | None:
        return self.until

    def write(self, until: Instant | None) -> None:
        self.until = until
        self.written.append(until)

    def descriptor(self) -> int:
        return 9


class ArmedWatchdog(FedWatchdog):
    """One that an earlier program has armed, and until when it was fed each time."""

    def __init__(self, clock: RacingClock) -> None:
        super().__init__()
        self.bounds: list[float] = []
        self._clock = clock

    def feed(self, until: Instant) -> bool:
        if self._clock.time >= until:
            return False
        self.bounds.append(until)
        return super().feed(until)

    def descriptor(self) -> int | None:
        return 7


class SetClock(RacingClock):
    """Time that a test sets."""

    def now(self) -> Instant:
        return Instant(self.time)


def test_the_bound_of_each_feeding_is_left_for_the_next_program_and_none_when_nothing_is_fed() -> None:
    clock, bound = SetClock(), Bound()
    lease_monitor = LeaseMonitor(clock=clock, watchdog=NoWatchdog(), fed_until=bound)
    early = lease_monitor.watch("A", Timing(1, 10), Instant(100))
    late = lease_monitor.watch("B", TIMING, Instant(99))
    assert early is not None and late is not None
    lease_monitor.beat()
    assert bound.until == Instant(108)  # the earlier of 108 and 179
    early.renewed(Instant(101))
    clock.time = 102
    lease_monitor.beat()
    assert bound.until == Instant(109)
    late.corrupted("somebody else's")
    lease_monitor.beat()
    assert bound.until is None


def test_a_bound_that_may_come_down_is_left_to_nobody_before_it_has() -> None:
    clock, bound = SetClock(), Bound()
    lease_monitor = LeaseMonitor(clock=clock, watchdog=NoWatchdog(), fed_until=bound)
    watched = lease_monitor.watch("A", Timing(2, 10), Instant(100))
    assert watched is not None
    bound.written.clear()
    watched.lower(Timing(1, 10))
    lease_monitor.beat()
    assert bound.written == [None, Instant(108)]


def test_an_earlier_programs_bound_feeds_until_its_leases_are_guarded() -> None:
    clock, bound = SetClock(), Bound(109.0)
    watchdog = ArmedWatchdog(clock)
    lease_monitor = LeaseMonitor(clock=clock, watchdog=watchdog, fed_until=bound)
    lease_monitor.beat()
    lease_monitor.block_feeding("A")
    lease_monitor.block_feeding("B")
    lease_monitor.beat()
    assert lease_monitor.watch("A", TIMING, Instant(100)) is not None
    # B's owners are not guarded: nothing new may depend on what is fed for the earlier program.
    assert lease_monitor.watch("C", TIMING, Instant(100)) is None
    assert watchdog.bounds == [109.0] * 4 and watchdog.disarmed == 0
    assert lease_monitor.watch("B", Timing(1, 10), Instant(100.5)) is not None
    assert (watchdog.bounds[-1], bound.until) == (108.5, 108.5)
    clock.time = 109.5
    lease_monitor.beat()
    assert watchdog.bounds[-1] == 108.5 and lease_monitor.starving


@pytest.mark.parametrize("ends", ["time", "lost", "failed"])
def test_an_earlier_programs_bound_ends(ends: str) -> None:
    clock, bound = SetClock(), Bound(109.0)
    watchdog = ArmedWatchdog(clock)
    lease_monitor = LeaseMonitor(clock=clock, watchdog=watchdog, fed_until=bound)
    lease_monitor.block_feeding("A")
    guarded = lease_monitor.watch("B", TIMING, Instant(99)) if ends == "failed" else None
    lease_monitor.block_feeding("B")
    guarded = guarded or lease_monitor.watch("B", TIMING, Instant(99))
    assert guarded is not None
    lease_monitor.beat()
    fed = len(watchdog.bounds)
    assert fed
    match ends:
        case "time":
            clock.time = 109.0
        case "lost":
            lease_monitor.forget_earlier()
        case _:
            guarded.corrupted("somebody else's")
    lease_monitor.beat()
    assert len(watchdog.bounds) == fed and bound.until is None
    assert watchdog.disarmed == 0


def test_a_bound_without_an_armed_watchdog_arms_none() -> None:
    clock = SetClock()
    watchdog = FedWatchdog()
    lease_monitor = LeaseMonitor(clock=clock, watchdog=watchdog, fed_until=Bound(109.0))
    lease_monitor.beat()
    assert watchdog.fed == 0


def test_a_stopped_watchdog_leaves_no_bound() -> None:
    clock, bound = SetClock(), Bound(109.0)
    watchdog = ArmedWatchdog(clock)
    lease_monitor = LeaseMonitor(clock=clock, watchdog=watchdog, fed_until=bound)
    lease_monitor.block_feeding("A")
    lease_monitor.settle("A")
    assert watchdog.disarmed == 1 and bound.until is None
    lease_monitor.beat()
    assert watchdog.bounds == []


class UnarmedWatchdog(FedWatchdog):
    """wdmd's: one that is fed nothing before it was proven. `refuses`: why it can't be."""

    fences = True

    def __init__(self, refuses: str = "") -> None:
        super().__init__()
        self.refuses, self.is_open = refuses, False

    def prove(self) -> None:
        super().prove()
        if self.refuses:
            raise WatchdogRefused(self.refuses)
        self.is_open = True

    def feed(self, until: Instant) -> bool:
        return self.descriptor() is not None and super().feed(until)

    def descriptor(self) -> int | None:
        return 7 if self.is_open else None


def test_a_watchdog_that_nobody_has_armed_is_armed_for_owners_of_an_earlier_program() -> None:
    """That program had stopped it, and its journal is lost: locks may be held, and new ones are granted soon."""
    watchdog, armed = UnarmedWatchdog(), list[str]()
    lease_monitor = LeaseMonitor(
        clock=SetClock(), watchdog=watchdog, on_armed_late=lambda: armed.append("stored")
    )
    lease_monitor.block_feeding("A")
    assert lease_monitor.watch("A", TIMING, Instant(100)) is not None
    assert (watchdog.proven, watchdog.fed) == (1, 1)
    assert lease_monitor.why_unarmed() == ""
    assert armed == ["stored"], "the next program gets it"
    lease_monitor.beat()
    assert (watchdog.proven, armed) == (1, ["stored"])


def test_no_new_lock_depends_on_leases_whose_watchdog_can_not_be_armed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, watchdog = SetClock(), UnarmedWatchdog("wdmd: no such file")
    lease_monitor = LeaseMonitor(clock=clock, watchdog=watchdog)
    assert lease_monitor.why_unarmed() == "", "there is no lease yet"
    lease_monitor.block_feeding("A")
    guarded = lease_monitor.watch("A", TIMING, Instant(100))
    assert guarded is not None
    assert "nothing would reset this host: wdmd: no such file" in lease_monitor.why_unarmed()
    assert "the watchdog can't be armed: wdmd: no such file" in caplog.text
    for clock.time in (101.0, 102.0):
        lease_monitor.beat()
    assert watchdog.proven == 1, "not at each beat"
    watchdog.refuses = ""
    guarded.renewed(Instant(110.0))
    clock.time = 100.0 + ARM_PAUSE_S + 1
    lease_monitor.beat()
    assert lease_monitor.why_unarmed() == ""
    assert watchdog.proven == 2


def test_a_watchdog_is_not_proven_late_while_owners_of_another_lockspace_are_not_guarded() -> None:
    """To prove it is to stop it."""
    watchdog = UnarmedWatchdog()
    lease_monitor = LeaseMonitor(clock=SetClock(), watchdog=watchdog)
    lease_monitor.block_feeding("A")
    lease_monitor.block_feeding("B")
    assert lease_monitor.watch("A", TIMING, Instant(100)) is not None
    lease_monitor.beat()
    assert watchdog.proven == 0
    assert "it can not be fed yet" in lease_monitor.why_unarmed()
    lease_monitor.settle("B")
    assert (watchdog.proven, lease_monitor.why_unarmed()) == (1, "")

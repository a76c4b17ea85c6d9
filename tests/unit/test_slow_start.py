"""A program that starts slowly does not take over from one that feeds a watchdog: the host would be reset meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.daemon import lifecycle
from holdfast.daemon.lifecycle import slow_start
from holdfast.daemon.lockspaces import TimeLeft
from holdfast.system.watchdog.passed import PassedWatchdog


@pytest.mark.parametrize(
    ("check_s", "fire_timeout_s", "feeds_first", "refused"),
    [
        (0.9, 10, False, False),
        (5.0, 10, False, False),
        (7.2, 10, False, True),
        (7.2, 10, True, False),
        (10.2, 10, True, True),
        (7.2, 60, False, False),
        (7.2, 0, False, False),
    ],
)
def test_a_slow_start_is_refused_by_the_fire_timeout(
    check_s: float, fire_timeout_s: int, feeds_first: bool, refused: bool
) -> None:
    said = slow_start(check_s, fire_timeout_s, feeds_first=feeds_first)
    assert bool(said) is refused
    assert not refused or (f"{check_s} s" in said and "10 s" in said)


class Host:
    """A host with a watchdog, and one lease that is renewed every 4 s, from second 100 on. Its dry run takes `check_s`."""

    def __init__(self, check_s: float, *, fails_after_s: float = 16.0, pause_s: float = 0.0) -> None:
        self.time = 100.0
        self.took_over_at: float | None = None
        self._check_s, self._fails_after_s, self._pause_s = check_s, fails_after_s, pause_s
        gate = SimpleNamespace(
            inside=lambda at_least_s=0.0: [], close=lambda: self._passes(pause_s), open=lambda: None
        )
        self.parts: Any = SimpleNamespace(
            ports=SimpleNamespace(clock=SimpleNamespace(now=lambda: self.time, sleep=self._sleep), gate=gate),
            virtlockd=SimpleNamespace(connections=[]),
            manager=SimpleNamespace(table=[]),
            leases=SimpleNamespace(
                why_not_reexec=lambda: "",
                armed_watchdog=lambda: PassedWatchdog(9, "device", "/dev/watchdog", fire_timeout_s=10),
                time_left=lambda: TimeLeft(
                    self._fails_after_s - (self.time - 100) % 4, self._fails_after_s, 6.0
                ),
            ),
        )

    async def _sleep(self, seconds: float) -> None:
        self.time += seconds

    def _passes(self, seconds: float) -> None:
        self.time += seconds

    async def _dry_run(self) -> list[str]:
        self.time += self._check_s
        return []

    def _execute(self) -> None:
        self.took_over_at = self.time
        raise OSError("it has taken over")

    def reload(self, *, feeds_first: bool) -> str:
        [reason] = asyncio.run(
            lifecycle.reload(
                self.parts, why_not=self._dry_run, execute=self._execute, feeds_first=lambda: feeds_first
            )
        )
        return reason


def test_a_reload_is_refused_after_a_slow_dry_run_of_a_program_that_feeds_late() -> None:
    host = Host(check_s=7.2)
    assert "took 7.2 s to start" in host.reload(feeds_first=False)
    assert host.took_over_at is None


def test_a_program_that_feeds_first_has_the_time_of_the_lease() -> None:
    host = Host(check_s=7.2)
    host.reload(feeds_first=True)
    # At 107.2 the lease is 3.2 s old, and 12.8 s are less than twice the dry run: the next renewal is at 108.
    assert host.took_over_at == pytest.approx(108.0, abs=0.11)


def test_a_reload_does_not_wait_for_a_renewal_that_it_does_not_need() -> None:
    host = Host(check_s=5.0)
    host.reload(feeds_first=True)
    assert host.took_over_at == 105.0


def test_a_start_that_no_lease_would_outlast_is_refused_at_once() -> None:
    host = Host(check_s=8.1)
    assert "a lease that VMs depend on fails in 15.9 s" in host.reload(feeds_first=True)
    assert (host.took_over_at, host.time) == (None, 108.1)


def test_a_lease_that_grew_old_while_requests_ended_keeps_the_next_program_out() -> None:
    host = Host(check_s=7.2, pause_s=2.0)
    assert "a lease that VMs depend on fails in 13.9 s" in host.reload(feeds_first=True)
    assert host.took_over_at is None

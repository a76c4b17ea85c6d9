"""A program that starts slowly does not take over from one that feeds a watchdog: the host would be reset meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.daemon import lifecycle
from holdfast.daemon.lifecycle import slow_start
from holdfast.system.host.descriptors import PassedWatchdog


@pytest.mark.parametrize(
    ("check_s", "fire_timeout_s", "refused"),
    [(0.9, 10, False), (5.0, 10, False), (7.2, 10, True), (7.2, 60, False), (7.2, 0, False)],
)
def test_a_slow_start_is_refused_by_the_fire_timeout(
    check_s: float, fire_timeout_s: int, refused: bool
) -> None:
    said = slow_start(check_s, fire_timeout_s)
    assert bool(said) is refused
    assert not refused or ("7.2 s" in said and "10 s" in said)


def test_a_reload_is_refused_after_a_slow_dry_run() -> None:
    at = [100.0]

    async def dry_run() -> list[str]:
        at[0] += 7.2
        return []

    def execute() -> None:
        raise AssertionError("it has taken over")

    parts: Any = SimpleNamespace(
        ports=SimpleNamespace(
            clock=SimpleNamespace(now=lambda: at[0]), gate=SimpleNamespace(inside=lambda at_least_s: [])
        ),
        leases=SimpleNamespace(
            why_not_reexec=lambda: "",
            armed_watchdog=lambda: PassedWatchdog(9, "device", "/dev/watchdog", fire_timeout_s=10),
        ),
    )
    [reason] = asyncio.run(lifecycle.reload(parts, why_not=dry_run, execute=execute))
    assert "took 7.2 s to start" in reason

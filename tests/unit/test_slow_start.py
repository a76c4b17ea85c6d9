"""A program that starts slowly does not take over from one that feeds a watchdog: the host would be reset meanwhile."""

from __future__ import annotations

import pytest

from holdfast.daemon.lifecycle import slow_start


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

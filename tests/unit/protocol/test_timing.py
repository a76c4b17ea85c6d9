"""The bounds that follow from io_timeout, and the orders between them that safety rests on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant, timestamp_of


@pytest.mark.parametrize(
    ("io_timeout_s", "bounds", "claim_free", "claim_held", "takeover"),
    [
        (5, (10, 30, 40, 100, 30), (10, 25), (100, 130), (100, 135)),
        (10, (20, 60, 80, 140, 60), (20, 50), (140, 200), (140, 210)),
        (20, (40, 120, 160, 220, 120), (40, 100), (220, 340), (220, 360)),
    ],
)
def test_the_table_of_bounds(
    io_timeout_s: int,
    bounds: tuple[int, ...],
    claim_free: tuple[int, int],
    claim_held: tuple[int, int],
    takeover: tuple[int, int],
) -> None:
    timing = Timing(io_timeout_s)
    assert (timing.renewal_s, timing.warn_s, timing.fail_s, timing.dead_s, timing.notify_s) == bounds
    assert (timing.claim_free_s, timing.claim_held_s, timing.takeover_s) == (claim_free, claim_held, takeover)
    assert timing.renewal_write_timeout_s == timing.dead_s


@given(st.integers(1, 255), st.integers(1, 600))
def test_every_valid_pair_of_timeouts_keeps_every_order(io_timeout_s: int, fire_timeout_s: int) -> None:
    assert Timing(io_timeout_s, fire_timeout_s).broken() == ()


@pytest.mark.parametrize(("io_timeout_s", "fire_timeout_s"), [(0, 60), (256, 60), (10, 0)])
def test_a_broken_order_is_told_by_name_with_both_values(io_timeout_s: int, fire_timeout_s: int) -> None:
    assert Timing(io_timeout_s, fire_timeout_s).broken()


def test_without_fire_timeout_another_host_would_take_over_while_owners_are_stopped() -> None:
    found = [str(each) for each in Timing(10, 0).broken()]
    assert found[0] == "fail 80 s must be below dead 80 s: owners are stopped before another host takes over"


@pytest.mark.parametrize(("fire", "grace"), [(120, 40), (60, 40), (59, 15), (30, 15), (29, 0), (1, 0)])
def test_grace_leaves_room_for_the_watchdog(fire: int, grace: int) -> None:
    assert Timing(10, fire).grace_s == grace


def test_a_host_that_does_not_tell_its_io_timeout_is_judged_by_ours() -> None:
    assert Timing(10).of_host(0).dead_s == 140
    assert Timing(10).of_host(20).dead_s == 220


def test_our_timestamp_is_never_the_one_that_means_free() -> None:
    assert timestamp_of(Instant(0.2)) == 1
    assert timestamp_of(Instant(17.9)) == 17

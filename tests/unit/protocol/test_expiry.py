"""The age of our own lease: what happens at each bound, and what can no longer be undone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.protocol.expiry import (
    Calm,
    Corrupted,
    Event,
    Expire,
    Expiry,
    Fail,
    Feed,
    Phase,
    Renewed,
    Ticked,
    Warn,
)
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant

TIMING = Timing(10, 60)  # renewal 20, warn 60, fail 80, dead 140


def expiry_at(start: float = 1000.0) -> Expiry:
    return Expiry(TIMING, Instant(start))


def kinds(actions: tuple[object, ...]) -> list[type]:
    return [type(action) for action in actions]


def test_each_bound_is_said_once_and_in_order() -> None:
    expiry = expiry_at()
    assert expiry.step(Instant(1059.9), Ticked()) == ()
    assert kinds(expiry.step(Instant(1060), Ticked())) == [Warn]
    assert expiry.step(Instant(1079.9), Ticked()) == ()
    assert kinds(expiry.step(Instant(1080), Ticked())) == [Fail]
    assert expiry.step(Instant(1139.9), Ticked()) == ()
    assert kinds(expiry.step(Instant(1140), Ticked())) == [Expire]
    assert expiry.step(Instant(9999), Ticked()) == ()
    assert expiry.phase is Phase.DEAD


def test_the_age_counts_from_before_the_write() -> None:
    expiry = expiry_at()
    # Begun at 1020, but storage held the write until 1050: the lease still ends 80 s after 1020.
    assert expiry.step(Instant(1050), Renewed(Instant(1020))) == (Feed(Instant(1100)),)
    assert expiry.may_feed(Instant(1099.9))
    assert not expiry.may_feed(Instant(1100))


def test_a_renewal_in_time_ends_a_warning() -> None:
    expiry = expiry_at()
    expiry.step(Instant(1070), Ticked())
    assert kinds(expiry.step(Instant(1075), Renewed(Instant(1072)))) == [Calm, Feed]
    assert expiry.phase is Phase.OK


def test_a_renewal_that_comes_after_the_failure_does_not_bring_the_lease_back() -> None:
    expiry = expiry_at()
    assert kinds(expiry.step(Instant(1080), Renewed(Instant(1079.5)))) == [Fail]
    assert expiry.step(Instant(1081), Renewed(Instant(1080.5))) == ()
    assert not expiry.may_feed(Instant(1081))


def test_the_watchdog_may_not_be_fed_at_the_fail_bound_even_before_anybody_ticked() -> None:
    expiry = expiry_at()
    assert expiry.phase is Phase.OK
    assert not expiry.may_feed(Instant(1080))
    assert not expiry.may_write(Instant(1080))


def test_a_corrupt_record_ends_the_lease_at_once_and_for_good() -> None:
    expiry = expiry_at()
    assert kinds(expiry.step(Instant(1001), Corrupted("not ours"))) == [Fail]
    assert expiry.step(Instant(1002), Renewed(Instant(1001.5))) == ()
    assert not expiry.may_feed(Instant(1003))


def test_after_a_long_suspend_everything_is_said_at_once() -> None:
    expiry = expiry_at()
    assert kinds(expiry.step(Instant(5000), Ticked())) == [Fail, Expire]


def test_an_older_renewal_never_makes_the_lease_older() -> None:
    expiry = expiry_at()
    expiry.step(Instant(1045), Renewed(Instant(1040)))
    assert expiry.step(Instant(1046), Renewed(Instant(1020))) == ()
    assert expiry.fails_at == Instant(1120)


def test_time_that_goes_backwards_is_a_bug_of_ours() -> None:
    expiry = expiry_at()
    expiry.step(Instant(1010), Ticked())
    with pytest.raises(ValueError, match="back to"):
        expiry.step(Instant(1009), Ticked())
    with pytest.raises(ValueError, match="cannot be reported"):
        expiry.step(Instant(1011), Renewed(Instant(1012)))


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.sampled_from("rtc")), max_size=40))
def test_feeding_never_reaches_beyond_the_fail_bound_and_failing_is_final(
    steps: list[tuple[float, float, str]],
) -> None:
    expiry, now, last_good, failed = expiry_at(), 1000.0, 1000.0, False
    for pause, took, kind in steps:
        now += pause
        event: Event = Ticked()
        if kind == "r":
            event = Renewed(Instant(now - min(took, pause)))
        elif kind == "c":
            event = Corrupted("torn")
        before = expiry.phase
        actions = expiry.step(Instant(now), event)
        for action in actions:
            if isinstance(action, Feed):
                assert not failed
                assert action.until == expiry.renewed_at + TIMING.fail_s
                assert action.until > now
                last_good = expiry.renewed_at
        assert expiry.phase >= before or before is Phase.WARN
        failed = failed or expiry.phase >= Phase.FAIL
        assert expiry.may_feed(Instant(now)) == (not failed and now < last_good + TIMING.fail_s)

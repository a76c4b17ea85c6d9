"""The ladder: who is asked, who is stopped, who is killed, and when, counted from the lease."""

import pytest

from holdfast.model import LockFailureAction as Action
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant
from holdfast.supervision.escalation import Act, AllGone, Escalation, Kill, OutOfTime, Terminate

TIMING = Timing(10, 60)
RENEWED = Instant(1000.0)
FAILED = Instant(1080.0)


def ladder(
    *, lost_at: float = FAILED, renewed_at: float | None = RENEWED, timing: Timing = TIMING
) -> Escalation:
    return Escalation(
        timing,
        lost_at=Instant(lost_at),
        renewed_at=None if renewed_at is None else Instant(renewed_at),
    )


def at(machine: Escalation, now: float, **users: Action) -> list[object]:
    return list(machine.step(Instant(now), {int(name[1:]): action for name, action in users.items()}))


def test_vm_that_is_to_be_paused_is_asked_then_terminated_then_killed() -> None:
    m = ladder()
    assert at(m, 1080, _1=Action.PAUSE) == [Act(1, Action.PAUSE)]
    assert at(m, 1099.9, _1=Action.PAUSE) == []
    assert at(m, 1100, _1=Action.PAUSE) == [Terminate(1)]
    assert at(m, 1104, _1=Action.PAUSE) == []
    assert at(m, 1105, _1=Action.PAUSE) == [Terminate(1)]
    assert at(m, 1120, _1=Action.PAUSE) == [Kill(1)]
    assert at(m, 1140, _1=Action.PAUSE) == [Kill(1), OutOfTime((1,))]
    assert at(m, 1141, _1=Action.PAUSE) == []
    assert at(m, 1142) == [AllGone()]
    assert at(m, 1143) == []


@pytest.mark.parametrize("action", [Action.POWEROFF, Action.RESTART])
def test_vm_that_is_to_be_stopped_is_terminated_at_once(action: Action) -> None:
    m = ladder()
    assert at(m, 1080, _1=action) == [Act(1, action), Terminate(1)]
    assert at(m, 1120, _1=action) == [Kill(1)]


def test_kill_comes_before_others_may_take_over() -> None:
    for timing in (Timing(10, 60), Timing(20, 60), Timing(1, 6), Timing(10, 30)):
        m = ladder(lost_at=1000 + timing.fail_s, timing=timing)
        assert m.kill_at < 1000 + timing.dead_s


def test_daemon_that_slept_through_the_deadlines_kills_at_once() -> None:
    m = ladder(lost_at=1500)
    assert at(m, 1500, _1=Action.PAUSE) == [Kill(1), OutOfTime((1,))]


def test_lease_of_unknown_age_leaves_no_grace() -> None:
    assert at(ladder(lost_at=1500, renewed_at=None), 1500, _1=Action.PAUSE) == [Kill(1)]


def test_loss_that_is_known_early_is_acted_upon_early() -> None:
    """A record that was written over ends the lease at once: the grace counts from then."""
    m = ladder(lost_at=1010)
    assert at(m, 1010, _1=Action.PAUSE) == [Act(1, Action.PAUSE)]
    assert at(m, 1050, _1=Action.PAUSE) == [Kill(1)]


def test_vm_that_is_to_be_ignored_is_left_alone_and_told_about() -> None:
    m = ladder()
    assert at(m, 1080, _1=Action.IGNORE, _2=Action.PAUSE) == [Act(2, Action.PAUSE)]
    assert at(m, 1139, _1=Action.IGNORE) == []
    assert at(m, 1140, _1=Action.IGNORE) == [OutOfTime((1,))]


def test_nobody_on_it_is_over_at_once() -> None:
    assert at(ladder(), 1080) == [AllGone()]

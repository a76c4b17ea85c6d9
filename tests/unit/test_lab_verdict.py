"""The lab's verdict on one case: each bound that is broken is told, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab.fencing.observer import NEVER, Change
from lab.fencing.suites import SUITES, chosen
from lab.fencing.verdict import Case

DEVICE = next(suite for suite in SUITES if suite.name == "device")
DEAD_S = DEVICE.timing.dead_s


def at(seconds: float) -> Change:
    return Change(1000.0 + seconds - 0.03, 1000.0 + seconds)


GOOD = Case(
    suite=DEVICE,
    cause="kill9",
    struck_at=1000.0,
    wrote_before=at(-0.1),
    last_write=at(9.9),
    last_renewal=at(-1.0),
    takeover=at(DEAD_S + 0.5),
    fired_at=1010.0,
    taker_fired_at=None,
    look_gap_s=0.1,
)


def test_a_case_that_kept_every_bound_is_sound() -> None:
    assert GOOD.broken() == []


@pytest.mark.parametrize(
    ("case", "word"),
    [
        (replace(GOOD, takeover=at(DEAD_S - 1.2)), "too early"),
        (replace(GOOD, takeover=at(DEAD_S + 6.5)), "too late"),
        (replace(GOOD, takeover=NEVER), "never got"),
        (replace(GOOD, last_write=at(DEAD_S + 0.5)), "after h2 had the lease"),
        (replace(GOOD, last_write=at(DEAD_S + 2)), "after h2 had the lease"),
        (replace(GOOD, fired_at=None), "not made harmless by"),
        (replace(GOOD, last_write=at(2)), "ended before the reset"),
        (replace(GOOD, wrote_before=at(-30)), "did not write before"),
        (replace(GOOD, last_renewal=at(DEAD_S + 1)), "renewed after"),
        (replace(GOOD, fired_at=1000.0 + DEAD_S, last_write=at(DEAD_S)), "harmless only"),
        (replace(GOOD, taker_fired_at=1020.0), "h2 was reset"),
        (replace(GOOD, look_gap_s=5.0), "too busy"),
    ],
)
def test_a_broken_bound_is_told(case: Case, word: str) -> None:
    assert any(word in reason for reason in case.broken()), case.broken()


def test_a_lease_that_changed_hands_between_the_looks_is_judged_by_the_kinder_one() -> None:
    assert not replace(GOOD, last_renewal=at(-1.0), takeover=at(DEAD_S - 1.0)).broken()


def test_cases_are_chosen_by_suite_by_cause_and_by_both() -> None:
    assert sum(len(causes) for _, causes in chosen([])) == sum(len(suite.causes) for suite in SUITES)
    assert chosen(["wdmd/hang"]) == [(next(s for s in SUITES if s.name == "wdmd"), ("hang",))]
    assert {suite.name for suite, _ in chosen(["power"])} == {s.name for s in SUITES if "power" in s.causes}
    with pytest.raises(ValueError, match="nonsense"):
        chosen(["nonsense"])

"""Hosts with shared volumes, libvirt, lvmlockd and our reconciler in simulated histories, with faults at each step."""

from __future__ import annotations

import pytest

from holdfast_sim.volumes.volume_history import Outcome, play, play_killed

SEEDS, GUARDED_SEEDS = 40, 30


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return [play(seed) for seed in range(SEEDS)]


def test_histories_are_sound(outcomes: list[Outcome]) -> None:
    assert {each.seed: each.violation for each in outcomes if each.violation} == {}


@pytest.mark.parametrize("seed", [0, 5, 6, 157])
def test_history_that_a_planted_bug_breaks_is_sound(seed: int) -> None:
    assert play(seed).violation == ""


@pytest.mark.parametrize("seed", [99, 134, 143, 447, 1052, 1924, 1954])
def test_history_that_found_a_bug_as_it_was_is_sound(seed: int) -> None:
    """The first three: `release` found no daemon. The others: an arrival that libvirt had given up went on."""
    assert play(seed).violation == ""


def test_history_is_the_same_each_time() -> None:
    assert play(7) == play(7)


@pytest.mark.parametrize(
    "what",
    [
        "ACQUIRE for v1 (1001): granted",
        "RELEASE for v1 (1000): Grant.YIELDED",
        "ACQUIRE for v1 (1000): no daemon",
        "may run again by itself",
        "running unpaused migration out perform3",
        "paused migration migration out confirm3_cancelled",
        "running migration canceled",
        "is refused: /dev/vg/lv1 is held by host",
        "is refused: /dev/vg/lv1 is held by VM",
        "arrival of v1 is refused",
        "lvmlockd: the volume group's lockspace is not started",
        "status files can't be read",
        "holdfastd is killed",
        "libvirtd is killed",
        "loses power",
    ],
)
def test_histories_meet_each_case(outcomes: list[Outcome], what: str) -> None:
    assert any(what in line for each in outcomes for _, _, line in each.lines)


@pytest.fixture(scope="module")
def guarded() -> list[Outcome]:
    return [play(seed, guarded=True) for seed in range(GUARDED_SEEDS)]


def test_histories_with_guards_are_sound(guarded: list[Outcome]) -> None:
    """Guards come while a VM runs; then hosts change between activation "exclusive" and "shared"."""
    assert {each.seed: each.violation for each in guarded if each.violation} == {}
    assert sum(each.arrived for each in guarded) > GUARDED_SEEDS / 2


@pytest.mark.parametrize("seed", [2, 113])
def test_history_with_guards_that_a_planted_bug_breaks_is_sound(seed: int) -> None:
    assert play(seed, guarded=True).violation == ""


@pytest.mark.parametrize(
    "what",
    ["holdfastd starts, activation shared", "the guard lease is held", "RELEASE for v1 (1000): departs"],
)
def test_histories_with_guards_meet_each_case(guarded: list[Outcome], what: str) -> None:
    assert any(what in line for each in guarded for _, _, line in each.lines)


def test_guests_arrive(outcomes: list[Outcome]) -> None:
    assert sum(each.arrived for each in outcomes) > SEEDS / 2


def test_daemon_of_either_host_is_killed_at_each_moment_of_a_migration() -> None:
    """Every 0.2 s from its begin until after its end: the VM runs on one of them, and migrates again afterwards."""
    undisturbed = play_killed(5, 0, 50.0)
    assert undisturbed.violation == ""
    begins, *_, ends = (
        when
        for when, _, what in undisturbed.lines
        if when < 50.0 and ("migrates to" in what or "deleted" in what)
    )
    assert 1.5 < ends - begins < 6.0
    moments = [number / 5 for number in range(int(5 * (ends - begins)) + 3)]
    wrong = {}
    for number in (0, 1):
        for moment in moments:
            if violation := play_killed(5, number, moment).violation:
                wrong[number, moment] = violation
    assert wrong == {}

"""Habits of sites in simulated histories: each is met, and correct code is sound with it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from holdfast_sim.cluster.cluster import Kind, Scenario
from holdfast_sim.drive.habits import NO_HABITS, Habits
from holdfast_sim.run.seed import play

PAUSING = (24, 54, 74, 95)
"""Seeds that pause guests if their site does: most lose no lockspace while guests run."""
MANAGED = [seed for seed in range(60) if Scenario.drawn(Random(seed), None).kind is Kind.MANAGED]


def lines_of(habits: Habits, seeds: Sequence[int] = MANAGED[:8]) -> list[str]:
    found = []
    for seed in seeds:
        verdict = play(seed, habits=habits)
        assert verdict.sound, f"seed {seed}: {verdict.violation}"
        found += [what for _, _, what in verdict.lines]
    return found


def count(lines: list[str], what: str) -> int:
    return sum(what in line for line in lines)


def test_hosts_of_a_lockspace_have_both_io_timeouts() -> None:
    for seed in MANAGED:
        scenario = Habits(timeouts_differ=True).at(seed, Scenario.drawn(Random(seed), None))
        assert {*scenario.io_timeouts_s} == {1, 2} and len(scenario.io_timeouts_s) == scenario.hosts
    assert count(lines_of(Habits(timeouts_differ=True)), "dead") > 5


def test_machines_whose_owners_are_left_alone_lose_lockspaces_and_are_reset() -> None:
    lines = lines_of(Habits(ignores=True), MANAGED[:12])
    assert count(lines, "left alone after a loss") > 5
    assert count(lines, "has lost space") > 5
    assert count(lines, "watchdog") > 2


def test_disks_are_locked_by_both_backends_of_a_lockspace() -> None:
    lines = lines_of(Habits(two_backends=True))
    assert count(lines, "holds disk1a") > 5 and count(lines, "holds disk1b") > 5


def test_hosts_that_are_called_off_in_haste_are_contradicted_by_their_records() -> None:
    lines = lines_of(Habits(hasty=True))
    assert count(lines, "and it is called off") > 20
    assert count(lines, "does not break") > 100 and count(lines, "has to be silent") > 2


def test_disks_are_unplugged_from_virtual_machines_while_run_dir_is_full() -> None:
    lines = lines_of(Habits(full_disks=True))
    assert count(lines, "its RUN_DIR is full") > 20 and count(lines, "lives on without") > 20
    assert count(lines, "the journal can't record a new lock") > 5


def test_io_timeouts_change_while_hosts_are_in_their_lockspaces() -> None:
    lines = lines_of(Habits(changed_timeouts=True))
    assert count(lines, "it is under way") > 30
    assert count(lines, "has io_timeout 3") > 3 and count(lines, "has io_timeout 1") > 0
    assert count(lines, "killed in a change") > 3


def test_requests_of_paused_guests_hang_beyond_the_grace() -> None:
    lines = lines_of(Habits(pauses=True), PAUSING)
    assert count(lines, "hang for") > 3 and count(lines, "have ended") > 3


def test_each_habit_has_its_share_of_the_seeds_that_can_have_it() -> None:
    drawn = [Habits.drawn(seed, Kind.MANAGED) for seed in range(400)]
    for habit in Habits.__dataclass_fields__:
        assert 40 < sum(bool(getattr(habits, habit)) for habits in drawn) < 130, habit
    assert {Habits.drawn(seed, Kind.STORM) for seed in range(400)} == {NO_HABITS}

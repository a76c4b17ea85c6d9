"""Lockspaces of later formats in simulated histories: hosts are fenced and marked, and no time frees a lease."""

from __future__ import annotations

from random import Random

import pytest

from holdfast_sim.cluster.cluster import Kind, Scenario
from holdfast_sim.drive.fencings import Format
from holdfast_sim.run.seed import play

MANAGED = [seed for seed in range(90) if Scenario.drawn(Random(seed), None).kind is Kind.MANAGED]


def lines_of(made: Format) -> list[str]:
    found = []
    for seed in MANAGED:
        verdict = play(seed, made=made)
        assert verdict.sound, f"seed {seed}: {verdict.violation}"
        found += [what for _, _, what in verdict.lines]
    return found


@pytest.fixture(scope="module")
def marked() -> list[str]:
    return lines_of(Format.MARKS)


@pytest.fixture(scope="module")
def without_timeout() -> list[str]:
    return lines_of(Format.NO_TIMEOUT)


@pytest.mark.parametrize("what", ["fences", "leases freed, marked as dead", "it has to be silent for"])
def test_fencing_meets_each_case(marked: list[str], what: str) -> None:
    assert sum(what in each for each in marked) > 5


@pytest.mark.parametrize(
    "what", ["leases freed, marked as dead", "leases of this lockspace never expire by time"]
)
def test_leases_that_never_expire_meet_each_case(without_timeout: list[str], what: str) -> None:
    assert sum(what in each for each in without_timeout) > 5


def test_most_seeds_have_the_format_that_every_sanlock_knows() -> None:
    drawn = [Format.drawn(Random(f"formats {seed}")) for seed in range(400)]
    assert 180 < drawn.count(Format.PLAIN) < 300
    assert min(drawn.count(Format.MARKS), drawn.count(Format.NO_TIMEOUT)) > 40

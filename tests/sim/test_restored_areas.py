"""Lockspaces and leases are restored in simulated histories, and each way in which hosts meet that is played."""

from __future__ import annotations

from random import Random

import pytest

from holdfast_sim.cluster.cluster import Kind, Scenario
from holdfast_sim.drive.fencings import Format
from holdfast_sim.drive.restored_areas import OFTEN_S
from holdfast_sim.run.seed import play

MANAGED = [seed for seed in range(90) if Scenario.drawn(Random(seed), None).kind is Kind.MANAGED]
EVERY_S = min(filter(None, OFTEN_S))
FOUND = (78,)
"""The new host of an id took the leases of the host that had it (ADR 0184)."""


@pytest.fixture(scope="module")
def lines() -> list[str]:
    found = []
    for seed in MANAGED:
        verdict = play(seed, restored_every_s=EVERY_S)
        assert verdict.sound, f"seed {seed}: {verdict.violation}"
        found += [what for _, _, what in verdict.lines]
    return found


@pytest.mark.parametrize(
    ("what", "times"),
    [
        ("is made again", 20),
        ("is restored", 20),
        ("the lease of", 20),
        ("has run on since its lease was restored", 5),
        ("has lost space", 20),
        ("this host's id may be another host", 2),
    ],
)
def test_restored_areas_meet_each_case(lines: list[str], what: str, times: int) -> None:
    assert sum(what in each for each in lines) >= times


@pytest.mark.parametrize("seed", FOUND)
def test_seed_that_found_a_bug_is_sound(seed: int) -> None:
    assert seed in MANAGED
    assert play(seed, restored_every_s=EVERY_S).sound


def test_seeds_without_restores_have_none() -> None:
    for seed in MANAGED[:5]:
        assert not any("restored" in what for _, _, what in play(seed, restored_every_s=0).lines)


def test_nothing_is_restored_where_leases_never_expire() -> None:
    verdict = play(MANAGED[0], restored_every_s=EVERY_S, made=Format.NO_TIMEOUT)
    assert not any("restored" in what for _, _, what in verdict.lines)

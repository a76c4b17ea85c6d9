"""Guests migrate in simulated histories, and each way in which that ends is met."""

from __future__ import annotations

from random import Random

import pytest

from holdfast_sim.cluster.cluster import Kind, Scenario
from holdfast_sim.drive.migrations import OFTEN_S
from holdfast_sim.run.seed import play

MANAGED = [seed for seed in range(200) if Scenario.drawn(Random(seed), None).kind is Kind.MANAGED]
EVERY_S = min(filter(None, OFTEN_S))


@pytest.fixture(scope="module")
def lines() -> list[str]:
    found = []
    for seed in MANAGED:
        verdict = play(seed, migrations_every_s=EVERY_S)
        assert verdict.sound, f"seed {seed}: {verdict.violation}"
        found += [what for _, _, what in verdict.lines]
    return found


@pytest.mark.parametrize(
    "what",
    [
        "hands over to",
        "runs here, as",
        "runs on here, its migration failed",
        "runs on here, which it had left",
        "libvirt finds no lock daemon",
        "dies: killed during a migration",
        "is to reload",
        "is to stop",
    ],
)
def test_migrations_meet_each_case(lines: list[str], what: str) -> None:
    assert sum(what in each for each in lines) > 5


def test_seeds_without_migrations_have_none() -> None:
    assert not any(
        "to migrate" in what for seed in MANAGED[:5] for _, _, what in play(seed, migrations_every_s=0).lines
    )

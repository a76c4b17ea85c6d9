"""Second daemons on a machine are kept out while the first one's virtual machines may run, and let in after it has left."""

from __future__ import annotations

from random import Random

import pytest

from holdfast_sim.cluster.cluster import Kind, Scenario
from holdfast_sim.run.seed import play

MANAGED = [seed for seed in range(130) if Scenario.drawn(Random(seed), None).kind is Kind.MANAGED]
EVERY_S = 8.0


@pytest.fixture(scope="module")
def lines() -> list[str]:
    found = []
    for seed in MANAGED:
        verdict = play(seed, seconds_every_s=EVERY_S)
        assert verdict.sound, f"seed {seed}: {verdict.violation}"
        found += [what for _, _, what in verdict.lines]
    return found


@pytest.mark.parametrize(
    "what",
    [
        "its second daemon has joined",
        "its second daemon ends: stopped",
        "its second daemon ends: killed",
        "is used by another holdfastd of this host (pid 1, run_dir /run/holdfast, state_dir /var/lib/holdfast)",
        "was used by a holdfastd of this host that has ended (run_dir /run/holdfast, state_dir /var/lib/holdfast)",
    ],
)
def test_second_daemons_meet_each_case(lines: list[str], what: str) -> None:
    assert sum(what in each for each in lines) > 5


def test_seeds_without_second_daemons_have_none() -> None:
    assert not any(
        "second daemon" in what for seed in MANAGED[:5] for _, _, what in play(seed, seconds_every_s=0).lines
    )

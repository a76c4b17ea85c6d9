"""What befalls the state between two daemons: that it happens in histories, and what a damaged journal is made of."""

from __future__ import annotations

from random import Random

import pytest

from holdfast.manager import journal_kinds as jn
from holdfast.manager.journal import Journal
from holdfast.manager.journal_replay import replay
from holdfast.testing.fakes import SimulatedAppendFile
from holdfast_sim.cluster.cluster import Kind, Scenario
from holdfast_sim.drive.state_damage import JOURNAL_DAMAGES, Damaged, Plagues
from holdfast_sim.run.seed import play

MANAGED = [seed for seed in range(90) if Scenario.drawn(Random(seed), None).kind is Kind.MANAGED]


def whole_journal() -> bytes:
    journal = Journal(SimulatedAppendFile(), boot="boot-1", host="alpha", snapshot=list)
    lines: list[jn.Line] = [
        jn.IncarnationLine("A", "{}"),
        jn.OwnerLine(1, 100, 5, "vm1", "uuid-1", 1),
        jn.LockLine(1, "A", "/a", False, 2, ((-2, 1),), 1.5),
        jn.ClaimLine(1, 1, "", "/a", 2),
    ]
    return journal.image(lines)


@pytest.mark.parametrize(("what", "damaged"), JOURNAL_DAMAGES, ids=[what for what, _ in JOURNAL_DAMAGES])
def test_damaged_journal_is_not_whole_or_is_of_another_boot(what: str, damaged: Damaged) -> None:
    for seed in range(50):
        state = replay(damaged(whole_journal(), Random(seed)))
        assert not (state.is_whole and state.boot == "boot-1" and state.locks), (what, seed)


def test_histories_have_every_kind_of_damage_and_terms_that_go_on_after_it() -> None:
    lines = [
        what for seed in MANAGED for _, _, what in play(seed, plagues=Plagues(0.4, 6.0, quiet=True)).lines
    ]
    kinds = [f"its journal is {what}" for what, _ in JOURNAL_DAMAGES]
    kinds += ["is missing", "is damaged", "is stale", "the disk of its", "ends unseen", "to a rival"]
    kinds += ["its watchdog has another timeout", "systemd forgets its watchdog", "goes on with its term"]
    for kind in kinds:
        assert any(kind in each for each in lines), kind


def test_half_of_the_histories_of_the_whole_daemon_are_spared() -> None:
    drawn = [Plagues.drawn(Random(f"damage {seed}")) for seed in range(400)]
    assert 120 < sum(plagues.rate == 0 for plagues in drawn) < 280
    assert sum(plagues.quiet for plagues in drawn) > 50

"""A fixed budget of seeds, and that a seed is a whole history: the same again, in another process as well."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from holdfast.cli.main import cli
from holdfast_sim.run import history, sweep
from holdfast_sim.run.seed import Verdict, play

SEEDS = 80


def test_no_claim_is_violated_within_a_fixed_budget_of_seeds() -> None:
    outcome = sweep.run(0, SEEDS)
    shown = "\n".join(
        f"seed {v.seed}: {v.violation}\n" + "\n".join(history.drawn(v.lines, v.parties))
        for v in outcome.violations
    )
    assert not outcome.violations, shown
    assert outcome.seeds == SEEDS
    assert outcome.acquired > 5 * SEEDS


def test_a_seed_is_the_same_history_again() -> None:
    once, again = play(11), play(11)
    assert once.lines == again.lines
    assert once.events == again.events


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_is_the_same_history_in_another_process(hash_seed: str) -> None:
    script = "from holdfast_sim.run.seed import play; print(hash(play(12).lines[-1][0]), play(12).events)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": hash_seed},
    )
    here = play(12)
    assert done.stdout.split() == [str(hash(here.lines[-1][0])), str(here.events)]


def test_as_many_hosts_as_asked_for() -> None:
    names = {who for _, who, _ in play(3, hosts=5).lines}
    assert {"host1", "host5"} <= names
    assert "host6" not in names


def test_the_command_says_how_much_was_played() -> None:
    result = CliRunner().invoke(cli, ["sim", "--first", "7", "--seeds", "2", "--jobs", "1", "--json"])
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (answer["first"], answer["seeds"], answer["violations"]) == (7, 2, [])


def test_a_violation_is_drawn_in_two_columns_and_ends_the_command_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def violated(seed: int, hosts: int | None = None) -> Verdict:
        lines = ((1.0, "host2", "holds disk exclusive"), (2.0, "host1", "holds disk exclusive"))
        return replace(
            play(seed, hosts), violation="exclusion: both", parties=("host1", "host2"), lines=lines
        )

    monkeypatch.setattr(sweep, "play", violated)
    result = CliRunner().invoke(cli, ["sim", "--first", "7", "--seeds", "1"])
    assert result.exit_code == 1
    assert "holdfast sim --first 7 --seeds 1" in result.stdout
    left, right = (
        line for line in result.stdout.splitlines() if "holds disk" in line and ":" not in line[:12]
    )
    assert right.index("holds") < left.index("host2: holds")

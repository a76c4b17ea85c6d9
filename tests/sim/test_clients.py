"""sanlock's clients in simulated histories: each thing that they do is met, and correct code is sound with it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from holdfast_sim.cluster.cluster import Kind, Scenario
from holdfast_sim.drive.habits import Habits
from holdfast_sim.drive.state_damage import Plagues
from holdfast_sim.run import history
from holdfast_sim.run.seed import play

CLIENTS = Habits(clients=True)
MANAGED = [seed for seed in range(60) if Scenario.drawn(Random(seed), None).kind is Kind.MANAGED]
FOUND = (
    2,  # a client got a lease below the mount point of its lockspace's directory, which had been unmounted
    231,  # a damaged journal had lost an orphan: it was let go, as its client's process was over
    398,  # a lock of two unknown owners could not be settled by its number, which named it twice
    496,  # such an orphan went to a virtual machine that was started with its disk
    1634,  # what a client had was adopted as the lease of a disk by the daemon after the next
    1805,  # a lease that only its note attributed to a client was let go with that client, and was an orphan
    1826,  # the same
    2943,  # as 1634
    2970,  # as 1805
)
FOUND_AS_DRAWN = (113000863,)  # storage did not say in time whose an orphan was, and it was let go


def test_clients_hold_convert_ask_and_leave_orphans() -> None:
    lines: list[str] = []
    for seed in MANAGED[:8]:
        verdict = play(seed, habits=CLIENTS)
        assert verdict.sound, f"seed {seed}: {verdict.violation}"
        lines += [what for _, _, what in verdict.lines]

    def count(*words: str) -> int:
        return sum(all(word in line for word in words) for line in lines)

    assert count("client", "runs on disk") > 30
    assert count("vm", "runs on disk") > 30
    assert count("client", "releases disk", ": 0") > 10
    assert count("as an orphan") > 5
    assert count("orphans of disk", "are released") > 0
    assert count("does not convert", "client") > 0
    assert count("asks for disk", "GRACEFUL: 0") > 10 and count("asks for disk", "FORCE: 0") > 10


def test_clients_add_and_remove_a_lockspace_that_no_configuration_names() -> None:
    lines: list[str] = []
    for seed in (105, 331, 842):
        verdict = play(seed, habits=Habits(clients=True, adds=True))
        assert verdict.sound, f"seed {seed}: {verdict.violation}"
        lines += [what for _, _, what in verdict.lines]

    def count(*words: str) -> int:
        return sum(all(word in line for word in words) for line in lines)

    assert count("adds space2 for a client: 0") > 10
    assert count("removes space2 for a client: 0") > 5 and count("removes space2 for a client: -16") > 0
    assert count("client", "runs on disk2") > 15 and count("vm", "runs on disk2") == 0


def test_a_client_is_stopped_by_its_killpath() -> None:
    lines = [what for _, _, what in play(1805, habits=CLIENTS).lines]
    assert any("the killpath of client" in line for line in lines)


@pytest.mark.parametrize("seed", FOUND_AS_DRAWN)
def test_a_seed_that_found_a_bug_as_it_is_drawn_is_sound(seed: int) -> None:
    habits = Habits.drawn(seed, Scenario.drawn(Random(seed), None).kind)
    verdict = play(seed, habits=replace(habits, adds=False))  # as it was before clients added lockspaces
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


@pytest.mark.parametrize("seed", FOUND)
def test_a_seed_that_found_a_bug_with_clients_is_sound(seed: int) -> None:
    verdict = play(seed, habits=CLIENTS)
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


FOUND_WITH_LOST_JOURNALS = (
    105,  # a lockspace that clients had added was named by the journal alone (ADR 0245)
    121300841,  # a journal that was rewritten before the join lost the last copy of the incarnation
    121302714,  # a term was resumed, and its watchdog, which nobody had left armed, was not (ADR 0246)
    121503023,  # the same until the next beat, as another lockspace had to be settled first
    121601240,  # an orphan ended with its client, as a damaged journal did not say that it outlives it
    121609454,  # a lock was settled although its note named a process that lives: storage had been silent
    121614165,  # a guest that stood still ran on with a lease that had just failed
    121800278,  # a lock that clients and a guest share seemed to be of other rules, and was given up too early
)


@pytest.mark.parametrize("seed", FOUND_WITH_LOST_JOURNALS)
def test_a_seed_that_found_a_bug_with_clients_and_lost_journals_is_sound(seed: int) -> None:
    """Everything at once, more often than it is drawn."""
    slow, quiet = Random(seed).random() < 0.6, Random(f"q{seed}").random() < 0.5
    drawn = Habits.drawn(seed, Scenario.drawn(Random(seed), None).kind)
    verdict = play(
        seed,
        plagues=Plagues(0.4, 8.0 if quiet else 0.0, quiet),
        seconds_every_s=Random(f"s{seed}").choice((0, 8.0)),
        habits=replace(drawn, clients=True, adds=True, slow_starts=slow),
    )
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))

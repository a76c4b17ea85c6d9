"""Seeds that found a bug of this project, each with the bug. The planted twins of most are in `mutations`.

A seed is only as old as the simulator: a change of what it draws makes another history of it. What was found then is
kept by the mutation of the same name, which plants the bug again and has to be found.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from holdfast_sim.cluster.cluster import Scenario
from holdfast_sim.drive.fencings import Format
from holdfast_sim.drive.habits import NO_HABITS, Habits
from holdfast_sim.drive.state_damage import NO_PLAGUES
from holdfast_sim.run import history
from holdfast_sim.run.seed import play
from holdfast_sim.storage.disk_names import Naming
from holdfast_sim.storage.prepared import FEW_HOSTS

PINNED = (
    3,
    68,
    93,
    97,
    106,
    110,
    111,
    133,
    150,
    177,
    251,
    327,
    398,
    518,
    573,
    630,
    863,
    1174,
    1182,
    1194,
    1253,
    1273,
    1744,
    2089,
    2146,
    2158,
    2437,
    2739,
    11228,
    50127,
    50820,
    51630,
    60302,
    70984,
    71554,
    80152,
    80206,
    300004,
    700426,
    702631,
    711767,
    801099,
    901249,
    1202300,
    1303895,
    1306060,
    1795243323,
)
FOUND_SINCE = (
    96001051,  # a full disk took the note of a claim, and not that of its lock
    96001908,  # the checker asked for a term that a dead daemon had left, and an operator had called off
    97000305,  # the nemesis hit one feeding of a watchdog twice, which docs/safety.md rules out
    97000612,  # gc freed nothing anywhere while its host was not in one of its lockspaces
    97002972,  # a word about the host in a record freed the lease of another one that had shown the same term
)
FOUND_WITH_RESTORED_AREAS = (
    99001491,  # two daemons of one host, each with a record in a lockspace, kept each other out for ever
    100000694,  # a lockspace was restored between the choice of a host id and its claim: another host's id was taken
    100001598,  # a request of a host with a short io_timeout stood between two looks of one with a longer
    100004249,  # one failed read, and a daemon without its journal broke a lease that a VM of this host had
    101000160,  # a release read the clock once more between the question whether it may write and the write
    101000944,  # the same
    101003612,  # a RELEASE came before the lock was found whose journal line was lost, the word of the stop after
    102001570,  # an order about an older term wrote the block of the host that had the id again
    103000733,  # an operator called a host off that had left a lockspace, and could not free its host id (checker)
    103001399,  # an unmounted lease directory was taken for one without leases, after a journal was lost
    101001616,  # leases never expire: those of a host whose id a late claim took are freed by hand (checker)
)
FOUND_WITH_ALIASES = (
    4058,  # a journal without the line of a path, and the next daemon released what its disk is under a running VM
    4352,  # a stale journal claims for a VM that has stopped what another host has taken since (checker)
    4546,  # the unknown lock of a path was adopted under the name of what its disk is: a reload gave it up unseen
)
FOUND_WITH_HABITS = (
    112000002,  # two backends of one lockspace took the lease of its index at once, with one host block
    112000248,  # the same
    330,  # a lease that one backend was still giving up was used by another one of its lockspace
)
FOUND_WITH_EVERYTHING = (
    113004172,  # an older journal said shared of a lease that its owner had alone: another one of this host shared it
    113004299,  # a lease was restored, acquired by one host, and then by one whose block was of a newer version
    113004984,  # a lease was made where an older copy had none, and blocks of the newer one stood (checker)
    114000799,  # a journal lacked an end, had never been rewritten by its daemon, and was not when there was room
    115000460,  # what a disk is was held as long as the release of its path waited for storage (checker)
    116002161,  # an orphan had the name of a disk, by an older journal: no client and no operator could end it
    116004424,  # a lease that never expires, under the name that a guest has where it arrives (checker)
    117004243,  # a leader of an older version landed late, where leases never expire (checker)
    119001002,  # the pid of a guest that had lost its disk ended another one's after a boot (simulator)
    118002858,  # a lease that never expires was freed by hand, and then given out (checker)
)
FOUND_WITH_CHANGED_TIMEOUTS = (
    1411,  # the next daemon removed its own value from the block of a lease that had been put back (ADR 0243)
)
FOUND_AS_DRAWN = (
    (106002658, Naming.ONE),  # a late record made a generation repeat where no host knows the date (checker)
    (106002982, Naming.LATE),  # a VM whose migration failed never got the lease of what its disk is
    (106003634, Naming.ONE),  # a lease that a host had removed named it again, by a late ballot of another
    (
        109001132,
        Naming.LATE,
    ),  # a VM whose lock was lost for some seconds never got the lease of what its disk is
    (107002195, Naming.ONE),  # a daemon that was going down tried to get a dead owner's lock for ever
)


@pytest.mark.parametrize("seed", PINNED)
def test_a_seed_that_once_found_a_bug_is_sound(seed: int) -> None:
    verdict = play(
        seed,
        lease_hosts=FEW_HOSTS,
        restarts_every_s=0,
        plagues=NO_PLAGUES,
        edits=0,
        seconds_every_s=0,
        migrations_every_s=0,
        foreign_names=False,
        made=Format.PLAIN,
        naming=Naming.ONE,
        habits=NO_HABITS,
    )  # as it was before there were others
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


@pytest.mark.parametrize("seed", FOUND_SINCE)
def test_a_seed_that_found_a_bug_as_it_is_drawn_today_is_sound(seed: int) -> None:
    verdict = play(seed, restored_every_s=0, naming=Naming.ONE, habits=NO_HABITS)
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


@pytest.mark.parametrize("seed", FOUND_WITH_RESTORED_AREAS)
def test_a_seed_that_found_a_bug_with_restored_areas_is_sound(seed: int) -> None:
    verdict = play(seed, naming=Naming.ONE, habits=NO_HABITS)
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


@pytest.mark.parametrize("seed", FOUND_WITH_ALIASES)
def test_a_seed_that_found_a_bug_with_two_paths_to_a_disk_is_sound(seed: int) -> None:
    verdict = play(seed, naming=Naming.ALIASES, habits=NO_HABITS)
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


@pytest.mark.parametrize(("seed", "naming"), FOUND_AS_DRAWN)
def test_a_seed_that_found_a_bug_as_it_is_drawn_with_these_names_is_sound(seed: int, naming: Naming) -> None:
    verdict = play(seed, naming=naming, habits=NO_HABITS)
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


@pytest.mark.parametrize("seed", FOUND_WITH_HABITS)
def test_a_seed_that_found_a_bug_with_habits_is_sound(seed: int) -> None:
    habits = Habits.drawn(seed, Scenario.drawn(Random(seed), None).kind)
    verdict = play(
        seed,
        restored_every_s=0,
        naming=Naming.ONE,
        habits=replace(habits, clients=False, adds=False, changed_timeouts=False, slow_starts=False),
    )  # as it was before there were clients
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


@pytest.mark.parametrize("seed", FOUND_WITH_EVERYTHING)
def test_a_seed_that_found_a_bug_in_a_campaign_is_sound(seed: int) -> None:
    habits = Habits.drawn(seed, Scenario.drawn(Random(seed), None).kind)
    verdict = play(
        seed, habits=replace(habits, adds=False, changed_timeouts=False, slow_starts=False)
    )  # as it was before these were
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))


@pytest.mark.parametrize("seed", FOUND_WITH_CHANGED_TIMEOUTS)
def test_a_seed_that_found_a_bug_with_changed_timeouts_is_sound(seed: int) -> None:
    verdict = play(seed, habits=Habits(changed_timeouts=True))
    assert verdict.sound, f"{verdict.violation}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties))

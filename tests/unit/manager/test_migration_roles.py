"""The whole table of `migration_roles`: what each word of libvirt's status file means for a lock.

The rows are what status files said in traced migrations of a real libvirt 9.0 (libvirt-hooks-lvm.md 1.3, 1.7 and 2.2), and
the words of its neighbours.
"""

import pytest

from holdfast.manager.migration_roles import (
    Outcome,
    has_left,
    holds_back,
    is_arriving,
    not_understood,
    outcome,
    stands,
)
from holdfast.system.libvirt.domains import Domain

OPEN, GONE, STAYED = Outcome.OPEN, Outcome.GONE, Outcome.STAYED


def domain(state: str, reason: str = "", job: str = "", phase: str = "") -> Domain:
    return Domain("web1", "", (), frozenset(), 7, state, job, phase, reason)


OUT = "migration out"
ROWS = (
    # state, reason, job, phase; whether a RELEASE is held back; what has become of one that was; whether all is understood
    (("running", "booted", OUT, ""), True, OPEN, True),
    (("running", "booted", OUT, "none"), True, OPEN, True),
    (("running", "booted", OUT, "begin3"), True, OPEN, True),
    (("running", "booted", OUT, "perform2"), True, OPEN, True),
    (("running", "booted", OUT, "perform3"), True, OPEN, True),
    (("paused", "migration", OUT, "perform3"), True, OPEN, True),
    (("paused", "user", OUT, "perform3"), True, OPEN, True),
    (("running", "migration canceled", OUT, "perform3"), True, OPEN, True),
    (("running", "unpaused", OUT, "confirm3_cancelled"), True, OPEN, True),
    (("paused", "migration", OUT, "confirm3_cancelled"), True, OPEN, True),
    (("paused", "post-copy", OUT, "perform3"), False, GONE, True),
    (("paused", "post-copy failed", OUT, "postcopy_failed"), False, GONE, True),
    (("paused", "migration", OUT, "perform3_done"), False, GONE, True),
    (("running", "booted", OUT, "perform3_done"), False, GONE, True),
    (("paused", "migration", OUT, "confirm3"), False, GONE, True),
    (("paused", "migration", OUT, "perform4"), False, GONE, False),
    (("running", "booted", "", ""), False, STAYED, True),
    (("running", "migration canceled", "", ""), False, STAYED, True),
    (("running", "booted", "save", ""), False, STAYED, True),
    (("shutdown", "user", "", ""), False, STAYED, True),
    (("pmsuspended", "", "", ""), False, STAYED, True),
    (("paused", "migration", "", ""), False, OPEN, True),
    (("paused", "user", "", ""), False, GONE, True),
    (("paused", "save", "save", ""), False, GONE, True),
    (("crashed", "panicked", "", ""), False, GONE, True),
    (("paused", "user", "moving away", ""), False, GONE, False),
    (("dreaming", "", "", ""), False, GONE, False),
)


@pytest.mark.parametrize(("words", "back", "became", "understood"), ROWS)
def test_words_of_a_source(words: tuple[str, ...], back: bool, became: Outcome, understood: bool) -> None:
    seen = domain(*words)
    assert holds_back(seen) is back
    assert outcome(seen) is became
    assert (not_understood(seen) == "") is understood
    assert not is_arriving(seen)


@pytest.mark.parametrize(
    ("words", "standing", "left"),
    [
        (("paused", "migration", OUT, "perform3"), True, False),
        (("paused", "migration", OUT, "perform3_done"), True, True),
        (("paused", "post-copy", OUT, "perform3"), True, True),
        (("paused", "migration", OUT, "perform4"), False, False),
        (("running", "booted", OUT, "perform3_done"), False, False),
        (("paused", "user", "", ""), False, False),
        (("paused", "migration", "migration in", "finish3"), False, False),
    ],
)
def test_what_a_daemon_that_was_away_concludes(words: tuple[str, ...], standing: bool, left: bool) -> None:
    assert (stands(domain(*words)), has_left(domain(*words))) == (standing, left)
    assert not stands(None)
    assert not has_left(None)


def test_missing_file_lets_a_release_through_and_holds_on_to_one_that_was_held_back() -> None:
    assert not holds_back(None)
    assert outcome(None) is OPEN
    assert not_understood(None) == ""
    assert not is_arriving(None)


@pytest.mark.parametrize(
    ("words", "arrives"),
    [
        (("paused", "migration", "migration in", "finish3"), True),
        (("paused", "starting up", "migration in", "prepare"), False),
        (("paused", "migration", "migration in", ""), False),
        (("running", "booted", "", ""), False),
        (("running", "booted", OUT, "finish3"), False),
    ],
)
def test_only_a_target_that_finishes_waits(words: tuple[str, ...], arrives: bool) -> None:
    assert is_arriving(domain(*words)) is arrives


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("paused", "migration", OUT, "perform4"), "phase 'perform4'"),
        (("running", "", "moving away", ""), "job 'moving away'"),
        (("dreaming", "", "", ""), "state 'dreaming'"),
    ],
)
def test_word_that_is_not_known_is_named(words: tuple[str, ...], named: str) -> None:
    assert not_understood(domain(*words)) == named

"""The bugs of `tests.sim.untuned` are in the code as it is: each changes what a module does, and is no other planted bug."""

from __future__ import annotations

import ast
import re

import pytest
from tests.sim.mutations import MUTATIONS, Mutation, mutated, source_of
from tests.sim.untuned import CLAIMS, UNTUNED


def test_thirty_bugs_each_with_a_name_of_its_own_and_the_claim_that_it_breaks() -> None:
    names = [bug.name for bug in UNTUNED]
    assert len(names) == len(set(names)) == 30
    assert set(names).isdisjoint(each.name for each in MUTATIONS)
    assert list(CLAIMS) == names


@pytest.mark.parametrize("bug", UNTUNED, ids=lambda bug: bug.name)
def test_a_bug_has_one_place_and_changes_what_the_module_does(bug: Mutation) -> None:
    source = source_of(bug)
    with_bug = mutated(bug, source)  # raises if its piece is not there once
    compile(with_bug, bug.module, "exec")
    assert ast.dump(ast.parse(with_bug)) != ast.dump(ast.parse(source))
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", bug.name)
    assert re.fullmatch(r"[A-Z].*[^.]\.", bug.bug)


@pytest.mark.parametrize("bug", UNTUNED, ids=lambda bug: bug.name)
def test_a_bug_is_none_that_the_simulator_was_tuned_with(bug: Mutation) -> None:
    """Compared without line breaks and comments."""
    theirs = {
        ast.dump(ast.parse(mutated(each, source_of(each)))) for each in MUTATIONS if each.module == bug.module
    }
    assert ast.dump(ast.parse(mutated(bug, source_of(bug)))) not in theirs

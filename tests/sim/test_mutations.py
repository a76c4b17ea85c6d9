"""Every planted bug is found: the simulator is worth what it can find."""

from __future__ import annotations

import pytest
from tests.sim.mutations import MUTATIONS, SEEDS_NEAR, Mutation, hunt, mutated, source_of


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_planted_bug_is_found_within_a_bounded_number_of_seeds(mutation: Mutation) -> None:
    found = hunt(mutation, SEEDS_NEAR, first=mutation.near)
    assert found.violation, f"{mutation.bug}: not within {found.seeds} seeds from {mutation.near}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_bug_has_one_place_and_changes_it(mutation: Mutation) -> None:
    source = source_of(mutation)
    assert mutated(mutation, source) != source
    with pytest.raises(ValueError, match="places in"):
        mutated(mutation, source.replace(mutation.piece, ""))


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20

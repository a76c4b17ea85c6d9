"""Every planted bug is found: the simulator is worth what it can find."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import pytest
from tests.sim.mutations import (
    EASY,
    HARD,
    MUTATIONS,
    SEEDS_NEAR,
    Found,
    Mutation,
    hunt,
    mutated,
    source_of,
)

Hunts = Mapping[str, "Future[Found]"]


@pytest.fixture(scope="module")
def hunts(request: pytest.FixtureRequest) -> Iterator[Hunts]:
    """All that were asked for, as many at a time as there are processors: each is a process of its own."""
    wanted: list[Mutation] = [
        cast(Mutation, item.callspec.params["mutation"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "hunts" in item.fixturenames
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {m.name: pool.submit(hunt, m, SEEDS_NEAR, m.near) for m in wanted}


@pytest.mark.parametrize("mutation", EASY, ids=lambda m: m.name)
def test_a_planted_bug_is_found_within_a_bounded_number_of_seeds(mutation: Mutation, hunts: Hunts) -> None:
    found = hunts[mutation.name].result()
    assert found.violation, f"{mutation.bug}: not within {found.seeds} seeds from {mutation.near}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_bug_has_one_place_and_changes_it(mutation: Mutation) -> None:
    source = source_of(mutation)
    assert mutated(mutation, source) != source
    with pytest.raises(ValueError, match="places in"):
        mutated(mutation, source.replace(mutation.piece, ""))


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len(EASY) >= 20
    assert len(EASY) + len(HARD) == len(MUTATIONS)

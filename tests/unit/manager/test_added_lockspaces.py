"""The journal's lines about lockspaces that clients of sanlock's protocol have added."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.manager.world import World

from holdfast.manager import journal_kinds as jn
from holdfast.manager.journal_replay import replay

LINE = jn.SanlockLockspaceLine("A", "/a", 1 << 20, 512, 1 << 20, 3, 10)
OTHER = jn.SanlockLockspaceLine("B", "/b", 0, 4096, 8 << 20, 3, 20)


def read_back(world: World, *, compacted: bool) -> dict[str, jn.SanlockLockspaceLine]:
    if compacted:
        assert world.journal.compact()
    state = replay(world.file.read())
    assert not state.damage
    return state.added


@pytest.mark.parametrize("compacted", [False, True])
def test_a_lockspace_that_was_added_is_read_back_with_all_its_values(tmp_path: Path, compacted: bool) -> None:
    world = World(tmp_path)
    world.manager.book.lockspace_added(LINE)
    world.manager.book.lockspace_added(OTHER)
    assert read_back(world, compacted=compacted) == {"A": LINE, "B": OTHER}


@pytest.mark.parametrize("compacted", [False, True])
def test_a_lockspace_that_was_removed_is_not_read_back(tmp_path: Path, compacted: bool) -> None:
    world = World(tmp_path)
    for line in (LINE, OTHER):
        world.manager.book.lockspace_added(line)
    world.manager.book.lockspace_removed("A")
    assert read_back(world, compacted=compacted) == {"B": OTHER}

"""A lock that is asked for by a user is granted for the file that the user may open, and for no other that has its path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.manager.world import World, locked, run, want

from holdfast.errors import Refused
from holdfast.manager.owners import Owner
from holdfast.system.files.ofd_lock import key_of

SHOWN = "can't be shown to be the file"


def only(path: str) -> tuple[int, int]:
    return key_of(os.stat(path))


async def refused(world: World, owner: Owner, path: str, key: tuple[int, int]) -> None:
    with pytest.raises(Refused, match=SHOWN):
        await world.manager.acquire(owner, want(path)._replace(only=key))


@pytest.mark.parametrize("exchange", [os.symlink, os.link])
@pytest.mark.parametrize("name", ["disk.img", "indirect/disk.img"])
def test_path_that_leads_to_another_file_by_now_is_refused_and_nothing_is_locked(
    tmp_path: Path, name: str, exchange: Callable[[str, str], None]
) -> None:
    async def scene() -> None:
        world = World(tmp_path)
        owner, mine, secret = world.owner(1), world.disk(name), world.disk("secret")
        checked = only(mine)
        os.rename(mine, tmp_path / "kept")  # its inode is not given out again: the user's descriptor pins it
        exchange(secret, mine)
        await refused(world, owner, mine, checked)
        assert len(world.manager.table) == 0
        assert not locked(secret)
        assert os.listdir(world.locks_directory) == [] or not locked(
            f"{world.locks_directory}/{os.listdir(world.locks_directory)[0]}"
        )

    run(scene)


def test_name_of_a_lock_that_is_held_gives_no_claim_on_another_file(tmp_path: Path) -> None:
    async def scene() -> None:
        world = World(tmp_path)
        one, two = world.owner(1), world.owner(2)
        disk, mine = world.disk("disk.img"), world.disk("mine.img")
        await world.manager.acquire(one, want(disk))
        await refused(world, two, disk, only(mine))
        await refused(world, one, disk, only(mine))

    run(scene)


@pytest.mark.parametrize("name", ["disk.img", "indirect/disk.img"])
def test_file_that_was_checked_is_granted_by_any_of_its_paths(tmp_path: Path, name: str) -> None:
    async def scene() -> None:
        world = World(tmp_path)
        owner, disk = world.owner(1), world.disk(name)
        link = str(tmp_path / "link.img")
        os.symlink(disk, link)
        for path in (disk, link):
            assert await world.manager.acquire(owner, want(path)._replace(only=only(disk)))

    run(scene)

"""Locks that other hosts may share during a migration: having one does not show who may write, so each ACQUIRE asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.manager.test_departures import OUT, Status
from tests.unit.manager.world import World, run, want

from holdfast.backends.base import (
    Capabilities,
    Creation,
    HeldElsewhere,
    OwnerNote,
    SavedLock,
)
from holdfast.errors import Refused, ResourceBusy
from holdfast.manager.departures import READ_S
from holdfast.model import Holder, Mode, Protection, Resource
from holdfast.system.files.ofd_lock import FileKey, IoFailed

DISK = "/writers/disk"
EX, SH = Mode.EXCLUSIVE, Mode.SHARED


class Volumes:
    """A backend with one disk. `writer_elsewhere`: another host has it, too, so nobody here may write."""

    name = "writers"
    capabilities = Capabilities(
        cross_host=True,
        shared_mode=True,
        converts=True,
        survives_restart=True,
        fenced=False,
        names_foreign_holders=True,
    )

    def __init__(self) -> None:
        self.writer_elsewhere = False
        self.calls: list[str] = []
        self.keys: tuple[FileKey, ...] = (FileKey(7, 7),)
        self.path = DISK
        self.create = False

    async def open(self, resource: Resource, *, create: Creation) -> Volumes | IoFailed:
        if resource.lockspace:
            raise Refused(reason="it is locked by its path")
        return self

    async def take(self, mode: Mode, note: OwnerNote) -> Volumes | HeldElsewhere:
        return await self.ask_again(mode, note) or self

    async def abandon(self) -> None: ...

    def take_nowait(self, resource: Resource, mode: Mode) -> None:
        return None

    async def adopt(self, saved: SavedLock, fd: int | None) -> Volumes:
        return self

    def protection(self, path: str) -> tuple[Protection, str]:
        return Protection.CROSS_HOST, ""

    def lock_path(self, resource: Resource) -> str:
        return DISK

    def descriptor(self) -> int | None:
        return None

    async def convert(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | None:
        self.calls.append(f"convert {mode.word} {note.pid}")
        return None

    async def release(self) -> None:
        self.calls.append("release")

    def release_nowait(self) -> bool:
        self.calls.append("release")
        return True

    def forget(self) -> None: ...

    async def ask_again(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | None:
        self.calls.append(f"ask {mode.word} {note.pid}")
        return HeldElsewhere((Holder(host="beta"),)) if self.writer_elsewhere else None

    def owner_left(self, note: OwnerNote) -> None:
        self.calls.append(f"left {note.pid}")


class Scene:
    def __init__(self, tmp_path: Path, *, lends: bool = False) -> None:
        self.status, self.volumes = Status(), Volumes()
        self.world = World(tmp_path, status=self.status, writers=self.volumes, lends=lends)
        self.manager = self.world.manager
        self.owner = self.world.owner(1)

    async def departed(self) -> None:
        """Up to the guest's stop."""
        await self.manager.acquire(self.owner, want(DISK))
        self.status.says("vm1", 1, "running", "booted", OUT, "perform3")
        await self.manager.release(self.owner, Resource("", DISK))
        self.status.says("vm1", 1, "paused", "migration", OUT, "perform3")
        self.volumes.calls.clear()


def test_guest_that_departs_and_asks_again_is_refused_while_its_target_may_write(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path)
        await s.departed()
        s.volumes.writer_elsewhere = True
        with pytest.raises(ResourceBusy, match="beta"):
            await s.manager.acquire(s.owner, want(DISK))
        assert len(s.manager.departures) == 1, "it departs still: nobody else of this host gets it"
        s.volumes.writer_elsewhere = False
        await s.manager.acquire(s.owner, want(DISK))
        assert len(s.manager.departures) == 0
        assert s.volumes.calls == ["ask exclusive 1"] * 2

    run(scene)


def test_claim_that_stands_is_asked_for_again(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path)
        await s.manager.acquire(s.owner, want(DISK))
        await s.manager.acquire(s.owner, want(DISK))
        assert s.volumes.calls == ["ask exclusive 1"] * 2

    run(scene)


def test_lock_hears_of_each_owner_that_joins_or_leaves_and_of_its_end_last(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path)
        other = s.world.owner(2)
        await s.manager.acquire(s.owner, want(DISK, SH))
        await s.manager.acquire(other, want(DISK, SH))
        await s.manager.release(s.owner, Resource("", DISK))
        s.world.processes.end(2)
        await s.world.clock.advance(0.01)
        assert s.volumes.calls == ["ask shared 1", "ask shared 2", "left 1", "left 2", "release"]

    run(scene)


def test_lock_is_never_lent(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path, lends=True)
        await s.departed()
        assert len(s.manager.departures) == 1
        s.status.says("vm1", 1, "running", "migrated")
        await s.world.clock.advance(2 * READ_S)
        assert s.manager.claimed(s.owner, Resource("", DISK)) is EX
        assert s.volumes.calls == [], "it was never free"

    run(scene)

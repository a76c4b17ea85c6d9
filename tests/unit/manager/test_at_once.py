"""Locks had in a single step and locks had the long way come to the same, whatever happened before."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.manager.world import World, run, want

from holdfast.errors import HoldfastError, OwnerGone, ResourceBusy
from holdfast.manager.journal_replay import SavedClaims
from holdfast.manager.lock_registry import HostLock
from holdfast.model import Mode, Resource
from holdfast.system.files.proc_locks import refused_by
from holdfast.testing.fakes import settle

DISKS = ("a.img", "b.img", "alias.img", "link.img", "indirect/a.img", "none.img")
"""`alias` is a hard link to a, `link` a symbolic one to b, `none` is not there."""
STRANGER = "stranger"

Step = tuple[str, str, Mode, bool]
"""Who, which disk, how, and whether its file may be made; or what happens."""

steps = st.one_of(
    st.tuples(
        st.sampled_from(["1", "2", STRANGER]), st.sampled_from(DISKS), st.sampled_from(Mode), st.booleans()
    ),
    st.tuples(
        st.sampled_from(["release 1", "release 2", f"release {STRANGER}"]),
        st.sampled_from(DISKS),
        st.just(Mode.SHARED),
        st.just(False),
    ),
    st.tuples(st.sampled_from(["die 1", "full", "empty"]), st.just(""), st.just(Mode.SHARED), st.just(False)),
)


def _shown(lock: HostLock | SavedClaims) -> tuple[str, Mode, list[tuple[int, str, Mode]]]:
    claims = [(i, Path(r.name).name, m) for i, names in lock.claims.items() for r, m in names.items()]
    return Path(lock.path).name, lock.mode, sorted(claims)


class _Side:
    """One of the two worlds, and what came of each step there."""

    def __init__(self, directory: Path, *, long_way: bool) -> None:
        self.directory = directory
        self.world = World(directory, slow=long_way)
        self.world.slow.gates.open_gate = self.world.slow_shared.gates.open_gate = True
        self.stranger = World(directory)
        self.told: list[str] = []
        self.was_full = False
        for name in ("a.img", "b.img", "indirect/a.img"):
            self.world.disk(name)
        (directory / "alias.img").hardlink_to(directory / "a.img")
        (directory / "link.img").symlink_to(directory / "b.img")

    async def take(self, step: Step) -> None:
        who, disk, mode, create = step
        w = self.world
        path = str(self.directory / disk)
        what, _, whose = who.rpartition(" ")
        if who == "full":
            self.was_full = True
            w.file.room_bytes = w.file.size_bytes
        elif who == "empty":
            w.file.room_bytes = None
        elif what == "die":
            if w.processes.is_running(int(whose)):
                w.processes.end(int(whose))
                await settle()
        else:
            of = self.stranger if whose == STRANGER else w
            owner = of.owner(9 if whose == STRANGER else int(whose))
            try:
                if what:
                    await of.manager.release(owner, Resource("", path))
                    self.told.append("released")
                else:
                    self.told.append(str(await of.manager.acquire(owner, want(path, mode, create=create))))
            except HoldfastError as e:
                self.told.append(f"{type(e).__name__}: {e}")

    def state(self) -> object:
        """All that anybody could see: the answers, the table, the events, the kernel's locks, what a successor reads."""
        w = self.world
        locks = sorted(map(_shown, w.manager.table))
        written = sorted(map(_shown, w.saved().locks.values()))
        if not self.was_full:  # the end of a claim that can't be written down still counts
            assert written == locks, "the journal tells what is held, no more and no less"
        else:
            assert {path for path, _, _ in locks} <= {path for path, _, _ in written}
        assert set(w.kept) == {lock.id for lock in w.manager.table}, "so does the descriptor store"
        kernel = {}
        for path in sorted(self.directory.rglob("*")):
            if path.is_file():
                found = refused_by(str(path))
                kernel[str(path.relative_to(self.directory))] = None if found is None else found.mode
        events = [
            (e.kind, e.pid, Path(e.resource.name).name if e.resource else "") for e in w.events.recent()
        ]
        return self.told, locks, kernel, events


@given(st.lists(steps, max_size=12))
@example([("1", "a.img", Mode.EXCLUSIVE, False), ("2", "alias.img", Mode.SHARED, False)])
@example([("1", "a.img", Mode.SHARED, False), ("2", "alias.img", Mode.SHARED, False)])
@example([(STRANGER, "b.img", Mode.SHARED, False), ("1", "link.img", Mode.EXCLUSIVE, False)])
@example([("1", "a.img", Mode.EXCLUSIVE, True), ("release 1", "a.img", Mode.SHARED, False)])
@example(
    [
        ("full", "", Mode.SHARED, False),
        ("1", "a.img", Mode.EXCLUSIVE, False),
        (STRANGER, "a.img", Mode.EXCLUSIVE, False),
    ]
)
def test_at_once_and_the_long_way_come_to_the_same(history: list[Step]) -> None:
    seen: list[list[object]] = []

    async def scene() -> None:
        with tempfile.TemporaryDirectory() as name:
            # The same paths on both sides: the names of lock files, and the texts, are made of them.
            directory = Path(name) / "disks"
            for long_way in (False, True):
                directory.mkdir()
                side = _Side(directory, long_way=long_way)
                states = []
                for step in history:
                    await side.take(step)
                    states.append(side.state())
                seen.append(states)
                side.world.crash()
                side.stranger.crash()
                shutil.rmtree(directory)

    before = os.listdir("/proc/self/fd")
    run(scene)
    assert os.listdir("/proc/self/fd") == before, "descriptors were left open"
    quick, slow = seen
    for step, one, other in zip(history, quick, slow, strict=True):
        assert one == other, f"after {step}"


def test_disk_that_is_just_being_locked_by_another_name_is_waited_for(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, slow=True, direct_at_once=True)
        disk, one, two = w.disk("indirect/a.img"), w.owner(1, "first"), w.owner(2, "second")
        other_name = tmp_path / "other.img"
        other_name.hardlink_to(disk)
        a = w.start(w.manager.acquire(one, want(disk)))
        await settle()
        assert len(w.slow_shared.gates.waiting) == 1
        b = w.start(w.manager.acquire(two, want(str(other_name))))
        await settle()
        assert not b.done(), "who has the turn decides first"
        w.slow_shared.gates.let_all_go()
        assert await a
        with pytest.raises(ResourceBusy, match="first"):
            await b

    run(scene)


def test_name_that_nothing_guards_is_still_one_owners_at_a_time(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        await w.manager.acquire(w.owner(1), want("/nop/a.img"))
        with pytest.raises(ResourceBusy, match="vm1"):
            await w.manager.acquire(w.owner(2), want("/nop/a.img"))

    run(scene)


def test_owner_that_has_gone_gets_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, owner = w.disk(), w.owner(1)
        w.processes.end(1)
        await settle()
        with pytest.raises(OwnerGone):
            await w.manager.acquire(owner, want(disk))
        assert refused_by(disk) is None

    run(scene)

"""The manager's promises, one scene each: real files and kernel locks, simulated time and processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import cast

import pytest
from tests.unit.manager.world import World, locked, run, want

from holdfast.backends.base import Held
from holdfast.errors import (
    NotAnOwner,
    OwnerGone,
    ProtectionTooWeak,
    Refused,
    ResourceBusy,
    ResourceNotLocked,
    StorageFailed,
)
from holdfast.manager import events as ev
from holdfast.manager.all_or_none import acquire_all
from holdfast.manager.lost_locks import DeadHolder
from holdfast.model import LockFailureAction, Mode, Protection, Resource
from holdfast.system.files.process_locks import KernelRecordLocks
from holdfast.testing.fakes import settle


def test_reacquire_by_the_same_owner_is_one_hold(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, owner = w.disk(), w.owner(1)
        assert await w.manager.acquire(owner, want(disk))
        assert not await w.manager.acquire(owner, want(disk))
        await w.manager.release(owner, Resource("", disk))
        assert not locked(disk)
        with pytest.raises(ResourceNotLocked):
            await w.manager.release(owner, Resource("", disk))

    run(scene)


def test_owner_may_go_from_shared_to_exclusive_and_back(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, one, two = w.disk(), w.owner(1), w.owner(2)
        await w.manager.acquire(one, want(disk, Mode.SHARED))
        await w.manager.acquire(one, want(disk))
        with pytest.raises(ResourceBusy, match="vm1"):
            await w.manager.acquire(two, want(disk, Mode.SHARED))
        await w.manager.acquire(one, want(disk, Mode.SHARED))
        await w.manager.acquire(two, want(disk, Mode.SHARED))
        with pytest.raises(ResourceBusy, match="vm2"):
            await w.manager.acquire(one, want(disk))
        kinds = [e.kind for e in w.events.recent()]
        assert kinds.count(ev.CONVERTED) == 2

    run(scene)


@pytest.mark.parametrize("how", ["symlink", "hard link", "dots", "lockspace"])
def test_alias_is_the_same_disk(tmp_path: Path, how: str) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, one, two = w.disk(), w.owner(1), w.owner(2)
        alias = want(str(tmp_path / "alias"))
        if how == "symlink":
            os.symlink(disk, alias.resource.name)
        elif how == "hard link":
            os.link(disk, alias.resource.name)
        elif how == "dots":
            alias = want(f"{tmp_path}/locks/../disk.img")
        else:
            alias = want("disk.img", lockspace=str(tmp_path))
        await w.manager.acquire(one, want(disk))
        with pytest.raises(ResourceBusy, match="vm1"):
            await w.manager.acquire(two, alias)
        assert await w.manager.acquire(one, alias), "for its owner it is a second name of one lock"
        assert len(w.manager.table) == 1
        await w.manager.release(one, Resource("", disk))
        assert locked(disk), "the other name is still held"
        await w.manager.release(one, alias.resource)
        assert not locked(disk)

    run(scene)


def test_disk_locked_through_a_lock_directory_is_the_same_by_its_other_name(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk("indirect/disk.img")
        os.symlink(disk, tmp_path / "indirect" / "alias.img")
        one, two = w.owner(1), w.owner(2)
        await w.manager.acquire(one, want(disk))
        assert not locked(disk), "the lock is on a file in the directory"
        with pytest.raises(ResourceBusy, match="vm1"):
            await w.manager.acquire(two, want(str(tmp_path / "indirect" / "alias.img")))
        os.link(disk, tmp_path / "direct.img")
        with pytest.raises(ResourceBusy, match="vm1"):
            await w.manager.acquire(two, want(str(tmp_path / "direct.img")))

    run(scene)


def test_acquire_of_several_disks_is_all_or_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        a, first, b, c = (w.disk(n) for n in ("a", "a-new", "b", "c"))
        one, two = w.owner(1), w.owner(2)
        await w.manager.acquire(two, want(a, Mode.SHARED))
        await w.manager.acquire(one, want(b))
        with pytest.raises(ResourceBusy, match="vm1"):
            await acquire_all(w.manager, two, [want(a), want(first), want(b), want(c)])
        claims = {r: m for lock in w.manager.table for r, m in lock.claims.get(two.id, {}).items()}
        assert claims == {Resource("", a): Mode.SHARED}, "what it had before it has as before"
        assert not locked(first)
        assert not locked(c)
        await w.manager.release(one, Resource("", b))
        await acquire_all(w.manager, two, [want(a), want(b), want(c)])
        assert len(w.manager.table.of_owner(two.id)) == 3

    run(scene)


def test_release_of_what_another_holds_is_refused_quietly(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, one, two = w.disk(), w.owner(1), w.owner(2)
        await w.manager.acquire(one, want(disk))
        with pytest.raises(NotAnOwner):
            await w.manager.release(two, Resource("", disk))
        assert locked(disk)

    run(scene)


def test_death_of_an_owner_frees_everything_it_held(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disks = [w.disk(n) for n in "abc"]
        owner = w.owner(1)
        for disk in disks:
            await w.manager.acquire(owner, want(disk))
        w.processes.end(1)
        await settle()
        assert not any(map(locked, disks))
        assert len(w.manager.owners) == 0
        assert not w.saved().locks
        assert not w.saved().owners
        assert w.processes.pinned == 0

    run(scene)


def test_rival_of_an_owner_whose_death_is_not_yet_news_wins_at_once(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, one, two = w.disk(), w.owner(1), w.owner(2)
        await w.manager.acquire(one, want(disk))
        w.processes.news_withheld = True
        w.processes.end(1)
        assert await w.manager.acquire(two, want(disk))
        w.processes.deliver_news()
        await settle()
        assert locked(disk), "the late news must not take the new owner's lock"

    run(scene)


def test_connection_that_ends_with_its_process_ends_the_owner_and_stops_nobody(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, one = w.disk(), w.owner(1)
        await w.manager.acquire(one, want(disk))
        w.processes.news_withheld = True
        w.processes.end(1)
        w.manager.unregister(one, holder=True, why="its connection closed")
        await settle()
        assert not locked(disk)
        assert [e.kind for e in w.events.recent()] == [ev.ACQUIRED, ev.OWNER_DIED, ev.RELEASED]

    run(scene)


@pytest.mark.parametrize("stubborn", [False, True])
def test_owner_that_lost_its_connection_is_stopped_and_its_lock_stays_until_it_is_dead(
    tmp_path: Path, stubborn: bool
) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, other = w.disk(), w.disk("other.img")
        w.processes.start(1, ignoring=frozenset([signal.SIGTERM] if stubborn else []))
        one, two = w.owner(1), w.owner(2)
        await w.manager.acquire(one, want(disk))
        w.manager.unregister(one, holder=True, why="it closed its connection")
        await w.clock.advance(0.2)
        assert w.processes.signals == [], "it may be ending by itself"
        await w.clock.advance(0.2)
        assert w.processes.signals == [(1, signal.SIGTERM)]
        if stubborn:
            assert locked(disk)
            with pytest.raises(ResourceBusy):
                await w.manager.acquire(two, want(disk))
            assert await w.manager.acquire(two, want(other)), "nobody else waits"
            await w.clock.advance(2)
            assert w.processes.signals[-1] == (1, signal.SIGKILL)
        await settle()
        assert not w.processes.is_running(1)
        assert not locked(disk)
        assert await w.manager.acquire(two, want(disk))

    run(scene)


def test_owner_that_no_signal_ends_keeps_its_lock_as_long_as_it_lives(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        w.processes.start(1, ignoring=frozenset([signal.SIGTERM, signal.SIGKILL]))
        one = w.owner(1)
        await w.manager.acquire(one, want(disk))
        w.manager.unregister(one, holder=True, why="test")
        await w.clock.advance(500)
        assert locked(disk)
        w.processes.end(1)
        await settle()
        assert not locked(disk)

    run(scene)


def test_owner_that_dies_by_itself_within_the_grace_gets_no_signal(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        one = w.owner(1)
        await w.manager.acquire(one, want(w.disk()))
        w.manager.unregister(one, holder=True, why="test")
        w.processes.end(1)
        await w.clock.advance(100)
        assert w.processes.signals == []

    run(scene)


def test_pid_that_was_given_to_another_process_is_another_owner(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, one = w.disk(), w.owner(1, "old")
        await w.manager.acquire(one, want(disk))
        w.processes.news_withheld = True
        w.processes.end(1)
        w.processes.start(1)
        new = w.owner(1, "new")
        assert new is not one
        await settle()
        assert not locked(disk)
        w.processes.deliver_news()
        await w.manager.acquire(new, want(disk))
        await settle()
        assert locked(disk)

    run(scene)


@pytest.mark.parametrize("holder", [False, True])
def test_owner_in_another_pid_namespace_lives_by_its_connections(tmp_path: Path, holder: bool) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, one = w.disk(), w.owner(1, hidden=True)
        again = w.owner(1)
        assert again is one
        await w.manager.acquire(one, want(disk))
        w.manager.unregister(one, holder=False, why="")
        assert locked(disk)
        w.manager.unregister(one, holder=holder, why="")
        await settle()
        assert not locked(disk)

    run(scene)


def test_demanded_protection_that_is_not_there_refuses_and_locks_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, protection_min=Protection.CROSS_HOST)
        disk = w.disk()
        with pytest.raises(ProtectionTooWeak, match=r"needs protection level 2 \(across hosts\)"):
            await w.manager.acquire(w.owner(1), want(disk))
        assert not locked(disk)

    run(scene)


def test_more_owners_than_allowed_are_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, owners_max=1)
        w.owner(1)
        w.owner(1)
        with pytest.raises(Refused, match=r"limits\.owners_max"):
            w.owner(2)

    run(scene)


def test_lock_held_by_a_stranger_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        w, stranger = World(tmp_path), World(tmp_path)
        disk = w.disk()
        await stranger.manager.acquire(stranger.owner(5, "stranger"), want(disk))
        with pytest.raises(ResourceBusy):
            await w.manager.acquire(w.owner(1), want(disk))
        assert len(w.manager.table) == 0
        with pytest.raises(StorageFailed, match="No such file"):
            await w.manager.acquire(w.owner(1), want(str(tmp_path / "none")))

    run(scene)


def test_full_disk_refuses_new_claims_and_keeps_old_ones(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, other = w.disk(), w.disk("other.img")
        one, two = w.owner(1), w.owner(2)
        await w.manager.acquire(one, want(disk, Mode.SHARED))
        w.file.room_bytes = w.file.size_bytes
        with pytest.raises(Refused, match="the journal can't record a new lock: No space"):
            await w.manager.acquire(one, want(other))
        with pytest.raises(Refused, match="the journal can't record a claim: No space"):
            await w.manager.acquire(two, want(disk, Mode.SHARED))
        assert not locked(other)
        assert locked(disk)
        assert len(w.manager.table) == 1
        w.file.room_bytes = None
        await w.manager.acquire(two, want(disk, Mode.SHARED))
        assert set(w.saved().locks[1].claims) == {one.id, two.id}
        assert set(w.saved().owners) == {one.id, two.id}

    run(scene)


class Unguarded:
    """A held lock whose host can't have it guarded now."""

    def __init__(self, inner: Held) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def refuses_new(self) -> str:
        return "the watchdog is not armed"


def test_no_owner_joins_a_shared_lock_that_nothing_guards_and_those_that_have_it_keep_it(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, one, two = w.disk(), w.owner(1), w.owner(2)
        await w.manager.acquire(one, want(disk, Mode.SHARED))
        lock = w.manager.table.named(Resource("", disk))
        assert lock is not None and lock.held is not None
        guarded = lock.held
        lock.held = cast(Held, Unguarded(guarded))
        with pytest.raises(Refused, match="can't have another owner now: the watchdog is not armed"):
            await w.manager.acquire(two, want(disk, Mode.SHARED))
        assert not await w.manager.acquire(one, want(disk, Mode.SHARED))
        assert set(w.saved().locks[1].claims) == {one.id}
        lock.held = guarded
        await w.manager.acquire(two, want(disk, Mode.SHARED))

    run(scene)


# --- slow storage: between two awaits the world moves ---


def test_of_two_acquires_at_once_one_wins_and_the_other_is_told_the_winners_name(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, slow=True)
        disk, one, two = w.disk(), w.owner(1, "first"), w.owner(2, "second")
        a = w.start(w.manager.acquire(one, want(disk)))
        await w.slow.gates.waits_for(f"take {disk}")
        b = w.start(w.manager.acquire(two, want(disk)))
        await settle()
        assert w.slow.gates.waiting == [f"take {disk}"], "only one asks storage"
        w.slow.gates.let_go(f"take {disk}")
        assert await a
        with pytest.raises(ResourceBusy, match="first"):
            await b

    run(scene)


def test_of_two_acquires_under_two_names_one_wins(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, slow=True)
        disk, one, two = w.disk(), w.owner(1, "first"), w.owner(2, "second")
        alias = str(tmp_path / "alias")
        os.link(disk, alias)
        a = w.start(w.manager.acquire(one, want(disk)))
        await w.slow.gates.waits_for(f"take {disk}")
        b = w.start(w.manager.acquire(two, want(alias)))
        await settle()
        assert f"take {alias}" not in w.slow.gates.waiting
        w.slow.gates.open_gate = True
        w.slow.gates.let_all_go()
        assert await a
        with pytest.raises(ResourceBusy, match="first"):
            await b

    run(scene)


def test_acquire_during_a_slow_release_waits_and_then_wins(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, slow=True)
        disk, one, two = w.disk(), w.owner(1), w.owner(2)
        alias = str(tmp_path / "alias")
        os.link(disk, alias)
        w.slow.gates.open_gate = True
        await w.manager.acquire(one, want(disk))
        w.slow.gates.open_gate = False
        release = w.start(w.manager.release(one, Resource("", disk)))
        await w.slow.gates.waits_for(f"release {disk}")
        again = w.start(w.manager.acquire(two, want(alias)))
        await settle()
        assert not again.done()
        assert f"take {alias}" not in w.slow.gates.waiting, "it does not ask for what is still being let go"
        w.slow.gates.open_gate = True
        w.slow.gates.let_all_go()
        await release
        assert await again
        assert locked(disk)

    run(scene)


def test_owner_that_dies_while_its_acquire_is_under_way_leaves_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, slow=True)
        disk, one, two = w.disk(), w.owner(1), w.owner(2)
        task = w.start(w.manager.acquire(one, want(disk)))
        await w.slow.gates.waits_for(f"take {disk}")
        w.processes.end(1)
        await settle()
        w.slow.gates.open_gate = True
        w.slow.gates.let_all_go()
        with pytest.raises(OwnerGone):
            await task
        assert not locked(disk)
        assert len(w.manager.table) == 0
        assert not w.saved().locks
        assert await w.manager.acquire(two, want(disk))

    run(scene)


def test_owner_that_dies_while_its_release_is_under_way_is_released_once(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, slow=True)
        disk, one = w.disk(), w.owner(1)
        w.slow.gates.open_gate = True
        await w.manager.acquire(one, want(disk))
        w.slow.gates.open_gate = False
        task = w.start(w.manager.release(one, Resource("", disk)))
        await w.slow.gates.waits_for(f"release {disk}")
        w.processes.end(1)
        await settle()
        assert w.slow.gates.waiting == [f"release {disk}"]
        w.slow.gates.let_all_go()
        await task
        assert not locked(disk)
        assert len(w.manager.owners) == 0

    run(scene)


def test_owner_that_dies_while_its_lock_is_converted_loses_it(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, slow=True)
        disk, one = w.disk(), w.owner(1)
        w.slow.gates.open_gate = True
        await w.manager.acquire(one, want(disk, Mode.SHARED))
        w.slow.gates.open_gate = False
        task = w.start(w.manager.acquire(one, want(disk)))
        await w.slow.gates.waits_for(f"convert {disk}")
        w.processes.end(1)
        await settle()
        w.slow.gates.open_gate = True
        w.slow.gates.let_all_go()
        with pytest.raises(OwnerGone):
            await task
        await settle()
        assert not locked(disk)
        assert len(w.manager.table) == 0
        assert len(w.manager.owners) == 0
        assert not w.saved().locks

    run(scene)


def test_upgrade_through_one_lock_file_excludes_a_reader_through_another_of_the_same_disk(
    tmp_path: Path,
) -> None:
    """The disk is locked in a directory by one name and directly by another: two lock files, one disk."""

    async def scene() -> None:
        w = World(tmp_path, slow=True)
        disk = w.disk("indirect/disk.img")
        direct = str(tmp_path / "direct.img")
        os.link(disk, direct)
        one, two = w.owner(1, "writer"), w.owner(2, "reader")
        w.slow.gates.open_gate = w.slow_shared.gates.open_gate = True
        await w.manager.acquire(one, want(disk, Mode.SHARED))
        w.slow_shared.gates.open_gate = False
        upgrade = w.start(w.manager.acquire(one, want(disk)))
        await settle()
        assert any(c.startswith("convert") for c in w.slow_shared.gates.waiting)
        reader = w.start(w.manager.acquire(two, want(direct, Mode.SHARED)))
        await settle()
        w.slow_shared.gates.open_gate = True
        w.slow_shared.gates.let_all_go()
        assert await upgrade
        with pytest.raises(ResourceBusy, match="writer"):
            await reader

    run(scene)


def test_upgrade_waits_for_a_reader_whose_lock_on_the_same_disk_is_being_taken(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, slow=True)
        disk = w.disk("indirect/disk.img")
        direct = str(tmp_path / "direct.img")
        os.link(disk, direct)
        one, two = w.owner(1, "writer"), w.owner(2, "reader")
        w.slow_shared.gates.open_gate = True
        await w.manager.acquire(one, want(disk, Mode.SHARED))
        reader = w.start(w.manager.acquire(two, want(direct, Mode.SHARED)))
        await w.slow.gates.waits_for(f"take {direct}")
        upgrade = w.start(w.manager.acquire(one, want(disk)))
        await settle()
        w.slow.gates.open_gate = True
        w.slow.gates.let_all_go()
        assert await reader
        with pytest.raises(ResourceBusy, match="reader"):
            await upgrade

    run(scene)


# --- the journal keeps up, also while it is rewritten ---


def test_claim_that_makes_the_journal_rewrite_itself_is_in_the_rewritten_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.manager.journal.COMPACT_LINES_MIN", 1)
    monkeypatch.setattr("holdfast.manager.journal.COMPACT_FACTOR", 0)

    async def scene() -> None:
        w = World(tmp_path)
        disk, one, two = w.disk(), w.owner(1), w.owner(2)
        await w.manager.acquire(one, want(disk, Mode.SHARED))
        assert set(w.saved().owners) == {one.id}
        await w.manager.acquire(two, want(disk, Mode.SHARED))
        assert set(w.saved().owners) == {one.id, two.id}
        assert set(w.saved().locks[1].claims) == {one.id, two.id}

    run(scene)


# --- after a restart ---


async def restarted(
    before: World,
    directory: Path,
    on_lock_lost: LockFailureAction = LockFailureAction.POWEROFF,
    dead_holder: DeadHolder = lambda _, __: None,
) -> World:
    before.crash()
    after = World(directory, before=before, on_lock_lost=on_lock_lost, dead_holder=dead_holder)
    state = after.saved()
    after.manager.doubt = state.doubt
    after.manager.lockspaces.restore(state.lockspaces)
    living = after.recovery.owners(state)
    adoption = after.start(after.recovery.locks(state, living, {}))
    await after.clock.advance(1)
    await adoption
    return after


def test_lock_that_came_shared_from_virtlockd_is_kept_in_doubt_until_it_is_whole(tmp_path: Path) -> None:
    """A live switch (ADR 0211): the descriptor has a shared lock, and so has somebody else."""

    async def scene() -> None:
        w = World(tmp_path)
        disk, owner = w.disk(), w.owner(1, "web1")
        await w.manager.acquire(owner, want(disk))
        w.crash()
        kept, rival = (os.open(disk, os.O_RDWR) for _ in range(2))
        for fd in (kept, rival):
            assert KernelRecordLocks().ofd(fd, Mode.SHARED) == 0
        after = World(tmp_path, before=w)
        state = after.saved()
        living = after.recovery.owners(state)
        adoption = after.start(after.recovery.locks(state, living, dict.fromkeys(state.locks, kept)))
        await after.clock.advance(1)
        await adoption
        lock = next(iter(after.manager.table))
        assert "shared, not exclusive" in after.manager.why_lost(lock)
        assert [e.kind for e in after.events.recent()][-1:] == [ev.LOCK_LOST]
        with pytest.raises(ResourceBusy, match="web1"):
            await after.manager.acquire(after.owner(2), want(disk, Mode.SHARED))
        stranger = os.open(disk, os.O_RDWR)
        assert KernelRecordLocks().ofd(stranger, Mode.EXCLUSIVE) != 0, "what there is of the lock is kept"
        assert after.processes.is_running(1), "no VM is touched for a doubt"
        os.close(rival)
        await after.clock.advance(6)
        await settle()
        assert after.manager.why_lost(lock) == ""
        assert KernelRecordLocks().ofd(stranger, Mode.SHARED) != 0
        os.close(stranger)
        after.processes.end(1)
        await settle()
        assert not locked(disk)

    run(scene)


def test_locks_of_the_living_are_held_again_and_those_of_the_dead_are_not(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, other = w.disk(), w.disk("other.img")
        await w.manager.acquire(w.owner(1), want(disk))
        await w.manager.acquire(w.owner(2), want(other))
        w.manager.closing = True
        w.processes.end(2)
        w = await restarted(w, tmp_path)
        assert locked(disk)
        assert not locked(other)
        w.processes.end(1)
        await settle()
        assert not locked(disk)

    run(scene)


@pytest.mark.timeout(30)
def test_lock_of_an_ended_owner_is_refused_while_the_daemon_goes_down(tmp_path: Path) -> None:
    """Nothing ends any more then: to wait for that end would keep the event loop busy for ever."""

    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        await w.manager.acquire(w.owner(1), want(disk))
        second = w.owner(2)
        w.manager.closing = True
        w.processes.end(1)
        with pytest.raises(ResourceBusy, match="vm1"):
            await w.manager.acquire(second, want(disk))
        assert locked(disk)

    run(scene)


def test_reused_pid_is_not_taken_for_the_owner_of_the_journal(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        await w.manager.acquire(w.owner(1), want(disk))
        w.manager.closing = True
        w.processes.end(1)
        w.processes.start(1)
        w = await restarted(w, tmp_path)
        assert not locked(disk)
        assert len(w.manager.owners) == 0
        assert w.processes.pinned == 0

    run(scene)


@pytest.mark.parametrize("action", LockFailureAction)
def test_lock_that_somebody_else_has_for_certain_brings_the_configured_action(
    tmp_path: Path, action: LockFailureAction
) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        await w.manager.acquire(w.owner(1), want(disk))
        w.crash()
        thief = World(tmp_path)
        await thief.manager.acquire(thief.owner(9, "thief"), want(disk))
        w = await restarted(w, tmp_path, on_lock_lost=action)
        await w.clock.advance(3)
        lost = [e for e in w.events.recent() if e.kind == ev.LOCK_LOST]
        assert [e.pid for e in lost] == [1]
        expected = {
            LockFailureAction.POWEROFF: [(1, signal.SIGTERM)],
            LockFailureAction.RESTART: [(1, signal.SIGTERM)],
            LockFailureAction.PAUSE: [(1, signal.SIGSTOP)],
            LockFailureAction.IGNORE: [],
        }
        assert w.processes.signals == expected[action]
        assert w.libvirt.asked == (["uuid-1"] if action is LockFailureAction.PAUSE else [])
        if action is LockFailureAction.IGNORE:
            thief.crash()
            await w.clock.advance(10)
            assert locked(disk), "it goes on trying"
            assert w.events.recent()[-1].kind == ev.LOCK_REGAINED

    run(scene)


def test_lock_that_a_dead_daemon_still_has_is_retaken_after_its_end_and_no_vm_is_touched(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        await w.manager.acquire(w.owner(1), want(disk))
        w.crash()
        dead = World(tmp_path)  # its descriptions live on in a thread that hangs
        await dead.manager.acquire(dead.owner(1), want(disk))
        found = os.stat(disk)
        has: set[tuple[int, int]] = {(found.st_dev, found.st_ino)}
        w = await restarted(w, tmp_path, dead_holder=lambda keys, _: 77 if has & set(keys) else None)
        await w.clock.advance(30)
        (lock,) = w.manager.table
        assert "an earlier daemon (pid 77) was killed" in lock.lost_reason
        assert not lock.lost_for_certain
        assert w.processes.signals == []
        dead.crash()
        has.clear()
        await w.clock.advance(10)
        assert lock.held is not None
        assert w.events.recent()[-1].kind == ev.LOCK_REGAINED

    run(scene)


def test_lock_that_a_dead_daemon_lets_go_of_while_it_is_tried_is_not_somebody_elses(tmp_path: Path) -> None:
    """It is asked about before: refused for the dead one's lock, which is gone when the answer is there."""

    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        await w.manager.acquire(w.owner(1), want(disk))
        w.crash()
        dead = World(tmp_path)
        await dead.manager.acquire(dead.owner(1), want(disk))
        answers = [77]
        w = await restarted(w, tmp_path, dead_holder=lambda _, __: answers.pop() if answers else None)
        await w.clock.advance(2)
        assert w.processes.signals == []

    run(scene)


def test_lock_that_cannot_be_told_is_retried_and_no_vm_is_touched(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        await w.manager.acquire(w.owner(1), want(disk))
        w.crash()
        os.rename(disk, disk + ".away")
        w = await restarted(w, tmp_path)
        await w.clock.advance(30)
        assert w.processes.signals == []
        (lock,) = w.manager.table
        assert lock.held is None
        assert "No such file" in lock.lost_reason
        with pytest.raises(ResourceBusy):
            await w.manager.acquire(w.owner(2), want(disk))
        os.rename(disk + ".away", disk)
        await w.clock.advance(10)
        assert locked(disk)

    run(scene)

"""Locks of unknown owners: adopted by whom they belong to, settled by proof or by an operator, and by nothing else."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.manager.test_lock_manager import restarted
from tests.unit.manager.world import World, locked, run, want

from holdfast.backends.base import NotedOwner
from holdfast.errors import Refused, ResourceBusy
from holdfast.manager import events as ev
from holdfast.manager import journal_kinds as jn
from holdfast.manager.journal_replay import replay
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Evidence, Owner
from holdfast.model import Mode, OwnerName, ProcessId, Resource
from holdfast.system.files.ofd_lock import key_of
from holdfast.testing.fakes import settle

VM, OTHER = 1, 2


def have_open(w: World, disk: str, *pids: int) -> None:
    for pid in pids:
        w.open_files.open[pid] = {key_of(os.stat(disk))}


def damage_owner_line(w: World) -> None:
    raw = w.file.read()
    w.file.replace(raw.replace(b'["owner",', b'["ow er",'))


async def taken_by_another(tmp_path: Path) -> tuple[World, str, bytes]:
    """A VM has released its disk, and another one has taken it; the journal before that. Then the daemon was killed."""
    w = World(tmp_path)
    disk = w.disk("indirect/disk.img")
    first = w.owner(VM, "web1")
    await w.manager.acquire(first, want(disk))
    older = w.file.read()
    await w.manager.release(first, Resource("", disk))
    await w.manager.acquire(w.owner(OTHER, "db1"), want(disk))
    w.crash()
    return w, disk, older


@pytest.mark.parametrize("lives", [True, False])
def test_older_journal_does_not_free_what_another_process_has_taken_since(
    tmp_path: Path, lives: bool
) -> None:
    async def scene() -> None:
        w, disk, older = await taken_by_another(tmp_path)
        w.processes.end(VM)
        w.file.replace(older)
        if not lives:
            w.processes.end(OTHER)
        w = await restarted(w, tmp_path)
        lock = w.manager.table.named(Resource("", disk))
        assert (lock is not None) is lives
        if lock is not None:
            (owner,) = [w.manager.owners.get(i) for i in lock.claims]
            assert owner is not None
            assert (owner.pid, owner.name.name, owner.unknown) == (OTHER, "db1", None)
            assert w.known == [lock, lock], "held again, then attributed"
            assert [lock.claims.keys() for lock in w.saved().locks.values()] == [{owner.id}]
            w.processes.end(OTHER)
            await settle()
            assert w.manager.table.named(Resource("", disk)) is None

    run(scene)


@pytest.mark.parametrize("lives", [True, False])
def test_older_journals_owner_that_lives_does_not_free_what_another_process_has_taken_since(
    tmp_path: Path, lives: bool
) -> None:
    """Found by seed 122042512 with forced habits: a VM whose disk was unplugged lived on, and its end freed the lease that a
    client of sanlock's had taken.
    """

    async def scene() -> None:
        w, disk, older = await taken_by_another(tmp_path)
        w.file.replace(older + b"?\n")
        if not lives:
            w.processes.end(OTHER)
        w = await restarted(w, tmp_path)
        lock = w.manager.table.named(Resource("", disk))
        assert lock is not None
        owners = [w.manager.owners.get(i) for i in lock.claims]
        assert [owner.pid for owner in owners if owner is not None] == ([VM, OTHER] if lives else [VM])
        w.processes.end(VM)
        await settle()
        assert (w.manager.table.named(Resource("", disk)) is lock) is lives
        if lives:
            assert lock.held is not None
            w.processes.end(OTHER)
            await settle()
        assert w.manager.table.named(Resource("", disk)) is None

    run(scene)


async def unknown_lock(tmp_path: Path, *, mode: Mode = Mode.EXCLUSIVE) -> tuple[World, str]:
    """A VM held a disk; the daemon was killed, and the line that says whose it is can't be read."""
    w = World(tmp_path)
    disk = w.disk()
    await w.manager.acquire(w.owner(VM, "web1"), want(disk, mode))
    w.crash()
    damage_owner_line(w)
    have_open(w, disk, VM)
    w = await restarted(w, tmp_path)
    assert len(w.manager.unknown) == 1
    assert locked(disk)
    return w, disk


def test_claim_whose_owner_cannot_be_read_is_held_and_nobody_is_touched(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        with pytest.raises(ResourceBusy, match="is locked by"):
            await w.manager.acquire(w.owner(OTHER, "thief"), want(disk))
        await w.clock.advance(600)
        assert locked(disk)
        assert w.processes.signals == []
        assert w.events.recent()[-1].kind in (ev.REFUSED, ev.UNKNOWN)

    run(scene)


def test_unknown_lock_is_settled_when_no_process_has_its_disk_open(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        w.open_files.open.clear()
        w.open_files.unclear.add(77)
        await w.clock.advance(60)
        assert locked(disk), "a process that can't be inspected may have it open"
        w.open_files.unclear.clear()
        await w.clock.advance(20)
        assert not locked(disk)
        assert len(w.manager.unknown) == 0
        assert w.events.recent()[-1].kind in (ev.SETTLED, ev.RELEASED, ev.OWNER_DIED)
        assert not w.saved().locks

    run(scene)


def test_unknown_lock_is_not_settled_while_the_named_process_lives(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, process = w.disk(), w.processes.start(5)
        await w.manager.acquire(w.owner(VM), want(disk))
        lock = w.manager.table.named(Resource("", disk))
        assert lock is not None
        owner = w.manager.unknown.owner(OwnerName("db1"), Evidence(why="?", process=ProcessId(5, 0)))
        w.manager.table.claim(lock, owner.id, Resource("", disk), Mode.EXCLUSIVE)
        w.processes.end(VM)
        await w.clock.advance(60)
        assert locked(disk), process
        w.processes.end(5)
        await w.clock.advance(20)
        assert not locked(disk)

    run(scene)


@pytest.mark.parametrize("how", ["acquire", "release"])
def test_owner_that_has_the_disk_open_adopts_its_unknown_lock(tmp_path: Path, how: str) -> None:
    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        owner = w.owner(VM, "web1")
        if how == "acquire":
            await w.manager.acquire(owner, want(disk))
            assert len(w.manager.unknown) == 0
            assert locked(disk)
            assert w.known[1:] == [w.manager.table.named(Resource("", disk))]
            again = replay(w.file.read())
            assert list(again.locks[1].claims) == [owner.id]
        await w.manager.release(owner, Resource("", disk))
        assert not locked(disk)
        assert ev.ADOPTED in [e.kind for e in w.events.recent()]

    run(scene)


def test_unknown_lock_of_another_path_to_the_disk_keeps_its_name(tmp_path: Path) -> None:
    """Each path has a lock file of its own: under one name both would be one lock, and one of them nobody's."""

    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk("indirect/disk.img")
        alias = str(Path(disk).with_name("alias.img"))
        os.symlink(disk, alias)
        await w.manager.acquire(w.owner(VM, "web1"), want(disk))
        held = w.manager.table.named(Resource("", disk))
        assert held is not None
        w.crash()
        damage_owner_line(w)
        os.truncate(held.path, 0)  # its note would say whose it is
        have_open(w, disk, VM)
        w = await restarted(w, tmp_path)
        assert len(w.manager.unknown) == 1
        owner = w.owner(VM, "web1")
        await w.manager.acquire(owner, want(alias))
        assert len(w.manager.unknown) == 0
        for path in (disk, alias):
            lock = w.manager.table.named(Resource("", path))
            assert lock is not None
            assert list(lock.claims) == [owner.id]
            assert list(lock.names()) == [Resource("", path)]

    run(scene)


class _PerhapsShared:
    """A held lock beside which other hosts may share the disk."""

    def __init__(self, held: Any) -> None:
        self._held = held
        self.sharers_unasked = True
        self.others_live = True

    async def ask_sharers(self) -> None:
        self.sharers_unasked = self.others_live

    async def noted_owner(self) -> NotedOwner:
        return NotedOwner(ProcessId(VM, VM), OwnerName("web1"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)


def test_unknown_lock_is_not_settled_while_its_note_names_another_process_that_lives(tmp_path: Path) -> None:
    """The journal is an older copy, and storage was silent when the lock was retaken. QEMU has not opened its disk yet."""

    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        lock = w.manager.table.named(Resource("", disk))
        assert lock is not None
        held: Any = _PerhapsShared(lock.held)
        held.sharers_unasked = False
        lock.held = held
        (owner,) = [w.manager.owners.get(i) for i in lock.claims]
        assert owner is not None and owner.unknown is not None
        owner.unknown = replace(owner.unknown, process=ProcessId(OTHER, 7))  # it has ended
        w.open_files.open.clear()
        with pytest.raises(ResourceBusy):
            await w.manager.acquire(w.owner(OTHER, "thief"), want(disk))
        await w.clock.advance(60)
        assert locked(disk)
        (owner,) = [w.manager.owners.get(i) for i in lock.claims]
        assert owner is not None
        assert (owner.pid, owner.unknown) == (VM, None), "it is that process's now"

    run(scene)


async def perhaps_shared(tmp_path: Path) -> tuple[World, str, HostLock, Any]:
    """An unknown lock of which nobody knows whether other hosts share its disk."""
    w, disk = await unknown_lock(tmp_path)
    lock = w.manager.table.named(Resource("", disk))
    assert lock is not None
    held: Any = _PerhapsShared(lock.held)
    lock.held = held
    return w, disk, lock, held


def test_lock_that_others_may_share_is_nobodys_before_they_are_asked(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk, lock, held = await perhaps_shared(tmp_path)
        owner = w.owner(VM, "web1")
        with pytest.raises(Refused, match="share the lease"):
            await w.manager.acquire(owner, want(disk))
        await w.clock.advance(30)
        assert len(w.manager.unknown) == 1, (
            "the process that its note names lives, and may never have been granted it"
        )
        held.others_live = False
        await w.clock.advance(30)
        assert len(w.manager.unknown) == 0
        assert w.known == [lock, lock], "held again, then attributed by its note"
        await w.manager.acquire(owner, want(disk))
        assert list(lock.claims) == [owner.id]

    run(scene)


def test_lock_that_others_may_share_can_be_given_up(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk, _, _ = await perhaps_shared(tmp_path)
        await w.manager.release(w.owner(VM, "web1"), Resource("", disk))
        assert not locked(disk)

    run(scene)


def test_next_owner_of_a_lock_whose_owner_has_ended_has_to_win_it_and_is_not_given_it(tmp_path: Path) -> None:
    """A lease may have been won by a daemon that had not asked yet whether other hosts share it (found by seed 4145)."""

    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        w.processes.end(VM)
        w.open_files.open.clear()
        next_owner = w.owner(OTHER, "db1")
        await w.manager.acquire(next_owner, want(disk))
        assert locked(disk)
        kinds = [e.kind for e in w.events.recent()]
        assert ev.ADOPTED not in kinds
        assert kinds.index(ev.SETTLED) < len(kinds) - 1 - kinds[::-1].index(ev.ACQUIRED)
        assert list(replay(w.file.read()).owners) == [next_owner.id]

    run(scene)


def test_owner_is_not_given_a_lock_that_the_journal_cannot_record(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        w.file.room_bytes = 0
        with pytest.raises(Refused, match="journal"):
            await w.manager.acquire(w.owner(VM, "web1"), want(disk))
        assert len(w.manager.unknown) == 1
        assert locked(disk)

    run(scene)


def test_nobody_adopts_a_lock_whose_disk_another_process_has_open(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        have_open(w, disk, VM, OTHER)
        for pid in (VM, OTHER):
            with pytest.raises(ResourceBusy):
                await w.manager.acquire(w.owner(pid), want(disk))

    run(scene)


def test_second_start_is_refused_although_libvirt_lists_the_disk_for_it(tmp_path: Path) -> None:
    """A status file is written when a VM starts: it proves nothing against a process that has the disk open."""

    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        thief = w.owner(OTHER, "thief")
        with pytest.raises(ResourceBusy):
            await w.manager.acquire(thief, want(disk))
        assert locked(disk)

    run(scene)


def test_operator_settles_nothing_that_a_process_has_open_or_that_has_a_known_owner(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        settle_disk = w.manager.unknown.settle
        with pytest.raises(Refused, match=f"process {VM}"):
            await settle_disk(disk, "J. Doe")
        w.open_files.open.clear()
        w.open_files.unclear.add(9)
        with pytest.raises(Refused, match="process 9 could not be inspected"):
            await settle_disk(disk, "J. Doe")
        w.open_files.unclear.clear()
        with pytest.raises(Refused, match="operator's name"):
            await settle_disk(disk, " ")
        other = w.disk("other.img")
        await w.manager.acquire(w.owner(3), want(other))
        with pytest.raises(Refused, match="has a known owner"):
            await settle_disk(other, "J. Doe")
        with pytest.raises(Refused, match="no unknown lock is called"):
            await settle_disk("/nowhere", "J. Doe")
        assert not w.audit
        assert "is settled" in await settle_disk(disk, "J. Doe")
        await settle()
        assert not locked(disk)
        assert locked(other)
        (line,) = w.audit
        assert "J. Doe" in line and disk in line

    run(scene)


def test_operator_settles_an_orphan_and_no_other_claim_of_its_lock(tmp_path: Path) -> None:
    """Of a client whose lease got the name of a disk from an old journal: no client can release it by the lease's name."""

    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        shared = want(disk, Mode.SHARED)
        client, vm = w.owner(1), w.owner(2)
        await w.manager.acquire(client, shared)
        w.manager.book.persists(client, shared.resource)
        await w.manager.acquire(vm, shared)
        w.processes.end(client.pid)
        await settle()
        (lock,) = w.manager.table
        assert [owner.keeps_orphans for i in lock.claims if (owner := w.manager.owners.get(i))] == [
            False,
            True,
        ]
        have_open(w, disk, 9)
        with pytest.raises(Refused, match="open in process 9"):
            await w.manager.unknown.settle(disk, "J. Doe")
        w.open_files.open.clear()
        have_open(w, disk, vm.pid)
        assert "is settled" in await w.manager.unknown.settle(disk, "J. Doe")
        assert list(lock.claims) == [vm.id]
        assert not [owner for owner in w.manager.owners if owner.keeps_orphans]
        (line,) = w.audit
        assert disk in line
        with pytest.raises(Refused, match="has a known owner"):
            await w.manager.unknown.settle(disk, "J. Doe")

    run(scene)


def test_unknown_owner_stays_unknown_over_the_next_restart(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk = await unknown_lock(tmp_path)
        w.journal.compact()
        state = replay(w.file.read())
        assert state.is_whole
        assert [line.why for line in state.unknown.values()] != []
        w.crash()
        w = await restarted(w, tmp_path)
        assert len(w.manager.unknown) == 1
        assert locked(disk)

    run(scene)


def test_owner_that_is_not_found_is_over_only_if_the_journal_is_whole(tmp_path: Path) -> None:
    async def scene() -> None:
        for damaged in (False, True):
            w = World(tmp_path / f"{damaged}")
            disk = w.disk()
            await w.manager.acquire(w.owner(VM), want(disk))
            w.crash()
            w.processes.end(VM)
            if damaged:
                w.file.replace(w.file.read() + b'["clai')
            have_open(w, disk, 99)
            w = await restarted(w, tmp_path / f"{damaged}")
            assert locked(disk) is damaged
            w.open_files.open.clear()
            await w.clock.advance(20)
            assert not locked(disk)

    (tmp_path / "False").mkdir()
    (tmp_path / "True").mkdir()
    run(scene)


def test_placeholder_is_never_retaken_or_settled_and_the_journal_keeps_its_doubt(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        w.manager.unknown.hold_place("file", "leases of lockspace A", "the journal is missing")
        await w.clock.advance(60)
        (lock,) = w.manager.table
        assert lock.held is None
        assert not await w.manager.lost.regain(lock)
        w.journal.compact()
        assert not w.saved().locks
        # The next daemon may be started before everything is accounted for (found by seed 1139).
        assert not w.saved().is_whole
        assert w.saved().doubt == "the journal is missing"
        w.manager.unknown.drop_place("file")
        assert w.saved().is_whole
        assert len(w.manager.table) == len(w.manager.owners) == 0

    run(scene)


def test_evidence_is_kept_by_an_owner_that_becomes_unknown(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        hidden: Owner = w.owner(7, "hidden", hidden=True)
        await w.manager.acquire(hidden, want(disk))
        assert hidden.process is None
        evidence = Evidence(why="not visible", process=ProcessId(7, 0), unseen=True)
        w.manager.unknown.becomes(hidden, evidence)
        assert w.manager.owners.with_pid(7) is None
        await w.clock.advance(60)
        assert locked(disk), "nothing on this host proves its end"
        again = w.owner(7, "hidden", hidden=True)
        with pytest.raises(ResourceBusy):
            await w.manager.acquire(again, want(disk))
        assert dataclasses.replace(evidence) == hidden.unknown

    run(scene)


def test_lines_that_an_older_daemon_does_not_know_are_kinds_of_their_own() -> None:
    """It skips a kind that it doesn't know; another version would be an earlier boot to it, and everything free."""
    raw = b'["start",1,"boot-1","alpha"]\n'
    assert replay(raw).boot == "boot-1"
    assert jn.VERSION == 1


def test_claim_on_a_lock_that_could_not_be_recorded_waits_for_the_lock_itself(tmp_path: Path) -> None:
    """Found by seed 96001051: on a full disk a claim line fitted where the line of its lock had not."""

    async def scene() -> None:
        world = World(tmp_path)
        disk = world.disk()
        owner, before = world.owner(1), world.file.raw
        await world.manager.acquire(owner, want(disk, Mode.SHARED))
        (lock,) = world.manager.table
        world.file.raw = before  # as a journal that was lost
        world.file.room_bytes = len(before)
        world.manager.book.restored(lock, owner)
        assert world.file.raw == before
        world.file.room_bytes = None
        world.manager.book.claim(world.owner(2), want(disk, Mode.SHARED), lock, converted=False)
        saved = world.saved()
        assert saved.is_whole, saved.doubt
        assert len(saved.locks) == 1

    run(scene)


class HeldAlone:
    """A lease that its host has for one owner, by what storage says."""

    is_shared = False

    def descriptor(self) -> None:
        return None


def test_mode_on_storage_counts_for_the_only_owner_of_a_retaken_lock(tmp_path: Path) -> None:
    """An older journal says shared of a lease that its owner has had alone since: nobody else of this host may share it."""

    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        owner, other = w.owner(VM), w.owner(OTHER)
        await w.manager.acquire(owner, want(disk, Mode.SHARED))
        (lock,) = w.manager.table
        really_held, lock.held = lock.held, cast("Any", HeldAlone())
        w.manager.lost._is_as_held(lock)
        assert (lock.mode, lock.claims[owner.id]) == (Mode.EXCLUSIVE, {Resource("", disk): Mode.EXCLUSIVE})
        lock.held = really_held
        with pytest.raises(ResourceBusy):
            await w.manager.acquire(other, want(disk, Mode.SHARED))

    run(scene)

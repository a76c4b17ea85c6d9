"""Owners that keep locks for their descendants: when one has ended, its locks stay until their disks are closed."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from pathlib import Path

from tests.unit.manager.test_lock_manager import restarted
from tests.unit.manager.world import World, locked, run, want

from holdfast.manager.closed_disks import CLOSED_CHECK_S, CLOSED_CHECK_S_MAX
from holdfast.manager.owners import Owner
from holdfast.model import Mode, OwnerName, Resource
from holdfast.system.files.ofd_lock import FileKey, key_of
from holdfast.system.files.open_files import Users
from holdfast.testing.fakes import settle

KEEPER, WRITER = 1, 77


def supervisor(w: World) -> Owner:
    w.processes.start(KEEPER)
    return w.manager.register(KEEPER, OwnerName("backup"), until_closed=True)


async def scans(w: World, times: int) -> None:
    """So many scans for processes that have the disk open."""
    for _ in range(times):
        await w.clock.advance(CLOSED_CHECK_S)
        await settle()


def test_lock_stays_until_no_process_has_the_disk_open(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, other = w.disk(), w.disk("other.img")
        owner = supervisor(w)
        await w.manager.acquire(owner, want(disk))
        await w.manager.acquire(owner, want(other))
        w.open_files.open[WRITER] = {key_of(os.stat(disk))}
        w.processes.end(KEEPER)
        await settle()
        await scans(w, 3)
        assert locked(disk)
        assert not locked(other), "each disk is judged by itself"
        del w.open_files.open[WRITER]
        w.open_files.unclear.add(99)
        await scans(w, 3)
        assert locked(disk), "a process that can't be inspected may have it open"
        w.open_files.unclear.clear()
        await scans(w, 1)
        assert not locked(disk)
        assert w.manager.owners.get(owner.id) is None
        assert not w.saved().owners

    run(scene)


def test_slow_scan_of_a_loaded_host_postpones_the_next_one_by_seconds_only(tmp_path: Path) -> None:
    """Found by the lab: scans took 3 s in a guest, and the lock stayed for a minute after the disk was closed."""

    async def scene() -> None:
        w = World(tmp_path)
        disk, owner = w.disk(), supervisor(w)
        await w.manager.acquire(owner, want(disk))
        w.open_files.open[WRITER] = {key_of(os.stat(disk))}
        quick = w.open_files.users

        async def slow(keys: Collection[FileKey]) -> Users:
            users = await quick(keys)
            await w.clock.sleep(3)
            return users

        w.open_files.users = slow  # type: ignore[method-assign]
        w.processes.end(KEEPER)
        await w.clock.advance(4)
        assert w.open_files.scans == 1
        del w.open_files.open[WRITER]
        for _ in range(2):
            await w.clock.advance(CLOSED_CHECK_S_MAX)
        assert not locked(disk)

    run(scene)


def test_what_it_releases_itself_is_free_whoever_has_it_open(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        owner = supervisor(w)
        await w.manager.acquire(owner, want(disk, Mode.SHARED))
        w.open_files.open[WRITER] = {key_of(os.stat(disk))}
        await w.manager.release(owner, Resource("", disk))
        assert not locked(disk)
        w.processes.end(KEEPER)
        await settle()
        assert w.open_files.scans == 0

    run(scene)


def test_owner_that_keeps_nothing_for_others_is_over_with_its_process(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        await w.manager.acquire(w.owner(KEEPER), want(disk))
        w.open_files.open[WRITER] = {key_of(os.stat(disk))}
        w.processes.end(KEEPER)
        await settle()
        assert not locked(disk)

    run(scene)


def test_another_process_with_its_pid_does_not_free_its_disk(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        await w.manager.acquire(supervisor(w), want(disk))
        w.open_files.open[WRITER] = {key_of(os.stat(disk))}
        w.processes.end(KEEPER)
        await settle()
        stranger = w.owner(KEEPER, "stranger")
        await scans(w, 2)
        assert locked(disk)
        assert not w.manager.table.holds_any(stranger.id)
        w.open_files.open.clear()
        await scans(w, 1)
        assert not locked(disk)
        assert w.manager.owners.with_pid(KEEPER) is stranger

    run(scene)


def test_disk_of_an_ended_keeper_is_retaken_by_the_next_daemon_and_freed_when_closed(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        owner = supervisor(w)
        await w.manager.acquire(owner, want(disk))
        w.crash()
        w.processes.end(KEEPER)
        w.open_files.open[WRITER] = {key_of(os.stat(disk))}
        w = await restarted(w, tmp_path)
        again = w.manager.owners.get(owner.id)
        assert again is not None
        assert again.until_closed
        assert not again.alive()
        w.manager.owner_ended(again)  # as the daemon does once all is adopted
        await scans(w, 2)
        assert locked(disk)
        w.open_files.open.clear()
        await scans(w, 1)
        assert not locked(disk)

    run(scene)


def test_owner_that_is_already_known_becomes_a_keeper_in_the_journal(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        owner = w.owner(KEEPER)
        await w.manager.acquire(owner, want(w.disk()))
        assert not w.saved().owners[owner.id].until_closed
        w.manager.register(KEEPER, owner.name, until_closed=True)
        assert w.saved().owners[owner.id].until_closed
        w.journal.compact()
        assert w.saved().owners[owner.id].until_closed

    run(scene)


FAMILY = "/sys/fs/cgroup/holdfast-run-1"


def test_lock_stays_while_the_family_lives_although_nobody_has_opened_the_disk_yet(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        w.processes.start(KEEPER)
        w.processes.start(WRITER)
        w.processes.families[FAMILY] = {WRITER}
        owner = w.manager.register(KEEPER, OwnerName("backup"), until_closed=True, family=FAMILY)
        await w.manager.acquire(owner, want(disk))
        assert w.saved().owners[owner.id].family == FAMILY
        w.processes.end(KEEPER)
        await settle()
        await scans(w, 2)
        assert locked(disk)
        assert not w.open_files.scans, "the family says enough"
        w.processes.families[FAMILY] = None
        await scans(w, 2)
        assert locked(disk), "a family that can't be read may live"
        w.processes.families[FAMILY] = {WRITER}
        owner.signal(signal.SIGKILL)
        assert w.processes.signals == [(WRITER, signal.SIGKILL)], (
            "those that are left are stopped in its place"
        )
        await scans(w, 1)
        assert not locked(disk)
        assert FAMILY not in w.processes.families, "the group is removed"

    run(scene)


def test_next_daemon_knows_the_family_of_an_ended_keeper(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        w.processes.start(KEEPER)
        w.processes.start(WRITER)
        w.processes.families[FAMILY] = {WRITER}
        owner = w.manager.register(KEEPER, OwnerName("backup"), until_closed=True, family=FAMILY)
        await w.manager.acquire(owner, want(disk))
        w.crash()
        w.processes.end(KEEPER)
        w = await restarted(w, tmp_path)
        again = w.manager.owners.get(owner.id)
        assert again is not None
        w.manager.owner_ended(again)
        await scans(w, 2)
        assert locked(disk)
        w.processes.end(WRITER)
        await scans(w, 1)
        assert not locked(disk)

    run(scene)

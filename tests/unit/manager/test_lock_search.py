"""File locks that are found again without a journal: by lock files that name this host, and by libvirt's status files."""

from __future__ import annotations

import os
from pathlib import Path

from tests.unit.manager.world import HOST, World, locked, run, want

from holdfast.backends.file import owner_record
from holdfast.backends.naming import indirect_name
from holdfast.manager import events as ev
from holdfast.manager.lock_search import LockSearch
from holdfast.model import Mode, OwnerName, Resource
from holdfast.system.files.ofd_lock import key_of
from holdfast.system.libvirt.domains import Disk, Domain

DOUBT = "the journal is missing"


class Status:
    def __init__(self, *domains: Domain) -> None:
        self.domains = list(domains)

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        return None

    def running(self) -> list[Domain]:
        return self.domains


def domain(pid: int, *disks: Disk, state: str = "running") -> Domain:
    return Domain("web1", "uuid-1", disks, frozenset(), pid, state)


async def after(before: World, tmp_path: Path, *domains: Domain) -> World:
    """The next daemon, which finds no journal."""
    before.crash()
    before.file.replace(b"")
    w = World(tmp_path, before=before)
    await LockSearch(w.manager, domains=Status(*domains)).search(DOUBT)
    return w


def test_lock_file_that_names_a_living_owner_of_this_host_is_locked_again(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk("indirect/disk.img")
        await w.manager.acquire(w.owner(1, "web1"), want(disk))
        lock_file = w.locks_directory / indirect_name(disk)
        assert lock_file.exists()
        w = await after(w, tmp_path)
        assert locked(str(lock_file))
        owner = w.manager.owners.with_pid(1)
        assert owner is not None and owner.unknown is None, "pid and start time are in the record"
        assert [list(lock.names()) for lock in w.known] == [[Resource("", disk)]], "the record names the disk"
        w.processes.end(1)
        await w.clock.advance(1)
        assert not lock_file.exists()

    run(scene)


def test_lock_file_of_an_owner_that_has_ended_goes_when_nobody_has_its_disk_open(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk("indirect/disk.img")
        await w.manager.acquire(w.owner(1), want(disk))
        lock_file = w.locks_directory / indirect_name(disk)
        w.manager.closing = True
        w.processes.end(1)
        w = await after(w, tmp_path)
        assert len(w.manager.unknown) == 1
        w.open_files.open[7] = {key_of(os.stat(disk))}
        await w.clock.advance(60)
        assert locked(str(lock_file)), "the record names the disk, and a process has it open"
        w.open_files.open.clear()
        await w.clock.advance(20)
        assert not lock_file.exists()

    run(scene)


def test_record_that_names_another_disk_than_its_file_is_for_is_not_believed(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk("indirect/disk.img")
        await w.manager.acquire(w.owner(1), want(disk))
        lock_file = w.locks_directory / indirect_name(disk)
        lock_file.write_bytes(lock_file.read_bytes().replace(disk.encode(), disk[:-1].encode() + b"_"))
        w = await after(w, tmp_path)
        assert [list(lock.names()) for lock in w.manager.table] == [
            [Resource(str(w.locks_directory), lock_file.name)]
        ]

    run(scene)


def test_owner_releases_by_its_path_the_lock_that_was_found_by_its_lock_file(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk("indirect/disk.img")
        await w.manager.acquire(w.owner(1, "web1"), want(disk))
        w = await after(w, tmp_path)
        await w.manager.release(w.owner(1, "web1"), Resource("", disk))
        assert not (w.locks_directory / indirect_name(disk)).exists()

    run(scene)


def test_lock_files_of_other_hosts_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        record = owner_record.encode(
            OwnerName("far"), host="beta", pid=1, mode=Mode.EXCLUSIVE, since_wall_s=1.0
        )
        (w.locks_directory / "a").write_bytes(record)
        (w.locks_directory / "b").write_bytes(b"something else")
        (w.locks_directory / "c").write_bytes(b"")
        os.mkfifo(w.locks_directory / "d")
        w.processes.start(1)
        w = await after(w, tmp_path)
        assert len(w.manager.table) == 0
        assert (w.locks_directory / "a").read_bytes() == record

    run(scene)


def test_lock_file_that_another_process_has_by_now_is_reported_and_nobody_is_touched(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk("indirect/disk.img")
        await w.manager.acquire(w.owner(1), want(disk))
        w.crash()
        rival = World(tmp_path)
        await rival.manager.acquire(rival.owner(9, "rival"), want(disk))
        record = owner_record.encode(
            OwnerName("web1"), host=HOST, pid=1, start_ticks=1, mode=Mode.EXCLUSIVE, since_wall_s=1.0
        )
        (w.locks_directory / indirect_name(disk)).write_bytes(record)
        w = await after(w, tmp_path)
        assert len(w.manager.table) == 0
        assert w.processes.signals == []

    run(scene)


def test_disks_of_running_domains_are_locked_again_for_their_processes(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk, shared, paused = w.disk(), w.disk("shared.img"), w.disk("paused.img")
        w.processes.start(1)
        w.processes.start(2)
        running = domain(1, Disk(disk, False), Disk(shared, True))
        w = await after(
            w,
            tmp_path,
            running,
            domain(2, Disk(paused, False), state="paused"),
            domain(77, Disk("/x", False)),
        )
        assert locked(disk) and locked(shared) and not locked(paused)
        owner = w.manager.owners.with_pid(1)
        assert owner is not None
        assert {lock.mode for lock in w.manager.table.of_owner(owner.id)} == {Mode.EXCLUSIVE, Mode.SHARED}
        assert w.manager.owners.with_pid(77) is None
        await w.manager.release(owner, Resource("", disk))
        assert not locked(disk)
        w.processes.end(1)
        await w.clock.advance(1)
        assert not locked(shared)

    run(scene)


def test_disk_of_a_running_domain_that_another_has_by_now_is_a_lost_lock_and_no_vm_is_touched(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        disk = w.disk()
        w.processes.start(1)
        rival = World(tmp_path)
        await rival.manager.acquire(rival.owner(9, "rival"), want(disk))
        w = await after(w, tmp_path, domain(1, Disk(disk, False)))
        assert [e.kind for e in w.events.recent()][-1] == ev.LOCK_LOST
        assert w.processes.signals == []
        assert len(w.manager.table) == 0

    run(scene)

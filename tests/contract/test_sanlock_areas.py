"""Commands of sanlock's clients on areas, on real files: what no client writes over (ADR 0200), owners, indexes, records."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import Phase, given, settings, strategies
from tests.support import sanlock_values as values
from tests.support.leases import SPACE, lease_file, make_lockspace
from tests.support.sanlock_clients import SHARED, Storage, comes, played
from tests.support.sanlock_engine import METHODS, EngineSite, blank

from holdfast.backends.paxos.device_store import IndexChange
from holdfast.backends.paxos.names import key_of_lease
from holdfast.frontends.sanlock.engine import SanlockEngine
from holdfast.frontends.sanlock.service import SanlockService
from holdfast.model import AcquireRequest, Mode, OwnerName, Resource
from holdfast.ondisk import areas, delta
from holdfast.ondisk import leader as leaders
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, GEOMETRIES, MIB, Geometry
from holdfast.ondisk.host_block import HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.membership import Membership
from holdfast.system.block_io.disk_file import REAL_KERNEL
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import (
    SIZES,
    HostMark,
    InitHostFlag,
    LockspaceFlag,
    ResourceFlag,
    UpdateRindexFlag,
    WriteLockspaceFlag,
    WriteResourceFlag,
)
from holdfast.wire.sanlock.header import request_header
from holdfast.wire.sanlock.result import Result

ONE, TWO = 101, 102
TAKEN_AT_ONCE_S = 0.5
"""A lease that nothing holds up is taken long before."""
CONFIGURED = "it is configured"


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    before = [path.read_bytes() for path in paths]
    yield
    assert [path.read_bytes() for path in paths] == before


async def wrote(site: EngineSite, resource: s.Resource, flags: int = 0) -> int:
    return (await site.engine.write_resource(r.WriteResource(flags, 0, 0, resource))).result


async def wrote_lockspace(site: EngineSite, path: Path, name: str = "W", at: int = 0, flags: int = 0) -> int:
    lockspace = s.Lockspace.of(name, 1, str(path), at, flags=flags)
    return (await site.engine.write_lockspace(r.WriteLockspace(0, 0, 1, lockspace))).result


def flags_of(geometry: Geometry) -> int:
    return int(SIZES[geometry.sector_bytes, geometry.align_bytes])


# --- leases ---


def test_lease_of_a_vm_is_not_written_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st, lockd=True)
        disk = st.directory / "leased" / "disk.img"
        disk.parent.mkdir()
        disk.touch()
        site.world.processes.start(ONE)
        owner = site.manager.register(ONE, OwnerName("web1"))
        await site.manager.acquire_one(owner, AcquireRequest(Resource("", str(disk)), Mode.EXCLUSIVE))
        lease = lease_file(st.directory, disk)
        alias = tmp_path / "alias"
        alias.symlink_to(lease)
        with unchanged(lease):
            for path in (lease, alias):
                place = s.Resource.of("X", "Y", s.Disk(str(path)))
                for flags in (0, WriteResourceFlag.CLEAR):
                    assert await wrote(site, place, flags) == Result.EBUSY
                assert await wrote_lockspace(site, path) == Result.EBUSY
                index = s.Rindex(PaddedName.of("X"), 0, 0, s.Disk(str(path)))
                assert (await site.engine.format_rindex(r.FormatRindex(index))).result == Result.EBUSY
        assert str(disk) in caplog.text
        lock = site.manager.table.named(Resource("", str(disk)))
        assert lock is not None
        await site.manager.release_one(owner, lock, Resource("", str(disk)))
        assert await wrote(site, s.Resource.of("X", "Y", s.Disk(str(lease)))) == Result.OK

    played(scene)


def test_lease_of_a_client_or_an_orphan_is_written_over_as_sanlock_does(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1", "R2")
        site = EngineSite(st)
        one = site.client(ONE)
        persistent = st.resource("R2", ResourceFlag.PERSISTENT)
        for wanted in (st.resource("R1"), persistent):
            assert (await site.engine.acquire(one, r.Acquire(0, r.OWN, (wanted,)))).result == Result.OK
        assert await wrote(site, st.resource("R1")) == Result.OK
        assert (st.leader("R1").is_free, st.leader("R1").lver) == (True, 0)
        one.dead = True
        site.engine.client_closed(one)
        while not site.leases.orphans("sanlock:" + SPACE):
            await asyncio.sleep(0.01)
        assert await wrote(site, st.resource("R2")) == Result.OK
        assert st.leader("R2").is_free

    played(scene)


def test_lease_that_nobody_here_is_known_to_have_stays(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1", "R2", "R3")
        site = EngineSite(st)
        for name, generation, result in (("R1", 1, Result.EBUSY), ("R2", 7, Result.OK)):
            owned = replace(
                st.leader(name), owner_id=1, owner_generation=generation, timestamp=5, lver=1, write_id=1
            )
            put(st, name, 0, owned.sector())
            assert await wrote(site, st.resource(name)) == result
        put_shared(st, "R3", host_id=1, generation=1)
        assert await wrote(site, st.resource("R3")) == Result.EBUSY
        put_shared(st, "R3", host_id=1, generation=7)
        assert await wrote(site, st.resource("R3")) == Result.OK

    played(scene)


def put(st: Storage, name: str, at: int, raw: bytes) -> None:
    with st.path.open("r+b") as f:
        f.seek(st.offsets[name] + at)
        f.write(raw)


def put_shared(st: Storage, name: str, *, host_id: int, generation: int) -> None:
    block = HostBlock(mode=ModeBlock.shared(generation))
    put(st, name, DEFAULT.host_block_offset_bytes(host_id), block.sector(512))


def test_areas_that_reach_into_a_held_lease_are_not_written(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        at = 8 * MIB
        large = GEOMETRIES[-1]
        leader = replace(
            areas.fresh_leader(large, SPACE, "L"),
            owner_id=1,
            owner_generation=1,
            timestamp=5,
            lver=1,
            write_id=1,
        )
        path = blank(tmp_path / "large", 24 * MIB)
        with path.open("r+b") as f:
            f.seek(at)
            f.write(areas.lease_area(leader))
        for offset, flags, result in (
            (15 * MIB, 0, Result.EBUSY),  # its last MiB
            (16 * MIB, 0, Result.OK),
            (7 * MIB, 0, Result.OK),
            (4 * MIB, flags_of(GEOMETRIES[3]), Result.OK),
            (0, flags_of(large), Result.OK),
            (8 * MIB, flags_of(large), Result.EBUSY),
        ):
            with unchanged(*([path] if result else [])):
                place = s.Resource.of("X", "Y", s.Disk(str(path), offset), flags=flags)
                assert await wrote(site, place) == result, offset

    played(scene)


def test_lease_in_a_file_that_ends_soon_is_seen(tmp_path: Path) -> None:
    async def scene() -> None:
        site = EngineSite(Storage(tmp_path, "R1"))
        leader = replace(
            areas.fresh_leader(DEFAULT, SPACE, "L", 2),
            owner_id=1,
            owner_generation=1,
            timestamp=5,
            lver=1,
            write_id=1,
        )
        path = tmp_path / "short"
        path.write_bytes(areas.lease_area(leader)[: DEFAULT.lease_span_bytes(2)])
        with unchanged(path):
            assert await wrote(site, s.Resource.of("X", "Y", s.Disk(str(path)))) == Result.EBUSY

    played(scene)


def test_lease_is_not_taken_while_it_is_written_over(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1", "R2")
        site = EngineSite(st)
        order: list[str] = []
        goes_on = asyncio.Event()

        async def work() -> None:
            order.append("begun")
            await goes_on.wait()
            order.append("done")

        writing = asyncio.ensure_future(site.leases.while_not_taken((key_of_lease(SPACE, "R1"),), work()))
        await asyncio.sleep(0)
        one = site.client(ONE)
        assert await site.acquire(one, st.resource("R2")) == Result.OK
        assert order == ["begun"], "another lease is free to be taken"
        taking = asyncio.ensure_future(site.acquire(one, st.resource("R1")))
        await asyncio.wait((taking,), timeout=TAKEN_AT_ONCE_S)
        assert not taking.done()
        goes_on.set()
        assert await taking == Result.OK
        assert order == ["begun", "done"]
        await writing

    played(scene)


def test_write_waits_for_the_lease_that_a_vm_is_just_taking(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st, lockd=True)
        disk = st.directory / "leased" / "disk.img"
        disk.parent.mkdir()
        disk.touch()
        site.world.processes.start(ONE)
        owner = site.manager.register(ONE, OwnerName("web1"))
        name = Resource("", str(disk))
        await site.manager.acquire_one(owner, AcquireRequest(name, Mode.EXCLUSIVE))
        lock = site.manager.table.named(name)
        assert lock is not None
        await site.manager.release_one(owner, lock, name)  # the lease is made, and free
        lease = lease_file(st.directory, disk)
        gate = Gate(0)  # the write of its leader, the last step of taking it
        site.host.storage._kernel = gate
        taking = asyncio.ensure_future(site.manager.acquire_one(owner, AcquireRequest(name, Mode.EXCLUSIVE)))
        waiters = site.manager.key_locks.on
        await comes(lambda: key_of_lease(SPACE, lease.name) in waiters)
        site.host.storage._kernel = REAL_KERNEL
        writing = asyncio.ensure_future(wrote(site, s.Resource.of("X", "Y", s.Disk(str(lease)))))
        await comes(lambda: writing.done() or waiters.get(key_of_lease(SPACE, lease.name)))
        assert not writing.done()
        assert site.manager.table.named(name) is None
        gate.opened.set()
        assert await writing == Result.EBUSY
        await taking
        leader = Leader.decode(lease.read_bytes()[:512])
        assert isinstance(leader, Leader)
        assert not leader.is_free

    played(scene)


def test_what_can_not_be_read_is_not_written(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)

        class Failing:
            def open(self, path: str, flags: int) -> int:
                return os.open(path, flags)

            def read_into(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
                raise OSError(5, "Input/output error")

            def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
                raise AssertionError("it wrote")

        site.host.storage._kernel = Failing()
        with unchanged(st.path):
            assert await wrote(site, st.resource("R1")) == Result.EIO
            assert await wrote_lockspace(site, st.path) == Result.EIO

    played(scene)


# --- lockspaces ---


def test_lockspace_of_others_is_not_written_over(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        site.spaces.in_the_way[SPACE] = CONFIGURED
        moved = tmp_path / "same-file"
        moved.hardlink_to(st.lockspace)
        with unchanged(st.lockspace):
            for path in (st.lockspace, moved):
                assert await wrote_lockspace(site, path) == Result.EBUSY
                assert await wrote(site, s.Resource.of("X", "Y", s.Disk(str(path)))) == Result.EBUSY
        copy = tmp_path / "older"
        make_lockspace(copy)
        assert await wrote_lockspace(site, copy) == Result.OK, "another area, in which this host is not"
        site.spaces.in_the_way.clear()
        assert await wrote_lockspace(site, st.lockspace, SPACE) == Result.OK

    played(scene)


def test_lockspace_of_ours_that_can_not_be_read_any_more_is_known_by_its_place(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        site.spaces.in_the_way[SPACE] = CONFIGURED
        blank(st.lockspace, 2 * MIB)
        with unchanged(st.lockspace):
            assert await wrote_lockspace(site, st.lockspace) == Result.EBUSY
        assert await wrote_lockspace(site, st.lockspace, at=MIB) == Result.OK

    played(scene)


def test_lockspace_is_written_and_read_in_every_size(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        for geometry in GEOMETRIES:
            path = blank(tmp_path / "W", 0)
            assert await wrote_lockspace(site, path, flags=flags_of(geometry)) == Result.OK
            expected, first = areas.lockspace_area(geometry, "W", 1)
            assert path.read_bytes() == first + expected[len(first) :]
            wanted = s.Lockspace.of("", geometry.hosts_max, str(path))
            found = await site.engine.read_lockspace(r.ReadLockspace(wanted))
            assert (found.result, found.io_timeout_s) == (Result.OK, 1)
            assert (found.lockspace.name.text, found.lockspace.flags) == ("W", flags_of(geometry))

    played(scene)


def test_flags_of_newer_versions_are_said(tmp_path: Path) -> None:
    async def scene() -> None:
        site = EngineSite(Storage(tmp_path, "R1"))
        path = tmp_path / "newer"
        for flags, expected in (
            (delta.FLAG_NO_TIMEOUT, LockspaceFlag.NO_TIMEOUT),
            (delta.FLAG_CAW, LockspaceFlag.USING_CAW),
        ):
            record = areas.fresh_delta_lease(DEFAULT, "W", version=delta.VERSION_5, flags=flags)
            path.write_bytes(record.encode().ljust(MIB, b"\0"))
            wanted = s.Lockspace.of("W", 1, str(path))
            found = await site.engine.read_lockspace(r.ReadLockspace(wanted))
            assert (found.result, found.lockspace.flags) == (Result.OK, flags_of(DEFAULT) | expected)
        leader = areas.fresh_leader(DEFAULT, "W", "R", version=leaders.VERSION_7)
        leader = replace(leader, flags=leader.flags | leaders.FLAG_CAW)
        path.write_bytes(leader.encode().ljust(MIB, b"\0"))
        read = await site.engine.read_resource(r.ReadResource(s.Resource.of("W", "R", s.Disk(str(path)))))
        assert (read.result, read.resource.flags) == (Result.OK, flags_of(DEFAULT) | ResourceFlag.USING_CAW)

    played(scene)


@pytest.mark.parametrize(
    ("cmd_flags", "flags", "io_timeout_s", "name", "result"),
    [
        (WriteLockspaceFlag.LS_FLAGS, 0, 1, "W", Result.EINVAL),
        (WriteLockspaceFlag.NO_CAW, LockspaceFlag.NO_TIMEOUT, 1, "W", Result.EINVAL),
        (WriteLockspaceFlag.USE_CAW, 0, 1, "W", Result.CAW_CONFIG),
        (0, 0, 256, "W", Result.EINVAL),
        (0, 0, 1, "", Result.EINVAL),
        (0, 0x10, 1, "W", Result.FAILED),
    ],
)
def test_lockspace_that_can_not_be_made_is_refused(
    tmp_path: Path, cmd_flags: int, flags: int, io_timeout_s: int, name: str, result: Result
) -> None:
    async def scene() -> None:
        site = EngineSite(Storage(tmp_path, "R1"))
        path = blank(tmp_path / "W", MIB)
        lockspace = s.Lockspace.of(name, 1, str(path), flags=flags)
        with unchanged(path):
            done = await site.engine.write_lockspace(r.WriteLockspace(cmd_flags, 0, io_timeout_s, lockspace))
            assert done.result == result

    played(scene)


def test_unaligned_areas_and_leases_on_two_disks_are_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        site = EngineSite(Storage(tmp_path, "R1"))
        path = blank(tmp_path / "W", 4 * MIB)
        disk = s.Disk(str(path), 512 * 1024)
        with unchanged(path):
            assert await wrote(site, s.Resource.of("X", "Y", disk)) == Result.EINVAL
            assert await wrote_lockspace(site, path, at=512 * 1024) == Result.EINVAL
            two = s.Resource.of("X", "Y", s.Disk(str(path)), s.Disk(str(path), MIB))
            assert await wrote(site, two) == Result.EINVAL
            read = await site.engine.read_resource(r.ReadResource(two))
            assert read.result == Result.EINVAL
            caw = r.WriteResource(WriteResourceFlag.USE_CAW, 0, 0, s.Resource.of("X", "Y", s.Disk(str(path))))
            assert (await site.engine.write_resource(caw)).result == Result.CAW_CONFIG

    played(scene)


# --- owners ---


def test_owners_are_those_on_storage(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)

        async def owners() -> tuple[int, list[tuple[int, int, bool]], bool]:
            found = await site.engine.read_resource_owners(r.ReadResourceOwners(st.resource("R1")))
            shared = bool(found.resource.flags & SHARED)
            return (
                found.resource.lver,
                [(h.host_id, h.generation, h.timestamp > 0) for h in found.hosts],
                shared,
            )

        one, two = site.client(ONE), site.client(TWO)
        assert await owners() == (0, [], False)
        assert await site.acquire(one, st.resource("R1")) == Result.OK
        assert await owners() == (1, [(1, 1, True)], False)
        assert await site.release(one, st.resource("R1")) == Result.OK
        for client in (one, two):
            assert await site.acquire(client, st.resource("R1", SHARED)) == Result.OK
        put_shared(st, "R1", host_id=3, generation=9)
        assert await owners() == (2, [(1, 1, False), (3, 9, False)], True)
        put(st, "R1", DEFAULT.host_block_offset_bytes(7), b"\7" * 52)
        found = await site.engine.read_resource_owners(r.ReadResourceOwners(st.resource("R1")))
        assert (found.result, found.hosts) == (Result.DBLOCK_CHECKSUM, ()), "doubt is no owner, and not free"

    played(scene)


# --- host records ---


def test_record_of_a_host_is_read_and_made(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)

        async def read(host_id: int) -> s.Host:
            lockspace = s.Lockspace.of(SPACE, host_id, str(st.lockspace))
            found = await site.engine.read_lockspace_host(r.ReadLockspaceHost(lockspace))
            assert (found.result, found.io_timeout_s) == (Result.OK, found.host.io_timeout_s)
            return found.host

        async def make(
            host_id: int, timestamp: int = 1, flags: int = InitHostFlag.NO_CAW, io: int = 3
        ) -> int:
            lockspace = s.Lockspace.of(SPACE, host_id, str(st.lockspace))
            record = s.HostRecord(host_id, 5, PaddedName.of("absent"), timestamp)
            return (
                await site.engine.init_lockspace_host(r.InitLockspaceHost(flags, io, lockspace, record))
            ).result

        assert await read(1) == s.Host(1, 1, 101, 1)
        assert await make(7) == Result.OK
        assert await read(7) == s.Host(7, 5, 1000, 3)
        assert await make(8, timestamp=0) == Result.OK
        assert await read(8) == s.Host(8, 5, 0, 3)
        with unchanged(st.lockspace):
            assert await make(1) == Result.EBUSY, "this host's own"
            assert await make(0) == Result.EINVAL
            assert await make(2001) == Result.EINVAL
            assert await make(7, io=256) == Result.EINVAL
            assert await make(7, flags=InitHostFlag.USE_CAW) == Result.CAW_CONFIG
        with st.lockspace.open("rb") as f:
            f.seek(DEFAULT.delta_offset_bytes(7))
            record = DeltaLease.decode(f.read(512))
        assert isinstance(record, DeltaLease)
        assert (record.space_name.text, record.host_name.text) == (SPACE, "absent")

    played(scene)


def test_host_is_marked_as_dead_by_a_clients_word(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        make_lockspace(st.lockspace, version=delta.VERSION_5)
        site = EngineSite(st)
        lockspace = s.Lockspace.of(SPACE, 1, str(st.lockspace))

        async def mark(host_id: int, generation: int = 0, *, mark: int = HostMark.DEAD_EXT) -> int:
            host = s.Host(host_id, generation)
            return (await site.engine.set_host(r.SetHost(mark, 0, lockspace, host))).result

        assert await mark(2, 1) == Result.VERSION_INCOMPAT, "by the version of the lockspace"
        member = site.host.presence.membership()
        assert isinstance(member, Membership)
        newer = replace(member.lockspace, version=delta.VERSION_5)
        site.host.presence.member = replace(member, lockspace=newer)
        record = replace(
            areas.fresh_delta_lease(DEFAULT, SPACE, 1, 4, version=delta.VERSION_5),
            owner_id=2,
            host_name=PaddedName.of("host-2"),
            timestamp=50,
        )
        with st.lockspace.open("r+b") as f:
            f.seek(DEFAULT.delta_offset_bytes(2))
            f.write(record.sector())
        with unchanged(st.lockspace):
            for generation in (3, 5):
                assert await mark(2, generation) == Result.WRONG_GENERATION
            assert await mark(1) == Result.EINVAL, "this host itself"
            assert await mark(0) == Result.EINVAL
            assert await mark(2001) == Result.EINVAL
            assert await mark(2, 4, mark=7) == Result.EINVAL
            assert await mark(3) == Result.ERROR, "it was never used"
        assert await mark(2, 4) == Result.OK
        at = DEFAULT.delta_offset_bytes(2)
        marked = DeltaLease.decode(st.lockspace.read_bytes()[at : at + 512])
        assert isinstance(marked, DeltaLease)
        assert (marked.is_marked_dead, marked.marked_by) == (True, (1, 1))
        site.leave()
        assert await mark(2, 4) == Result.ENOSPC

    played(scene)


# --- indexes ---


def index_of(path: Path, space: str = SPACE, entries: int = 0) -> s.Rindex:
    return s.Rindex(PaddedName.of(space), 0, entries, s.Disk(str(path)))


def test_index_of_others_is_not_changed_by_clients(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        path = blank(tmp_path / "index", 8 * MIB)
        index = index_of(path)
        assert (await site.engine.format_rindex(r.FormatRindex(index))).result == Result.OK
        created = await site.engine.create_resource(
            r.CreateResource(0, 0, index, s.RindexEntry(PaddedName.of("a")))
        )
        assert (created.result, created.entry.offset_bytes) == (Result.OK, 2 * MIB)
        site.spaces.in_the_way[SPACE] = CONFIGURED
        raw = path.read_bytes()
        removed = r.UpdateRindex(UpdateRindexFlag.REM, index, s.RindexEntry(offset_bytes=2 * MIB))
        assert (await site.engine.format_rindex(r.FormatRindex(index))).result == Result.EBUSY
        assert (await site.engine.update_rindex(removed)).result == Result.EBUSY
        assert (await site.engine.rebuild_rindex(r.RebuildRindex(index))).result == Result.EBUSY
        after = path.read_bytes()
        assert (after[:MIB], after[2 * MIB :]) == (raw[:MIB], raw[2 * MIB :])
        site.spaces.in_the_way.clear()
        assert (await site.engine.update_rindex(removed)).result == Result.OK

    played(scene)


def test_name_is_created_once_and_a_held_lease_is_deleted_only_from_clients(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        index = index_of(blank(tmp_path / "index", 8 * MIB))
        name = s.RindexEntry(PaddedName.of("a"))
        assert (await site.engine.format_rindex(r.FormatRindex(index))).result == Result.OK
        assert (await site.engine.create_resource(r.CreateResource(0, 0, index, name))).result == Result.OK
        assert (
            await site.engine.create_resource(r.CreateResource(0, 0, index, name))
        ).result == Result.EEXIST
        assert (
            await site.engine.delete_resource(r.DeleteResource(index, name._replace(offset_bytes=9)))
        ).result == (Result.RINDEX_DIFF)
        assert (await site.engine.delete_resource(r.DeleteResource(index, name))).result == Result.OK
        assert (await site.engine.delete_resource(r.DeleteResource(index, name))).result == Result.ENOENT
        again = await site.engine.create_resource(r.CreateResource(0, 0, index, name))
        assert (again.result, again.entry.offset_bytes) == (Result.OK, 2 * MIB), "its place is used again"

    played(scene)


def test_an_index_is_not_changed_while_a_start_of_a_vm_changes_it(tmp_path: Path) -> None:
    async def scene() -> None:
        site = EngineSite(Storage(tmp_path, "R1"))
        index = index_of(blank(tmp_path / "index", 8 * MIB))
        assert (await site.engine.format_rindex(r.FormatRindex(index))).result == Result.OK
        backend = site.backend_of(SPACE)
        assert backend is not None
        backend.index_turn.user = IndexChange()
        name = s.RindexEntry(PaddedName.of("a"))
        made = asyncio.ensure_future(site.engine.create_resource(r.CreateResource(0, 0, index, name)))
        await asyncio.wait((made,), timeout=TAKEN_AT_ONCE_S)
        await site.world.clock.advance(1)
        assert not made.done()
        assert (await site.engine.lookup_rindex(r.LookupRindex(index, name))).result == Result.EBUSY
        backend.index_turn.user = None
        await site.world.clock.advance(1)
        assert (await made).result == Result.OK
        assert backend.index_turn.user is None
        assert (await site.engine.delete_resource(r.DeleteResource(index, name))).result == Result.OK
        assert backend.index_turn.user is None
        missing = index._replace(disk=s.Disk(str(tmp_path / "none")))
        assert (await site.engine.delete_resource(r.DeleteResource(missing, name))).result != Result.OK
        assert backend.index_turn.user is None, "nobody waits for a turn that came to nothing"

    played(scene)


def test_one_command_on_an_index_at_a_time(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        index = index_of(blank(tmp_path / "index", 8 * MIB))
        assert (await site.engine.format_rindex(r.FormatRindex(index))).result == Result.OK
        creations = [
            site.engine.create_resource(r.CreateResource(0, 0, index, s.RindexEntry(PaddedName.of(name))))
            for name in "abc"
        ]
        removal = site.engine.rem_lockspace(r.RemLockspace(0, s.Lockspace.of(SPACE, 1, str(st.lockspace))))
        made, removed = await asyncio.gather(asyncio.gather(*creations), removal)
        assert [each.result for each in made] == [Result.OK, Result.EBUSY, Result.EBUSY]
        assert removed.result == Result.EBUSY

    played(scene)


def test_index_needs_the_lockspace(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        path = blank(tmp_path / "index", 8 * MIB)
        assert (await site.engine.format_rindex(r.FormatRindex(index_of(path, "other")))).result == Result.OK
        asked = await site.engine.lookup_rindex(r.LookupRindex(index_of(path, "other"), s.RindexEntry()))
        assert asked.result == Result.ENOENT
        for wrong in ("", "n" * 48):
            assert (
                await site.engine.format_rindex(r.FormatRindex(index_of(path, wrong)))
            ).result == Result.EINVAL
        assert (await site.engine.format_rindex(r.FormatRindex(index_of(path)))).result == Result.OK
        site.host.may_write = False
        entry = s.RindexEntry(PaddedName.of("a"), 2 * MIB)
        with unchanged(path):
            added = r.UpdateRindex(UpdateRindexFlag.ADD, index_of(path), entry)
            assert (await site.engine.update_rindex(added)).result == Result.ENOSPC
            made = await site.engine.create_resource(r.CreateResource(0, 0, index_of(path), entry))
            assert made.result == Result.ENOSPC

    played(scene)


class Gate:
    """Writes to these bytes wait until it is opened."""

    def __init__(self, offset_bytes: int) -> None:
        self._at = offset_bytes
        self.opened = threading.Event()

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags)

    def read_into(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        return os.preadv(fd, [buffer], offset_bytes)

    def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        if offset_bytes == self._at:
            self.opened.wait()
        return os.pwritev(fd, [buffer], offset_bytes)


def test_index_stays_ours_until_a_write_that_was_given_up_has_landed(tmp_path: Path) -> None:
    async def scene() -> None:
        st = Storage(tmp_path, "R1")
        site = EngineSite(st)
        path = blank(tmp_path / "index", 8 * MIB)
        index = index_of(path)

        async def create(name: str) -> int:
            made = r.CreateResource(0, 0, index, s.RindexEntry(PaddedName.of(name)))
            return (await site.engine.create_resource(made)).result

        def internal_lease() -> Leader:
            leader = Leader.decode(path.read_bytes()[MIB : MIB + 512])
            assert isinstance(leader, Leader)
            return leader

        assert (await site.engine.format_rindex(r.FormatRindex(index))).result == Result.OK
        gate = Gate(DEFAULT.sector_bytes)
        site.host.storage._kernel = gate
        assert await create("a") == Result.AIO_TIMEOUT
        assert not internal_lease().is_free
        assert await create("b") == Result.EBUSY
        lockspace = s.Lockspace.of(SPACE, 1, str(st.lockspace))
        assert (await site.engine.rem_lockspace(r.RemLockspace(0, lockspace))).result == Result.EBUSY
        gate.opened.set()
        await comes(lambda: internal_lease().is_free)
        await comes(lambda: not site.engine._rindexes.is_in_use(SPACE))
        assert await create("a") == Result.EEXIST, "the entry has landed"
        assert await create("b") == Result.OK

    played(scene)


def test_every_command_is_the_engines_own() -> None:
    """One that is inherited from the port would answer with None."""
    wanted = {name for name in vars(SanlockService) if not name.startswith("_")}
    assert wanted <= set(vars(SanlockEngine))


@pytest.mark.parametrize("offset_bytes", [1 << 63, (1 << 64) - MIB, (1 << 63) - MIB])
def test_offset_beyond_those_of_the_kernel_is_refused(tmp_path: Path, offset_bytes: int) -> None:
    async def scene() -> None:
        site = EngineSite(Storage(tmp_path, "R1"))
        path = blank(tmp_path / "W", MIB)
        place = s.Resource.of("X", "Y", s.Disk(str(path), offset_bytes))
        for request in (r.ReadResource(place), r.ReadResourceOwners(place), r.WriteResource(0, 0, 0, place)):
            assert (await site.ask(request)).result in (Result.EINVAL, Result.EMSGSIZE, -errno.EFBIG)
        assert path.stat().st_size == MIB

    played(scene)


def test_whatever_a_client_sends_is_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a code, never with an exception; and what is held stays."""
    # Names of any bytes: pytest-xdist could not pass a log with them from one process to another, and would end its session.
    caplog.set_level(logging.CRITICAL, "holdfast")
    st = Storage(tmp_path, "R1")
    path = blank(tmp_path / "some", 4 * MIB)
    index = blank(tmp_path / "index", 8 * MIB)
    site = EngineSite(st)
    site.spaces.in_the_way[SPACE] = CONFIGURED
    places = strategies.sampled_from([str(path), str(index), str(st.lockspace), str(tmp_path), "/none", ""])
    offsets = strategies.one_of(
        strategies.sampled_from([0, MIB, 2 * MIB, 512, 777, 1 << 31, 1 << 63, (1 << 64) - MIB]), values.U64
    )
    names = strategies.one_of(
        strategies.sampled_from([PaddedName.of(SPACE), PaddedName.of("R1")]), values.NAMES
    )
    flags = strategies.one_of(strategies.sampled_from([0, 1, *map(int, SIZES.values())]), values.U32)
    disks = strategies.builds(s.Disk, places, offsets)
    lockspaces = strategies.builds(s.Lockspace, names, values.U64, flags, disks)
    indexes = strategies.builds(s.Rindex, names, flags, values.U32, disks)
    entries = strategies.builds(s.RindexEntry, names, offsets, flags)
    resources = strategies.builds(
        lambda space, name, lver, bits, disk: s.Resource(space, name, lver, 0, 0, bits, 1, (disk,)),
        names,
        names,
        values.U64,
        flags,
        disks,
    )
    fields = {
        s.Lockspace: lockspaces,
        s.Rindex: indexes,
        s.RindexEntry: entries,
        s.Resource: resources,
        s.Disk: disks,
        s.Host: values.HOSTS,
        s.HostRecord: values.RECORDS,
    }
    of_type = {
        name: fields.get(kind, flags) for request in METHODS for name, kind in get_type_hints(request).items()
    }
    requests = strategies.one_of(
        *(
            strategies.builds(request, **{name: of_type[name] for name in get_type_hints(request)})
            for request in METHODS
        )
    )
    lockspace = st.lockspace.read_bytes()

    @given(requests)
    @settings(max_examples=200, deadline=None, phases=[Phase.generate])
    def answered(request: r.AnyRequest) -> None:
        async def go() -> None:
            reply = await asyncio.wait_for(site.ask(request), 30)
            command = request_table.command_of(request)
            assert replies.decode(command, reply.encode(request_header(command))).result == int(reply.result)

        asyncio.run(go())
        with st.lockspace.open("r+b") as f:  # behind the lockspace clients may make what they like
            if isinstance(request, r.InitLockspaceHost):
                f.write(lockspace)  # it may make the record of any other host
                f.seek(0)
            assert f.read(MIB) == lockspace

    answered()

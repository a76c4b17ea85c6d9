"""Leases that nobody holds are taken out, proven by taking them; those that somebody holds, or named otherwise, stay."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.contract.test_lease_faults import FaultyKernel, FaultyScene
from tests.contract.test_paxos_backend import Scene, play, tried
from tests.support.leases import SPACE, HostLockspaces, entry_count, twin

from holdfast.backends.base import Creation, Held, SavedLock, Stale
from holdfast.backends.naming import NameBy
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.backends.paxos.directory_store import DirectoryStore
from holdfast.backends.paxos.held import PaxosHeld
from holdfast.backends.paxos.held_lease import HeldLease
from holdfast.backends.paxos.lease_store import Found, StorageFailed, Unusable
from holdfast.backends.paxos.names import made_by_us
from holdfast.errors import LeaseUnusable
from holdfast.lease_admin.garbage_collection import LeaseCollector
from holdfast.manager.key_locks import KeyLocks
from holdfast.manager.lock_table import Lock, LockTable
from holdfast.model import Mode, Resource
from holdfast.ondisk import areas
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.leader import Leader
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.resource_index import Index, read_index
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system import eager_tasks
from holdfast.system.block_io.disk_file import DiskFacts, RealKernel
from holdfast.system.block_io.inflight_writes import InflightByDevice
from holdfast.system.block_io.lease_files import SystemLeaseStorage
from holdfast.system.block_io.worker_pool import Request, WorkerPool
from holdfast.system.files.ofd_lock import IoFailed as FileLockFailed
from holdfast.testing.conformance import NOTE, assert_held, take
from holdfast.testing.fakes import SimulatedClock


@pytest.mark.parametrize("device", [False, True])
def test_free_lease_is_taken_out_and_made_again_when_it_is_wanted(tmp_path: Path, device: bool) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=device)
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        (name,) = await s.one.maintenance.lease_names()
        assert await s.one.maintenance.take_out(name, dry_run=True) == ""
        assert await s.one.maintenance.lease_names() == [name]
        assert await s.one.maintenance.take_out(name, dry_run=False) == ""
        assert await s.one.maintenance.lease_names() == []
        if device:
            assert entry_count(s.lockspace) == 0
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        assert await s.two.maintenance.lease_names() == [name]
        await held.release()

    play(scene)


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("dry_run", [False, True])
def test_lease_that_another_host_holds_stays(tmp_path: Path, device: bool, mode: Mode, dry_run: bool) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=device)
        held = assert_held(await take(s.two, s.world(), mode))
        (name,) = await s.one.maintenance.lease_names()
        why = await s.one.maintenance.take_out(name, dry_run=dry_run)
        assert "host_id 2" in why
        assert await s.one.maintenance.lease_names() == [name]
        await held.release()
        assert await s.one.maintenance.take_out(name, dry_run=False) == ""

    play(scene)


@pytest.mark.parametrize("mode", list(Mode))
def test_lease_that_a_killed_daemon_of_this_term_took_stays_until_it_is_known_for_whom(
    tmp_path: Path, mode: Mode
) -> None:
    """To storage a host's own lease is free to it, and a VM may depend on this one (found by seed 111)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), mode)).forget()
        next_daemon = twin(s.alpha).backend(s.directory)
        (name,) = await next_daemon.maintenance.lease_names()
        assert "earlier daemon" in await next_daemon.maintenance.take_out(name, dry_run=False)
        with pytest.raises(LeaseUnusable, match="earlier daemon"):
            await next_daemon.maintenance.break_lease(Resource("", str(s.disk)), "")
        left = await next_daemon.maintenance.take_up(name)
        assert left is not None and left.mode is mode
        await left.held.release()
        assert await next_daemon.maintenance.take_out(name, dry_run=False) == ""
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))

    play(scene)


def test_note_keeps_owner_and_disk_over_a_restart_and_a_conversion(tmp_path: Path) -> None:
    """An unknown owner of no known disk can't be settled by proof (found by seed 3134)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.SHARED)).forget()
        second = twin(s.alpha).backend(s.directory)
        saved = SavedLock(resource=s.resource, mode=Mode.SHARED, create=False, path="", keys=())
        held = await second.adopt(saved, None)
        assert isinstance(held, PaxosHeld)
        assert await held.convert(Mode.EXCLUSIVE, NOTE) is None
        held.forget()
        third = twin(s.alpha).backend(s.directory)
        (name,) = await third.maintenance.lease_names()
        left = await third.maintenance.take_up(name)
        assert left is not None
        assert (left.noted.disk, left.noted.owner.name, left.mode) == (
            str(s.disk),
            NOTE.owner.name,
            Mode.EXCLUSIVE,
        )
        await left.held.release()

    play(scene)


def test_lease_whose_disk_is_not_known_is_taken_up_again_by_its_own_name(tmp_path: Path) -> None:
    """It counted as lost: its name was taken for a disk that has another lease (found by seed 3134)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).forget()
        second = twin(s.alpha).backend(s.directory)
        (name,) = await second.maintenance.lease_names()
        saved = SavedLock(
            resource=Resource("", name),
            mode=Mode.EXCLUSIVE,
            create=False,
            path="",
            keys=(second.names.key(name),),
        )
        held = await second.adopt(saved, None)
        assert isinstance(held, PaxosHeld)
        await held.release()
        assert s.leader().is_free

    play(scene)


def test_lease_that_a_daemon_was_killed_amid_taking_out_is_freed_and_held_for_nobody(tmp_path: Path) -> None:
    """Nobody's process and no disk are named there, so an unknown owner would hold it for good (found by seed 2)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        (name,) = await s.one.maintenance.lease_names()
        member = s.alpha.presence.membership()
        assert isinstance(member, Membership)
        found = await s.one.look_up(member, Resource("", name), name)
        assert isinstance(found, Found)
        with s.one.trying(found, member) as holding:
            assert isinstance(await holding.acquire_unless_held(Mode.EXCLUSIVE), Lease)
            holding.forget()
        next_daemon = twin(s.alpha).backend(s.directory)
        assert await next_daemon.maintenance.take_up(name) is None
        assert s.leader().is_free

    play(scene)


@pytest.mark.parametrize("device", [False, True])
def test_start_that_has_the_lease_open_while_it_is_taken_out_looks_again(
    tmp_path: Path, device: bool
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=device)
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        await held.release()
        kernel = FaultyKernel()
        slow = HostLockspaces(s.lockspace, 2, "beta", kernel=kernel).backend(None if device else s.directory)
        gate = kernel.holding[(3 * MIB if device else 0) + 3 * 512] = threading.Event()
        late = asyncio.create_task(take(slow, s.world(), Mode.EXCLUSIVE))
        while kernel.holding:
            await asyncio.sleep(0.01)
        (name,) = await s.one.maintenance.lease_names()
        assert await s.one.maintenance.take_out(name, dry_run=False) == ""
        gate.set()
        assert isinstance(await late, Stale)
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        assert "host_id 2" in await s.one.maintenance.take_out(name, dry_run=False)
        await held.release()

    play(scene)


def test_place_of_a_lease_that_was_taken_out_is_used_again(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        for n in range(12):
            held = assert_held(await tried(s.two, Resource("", f"/dev/vg/disk{n}")))
            await held.release()
            for name in await s.one.maintenance.lease_names():
                assert await s.one.maintenance.take_out(name, dry_run=False) == ""
        assert entry_count(s.lockspace) == 0

    play(scene)


def test_leases_of_others_are_left_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        (s.directory / "web").write_bytes(areas.lease_area(areas.fresh_leader(DEFAULT, "LS", "web")))
        (s.directory / ".holdfast-0123").touch()
        assert await s.one.maintenance.lease_names() == []

    play(scene)
    assert made_by_us("06UgP5-2rhb-w3Bo-3mdR-WeoL-pytO-SAa2ky", NameBy.LVM_UUID)
    assert not made_by_us("d41d8cd98f00b204e9800998ecf8427e", NameBy.LVM_UUID)
    assert not made_by_us("naa.5000c500a0b0c0d0", NameBy.SCSI_WWID)


def test_removal_that_fails_leaves_the_lease_free(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        await s.made()

        async def refused(path: str) -> object:
            from holdfast.protocol.types import IoFailed

            return IoFailed(30)

        s.alpha.storage.remove = refused  # type: ignore[method-assign, assignment]
        (name,) = await s.one.maintenance.lease_names()
        assert await s.one.maintenance.take_out(name, dry_run=False) == "Read-only file system"
        assert s.leader().is_free
        await asyncio.sleep(0)
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))

    play(scene)


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("mode", list(Mode))
def test_lease_that_a_killed_daemon_of_this_term_left_behind_is_freed(
    tmp_path: Path, device: bool, mode: Mode
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=device)
        assert_held(await take(s.one, s.world(), mode)).forget()
        next_daemon = twin(s.alpha).backend(None if device else s.directory)
        (name,) = await next_daemon.maintenance.lease_names()
        await next_daemon.maintenance.free_own()
        assert await next_daemon.maintenance.free_left_behind(name)
        assert not await next_daemon.maintenance.free_left_behind(name)
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        assert not await next_daemon.maintenance.free_left_behind(name)
        await held.release()

    play(scene)


class _FailsOnce(RealKernel):
    """The request with that number fails, and so do some after it; whatever it is."""

    def __init__(self) -> None:
        self.number, self.count = 0, 0

    def _asked(self) -> None:
        self.number -= 1
        if -self.count <= self.number < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open(self, path: str, flags: int) -> int:
        self._asked()
        return super().open(path, flags)

    def read_into(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        self._asked()
        return super().read_into(fd, buffer, offset_bytes)

    def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        self._asked()
        return super().write_from(fd, buffer, offset_bytes)


async def _index_lease_is_left_too(host: HostLockspaces, backend: PaxosBackend) -> None:
    member = host.presence.membership()
    assert isinstance(member, Membership)
    at = member.lockspace.geometry.align_bytes
    index = await read_index(member.lockspace.disk, at, SPACE, 1)
    assert isinstance(index, Index)
    holding = HeldLease(index.internal_lease(), member, backend.ports)
    assert isinstance(await holding.acquire(Mode.EXCLUSIVE), Lease)
    holding.forget()


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("mode", list(Mode))
def test_what_a_killed_daemon_left_behind_is_freed_although_storage_fails_meanwhile(
    tmp_path: Path, device: bool, mode: Mode
) -> None:
    async def scene(failing: int, count: int) -> int:
        """How many requests there were before any failed."""
        s = Scene(tmp_path / f"leases{failing}.{count}", device=device)
        assert_held(await take(s.one, s.world(), mode)).forget()
        if device:
            await _index_lease_is_left_too(s.alpha, s.one)
        kernel, clock = _FailsOnce(), SimulatedClock()
        backend = twin(s.alpha, kernel=kernel, clock=clock).backend(None if device else s.directory)
        kernel.number, kernel.count = failing, count
        manager = freeing_manager(backend, LockTable())
        LeaseCollector(manager, clock=clock).account_for_left_behind({backend.name})  # type: ignore[arg-type]
        for _ in range(300):
            await asyncio.sleep(0.001)
            await clock.advance(1)
            if not eager_tasks.under_way():
                break
        left = kernel.number
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        if device:
            other = s.directory / "other.img"
            other.touch()
            candidate = await s.two.open(Resource("", str(other)), create=Creation.NONE)
            assert not isinstance(candidate, FileLockFailed)
            assert_held(await candidate.take(Mode.EXCLUSIVE, NOTE))
        return failing - left

    count = asyncio.run(scene(1000, 0))
    assert count > 5
    for failing in range(count):
        for in_a_row in (1, 3):
            asyncio.run(scene(failing, in_a_row))


def freeing_manager(backend: PaxosBackend, table: LockTable[Held]) -> SimpleNamespace:
    """A manager on which every unknown owner turns out to be over at once: what it holds is released."""

    def hold(*, held: Held, **_: object) -> None:
        eager_tasks.start(held.release())

    return SimpleNamespace(
        backends={backend.name: backend},
        key_locks=KeyLocks(),
        table=table,
        closing=False,
        doubt="",
        unknown=SimpleNamespace(hold=hold, drop_place=lambda _: None),
        acquirer=SimpleNamespace(),
    )


def test_lease_that_could_not_be_taken_up_is_freed_when_its_owner_has_ended(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).forget()
        clock = SimulatedClock()
        backend = twin(s.alpha, clock=clock).backend(s.directory)
        (name,) = await backend.maintenance.lease_names()
        table: LockTable[Held] = LockTable()
        key = backend.names.key(name)
        lost: Lock[Held] = Lock(
            lock_id=1,
            backend=backend.name,
            held=None,
            path="",
            create=False,
            mode=Mode.EXCLUSIVE,
            keys=(key,),
            since_wall_s=0.0,
        )
        table.insert(lost)
        manager = freeing_manager(backend, table)
        LeaseCollector(manager, clock=clock).account_for_left_behind({backend.name})  # type: ignore[arg-type]
        for _ in range(20):
            await asyncio.sleep(0.001)
            await clock.advance(1)
        assert not s.leader().is_free  # its owner may still be there
        table.remove(lost)
        while eager_tasks.under_way():
            await asyncio.sleep(0.001)
            await clock.advance(1)
        assert s.leader().is_free

    play(scene)


@pytest.mark.parametrize("how", ["taken", "freed"])
def test_shared_hold_that_was_left_behind_beside_another_host_does_not_stay(tmp_path: Path, how: str) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.SHARED)).forget()
        other = assert_held(await take(s.two, s.world(), Mode.SHARED))
        next_daemon = twin(s.alpha).backend(s.directory)
        (name,) = await next_daemon.maintenance.lease_names()
        if how == "freed":
            assert await next_daemon.maintenance.free_left_behind(name)
        else:
            left = await next_daemon.maintenance.take_up(name)
            assert left is not None and left.mode is Mode.SHARED
            await left.held.release()
        await assert_held(await take(next_daemon, s.world(), Mode.SHARED)).release()
        await other.release()
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()

    play(scene)


def test_lease_stays_as_it_is_when_its_directory_is_unmounted_amid_the_removal(tmp_path: Path) -> None:
    """Its name is then another file's, below the mount point (found by seed 901249)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        name, member = s.lease_file.name, s.alpha.presence.membership()
        assert not isinstance(member, NotAMember)
        places = DirectoryStore(str(s.directory), str(s.lockspace), s.alpha.storage, 8)
        found = await s.alpha.storage.run(lambda job: places.find(job, member, name), member.io_timeout_s)
        assert isinstance(found, Found)
        shared = tmp_path / "shared"
        s.directory.rename(shared)
        before = (shared / name).read_bytes()
        leader = Leader.decode(before[:512])
        assert isinstance(leader, Leader)
        s.directory.mkdir()
        assert isinstance(await places.remove(member, found, name, leader), StorageFailed)
        (s.directory / name).write_bytes(b"another one")
        stays = await places.remove(member, found, name, leader)
        assert isinstance(stays, Unusable)
        assert "is the directory mounted?" in stays.reason
        assert (s.directory / name).read_bytes() == b"another one"
        assert (shared / name).read_bytes() == before
        found.disk.close()

    play(scene)


def test_removal_of_a_name_is_waited_for_and_counts_as_a_write_that_may_land(tmp_path: Path) -> None:
    async def scene() -> None:
        pool, devices, hung = WorkerPool("pool", workers=1), InflightByDevice(), threading.Event()
        storage = SystemLeaseStorage(pool, devices=devices)
        pool.submit(Request(lambda _: hung.wait(), on_done=lambda: None))
        (tmp_path / "lease").touch()
        found = (tmp_path / "lease").stat()
        facts = DiskFacts(str(tmp_path / "lease"), True, False, 0, 0, found.st_dev, found.st_ino)
        removal = asyncio.get_running_loop().create_task(storage.remove(facts))
        await asyncio.sleep(0)
        under_way = devices.in_flight("pool")
        assert under_way()
        assert not removal.done()
        hung.set()
        assert await removal is None
        assert not under_way()
        assert not (tmp_path / "lease").exists()
        pool.close()

    asyncio.run(scene())


@pytest.mark.parametrize("lists_all", [True, False])
def test_placeholder_stays_where_nobody_can_list_the_leases(lists_all: bool) -> None:
    """The journal is damaged, and leases of sanlock's clients are where only these clients know."""

    async def scene() -> None:
        dropped: list[str] = []

        async def nothing() -> list[str]:
            return []

        incarnation = SimpleNamespace(io_timeout_s=1)
        backend = SimpleNamespace(
            name="sanlock:LS",
            presence=SimpleNamespace(membership=lambda: incarnation),
            maintenance=SimpleNamespace(free_own=nothing, all_names=nothing, lists_all=lists_all),
        )
        manager = SimpleNamespace(
            unknown=SimpleNamespace(drop_place=dropped.append), acquirer=SimpleNamespace(), closing=False
        )
        collector = LeaseCollector(manager, clock=SimulatedClock())  # type: ignore[arg-type]
        await collector._account_for_all(backend)
        assert dropped == (["sanlock:LS"] if lists_all else [])

    asyncio.run(scene())

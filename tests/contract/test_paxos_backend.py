"""The `paxos` backend passes the conformance suite, on lease files and on one device; what only it promises is below."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.leases import SPACE, HostLockspaces, entry_count, lease_file, make_lockspace, twin

from holdfast.backends.base import (
    Creation,
    HeldElsewhere,
    LeftBehind,
    MayBeShared,
    MayHaveSharers,
    RefusesNew,
    Rereadable,
    SavedLock,
    Stale,
    TakeOutcome,
)
from holdfast.backends.naming import NameBy
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.backends.paxos.names import key_of_lease
from holdfast.daemon.build import _share_leases
from holdfast.errors import LeaseUnusable, LockspaceAbsent, NoLeaseName, StorageFailed
from holdfast.model import Mode, Protection, Resource
from holdfast.ondisk import areas, delta
from holdfast.ondisk.geometry import GEOMETRIES, MIB, Geometry
from holdfast.ondisk.host_block import NOTE_OFFSET_BYTES, HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol import types
from holdfast.protocol.host_status import HostState, SeenTerm
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.types import Generation, HostId
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system.block_io.disk_file import RealKernel
from holdfast.system.files.ofd_lock import FileKey, IoFailed
from holdfast.testing.conformance import (
    NOTE,
    BackendConformance,
    BackendWorld,
    assert_held,
    take,
    taken_and_saved,
)


class Scene:
    """Two hosts, one disk, leases in a directory or on the lockspace's own device."""

    def __init__(
        self,
        directory: Path,
        *,
        device: bool = False,
        geometry: Geometry = GEOMETRIES[0],
        version: int = delta.VERSION,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.lockspace = directory / SPACE
        make_lockspace(self.lockspace, geometry, index_entries=4 if device else 0, version=version)
        self.disk = directory / "disk.img"
        self.disk.touch()
        self.resource = Resource("", str(self.disk))
        where = None if device else directory
        self.alpha = HostLockspaces(self.lockspace, 1, "alpha", geometry=geometry, version=version)
        self.beta = HostLockspaces(self.lockspace, 2, "beta", geometry=geometry, version=version)
        self.one, self.two = self.alpha.backend(where), self.beta.backend(where)

    @property
    def lease_file(self) -> Path:
        return lease_file(self.directory, self.disk)

    def world(self) -> BackendWorld:
        alias = self.directory / "alias.img"
        if not alias.exists():
            os.link(self.disk, alias)
        return BackendWorld(
            backend=self.one, rival=self.two, resource=self.resource, alias=Resource("", str(alias))
        )

    def leader(self) -> Leader:
        leader = Leader.decode(self.lease_file.read_bytes()[:512])
        assert isinstance(leader, Leader)
        return leader


class _InDirectory(BackendConformance):
    device = False
    geometry = GEOMETRIES[0]
    version = delta.VERSION

    @pytest.fixture(autouse=True)
    def _in(self, tmp_path: Path) -> None:
        self.scene = Scene(
            tmp_path / "leases", device=self.device, geometry=self.geometry, version=self.version
        )

    def make_world(self) -> BackendWorld:
        return self.scene.world()


class TestPaxosInDirectory(_InDirectory):
    pass


class TestPaxosOnDevice(_InDirectory):
    device = True


class TestPaxosOnDeviceWithLargeSectors(_InDirectory):
    device = True
    geometry = GEOMETRIES[1]


class TestPaxosInALockspaceOfSanlock5(_InDirectory):
    version = delta.VERSION_5


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def go() -> None:
        await scene()

    asyncio.run(go())


async def tried(backend: PaxosBackend, resource: Resource) -> TakeOutcome:
    """Open and take."""
    candidate = await backend.open(resource, create=Creation.NONE)
    assert not isinstance(candidate, IoFailed)
    return await candidate.take(Mode.EXCLUSIVE, NOTE)


async def taken(backend: PaxosBackend, s: Scene, mode: Mode = Mode.EXCLUSIVE) -> object:
    return await take(backend, s.world(), mode)


def test_lease_is_named_and_placed_as_libvirts_sanlock_plugin_does(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        assert held.path == str(s.lease_file)
        leader = s.leader()
        assert (leader.space_name.text, leader.resource_name.text) == (SPACE, s.lease_file.name)
        assert (leader.owner_id, leader.owner_generation, leader.num_hosts) == (1, 1, 8)
        assert not [p for p in s.directory.iterdir() if p.name.startswith(".")]
        await held.release()
        assert s.leader().is_free

    play(scene)


def test_refusal_names_vm_host_and_host_id_and_how_long_ago_it_lived(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        refused = await take(s.two, s.world(), Mode.EXCLUSIVE)
        assert isinstance(refused, HeldElsewhere)
        text = str(refused.holders[0])
        assert text.startswith(
            "VM web1 (uuid 11111111-2222-3333-4444-555555555555, pid 4711) on host alpha (host_id 1) since"
        )
        assert text.endswith(", alive 0 s ago")

    play(scene)


def test_sharers_are_named_too(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.SHARED))
        refused = await take(s.two, s.world(), Mode.EXCLUSIVE)
        assert isinstance(refused, HeldElsewhere)
        assert "VM web1" in str(refused.holders[0])
        assert ", shared" in str(refused.holders[0])

    play(scene)


def test_owner_that_may_be_dead_is_told_with_the_seconds_left(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        s.beta.state_of[1] = HostState.FAIL
        refused = await take(s.two, s.world(), Mode.EXCLUSIVE)
        assert isinstance(refused, HeldElsewhere)
        assert "not known to be alive; if it is dead, its leases can be taken over in 68 s" in str(
            refused.holders[0]
        )

    play(scene)


def test_note_stands_behind_our_own_block_and_nowhere_else(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        raw = s.lease_file.read_bytes()
        blocks = {n: raw[512 * n : 512 * n + 512] for n in range(1, len(raw) // 512)}
        noted = [n for n, block in blocks.items() if any(block[NOTE_OFFSET_BYTES:])]
        assert noted == [3]  # the block of host 2
        assert isinstance(HostBlock.decode(blocks[3]), HostBlock)

    play(scene)


def test_host_that_is_not_in_the_lockspace_refuses_with_reason_and_seconds(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        s.alpha.presence.member = NotAMember("claim on host id 1 settles", 12.4)
        with pytest.raises(LockspaceAbsent, match=r"not in lockspace .* now: claim .* settles, 12 s left"):
            await s.one.open(s.resource, create=Creation.NONE)
        level, note = s.one.protection("")
        assert (level, "12 s left" in note) == (Protection.NONE, True)

    play(scene)


def test_protection_follows_watchdog_and_reach(tmp_path: Path) -> None:
    s = Scene(tmp_path / "leases")
    assert s.one.protection("") == (Protection.FENCED, "")
    s.alpha.presence.fences = False
    assert s.one.protection("")[0] is Protection.CROSS_HOST


# --- lease files that are not as they should be ---


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "shorter than a lease"),
        (bytes(512), "shorter than a lease"),
        (bytes(MIB), "it is empty"),
        (b"x" * MIB, "magic number"),
    ],
)
def test_lease_file_that_holds_no_lease_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        s.lease_file.write_bytes(content)
        with pytest.raises(LeaseUnusable, match=expected):
            await tried(s.one, s.resource)
        assert s.lease_file.read_bytes() == content

    play(scene)


def test_lease_of_another_disk_is_not_taken(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        other = areas.fresh_leader(GEOMETRIES[0], SPACE, "another")
        s.lease_file.write_bytes(areas.lease_area(other))
        with pytest.raises(LeaseUnusable, match="another resource's name"):
            await tried(s.one, s.resource)

    play(scene)


def test_lease_with_other_sizes_than_its_lockspace_is_used_with_its_own(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        large = GEOMETRIES[1]
        s.lease_file.write_bytes(areas.lease_area(areas.fresh_leader(large, SPACE, s.lease_file.name)))
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        raw = s.lease_file.read_bytes()
        assert isinstance(await take(s.one, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        assert any(raw[3 * 4096 : 3 * 4096 + 56])  # the block of host 2, in a sector of 4096
        assert not any(raw[2 * 512 : 4096])
        await held.release()

    play(scene)


def test_lease_that_is_removed_while_it_is_taken_is_opened_again(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        remover = _Remover(s.lease_file)
        slow = HostLockspaces(s.lockspace, 1, "alpha", kernel=remover).backend(s.directory)
        assert isinstance(await take(slow, s.world(), Mode.EXCLUSIVE), Stale)
        assert not remover.left
        assert_held(await take(slow, s.world(), Mode.EXCLUSIVE))

    play(scene)


def test_lease_that_is_cleared_while_it_is_taken_is_opened_again(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        cleared = areas.fresh_leader(GEOMETRIES[0], SPACE, s.lease_file.name).encode_cleared()
        slow = HostLockspaces(s.lockspace, 1, "alpha", kernel=_Remover(s.lease_file, cleared)).backend(
            s.directory
        )
        assert isinstance(await take(slow, s.world(), Mode.EXCLUSIVE), Stale)
        assert_held(await take(slow, s.world(), Mode.EXCLUSIVE))

    play(scene)


class _Remover(RealKernel):
    """Takes a lease out right before our first ballot is written, as another host's collector would."""

    def __init__(self, path: Path, cleared: bytes = b"") -> None:
        self._path, self._cleared = path, cleared
        self.left = 1

    def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        if self.left:
            self.left = 0
            if self._cleared:
                with self._path.open("r+b") as f:
                    f.write(self._cleared)
            self._path.unlink()
        return super().write_from(fd, buffer, offset_bytes)


def test_lease_is_not_made_where_the_lockspace_is_not(tmp_path: Path) -> None:
    """The directory was unmounted below the daemon: what is there now is no other host's."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        hidden = tmp_path / "hidden"
        s.directory.rename(hidden)
        s.directory.mkdir()
        failed = await tried(s.one, s.resource)
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.ENOENT
        make_lockspace(s.lockspace)
        with pytest.raises(LeaseUnusable, match="is it mounted"):
            await tried(s.one, s.resource)
        assert not s.lease_file.exists()

    play(scene)


def test_directory_that_is_not_mounted_is_not_one_without_leases(tmp_path: Path) -> None:
    """An empty mount point would account for every lease that a lost journal may have held (seed 103001399)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).forget()
        names = await s.one.maintenance.all_names()
        assert s.lease_file.name in names
        hidden = tmp_path / "hidden"
        s.directory.rename(hidden)
        s.directory.mkdir()
        with pytest.raises(StorageFailed, match="No such file"):
            await s.one.maintenance.all_names()
        make_lockspace(s.lockspace)
        with pytest.raises(StorageFailed, match="Stale file handle"):
            await s.one.maintenance.all_names()
        shutil.rmtree(s.directory)
        hidden.rename(s.directory)
        assert await s.one.maintenance.all_names() == names

    play(scene)


# --- names ---


def test_disk_without_the_kind_of_name_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        backend = s.alpha.backend(s.directory, name_by=NameBy.LVM_UUID)
        with pytest.raises(NoLeaseName, match="has no LVM UUID"):
            await backend.open(s.resource, create=Creation.NONE)

    play(scene)


# --- a restart of the daemon ---


def test_lease_is_taken_up_without_a_write_when_the_term_is_the_same(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        saved, held = await taken_and_saved(s.world())
        held.forget()
        before = s.lease_file.read_bytes()
        next_daemon = twin(s.alpha).backend(s.directory)
        again = assert_held(await next_daemon.adopt(saved, None))
        assert s.lease_file.read_bytes() == before
        await again.release()
        assert s.leader().is_free

    play(scene)


@pytest.mark.parametrize("reached", list(Mode))
def test_conversion_that_a_kill_cut_short_is_taken_up_without_letting_go(
    tmp_path: Path, reached: Mode
) -> None:
    """The journal says shared; storage is as far as it came."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        saved, held = await taken_and_saved(s.world())
        if reached is Mode.SHARED:
            assert await held.convert(Mode.SHARED, NOTE) is None
        held.forget()
        version = s.leader().lver
        next_daemon = twin(s.alpha).backend(s.directory)
        again = assert_held(await next_daemon.adopt(dataclasses.replace(saved, mode=Mode.SHARED), None))
        assert s.leader().lver == version  # nobody raced for it
        if reached is Mode.EXCLUSIVE:
            # The line about a conversion may be what the journal has lost, and a VM write (found by seed 1192).
            assert isinstance(await take(s.two, s.world(), Mode.SHARED), HeldElsewhere)
            await again.release()
        await assert_held(await take(s.two, s.world(), Mode.SHARED)).release()
        if reached is Mode.SHARED:
            await again.release()

    play(scene)


def test_share_is_kept_although_a_cut_journal_says_exclusive(tmp_path: Path) -> None:
    """To race for it would take the share out of our block, and another host could win (found by seed 52002275)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        saved, held = await taken_and_saved(s.world())
        assert await held.convert(Mode.SHARED, NOTE) is None
        held.forget()
        before = s.lease_file.read_bytes()
        again = assert_held(await twin(s.alpha).backend(s.directory).adopt(saved, None))
        assert saved.mode is Mode.EXCLUSIVE
        assert s.lease_file.read_bytes() == before
        assert isinstance(again, MayBeShared)
        assert again.is_shared
        assert isinstance(await take(s.two, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        await again.release()

    play(scene)


def test_lease_beside_which_others_share_is_asked_for_when_it_is_taken_up(tmp_path: Path) -> None:
    """It may have been won by a daemon that was killed before it asked them (a residue of seed 4145)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        sharing = assert_held(await take(s.two, s.world(), Mode.SHARED))
        at = GEOMETRIES[0].host_block_offset_bytes(2)
        shared = s.lease_file.read_bytes()[at : at + 512]
        await sharing.release()
        saved, held = await taken_and_saved(s.world())
        held.forget()
        with s.lease_file.open("r+b") as f:
            f.seek(at)
            f.write(shared)
        before = s.lease_file.read_bytes()
        again = assert_held(await twin(s.alpha).backend(s.directory).adopt(saved, None))
        for timestamp, unasked in ((102, True), (0, False)):
            s.beta.write_record(timestamp=timestamp)  # host 2 lives, then leaves
            assert isinstance(again, MayHaveSharers)
            await again.ask_sharers()
            assert again.sharers_unasked is unasked
            assert s.lease_file.read_bytes() == before, "a VM may have it, so nothing is let go"
        await again.release()

    play(scene)


@pytest.mark.parametrize("mode", [Mode.EXCLUSIVE, Mode.SHARED])
def test_lease_area_that_is_restored_under_its_holder_is_seen(tmp_path: Path, mode: Mode) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        older = s.lease_file.read_bytes()
        held = assert_held(await take(s.one, s.world(), mode))
        assert isinstance(held, Rereadable)
        assert await held.why_not_held() == ""
        s.lease_file.write_bytes(older)
        assert await held.why_not_held()
        held.forget()
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))

    play(scene)


def test_late_leader_of_another_host_takes_no_lease_away(tmp_path: Path) -> None:
    """It was given up, and landed on top of ours: the next ballot brings ours forward (ADR 0120)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        theirs = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        late = s.lease_file.read_bytes()[:512]
        await theirs.release()
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        with s.lease_file.open("r+b") as f:
            f.write(late)
        assert isinstance(held, Rereadable)
        assert await held.why_not_held() == ""
        leader = s.leader()
        with s.lease_file.open("r+b") as f:
            f.write(replace(leader, lver=99).encode())
        assert "its leader names host_id 2" in await held.why_not_held()

    play(scene)


def test_lease_of_an_older_term_is_acquired_anew(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        saved, held = await taken_and_saved(s.world())
        held.forget()
        next_daemon = twin(s.alpha, generation=2).backend(s.directory)
        assert_held(await next_daemon.adopt(saved, None))
        assert (s.leader().owner_generation, s.leader().lver) == (2, 2)

    play(scene)


class _Counting(RealKernel):
    def __init__(self) -> None:
        self.writes = 0

    def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        self.writes += 1
        return super().write_from(fd, buffer, offset_bytes)


def test_lease_that_this_term_gave_up_is_taken_again_with_a_write_less(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        kernel = _Counting()
        host = HostLockspaces(s.lockspace, 1, "alpha", kernel=kernel)
        backend = host.backend(s.directory)

        async def writes_of_a_take(mode: Mode = Mode.EXCLUSIVE) -> int:
            before = kernel.writes
            held = assert_held(await take(backend, s.world(), mode))
            wrote = kernel.writes - before
            await held.release()
            return wrote

        assert [await writes_of_a_take() for _ in range(3)] == [3, 2, 2]
        # Won by the promise, then lowered: our hold, and the leader freed. What was shared promises nothing.
        assert [await writes_of_a_take(Mode.SHARED) for _ in range(2)] == [4, 5]
        assert [await writes_of_a_take() for _ in range(2)] == [3, 2]
        host.generation = 2
        host.presence.member = host.join()
        assert [await writes_of_a_take() for _ in range(2)] == [3, 2]
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        assert [await writes_of_a_take() for _ in range(2)] == [3, 2]

    play(scene)


class _FailingRead(RealKernel):
    """The one read of a lease's begin that has this number fails."""

    def __init__(self, number: int) -> None:
        self.left = number

    def read_into(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        self.left -= offset_bytes == 0 and len(buffer) > 4096
        if self.left == 0:
            self.left = -1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read_into(fd, buffer, offset_bytes)


@pytest.mark.parametrize("number", [1, 2])
def test_lease_that_can_not_be_read_when_it_is_to_be_taken_up_is_left_as_it_is(
    tmp_path: Path, number: int
) -> None:
    """Taken for one that is not held, it would be raced for, with our value out of our block meanwhile."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        saved, held = await taken_and_saved(s.world())
        held.forget()
        before = s.lease_file.read_bytes()
        kernel = _FailingRead(number)
        failed = await twin(s.alpha, kernel=kernel).backend(s.directory).adopt(saved, None)
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.EIO
        assert kernel.left < 0
        assert s.lease_file.read_bytes() == before
        assert_held(await twin(s.alpha).backend(s.directory).adopt(saved, None))

    play(scene)


def test_disk_by_another_name_is_warned_about_where_leases_are_named_by_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        link = s.disk.with_name("disk.0")
        link.symlink_to(s.disk)
        for path in (s.disk, link):
            await assert_held(await tried(s.one, Resource("", str(path)))).release()
        (warning,) = (m for m in caplog.messages if "is another name of" in m)
        assert f"{link} is another name of {s.disk}: backend 'leases' names locks by path" in warning

    with caplog.at_level(logging.WARNING):
        play(scene)


def test_adoption_is_refused_when_another_host_took_over(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        saved, held = await taken_and_saved(s.world())
        held.forget()
        s.beta.state_of[1] = HostState.LIVE
        twin(s.alpha, generation=2)
        # A newer term stands in the lockspace. By itself that proves nothing about the older one, whose VM may run.
        assert isinstance(await take(s.two, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        # But its end was seen.
        s.beta.terms_of[1] = tuple(
            SeenTerm(Generation(each), s.beta.clock.now(), 1, seen_to_end=each == 1) for each in (1, 2)
        )
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        next_daemon = twin(s.alpha, generation=2).backend(s.directory)
        refused = await next_daemon.adopt(saved, None)
        assert isinstance(refused, HeldElsewhere)
        assert refused.holders[0].host_id == 2

    play(scene)


@pytest.mark.parametrize("mode", list(Mode))
def test_lease_that_a_killed_daemon_left_is_no_free_lease_to_the_next_one(tmp_path: Path, mode: Mode) -> None:
    """To the protocol a host's own lease is free. But a VM may depend on it that the next daemon knows nothing of."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), mode)).forget()  # killed before its journal had it
        next_daemon = twin(s.alpha).backend(s.directory)
        for wanted in Mode:
            met = await take(next_daemon, s.world(), wanted)
            assert met == LeftBehind(s.lease_file.name)
        left = await next_daemon.maintenance.take_up(s.lease_file.name)
        assert left is not None
        assert (left.mode, left.resource, left.noted.process) == (mode, s.world().resource, (NOTE.pid, 0))
        assert isinstance(await take(s.two, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        await left.held.release()
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))

    play(scene)


@pytest.mark.parametrize("order", ["take", "break", "gc"])
def test_lease_that_a_killed_daemon_left_is_not_free_after_a_read_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """The ballot reads again, and takes our own lease for free: it would take away what a VM depends on (seed 100004249)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).forget()
        next_daemon = twin(s.alpha).backend(s.directory)
        reads = 0
        read_partial = LeaseArea.read_partial

        async def read_once_failing(
            area: LeaseArea, host_id: HostId, timeout_s: float
        ) -> Snapshot | Malformed | types.IoFailed:
            nonlocal reads
            reads += 1
            return types.IoFailed(errno.EIO) if reads == 1 else await read_partial(area, host_id, timeout_s)

        monkeypatch.setattr(LeaseArea, "read_partial", read_once_failing)
        monkeypatch.setattr(LeaseArea, "partial_snapshot", lambda *_: None)  # it was not opened a moment ago
        if order == "take":
            assert isinstance(await take(next_daemon, s.world(), Mode.EXCLUSIVE), IoFailed)
        elif order == "break":
            with pytest.raises(StorageFailed, match="Input/output error"):
                await next_daemon.maintenance.break_lease(s.world().resource, "")
        else:
            why = await next_daemon.maintenance.take_out(s.lease_file.name, dry_run=False)
            assert "Input/output error" in why
        assert reads == 1
        monkeypatch.undo()
        assert isinstance(await take(s.two, s.world(), Mode.EXCLUSIVE), HeldElsewhere)

    play(scene)


def test_note_of_a_lease_names_the_owners_process_exactly(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        candidate = await s.one.open(s.world().resource, create=Creation.NONE)
        assert not isinstance(candidate, IoFailed)
        note = NOTE._replace(start_ticks=4_242_424)
        assert_held(await candidate.take(Mode.EXCLUSIVE, note)).forget()
        left = await twin(s.alpha).backend(s.directory).maintenance.take_up(s.lease_file.name)
        assert left is not None
        assert (left.noted.process, left.noted.owner.name) == ((NOTE.pid, 4_242_424), NOTE.owner.name)
        assert left.noted.disk == s.world().resource.name

    play(scene)


def test_new_leases_are_refused_while_the_incarnation_is_not_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        saved, held = await taken_and_saved(s.world())
        held.forget()
        monkeypatch.setattr(s.alpha.presence, "refuses_new", lambda: "its state file can't be written")
        with pytest.raises(LockspaceAbsent, match="state file"):
            await take(s.one, s.world(), Mode.EXCLUSIVE)
        assert isinstance(held, RefusesNew)
        assert held.refuses_new() == "its state file can't be written", "what is held takes no other owner"
        assert_held(await twin_of(s).adopt(saved, None))  # and goes on

    play(scene)


def twin_of(s: Scene) -> PaxosBackend:
    return twin(s.alpha).backend(s.directory)


# --- the index ---


def test_device_keeps_one_entry_per_disk_and_says_when_it_is_full(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        for n in range(4):
            resource = Resource("", f"/dev/vg/disk{n}")
            for backend in (s.one, s.two, s.one):
                held = assert_held(await tried(backend, resource))
                await held.release()
        assert entry_count(s.lockspace) == 4
        with pytest.raises(LeaseUnusable, match="all 4 entries"):
            await tried(s.one, Resource("", "/dev/vg/one-more"))

    play(scene)


def test_hosts_that_make_leases_at_once_make_each_of_them_once(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        s.alpha.clock = s.beta.clock = _Restless()  # type: ignore[assignment]
        one, two = s.alpha.backend(), s.beta.backend()
        names = [Resource("", f"/dev/vg/disk{n}") for n in range(4)]
        found = await asyncio.gather(
            *(tried(b, r) for r in names for b in (one, two)), return_exceptions=True
        )
        assert not [f for f in found if isinstance(f, IoFailed | BaseException)]
        assert len([f for f in found if not isinstance(f, HeldElsewhere)]) == len(names)
        assert entry_count(s.lockspace) == 4

    play(scene)


class _Restless:
    """A clock whose waits are short: who waits here waits for other hosts, and they run beside.

    Patience is as long as ever: the storage under a test may be slow.
    """

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


class _Hurried(_Restless):
    """One for which all time passes faster: for waits that are to be in vain."""

    def now(self) -> float:
        return time.monotonic() * 10


def test_keys_of_leases_are_no_keys_of_files() -> None:
    assert key_of_lease("a", "b") != key_of_lease("a", "c") != key_of_lease("ab", "")
    assert key_of_lease("a", "b").device == -2
    assert 0 <= key_of_lease("a", "b").inode < 1 << 63


def test_shared_hold_of_an_older_term_is_acquired_anew(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.SHARED))
        saved = SavedLock(
            resource=s.resource, mode=Mode.SHARED, create=False, path=held.path, keys=(key_of_lease_of(s),)
        )
        held.forget()
        next_daemon = twin(s.alpha, generation=2).backend(s.directory)
        assert_held(await next_daemon.adopt(saved, None))
        assert s.leader().lver == 2
        assert isinstance(await take(s.two, s.world(), Mode.EXCLUSIVE), HeldElsewhere)

    play(scene)


def key_of_lease_of(s: Scene) -> FileKey:
    return key_of_lease(SPACE, s.lease_file.name)


def test_note_of_an_earlier_version_names_nobody(tmp_path: Path) -> None:
    """A sanlock host took the lease over from a Holdfast host that had its own id: the old note is not about it."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        raw = bytearray(s.lease_file.read_bytes())
        leader = s.leader()
        raw[:512] = replace(leader, lver=leader.lver + 1).sector()
        s.lease_file.write_bytes(raw)
        refused = await take(s.two, s.world(), Mode.EXCLUSIVE)
        assert isinstance(refused, HeldElsewhere)
        assert "on host alpha (host_id 1)" in str(refused.holders[0])
        assert "web1" not in str(refused.holders[0])
        held.forget()

    play(scene)


def test_backends_of_one_lockspace_share_what_this_host_gives_up(tmp_path: Path) -> None:
    """It has one host block in each lease, whatever backend uses it."""
    make_lockspace(tmp_path / "lockspace")
    alpha = HostLockspaces(tmp_path / "lockspace", 1, "alpha")
    beta = HostLockspaces(tmp_path / "lockspace", 2, "beta")
    for name in ("vms", "archive"):
        (tmp_path / name).mkdir()
    vms, other, archive = (
        alpha.backend(tmp_path / "vms"),
        beta.backend(tmp_path / "vms"),
        alpha.backend(tmp_path / "archive"),
    )
    _share_leases([vms, other, archive])
    for attribute in ("_unsettled", "_tried", "_silent", "_promises"):
        assert getattr(vms, attribute) is getattr(archive, attribute)
        assert getattr(vms, attribute) is not getattr(other, attribute)

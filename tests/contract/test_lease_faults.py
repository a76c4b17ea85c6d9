"""Storage that fails amid taking, changing and giving up a lease: nothing is half done for ever, nothing held twice."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.contract.test_paxos_backend import Scene, _Hurried, play, tried
from tests.support.leases import HostLockspaces, entry_count

from holdfast.backends.base import Creation, HeldElsewhere
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.errors import LeaseUnusable
from holdfast.model import Mode, Resource
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.protocol.lease_area import glance_bytes
from holdfast.protocol.types import HostId
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system.block_io.disk import BlockingDisk, JobDisk
from holdfast.system.block_io.disk_file import RealKernel
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.testing.conformance import NOTE, assert_held, take
from holdfast.testing.fakes import SimulatedClock

LEADER, BLOCK_OF_ONE = 0, 2 * 512


class FaultyKernel(RealKernel):
    """Fails or holds up the next writes at given offsets, and reads of so many bytes."""

    def __init__(self) -> None:
        self.failing: dict[int, int] = {}
        """Offset to the number of writes there that fail."""
        self.holding: dict[int, threading.Event] = {}
        self.holding_reads: dict[tuple[int, int], threading.Event] = {}
        """Offset and length."""

    def read_into(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        if (gate := self.holding_reads.pop((offset_bytes, len(buffer)), None)) is not None:
            gate.wait(30)
        return super().read_into(fd, buffer, offset_bytes)

    def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        if (gate := self.holding.pop(offset_bytes, None)) is not None:
            gate.wait(30)
        if self.failing.get(offset_bytes, 0) > 0:
            self.failing[offset_bytes] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write_from(fd, buffer, offset_bytes)


class FaultyScene(Scene):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.kernel, self.clock = FaultyKernel(), SimulatedClock()
        self.alpha = HostLockspaces(self.lockspace, 1, "alpha", kernel=self.kernel, clock=self.clock)
        self.one = self.alpha.backend(directory)

    async def made(self) -> None:
        """The lease file is there and free."""
        held = assert_held(await take(self.one, self.world(), Mode.EXCLUSIVE))
        await held.release()

    async def until(self, happened: Callable[[], Awaitable[bool]]) -> None:
        for _ in range(300):
            if await happened():
                return
            await self.clock.advance(1)
            await asyncio.sleep(0.01)
        raise AssertionError("waited in vain")

    async def can_be_opened(self, backend: PaxosBackend) -> bool:
        try:
            candidate = await backend.open(self.resource, create=Creation.NONE)
        except LeaseUnusable as e:
            assert "still giving it up" in str(e)
            return False
        assert not isinstance(candidate, IoFailed)
        await candidate.abandon()
        return True


def test_acquire_that_ends_in_doubt_is_withdrawn_before_anybody_tries_again(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        await s.made()
        s.kernel.failing = {LEADER: 1}  # the commit
        failed = await take(s.one, s.world(), Mode.EXCLUSIVE)
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.EIO
        assert not await s.can_be_opened(s.one)
        await s.until(lambda: s.can_be_opened(s.one))
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        assert isinstance(await take(s.one, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        await held.release()
        assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))

    play(scene)


def test_release_that_fails_is_repeated_until_another_host_can_take_it(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        s.kernel.failing = {LEADER: 3, BLOCK_OF_ONE: 3}
        await held.release()
        assert isinstance(await take(s.two, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        assert not await s.can_be_opened(s.one)
        await s.until(lambda: s.can_be_opened(s.one))
        assert s.kernel.failing == {LEADER: 0, BLOCK_OF_ONE: 0}
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))

    play(scene)


def test_downgrade_that_fails_counts_as_shared_and_is_repeated(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        s.kernel.failing = {LEADER: 2}
        assert await held.convert(Mode.SHARED, NOTE) is None
        stronger = await held.convert(Mode.EXCLUSIVE, NOTE)
        assert isinstance(stronger, IoFailed)
        assert stronger.errno == errno.EAGAIN

        async def shared() -> bool:
            return not isinstance(await take(s.two, s.world(), Mode.SHARED), HeldElsewhere)

        await s.until(shared)

    play(scene)


def test_release_amid_a_downgrade_that_is_being_repeated_gives_everything_up(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        s.kernel.failing = {LEADER: 2}
        await held.convert(Mode.SHARED, NOTE)
        await held.release()
        await s.until(lambda: s.can_be_opened(s.one))
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))

    play(scene)


def test_lease_write_that_hangs_keeps_the_lease_closed_until_it_has_landed(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        await s.made()
        gate = s.kernel.holding[LEADER] = threading.Event()
        failed = await take(s.one, s.world(), Mode.EXCLUSIVE)
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.ETIMEDOUT
        for _ in range(20):
            await s.clock.advance(10)
            assert not await s.can_be_opened(s.one)
        gate.set()
        await s.until(lambda: s.can_be_opened(s.one))
        assert s.leader().is_free

    play(scene)


@pytest.mark.parametrize("mode", [Mode.EXCLUSIVE, Mode.SHARED])
def test_lease_won_after_its_start_was_refused_is_given_back(tmp_path: Path, mode: Mode) -> None:
    """Storage was silent amid the ballot; when it speaks, the ballot goes on to its end and wins."""

    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        await s.made()
        gate = s.kernel.holding[BLOCK_OF_ONE] = threading.Event()
        failed = await take(s.one, s.world(), mode)
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.ETIMEDOUT
        lver = s.leader().lver
        gate.set()
        await s.until(lambda: s.can_be_opened(s.one))
        assert s.leader().lver == lver + 1
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))

    play(scene)


def test_storage_that_is_silent_before_anything_was_written_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        await s.made()
        before = s.lease_file.read_bytes()
        gate = s.kernel.holding_reads[LEADER, glance_bytes(DEFAULT, s.leader().num_hosts, HostId(1))] = (
            threading.Event()
        )
        s.alpha.may_write = False  # by the time it speaks again
        failed = await take(s.one, s.world(), Mode.EXCLUSIVE)
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.ETIMEDOUT
        gate.set()
        await s.until(lambda: s.can_be_opened(s.one))
        assert s.lease_file.read_bytes() == before

    play(scene)


def test_release_that_hangs_is_waited_for_and_its_lease_stays_closed(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        gate = s.kernel.holding[LEADER] = threading.Event()
        await held.release()
        assert not await s.can_be_opened(s.one)
        gate.set()
        await s.until(lambda: s.can_be_opened(s.one))
        assert s.leader().is_free

    play(scene)


async def going_on(clock: SimulatedClock) -> None:
    while True:
        await clock.advance(0.1)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", [Mode.EXCLUSIVE, Mode.SHARED])
def test_conversion_that_hangs_ends_as_the_manager_was_told(tmp_path: Path, mode: Mode) -> None:
    """An upgrade was refused, so it is undone; a downgrade counts from the beginning."""

    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.SHARED))
        if mode is Mode.SHARED:
            assert await held.convert(Mode.EXCLUSIVE, NOTE) is None
        gate = s.kernel.holding[BLOCK_OF_ONE] = threading.Event()
        ended = await held.convert(mode, NOTE)
        assert (ended is None) == (mode is Mode.SHARED)
        assert isinstance(await held.convert(Mode.EXCLUSIVE, NOTE), IoFailed)
        gate.set()

        async def shared() -> bool:
            leader = s.leader()
            # One that host 2 wrote for host 1, while they raced, is given up by the flag alone.
            given_up = leader.is_free or leader.write_id != leader.owner_id
            if not given_up:
                return False
            outcome = await take(s.two, s.world(), Mode.SHARED)
            if isinstance(outcome, HeldElsewhere):
                return False
            await assert_held(outcome).release()
            return True

        # Contenders pause, each by his own clock.
        assert isinstance(s.beta.clock, SimulatedClock)
        time_goes_on = asyncio.create_task(going_on(s.beta.clock))
        await s.until(shared)
        time_goes_on.cancel()
        assert isinstance(await take(s.two, s.world(), Mode.EXCLUSIVE), HeldElsewhere)

    play(scene)


def test_event_loop_goes_on_while_another_hosts_record_is_not_answered(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        gate = s.kernel.holding_reads[512, 512] = threading.Event()
        start = asyncio.create_task(take(s.one, s.world(), Mode.EXCLUSIVE))
        while s.kernel.holding_reads:
            await asyncio.sleep(0.01)
        steps = 0
        while not start.done():
            await asyncio.sleep(0.01)
            steps += 1
        gate.set()
        assert isinstance(start.result(), IoFailed)
        assert steps > 5  # of a second: the io_timeout

    play(scene)


def test_lost_lockspace_leaves_storage_as_it_is(tmp_path: Path) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        before = s.lease_file.read_bytes()
        s.alpha.may_write = False
        await held.release()
        assert s.lease_file.read_bytes() == before
        with pytest.raises(LeaseUnusable, match="just lost the lockspace"):
            await take(s.one, s.world(), Mode.EXCLUSIVE)

    play(scene)


@pytest.mark.parametrize("how", ["lost", "left"])
def test_lease_won_at_the_moment_of_the_loss_is_not_handed_out(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        s = FaultyScene(tmp_path / "leases")
        await s.made()
        named = JobDisk.is_named

        async def is_named(disk: JobDisk) -> bool:
            if how == "lost":
                s.alpha.may_write = False
            else:
                s.alpha.presence.member = NotAMember("leaving")
            return await named(disk)

        monkeypatch.setattr(JobDisk, "is_named", is_named)
        with pytest.raises(LeaseUnusable, match="just lost or left the lockspace"):
            await take(s.one, s.world(), Mode.EXCLUSIVE)

    play(scene)


def test_index_stays_ours_until_our_late_write_to_it_has_landed(tmp_path: Path) -> None:
    """Else it would land upon the entry that another host wrote meanwhile."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        kernel = FaultyKernel()
        slow = HostLockspaces(s.lockspace, 1, "alpha", kernel=kernel)
        gate = kernel.holding[MIB + 512] = threading.Event()
        first, second = Resource("", "/dev/vg/a"), Resource("", "/dev/vg/b")
        failed = await tried(slow.backend(), first)
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.ETIMEDOUT
        s.beta.clock = _Hurried()  # type: ignore[assignment]
        with pytest.raises(LeaseUnusable, match="resource index is being changed"):
            await tried(s.beta.backend(), second)
        gate.set()
        for _ in range(100):
            await asyncio.sleep(0.02)
            try:
                assert_held(await tried(s.beta.backend(), second))
                break
            except LeaseUnusable:
                continue
        assert entry_count(s.lockspace) == 2

    play(scene)


def test_job_that_reads_the_records_of_hosts_waits_for_no_other_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lockspace's disk is one whose callers wait for a worker: jobs on all workers would wait for ever (ADR 0183)."""

    async def nobody(*_: object, **__: object) -> None:
        raise AssertionError("a job has used the disk of the renewal thread")

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        monkeypatch.setattr(BlockingDisk, "_on_worker", nobody)
        refused = await take(s.two, s.world(), Mode.EXCLUSIVE)
        assert isinstance(refused, HeldElsewhere)
        await held.release()
        for first in (s.one, s.two):
            await assert_held(await take(first, s.world(), Mode.SHARED)).release()

    play(scene)

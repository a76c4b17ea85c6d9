"""What the real disk promises beyond the port's contract: where it hangs, what it keeps open, how it opens."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.disk.disks import UnrulyKernel, blank, loop_device
from tests.support.mounts import mounted
from tests.support.polling import wait_until

from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.blocking_ports import run_blocking
from holdfast.system.block_io.disk import BlockingDisk, open_blocking, open_suspending
from holdfast.system.block_io.disk_file import RealKernel
from holdfast.system.block_io.inflight_writes import InflightByDevice
from holdfast.system.block_io.worker_pool import JobFate, PoolFull, Request, WorkerPool

SECTOR = 512
AMPLE_S = 20.0
SHORT_S = 1.0
"""A request that hangs is given up after it; long enough for a worker to begin on a busy machine."""
TIMED_OUT = IoFailed(errno.ETIMEDOUT)
TIMED_OUT_IN_FLIGHT = IoFailed(errno.ETIMEDOUT, in_flight=True)
BUSY = IoFailed(errno.EBUSY, in_flight=True)


class Rig:
    """Pools, a kernel that can be held back, and what closes it all."""

    def __init__(self) -> None:
        self.kernel = UnrulyKernel()
        self.devices = InflightByDevice()
        self.pools: list[WorkerPool] = []
        self.disks: list[BlockingDisk] = []

    def pool(self, workers: int = 4) -> WorkerPool:
        self.pools.append(WorkerPool(f"pool{len(self.pools)}", workers))
        return self.pools[-1]

    def open(self, path: Path | str, pool: WorkerPool) -> BlockingDisk:
        disk = open_blocking(str(path), pool, kernel=self.kernel, devices=self.devices)
        assert isinstance(disk, BlockingDisk), disk
        self.disks.append(disk)
        return disk

    def close(self) -> None:
        self.kernel.let_go()
        for disk in self.disks:
            disk.close()
        for pool in self.pools:
            pool.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def write(disk: BlockingDisk, at: int, letter: bytes, timeout_s: float = AMPLE_S) -> IoFailed | None:
    return run_blocking(disk.write(at, letter * SECTOR, timeout_s=timeout_s))


def read(disk: BlockingDisk, at: int, timeout_s: float = AMPLE_S) -> bytes | IoFailed:
    return run_blocking(disk.read(at, SECTOR, timeout_s=timeout_s))


def descriptors_of(path: Path) -> int:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            pass
    return links.count(str(path))


def test_a_pool_whose_workers_all_hang_holds_up_no_other_pool(rig: Rig, tmp_path: Path) -> None:
    path = blank(tmp_path)
    sick, well = rig.open(path, rig.pool(workers=2)), rig.open(path, rig.pool(workers=2))
    rig.kernel.plan("read stall", "read stall")
    assert read(sick, 0, SHORT_S) == read(sick, 0, SHORT_S) == TIMED_OUT
    assert read(sick, 0, SHORT_S) == TIMED_OUT
    assert read(well, 0) == bytes(SECTOR)
    assert write(well, 0, b"w") is None
    rig.kernel.let_go()
    assert read(sick, 0) == b"w" * SECTOR


def test_a_write_that_no_worker_had_begun_when_it_was_given_up_never_reaches_the_disk(
    rig: Rig, tmp_path: Path
) -> None:
    disk = rig.open(blank(tmp_path), rig.pool(workers=1))
    rig.kernel.plan("read stall")
    assert read(disk, 0, SHORT_S) == TIMED_OUT
    assert write(disk, 0, b"n", SHORT_S) == TIMED_OUT
    assert not disk.in_flight(0, SECTOR)
    assert not rig.devices.in_flight("pool0")()
    rig.kernel.let_go()
    assert read(disk, 0) == bytes(SECTOR)


def test_who_closes_a_path_and_opens_it_again_meets_the_writes_in_flight(rig: Rig, tmp_path: Path) -> None:
    path = blank(tmp_path)
    linked = tmp_path / "linked"
    os.link(path, linked)
    disk = rig.open(path, rig.pool())
    rig.kernel.plan("write stall")
    assert write(disk, SECTOR, b"o", SHORT_S) == TIMED_OUT_IN_FLIGHT
    disk.close()
    again = rig.open(linked, rig.pool())
    assert again.in_flight(SECTOR, SECTOR)
    under_way = rig.devices.in_flight("pool0")
    assert under_way()
    assert not rig.devices.in_flight("pool1")()
    assert write(again, SECTOR, b"n") == BUSY
    rig.kernel.let_go()
    run_blocking(again.settled(0, 4 * SECTOR))
    assert not under_way()
    assert write(again, SECTOR, b"n") is None
    assert read(again, SECTOR) == b"n" * SECTOR


def test_a_closed_disk_keeps_its_descriptor_as_long_as_a_request_is_inside_the_kernel(
    rig: Rig, tmp_path: Path
) -> None:
    path = blank(tmp_path)
    pool = rig.pool()
    disk = rig.open(path, pool)
    rig.kernel.plan("write stall")
    assert write(disk, 0, b"l", SHORT_S) == TIMED_OUT_IN_FLIGHT
    disk.close()
    assert write(disk, SECTOR, b"x") == IoFailed(errno.EBADF)
    assert descriptors_of(path) == 1
    rig.kernel.let_go()
    run_blocking(disk.settled(0, SECTOR))
    rest = open_blocking(str(path), pool, devices=rig.devices)
    assert isinstance(rest, BlockingDisk)
    assert read(rest, 0) == b"l" * SECTOR
    rest.close()
    wait_until(lambda: descriptors_of(path) == 0, "a worker to close it")


def test_opening_that_hangs_is_given_up_and_leaves_no_descriptor_behind(rig: Rig, tmp_path: Path) -> None:
    path = blank(tmp_path)
    pool = rig.pool(workers=1)
    rig.kernel.plan("open stall")
    hung = open_blocking(str(path), pool, timeout_s=SHORT_S, kernel=rig.kernel, devices=rig.devices)
    assert hung == TIMED_OUT
    rig.kernel.let_go()
    # The same worker serves this one, so the late descriptor has been dealt with before.
    rig.open(path, pool)
    assert descriptors_of(path) == 1


@pytest.mark.parametrize(
    ("what", "expected"), [("missing", errno.ENOENT), ("directory", errno.EISDIR), ("null", errno.ENOTBLK)]
)
def test_what_is_no_disk_is_not_opened(rig: Rig, tmp_path: Path, what: str, expected: int) -> None:
    path = {"missing": tmp_path / "missing", "directory": tmp_path, "null": Path("/dev/null")}[what]
    before = len(os.listdir("/proc/self/fd"))
    assert open_blocking(str(path), rig.pool(), devices=rig.devices) == IoFailed(expected)
    assert (
        len(os.listdir("/proc/self/fd")) <= before
    )  # an earlier test's may be closed by its worker meanwhile


@pytest.mark.parametrize(
    ("offset", "length"), [(777, 512), (0, 100), (512, 0), (-512, 512), (512, 513)], ids=str
)
def test_a_request_that_is_not_made_of_sectors_is_refused(
    rig: Rig, tmp_path: Path, offset: int, length: int
) -> None:
    disk = rig.open(blank(tmp_path), rig.pool())
    assert run_blocking(disk.read(offset, length, timeout_s=AMPLE_S)) == IoFailed(errno.EINVAL)
    assert run_blocking(disk.write(offset, b"x" * length, timeout_s=AMPLE_S)) == IoFailed(errno.EINVAL)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices are made by root")
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_device_tells_its_sector_and_refuses_smaller_records(rig: Rig, tmp_path: Path, sector: int) -> None:
    file = blank(tmp_path)
    with loop_device(file, sector) as device:
        disk = rig.open(device, rig.pool())
        facts = disk.facts
        assert (facts.direct, facts.is_block_device, facts.logical_sector_bytes) == (True, True, sector)
        assert facts.size_bytes == file.stat().st_size
        expected = None if sector == SECTOR else IoFailed(errno.EINVAL)
        assert write(disk, SECTOR, b"x") == expected
        rig.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system that refuses O_DIRECT is mounted by root")
def test_where_o_direct_is_refused_the_page_cache_is_used_and_that_is_said(rig: Rig, tmp_path: Path) -> None:
    with mounted(tmp_path, "-t", "ramfs", "none"):
        disk = rig.open(blank(tmp_path), rig.pool())
        assert not disk.facts.direct
        assert "O_DIRECT is refused" in disk.facts.how
        assert write(disk, SECTOR, b"x") is None
        assert read(disk, SECTOR) == b"x" * SECTOR


def test_a_file_on_the_usual_file_system_is_opened_with_o_direct_and_o_dsync(
    rig: Rig, tmp_path: Path
) -> None:
    seen: list[int] = []

    class Watching(RealKernel):
        def open(self, path: str, flags: int) -> int:
            seen.append(flags)
            return super().open(path, flags)

    path = blank(tmp_path)
    disk = open_blocking(str(path), rig.pool(), kernel=Watching(), devices=rig.devices)
    assert isinstance(disk, BlockingDisk)
    disk.close()
    assert seen
    assert all(flags & os.O_DSYNC for flags in seen)
    assert bool(seen[-1] & os.O_DIRECT) == disk.facts.direct


def test_a_cancelled_writer_leaves_its_write_accounted_for(rig: Rig, tmp_path: Path) -> None:
    path = str(blank(tmp_path))

    async def story() -> None:
        disk = await open_suspending(path, rig.pool(), kernel=rig.kernel, devices=rig.devices)
        assert not isinstance(disk, IoFailed)
        rig.kernel.plan("write stall")
        task = asyncio.create_task(disk.write(0, b"c" * SECTOR, timeout_s=AMPLE_S))
        await asyncio.to_thread(rig.kernel.held.acquire, timeout=AMPLE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert disk.in_flight(0, SECTOR)
        assert await disk.write(0, b"n" * SECTOR, timeout_s=AMPLE_S) == BUSY
        rig.kernel.let_go()
        await disk.settled(0, SECTOR)
        assert await disk.read(0, SECTOR, timeout_s=AMPLE_S) == b"c" * SECTOR
        disk.close()

    asyncio.run(story())


def test_two_writers_on_one_event_loop_have_one_write_to_a_sector_in_flight(rig: Rig, tmp_path: Path) -> None:
    path = str(blank(tmp_path))

    async def story() -> list[IoFailed | None]:
        disk = await open_suspending(path, rig.pool(), kernel=rig.kernel, devices=rig.devices)
        assert not isinstance(disk, IoFailed)
        rig.kernel.plan("write stall")  # or the first one may have ended when the second one begins
        first = asyncio.ensure_future(disk.write(0, b"1" * SECTOR, timeout_s=AMPLE_S))
        await asyncio.to_thread(rig.kernel.held.acquire, timeout=AMPLE_S)
        second = await disk.write(0, b"2" * SECTOR, timeout_s=AMPLE_S)
        rig.kernel.let_go()
        ended = [await first, second]
        disk.close()
        return ended

    assert asyncio.run(story()) == [None, BUSY]


def test_a_bug_on_a_worker_is_raised_where_the_request_came_from(rig: Rig) -> None:
    pool = rig.pool(workers=1)

    def broken(_: object) -> None:
        raise ZeroDivisionError

    for _ in range(2):
        done = threading.Event()
        request: Request[None] = Request(broken, on_done=done.set)
        pool.submit(request)
        assert done.wait(AMPLE_S)
        assert pool.give_up(request) is JobFate.COMPLETED
        with pytest.raises(ZeroDivisionError):
            request.result()


def test_more_requests_than_a_pool_takes_are_refused_and_leave_no_write_behind(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.system.block_io.worker_pool.REQUESTS_WAITING_MAX", 0)
    pool = WorkerPool("full")
    with pytest.raises(PoolFull):
        pool.submit(Request(lambda _: None, on_done=lambda: None))
    monkeypatch.undo()
    disk = rig.open(blank(tmp_path), rig.pool())
    monkeypatch.setattr("holdfast.system.block_io.worker_pool.REQUESTS_WAITING_MAX", 0)
    assert write(disk, 0, b"x") == IoFailed(errno.EBUSY)
    assert not disk.in_flight(0, SECTOR)

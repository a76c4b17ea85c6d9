"""The contract of `protocol.ports.Disk`, kept by the simulated disk and by the real one alike.

The real one: both faces, over a file and, as root, over loop devices with sectors of 512 and of 4096 bytes.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.contract.disk.disks import (
    SIZE_BYTES,
    Blocking,
    DiskUnderTest,
    Simulated,
    Suspending,
    blank,
    loop_device,
)

from holdfast.protocol.ports import Disk
from holdfast.protocol.types import IoFailed

KINDS = [
    f"{what}-{sector}"
    for what in ("simulated", "blocking-file", "suspending-file", "blocking-loop", "suspending-loop")
    for sector in (512, 4096)
]
# Long enough that a request which is not held back ends in time on a slow machine.
AMPLE_S = 20.0
# A request that is held back ends by its time-out alone; long enough for a worker to begin on a busy machine.
SHORT_S = 0.5
MIB = 1 << 20


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskUnderTest]:
    what, sector = request.param.rsplit("-", 1)
    if what == "simulated":
        yield Simulated(int(sector))
        return
    with ExitStack() as stack:
        path = str(blank(tmp_path))
        if what.endswith("loop"):
            if os.geteuid() != 0:
                pytest.skip("loop devices are made by root")
            path = stack.enter_context(loop_device(Path(path), int(sector)))
        face = Blocking if what.startswith("blocking") else Suspending
        real = face(path, int(sector))
        stack.callback(real.close)
        yield real


def sectors(disk: DiskUnderTest, *letters: bytes) -> bytes:
    return b"".join(letter * disk.sector_bytes for letter in letters)


def write(disk: DiskUnderTest, at: int, content: bytes, timeout_s: float = AMPLE_S) -> IoFailed | None:
    return disk.run(lambda port: port.write(at, content, timeout_s=timeout_s))


def read(disk: DiskUnderTest, at: int, length: int, timeout_s: float = AMPLE_S) -> bytes | IoFailed:
    return disk.run(lambda port: port.read(at, length, timeout_s=timeout_s))


def in_flight(disk: DiskUnderTest, at: int, length: int) -> bool:
    async def ask(port: Disk) -> bool:
        return port.in_flight(at, length)

    return disk.run(ask)


def test_what_was_written_is_on_the_disk_and_is_read_back(disk: DiskUnderTest) -> None:
    content, at = sectors(disk, b"a", b"b"), 3 * disk.sector_bytes
    assert write(disk, at, content) is None
    assert read(disk, at, len(content)) == content
    assert disk.content(at, len(content)) == content
    assert read(disk, 0, at) == bytes(at)


def test_a_whole_area_is_one_request(disk: DiskUnderTest) -> None:
    content = os.urandom(MIB)
    assert write(disk, MIB, content) is None
    assert read(disk, MIB, MIB) == content


def test_a_read_beyond_the_end_is_an_answer(disk: DiskUnderTest) -> None:
    size = disk.sector_bytes
    assert read(disk, SIZE_BYTES - size, 2 * size) == IoFailed(errno.EMSGSIZE)
    assert read(disk, SIZE_BYTES, size) == IoFailed(errno.EMSGSIZE)
    assert read(disk, SIZE_BYTES - size, size) == bytes(size)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_failed_request_is_an_answer_and_the_next_one_goes_through(disk: DiskUnderTest, kind: str) -> None:
    content = sectors(disk, b"x")
    disk.plan(f"{kind} error")
    answer = read(disk, 0, len(content)) if kind == "read" else write(disk, 0, content)
    assert answer == IoFailed(errno.EIO)
    assert not in_flight(disk, 0, SIZE_BYTES)
    assert write(disk, 0, content) is None
    assert read(disk, 0, len(content)) == content


def test_a_write_that_timed_out_is_in_flight_until_it_completes_and_then_it_is_on_the_disk(
    disk: DiskUnderTest,
) -> None:
    old, at = sectors(disk, b"o", b"o"), 4 * disk.sector_bytes
    disk.plan("write stall")
    assert write(disk, at, old, SHORT_S) == IoFailed(errno.ETIMEDOUT, in_flight=True)
    assert in_flight(disk, at, 1)
    assert in_flight(disk, 0, SIZE_BYTES)
    assert not in_flight(disk, at - disk.sector_bytes, disk.sector_bytes)
    assert not in_flight(disk, at + len(old), disk.sector_bytes)
    disk.let_go()
    assert not in_flight(disk, 0, SIZE_BYTES)
    assert disk.content(at, len(old)) == old


def test_while_a_write_is_in_flight_another_one_to_its_sectors_is_refused_and_never_issued(
    disk: DiskUnderTest,
) -> None:
    size = disk.sector_bytes
    disk.plan("write stall")
    assert write(disk, 2 * size, sectors(disk, b"o", b"o"), SHORT_S) == IoFailed(
        errno.ETIMEDOUT, in_flight=True
    )
    for first, count in ((2, 1), (3, 1), (1, 2), (3, 2), (0, 8)):
        refused = write(disk, first * size, sectors(disk, *([b"n"] * count)))
        assert refused == IoFailed(errno.EBUSY, in_flight=True)
    disk.let_go()
    expected = bytes(2 * size) + sectors(disk, b"o", b"o") + bytes(4 * size)
    assert disk.content(0, 8 * size) == expected
    assert write(disk, 2 * size, sectors(disk, b"n")) is None
    assert disk.content(2 * size, size) == sectors(disk, b"n")


def test_a_write_in_flight_hinders_no_other_sector_and_no_read(disk: DiskUnderTest) -> None:
    size = disk.sector_bytes
    disk.plan("write stall")
    assert write(disk, size, sectors(disk, b"o"), SHORT_S) == IoFailed(errno.ETIMEDOUT, in_flight=True)
    assert write(disk, 0, sectors(disk, b"l")) is None
    assert write(disk, 2 * size, sectors(disk, b"r")) is None
    assert read(disk, 2 * size, size) == sectors(disk, b"r")
    disk.let_go()
    assert disk.content(0, 3 * size) == sectors(disk, b"l", b"o", b"r")


def test_settled_returns_when_the_last_write_to_those_bytes_has_completed(disk: DiskUnderTest) -> None:
    size = disk.sector_bytes
    disk.plan("write stall")
    assert write(disk, size, sectors(disk, b"o"), SHORT_S) == IoFailed(errno.ETIMEDOUT, in_flight=True)

    async def wait_and_look(port: Disk) -> tuple[bool, bytes | IoFailed]:
        await port.settled(0, 4 * size)
        return port.in_flight(0, SIZE_BYTES), await port.read(size, size, timeout_s=AMPLE_S)

    assert disk.let_go_while(wait_and_look) == (False, sectors(disk, b"o"))


def test_settled_returns_at_once_where_nothing_is_in_flight(disk: DiskUnderTest) -> None:
    size = disk.sector_bytes
    disk.plan("write stall")
    assert write(disk, size, sectors(disk, b"o"), SHORT_S) == IoFailed(errno.ETIMEDOUT, in_flight=True)

    async def wait_elsewhere(port: Disk) -> bool:
        await port.settled(0, size)
        return port.in_flight(size, size)

    assert disk.run(wait_elsewhere)
    disk.let_go()


def test_a_read_that_timed_out_is_not_a_write_in_flight_and_the_next_read_does_not_wait_for_it(
    disk: DiskUnderTest,
) -> None:
    size = disk.sector_bytes
    disk.plan("read stall")
    assert read(disk, 0, size, SHORT_S) == IoFailed(errno.ETIMEDOUT)
    assert not in_flight(disk, 0, SIZE_BYTES)
    assert read(disk, 0, size) == bytes(size)
    disk.let_go()

"""The disks that keep the contract of `protocol.ports.Disk`, each with a way to misbehave on demand."""

import asyncio
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.unit.protocol.simulated import World

from holdfast.protocol.ports import Disk
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.blocking_ports import run_blocking
from holdfast.system.block_io.disk import BlockingDisk, SuspendingDisk, open_blocking, open_suspending
from holdfast.system.block_io.disk_file import RealKernel
from holdfast.system.block_io.inflight_writes import InflightByDevice
from holdfast.system.block_io.worker_pool import WorkerPool

T = TypeVar("T")
SIZE_BYTES = 4 << 20
# A stuck test shall end; nothing waits for this long otherwise.
_PATIENCE_S = 30


class UnrulyKernel(RealKernel):
    """Real system calls that can be held back before they begin, or fail with an errno of the test's choice."""

    def __init__(self) -> None:
        self._script: list[str] = []
        self._gate = threading.Event()
        self.held = threading.Semaphore(0)

    def plan(self, *what: str) -> None:
        """What happens to the requests to come: "write stall", "read error", "open stall" …; others go through."""
        self._script += what
        self._gate.clear()

    def let_go(self) -> None:
        self._gate.set()

    def open(self, path: str, flags: int) -> int:
        self._misbehave("open")
        return super().open(path, flags)

    def read_into(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        self._misbehave("read")
        return super().read_into(fd, buffer, offset_bytes)

    def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        self._misbehave("write")
        return super().write_from(fd, buffer, offset_bytes)

    def _misbehave(self, kind: str) -> None:
        if not self._script or not self._script[0].startswith(kind):
            return
        fate = self._script.pop(0).removeprefix(kind).strip()
        if fate == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.held.release()
        assert self._gate.wait(_PATIENCE_S), "nobody let the stuck request go"


class DiskUnderTest(Protocol):
    sector_bytes: int

    def run(self, use: Callable[[Disk], Coroutine[Any, Any, T]]) -> T: ...
    def plan(self, *what: str) -> None: ...
    def let_go(self) -> None:
        """Stuck requests may complete; returns when they have."""

    def let_go_while(self, use: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        """Stuck requests complete at some moment while `use` runs."""

    def content(self, offset_bytes: int, length_bytes: int) -> bytes:
        """What is on the disk, seen beside the port."""


class Simulated:
    """The in-memory disk of the protocol tests."""

    def __init__(self, sector_bytes: int) -> None:
        self.sector_bytes = sector_bytes
        self._world = World(seed=1, size_bytes=SIZE_BYTES)
        self._host = self._world.host()

    def run(self, use: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        return self._host.run(use(self._host.disk))

    def plan(self, *what: str) -> None:
        self._host.disk.script += what

    def let_go(self) -> None:
        self._world.run(until=self._world.now + 2 * self._world.faults.stall_max_s)

    def let_go_while(self, use: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        return self.run(use)

    def content(self, offset_bytes: int, length_bytes: int) -> bytes:
        return bytes(self._world.content[offset_bytes : offset_bytes + length_bytes])


class _Real:
    """What both faces of the real disk have in common."""

    def __init__(self, path: str, sector_bytes: int) -> None:
        self.sector_bytes = sector_bytes
        self.path = path
        self.kernel = UnrulyKernel()
        self.pool = WorkerPool("test")
        self.devices = InflightByDevice()
        self.disk: BlockingDisk | SuspendingDisk

    def plan(self, *what: str) -> None:
        self.kernel.plan(*what)

    def let_go(self) -> None:
        async def settle(disk: Disk) -> None:
            await disk.settled(0, SIZE_BYTES)

        self.kernel.let_go()
        self.run(settle)

    def let_go_while(self, use: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        # `use` begins to wait first, most of the time; the contract holds either way.
        threading.Timer(0.05, self.kernel.let_go).start()
        return self.run(use)

    def content(self, offset_bytes: int, length_bytes: int) -> bytes:
        with open(self.path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return os.pread(file.fileno(), length_bytes, offset_bytes)

    def run(self, use: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        raise NotImplementedError

    def close(self) -> None:
        self.kernel.let_go()
        self.disk.close()
        self.pool.close()


class Blocking(_Real):
    def __init__(self, path: str, sector_bytes: int) -> None:
        super().__init__(path, sector_bytes)
        opened = open_blocking(path, self.pool, kernel=self.kernel, devices=self.devices)
        assert not isinstance(opened, IoFailed), opened
        self.disk = opened

    def run(self, use: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        return run_blocking(use(self.disk))


class Suspending(_Real):
    def __init__(self, path: str, sector_bytes: int) -> None:
        super().__init__(path, sector_bytes)
        opened = asyncio.run(open_suspending(path, self.pool, kernel=self.kernel, devices=self.devices))
        assert not isinstance(opened, IoFailed), opened
        self.disk = opened

    def run(self, use: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run(use(self.disk))


def blank(directory: Path) -> Path:
    path = directory / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
    return path


@contextmanager
def loop_device(path: Path, sector_bytes: int, *options: str) -> Iterator[str]:
    """A block device over a file, as root; `options`: of losetup, for a part of the file."""
    made = subprocess.run(
        ["losetup", "--show", "-f", "-b", str(sector_bytes), *options, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)

"""The `Disk` port over real storage: O_DIRECT, bounded waits, nothing forgotten.

Requests run on the threads of a `worker_pool`, use one open file (`disk_file`), and writes in flight are remembered
per device (`inflight_writes`).
Three classes give the same port to three kinds of caller:

    BlockingDisk     its coroutines never suspend: for a dedicated thread, driven by `blocking_ports`
    SuspendingDisk   its coroutines suspend on asyncio
    JobDisk          for an offloaded job (`offload`), over either: it is on a worker already, and calls the kernel itself

Every failure is an answer. EINVAL is the answer for a request that is not made of whole sectors, EMSGSIZE for one
beyond the end, ETIMEDOUT for one given up: `in_flight` then says whether a write may still happen.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.answers import answered
from holdfast.system.block_io.disk_file import (
    DEVICE_WRITES,
    REAL_KERNEL,
    DiskFacts,
    Kernel,
    OpenFile,
    is_named,
    open_file,
)
from holdfast.system.block_io.inflight_writes import InflightByDevice
from holdfast.system.block_io.offload import Job, OffloadedJob, WorkersDisk
from holdfast.system.block_io.pool_calls import future_and_wake, in_time, on_worker
from holdfast.system.block_io.worker_pool import (
    AlignedBuffer,
    JobFate,
    PoolFull,
    Request,
    WorkerPool,
    do_nothing,
)

T = TypeVar("T")
Issue = Callable[[Callable[[], None]], Request[T] | IoFailed]
"""Issues a request that wakes its caller so; or refuses it."""

SECTOR_BYTES_MIN = 512
"""No device has smaller sectors; one with larger ones refuses smaller requests itself."""
OFFSET_BYTES_MAX = (1 << 63) - 1
"""The kernel's, whose offsets have a sign; clients name offsets of 64 bits."""
OPEN_TIMEOUT_S = 10.0
"""Opening looks at the device once: as long as one default io_timeout."""


class _Disk(WorkersDisk):
    """What both faces share: how requests are made, issued, and given up."""

    def __init__(self, file: OpenFile, pool: WorkerPool, kernel: Kernel) -> None:
        self._file = file
        self._pool = pool
        self._kernel = kernel
        self._closed = False
        self.must_be_named = False
        """Whether reads of a file fail with ESTALE once its path names another one, or none."""

    @property
    def facts(self) -> DiskFacts:
        return self._file.facts

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        return await self._on_worker(
            lambda wake: self._read_request(offset_bytes, length_bytes, wake), timeout_s, is_write=False
        )

    async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        return await self._on_worker(
            lambda wake: self._write_request(offset_bytes, content, wake), timeout_s, is_write=True
        )

    @abstractmethod
    async def _on_worker(self, issue: Issue[T], timeout_s: float, *, is_write: bool) -> T | IoFailed:
        """Issue a request and wait for its end, in this face's way, for so long."""

    @abstractmethod
    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        """See `Disk`."""

    async def is_named(self) -> bool:
        """Whether the path still names what is open here: a file may have been removed or replaced."""
        return await on_worker(self._pool, lambda: is_named(self.facts), OPEN_TIMEOUT_S) is True

    def within(self, job: OffloadedJob) -> JobDisk:
        return JobDisk(self, job)

    def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether a write of ours to these bytes has not completed yet."""
        return self._file.writes.touch(offset_bytes, length_bytes)

    def close(self, on_closed: Callable[[], None] = do_nothing) -> None:
        """No request of this disk may follow; those inside the kernel keep the descriptor until they end."""
        if self._closed:
            return
        self._closed = True

        def leave() -> None:
            self._file.leave()
            on_closed()

        self._pool.finish(leave)

    def close_here(self) -> None:
        """As `close`, on a worker: it is closed when this returns."""
        if not self._closed:
            self._closed = True
            self._file.leave()

    def _read_request(
        self, offset_bytes: int, length_bytes: int, on_done: Callable[[], None]
    ) -> Request[bytes | IoFailed] | IoFailed:
        if failed := self._refused(offset_bytes, length_bytes):
            return failed
        file = self._file

        def perform(buffer: AlignedBuffer) -> bytes | IoFailed:
            return answered(self._read, buffer, offset_bytes, length_bytes)

        file.enter()
        return self._issued(Request(perform, on_done=on_done, on_end=file.leave))

    def _read(self, buffer: AlignedBuffer, offset_bytes: int, length_bytes: int) -> bytes | IoFailed:
        file = self._file
        if self.must_be_named and not file.facts.is_block_device and not is_named(file.facts):
            return IoFailed(errno.ESTALE)
        with buffer.view(length_bytes) as view:
            if not file.facts.direct:
                os.posix_fadvise(file.fd, offset_bytes, length_bytes, os.POSIX_FADV_DONTNEED)
            got = self._kernel.read_into(file.fd, view, offset_bytes)
            return bytes(view) if got == length_bytes else IoFailed(errno.EMSGSIZE)

    def _write_request(
        self, offset_bytes: int, content: bytes, on_done: Callable[[], None]
    ) -> Request[IoFailed | None] | IoFailed:
        if failed := self._refused(offset_bytes, len(content)):
            return failed
        file = self._file
        token = file.writes.begin(offset_bytes, len(content), self._pool.name)
        if token is None:
            return IoFailed(errno.EBUSY, in_flight=True)

        def perform(buffer: AlignedBuffer) -> IoFailed | None:
            return answered(self._write, buffer, offset_bytes, content)

        def end() -> None:
            file.writes.end(token)
            file.leave()

        file.enter()
        return self._issued(Request(perform, on_done=on_done, on_end=end))

    def _write(self, buffer: AlignedBuffer, offset_bytes: int, content: bytes) -> IoFailed | None:
        with buffer.view(len(content)) as view:
            view[:] = content
            put = self._kernel.write_from(self._file.fd, view, offset_bytes)
            return None if put == len(content) else IoFailed(errno.EMSGSIZE)

    # --- for offloaded jobs, which are on a worker already ---

    def read_here(
        self, job: OffloadedJob, offset_bytes: int, length_bytes: int, timeout_s: float
    ) -> bytes | IoFailed:
        if failed := self._refused(offset_bytes, length_bytes):
            return failed
        self._file.enter()
        try:
            return job.request(timeout_s, self._read, job.buffer, offset_bytes, length_bytes)
        finally:
            self._file.leave()

    def write_here(
        self, job: OffloadedJob, offset_bytes: int, content: bytes, timeout_s: float
    ) -> IoFailed | None:
        if failed := self._refused(offset_bytes, len(content)):
            return failed
        file = self._file
        token = file.writes.begin(offset_bytes, len(content), self._pool.name)
        if token is None:
            return IoFailed(errno.EBUSY, in_flight=True)
        file.enter()
        try:
            return job.request(timeout_s, self._write, job.buffer, offset_bytes, content)
        finally:
            file.writes.end(token)
            file.leave()

    def _refused(self, offset_bytes: int, length_bytes: int) -> IoFailed | None:
        if self._closed:
            return IoFailed(errno.EBADF)
        aligned = offset_bytes % SECTOR_BYTES_MIN == 0 and length_bytes % SECTOR_BYTES_MIN == 0
        within = 0 <= offset_bytes <= OFFSET_BYTES_MAX - length_bytes
        return None if aligned and within and length_bytes > 0 else IoFailed(errno.EINVAL)

    def _issued(self, request: Request[T]) -> Request[T] | IoFailed:
        try:
            self._pool.submit(request)
        except PoolFull:
            request.on_end()
            return IoFailed(errno.EBUSY)
        return request

    def _answer(self, request: Request[T], is_write: bool) -> T | IoFailed:
        """The end of the caller's patience: whatever there is by now."""
        fate = self._pool.give_up(request)
        if fate is JobFate.COMPLETED:
            return request.result()
        return IoFailed(errno.ETIMEDOUT, in_flight=is_write and fate is JobFate.IN_FLIGHT)


class BlockingDisk(_Disk):
    """The `Disk` port for a thread of its own: an await blocks that thread, and nothing ever suspends."""

    async def _on_worker(self, issue: Issue[T], timeout_s: float, *, is_write: bool) -> T | IoFailed:
        done = threading.Event()
        request = issue(done.set)
        if isinstance(request, IoFailed):
            return request
        done.wait(timeout_s)
        return self._answer(request, is_write)

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        done = threading.Event()
        self._file.writes.when_settled(offset_bytes, length_bytes, done.set)
        done.wait()


class SuspendingDisk(_Disk):
    """The `Disk` port for asyncio. A cancelled caller has given up; its write stays accounted for."""

    async def _on_worker(self, issue: Issue[T], timeout_s: float, *, is_write: bool) -> T | IoFailed:
        done, wake = future_and_wake()
        request = issue(wake)
        if isinstance(request, IoFailed):
            return request
        try:
            await in_time(done, timeout_s)
        except asyncio.CancelledError:
            self._pool.give_up(request)
            raise
        return self._answer(request, is_write)

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        done, wake = future_and_wake()
        self._file.writes.when_settled(offset_bytes, length_bytes, wake)
        try:
            await done
        finally:
            self._file.writes.forget(wake)


class JobDisk:
    """The `Disk` port for an offloaded job, over a disk that stays open beyond it."""

    __slots__ = ("_disk", "_job")

    def __init__(self, disk: _Disk, job: OffloadedJob) -> None:
        self._disk = disk
        self._job = job

    @property
    def facts(self) -> DiskFacts:
        return self._disk.facts

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        return self._disk.read_here(self._job, offset_bytes, length_bytes, timeout_s)

    async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        return self._disk.write_here(self._job, offset_bytes, content, timeout_s)

    def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
        return self._disk.in_flight(offset_bytes, length_bytes)

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        # That may take for ever: not on a worker.
        await self._job.on_loop(lambda: self._disk.settled(offset_bytes, length_bytes))

    async def is_named(self) -> bool:
        return self._job.request(OPEN_TIMEOUT_S, is_named, self._disk.facts) is True

    def close(self) -> None:
        self._disk.close_here()


D = TypeVar("D", bound=_Disk)


def _open_request(
    path: str,
    writable: bool,
    exclusive: bool,
    kernel: Kernel,
    devices: InflightByDevice,
    on_done: Callable[[], None],
) -> Request[OpenFile | IoFailed]:
    def too_late(file: OpenFile | IoFailed) -> None:
        if isinstance(file, OpenFile):
            file.leave()

    return Request(
        lambda _: open_file(path, writable, exclusive, kernel, devices), on_done=on_done, undo=too_late
    )


def _opened(
    face: type[D], request: Request[OpenFile | IoFailed], pool: WorkerPool, kernel: Kernel
) -> D | IoFailed:
    if pool.give_up(request) is not JobFate.COMPLETED:
        return IoFailed(errno.ETIMEDOUT)
    file = request.result()
    return file if isinstance(file, IoFailed) else face(file, pool, kernel)


def open_blocking(
    path: str,
    pool: WorkerPool,
    *,
    writable: bool = True,
    exclusive: bool = False,
    timeout_s: float = OPEN_TIMEOUT_S,
    kernel: Kernel = REAL_KERNEL,
    devices: InflightByDevice = DEVICE_WRITES,
) -> BlockingDisk | IoFailed:
    """Open an existing file or block device on a worker: even that may hang."""
    done = threading.Event()
    request = _open_request(path, writable, exclusive, kernel, devices, done.set)
    pool.submit(request)
    done.wait(timeout_s)
    return _opened(BlockingDisk, request, pool, kernel)


async def open_suspending(
    path: str,
    pool: WorkerPool,
    *,
    writable: bool = True,
    exclusive: bool = False,
    timeout_s: float = OPEN_TIMEOUT_S,
    kernel: Kernel = REAL_KERNEL,
    devices: InflightByDevice = DEVICE_WRITES,
    job: Job | None = None,
) -> SuspendingDisk | IoFailed:
    """The `Disk` port for asyncio; `job` is the offloaded job that opens it, which gets its own of it by `Job.disk`."""
    if job is not None:
        file = job.request(timeout_s, open_file, path, writable, exclusive, kernel, devices)
        return file if isinstance(file, IoFailed) else SuspendingDisk(file, pool, kernel)
    done, wake = future_and_wake()
    request = _open_request(path, writable, exclusive, kernel, devices, wake)
    pool.submit(request)
    await in_time(done, timeout_s)
    return _opened(SuspendingDisk, request, pool, kernel)

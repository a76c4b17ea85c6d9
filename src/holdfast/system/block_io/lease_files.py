"""Where leases live, as a port: files in a directory, or areas on one path, opened for the `Disk` port.

A lease file appears whole or not at all: it is written under another name and then linked to its own. Two hosts that
make the same one at once end with one file, and nobody ever sees half of it:

    host 1   write .holdfast-x1 ── link to NAME: made
    host 2   write .holdfast-x2 ──────────────── link to NAME: exists: host 1's will do

Everything runs on the workers of the given pool; storage that hangs ends in `IoFailed(ETIMEDOUT)`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import Protocol

from holdfast.protocol.ports import Disk
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.answers import answered
from holdfast.system.block_io.disk import OPEN_TIMEOUT_S, SuspendingDisk, open_suspending
from holdfast.system.block_io.disk_file import DEVICE_WRITES, REAL_KERNEL, DiskFacts, Kernel
from holdfast.system.block_io.inflight_writes import InflightByDevice
from holdfast.system.block_io.offload import Job, Offload, PoolOffload
from holdfast.system.block_io.pool_calls import future_and_wake, on_worker
from holdfast.system.block_io.worker_pool import PoolFull, Request, WorkerPool

UNFINISHED_PREFIX = ".holdfast-"
"""Lease files that are being made; one that is an hour old was left by a crash."""
MAKE_TIMEOUT_S = 60.0
"""Writing a whole area, which may be slow where the storage allocates it."""
NAMES_MAX = 1_000_000
"""Entries of one directory that are looked at: above it somebody keeps something else there."""


class LeaseDisk(Disk, Protocol):
    """An open path."""

    @property
    def facts(self) -> DiskFacts: ...

    async def is_named(self) -> bool:
        """Whether the path still names what is open here: a file may have been removed or replaced."""

    def close(self) -> None: ...


class LeaseStorage(Offload, Protocol):
    """The port. `job` is the offloaded job that calls; without one it is called on the event loop."""

    async def open(self, path: str, *, writable: bool = True, job: Job | None = None) -> LeaseDisk | IoFailed:
        """For the event loop in any case: a job uses it by `Job.disk`."""

    async def make(self, path: str, content: bytes, *, like: str, job: Job | None = None) -> IoFailed | None:
        """A new file with that content, owned as `like` is; EEXIST if there is one already."""

    async def remove(self, facts: DiskFacts) -> IoFailed | None:
        """Take the name of an opened file away; ESTALE if its path leads to another one by now. Waits for as long as that
        takes: one that was given up could still take the name of a lease that somebody else holds by then; while it is under
        way it counts as a write of ours that may land.
        """

    async def names(self, directory: str) -> list[str] | IoFailed: ...


class SystemLeaseStorage(PoolOffload):
    """The kernel's own."""

    def __init__(
        self, pool: WorkerPool, *, kernel: Kernel = REAL_KERNEL, devices: InflightByDevice = DEVICE_WRITES
    ) -> None:
        super().__init__(pool)
        self._kernel = kernel
        self._devices = devices

    async def open(
        self, path: str, *, writable: bool = True, job: Job | None = None
    ) -> SuspendingDisk | IoFailed:
        return await open_suspending(
            path, self._pool, writable=writable, kernel=self._kernel, devices=self._devices, job=job
        )

    async def make(self, path: str, content: bytes, *, like: str, job: Job | None = None) -> IoFailed | None:
        failed = await on_worker(self._pool, lambda: _make(path, content, like), MAKE_TIMEOUT_S, job)
        return failed if isinstance(failed, IoFailed) else None

    async def remove(self, facts: DiskFacts) -> IoFailed | None:
        writes = self._devices.of(("name", facts.path))
        token = writes.begin(0, 1, self._pool.name)
        if token is None:
            return IoFailed(errno.EBUSY, in_flight=True)
        done, wake = future_and_wake()
        request = Request(lambda _: answered(_unlink, facts), on_done=wake, on_end=lambda: writes.end(token))
        try:
            self._pool.submit(request)
        except PoolFull:
            writes.end(token)
            return IoFailed(errno.EBUSY)
        await done
        return request.result()

    async def names(self, directory: str) -> list[str] | IoFailed:
        def look() -> list[str]:
            with os.scandir(directory) as entries:
                found = [entry.name for entry, _ in zip(entries, range(NAMES_MAX + 1), strict=False)]
            if len(found) > NAMES_MAX:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return sorted(found)

        return await on_worker(self._pool, look, OPEN_TIMEOUT_S)


def _make(path: str, content: bytes, like: str) -> None:
    directory = os.path.dirname(path)
    model = os.stat(like)
    temporary = os.path.join(directory, UNFINISHED_PREFIX + secrets.token_hex(8))
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, stat.S_IMODE(model.st_mode) & 0o666)
            if (model.st_uid, model.st_gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, model.st_uid, model.st_gid)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.link(temporary, path)
        _sync_directory(directory)
    finally:
        os.unlink(temporary)


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink(facts: DiskFacts) -> None:
    """In one and the same directory, whatever is mounted over its path meanwhile, or unmounted from there."""
    place, name = os.path.split(facts.path)
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY)
    try:
        found = os.stat(name, dir_fd=directory)
        if (found.st_dev, found.st_ino) != (facts.file_system, facts.inode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)

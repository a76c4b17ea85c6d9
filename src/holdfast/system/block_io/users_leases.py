"""Storage of leases at places that others name, opened only where their user may open it: the daemon is root, and may write
everywhere.

What that user may open is opened twice, and the second time has to be the same file: the rights are checked by the kernel
when the user's own descriptor is made, and requests go through the daemon's.
"""

from __future__ import annotations

import errno
import os
import stat

from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.disk import OPEN_TIMEOUT_S, SuspendingDisk
from holdfast.system.block_io.disk_file import DEVICE_WRITES, REAL_KERNEL, DiskFacts, Kernel
from holdfast.system.block_io.inflight_writes import InflightByDevice
from holdfast.system.block_io.lease_files import SystemLeaseStorage
from holdfast.system.block_io.offload import Job
from holdfast.system.block_io.pool_calls import on_worker
from holdfast.system.block_io.worker_pool import WorkerPool
from holdfast.system.files import ofd_lock
from holdfast.system.host.peer_rights import Rights, open_as


class UsersLeaseStorage(SystemLeaseStorage):
    """`rights`: of the user for whom it is opened."""

    def __init__(
        self,
        pool: WorkerPool,
        rights: Rights,
        *,
        kernel: Kernel = REAL_KERNEL,
        devices: InflightByDevice = DEVICE_WRITES,
    ) -> None:
        super().__init__(pool, kernel=kernel, devices=devices)
        self._workers = pool
        self._rights = rights

    async def open(
        self, path: str, *, writable: bool = True, job: Job | None = None
    ) -> SuspendingDisk | IoFailed:
        """EACCES where the user may not open it; ESTALE if the path leads to another file meanwhile."""
        theirs = await on_worker(
            self._workers, lambda: self._open_as_user(path, writable), OPEN_TIMEOUT_S, job
        )
        if isinstance(theirs, IoFailed):
            return theirs
        try:
            disk = await super().open(path, writable=writable, job=job)
            if isinstance(disk, SuspendingDisk) and not _is_same(theirs, disk.facts):
                disk.close()
                return IoFailed(errno.ESTALE)
            return disk
        finally:
            os.close(theirs)

    def _open_as_user(self, path: str, writable: bool) -> int:
        opened = open_as(self._rights, path, write=writable)
        if isinstance(opened, ofd_lock.IoFailed):
            raise OSError(opened.errno, os.strerror(opened.errno))
        return opened.fd


def _is_same(fd: int, facts: DiskFacts) -> bool:
    found = os.fstat(fd)
    if stat.S_ISBLK(found.st_mode):
        return facts.is_block_device and found.st_rdev == facts.file_system
    return (found.st_dev, found.st_ino) == (facts.file_system, facts.inode)

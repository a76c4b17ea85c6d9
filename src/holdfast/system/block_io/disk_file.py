"""An open path on shared storage: how it is opened, what is found out about it, when it may be closed.

O_DIRECT, because what another host wrote must be read from the disk and not from our page cache; O_DSYNC, because a
write counts when it is on stable storage. A file system that refuses O_DIRECT when the file is opened (ramfs, some
FUSE file systems) gets O_DSYNC alone, and `DiskFacts.direct` says so: good enough for a test or for one host, while on
storage that several hosts share such a file system may show each host its own past.

A descriptor is closed by its last user. A request that hangs inside the kernel is one, long after `close`: were the
number given to another file meanwhile, a request not yet begun would go there.

Only regular files and block devices are opened (`checked_open`): somebody who may write in a directory of leases could make
the daemon open a watchdog.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import threading
from dataclasses import dataclass
from typing import Protocol

from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.inflight_writes import InflightByDevice, InflightWrites
from holdfast.system.files.checked_open import NotLockable, pinned

_BLKSSZGET = 0x1268  # linux/fs.h
_INT = struct.Struct("i")


class Kernel(Protocol):
    """The system calls, so that a test can delay and fail them."""

    def open(self, path: str, flags: int) -> int: ...
    def read_into(self, fd: int, buffer: memoryview, offset_bytes: int) -> int: ...
    def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int: ...


class RealKernel:
    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags)

    def read_into(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        return os.preadv(fd, [buffer], offset_bytes)

    def write_from(self, fd: int, buffer: memoryview, offset_bytes: int) -> int:
        return os.pwritev(fd, [buffer], offset_bytes)


REAL_KERNEL = RealKernel()
DEVICE_WRITES = InflightByDevice()
"""Writes in flight are the process's, so is their memory; a test that is several hosts brings its own."""


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What was found when the path was opened."""

    path: str
    direct: bool
    is_block_device: bool
    logical_sector_bytes: int  # of a block device; 0 for a file, whose file system doesn't say
    size_bytes: int
    file_system: int = 0
    """The device number of the file system that a file is on, or of the block device itself."""
    inode: int = 0

    @property
    def how(self) -> str:
        return "O_DIRECT" if self.direct else "O_DSYNC through the page cache: O_DIRECT is refused here"


class OpenFile:
    """A descriptor that is closed when nobody needs it: not while a request is inside the kernel with it."""

    def __init__(self, fd: int, facts: DiskFacts, writes: InflightWrites) -> None:
        self.fd = fd
        self.facts = facts
        self.writes = writes
        self._lock = threading.Lock()
        self._users = 1

    def enter(self) -> None:
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """On a worker: closing may wait for storage, as a file system in user space is asked about it."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            # Its error adds nothing: each write has reported its own result.
            with contextlib.suppress(OSError):
                os.close(self.fd)


def open_file(
    path: str, writable: bool, exclusive: bool, kernel: Kernel, devices: InflightByDevice
) -> OpenFile | IoFailed:
    """Open an existing path. `exclusive`: refuse (EBUSY) a block device that is mounted or part of another."""
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_DSYNC | os.O_CLOEXEC
    flags |= os.O_EXCL if exclusive else 0
    try:
        with pinned(path) as pin:
            direct = True
            try:
                fd = kernel.open(pin, flags | os.O_DIRECT)
            except OSError as e:
                if e.errno != errno.EINVAL:
                    raise
                direct = False
                fd = kernel.open(pin, flags)
        try:
            found = os.fstat(fd)
            is_block = stat.S_ISBLK(found.st_mode)
            sector = 0
            if is_block:
                (sector,) = _INT.unpack(fcntl.ioctl(fd, _BLKSSZGET, bytes(_INT.size)))
            size = os.lseek(fd, 0, os.SEEK_END)
            device = found.st_rdev if is_block else found.st_dev
            facts = DiskFacts(path, direct, is_block, sector, size, device, found.st_ino)
        except BaseException:
            os.close(fd)
            raise
    except NotLockable:
        return IoFailed(errno.ENOTBLK)
    except OSError as e:
        return IoFailed(e.errno or errno.EIO)
    identity = ("device", found.st_rdev) if is_block else ("file", found.st_dev, found.st_ino)
    return OpenFile(fd, facts, devices.of(identity))


def is_named(facts: DiskFacts) -> bool:
    """Whether the path still names what was opened: a file may have been removed or replaced; raises OSError."""
    found = os.stat(facts.path)
    device = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    return (device, found.st_ino) == (facts.file_system, facts.inode)

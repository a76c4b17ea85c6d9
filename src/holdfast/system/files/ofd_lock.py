"""Byte-range locks of an open file description, on byte 0, length 1, of a lock's file.

Open-file-description (OFD) locks (fcntl(2)) belong to the descriptor, not to the process: they exclude and are excluded
by the POSIX record locks of a real virtlockd on the same byte, they exclude a second open of the same inode in
our own process, closing some other descriptor of the file does not drop them, and they are
kept as long as any copy of the descriptor lives: across exec, and in systemd's descriptor store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from holdfast.model import Mode
from holdfast.system.files.canonical_path import canonical_path
from holdfast.system.files.checked_open import NotLockable, open_lockable
from holdfast.system.files.directory_writers import Writers, writers_of

LOCK_START, LOCK_LENGTH = 0, 1
LOCK_FILE_MODE = 0o600
LOCKSPACE_DIRECTORY_MODE = 0o700

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of <fcntl.h> on 64-bit Linux
_KERNEL_TYPE = {Mode.SHARED: fcntl.F_RDLCK, Mode.EXCLUSIVE: fcntl.F_WRLCK}
_PACKED = {m: _FLOCK.pack(t, os.SEEK_SET, LOCK_START, LOCK_LENGTH, 0) for m, t in _KERNEL_TYPE.items()}

_UNLOCKED = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, LOCK_START, LOCK_LENGTH, 0)


def packed_lock(mode: Mode | None) -> bytes:
    """The kernel's request for a lock in this mode, or for none (`struct flock`)."""
    return _UNLOCKED if mode is None else _PACKED[mode]


_LINK_IN_PLACE = "a symbolic link has the name of the lock file; find out who made it, and remove it"

F_OFD_GETLK, F_OFD_SETLK = 36, 37  # <fcntl.h>; named in Python's fcntl only where libc has them


class FileKey(NamedTuple):
    """Which file, whatever its path: device and inode, or (-1, device number) for a block device."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class IoFailed:
    """A system call on the file failed: an answer, not an exception."""

    what: str
    path: str
    errno: int
    reason: str = ""
    """Instead of the text of the error number, where that says too little."""

    def __str__(self) -> str:
        return f"{self.what} {self.path}: {self.reason or os.strerror(self.errno)}"


class OpenedFile(NamedTuple):
    fd: int
    key: FileKey
    disk: FileKey | None
    """The disk behind the resource's name, where that is another file than the lock file."""
    canonical: str
    """And its canonical path; empty where it is not known."""


def close_opened(opened: OpenedFile | IoFailed) -> None:
    """What was opened for somebody who does not need it, or not any more."""
    if isinstance(opened, OpenedFile):
        os.close(opened.fd)


class ForeignLock(NamedTuple):
    """Who the kernel says is in the way; pid is None for a lock of a file description or another host."""

    mode: Mode
    pid: int | None
    free: bool = False
    """It was in the way a moment ago and is not any more."""


class LockFiles(Protocol):
    """The port: every call may block on the file system that the path is on."""

    def open(self, path: str, *, create: bool, disk: str = "", follow: bool = True) -> OpenedFile | IoFailed:
        """Only regular files and block devices are opened. `follow` False: a symbolic link at the end of the path is an
        ELOOP, as it always is for a file that may be made: its name is ours, and a link there is not.
        """

    def lock(self, fd: int, mode: Mode, path: str) -> ForeignLock | IoFailed | None:
        """Take or convert the lock without waiting; None if it is ours now."""

    def unlock(self, fd: int) -> None:
        """Let go at once: closing is not enough while a copy of the descriptor lives (descriptor store, a child)."""

    def same_file(self, fd: int, path: str) -> bool:
        """Whether the path still names the lock file that `fd` has open, itself and not by a symbolic link."""

    def read(self, fd: int, length: int) -> bytes: ...

    def write(self, fd: int, raw: bytes, offset: int, *, truncate: bool) -> None: ...

    def size(self, fd: int) -> int: ...

    def remove(self, path: str) -> IoFailed | None:
        """Unlink; a file that is not there is fine."""

    def names(self, directory: str) -> list[str]:
        """What is in a directory; nothing if it can't be read."""

    def close(self, fd: int) -> None: ...

    def writers(self, directory: str) -> Writers:
        """Who besides the daemon may make and remove files there."""


def key_of(status: os.stat_result) -> FileKey:
    """What makes two paths one disk: for a block device its number, else its inode on its file system."""
    # tuple.__new__ rather than the class: this is once per acquire.
    if stat.S_ISBLK(status.st_mode):
        return tuple.__new__(FileKey, (-1, status.st_rdev))
    return tuple.__new__(FileKey, (status.st_dev, status.st_ino))


class SystemLockFiles:
    """The kernel's own."""

    def open(self, path: str, *, create: bool, disk: str = "", follow: bool = True) -> OpenedFile | IoFailed:
        what = "Unable to open/create resource" if create else "Unable to open resource"
        try:
            fd, status = open_lockable(path, create_mode=LOCK_FILE_MODE if create else None, follow=follow)
        except NotLockable as e:
            return IoFailed(what, path, e.errno or errno.EINVAL, str(e.strerror))
        except OSError as e:
            reason = _LINK_IN_PLACE if create and e.errno == errno.ELOOP else ""
            return IoFailed(what, path, e.errno or errno.EIO, reason)
        except ValueError:  # a NUL in the path
            return IoFailed(what, path, errno.EINVAL)
        disk_key, canonical = None, ""
        if disk:
            try:
                disk_key, canonical = key_of(os.stat(disk)), canonical_path(disk)
            except (OSError, ValueError):
                disk_key = None  # the lock file excludes all the same; libvirt will miss the disk itself
        return tuple.__new__(OpenedFile, (fd, key_of(status), disk_key, canonical))

    def lock(self, fd: int, mode: Mode, path: str) -> ForeignLock | IoFailed | None:
        try:
            fcntl.fcntl(fd, F_OFD_SETLK, _PACKED[mode])
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EACCES):
                return query_lock(fd, mode)
            return IoFailed("Unable to acquire lock on", path, e.errno or errno.EIO)
        return None

    def unlock(self, fd: int) -> None:
        unlock(fd)

    def same_file(self, fd: int, path: str) -> bool:
        try:
            here, there = os.fstat(fd), os.lstat(path)
        except OSError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def read(self, fd: int, length: int) -> bytes:
        return os.pread(fd, length, 0)

    def write(self, fd: int, raw: bytes, offset: int, *, truncate: bool) -> None:
        if truncate:
            os.ftruncate(fd, 0)
        os.pwrite(fd, raw, offset)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def remove(self, path: str) -> IoFailed | None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return None
        except OSError as e:
            return IoFailed("Unable to delete lockspace resource", path, e.errno or errno.EIO)
        return None

    def names(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except OSError:
            return []

    def close(self, fd: int) -> None:
        os.close(fd)

    def writers(self, directory: str) -> Writers:
        return writers_of(directory)


class LockedFile(NamedTuple):
    """A lock of a file description, as the kernel shows it through one of its descriptors."""

    path: str
    key: FileKey
    mode: Mode


def path_of_descriptor(fd: int) -> str:
    """The path that a descriptor was opened by; empty for a socket or a file that is gone. Touches no storage."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
    return path if path.startswith("/") and not path.endswith(" (deleted)") else ""


def locked_file(fd: int, path: str) -> LockedFile | None:
    """The lock of the lock manager (byte 0) that a descriptor carries; None if it carries none. May block on storage."""
    try:
        key = key_of(os.fstat(fd))
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as f:
            locks = [line.split() for line in f if line.startswith("lock:")]
    except OSError:
        return None
    # lock: 1: OFDLCK ADVISORY WRITE -1 00:2a:123 0 0
    for words in locks:
        if len(words) >= 9 and words[2] == "OFDLCK" and words[-2:] == ["0", "0"]:
            return LockedFile(path, key, Mode.EXCLUSIVE if words[4] == "WRITE" else Mode.SHARED)
    return None


def unlock(fd: int) -> None:
    """Take the lock off the open file description, whatever other descriptors of it there are; raises OSError."""
    fcntl.fcntl(fd, F_OFD_SETLK, _UNLOCKED)


def query_lock(fd: int, mode: Mode) -> ForeignLock:
    """Whose lock would refuse `mode` on this file now, as far as the kernel says (F_OFD_GETLK)."""
    try:
        answer = fcntl.fcntl(fd, F_OFD_GETLK, _PACKED[mode])
    except OSError:
        return ForeignLock(Mode.EXCLUSIVE, None)
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    # F_UNLCK: it went away between the two calls.  Still an honest refusal; the caller may try again.
    held = Mode.SHARED if kind == fcntl.F_RDLCK else Mode.EXCLUSIVE
    return ForeignLock(held, pid if kind != fcntl.F_UNLCK and pid > 0 else None, kind == fcntl.F_UNLCK)

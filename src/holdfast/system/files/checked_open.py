"""Opens a disk or a lock file, and nothing else: opening some other thing may already do harm.

/dev/watchdog is armed by being opened, a tape rewinds, a modem's line goes up, /proc/PID/mem is another process. So what the
path leads to is pinned first without opening it (O_PATH), examined, and then opened by that pin: a name that is
exchanged in between changes nothing.

    open(path, O_PATH) ── fstat: a regular file or a block device? ── open(/proc/self/fd/N)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator

from holdfast.system.files.regular_file import kind_of

_PIN = os.O_PATH | os.O_CLOEXEC
# O_NONBLOCK: opening must not wait for anybody (file lease, medium of a drive).
_OPEN = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
CREATE_ATTEMPTS_MAX = 100
"""Times that a file may come and go between two system calls before that is an error."""

_KERNEL_FILE_SYSTEMS = frozenset(
    (
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0x62656570,  # configfs
        0xCAFE4A11,  # bpf
        0xDE5E81E4,  # efivarfs
        0xF97CFF8C,  # selinuxfs
        0x42494E4D,  # binfmt_misc
        0x6165676C,  # pstore
        0x6E736673,  # nsfs
        0x65735543,  # fusectl
    )
)
"""<linux/magic.h>: their regular files are the kernel's own controls."""

_libc = ctypes.CDLL(None, use_errno=True)


class NotLockable(OSError):
    """Something else than a file or block device; `strerror` says what."""


def open_lockable(
    path: str, *, create_mode: int | None = None, follow: bool = True, access: int = os.O_RDWR
) -> tuple[int, os.stat_result]:
    """A descriptor and what it is; raises OSError, `NotLockable` among them, and ValueError for a NUL in the path.

    `create_mode`: a file that is not there is made with it. `follow` False: a symbolic link at the end of the path is an
    ELOOP; so it is for a file that may be made.
    """
    pin_flags = _PIN if follow and create_mode is None else _PIN | os.O_NOFOLLOW
    for _ in range(CREATE_ATTEMPTS_MAX):
        try:
            pin = os.open(path, pin_flags)
        except FileNotFoundError:
            if create_mode is None:
                raise
        else:
            try:
                status = _require_disk(pin)
                return os.open(f"/proc/self/fd/{pin}", access | _OPEN), status
            finally:
                os.close(pin)
        try:
            fd = os.open(path, access | _OPEN | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, create_mode)
        except FileExistsError:
            continue  # somebody else has made it meanwhile
        return fd, os.fstat(fd)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@contextlib.contextmanager
def pinned(path: str) -> Iterator[str]:
    """A path that leads to what this one leads to now, a file or block device, whatever becomes of its name. Raises as
    `open_lockable`.
    """
    pin = os.open(path, _PIN)
    try:
        _require_disk(pin)
        yield f"/proc/self/fd/{pin}"
    finally:
        os.close(pin)


def _require_disk(pin: int) -> os.stat_result:
    status = os.fstat(pin)
    mode = status.st_mode
    if stat.S_ISBLK(mode):
        return status
    if stat.S_ISREG(mode):
        # The kernel's own files have no blocks; nor have an empty lock file and an empty disk.
        if status.st_blocks or _file_system(pin) not in _KERNEL_FILE_SYSTEMS:
            return status
        raise NotLockable(errno.EINVAL, "it is one of the kernel's own files, not a disk")
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise NotLockable(
        errno.EINVAL, f"it is {kind_of(mode)}; only regular files and block devices can be locked"
    )


def _file_system(fd: int) -> int:
    """The magic number of the file system (statfs(2)); 0 if that fails."""
    raw = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, raw) != 0:
        return 0
    return ctypes.c_long.from_buffer(raw).value & 0xFFFFFFFF

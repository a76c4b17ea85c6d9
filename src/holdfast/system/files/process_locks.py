"""Both kinds of record locks on byte 0, as the kernel's error numbers: POSIX locks of this process, which end when it closes
any descriptor of the file, and those of an open file description (`ofd_lock`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from holdfast.model import Mode
from holdfast.system.files.ofd_lock import F_OFD_SETLK, packed_lock


class KernelRecordLocks:
    """The kernel's own. Each call returns 0 or an error number, and waits for no lock."""

    def posix(self, fd: int, mode: Mode | None) -> int:
        return _set(fd, fcntl.F_SETLK, mode)

    def ofd(self, fd: int, mode: Mode | None) -> int:
        return _set(fd, F_OFD_SETLK, mode)

    def close(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            os.close(fd)


def _set(fd: int, command: int, mode: Mode | None) -> int:
    try:
        fcntl.fcntl(fd, command, packed_lock(mode))
    except OSError as e:
        return e.errno or errno.EIO
    return 0

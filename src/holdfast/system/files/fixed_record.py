"""A small record that is written in place: once its file is there, a full disk does not keep it from being written.

No fsync: it must survive the daemon, not the host. A write of less than a page goes into the page cache whole or not at
all, whenever the process is killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Protocol

from holdfast.system.files.regular_file import Unreadable, open_regular, read_regular

RECORD_BYTES_MAX = 512
"""Within one page of any system."""


class FixedRecord(Protocol):
    """The port."""

    def read(self) -> bytes:
        """What was written last; empty if there is nothing, or nothing that can be read."""

    def write(self, raw: bytes) -> None:
        """Each time as many bytes as before, `RECORD_BYTES_MAX` at most; raises OSError."""


class SystemFixedRecord:
    """A file at a path, mode 0600; it is made by the first write."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def read(self) -> bytes:
        found = read_regular(self._path, RECORD_BYTES_MAX)
        return b"" if isinstance(found, Unreadable) else found

    def write(self, raw: bytes) -> None:
        if self._fd < 0:
            self._fd = open_regular(self._path, os.O_RDWR | os.O_CREAT)
        if os.pwrite(self._fd, raw, 0) != len(raw):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __del__(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)

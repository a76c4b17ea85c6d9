"""A file that only grows, and is now and then replaced whole: what the journal is written to.

No fsync: the journal must survive the daemon, not the host; after a reboot its owners are gone anyway.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Protocol


class AppendFile(Protocol):
    """The port."""

    size_bytes: int

    def read(self) -> bytes: ...

    def append(self, raw: bytes) -> None:
        """All of `raw` or nothing; raises OSError."""

    def replace(self, raw: bytes) -> None:
        """Atomically make `raw` the whole content; raises OSError and leaves the old content."""


class SystemAppendFile:
    """A file at a path, mode 0600."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size_bytes = os.fstat(self._fd).st_size

    def read(self) -> bytes:
        parts = []
        offset = 0
        while part := os.pread(self._fd, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def append(self, raw: bytes) -> None:
        try:
            written = os.write(self._fd, raw)
        except OSError:
            self._cut()
            raise
        if written != len(raw):
            self._cut()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a short write means just that
        self.size_bytes += written

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.size_bytes)

    def replace(self, raw: bytes) -> None:
        temporary = self.path + ".new"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(raw)
            while view:
                view = view[os.write(fd, view) :]
            os.rename(temporary, self.path)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        os.close(self._fd)
        self._fd = fd
        self.size_bytes = len(raw)

"""A file that only grows, and is now and then replaced whole: what the journal is written to.

No fsync: the journal must survive the daemon, not the host; after a reboot its owners are gone anyway.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Protocol

from holdfast.system.files.regular_file import (
    NotAFile,
    create_beside,
    open_regular,
    require_regular,
    write_all,
)
from holdfast.system.files.spare_room import SpareRoom


class AppendFile(Protocol):
    """The port."""

    size_bytes: int
    is_short: bool
    """Whether the room that is kept back for what is urgent is used up, or a part of it: the disk is full."""

    def read(self) -> bytes:
        """The whole content; raises OSError if it can't be read, which is not the same as empty."""

    def append(self, raw: bytes, *, urgent: bool = False) -> None:
        """All of `raw` or nothing; raises OSError. What is urgent may use the room that is kept back."""

    def replace(self, raw: bytes) -> None:
        """Atomically make `raw` the whole content; raises OSError and leaves the old content. It counts as urgent."""


class SystemAppendFile:
    """A file at a path, mode 0600. As long as something else than a file has the path, every call fails and says so;
    nothing is put in its place: an admin may have moved the file elsewhere.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._trouble: NotAFile | None = None
        self.size_bytes = 0
        self.is_short = False
        self._spare = SpareRoom(f"{path}.spare")
        try:
            self._fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self.size_bytes = os.fstat(self._fd).st_size
        except NotAFile as e:
            self._trouble = e
        self._spare.open()

    def read(self) -> bytes:
        self._check()
        parts = []
        offset = 0
        while part := os.pread(self._fd, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _check(self) -> None:
        if self._trouble is not None:
            raise NotAFile(*self._trouble.args)

    def append(self, raw: bytes, *, urgent: bool = False) -> None:
        self._check()
        while True:
            try:
                self._append(raw)
                break
            except OSError as e:
                if not (urgent and is_full(e) and self._spare.give(len(raw))):
                    raise
        self._keep_back()

    def _append(self, raw: bytes) -> None:
        try:
            written = os.write(self._fd, raw)
        except OSError:
            self._cut()
            raise
        if written != len(raw):
            self._cut()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a short write means just that
        self.size_bytes += written

    def _keep_back(self) -> None:
        self._spare.fill()
        # A file system on which nothing can be kept back is not full for that.
        self.is_short = self._spare.is_full and not self._spare.is_whole

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.size_bytes)

    def replace(self, raw: bytes) -> None:
        require_regular(self.path)
        temporary = self.path + ".new"
        while True:
            fd = create_beside(temporary, os.O_RDWR | os.O_APPEND)
            try:
                write_all(fd, raw)
                os.rename(temporary, self.path)
                break
            except OSError as e:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                if not (is_full(e) and self._spare.give(len(raw))):
                    raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._trouble = None
        self.size_bytes = len(raw)
        self._keep_back()


def is_full(error: OSError) -> bool:
    """Whether it says that there is no room, and more of it would help."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)

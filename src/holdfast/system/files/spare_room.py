"""Room that is kept back on a file system for what must be written although it is full.

It is a file of its own whose bytes are allocated. A writer makes it shorter first, and uses what that gives
back; it grows again as soon as the file system has room. Others may be quicker to take what was given back: then there is
less of it, and nothing is promised.
"""

from __future__ import annotations

import errno
import os

from holdfast.system.files.regular_file import open_regular

SPARE_BYTES = 64 << 10
"""Some three hundred suspends and resumes of one disk; little of any /run."""
SHARE = 4
"""At most one part in so many of the whole file system."""
BLOCK_BYTES = 4096
"""Freed by whole blocks, whatever is needed."""


class SpareRoom:
    """At a path, mode 0600. Never raises: without a file there is no room to give."""

    def __init__(self, path: str, spare_bytes: int = SPARE_BYTES) -> None:
        self._path = path
        self._wanted_bytes = spare_bytes
        self._fd = -1
        self.left_bytes = 0
        self.is_full = False
        """Whether the file system had no room for what is missing."""

    @property
    def is_whole(self) -> bool:
        return self.left_bytes >= self._wanted_bytes

    def open(self) -> None:
        """What an earlier program has kept back counts."""
        try:
            self._fd = open_regular(self._path, os.O_RDWR | os.O_CREAT)
            self.left_bytes = os.fstat(self._fd).st_size
            whole = os.fstatvfs(self._fd)
        except OSError:
            return
        share_bytes = whole.f_blocks * whole.f_frsize // SHARE
        self._wanted_bytes = min(self._wanted_bytes, share_bytes // BLOCK_BYTES * BLOCK_BYTES)

    def give(self, need_bytes: int) -> bool:
        """Whether at least a part of that was given back to the file system."""
        if self._fd < 0 or not self.left_bytes:
            return False
        blocks = -(-need_bytes // BLOCK_BYTES)
        try:
            self._resize(max(0, self.left_bytes - blocks * BLOCK_BYTES))
        except OSError:
            return False
        return True

    def fill(self) -> None:
        """Keep back what is missing, if there is room for it."""
        if self.is_whole or self._fd < 0:
            return
        try:
            os.posix_fallocate(self._fd, 0, self._wanted_bytes)
            self.left_bytes, self.is_full = self._wanted_bytes, False
        except OSError as e:
            self.is_full = e.errno in (errno.ENOSPC, errno.EDQUOT)

    def _resize(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)
        self.left_bytes = size_bytes

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

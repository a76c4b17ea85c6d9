"""A small file that is replaced whole and survives a power cut: what a host has to remember of itself."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Protocol

from holdfast.system.regular_file import NotAFile, open_regular, require_regular

log = logging.getLogger(__name__)

MEMORY_BYTES_MAX = 1 << 16


class Memory(Protocol):
    """The port."""

    def read(self) -> bytes:
        """The content; empty if there is none, or none that can be read."""

    def replace(self, raw: bytes) -> None:
        """Make it the content, on stable storage; raises OSError and leaves the old content."""


class MemoryFile:
    """A file at a path on local storage, mode 0600."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> bytes:
        try:
            with open(open_regular(self._path, os.O_RDONLY), "rb") as f:
                return f.read(MEMORY_BYTES_MAX)
        except NotAFile as e:
            log.error("%s", e.strerror)
        except OSError:
            pass
        return b""

    def replace(self, raw: bytes) -> None:
        require_regular(self._path)
        temporary = self._path + ".new"
        fd = open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            try:
                os.write(fd, raw)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        directory = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def append_line(path: str, line: str) -> None:
    """One line more, on stable storage; raises OSError."""
    fd = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, line.encode("utf-8", "replace") + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)

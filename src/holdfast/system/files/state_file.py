"""A small file that is replaced whole and survives a power cut: what a host has to remember of itself."""

from __future__ import annotations

import errno
import logging
import os
from typing import Protocol

from holdfast.system.files.regular_file import (
    Unreadable,
    open_regular,
    read_regular,
    replace_regular,
    require_regular,
    write_all,
)

log = logging.getLogger(__name__)

MEMORY_BYTES_MAX = 1 << 16
RECORD_BYTES_MAX = 16 << 20


class StatePort(Protocol):
    """The port."""

    def read(self) -> bytes:
        """The content; empty if there is none, or none that can be read."""

    def replace(self, raw: bytes) -> None:
        """Make it the content, on stable storage; raises OSError and leaves the old content."""


class StateFile:
    """A file at a path on local storage, mode 0600."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> bytes:
        found = read_regular(self._path, MEMORY_BYTES_MAX)
        if not isinstance(found, Unreadable):
            return found
        if not found.missing:
            log.error("%s can't be read: %s", self._path, found.reason)
        return b""

    def replace(self, raw: bytes) -> None:
        require_regular(self._path)
        replace_regular(self._path, raw, durable=True)


class RecordFile(StateFile):
    """One with a list in it. That it can't be read is no proof that it is empty."""

    def read(self) -> bytes:
        """The content; empty if there is no file. Raises OSError."""
        found = read_regular(self._path, RECORD_BYTES_MAX)
        if not isinstance(found, Unreadable):
            return found
        if found.missing:
            return b""
        raise OSError(errno.EIO, f"{self._path} can't be read: {found.reason}")


def append_line(path: str, line: str) -> None:
    """One line more, on stable storage; raises OSError."""
    fd = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        write_all(fd, line.encode("utf-8", "replace") + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)

"""A small file that is replaced whole and survives a power cut: what a host has to remember of itself."""

from __future__ import annotations

import contextlib
import os
from typing import Protocol

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
            with open(self._path, "rb") as f:
                return f.read(MEMORY_BYTES_MAX)
        except OSError:
            return b""

    def replace(self, raw: bytes) -> None:
        temporary = self._path + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
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
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode("utf-8", "replace") + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)

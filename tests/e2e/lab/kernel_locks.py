"""The kernel's word on who may write: the record lock on byte 0 of a file.

Whatever a lock daemon believes, another host is kept out by this lock alone.  `probe` asks for it without
taking it, and works for POSIX and open-file-description locks alike.  `Waiter` proves the absence of a gap:
it blocks on the lock, and the kernel would hand it over at the first moment at which nobody holds it.
"""

import fcntl
import hashlib
import os
import select
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.e2e.lab.polling import until

Mode = Literal["read", "write"]

# struct flock: type, whence, start, length, pid
FLOCK = "hhqqi4x"

WAIT_FOR_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
    print("granted", flush=True)
    sys.stdin.read()
"""


def hashed_name(path: str) -> str:
    """The name under which libvirt (and Holdfast's lock directory) files the lock of a disk path."""
    return hashlib.sha256(path.encode()).hexdigest()


def probe(file: Path) -> Mode | None:
    """Which lock somebody holds on byte 0 of the file; None when nobody does, or the file doesn't exist."""
    try:
        fd = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        answer = struct.unpack(FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question))
    finally:
        os.close(fd)
    kinds: dict[int, Mode | None] = {fcntl.F_UNLCK: None, fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write"}
    return kinds[answer[0]]


class Waiter:
    """A stranger that waits for the lock and gets it at the first moment it is free."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Waiter":
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", WAIT_FOR_LOCK, str(self._file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        until(lambda: self.is_waiting or self.was_granted, f"a waiter to queue for the lock on {self._file}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    @property
    def is_waiting(self) -> bool:
        """Whether it is queued in the kernel right now."""
        assert self._process is not None
        words = (line.split() for line in Path("/proc/locks").read_text().splitlines())
        return any(word[1] == "->" and word[5] == str(self._process.pid) for word in words)

    @property
    def was_granted(self) -> bool:
        """Whether there was a moment at which nobody held the lock."""
        assert self._process is not None and self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

"""The third reader: what a guest writes on the volume, read on the disk outside, behind the back of both hosts.

The guest (tests/e2e/lab/guest.S) adds one to a counter 18 times a second. Two guests on the volume would each write a
counter of their own, so that what is read goes back; one that booted again has counted a boot.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from lab.fencing.guests import LAB

MAGIC = b"LHB2"
BLOCK = 4096
EVERY_S = 0.05


@dataclass(frozen=True)
class Record:
    """Zeros: no guest has written yet."""

    count: int = 0
    boots: int = 0


def boot_sector(place: Path) -> bytes:
    """The guest's, assembled from its source."""
    source = LAB.parent / "tests" / "e2e" / "lab" / "guest.S"
    made, linked = place / "guest.o", place / "guest.bin"
    subprocess.run(["as", "--32", "-o", made, source], check=True)
    subprocess.run(
        ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", linked, made], check=True
    )
    return linked.read_bytes()


class Observer:
    """Reads all the time, in a thread, until it is closed."""

    def __init__(self, disk: Path, offset_bytes: int) -> None:
        self._fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
        self._at = offset_bytes
        self._buffer = mmap.mmap(-1, BLOCK)
        self._ends = threading.Event()
        self.last = Record()
        self.went_back: list[tuple[Record, Record]] = []
        """Records of which the second was read after the first, and is older."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends.wait(EVERY_S):
            found = self._read()
            before = self.last
            if (found.boots, found.count) < (before.boots, before.count):
                self.went_back.append((before, found))
            self.last = found

    def _read(self) -> Record:
        os.preadv(self._fd, [self._buffer], self._at)
        magic, count, boots = struct.unpack("<4sII", self._buffer[512:524])
        return Record(count, boots) if magic == MAGIC else Record()

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        os.close(self._fd)

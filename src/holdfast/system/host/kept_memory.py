"""Memory that outlives this process: a file without a name, whose descriptor the next daemon gets.

What a process writes there is there after SIGKILL, without a system call for each write. A reboot ends it, as it ends the
sockets that it is about.
"""

from __future__ import annotations

import contextlib
import mmap
import os


class KeptMemory:
    """`raw` is shared by all processes that have `fd`. `was_there`: an earlier daemon has written it."""

    def __init__(self, size_bytes: int, inherited_fd: int = -1) -> None:
        """An inherited file of another size is not ours to understand: a new one takes its place."""
        self.was_there = False
        if inherited_fd >= 0:
            with contextlib.suppress(OSError):
                self.was_there = os.fstat(inherited_fd).st_size == size_bytes
        if self.was_there:
            self.fd = inherited_fd
        else:
            if inherited_fd >= 0:
                os.close(inherited_fd)
            self.fd = os.memfd_create("holdfast-kept", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size_bytes)
        self.raw = memoryview(mmap.mmap(self.fd, size_bytes))


def inode_of(fd: int) -> int:
    """The number that the kernel gives a socket, and no other one while that is open anywhere."""
    return os.fstat(fd).st_ino

"""One lock and one small record for each lockspace on this host, wherever a daemon has its own directories.

    HOST_LOCKS/LOCKSPACE/lock         held by the daemon that uses the lockspace; lock.1, lock.2, … behind dead daemons
                                      that are stuck in storage (`daemon_lock`)
    HOST_LOCKS/LOCKSPACE/users.json   who uses it, or has left virtual machines in it (`supervision/lockspace_use`)

Each lockspace has a directory of its own, so one whose lock has to be waited for holds up no other. A file of a lock is
never removed. Names of lockspaces are spelled so that none of them leads out of the directory.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from typing import Protocol

from holdfast.system.files import daemon_lock
from holdfast.system.files.regular_file import (
    Unreadable,
    open_regular,
    read_regular,
    replace_regular,
    require_regular,
)
from holdfast.system.host.predecessor import Alive, Predecessors, ProcTasks

LOCK_FILE, USERS_FILE = "lock", "users.json"
USERS_BYTES_MAX = 1 << 16
"""A user is two paths and a boot: this is room for several of the longest."""


class SpaceLock(Protocol):
    """The port: lock and record of one lockspace. From any thread, by one at a time."""

    @property
    def path(self) -> str:
        """Of the record, for messages."""

    @property
    def held(self) -> bool:
        """Whether this daemon holds the lock."""

    def descriptor(self) -> int | None:
        """Of the lock that is held, for the next program."""

    def lock(self, *, patient: bool) -> Predecessors:
        """Take the lock; returns the dead daemons that hold others of its numbers. Raises `InUse`, or OSError. `patient`:
        wait a few seconds for a daemon that is ending or deciding.
        """

    def unlock(self) -> None:
        """Let go of the lock; quiet without one."""

    def holder(self) -> int:
        """The pid of the living process that has the lock; 0 if there is none, or it can't be found."""

    def read(self) -> bytes | Unreadable:
        """The record."""

    def replace(self, raw: bytes) -> None:
        """Make it the record, or remove it (empty), which needs no room. Raises OSError and leaves the old one."""


class SpaceLocks(Protocol):
    """The port: all lockspaces of a host."""

    def of(self, lockspace: str, passed: int = -1) -> SpaceLock:
        """`passed`: the descriptor with which an earlier program held the lock; below 0 if it held none. Opens nothing."""

    def drop(self, passed: int) -> None:
        """Let go of a lock that was passed on for a lockspace that is not used any more."""


class SystemSpaceLocks:
    """In a directory of this host. `tasks`: where /proc is."""

    def __init__(self, directory: str, tasks: ProcTasks | None = None) -> None:
        self._directory = directory
        self._tasks = tasks if tasks is not None else ProcTasks()

    def of(self, lockspace: str, passed: int = -1) -> SystemSpaceLock:
        return SystemSpaceLock(f"{self._directory}/{_spelled(lockspace)}", self._tasks, passed)

    def drop(self, passed: int) -> None:
        with contextlib.suppress(OSError):
            os.close(passed)


class SystemSpaceLock:
    """The files of one lockspace; its directory is made when the lock is taken."""

    def __init__(self, directory: str, tasks: ProcTasks, passed: int = -1) -> None:
        self._tasks = tasks
        self._directory = directory
        self._lock_path = f"{directory}/{LOCK_FILE}"
        self._fd = -1
        if passed >= 0:
            if daemon_lock.is_lock_of(passed, self._lock_path):
                self._fd = passed
            else:
                os.close(passed)  # of the directory that the last configuration named

    @property
    def path(self) -> str:
        return f"{self._directory}/{USERS_FILE}"

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def descriptor(self) -> int | None:
        return self._fd if self.held else None

    def lock(self, *, patient: bool) -> Predecessors:
        parent = os.path.dirname(self._directory)
        os.makedirs(os.path.dirname(parent), mode=0o755, exist_ok=True)
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        claimed = daemon_lock.claim(self._lock_path, self._tasks, patient=patient)
        self._fd = claimed.fd
        return Predecessors(claimed.predecessors, self._tasks)

    def unlock(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def holder(self) -> int:
        for number in range(daemon_lock.LOCKS_MAX):
            with contextlib.suppress(OSError):
                fd = open_regular(daemon_lock.numbered(self._lock_path, number), os.O_RDWR)
                try:
                    pid = daemon_lock.holder_of(fd)
                finally:
                    os.close(fd)
                if pid and isinstance(self._tasks.fate(pid), Alive):
                    return pid
        return 0

    def read(self) -> bytes | Unreadable:
        return read_regular(self.path, USERS_BYTES_MAX)

    def replace(self, raw: bytes) -> None:
        if raw:
            require_regular(self.path)
            replace_regular(self.path, raw)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def _spelled(lockspace: str) -> str:
    """A file name for any name of a lockspace, no two alike: 48 bytes at most, so 144 characters."""
    return urllib.parse.quote(os.fsencode(lockspace), safe="").replace(".", "%2E")

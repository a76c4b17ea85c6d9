"""One daemon per directory: a lock that a dead daemon with a stuck thread does not keep from the next one.

The locks of a directory are numbered: NAME, NAME.1, NAME.2 and so on. A dead daemon whose thread is stuck inside a request
(`predecessor`) keeps the one that it had; then the next daemon takes another:

    holdfastd.pid      pid 100, dead, a thread in storage A
    holdfastd.pid.1    pid 200, dead, a thread in storage B
    holdfastd.pid.2    pid 300, this daemon

A daemon may run if it holds one of them and every other one is free or held by a dead daemon. No file is ever removed, so no
two can hold one number; and starters come one after the other, because each holds the directory itself while it decides.
What the file says is for people: on a full disk it says nothing, and the lock holds all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from dataclasses import dataclass
from typing import assert_never

from holdfast.system.files.regular_file import open_regular
from holdfast.system.host.predecessor import Alive, DeadButStuck, Gone, Predecessors, ProcTasks, is_same_file

log = logging.getLogger(__name__)

RUN_LOCK, STATE_LOCK = "holdfastd.pid", "holdfastd.lock"
"""Their names in the run directory and in the state directory."""
LOCKS_MAX = 16
"""Numbers of one directory: so many daemons in a row that were killed and are all still stuck; above it something kills
each daemon, and another one would not help."""
STARTER_WAIT_S = 10.0
"""For another starter to decide, which takes milliseconds."""
ENDING_WAIT_S = 5.0
"""For a killed daemon to leave the kernel, where its threads that don't hang are on their way out."""
_LOOK_S = 0.01


class InUse(Exception):
    """Another daemon has the directory. `pid` is 0 if it is not known."""

    def __init__(self, pid: int, reason: str = "") -> None:
        super().__init__(reason)
        self.pid = pid
        self.reason = reason


@dataclass(frozen=True, slots=True)
class DaemonLocks:
    """What a daemon that runs has: the descriptors of its two locks, and the dead daemons that hold others."""

    run_dir: int
    state_dir: int
    predecessors: Predecessors


@dataclass(frozen=True, slots=True)
class Claimed:
    """The descriptor that holds the lock, and the dead daemons that hold others."""

    fd: int
    predecessors: tuple[DeadButStuck, ...]


def claim(path: str, tasks: ProcTasks | None = None, *, patient: bool = True) -> Claimed:
    """Take a lock of the name `path`, or of a number behind it; raises `InUse`, or OSError.

    It waits for another starter to decide, and for a killed daemon to leave the kernel. Without `patient` it waits for
    neither: for callers who try again.
    """
    tasks = tasks if tasks is not None else ProcTasks()
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _wait_for_lock(directory, STARTER_WAIT_S if patient else 0.0)
        return _claim(path, tasks, ENDING_WAIT_S if patient else 0.0)
    finally:
        os.close(directory)


def is_lock_of(fd: int, path: str) -> bool:
    """Whether a descriptor that was passed on is of the lock `path`, or of a number behind it."""
    ours = os.fstat(fd)
    for number in range(LOCKS_MAX):
        with contextlib.suppress(OSError):
            found = os.lstat(numbered(path, number))
            if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                return True
    return False


def claimed_last_ns(path: str) -> int:
    """When a daemon last wrote its pid into a lock of this name, as the file system has it; 0 if none has."""
    last = 0
    for number in range(LOCKS_MAX):
        with contextlib.suppress(OSError):
            last = max(last, os.lstat(numbered(path, number)).st_mtime_ns)
    return last


def survey(path: str, tasks: ProcTasks | None = None) -> tuple[DeadButStuck, ...]:
    """The dead daemons that hold locks of this name; for a daemon that has its lock already."""
    tasks = tasks if tasks is not None else ProcTasks()
    dead = []
    for number in range(LOCKS_MAX):
        with contextlib.suppress(OSError):
            fd = open_regular(numbered(path, number), os.O_RDWR)
            try:
                fate = tasks.fate(holder_of(fd))
            finally:
                os.close(fd)
            if isinstance(fate, DeadButStuck):
                dead.append(fate)
    return tuple(dead)


def _claim(path: str, tasks: ProcTasks, ending_wait_s: float) -> Claimed:
    until = time.monotonic() + ending_wait_s
    ours = -1
    dead: list[DeadButStuck] = []
    try:
        for number in range(LOCKS_MAX):
            try:
                fd = open_regular(numbered(path, number), os.O_RDWR | (os.O_CREAT if ours < 0 else 0))
            except FileNotFoundError:
                continue  # no daemon has come so far
            keep = False
            try:
                found = _lock_or_holder(fd, tasks, until)
                keep = found is None and ours < 0
            finally:
                if not keep:
                    os.close(fd)
            if keep:
                ours = fd
            elif found is not None:
                dead.append(found)
        if ours < 0:
            raise InUse(0, f"{LOCKS_MAX} earlier daemons were killed and are stuck in storage that hangs")
    except BaseException:
        if ours >= 0:
            os.close(ours)
        raise
    try:
        os.ftruncate(ours, 0)
        os.pwrite(ours, f"{os.getpid()}\n".encode(), 0)
    except OSError as e:
        log.warning("%s: the pid can't be written there: %s; the lock holds all the same", path, e.strerror)
    return Claimed(ours, tuple(dead))


def _lock_or_holder(fd: int, tasks: ProcTasks, until: float) -> DeadButStuck | None:
    """None: the lock is ours. Else the dead daemon that holds it; raises `InUse` if a living one does."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            holder = holder_of(fd)
        match tasks.fate(holder) if holder else Alive(0, ending=True):
            case DeadButStuck() as dead:
                return dead
            case Gone() | Alive(ending=True):
                # It lets go of the lock, or is seen to be stuck, in a moment; a holder that /proc doesn't show may be alive.
                if time.monotonic() > until:
                    raise InUse(holder or _written(fd))
                time.sleep(_LOOK_S)
            case Alive():
                raise InUse(holder)
            case fate:
                assert_never(fate)


def numbered(path: str, number: int) -> str:
    """The path of one of the locks of that name."""
    return f"{path}.{number}" if number else path


def _wait_for_lock(directory: int, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise InUse(0, "another daemon has been starting there for some time") from None
            time.sleep(_LOOK_S)


def holder_of(fd: int) -> int:
    """The pid of the process that holds the lock, as the kernel shows it; 0 if it doesn't."""
    status = os.fstat(fd)
    with contextlib.suppress(OSError, ValueError), open("/proc/locks", encoding="ascii") as f:
        for line in f:
            words = line.split()
            if len(words) < 6 or words[1] != "FLOCK":
                continue
            major, minor, inode = words[5].split(":")
            if is_same_file(
                (os.makedev(int(major, 16), int(minor, 16)), int(inode)), (status.st_dev, status.st_ino)
            ):
                return max(0, int(words[4]))
    return 0


def _written(fd: int) -> int:
    """The pid that the last holder wrote."""
    try:
        return int(os.pread(fd, 32, 0))
    except (OSError, ValueError):
        return 0

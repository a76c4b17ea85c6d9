"""An earlier daemon that was killed while a request was inside the kernel, and how the next one recognizes that.

SIGKILL ends a thread as soon as it returns from the kernel. One inside a request to storage that hangs does not return.
The process is then a *zombie leader with threads*: it runs no instruction any more, its parent can't reap it, and its
threads keep every descriptor that it had, with the locks on them:

    /proc/PID/stat               Z                     the leader has ended
    /proc/PID/task/TID/status    SigPnd: …100          SIGKILL waits for this one (bit 9)
    /proc/PID/task/TID/stat      flags & PF_EXITING    this one is past its last request, and closes what it had

So a lock that such a process holds says nothing about a daemon that serves. Only the requests that are inside already may
still take effect, each in the storage that its thread worked for (`thread_name`).

Whatever can't be read counts as alive.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.system.block_io import thread_name

_PF_EXITING = 0x4
"""Of a task's flags, field 9 of /proc/PID/stat (linux/sched.h)."""
_SIGKILL_BIT = 1 << 8
_READ_BYTES_MAX = 1 << 16
"""Of one file in /proc: a thread's status has 1.5 KB, a descriptor's fdinfo a line for each lock."""
_SOCKETS_BYTES_MAX = 64 << 20
"""Of /proc/net/unix: a line of 100 bytes for each socket of the host."""
LOCKED_AGE_S = 1.0
"""How long a reading of a dead daemon's locks is used: it has hundreds of descriptors, and as many locks ask for them."""


@dataclass(frozen=True, slots=True)
class StuckTask:
    """A thread that SIGKILL waits for, inside the kernel. `start_ticks` distinguishes it from a later one of that number."""

    tid: int
    name: str
    start_ticks: int

    def may_be_in(self, pools: Iterable[str]) -> bool:
        """Whether its request may be to the storage of one of these pools; a thread without a name may be anywhere."""
        if not self.name.startswith(thread_name.PREFIX):
            return True
        return self.name in {thread_name.of_pool(pool) for pool in pools}


@dataclass(frozen=True, slots=True)
class DeadButStuck:
    """It runs no instruction any more. `tasks` are inside a request; there may be others that only close descriptors."""

    pid: int
    tasks: tuple[StuckTask, ...]


@dataclass(frozen=True, slots=True)
class Alive:
    """It runs, or that can't be excluded. `ending`: it was killed, and is on its way out of the kernel."""

    pid: int
    ending: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such process, or nothing of it is left but its exit code."""

    pid: int


JobFate = DeadButStuck | Alive | Gone


@dataclass(frozen=True, slots=True)
class Task:
    """What /proc says of one thread."""

    tid: int
    name: str
    state: str
    exiting: bool
    killed: bool
    start_ticks: int

    @property
    def ended(self) -> bool:
        return self.state in ("Z", "X")

    @property
    def stuck(self) -> bool:
        """It has been killed, is inside the kernel, and dies before it returns from there. One that is on a processor (R)
        may have a last instruction before it, so it does not count yet.
        """
        return not self.ended and not self.exiting and self.killed and self.state != "R"


def parse_task(tid: int, stat: bytes, status: bytes) -> Task | None:
    """From the contents of /proc/PID/task/TID/stat and …/status (proc(5)); None if they are not what they should be."""
    try:
        name = stat[stat.index(b"(") + 1 : stat.rindex(b")")].decode("utf-8", "replace")
        # The name may hold blanks and parentheses: fields are counted from the last one. The first of them is the third.
        fields = stat[stat.rindex(b")") + 2 :].split()
        state, flags, start_ticks = fields[0].decode("ascii"), int(fields[6]), int(fields[19])
        pending = 0
        for line in status.split(b"\n"):
            if line.startswith((b"SigPnd:", b"ShdPnd:")):
                pending |= int(line.split()[1], 16)
    except (ValueError, IndexError):
        return None
    return Task(tid, name, state, bool(flags & _PF_EXITING), bool(pending & _SIGKILL_BIT), start_ticks)


def judge(pid: int, tasks: Iterable[Task]) -> JobFate:
    """From all tasks of a process, the leader among them."""
    known = list(tasks)
    if all(task.ended for task in known):
        return Gone(pid)
    if all(task.ended or task.exiting or task.stuck for task in known):
        stuck = (StuckTask(task.tid, task.name, task.start_ticks) for task in known if task.stuck)
        return DeadButStuck(pid, tuple(stuck))
    return Alive(pid, ending=all(task.ended or task.exiting or task.killed for task in known))


class ProcTasks:
    """What /proc says of processes and their threads. ``root`` is where it is mounted."""

    def __init__(self, root: str = "/proc") -> None:
        self._root = root

    def fate(self, pid: int) -> JobFate:
        if pid <= 0:
            return Alive(pid)
        before = self._tids(pid)
        if before is None:
            return Gone(pid)
        tasks = [task for tid in before if (task := self._task(pid, tid)) is not None]
        # A thread that ends while the directory is read can hide others: only two equal readings are whole.
        after = self._tids(pid)
        if after is None:
            return Gone(pid)
        if before != after or len(tasks) != len(before) or not tasks:
            return Alive(pid, ending=True)
        return judge(pid, tasks)

    def is_still_there(self, pid: int, task: StuckTask) -> bool:
        found = self._task(pid, task.tid)
        if found is None:
            return os.path.exists(f"{self._root}/{pid}/task/{task.tid}/stat")
        return found.start_ticks == task.start_ticks and not found.ended and not found.exiting

    def locked_files(self, pid: int) -> set[tuple[int, int]]:
        """(device, inode) of each file on whose first byte a description of this process holds a lock. Asks no storage:
        /proc/PID/fd would have to be followed, and may hang.
        """
        found: set[tuple[int, int]] = set()
        for tid in self._tids(pid) or []:
            directory = f"{self._root}/{pid}/task/{tid}/fdinfo"
            with contextlib.suppress(OSError):
                for number in os.listdir(directory):
                    found |= _ofd_locks(_read(f"{directory}/{number}"))
            if found:
                break  # threads share their descriptors; the leader has none any more
        return found

    def has_socket_at(self, pid: int, path: str) -> bool:
        """Whether this process has a socket open that is bound to a path. Does not connect to it."""
        links = set()
        for tid in self._tids(pid) or []:
            directory = f"{self._root}/{pid}/task/{tid}/fd"
            with contextlib.suppress(OSError):
                for number in os.listdir(directory):
                    with contextlib.suppress(OSError):
                        links.add(os.readlink(f"{directory}/{number}"))
            if links:
                break
        for line in _read(f"{self._root}/net/unix", _SOCKETS_BYTES_MAX).split(b"\n"):
            words = line.split(maxsplit=7)
            if len(words) == 8 and words[7] == os.fsencode(path) and f"socket:[{words[6].decode()}]" in links:
                return True
        return False

    def _tids(self, pid: int) -> list[int] | None:
        try:
            return sorted(int(name) for name in os.listdir(f"{self._root}/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError:
            return []

    def _task(self, pid: int, tid: int) -> Task | None:
        place = f"{self._root}/{pid}/task/{tid}"
        return parse_task(tid, _read(f"{place}/stat"), _read(f"{place}/status"))


def _read(path: str, length_bytes: int = _READ_BYTES_MAX) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read(length_bytes)
    except OSError:
        return b""


def _ofd_locks(fdinfo: bytes) -> set[tuple[int, int]]:
    """From a descriptor's fdinfo: ``lock: 1: OFDLCK ADVISORY WRITE -1 00:2d:1234 0 0``."""
    found = set()
    for line in fdinfo.split(b"\n"):
        words = line.split()
        if len(words) >= 9 and words[0] == b"lock:" and words[2] == b"OFDLCK" and words[7] == b"0":
            with contextlib.suppress(ValueError):
                major, minor, inode = words[6].split(b":")
                found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return found


class Predecessors:
    """The dead daemons whose threads still hang, as this daemon found them when it took its locks."""

    def __init__(self, dead: Iterable[DeadButStuck] = (), tasks: ProcTasks | None = None) -> None:
        self._dead = {each.pid: each for each in dead}
        self._tasks = tasks if tasks is not None else ProcTasks()
        self._locked: dict[int, tuple[float, set[tuple[int, int]]]] = {}

    def __bool__(self) -> bool:
        return bool(self._dead)

    @property
    def pids(self) -> list[int]:
        return sorted(self._dead)

    def inside(self, pools: Iterable[str]) -> int | None:
        """The pid of one that may still have a request inside the storage of one of these pools."""
        wanted = tuple(pools)
        for dead in self._dead.values():
            for task in dead.tasks:
                if task.may_be_in(wanted) and self._tasks.is_still_there(dead.pid, task):
                    return dead.pid
        return None

    def listens_at(self, path: str) -> bool:
        """Whether the socket at a path that does not answer is one of theirs."""
        return any(self._tasks.has_socket_at(pid, path) for pid in self._dead)

    def holds(self, files: Iterable[tuple[int, int]], path: str) -> int | None:
        """The pid of one that holds a lock on the first byte of one of these files (device, inode), or did so a moment ago.
        Asked before a lock is tried: a dead daemon only lets go, so what it does not hold now can't be refused for it later.
        A block device (device -1) is known by its node at `path`.
        """
        wanted = {each for each in files if each[0] >= 0}
        if self._dead and path.startswith("/dev/"):
            with contextlib.suppress(OSError):
                node = os.stat(path)
                wanted.add((node.st_dev, node.st_ino))
        for pid in self._dead:
            if any(is_same_file(one, other) for one in self._locked_by(pid) for other in wanted):
                return pid
        return None

    def _locked_by(self, pid: int) -> set[tuple[int, int]]:
        now = time.monotonic()
        known = self._locked.get(pid)
        if known is None or now - known[0] > LOCKED_AGE_S:
            known = self._locked[pid] = (now, self._tasks.locked_files(pid))
        return known[1]


def is_same_file(shown: tuple[int, int], named: tuple[int, int]) -> bool:
    """Whether /proc and stat() mean one file. File systems with subvolumes (btrfs) show two device numbers for it, both
    without a real device (major 0).
    """
    same_device = shown[0] == named[0] or os.major(shown[0]) == os.major(named[0]) == 0
    return same_device and shown[1] == named[1]

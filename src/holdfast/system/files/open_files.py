"""Which processes of this host have a file or a block device open, asked without ever waiting for its storage.

The kernel shows every open descriptor below /proc. Reading a link, an fdinfo or a mountinfo there touches no storage.
`stat` of /proc/PID/fd/N does: a network file system may ask its server whether the file is still there, and a server
that doesn't answer holds the caller for as long as it is silent, unkillably. So:

1. the name of a descriptor (a link) identifies sockets, pipes and other things without a path: they are passed over;
2. its fdinfo names inode and mount, which rules out nearly all files; a device node may have any inode, but there is
   none on a mount with the option `nodev`;
3. only what is left is asked with `stat`, on a worker with a bound. No answer in time counts as "may have it open".

Two things hide a descriptor, and both are counted as doubt, not as "closed": a process that is just exiting has no
table of descriptors any more while the kernel still closes (and flushes) its files; and a process whose first thread
has ended shows an empty table although its other threads, stuck in a request to storage, still use theirs.

Not seen: processes of a PID namespace that this one can't see, memory mappings whose descriptor was closed, a thread
that unshared its table of descriptors, and users inside the kernel (a loop device, a device mapper table).
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from holdfast.system.files.ofd_lock import FileKey, key_of

ANSWER_TIMEOUT_S = 2.0
"""A file that is open is in memory: `stat` takes microseconds, or a round trip to a server. More is no answer."""
STUCK_WORKERS_MAX = 8
"""Threads that hang in `stat` at once; above it every question stays unanswered until one comes back."""
ROUNDS_MAX = 16
"""A process that was started during a scan is read in the next round; a host that forks without end never settles."""
KEY_OF_BLOCK_DEVICE = -1
"""The first half of a block device's key."""

_PF_EXITING = 0x00000004
_PF_KTHREAD = 0x00200000
_NO_FILE = FileKey(0, 0)
_INODES_DIFFER = frozenset(("overlay", "unionfs", "aufs"))
"""File systems on which fdinfo may show another inode number than `stat`."""


@dataclass(frozen=True, slots=True)
class Users:
    """The processes that have one of the asked files open."""

    pids: tuple[int, ...]
    complete: bool
    """False if some process could not be inspected: it counts as a user."""
    unclear: tuple[int, ...] = ()
    """The processes that could not be inspected, as far as they are known by number."""

    def __str__(self) -> str:
        users = ", ".join(map(str, self.pids))
        unclear = ", ".join(map(str, self.unclear))
        if not users:
            return (
                f"perhaps pid {unclear}, which can't be inspected"
                if unclear
                else "processes that can't be inspected"
            )
        return f"pid {users}" + (f" and perhaps {unclear}" if unclear else "")

    @property
    def none(self) -> bool:
        """Proven: no process has it open."""
        return self.complete and not self.pids


class OpenFiles(Protocol):
    """The port."""

    async def users(self, keys: Collection[FileKey]) -> Users:
        """Who has one of these files open now; a key of a lease names no file and is passed over."""


@dataclass(frozen=True, slots=True)
class _Mount:
    device: str
    """Of the file system: every mount namespace mounts it under a number of its own, and all of them hang together."""
    kind: str
    nodev: bool


def lock_keepers(stores: bool = False) -> tuple[int, ...]:
    """Pids whose descriptors are no use of a disk: the asking process, whose locks live in them, and process 1.

    A service manager keeps copies of the daemon's locks in its descriptor store. It is process 1, which runs no guest;
    with `stores` also the parent, as in a user's session.
    """
    return (os.getpid(), 1, os.getppid()) if stores else (os.getpid(), 1)


class SystemOpenFiles:
    """The processes that this PID namespace shows, `ignored` ones apart."""

    def __init__(
        self,
        *,
        ignored: Callable[[], Collection[int]] = lock_keepers,
        answer_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._ignored = ignored
        self._stat = _BoundedStat(answer_s)

    async def users(self, keys: Collection[FileKey]) -> Users:
        """As `users_now`, on a thread: a host has tens of thousands of descriptors."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Users] = loop.create_future()

        def deliver(users: Users) -> None:
            if not answer.done():
                answer.set_result(users)

        def scan() -> None:
            try:
                users = self.users_now(keys)
            except Exception:  # /proc as no kernel shows it: doubt, never "nobody"
                users = Users((), complete=False)
            try:
                loop.call_soon_threadsafe(deliver, users)
            except RuntimeError:
                pass  # the loop was closed meanwhile

        threading.Thread(target=scan, name="open files", daemon=True).start()
        return await answer

    def users_now(self, keys: Collection[FileKey]) -> Users:
        """Scan /proc. Takes milliseconds per hundred processes, and never waits longer than the bound per mount."""
        return _Scan(keys, frozenset(self._ignored()), self._stat).users()


class _Scan:
    """One pass over all processes, and further ones over those that were started meanwhile."""

    def __init__(self, keys: Collection[FileKey], ignored: frozenset[int], stat: _BoundedStat) -> None:
        self._keys = frozenset(keys)
        self._inodes = frozenset(str(key.inode) for key in keys if key.device != KEY_OF_BLOCK_DEVICE)
        self._devices = any(key.device == KEY_OF_BLOCK_DEVICE for key in keys)
        self._ignored = ignored
        self._stat = stat
        self._mounts: dict[str, _Mount] = {}
        self._namespaces: set[str] = set()
        self._answers: dict[tuple[str, str], FileKey] = {}
        """By mount and inode: every descriptor of one file is asked about once."""
        self._silent: set[str] = set()
        """File systems that did not answer in this scan."""
        self._using: set[int] = set()
        self._unclear: set[int] = set()

    def users(self) -> Users:
        seen: set[int] = set(self._ignored)
        for _ in range(ROUNDS_MAX):
            fresh = [pid for pid in _processes() if pid not in seen]
            if not fresh:
                break
            seen.update(fresh)
            for pid in fresh:
                self._inspect(pid)
        else:
            return self._result(complete=False)
        return self._result(complete=not self._unclear)

    def _result(self, *, complete: bool) -> Users:
        return Users(tuple(sorted(self._using)), complete, tuple(sorted(self._unclear)))

    def _inspect(self, pid: int) -> None:
        tables = [f"/proc/{pid}"]
        numbers = self._numbers(pid, tables[0])
        if not numbers:
            # Either it has none open, or its first thread has ended and the others still have theirs.
            tables = [f"/proc/{pid}/task/{each}" for each in _listed(f"/proc/{pid}/task") or ()]
        for table in tables:
            for number in self._numbers(pid, table):
                self._inspect_descriptor(pid, table, number)

    def _numbers(self, pid: int, table: str) -> list[str]:
        try:
            numbers = os.listdir(f"{table}/fd")
        except (FileNotFoundError, ProcessLookupError):
            return []  # it has ended
        except OSError:
            self._unclear.add(pid)
            return []
        if not numbers and _is_exiting(table):
            self._unclear.add(pid)
        return numbers

    def _inspect_descriptor(self, pid: int, table: str, number: str) -> None:
        link = f"{table}/fd/{number}"
        try:
            if not os.readlink(link).startswith("/"):
                return
            mount_id, inode = _fdinfo(f"{table}/fdinfo/{number}")
        except (FileNotFoundError, ProcessLookupError):
            return  # closed meanwhile
        except OSError:
            self._unclear.add(pid)
            return
        mount = self._mount(table, mount_id)
        if not self._may_be_asked_for(inode, mount):
            return
        key = self._key(link, mount_id, inode, mount.device if mount else "")
        if key is None:
            self._unclear.add(pid)
        elif key in self._keys:
            self._using.add(pid)

    def _may_be_asked_for(self, inode: str, mount: _Mount | None) -> bool:
        if self._devices and (mount is None or not mount.nodev):
            return True
        if not self._inodes:
            return False
        return not inode or inode in self._inodes or mount is None or mount.kind in _INODES_DIFFER

    def _key(self, link: str, mount_id: str, inode: str, device: str) -> FileKey | None:
        """What the descriptor is open on; None without an answer. A file system is waited for once in a scan."""
        known = (mount_id, inode)
        if inode and known in self._answers:
            return self._answers[known]
        if device in self._silent:
            return None
        answer = self._stat(link)
        if isinstance(answer, (FileNotFoundError, ProcessLookupError)):
            return _NO_FILE  # closed meanwhile
        if answer is None:
            self._silent.add(device)
        if answer is None or isinstance(answer, OSError):
            return None
        key = key_of(answer)
        self._answers[known] = key
        return key

    def _mount(self, table: str, mount_id: str) -> _Mount | None:
        """From the mount table of the process; numbers of mounts are the same in all namespaces."""
        if mount_id not in self._mounts:
            try:
                namespace = os.readlink(f"{table}/ns/mnt")
                if namespace not in self._namespaces:
                    self._namespaces.add(namespace)
                    self._mounts.update(_mounts(f"{table}/mountinfo"))
            except OSError:
                return None
        return self._mounts.get(mount_id)


class _BoundedStat:
    """`os.stat` on a worker. One that doesn't answer is left behind, and the next question gets another worker."""

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._stuck = 0
        self._lock = threading.Lock()

    def __call__(self, path: str) -> os.stat_result | OSError | None:
        """The answer; None if there is none in time."""
        with self._lock:
            if self._stuck >= STUCK_WORKERS_MAX:
                return None
            self._stuck += 1
        answers: queue.SimpleQueue[os.stat_result | OSError] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer: os.stat_result | OSError = os.stat(path)
            except OSError as e:
                answer = e
            with self._lock:
                self._stuck -= 1
            answers.put(answer)

        threading.Thread(target=ask, name="stat", daemon=True).start()
        try:
            return answers.get(timeout=self._answer_s)
        except queue.Empty:
            return None


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _listed(path: str) -> list[str] | None:
    try:
        return os.listdir(path)
    except OSError:
        return None


def _is_exiting(table: str) -> bool:
    """Whether a thread without descriptors is a user's that the kernel still takes apart."""
    try:
        with open(f"{table}/stat", "rb") as f:
            raw = f.read(1024)
    except OSError:
        return False  # it has ended
    # The command name (field 2) may hold blanks and parentheses: count from the last one.
    fields = raw[raw.rindex(b")") + 2 :].split(b" ", 8)
    state, flags = fields[0], int(fields[6])
    return not flags & _PF_KTHREAD and bool(flags & _PF_EXITING) and state not in (b"Z", b"X")


def _fdinfo(path: str) -> tuple[str, str]:
    """Mount and inode of a descriptor; empty where the kernel doesn't show them (before Linux 5.14)."""
    facts = {}
    with open(path, encoding="ascii", errors="replace") as f:
        for line in f:
            name, _, value = line.partition(":")
            if name in ("mnt_id", "ino"):
                facts[name] = value.strip()
    return facts.get("mnt_id", ""), facts.get("ino", "")


def _mounts(path: str) -> Iterator[tuple[str, _Mount]]:
    """The lines of a mountinfo (proc_pid_mountinfo(5))."""
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            before, _, after = line.partition(" - ")
            words = before.split()
            if len(words) > 5 and after:
                yield words[0], _Mount(words[2], after.split()[0], "nodev" in words[5].split(","))

"""Locks as the kernel shows them: /proc/locks, and which process has one of a file description.

Only what is on this host: a lock that another host holds on a network file system shows up in no /proc, but
`refused_by` asks the file system itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from holdfast.model import Mode
from holdfast.system.files.ofd_lock import ForeignLock, query_lock
from holdfast.system.host.process import program_name

QEMU_FIRST_BYTE = 100
"""QEMU's own image locks are on byte 100 and above (virtlockd-rpc.md 3.4)."""


@dataclass(frozen=True, slots=True)
class KernelLock:
    """One line of /proc/locks (proc(5)); `pid` is -1 for a lock of a file description."""

    kind: str
    mode: Mode
    pid: int
    device: int
    inode: int
    start: int
    end: int | None

    @property
    def of_lock_manager(self) -> bool:
        return self.start == 0 and self.end == 0

    @property
    def of_qemu(self) -> bool:
        return self.start >= QEMU_FIRST_BYTE


@dataclass(frozen=True, slots=True)
class LockingProcess:
    pid: int
    program: str
    lock: KernelLock


def parse_lock(words: list[str]) -> KernelLock | None:
    """The words of a line of /proc/locks from its kind on; None for anything but a byte-range lock."""
    if len(words) < 7 or words[0] not in ("POSIX", "OFDLCK"):
        return None
    kind, _, access, pid, place, start, end = words[:7]
    major, _, rest = place.partition(":")
    minor, _, inode = rest.partition(":")
    if not inode:  # "<none>:0": a file that is no longer there
        return None
    return KernelLock(
        kind=kind,
        mode=Mode.EXCLUSIVE if access == "WRITE" else Mode.SHARED,
        pid=int(pid),
        device=os.makedev(int(major, 16), int(minor, 16)),
        inode=int(inode),
        start=int(start),
        end=None if end == "EOF" else int(end),
    )


def locks_on(path: str) -> list[KernelLock]:
    """Every byte-range lock of this host on the file behind a path; raises OSError if the path can't be looked at."""
    status = os.stat(path)
    found = []
    with open("/proc/locks", encoding="ascii") as f:
        for line in f:
            words = line.split()[1:]
            if words and words[0] == "->":
                continue  # one that waits
            if str(status.st_ino) not in line:
                continue
            lock = parse_lock(words)
            if lock is not None and (lock.device, lock.inode) == (status.st_dev, status.st_ino):
                found.append(lock)
    return found


def processes_with(path: str, locks: list[KernelLock]) -> list[LockingProcess]:
    """The processes that hold these locks.  Only root sees all; a lock without a process stays nameless."""
    found = {
        (lock.pid, lock.start): LockingProcess(lock.pid, program_name(lock.pid), lock)
        for lock in locks
        if lock.pid > 0
    }
    if any(lock.pid <= 0 for lock in locks):
        status = os.stat(path)
        for name in os.listdir("/proc"):
            if name.isdigit():
                for lock in _locks_of_process(int(name), path, status.st_dev, status.st_ino):
                    key = (int(name), lock.start)
                    found.setdefault(key, LockingProcess(int(name), program_name(int(name)), lock))
    return list(found.values())


def _locks_of_process(pid: int, path: str, device: int, inode: int) -> list[KernelLock]:
    """A process's locks of file descriptions on one file, from fdinfo."""
    found = []
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    for number in numbers:
        try:
            link = f"/proc/{pid}/fd/{number}"
            target = os.readlink(link)
            if not target.startswith("/"):
                continue  # a socket, a pipe, an eventfd: most of what a host with many VMs has open
            with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as f:
                locks = [parse_lock(line.split()[2:]) for line in f if line.startswith("lock:")]
            ours = [lock for lock in locks if lock is not None and lock.kind == "OFDLCK"]
            # `stat` may ask a server that is silent, so other files are left out before (promises.md F6). overlayfs shows
            # the inode number of another file in fdinfo, and the path decides there.
            if not any(lock.inode == inode for lock in ours) and not (ours and target == path):
                continue
            status = os.stat(link)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (device, inode):
            found += ours
    return found


def refused_by(path: str) -> ForeignLock | None:
    """Whether an exclusive lock on byte 0 would be refused now, asked without taking it; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        answer = query_lock(fd, Mode.EXCLUSIVE)
    finally:
        os.close(fd)
    return None if answer.free else answer

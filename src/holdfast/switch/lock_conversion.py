"""PURE: locks of a process become locks of open file descriptions, with no moment at which an exclusive rival gets in.

virtlockd has POSIX locks (fcntl(2)): they belong to its process, and end when that process closes any descriptor of the
file. holdfastd has open-file-description (OFD) locks. A process that has both kinds on one byte conflicts with itself, so
the way is by shared locks, which don't:

    step            POSIX lock      OFD lock       a rival may get
    0               exclusive       none           nothing
    1  downgrade    shared          none           a shared lock
    2  OFD shared   shared          shared         a shared lock
    3  POSIX off    none            shared         a shared lock
    4  OFD          none            exclusive      nothing; or refused, while a rival has a shared lock: *doubtful*

At each moment at least one shared lock is there, so nobody gets an exclusive one. A doubtful lock is kept as it is, shared,
and reported: it is never counted as exclusive.

POSIX locks are one per file and process: steps 1 and 3 are taken once for all descriptors of a file, and step 3 only when
each of them has its own. Until step 3 nothing is lost, so a system call that fails before leads back to step 0.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast.model import Mode

RIVAL_TRIES = 20
"""Attempts at step 4 while others have a shared lock: one that only tries its luck is gone within some of them."""
TRY_PAUSE_S = 0.05
"""Between two of these attempts, for those who call this."""
REFUSED = (errno.EAGAIN, errno.EACCES)
"""What fcntl(2) says while somebody else's lock is in the way."""


class RecordLocks(Protocol):
    """The port: byte 0 of a file. Returns 0, or an error number; nothing waits. A mode of None unlocks."""

    def posix(self, fd: int, mode: Mode | None) -> int: ...

    def ofd(self, fd: int, mode: Mode | None) -> int: ...

    def close(self, fd: int) -> None: ...


@dataclass(frozen=True, slots=True)
class ProcessLock:
    """A lock that this process has, or should have. `file`: device and inode of what the descriptor is open on."""

    fd: int
    file: tuple[int, int]
    mode: Mode


@dataclass(frozen=True, slots=True)
class Converted:
    """What an open file description has now: `mode` None is no lock at all, and `why` says why it has less than wanted."""

    fd: int
    wanted: Mode
    mode: Mode | None
    why: str = ""

    @property
    def is_whole(self) -> bool:
        return self.mode is self.wanted


@dataclass(frozen=True, slots=True)
class WentBack:
    """Nothing was converted: the POSIX locks are as before, but for those of `weaker`, which are shared now."""

    why: str
    weaker: tuple[int, ...] = ()


def convert(
    wanted: Sequence[ProcessLock],
    locks: RecordLocks,
    *,
    spare: Iterable[int] = (),
    pause: Callable[[], None] = lambda: None,
) -> tuple[Converted, ...] | WentBack:
    """All four steps for all locks. `spare`: descriptors without a lock, perhaps of the same files, which are closed when no
    POSIX lock can end with them. `pause` waits a little between two attempts at step 4.
    """
    files: dict[tuple[int, int], list[ProcessLock]] = {}
    for each in wanted:
        files.setdefault(each.file, []).append(each)
    lost: dict[int, str] = {}
    for number, group in enumerate(files.values(), 1):
        failed = _until_both_are_shared(group, locks, lost)
        if failed:
            return _back(failed, list(files.values())[:number], locks, pause)
    for group in files.values():
        locks.posix(group[0].fd, None)  # a failure shows in step 4: this process is in its own way
    for fd in spare:
        locks.close(fd)
    found = [_exclusive(each, locks, lost) for each in wanted]
    for _ in range(RIVAL_TRIES):
        if all(each.is_whole or each.mode is None for each in found):
            break
        pause()
        again = zip(wanted, found, strict=True)
        found = [was if was.is_whole else _exclusive(each, locks, lost) for each, was in again]
    return tuple(found)


def _until_both_are_shared(group: Sequence[ProcessLock], locks: RecordLocks, lost: dict[int, str]) -> str:
    """Steps 1 and 2 of one file. Returns why they can't be taken. A lock that somebody else has was lost before."""
    if any(each.mode is Mode.EXCLUSIVE for each in group):
        error = locks.posix(group[0].fd, Mode.SHARED)
        if error and error not in REFUSED:
            return f"the lock of descriptor {group[0].fd} can't be made shared: error {error}"
    for each in group:
        error = locks.ofd(each.fd, Mode.SHARED)
        if error in REFUSED:
            lost[each.fd] = "somebody else has an exclusive lock: virtlockd had lost this one before"
        elif error:
            return f"descriptor {each.fd} can't have a lock of its own: error {error}"
    return ""


def _back(
    why: str, files: Sequence[Sequence[ProcessLock]], locks: RecordLocks, pause: Callable[[], None]
) -> WentBack:
    """From step 2 to step 0; the POSIX lock is there all the time."""
    weaker: list[int] = []
    for group in files:
        for each in group:
            locks.ofd(each.fd, None)
        if not any(each.mode is Mode.EXCLUSIVE for each in group):
            continue
        tries = 0
        while locks.posix(group[0].fd, Mode.EXCLUSIVE):
            tries += 1
            if tries > RIVAL_TRIES:
                weaker += [each.fd for each in group]
                break
            pause()
    return WentBack(why, tuple(weaker))


def _exclusive(each: ProcessLock, locks: RecordLocks, lost: dict[int, str]) -> Converted:
    """Step 4 of one descriptor."""
    if each.fd in lost:
        return Converted(each.fd, each.mode, None, lost[each.fd])
    if each.mode is Mode.SHARED:
        return Converted(each.fd, each.mode, Mode.SHARED)
    error = locks.ofd(each.fd, Mode.EXCLUSIVE)
    if not error:
        return Converted(each.fd, each.mode, Mode.EXCLUSIVE)
    why = "somebody else has a shared lock on it too" if error in REFUSED else f"error {error}"
    return Converted(each.fd, each.mode, Mode.SHARED, why)


def confirm(wanted: ProcessLock, locks: RecordLocks) -> Converted:
    """What a copy of the descriptor in another process has, when the process with the POSIX lock has ended: as much of the
    lock as can still be had is taken, which is all of it if the conversion had got that far, or if nobody else came.
    """
    error = locks.ofd(wanted.fd, wanted.mode)
    if not error:
        return Converted(wanted.fd, wanted.mode, wanted.mode)
    if locks.ofd(wanted.fd, Mode.SHARED) == 0:
        return Converted(wanted.fd, wanted.mode, Mode.SHARED, "somebody else has a shared lock on it too")
    return Converted(wanted.fd, wanted.mode, None, "somebody else has taken it")


def revert(wanted: Sequence[ProcessLock], locks: RecordLocks) -> tuple[int, ...]:
    """The four steps the other way round, after a conversion: POSIX locks of this process again. Returns the descriptors
    whose files have a shared one only, or none, in place of an exclusive one.
    """
    files: dict[tuple[int, int], list[ProcessLock]] = {}
    for each in wanted:
        files.setdefault(each.file, []).append(each)
    weaker: list[int] = []
    for group in files.values():
        for each in group:
            locks.ofd(each.fd, Mode.SHARED)
        failed = locks.posix(group[0].fd, Mode.SHARED)
        if not failed:  # else what the descriptors have is all there is
            for each in group:
                locks.ofd(each.fd, None)
            if any(each.mode is Mode.EXCLUSIVE for each in group):
                failed = locks.posix(group[0].fd, Mode.EXCLUSIVE)
        if failed:
            weaker += [each.fd for each in group]
    return tuple(weaker)

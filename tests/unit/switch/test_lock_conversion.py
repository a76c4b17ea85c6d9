"""POSIX locks to locks of open file descriptions: against a model kernel with a rival at each call, and the real one."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast.model import Mode
from holdfast.switch.lock_conversion import Converted, ProcessLock, WentBack, confirm, convert
from holdfast.system.files.ofd_lock import packed_lock
from holdfast.system.files.process_locks import KernelRecordLocks

FILE, OTHER = (8, 1), (8, 2)


@dataclass
class SmallKernel:
    """Record locks as fcntl(2) says, of one process, its descriptors and rivals."""

    files: dict[int, tuple[int, int]]
    process: dict[tuple[int, int], Mode] = field(default_factory=dict)
    descriptions: dict[int, Mode] = field(default_factory=dict)
    rivals: dict[tuple[int, int], Mode] = field(default_factory=dict)
    fails: Callable[[str, int, Mode | None], int] = lambda *_: 0
    rival: Callable[[], object] = lambda: None
    calls: list[tuple[str, int, Mode | None]] = field(default_factory=list)

    def posix(self, fd: int, mode: Mode | None) -> int:
        return self._set("posix", fd, mode)

    def ofd(self, fd: int, mode: Mode | None) -> int:
        return self._set("ofd", fd, mode)

    def close(self, fd: int) -> None:
        self.process.pop(self.files[fd], None)
        self.descriptions.pop(fd, None)
        self.rival()

    def rival_takes(self, file: tuple[int, int], mode: Mode) -> bool:
        """Another host asks, as F_SETLK does."""
        if self._in_the_way(file, mode, None):
            return False
        self.rivals[file] = mode
        return True

    def _in_the_way(self, file: tuple[int, int], mode: Mode, own: object) -> bool:
        others: list[tuple[object, Mode]] = []
        if file in self.process:
            others.append(("process", self.process[file]))
        others += [(fd, held) for fd, held in self.descriptions.items() if self.files[fd] == file]
        if file in self.rivals:
            others.append(("rival", self.rivals[file]))
        return any(who != own and Mode.EXCLUSIVE in (mode, held) for who, held in others)

    def _set(self, kind: str, fd: int, mode: Mode | None) -> int:
        self.calls.append((kind, fd, mode))
        file = self.files[fd]
        if error := self.fails(kind, fd, mode):
            return error
        table: dict[object, Mode] = self.process if kind == "posix" else self.descriptions  # type: ignore[assignment]
        key: object = file if kind == "posix" else fd
        if mode is None:
            table.pop(key, None)
        elif self._in_the_way(file, mode, "process" if kind == "posix" else fd):
            return errno.EAGAIN
        else:
            table[key] = mode
        self.rival()
        return 0


def kernel(*fds: int, file: tuple[int, int] = FILE, mode: Mode = Mode.EXCLUSIVE) -> SmallKernel:
    return SmallKernel(dict.fromkeys(fds, file), {file: mode})


def wants(*fds: int, file: tuple[int, int] = FILE, mode: Mode = Mode.EXCLUSIVE) -> list[ProcessLock]:
    return [ProcessLock(fd, file, mode) for fd in fds]


def test_an_exclusive_rival_gets_in_at_no_call() -> None:
    small = kernel(10)
    got: list[bool] = []
    small.rival = lambda: got.append(small.rival_takes(FILE, Mode.EXCLUSIVE))
    assert convert(wants(10), small) == (Converted(10, Mode.EXCLUSIVE, Mode.EXCLUSIVE),)
    assert got == [False] * 4
    assert (small.process, small.descriptions) == ({}, {10: Mode.EXCLUSIVE})


def test_nobody_gets_in_where_the_lock_is_shared_with_others() -> None:
    small = kernel(10, mode=Mode.SHARED)
    small.rivals[FILE] = Mode.SHARED
    assert convert(wants(10, mode=Mode.SHARED), small) == (Converted(10, Mode.SHARED, Mode.SHARED),)
    assert small.descriptions == {10: Mode.SHARED}


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_shared_rival_shows_and_the_lock_stays_shared(call: int) -> None:
    small = kernel(10)
    small.rival = lambda: small.rival_takes(FILE, Mode.SHARED) if len(small.calls) == call else None
    found = convert(wants(10), small)
    assert isinstance(found, tuple)
    assert (found[0].mode, found[0].is_whole) == (Mode.SHARED, False)
    assert "shared lock" in found[0].why
    assert small.descriptions == {10: Mode.SHARED}
    assert not small.rival_takes(FILE, Mode.EXCLUSIVE)


def test_a_shared_rival_that_only_tries_its_luck_is_waited_for() -> None:
    small = kernel(10)
    small.rival = lambda: small.rival_takes(FILE, Mode.SHARED) if len(small.calls) == 1 else None
    pauses = iter(range(100))

    def pause() -> None:
        if next(pauses) == 3:
            small.rivals.clear()

    assert convert(wants(10), small, pause=pause) == (Converted(10, Mode.EXCLUSIVE, Mode.EXCLUSIVE),)


def test_descriptors_of_one_file_all_have_locks_before_the_process_lets_go() -> None:
    small = kernel(10, 11)
    got: list[bool] = []
    small.rival = lambda: got.append(small.rival_takes(FILE, Mode.EXCLUSIVE))
    found = convert(wants(10, 11), small)
    assert isinstance(found, tuple)
    # Two VMs had this disk under virtlockd, which can't see it: neither is counted as exclusive.
    assert [each.mode for each in found] == [Mode.SHARED, Mode.SHARED]
    assert not any(got)


def test_a_descriptor_without_a_lock_is_closed_after_all_others_have_theirs() -> None:
    small = kernel(10, 12)
    got: list[bool] = []
    small.rival = lambda: got.append(small.rival_takes(FILE, Mode.EXCLUSIVE))
    assert convert(wants(10), small, spare=[12]) == (Converted(10, Mode.EXCLUSIVE, Mode.EXCLUSIVE),)
    assert not any(got)


@pytest.mark.parametrize("failing", ["posix", "ofd"])
def test_what_fails_before_the_process_lets_go_leads_back(failing: str) -> None:
    small = SmallKernel({10: FILE, 11: OTHER}, {FILE: Mode.EXCLUSIVE, OTHER: Mode.EXCLUSIVE})
    small.fails = lambda kind, fd, mode: errno.ENOLCK if (kind, fd, mode) == (failing, 11, Mode.SHARED) else 0
    got: list[bool] = []
    small.rival = lambda: got.append(small.rival_takes(FILE, Mode.EXCLUSIVE))
    found = convert([*wants(10), *wants(11, file=OTHER)], small)
    assert isinstance(found, WentBack)
    assert f"error {errno.ENOLCK}" in found.why
    assert found.weaker == ()
    assert small.process == {FILE: Mode.EXCLUSIVE, OTHER: Mode.EXCLUSIVE}
    assert small.descriptions == {}
    assert not any(got)


def test_a_way_back_that_a_shared_rival_bars_says_so() -> None:
    small = SmallKernel({10: FILE, 11: OTHER}, {FILE: Mode.EXCLUSIVE, OTHER: Mode.EXCLUSIVE})
    small.fails = lambda kind, fd, _: errno.ENOLCK if (kind, fd) == ("ofd", 11) else 0
    small.rival = lambda: small.rival_takes(FILE, Mode.SHARED)
    found = convert([*wants(10), *wants(11, file=OTHER)], small)
    assert isinstance(found, WentBack)
    assert found.weaker == (10,)
    assert small.process[FILE] is Mode.SHARED, "an exclusive rival is still kept out"


def test_a_lock_that_somebody_else_has_is_reported_as_lost_and_stops_no_other() -> None:
    small = SmallKernel({10: FILE, 11: OTHER}, {OTHER: Mode.EXCLUSIVE}, rivals={FILE: Mode.EXCLUSIVE})
    found = convert([*wants(10), *wants(11, file=OTHER)], small)
    assert isinstance(found, tuple)
    assert [each.mode for each in found] == [None, Mode.EXCLUSIVE]
    assert "before" in found[0].why


@pytest.mark.parametrize("calls", range(1, 5))
def test_a_copy_finishes_what_a_killed_process_had_begun(calls: int) -> None:
    """The process ends after so many calls: its POSIX lock goes, what its descriptor has stays with the copy."""
    small = kernel(10)

    class Killed(Exception):
        pass

    def ends() -> None:
        if len(small.calls) == calls:
            raise Killed

    small.rival = ends
    try:
        convert(wants(10), small)
    except Killed:
        pass
    small.rival = lambda: None
    small.process.clear()
    assert small.rival_takes(FILE, Mode.EXCLUSIVE) is (calls == 1), "from step 2 on nobody gets in"
    found = confirm(wants(10)[0], small)
    assert found.mode is (None if calls == 1 else Mode.EXCLUSIVE)


RIVAL = """
import fcntl, sys
f = open(sys.argv[1], "r+b")
kind = fcntl.LOCK_EX if sys.argv[2] == "exclusive" else fcntl.LOCK_SH
tries = 0
print("tries", flush=True)
while True:
    tries += 1
    try:
        fcntl.lockf(f, kind | fcntl.LOCK_NB, 1, 0)
    except BlockingIOError:
        pass
    else:
        print("got it", tries, flush=True)
        sys.stdin.read()
"""
CONVERTS = """
import os, sys
from holdfast.model import Mode
from holdfast.switch.lock_conversion import ProcessLock, convert
from holdfast.system.files.process_locks import KernelRecordLocks
path, rounds = sys.argv[1], int(sys.argv[2])
locks = KernelRecordLocks()
fd = os.open(path, os.O_RDWR)
at = os.fstat(fd)
assert locks.posix(fd, Mode.EXCLUSIVE) == 0
print("holds", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    found = convert([ProcessLock(fd, (at.st_dev, at.st_ino), Mode.EXCLUSIVE)], locks)
    print(found[0].mode.word, flush=True)
    if not found[0].is_whole:
        break
    # Back, by the same four steps the other way round.
    done = [locks.ofd(fd, Mode.SHARED), locks.posix(fd, Mode.SHARED), locks.ofd(fd, None), locks.posix(fd, Mode.EXCLUSIVE)]
    if any(done):  # a shared rival is in the way
        print("shared", flush=True)
        break
sys.stdin.read()
"""


@pytest.mark.parametrize("rival", ["exclusive", "shared"])
def test_real_rivals_that_try_all_the_while(tmp_path: Path, rival: str) -> None:
    disk = tmp_path / "disk"
    disk.touch()

    def started(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    with started(CONVERTS, str(disk), "3000") as ours:
        assert ours.stdout is not None and ours.stdin is not None
        assert ours.stdout.readline() == "holds\n"
        theirs = started(RIVAL, str(disk), rival)
        assert theirs.stdout is not None
        assert theirs.stdout.readline() == "tries\n"
        ours.stdin.write("\n")
        ours.stdin.flush()
        said: list[str] = []
        while len(said) < 3000 and (line := ours.stdout.readline()) == "exclusive\n":
            said.append(line)
        if rival == "exclusive":
            assert len(said) == 3000, line
            theirs.kill()
            assert theirs.stdout.readline() == "", "it got the lock"
        elif len(said) < 3000:
            # It may be refused 3000 times; if it got in, the lock is shared and no exclusive one can be had.
            assert line == "shared\n"
            with disk.open("r+b") as third, pytest.raises(BlockingIOError):
                fcntl.lockf(third, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        ours.kill()
        with theirs:
            theirs.kill()


def test_the_kernel_drops_posix_locks_with_any_descriptor_and_ours_not(tmp_path: Path) -> None:
    """What the whole order is about."""
    disk = tmp_path / "disk"
    disk.touch()
    fd, other = os.open(disk, os.O_RDWR), os.open(disk, os.O_RDWR)
    locks, at = KernelRecordLocks(), os.fstat(fd)
    assert locks.posix(fd, Mode.EXCLUSIVE) == 0
    convert([ProcessLock(fd, (at.st_dev, at.st_ino), Mode.EXCLUSIVE)], locks, spare=[other])
    asks = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", asks, str(disk)], capture_output=True, text=True, check=False
        )
        assert "BlockingIOError" in done.stderr
        assert packed_lock(None) != packed_lock(Mode.SHARED)
    finally:
        os.close(fd)

"""What a start of holdfastd makes of what a switch has left behind: a keeper, a file, descriptors in systemd's store."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from holdfast.manager.journal_replay import replay
from holdfast.model import Mode, Resource
from holdfast.switch import keeper, left_behind, place
from holdfast.switch.as_reexec import Facts
from holdfast.switch.fetch import Ended, NotFetched, take_over
from holdfast.switch.order import _give_up
from holdfast.switch.virtlockd_state import Client, HeldLock, VirtlockdState
from holdfast.system.files.ofd_lock import FileKey, key_of
from holdfast.system.host import fd_messages
from holdfast.system.host.descriptors import Inherited, ReexecState

GONE = 1 << 30
"""No process has this pid."""


@pytest.fixture(autouse=True)
def place_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCKS", "KEEPER"):
        monkeypatch.setattr(place, name, str(tmp_path / name.lower()))


def state(*fds: int) -> VirtlockdState:
    locks = [
        HeldLock(fd, Resource("", f"/d/{n}"), f"/d/{n}", Mode.EXCLUSIVE, False, (52,))
        for n, fd in enumerate(fds, 1)
    ]
    return VirtlockdState((4,), (Client(9, True, 52, 7, "vm-a", "u"),), tuple(locks), ("/ls",), ())


def left(pid: int = GONE) -> None:
    facts = Facts("boot", "host", "file", 1.0, lambda _: 99, {10: FileKey(1, 2), 11: FileKey(1, 3)})
    left_behind.write(state(10, 11), facts, pid)


def start(inherited: Inherited, beside: int | None = None) -> Ended | None:
    return take_over(inherited, {}, lambda: beside)


def test_what_virtlockd_had_is_adopted_without_descriptors_and_forgotten_when_it_is_held() -> None:
    left()
    inherited = Inherited()
    assert start(inherited) == Ended(GONE, ["vm-a: /d/1", "vm-a: /d/2"])
    assert inherited.reexec is not None
    assert (inherited.reexec.locks, inherited.reexec.connections, inherited.reexec.listeners) == ({}, [], {})
    saved = replay(inherited.reexec.journal)
    assert saved.is_whole
    assert [each.path for each in saved.locks.values()] == ["/d/1", "/d/2"]
    assert [each.process.start_ticks for each in saved.owners.values()] == [99]
    assert os.path.exists(place.LOCKS), "until all is held"
    inherited.taken()
    assert start(Inherited()) is None


def test_descriptors_of_a_start_that_ended_before_are_the_locks_and_are_not_closed() -> None:
    left()
    one, other = os.pipe()
    inherited = Inherited(named=[("lock-2", one), ("conn-1-1", other), ("holdfastd.socket", 3)])
    assert start(inherited) is not None
    assert inherited.reexec is not None
    assert inherited.reexec.locks == {2: one}
    assert inherited.named == [("conn-1-1", other), ("holdfastd.socket", 3)]
    os.fstat(one)
    os.close(one)
    os.close(other)


def test_beside_a_virtlockd_that_began_since_nothing_is_taken() -> None:
    left()
    inherited = Inherited()
    assert start(inherited, beside=77) is None
    assert inherited.reexec is None
    assert os.path.exists(place.LOCKS)


def test_a_file_that_can_not_be_read_or_is_in_use_bars_the_start() -> None:
    Path(place.LOCKS).write_text("{")
    with pytest.raises(NotFetched, match="can't be read"):
        start(Inherited())
    with subprocess.Popen(["sleep", "100"]) as process:
        left(process.pid)
        with pytest.raises(NotFetched, match="is being switched just now"):
            start(Inherited())
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start(Inherited()) is not None, "a zombie has no locks"


def test_a_daemon_that_was_virtlockd_forgets_its_own_file_and_no_other() -> None:
    for pid, stays in ((os.getpid(), False), (GONE, True)):
        left(pid)
        inherited = Inherited(reexec=ReexecState(1, {}, [], {}, [], b"", [], -1))
        assert start(inherited) is None
        inherited.taken()
        assert os.path.exists(place.LOCKS) is stays


def test_a_keeper_says_which_processes_had_the_locks_when_it_got_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pid may be another process's by the time that all is fetched."""
    disk = tmp_path / "disk"
    disk.touch()
    fd, sock = os.open(disk, os.O_RDWR), os.open(disk, os.O_RDWR)
    monkeypatch.setattr(keeper, "decode", lambda _raw, _pid: state(fd))
    monkeypatch.setattr(keeper, "start_ticks", lambda _: 1000)
    memory = fd_messages.memory_file(b"", "test")
    kept = keeper._kept({"pid": 51, "backend": "file"}, [memory, fd, sock])
    monkeypatch.setattr(keeper, "start_ticks", lambda _: 2000)
    assert kept is not None
    assert kept.facts.start_ticks(52) == 1000
    assert kept.facts.keys == {fd: key_of(os.fstat(fd))}
    os.close(fd)
    os.close(sock)


def test_by_virtlockds_own_file_what_is_known_of_its_locks_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed before its program could say so."""
    disk = tmp_path / "disk"
    disk.touch()
    lock = HeldLock(10, Resource("", str(disk)), str(disk), Mode.EXCLUSIVE, False, (52,))
    gone = HeldLock(11, Resource("", "/no/such"), "/no/such", Mode.SHARED, False, (52,))
    found = VirtlockdState((), (), (lock, gone), (), ())
    monkeypatch.setattr(left_behind, "STATE_FILE", str(disk))
    monkeypatch.setattr(left_behind, "decode", lambda _raw, _pid: found)
    made = left_behind.write_of(GONE, "file")
    assert [(each.resource, each.mode) for each in made] == [(str(disk), "exclusive"), ("/no/such", "shared")]
    inherited = Inherited()
    assert start(inherited) is not None
    assert inherited.reexec is not None
    saved = replay(inherited.reexec.journal)
    assert [(each.path, each.keys) for each in saved.locks.values()] == [
        (str(disk), (key_of(os.stat(disk)),))
    ]


def test_a_new_switch_says_which_locks_of_a_killed_one_it_gives_up() -> None:
    said: list[str] = []
    _give_up(said.append)
    assert said == []
    left()
    _give_up(said.append)
    assert "vm-a: /d/1; vm-a: /d/2" in said[0]

"""Which daemon is dead although threads of it are left, from what /proc says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.system.block_io import thread_name
from holdfast.system.files import daemon_lock
from holdfast.system.host.predecessor import (
    Alive,
    DeadButStuck,
    Gone,
    Predecessors,
    ProcTasks,
    StuckTask,
    parse_task,
)

PID = 700
KILLED, NOTHING = "0000000000000100", "0000000000000000"
EXITING = 0x40404C  # PF_EXITING and some others, as a thread in exit_files() has them
RUNS = 0x404048


def task(
    root: Path, tid: int, state: str, *, pending: str = NOTHING, shared: str = NOTHING, flags: int = RUNS,
    name: str = "holdfastd", start: int = 5000,
) -> None:  # fmt: skip
    place = root / str(PID) / "task" / str(tid)
    place.mkdir(parents=True, exist_ok=True)
    numbers = [1, PID, PID, 0, -1, flags, *[0] * 12, start, 0, 0]
    (place / "stat").write_text(f"{tid} ({name}) {state} {' '.join(map(str, numbers))}\n")
    (place / "status").write_text(
        f"Name:\t{name}\nSigPnd:\t{pending}\nShdPnd:\t{shared}\nSigBlk:\t{KILLED}\n"
    )


def test_zombie_with_a_killed_thread_inside_the_kernel_is_dead_but_stuck(tmp_path: Path) -> None:
    task(tmp_path, PID, "Z")
    task(tmp_path, 701, "D", pending=KILLED, name="hf.0123456789ab")
    task(tmp_path, 702, "D", flags=EXITING)
    found = ProcTasks(str(tmp_path)).fate(PID)
    assert found == DeadButStuck(PID, (StuckTask(701, "hf.0123456789ab", 5000),))


@pytest.mark.parametrize(
    ("state", "more"),
    [
        ("S", {}),
        ("D", {}),
        ("R", {"pending": KILLED}),  # it may have a last instruction before it
        ("t", {}),
    ],
)
def test_zombie_with_a_thread_that_may_still_run_is_alive(
    tmp_path: Path, state: str, more: dict[str, str]
) -> None:
    task(tmp_path, PID, "Z")
    task(tmp_path, 701, "D", pending=KILLED)
    task(tmp_path, 702, state, **more)  # type: ignore[arg-type]
    assert isinstance(ProcTasks(str(tmp_path)).fate(PID), Alive)


def test_leader_that_runs_is_alive_whatever_its_threads_are(tmp_path: Path) -> None:
    task(tmp_path, PID, "S")
    task(tmp_path, 701, "D", pending=KILLED)
    assert ProcTasks(str(tmp_path)).fate(PID) == Alive(PID)


def test_leader_that_was_killed_inside_the_kernel_is_dead_too(tmp_path: Path) -> None:
    task(tmp_path, PID, "D", shared=KILLED)
    assert isinstance(ProcTasks(str(tmp_path)).fate(PID), DeadButStuck)


def test_zombie_alone_and_no_process_at_all_are_gone(tmp_path: Path) -> None:
    assert ProcTasks(str(tmp_path)).fate(PID) == Gone(PID)
    task(tmp_path, PID, "Z")
    assert ProcTasks(str(tmp_path)).fate(PID) == Gone(PID)


def test_thread_that_cannot_be_read_counts_as_alive(tmp_path: Path) -> None:
    task(tmp_path, PID, "Z")
    (tmp_path / str(PID) / "task" / "701").mkdir()
    assert isinstance(ProcTasks(str(tmp_path)).fate(PID), Alive)


def test_name_with_parentheses_and_blanks_does_not_shift_the_fields() -> None:
    stat = b"701 (a) S 1 (b c) D 1 700 700 0 -1 4 0 0 0 0 0 0 0 0 0 0 0 0 77 0 0\n"
    found = parse_task(701, stat, b"SigPnd:\t0000000000000000\n")
    assert found is not None
    assert (found.state, found.exiting, found.start_ticks, found.killed) == ("D", True, 77, False)


@pytest.mark.parametrize("stat", [b"", b"701 (x", b"701 (x) D 1", b"701 (x) D a b c d e f g h"])
def test_line_that_is_not_one_is_no_task(stat: bytes) -> None:
    assert parse_task(701, stat, b"") is None


def test_own_process_is_alive() -> None:
    assert ProcTasks().fate(os.getpid()) == Alive(os.getpid())


def test_stuck_thread_is_inside_the_storage_of_its_pool_only_and_one_without_a_name_anywhere(
    tmp_path: Path,
) -> None:
    task(tmp_path, PID, "Z")
    task(tmp_path, 701, "D", pending=KILLED, name=thread_name.of_pool("leases of A"))
    tasks = ProcTasks(str(tmp_path))
    dead = tasks.fate(PID)
    assert isinstance(dead, DeadButStuck)
    before = Predecessors([dead], tasks)
    assert before.inside(["lockspace A", "leases of A"]) == PID
    assert before.inside(["lockspace B", "leases of B"]) is None
    task(tmp_path, 701, "D", pending=KILLED, name="holdfastd")
    unnamed = tasks.fate(PID)
    assert isinstance(unnamed, DeadButStuck)
    assert Predecessors([unnamed], tasks).inside(["leases of B"]) == PID


def test_stuck_thread_is_inside_until_it_exits_or_its_number_is_anothers(tmp_path: Path) -> None:
    pool = "lockspace A"
    task(tmp_path, PID, "Z")
    task(tmp_path, 701, "D", pending=KILLED, name=thread_name.of_pool(pool))
    tasks = ProcTasks(str(tmp_path))
    dead = tasks.fate(PID)
    assert isinstance(dead, DeadButStuck)
    before = Predecessors([dead], tasks)
    assert before.inside([pool]) == PID
    task(tmp_path, 701, "D", flags=EXITING, name=thread_name.of_pool(pool))
    assert before.inside([pool]) is None
    task(tmp_path, 701, "D", pending=KILLED, name=thread_name.of_pool(pool), start=9000)
    assert before.inside([pool]) is None


def test_locks_of_a_dead_daemon_are_read_from_its_threads(tmp_path: Path) -> None:
    task(tmp_path, PID, "Z")
    task(tmp_path, 701, "D", pending=KILLED)
    infos = tmp_path / str(PID) / "task" / "701" / "fdinfo"
    infos.mkdir()
    (infos / "9").write_text(
        "pos:\t0\nflags:\t0100002\nlock:\t1: OFDLCK  ADVISORY  WRITE -1 00:2d:1234 0 0\n"
    )
    (infos / "10").write_text("pos:\t0\nlock:\t1: OFDLCK  ADVISORY  READ -1 08:01:77 100 101\n")
    dead = DeadButStuck(PID, ())
    before = Predecessors([dead], ProcTasks(str(tmp_path)))
    assert before.holds([(os.makedev(0, 0x2D), 1234)], "/a") == PID
    assert before.holds([(os.makedev(0, 0x31), 1234)], "/a") == PID, "btrfs shows a subvolume's number"
    assert before.holds([(os.makedev(8, 1), 1234)], "/a") is None
    assert before.holds([(os.makedev(8, 1), 77)], "/a") is None, "QEMU's byte, not ours"


# --- the locks of a directory ---


def holder(path: Path) -> subprocess.Popen[bytes]:
    """Another process that has claimed the directory and lives."""
    code = (
        "import sys; from holdfast.system.files.daemon_lock import claim; c = claim(sys.argv[1]); "
        "print('.', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b".\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def playing_dead(process: subprocess.Popen[bytes]) -> ProcTasks:
    """/proc as it would be if that process were stuck."""

    class Tasks(ProcTasks):
        def fate(self, pid: int) -> DeadButStuck | Alive | Gone:
            return DeadButStuck(pid, ()) if pid == process.pid else super().fate(pid)

    return Tasks()


def test_directory_of_a_living_daemon_is_refused_with_its_pid(tmp_path: Path) -> None:
    other = holder(tmp_path / "holdfastd.pid")
    try:
        with pytest.raises(daemon_lock.InUse) as refused:
            daemon_lock.claim(str(tmp_path / "holdfastd.pid"))
        assert refused.value.pid == other.pid
        assert (tmp_path / "holdfastd.pid").read_text() == f"{other.pid}\n"
    finally:
        end(other)


def test_directory_of_a_dead_daemon_is_had_under_the_next_number(tmp_path: Path) -> None:
    path = tmp_path / "holdfastd.pid"
    other = holder(path)
    try:
        claimed = daemon_lock.claim(str(path), playing_dead(other))
        assert [dead.pid for dead in claimed.predecessors] == [other.pid]
        assert (tmp_path / "holdfastd.pid.1").read_text() == f"{os.getpid()}\n"
        assert daemon_lock.survey(str(path), playing_dead(other)) == claimed.predecessors
        os.close(claimed.fd)
    finally:
        end(other)


def test_daemon_behind_a_dead_one_keeps_the_directory_when_that_has_ended(tmp_path: Path) -> None:
    """The first number is free again then; a starter that took only that would be a second daemon."""
    path = tmp_path / "holdfastd.pid"
    dead = holder(path)
    claimed = daemon_lock.claim(str(path), playing_dead(dead))
    end(dead)
    third = subprocess.run(
        [sys.executable, "-c", "import sys; from holdfast.system.files import daemon_lock as d\n"
         "try: d.claim(sys.argv[1])\nexcept d.InUse as e: print(e.pid)", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert third.stdout == f"{os.getpid()}\n"
    os.close(claimed.fd)


def test_daemon_that_has_just_been_killed_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "holdfastd.pid"
    other = holder(path)
    other.kill()
    claimed = daemon_lock.claim(str(path))
    assert claimed.predecessors == ()
    os.close(claimed.fd)
    end(other)


def test_file_in_place_of_which_something_else_is_gives_a_reason(tmp_path: Path) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        "a FIFO": os.mkfifo,
        "a directory": os.mkdir,
        "a symbolic link": lambda at: os.symlink("/nowhere/at/all", at),
    }
    for number, (kind, make) in enumerate(makers.items()):
        at = tmp_path / str(number)
        make(at)
        with pytest.raises(OSError, match=f"{at} is {kind}, not a file"):
            daemon_lock.claim(str(at))


def test_of_many_starters_behind_a_dead_daemon_one_gets_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "holdfastd.pid"
    dead = holder(path)
    code = (
        "import sys, time\n"
        "from holdfast.system.files import daemon_lock as d\n"
        "from holdfast.system.host.predecessor import DeadButStuck, ProcTasks\n"
        "class Tasks(ProcTasks):\n"
        "    def fate(self, pid):\n"
        "        return DeadButStuck(pid, ()) if pid == int(sys.argv[2]) else super().fate(pid)\n"
        "sys.stdin.readline()\n"
        "try: claimed = d.claim(sys.argv[1], Tasks()); print('has it', flush=True)\n"
        "except d.InUse as e: print('refused', flush=True)\n"
        "sys.stdin.read()\n"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(dead.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(8)
    ]
    try:
        for each in starters:
            assert each.stdin is not None
            each.stdin.write(b"go\n")
            each.stdin.flush()
            if each is starters[3]:
                end(dead)  # the first number becomes free among them
        answers = [each.stdout.readline() for each in starters if each.stdout is not None]
        assert sorted(answers) == [b"has it\n", *[b"refused\n"] * 7]
    finally:
        for each in starters:
            end(each)


def test_starter_does_not_decide_while_another_has_not_decided(tmp_path: Path) -> None:
    """A found the first number with a dead daemon, which ends now. B comes, takes that number, and finds all others free; A
    takes the next one, for the first is a dead daemon's: two daemons.
    """
    path = tmp_path / "holdfastd.pid"
    dead = holder(path)
    outcomes: list[object] = []
    b_is_done = threading.Event()

    def b() -> None:
        try:
            outcomes.append(daemon_lock.claim(str(path)))
        except daemon_lock.InUse as e:
            outcomes.append(e)
        b_is_done.set()

    b_thread = threading.Thread(target=b)

    class WhileBComes(ProcTasks):
        def fate(self, pid: int) -> DeadButStuck | Alive | Gone:
            end(dead)
            b_thread.start()
            b_is_done.wait(1.0)  # in vain, if they take turns
            return DeadButStuck(dead.pid, ())

    a = daemon_lock.claim(str(path), WhileBComes())
    b_thread.join()
    (outcome,) = outcomes
    assert isinstance(outcome, daemon_lock.InUse)
    assert outcome.pid == os.getpid()
    os.close(a.fd)

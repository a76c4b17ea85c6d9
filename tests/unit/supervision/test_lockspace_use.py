"""One daemon of a host in a lockspace: its lock, and the record that stands when it has ended."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.supervision.lockspace_use import LockspaceUse, User
from holdfast.system.block_io import thread_name
from holdfast.system.files.lockspace_locks import SystemSpaceLock, SystemSpaceLocks
from holdfast.system.host.predecessor import Alive, DeadButStuck, JobFate, Predecessors, ProcTasks, StuckTask

NAME = "vms"
OURS = User("this-boot", "/run/a", "/var/a")
THEIRS = User("this-boot", "/run/b", "/var/b")


class Full(SystemSpaceLock):
    """On a file system without room, as long as `full`."""

    full = True

    def replace(self, raw: bytes) -> None:
        if self.full and raw:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().replace(raw)


def lock_at(place: Path) -> SystemSpaceLock:
    return SystemSpaceLocks(str(place)).of(NAME)


def use(place: Path, user: User = OURS, lock: SystemSpaceLock | None = None) -> LockspaceUse:
    return LockspaceUse(NAME, lock or lock_at(place), user, stuck=lambda dead: dead.inside(["lockspace vms"]))


def killed(place: Path, user: User) -> None:
    """A daemon with these directories used it, and has ended without leaving it."""
    lock = lock_at(place)
    assert use(place, user, lock).take(resuming=False) == ""
    lock.unlock()


@pytest.fixture
def living(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that uses the lockspace, with other directories."""
    code = (
        "import sys, signal\n"
        "from pathlib import Path\n"
        "from tests.unit.supervision.test_lockspace_use import THEIRS, use\n"
        "held = use(Path(sys.argv[1]), THEIRS)\n"
        "print(held.take(resuming=False), flush=True)\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_living_daemon_with_other_directories_is_named_and_refuses_another(
    tmp_path: Path, living: subprocess.Popen[bytes]
) -> None:
    conflict = use(tmp_path).take(resuming=False)
    assert f"lockspace vms is used by another holdfastd of this host (pid {living.pid}, {THEIRS})" in conflict
    assert "stop that one" in conflict


def test_lock_alone_refuses_when_the_record_was_removed(
    tmp_path: Path, living: subprocess.Popen[bytes]
) -> None:
    os.unlink(lock_at(tmp_path).path)
    assert f"pid {living.pid}" in use(tmp_path).take(resuming=False)
    assert f"pid {living.pid}" in use(tmp_path).take(resuming=True)


def test_killed_daemons_record_refuses_another_one_and_its_lock_stays_free_for_it(
    tmp_path: Path, living: subprocess.Popen[bytes]
) -> None:
    living.kill()
    living.wait()
    ours = use(tmp_path)
    conflict = ours.take(resuming=False)
    assert "has ended (run_dir /run/b, state_dir /var/b)" in conflict
    assert "start it once with these directories" in conflict
    assert ours.descriptor() is None
    back = use(tmp_path, THEIRS)
    assert back.take(resuming=False) == ""
    back.leave()
    assert ours.take(resuming=False) == ""
    assert ours.descriptor() is not None


@pytest.mark.parametrize(
    "other", [User("this-boot", "/run/a", "/var/b"), User("this-boot", "/run/b", "/var/a")]
)
def test_either_directory_makes_another_user(tmp_path: Path, other: User) -> None:
    """run_dir edited while the daemon is down: the journal of what is held is not found there."""
    killed(tmp_path, other)
    assert str(other) in use(tmp_path).take(resuming=False)


def test_own_record_and_one_of_another_boot_refuse_nothing(tmp_path: Path) -> None:
    killed(tmp_path, OURS)
    killed(tmp_path, OURS)
    again = use(tmp_path, User("next-boot", "/run/b", "/var/b"))
    assert again.take(resuming=False) == ""


@pytest.mark.parametrize("raw", [b"{", b"\xff", b'{"users":7}', b"x" * (1 << 17)])
def test_damaged_record_counts_as_anothers_until_a_term_of_this_daemon_goes_on(
    tmp_path: Path, raw: bytes
) -> None:
    killed(tmp_path, OURS)
    record = Path(lock_at(tmp_path).path)
    record.write_bytes(raw)
    ours = use(tmp_path)
    conflict = ours.take(resuming=False)
    assert str(record) in conflict
    assert "can't be read" in conflict
    assert ours.take(resuming=True) == ""
    ours.leave()
    assert use(tmp_path).take(resuming=False) == ""


def test_record_that_is_no_file_counts_as_anothers(tmp_path: Path) -> None:
    killed(tmp_path, OURS)
    record = Path(lock_at(tmp_path).path)
    record.unlink()
    os.mkfifo(record)
    assert "FIFO" in use(tmp_path).take(resuming=False)


def test_term_that_goes_on_keeps_the_record_of_another_daemon(tmp_path: Path) -> None:
    killed(tmp_path, THEIRS)
    ours = use(tmp_path)
    assert ours.take(resuming=True) == ""
    ours.leave()
    assert str(THEIRS) in ours.take(resuming=False)


def test_term_that_could_not_go_on_leaves_the_lock_to_the_other_daemon(tmp_path: Path) -> None:
    killed(tmp_path, THEIRS)
    ours = use(tmp_path)
    assert ours.take(resuming=True) == ""
    assert str(THEIRS) in ours.take(resuming=False, users_gone=True)
    assert use(tmp_path, THEIRS).take(resuming=False) == ""


def both_recorded(place: Path) -> None:
    """Ours was resumed beside the record of the other daemon, and both have ended."""
    killed(place, THEIRS)
    lock = lock_at(place)
    assert use(place, OURS, lock).take(resuming=True) == ""
    lock.unlock()


def test_refused_daemon_that_no_vm_depends_on_does_not_keep_the_other_one_out(tmp_path: Path) -> None:
    both_recorded(tmp_path)
    lock = lock_at(tmp_path)
    assert str(THEIRS) in use(tmp_path, lock=lock).take(resuming=False, users_gone=True)
    assert not lock.held
    assert use(tmp_path, THEIRS).take(resuming=False, users_gone=True) == ""


def test_refused_daemon_stays_recorded_as_long_as_vms_may_depend_on_it(tmp_path: Path) -> None:
    """Its incarnation is searched for on storage."""
    both_recorded(tmp_path)
    lock = lock_at(tmp_path)
    ours = use(tmp_path, lock=lock)
    assert str(THEIRS) in ours.take(resuming=False)
    lock.lock(patient=False)  # as it was passed on by a reload
    assert str(THEIRS) in ours.take(resuming=False)
    assert not lock.held
    assert str(OURS) in use(tmp_path, THEIRS).take(resuming=False)


class Counting(SystemSpaceLock):
    """How often the lock was tried."""

    tried = 0

    def lock(self, *, patient: bool) -> Predecessors:
        self.tried += 1
        return super().lock(patient=patient)


def test_who_is_refused_by_a_record_does_not_try_the_lock(tmp_path: Path) -> None:
    """The first daemon may come back at any moment, and would be kept out by it."""
    killed(tmp_path, THEIRS)
    lock = Counting(f"{tmp_path}/vms", ProcTasks())
    assert str(THEIRS) in use(tmp_path, lock=lock).take(resuming=False)
    assert lock.tried == 0


def test_full_disk_refuses_what_is_new_and_leaves_the_lock(tmp_path: Path) -> None:
    lock = Full(f"{tmp_path}/vms", ProcTasks())
    ours = use(tmp_path, lock=lock)
    conflict = ours.take(resuming=False)
    assert "No space left" in conflict
    assert "host_locks" in conflict
    assert not lock.held
    lock.full = False
    assert ours.take(resuming=False) == ""


def test_full_disk_does_not_stop_a_term_that_goes_on_but_new_locks(tmp_path: Path) -> None:
    lock = Full(f"{tmp_path}/vms", ProcTasks())
    ours = use(tmp_path, lock=lock)
    assert ours.take(resuming=True) == ""
    assert "No space left" in ours.incomplete
    lock.full = False
    ours.complete()
    assert ours.incomplete == ""
    assert str(OURS) in use(tmp_path, THEIRS).take(resuming=False)


def test_lock_that_can_not_be_made_is_tried_again_beside_a_term_that_goes_on(tmp_path: Path) -> None:
    in_the_way = tmp_path / "vms" / "lock"
    in_the_way.mkdir(parents=True)
    ours = use(tmp_path)
    assert "can't be recorded" in ours.take(resuming=False)
    assert ours.take(resuming=True) == ""
    assert str(in_the_way) in ours.incomplete
    in_the_way.rmdir()
    ours.complete()
    assert (ours.incomplete, ours.descriptor() is not None) == ("", True)


def test_record_is_removed_on_a_full_disk_too(tmp_path: Path) -> None:
    killed(tmp_path, OURS)
    lock = Full(f"{tmp_path}/vms", ProcTasks())
    ours = use(tmp_path, lock=lock)
    assert ours.take(resuming=False) == ""
    ours.leave()
    assert use(tmp_path, THEIRS).take(resuming=False) == ""


def test_lock_is_passed_on_and_another_directorys_is_not(tmp_path: Path) -> None:
    first = lock_at(tmp_path)
    assert use(tmp_path, lock=first).take(resuming=False) == ""
    fd = os.dup(first.descriptor() or -1)
    passed = SystemSpaceLocks(str(tmp_path)).of(NAME, fd)
    assert passed.descriptor() == fd
    assert use(tmp_path, lock=passed).take(resuming=False) == ""
    elsewhere = SystemSpaceLocks(str(tmp_path / "other")).of(NAME, fd)
    assert not elsewhere.held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("name", [".", "..", "a.b", "../x", "lock", "Ünicode", "%2E", "a b\n", "." * 48])
def test_no_name_of_a_lockspace_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "host"
    lock = SystemSpaceLocks(str(inside)).of(name)
    lock.lock(patient=False)
    assert [each.name for each in tmp_path.iterdir()] == ["host"]
    (made,) = inside.iterdir()
    assert (made / "lock").is_file()
    lock.unlock()


def test_names_that_look_alike_have_locks_of_their_own(tmp_path: Path) -> None:
    locks = SystemSpaceLocks(str(tmp_path))
    paths = {locks.of(name).path for name in ("a.b", "a%2Eb", "a_b", "A.b", ".", "%2E", "lock", "lock.1")}
    assert len(paths) == 8


class Stuck(ProcTasks):
    """Whoever holds a lock was killed, and a thread of it hangs in a storage."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self._pool = pool

    def fate(self, pid: int) -> JobFate:
        return DeadButStuck(pid, (StuckTask(1, thread_name.of_pool(self._pool), 1),)) if pid else Alive(pid)

    def is_still_there(self, pid: int, task: StuckTask) -> bool:
        return True


@pytest.mark.parametrize(("pool", "waits"), [("lockspace vms", True), ("lockspace other", False)])
def test_dead_but_stuck_daemon_keeps_only_the_lockspace_that_it_is_stuck_in(
    tmp_path: Path, living: subprocess.Popen[bytes], pool: str, waits: bool
) -> None:
    lock = SystemSpaceLocks(str(tmp_path), Stuck(pool)).of(NAME)
    back = use(tmp_path, THEIRS, lock)
    conflict = back.take(resuming=False)
    assert ("still has a request inside its storage" in conflict) == waits
    assert lock.held
    assert (tmp_path / "vms" / "lock.1").exists()


@pytest.mark.parametrize(("pool", "stays"), [("lockspace vms", True), ("lockspace other", False)])
def test_refused_daemon_stays_recorded_while_a_dead_one_of_it_may_write(
    tmp_path: Path, living: subprocess.Popen[bytes], pool: str, stays: bool
) -> None:
    stuck = SystemSpaceLocks(str(tmp_path), Stuck(pool)).of(NAME)
    assert use(tmp_path, OURS, stuck).take(resuming=True) == ""
    stuck.unlock()
    assert str(THEIRS) in use(tmp_path, OURS, stuck).take(resuming=False, users_gone=True)
    record = lock_at(tmp_path).read()
    assert isinstance(record, bytes)
    assert (b"/run/a" in record) == stays

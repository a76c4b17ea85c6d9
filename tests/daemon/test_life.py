"""Restarts, deaths and stops of the real daemon with VMs holding locks through it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon import Factory, Holdfastd, bystander, exists, locked, make_disk
from tests.support.mounts import mounted
from tests.support.polling import wait_until

from holdfast.testing.virtlockd_client import AUTOCREATE, SHARED, CallFailed
from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire


def refused(daemon: Holdfastd, disk: Path | str) -> str:
    """Somebody else's try for a disk, which must fail; the message."""
    with daemon.client() as client:
        client.register(pid=bystander(7), name="rival")
        with pytest.raises(CallFailed) as error:
            client.acquire(str(disk))
    return error.value.reply.message


def free_for_others(daemon: Holdfastd, disk: Path | str) -> bool:
    with daemon.client() as client:
        client.register(pid=bystander(7), name="rival")
        try:
            client.acquire(str(disk))
        except CallFailed:
            return False
        client.release(str(disk))
    return True


# --- owners ---


@pytest.mark.parametrize("flags", [0, SHARED])
def test_lock_ends_with_its_owner(daemon: Holdfastd, place: Path, flags: int) -> None:
    disk = make_disk(place)
    vm = daemon.vm([disk, disk], name="web1", flags=flags)
    assert locked(disk)
    daemon.end_vm(vm)
    wait_until(lambda: not locked(disk), "the lock to go")
    assert not daemon.holders(disk)


def test_lock_file_of_a_dead_owner_is_removed(daemon: Holdfastd, place: Path) -> None:
    space = place / "space"
    space.mkdir()
    vm = daemon.vm(["n"], lockspace=str(space), flags=AUTOCREATE)
    assert locked(space / "n")
    daemon.end_vm(vm)
    wait_until(lambda: not (space / "n").exists(), "the lock file to go")


@pytest.mark.parametrize("ignoring", [(), (signal.SIGTERM,)])
def test_owner_that_closes_its_connection_is_dead_before_its_lock_is_free(
    daemon: Holdfastd, place: Path, ignoring: tuple[int, ...]
) -> None:
    disk, other = make_disk(place), make_disk(place, "other.img")
    vm = daemon.vm([disk], name="web1", ignoring=ignoring)
    order: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set() and "free" not in order:
            lives, holds = exists(vm), locked(disk)
            if not holds:
                # Looked at again: it may have died between the two looks, never the other way round.
                order.append("free while it lives" if exists(vm) else "free")
            elif not lives and "dead" not in order:
                order.append("dead")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        os.kill(vm, signal.SIGUSR2)
        daemon.says("it closed the connection that guards its locks")
        with daemon.client() as client:  # others are served meanwhile
            client.register(pid=bystander())
            client.acquire(str(other))
            client.release(str(other))
        _, status = os.waitpid(vm, 0)
        daemon.pids.remove(vm)
        wait_until(lambda: "free" in order, "the lock to go")
    finally:
        stop.set()
        watcher.join()
    assert "free while it lives" not in order
    assert os.WTERMSIG(status) == (signal.SIGKILL if ignoring else signal.SIGTERM)


def test_owner_without_locks_may_close_its_connection(daemon: Holdfastd) -> None:
    vm = daemon.vm()
    os.kill(vm, signal.SIGUSR2)
    with daemon.admin() as admin:
        wait_until(lambda: not admin.owners(), "the owner to be forgotten")
    assert exists(vm)


def test_lock_stays_when_those_who_spoke_for_a_living_owner_leave(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    with daemon.client() as client:
        client.register(pid=bystander(), name="kept")
        client.acquire(str(disk))
    assert "kept" in refused(daemon, disk)
    with daemon.client() as client:
        client.register(pid=bystander(), name="kept")
        client.release(str(disk))
    assert free_for_others(daemon, disk)


# --- re-exec ---


def test_reexec_keeps_locks_connections_and_owners(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    space = place / "space"
    vm = daemon.vm([disk], name="web1")
    with daemon.client() as client:
        client.register(pid=bystander(), name="spoken-for")
        client.create_lockspace(str(space))
        client.acquire("n", lockspace=str(space), flags=AUTOCREATE)
        pid = daemon.pid
        daemon.reexec()
        assert daemon.pid == pid
        assert daemon.process is not None
        assert daemon.process.poll() is None
        client.release("n", lockspace=str(space))  # still registered
    assert locked(disk)
    assert daemon.holders(disk) == [("web1", vm, True)]
    with daemon.admin() as admin:
        assert str(space) in admin.status().lockspaces
    daemon.end_vm(vm)
    wait_until(lambda: not locked(disk), "the lock to go: the new image watches the owner too")


def test_reexec_keeps_an_owner_that_holds_nothing_yet(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    with daemon.client() as client:
        client.register(pid=bystander(), name="later")
        daemon.reexec()
        client.acquire(str(disk))
        assert daemon.holders(disk) == [("later", bystander(), True)]


def test_reexec_never_lets_go_of_the_kernel_lock(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    daemon.vm([disk])
    gaps: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if not locked(disk):
                gaps.append("free")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        daemon.reexec()
        daemon.reexec()
    finally:
        stop.set()
        watcher.join()
    assert not gaps


def test_reexec_tolerates_clients_that_registered_nothing_or_sent_half_a_call(
    daemon: Holdfastd, place: Path
) -> None:
    """A real virtlockd dies of the first (virtlockd-rpc.md 4.2)."""
    disk = make_disk(place)
    vm = daemon.vm([disk])
    call = rpc.encode(
        rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, 8, rpc.TYPE_CALL, 5, 0), wire.CreateLockspace("").encode()
    )
    with daemon.client() as unregistered, daemon.client() as half, daemon.client() as restricted:
        half.socket.sendall(call[:15])
        restricted.register(pid=bystander())
        restricted.restrict()
        daemon.reexec()
        half.socket.sendall(call[15:])
        assert half.receive().header == rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, 8, rpc.TYPE_REPLY, 5, 0)
        unregistered.register(pid=bystander())
        with pytest.raises(CallFailed, match="restricted"):
            restricted.acquire(str(disk))
    assert daemon.holders(disk) == [("vm", vm, True)]


def test_reexec_with_unread_replies_loses_none_of_them(daemon: Holdfastd) -> None:
    header = rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, 99, rpc.TYPE_CALL, 0, 0)
    with daemon.client() as deaf:
        deaf.socket.setblocking(False)
        sent = 0
        raw = b""
        try:
            while True:
                if not raw:
                    raw = rpc.encode(header._replace(serial=sent))
                    sent += 1
                raw = raw[deaf.socket.send(raw) :]
        except BlockingIOError:
            pass
        daemon.reexec()
        deaf.socket.setblocking(True)
        deaf.socket.settimeout(60)
        for serial in range(sent - 1 if raw else sent):
            assert deaf.receive().header.serial == serial


def test_daemon_is_called_holdfastd_after_a_reload_too(daemon: Holdfastd) -> None:
    """It was called by its interpreter's name, and `pgrep holdfastd` missed it (review, L6)."""
    comm = Path(f"/proc/{daemon.pid}/comm")
    assert comm.read_text() == "holdfastd\n"
    daemon.reexec()
    assert comm.read_text() == "holdfastd\n"


def test_reexec_with_a_broken_configuration_is_refused_and_the_daemon_goes_on(
    daemon: Holdfastd, place: Path
) -> None:
    disk = make_disk(place)
    vm = daemon.vm([disk])
    good = daemon.config.read_text()
    daemon.config.write_text(good + "\n[limits]\nowners_max = 1\n")
    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.says("reload refused")
    assert daemon.holders(disk) == [("vm", vm, True)]
    daemon.config.write_text(good)
    daemon.reexec()
    assert daemon.holders(disk) == [("vm", vm, True)]


def test_many_signals_at_once_do_no_harm(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    vm = daemon.vm([disk])
    for _ in range(20):
        os.kill(daemon.pid, signal.SIGUSR1)
        os.kill(daemon.pid, signal.SIGHUP)
    daemon.says("goes on")
    daemon.reexec()
    wait_until(lambda: daemon.holders(disk) == [("vm", vm, True)], "the daemon to serve")


# --- restart without a descriptor store ---


def test_killed_daemon_is_started_again_and_retakes_the_locks_of_the_living(
    daemon: Holdfastd, place: Path
) -> None:
    disks = [make_disk(place, f"{n}.img") for n in range(4)]
    space = place / "space"
    lives = daemon.vm([disks[0]], name="lives")
    reads = [daemon.vm([disks[1]], name=f"reads{i}", flags=SHARED) for i in range(2)]
    dies = daemon.vm([disks[2]], name="dies")
    with daemon.client() as client:
        client.create_lockspace(str(space))
    indirect = daemon.vm(["n"], name="indirect", lockspace=str(space), flags=AUTOCREATE)
    daemon.kill()
    assert not locked(disks[0])
    daemon.end_vm(dies)
    daemon.start()
    assert daemon.holders(disks[0]) == [("lives", lives, True)]
    assert sorted(daemon.holders(disks[1])) == [(f"reads{i}", pid, True) for i, pid in enumerate(reads)]
    assert daemon.holders(disks[2]) == []
    assert all(locked(p) for p in (disks[0], disks[1], space / "n"))
    assert not locked(disks[2])
    assert "lives" in refused(daemon, disks[0])
    with daemon.client() as client:  # the lockspace is known without libvirtd having announced it
        client.register(pid=bystander())
        client.acquire("other", lockspace=str(space), flags=AUTOCREATE)
        client.release("other", lockspace=str(space))
    for pid in (lives, indirect):
        daemon.end_vm(pid)
    wait_until(lambda: not locked(disks[0]), "owners known from the journal to be watched")
    wait_until(lambda: not (space / "n").exists(), "the lock file to go")


def test_stopped_daemon_leaves_its_vms_alone_and_the_next_one_takes_their_locks(
    daemon: Holdfastd, place: Path
) -> None:
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    assert daemon.kill(signal.SIGTERM) == 0
    assert exists(vm)
    assert not os.path.exists(daemon.socket)
    assert not os.path.exists(daemon.control)
    daemon.start()
    assert exists(vm)
    assert daemon.holders(disk) == [("web1", vm, True)]


def test_lock_taken_by_somebody_else_meanwhile_is_reported_and_its_owner_paused(
    make_daemon: Factory, place: Path
) -> None:
    daemon = make_daemon(extra='[recovery]\non_lock_lost = "poweroff"').start()
    thief = make_daemon(name="thief").start()
    disk = make_disk(place)
    vm = daemon.vm([disk], name="robbed")
    daemon.kill()
    thief.vm([disk], name="thief")
    daemon.start()
    daemon.says(f"LOCK LOST: {disk} of robbed")
    os.waitpid(vm, 0)
    daemon.pids.remove(vm)
    assert thief.holders(disk)
    assert locked(disk)


def test_damaged_journal_is_told_and_what_can_be_read_is_used(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    daemon.kill()
    journal = daemon.run_dir / "journal"
    journal.write_bytes(journal.read_bytes() + b'["claim",' + b"[" * 100_000)
    daemon.start()
    daemon.says("is damaged")
    assert daemon.holders(disk) == [("web1", vm, True)]


def test_lock_in_the_journal_of_another_boot_is_not_taken(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    daemon.vm([disk])
    daemon.kill()
    journal = daemon.run_dir / "journal"
    # As an older daemon wrote it, without checksums and without its length beside it.
    newer = ('["sum"', '["series"')
    lines = [line for line in journal.read_text().splitlines() if not line.startswith(newer)]
    lines[0] = '["start",1,"another-boot","alpha"]'
    journal.write_text("\n".join(lines) + "\n")
    daemon.start()
    assert not locked(disk)
    assert not daemon.holders(disk)


# --- refused starts ---


def test_second_daemon_on_the_same_run_directory_is_refused_with_the_firsts_pid(
    daemon: Holdfastd,
) -> None:
    first, pid = daemon.process, daemon.pid
    assert daemon.spawn().wait(60) == 1
    daemon.says(f"another holdfastd (pid {pid}) uses {daemon.run_dir}")
    daemon.process = first


def test_foreign_listener_on_the_socket_is_refused_with_its_name(make_daemon: Factory) -> None:
    daemon = make_daemon()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(daemon.socket)
        foreign.listen()
        assert daemon.spawn().wait(60) == 71
    name = Path("/proc/self/comm").read_text().strip()
    daemon.says(f"{name} (pid {os.getpid()}) already listens there; stop it first")


def test_stale_socket_of_a_crash_is_no_obstacle(daemon: Holdfastd) -> None:
    daemon.kill()
    assert os.path.exists(daemon.socket)
    daemon.start()
    daemon.client().close()


def test_configuration_that_is_wrong_ends_the_start_with_2_and_every_problem(make_daemon: Factory) -> None:
    daemon = make_daemon(extra="[limits]\nowners_max = 1\n[nonsense]\n")
    assert daemon.spawn().wait(60) == 78
    daemon.says("limits.owners_max")
    daemon.says("nonsense: is not known")


# --- a full disk ---


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    path = place / "small"
    path.mkdir()
    with mounted(path, "-t", "tmpfs", "-o", "size=64k", "holdfast-test"):
        yield path


def fill(directory: Path) -> Path:
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as f, contextlib.suppress(OSError):
        while f.write(b"\0" * 4096):
            pass
    return filler


def on_small_disk(daemon: Holdfastd, small_disk: Path) -> Holdfastd:
    daemon.config.write_text(
        daemon.config.read_text().replace(str(daemon.run_dir), str(small_disk / "run"), 1)
    )
    daemon.run_dir = small_disk / "run"
    daemon.control = str(daemon.run_dir / "io.holdfast.Control")
    return daemon


@pytest.mark.parametrize("restarted", [False, True])
def test_paused_vm_gets_its_locks_back_although_the_run_directory_is_full(
    make_daemon: Factory, small_disk: Path, place: Path, restarted: bool
) -> None:
    daemon = on_small_disk(make_daemon(), small_disk).start()
    disk, other = make_disk(place, "1.img"), make_disk(place, "other.img")
    vm = bystander(1)
    with daemon.client() as client:
        client.register(pid=vm, name="paused")
        client.acquire(str(disk))
        filler = fill(small_disk)
        for _ in range(20):
            client.release(str(disk))
            client.acquire(str(disk))
        with daemon.admin() as admin:
            assert "No space left on device" in admin.status().journal
        client.release(str(disk))
        if restarted:
            daemon.kill()
            daemon.start()
    with contextlib.ExitStack() as newcomers:
        with pytest.raises(CallFailed, match="the journal can't record a new lock"):
            for number in range(2, 80):  # until the journal's own last page is full
                client = newcomers.enter_context(daemon.client())
                client.register(pid=bystander(number), name="new")
                client.acquire(str(make_disk(place, f"{number}.img")))
        client = newcomers.enter_context(daemon.client())
        client.register(pid=vm, name="paused")
        client.acquire(str(disk))
        assert daemon.holders(disk) == [("paused", vm, True)]
        daemon.kill()
        daemon.start()
        assert daemon.holders(disk) == [("paused", vm, True)], "the journal knows of it"
        filler.unlink()
        assert free_for_others(daemon, other)
        with daemon.admin() as admin:
            assert admin.status().journal == "ok"


def test_full_run_directory_refuses_new_locks_clearly_and_keeps_the_old_ones(
    make_daemon: Factory, small_disk: Path, place: Path
) -> None:
    daemon = on_small_disk(make_daemon(), small_disk).start()
    first, second = make_disk(place, "1.img"), make_disk(place, "2.img")
    vm = daemon.vm([first], name="first")
    filler = fill(small_disk)
    message = ""
    with daemon.client() as client:  # until the journal's own last page is full
        client.register(pid=bystander(), name="late")
        for _ in range(2000):
            try:
                client.acquire(str(second))
                client.release(str(second))
            except CallFailed as e:
                message = e.reply.message
                break
    assert "the journal can't record a new lock: No space left on device; free space for it" in message
    assert not locked(second)
    assert daemon.holders(first) == [("first", vm, True)]
    daemon.says("no new lock is granted until it can")
    filler.unlink()
    assert free_for_others(daemon, second)
    with daemon.admin() as admin:
        assert admin.status().journal == "ok"
    daemon.kill()
    daemon.start()
    assert daemon.holders(first) == [("first", vm, True)]

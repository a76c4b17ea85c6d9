"""Who has a file open: seen in any process, and never waiting for storage that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.fuse_storage import FaultyStorage
from tests.support.polling import wait_until

from holdfast.system.files.ofd_lock import FileKey, key_of
from holdfast.system.files.open_files import STUCK_WORKERS_MAX, SystemOpenFiles, Users

_OPENS = """
import os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
signal.pause()
"""

_LEADER_ENDS = """
import ctypes, os, sys, threading, time
fd = os.open(sys.argv[1], os.O_RDONLY)
threading.Thread(target=time.sleep, args=(1000,)).start()
print("open", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""

Opener = Callable[..., int]


@pytest.fixture
def opener() -> Iterator[Opener]:
    """Starts a process that opens a path and lives on; returns its pid."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path | str, program: str = _OPENS) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FaultyStorage]:
    storage = FaultyStorage(tmp_path / "behind", tmp_path / "mounted")
    (storage.source / "disk").write_bytes(b"\0" * 4096)
    yield storage
    storage.close()


def made(path: Path) -> Path:
    path.write_bytes(b"\0" * 4096)
    return path


def key(path: Path | str) -> FileKey:
    return key_of(os.stat(path))


def settled(files: SystemOpenFiles, *keys: FileKey) -> Users:
    """A complete answer: other processes of this machine come and go, and one that is just exiting is doubt."""

    def complete() -> Users | None:
        users = files.users_now(keys)
        return users if users.complete else None

    users = wait_until(complete, "a scan without doubt")
    assert users is not None
    return users


def test_file_that_nobody_has_open_has_no_users(tmp_path: Path) -> None:
    assert settled(SystemOpenFiles(), key(made(tmp_path / "disk"))).none


def test_process_is_found_whatever_path_it_opened_and_also_after_the_file_was_unlinked(
    tmp_path: Path, opener: Opener
) -> None:
    disk = made(tmp_path / "disk")
    wanted = key(disk)
    os.link(disk, tmp_path / "other name")
    (tmp_path / "link").symlink_to(disk)
    pids = {opener(disk), opener(tmp_path / "other name"), opener(tmp_path / "link")}
    opener(made(tmp_path / "another disk"))
    (tmp_path / "other name").unlink()
    disk.unlink()
    assert set(settled(SystemOpenFiles(), wanted).pids) == pids


def test_one_scan_answers_for_several_files(tmp_path: Path, opener: Opener) -> None:
    first, second, third = (made(tmp_path / name) for name in "abc")
    pids = {opener(first), opener(second)}
    opener(third)
    assert set(settled(SystemOpenFiles(), key(first), key(second)).pids) == pids


def test_users_end_with_their_process(tmp_path: Path, opener: Opener) -> None:
    disk = made(tmp_path / "disk")
    pid = opener(disk)
    files = SystemOpenFiles()
    assert settled(files, key(disk)).pids == (pid,)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: files.users_now([key(disk)]).none, "the ended process to be no user any more")


def test_descriptors_of_the_asking_process_are_locks_and_no_use(tmp_path: Path, opener: Opener) -> None:
    disk = made(tmp_path / "disk")
    pid = opener(disk)
    with disk.open("rb"):
        assert settled(SystemOpenFiles(), key(disk)).pids == (pid,)
        assert settled(SystemOpenFiles(ignored=lambda: (1, os.getpid(), pid)), key(disk)).none
        assert settled(SystemOpenFiles(ignored=lambda: (1,)), key(disk)).pids == tuple(
            sorted((os.getpid(), pid))
        )


def test_block_device_is_found_by_any_node_of_it(tmp_path: Path, opener: Opener) -> None:
    """A node in a directory of its own, as in the private /dev that libvirt gives each QEMU."""
    number = os.stat("/dev/loop0").st_rdev
    os.mknod(tmp_path / "node", 0o600 | stat.S_IFBLK, number)
    os.mknod(tmp_path / "other", 0o600 | stat.S_IFBLK, os.stat("/dev/loop1").st_rdev)
    pid = opener(tmp_path / "node")
    opener(tmp_path / "other")
    assert key(tmp_path / "node") == FileKey(-1, number)
    assert pid in settled(SystemOpenFiles(), key("/dev/loop0")).pids
    assert pid not in settled(SystemOpenFiles(), key("/dev/loop1")).pids


def test_storage_that_hangs_does_not_hide_that_a_disk_elsewhere_is_unused(
    tmp_path: Path, storage: FaultyStorage, opener: Opener
) -> None:
    opener(storage.at / "disk")
    disk = made(tmp_path / "disk")
    storage.stall()
    try:
        assert settled(SystemOpenFiles(answer_s=0.2), key(disk)).none
    finally:
        storage.healthy()


def test_disk_on_storage_that_hangs_counts_as_used_by_who_may_have_it_open(
    storage: FaultyStorage, opener: Opener
) -> None:
    wanted = key(storage.at / "disk")
    pids = [opener(storage.at / "disk") for _ in range(12)]
    storage.stall()
    try:
        files = SystemOpenFiles(answer_s=0.2)
        for scans in range(1, STUCK_WORKERS_MAX + 3):
            users = files.users_now([wanted])
            assert not users.complete
            assert not users.none
            assert set(pids) <= {*users.pids, *users.unclear}
            # Twelve descriptors, one wait in each scan; and no more threads than may hang.
            assert stuck_workers() == min(scans, STUCK_WORKERS_MAX)
    finally:
        storage.healthy()
    assert set(settled(files, wanted).pids) == set(pids)
    wait_until(lambda: not stuck_workers(), "the late answers to end their threads")


def test_process_whose_first_thread_has_ended_still_uses_its_files(tmp_path: Path, opener: Opener) -> None:
    """A killed QEMU looks like that while other threads hang in requests to storage."""
    disk = made(tmp_path / "disk")
    pid = opener(disk, _LEADER_ENDS)
    wait_until(lambda: state_of(pid) == "Z", "the first thread to end")
    assert settled(SystemOpenFiles(), key(disk)).pids == (pid,)


def test_killed_process_that_hangs_in_the_closing_of_its_files_is_doubt(
    storage: FaultyStorage, opener: Opener
) -> None:
    wanted = key(storage.at / "disk")
    pid = opener(storage.at / "disk")
    storage.stall()
    try:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not os.listdir(f"/proc/{pid}/fd"), "the table of descriptors to be taken apart")
        users = SystemOpenFiles(answer_s=0.2).users_now([wanted])
        assert state_of(pid) not in "ZX", "it hangs in closing its files"
        assert not users.complete
        assert pid in users.unclear
    finally:
        storage.healthy()
    wait_until(lambda: SystemOpenFiles().users_now([wanted]).none, "it to be closed")


def test_event_loop_goes_on_during_a_scan(tmp_path: Path, opener: Opener) -> None:
    disk = made(tmp_path / "disk")
    pid = opener(disk)

    async def scene() -> Users:
        key_locks = 0
        scan = asyncio.ensure_future(SystemOpenFiles().users([key(disk)]))
        while not scan.done():
            key_locks += 1
            await asyncio.sleep(0.001)
        assert key_locks > 1
        return scan.result()

    assert asyncio.run(scene()).pids == (pid,)


def stuck_workers() -> int:
    return sum(each.name == "stat" for each in threading.enumerate())


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        return f.read().rsplit(")", 1)[1].split()[0]

"""What is opened for its lock: files and block devices, found without opening anything else."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.model import Mode
from holdfast.system.block_io.disk_file import REAL_KERNEL, open_file
from holdfast.system.block_io.inflight_writes import InflightByDevice
from holdfast.system.files.checked_open import NotLockable, open_lockable
from holdfast.system.files.lockspace_files import LockspaceFiles
from holdfast.system.files.ofd_lock import IoFailed, SystemLockFiles
from holdfast.system.host.peer_rights import Rights, open_as

FILES = SystemLockFiles()
NOBODY = Rights(uid=65534, gid=65534, groups=())


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\0" * 4096)
    return path


def test_file_is_opened_by_its_path_and_by_a_link_to_it(disk: Path) -> None:
    link = disk.parent / "link"
    link.symlink_to(disk)
    for path in (disk, link):
        opened = FILES.open(str(path), create=False)
        assert not isinstance(opened, IoFailed)
        assert os.readlink(f"/proc/self/fd/{opened.fd}") == str(disk)
        assert FILES.lock(opened.fd, Mode.EXCLUSIVE, str(path)) is None
        FILES.close(opened.fd)


def test_link_is_not_followed_where_that_is_asked_for_or_a_file_may_be_made(disk: Path) -> None:
    link = disk.parent / "link"
    link.symlink_to(disk)
    for failed in (FILES.open(str(link), create=False, follow=False), FILES.open(str(link), create=True)):
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.ELOOP
    dangling = disk.parent / "dangling"
    dangling.symlink_to(disk.parent / "made")
    failed = FILES.open(str(dangling), create=True)
    assert isinstance(failed, IoFailed)
    assert "symbolic link has the name of the lock file" in failed.reason
    assert LockspaceFiles().create(str(dangling)) is not None
    assert not (disk.parent / "made").exists()


IN_OPEN, IN_NONBLOCK = 0x20, os.O_NONBLOCK  # <sys/inotify.h>


class OpensOf:
    """Whether a file has been opened since (inotify(7)); to pin it by O_PATH is no opening."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None)
        self._fd = libc.inotify_init1(IN_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, os.fsencode(path), IN_OPEN) >= 0

    def any(self) -> bool:
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._fd)


def open_lease_storage(path: str) -> object:
    return open_file(path, True, False, REAL_KERNEL, InflightByDevice())


OPENERS: dict[str, Callable[[str], object]] = {
    "a lock": lambda path: FILES.open(path, create=False),
    "a lock file": lambda path: FILES.open(path, create=True),
    "a lease": open_lease_storage,
    "for a user": lambda path: open_as(NOBODY, path, write=True),
}


@pytest.mark.parametrize("what", OPENERS)
@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFREG])
def test_only_what_may_be_a_disk_is_opened_at_all(tmp_path: Path, kind: int, what: str) -> None:
    """A watchdog is armed by being opened, whatever becomes of the descriptor."""
    path = tmp_path / "thing"
    os.mknod(path, 0o666 | kind, os.makedev(1, 3))
    os.chmod(path, 0o666)
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(0o755)
    opens = OpensOf(path)
    OPENERS[what](str(path))
    assert opens.any() == (kind == stat.S_IFREG)
    opens.close()


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
@pytest.mark.parametrize("create", [False, True])
def test_what_is_no_disk_is_never_opened(tmp_path: Path, kind: int, create: bool) -> None:
    path = tmp_path / "thing"
    os.mknod(path, 0o600 | kind, os.makedev(1, 3))
    failed = FILES.open(str(path), create=create)
    assert isinstance(failed, IoFailed)
    assert "only regular files and block devices can be locked" in failed.reason


OPENED = 20_000
"""Two seconds: an opening by name instead of by pin is then caught red-handed about a hundred times."""

_EXCHANGE = """
import os, sys
disk, device, path = sys.argv[1:]
while True:
    for target in (disk, device):
        os.link(target, path + "-next")
        os.rename(path + "-next", path)
"""


@pytest.fixture
def exchanged(disk: Path) -> Iterator[Path]:
    """A path that is a file and a character device by turns, as fast as somebody can exchange them."""
    path, device = disk.parent / "path", disk.parent / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    other = subprocess.Popen([sys.executable, "-c", _EXCHANGE, str(disk), str(device), str(path)])
    yield path
    other.kill()
    other.wait()


def test_name_that_is_exchanged_meanwhile_leads_to_a_file_or_to_a_refusal(exchanged: Path) -> None:
    opened = refused = 0
    until = time.monotonic() + 60
    while (opened < OPENED or refused < OPENED) and time.monotonic() < until:
        try:
            fd, status = open_lockable(str(exchanged))
        except FileNotFoundError:
            continue  # the other process has not begun
        except NotLockable:
            refused += 1
            continue
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        assert os.fstat(fd).st_ino == status.st_ino
        opened += 1
        os.close(fd)
    assert opened
    assert refused


def test_file_that_comes_and_goes_meanwhile_is_made_or_opened(tmp_path: Path) -> None:
    path, over = tmp_path / "lock", threading.Event()

    def remove() -> None:
        while not over.is_set():
            path.unlink(missing_ok=True)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for _ in range(500):
            opened = FILES.open(str(path), create=True)
            assert not isinstance(opened, IoFailed)
            FILES.close(opened.fd)
    finally:
        over.set()
        thread.join()


def test_other_user_s_rights_end_with_the_thread_that_took_them_on(disk: Path) -> None:
    os.chmod(disk, 0o600)
    before = Path("/proc/thread-self/status").read_text().splitlines()
    failed = open_as(NOBODY, str(disk), write=False)
    assert isinstance(failed, IoFailed)
    assert "may not read it" in failed.reason
    after = Path("/proc/thread-self/status").read_text().splitlines()
    for name in ("Uid:", "Gid:", "Groups:", "CapEff:"):
        assert [x for x in before if x.startswith(name)] == [x for x in after if x.startswith(name)]
    opened = FILES.open(str(disk), create=False)
    assert not isinstance(opened, IoFailed)
    FILES.close(opened.fd)

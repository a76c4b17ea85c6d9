"""A real holdfastd as a subprocess, and stand-ins for QEMU processes that hold locks through it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from holdfast.control.client import ControlClient
from holdfast.system.files.proc_locks import refused_by
from holdfast.testing.virtlockd_client import CallFailed, VirtlockdClient
from tests.support.polling import wait_until

BIN = Path(sys.executable).parent
CLONE_NEWNS, CLONE_NEWUTS = 0x00020000, 0x04000000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
LIBVIRT_STATUS = Path("/run/libvirt/qemu")
READY = "is ready"
GOES_ON = "goes on"


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(path)
        except OSError:
            return False
    return True


ACQUIRE_TRIES = 5
SLOW_STORAGE = ("Connection timed out", "still giving it up")
"""Of the refusals of a start: nobody else has the lease."""


class Holdfastd:
    """holdfastd with everything in one directory: a host of its own, unless it shares `host_locks` with another one."""

    def __init__(
        self,
        directory: Path,
        extra: str = "",
        *,
        virtlockd: str = "",
        top: str = "",
        host_locks: Path | None = None,
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.socket = str(directory / "v.sock")
        self.run_dir = directory / "run"
        self.control = str(self.run_dir / "io.holdfast.Control")
        self.config = directory / "holdfast.toml"
        self.log = directory / "log"
        self.config.write_text(
            f'run_dir = "{self.run_dir}"\nstate_dir = "{directory}/state"\n'
            f'host_locks = "{host_locks or directory / "host"}"\nlog_level = "debug"\n{top}\n'
            f'[virtlockd]\nsocket = "{self.socket}"\n{virtlockd}\n{extra}\n'
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.pids: list[int] = []
        """Every VM stand-in, to be ended with the daemon."""

    # --- life ---

    def spawn(self, *, environ: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(BIN / "holdfastd"), "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environ or {})},
                **{"stdout": log, "stderr": log, **options},
            )
        return self.process

    def start(self, *, environ: dict[str, str] | None = None, **options: Any) -> Holdfastd:
        """Returns when it serves."""
        before = self.count(READY) + self.count(GOES_ON)
        process = self.spawn(environ=environ, **options)

        def serving() -> bool:
            assert process.poll() is None, f"holdfastd ended with {process.returncode}:\n{self.log_text()}"
            return self.count(READY) + self.count(GOES_ON) > before

        wait_until(serving, "holdfastd to be ready")
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal and don't wait for an end."""
        assert self.process is not None
        self.process.send_signal(number)

    def reexec(self) -> None:
        """SIGUSR1, and wait until the new program image serves."""
        before = self.count(GOES_ON)
        os.kill(self.pid, signal.SIGUSR1)

        def done() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (
                f"it ended with {self.process.returncode}:\n{self.log_text()[-4000:]}"
            )
            return self.count(GOES_ON) > before

        wait_until(done, "the re-exec to be done")

    def stop_all(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    # --- what it says ---

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def count(self, text: str) -> int:
        return self.log_text().count(text)

    def says(self, text: str) -> None:
        wait_until(lambda: text in self.log_text(), f"the log to say '{text}'")

    def says_once(self, text: str) -> None:
        """The log is written by a thread of its own: wait for a first line, and then there must not be a second."""
        self.says(text)
        assert self.count(text) == 1, self.log_text()

    def client(self) -> VirtlockdClient:
        return VirtlockdClient(self.socket, timeout_s=60)

    def admin(self) -> ControlClient:
        return ControlClient(self.control)

    def holders(self, path: Path | str) -> list[tuple[str, int, bool]]:
        """(owner, pid, held) of everybody with a claim on a disk."""
        with self.admin() as admin:
            return [(h.owner, h.pid, h.held) for h in admin.holders(str(path))]

    def cli(self, *arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "holdfast"), "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, **(environ or {})},
        )

    def cli_json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "--json").stdout)

    # --- VMs ---

    def vm(
        self,
        disks: Sequence[Path | str] = (),
        *,
        name: str = "vm",
        ignoring: Sequence[int] = (),
        lockspace: str = "",
        flags: int = 0,
        register: bool = True,
    ) -> int:
        """A process that holds disks as QEMU does: registered, locked, restricted, its connection left open.

        SIGUSR2 makes it close the connection and live on.
        """
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            _close_all_but(tell)
            _be_a_vm(self.socket, disks, name, ignoring, lockspace, flags, register, tell)
        os.close(tell)
        self.pids.append(pid)
        output = b""
        while part := os.read(ready, 65536):
            output += part
        os.close(ready)
        assert output == b".", f"VM {name} could not start: {output.decode(errors='replace')}"
        return pid

    def end_vm(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)
        os.waitpid(pid, 0)
        self.pids.remove(pid)


def _close_all_but(fd: int) -> None:
    """In a forked child: what the test process has open may be what keeps something else alive, such as a lab's host."""
    os.closerange(3, fd)
    os.closerange(max(3, fd + 1), os.sysconf("SC_OPEN_MAX"))


def _acquire_patiently(client: VirtlockdClient, disk: str, lockspace: str, flags: int) -> None:
    """As an admin who tries again: a machine that is busy with other tests may take longer than an io_timeout."""
    for left in reversed(range(ACQUIRE_TRIES)):
        try:
            client.acquire(disk, lockspace=lockspace, flags=flags)
            return
        except CallFailed as e:
            if not left or not any(slow in e.reply.message for slow in SLOW_STORAGE):
                raise
        time.sleep(1)


def _be_a_vm(
    path: str,
    disks: Sequence[Path | str],
    name: str,
    ignoring: Sequence[int],
    lockspace: str,
    flags: int,
    register: bool,
    tell: int,
) -> None:
    """In the child; never returns."""
    try:
        for number in ignoring:
            signal.signal(number, signal.SIG_IGN)
        client = VirtlockdClient(path, timeout_s=60)
        signal.signal(signal.SIGUSR2, lambda *_: client.close())
        if register:
            client.register(pid=os.getpid(), name=name, domain_id=os.getpid())
            for disk in disks:
                _acquire_patiently(client, str(disk), lockspace, flags)
            client.restrict()
        os.write(tell, b".")
        os.close(tell)
        while True:
            signal.pause()
    except BaseException as e:
        os.write(tell, repr(e).encode())
    finally:
        os._exit(1)


def called(node: str) -> Callable[[], None]:
    """For a child before it begins (Popen's preexec_fn): a host name of its own."""

    def rename() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        socket.sethostname(node)

    return rename


def with_status_files(directory: Path) -> Callable[[], None]:
    """For a child before it begins (Popen's preexec_fn): libvirt's status files are those in a directory."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(what: str, where: Path, kind: str | None, flags: int) -> None:
        kind_raw = None if kind is None else kind.encode()
        if libc.mount(what.encode(), str(where).encode(), kind_raw, flags, None) != 0:
            raise OSError(ctypes.get_errno(), f"mount {what} on {where}")

    def private() -> None:
        if libc.unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        mount("none", Path("/"), None, MS_REC | MS_PRIVATE)
        mount("holdfast-test", Path("/run"), "tmpfs", 0)
        LIBVIRT_STATUS.mkdir(parents=True)
        mount(str(directory), LIBVIRT_STATUS, None, MS_BIND)

    return private


def exists(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def locked(path: Path | str) -> bool:
    """Whether somebody's lock is on byte 0, as the kernel tells without taking it."""
    try:
        return refused_by(str(path)) is not None
    except FileNotFoundError:
        return False


def make_disk(directory: Path, name: str = "disk.img") -> Path:
    path = directory / name
    path.write_bytes(b"\0" * 4096)
    return path


_bystanders: dict[int, int] = {}


def bystander(number: int = 0) -> int:
    """The pid of a process that only lives: an owner for whom others speak.

    Never register the test's own pid: should it fail with a lock held, the daemon would stop it, as it must.
    """
    if number not in _bystanders:
        pid = os.fork()
        if pid == 0:
            _close_all_but(2)
            while True:
                signal.pause()
        _bystanders[number] = pid
        atexit.register(_end_bystander, os.getpid(), pid)
    return _bystanders[number]


def refusal(host: Holdfastd, disk: Path, *, flags: int = 0) -> str:
    """Somebody else's try on that host; empty if it was granted (and given back)."""
    with host.client() as client:
        client.register(pid=bystander(7), name="rival")
        try:
            client.acquire(str(disk), flags=flags)
        except CallFailed as e:
            return e.reply.message
        client.release(str(disk))
        return ""


def _end_bystander(starter: int, pid: int) -> None:
    if os.getpid() == starter:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


Factory = Callable[..., Holdfastd]

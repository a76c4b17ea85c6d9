"""The daemons under test: holdfastd of this checkout and Debian's virtlockd, each on a socket of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_TIMEOUT_S = 30.0
CLIENTS_MAX = 20_000


def wait_for_socket(path: str, process: subprocess.Popen[bytes]) -> None:
    """Until somebody listens at a path."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(OSError):
            s.connect(path)
            return
        time.sleep(0.005)
    raise TimeoutError(f"nobody listens at {path}")


class Holdfastd:
    """holdfastd on file locks in a private directory."""

    name = "holdfastd"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = str(directory / "holdfast.sock")
        self.config = directory / "holdfast.toml"
        self.config.write_text(
            f'run_dir = "{directory}/run"\nstate_dir = "{directory}/state"\nlog_level = "error"\n'
            f'[virtlockd]\nsocket = "{self.socket}"\nmax_clients = {CLIENTS_MAX}\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(sys.executable).with_name("holdfastd")
        self.process = subprocess.Popen([str(program), "--config", str(self.config)])
        wait_for_socket(self.socket, self.process)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait()


class Virtlockd:
    """Debian's virtlockd, in a mount namespace of its own because its socket path is fixed."""

    name = "virtlockd"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        (directory / "virtlockd.conf").write_text(f'max_clients = {CLIENTS_MAX}\nlog_outputs = "4:stderr"\n')
        (directory / "run").mkdir(exist_ok=True)

    @property
    def socket(self) -> str:
        return f"/proc/{self.pid}/root/run/libvirt/virtlockd-sock"

    def start(self) -> None:
        if shutil.which("virtlockd") is None:
            raise RuntimeError("virtlockd is not installed; apt-get install libvirt-daemon-system")
        script = (
            "mount -t tmpfs holdfast-bench /run && mkdir -p /run/libvirt && "
            f"exec virtlockd -f {self.directory}/virtlockd.conf -p /run/virtlockd.pid"
        )
        self.process = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", script])
        wait_for_socket(self.socket, self.process)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait()


def status_number(pid: int, key: str) -> int:
    """A number from /proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith(key + ":"):
                return int(line.split()[1])
    raise KeyError(key)


def raise_descriptor_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end(pids: list[int]) -> None:
    """End processes that we forked, and reap them."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)

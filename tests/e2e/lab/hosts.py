"""A lab host: namespaces that look like a machine of its own.

A host has its own mount table, host name, network stack and pid numbers, so its own /run, /dev, /proc,
/etc/libvirt, /var/lib/libvirt and /var/log/libvirt.  What makes it a faithful second host for a lock
manager: pids of one host mean nothing on the other, /proc/locks shows a host its own record locks only, and
device nodes are separate inodes, so that a lock on a node does not cross.  The kernel is shared, and
therefore the page cache and locks on files of a shared folder: exactly what a correct cluster file system
gives.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.lab.polling import until
from tests.e2e.lab.processes import Process, find_in_namespace

COMMAND_LIMIT_S = 100.0
VIRSH = ("virsh", "-q", "-c", "qemu:///system")
NAMES = ("alpha", "beta", "gamma")
"""A lab has the first two or all; only these two have a network between them."""


class CommandError(Exception):
    """A command in a host ended with an exit code that is not 0."""

    def __init__(self, host: str, command: Sequence[str], code: int, stdout: str, stderr: str) -> None:
        super().__init__(f"{host}: {' '.join(command)} -> {code}: {stderr.strip() or stdout.strip()}")
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


@dataclass(frozen=True, slots=True)
class Spawned:
    """A long-running program in a host: the process itself, and the nsenter that waits for it outside."""

    process: Process
    inner_pid: int
    waiter: subprocess.Popen[bytes]

    def wait(self) -> int:
        """Wait for its end and return its exit code (negative: the signal that ended it)."""
        self.waiter.send_signal(signal.SIGCONT)  # it stops together with a program that is stopped
        return self.waiter.wait(COMMAND_LIMIT_S)


class Host:
    """One host of the lab, from its first process to its last."""

    def __init__(self, *, name: str, folder: Path, shared: Path, cache: Path) -> None:
        self.name = name
        self.number = NAMES.index(name) + 1
        self.address = f"10.77.0.{self.number}"
        self.uuid = f"0a0b0c0d-0000-4000-8000-00000000000{self.number}"
        self.folder = folder
        self._binds = {
            shared: "/srv",
            folder / "etc-libvirt": "/etc/libvirt",
            folder / "var-lib-libvirt": "/var/lib/libvirt",
            folder / "log": "/var/log/libvirt",
            cache: "/var/cache/libvirt",
            folder / "hosts": "/etc/hosts",
            folder / "run": "/run",
        }
        self._unshare: subprocess.Popen[str] | None = None
        self._spawned: list[Spawned] = []
        self._pid = 0
        self._pid_namespace = ""

    def up(self, block_devices: dict[str, Path]) -> None:
        """Make the namespaces; `block_devices` maps a path in the host to a device of this machine."""
        for source in self._binds:
            if source.name != "hosts":
                source.mkdir(parents=True, exist_ok=True)
        others = "".join(f"10.77.0.{number} {name}\n" for number, name in enumerate(NAMES, 1))
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + others)
        for name in ("libvirt", "lock", "shm"):
            (self.folder / "run" / name).mkdir(exist_ok=True)
        nodes = [
            (path, os.major(device.stat().st_rdev), os.minor(device.stat().st_rdev))
            for path, device in block_devices.items()
        ]
        wanted = {
            "name": self.name,
            "binds": [(str(source), target) for source, target in self._binds.items()],
            "block_devices": nodes,
        }
        self._unshare = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--propagation", "slave",
             sys.executable, "-I", str(Path(__file__).with_name("hostinit.py")), json.dumps(wanted)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._unshare.stdout is not None
        said = self._unshare.stdout.readline()
        if not said.strip().isdigit():
            raise RuntimeError(f"host {self.name} did not come up; its first process said {said!r}")
        self._pid = int(said)
        self._pid_namespace = os.readlink(f"/proc/{self._pid}/ns/pid")
        self.run("ip", "link", "set", "lo", "up")

    def connect_to(self, other: "Host") -> None:
        """A cable between two hosts; both its ends are made inside the namespaces."""
        subprocess.run(
            ["nsenter", "--target", str(self._pid), "--net", "--",
             "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", str(other._pid)],
            stdin=subprocess.DEVNULL, check=True, timeout=COMMAND_LIMIT_S,
        )  # fmt: skip
        for host in (self, other):
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "veth0")
            host.run("ip", "link", "set", "veth0", "up")

    def down(self) -> None:
        """End the first process; the kernel ends all others and drops the mounts."""
        if self._unshare is not None:
            unshare = self._unshare
            assert unshare.stdin is not None
            assert unshare.stdout is not None
            unshare.stdin.close()  # its first process ends with it

            def is_down() -> bool:
                for spawned in self._spawned:
                    # nsenter stops together with a program that is stopped, but does not go on with it; and while
                    # it has not reaped that program, the kernel keeps the whole namespace.
                    spawned.waiter.send_signal(signal.SIGCONT)
                return unshare.poll() is not None

            until(is_down, f"{self.name} to go down")
            unshare.stdout.close()
            self._unshare = None
        for spawned in self._spawned:
            spawned.wait()
        self._spawned.clear()

    def run(self, *command: str) -> str:
        """Run a command in the host and return its standard output."""
        done = subprocess.run(
            [*self.enter, *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise CommandError(self.name, command, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def start_virsh(self, *arguments: str) -> subprocess.Popen[str]:
        """virsh on this host's libvirtd; the caller waits for its output and end."""
        return subprocess.Popen(
            [*self.enter, *VIRSH, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def spawn(self, name: str, *command: str) -> Spawned:
        """Start a daemon that stays in the foreground; its output is appended to NAME.log."""
        pid_file = self.folder / f"{name}.pid"
        pid_file.unlink(missing_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            waiter = subprocess.Popen(
                [*self.enter, "sh", "-c", 'echo $$ >"$0.new"; mv "$0.new" "$0"; exec "$@"', str(pid_file),
                *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: pid_file.exists() or waiter.poll() is not None, f"{name} on {self.name} to be started")
        if not pid_file.exists():
            raise RuntimeError(f"{name} on {self.name} could not be started; see {self.folder / name}.log")
        inner_pid = int(pid_file.read_text())
        spawned = Spawned(self.process(inner_pid), inner_pid, waiter)
        self._spawned.append(spawned)
        return spawned

    def virsh(self, *arguments: str) -> str:
        """virsh on this host's libvirtd."""
        return self.run(*VIRSH, *arguments).strip()

    @property
    def libvirt_version(self) -> tuple[int, ...]:
        """What libvirt does differs, and tests assert what each does."""
        return tuple(int(number) for number in self.run("virsh", "--version").strip().split("."))

    def virsh_refused(self, *arguments: str) -> str:
        """virsh with a command that must fail; returns the error that its user sees."""
        try:
            said = self.virsh(*arguments)
        except CommandError as failed:
            return failed.stderr
        raise AssertionError(f"virsh {' '.join(arguments)} on {self.name} was not refused; it said {said!r}")

    def process(self, inner_pid: int) -> Process:
        """The process that this host knows under `inner_pid`."""
        found = find_in_namespace(self._pid_namespace, inner_pid)
        if found is None:
            raise ProcessLookupError(f"{self.name} has no process {inner_pid}")
        return found

    def kill_guests(self) -> None:
        """kill -9 for every QEMU of the host: libvirt's own way waits 200 ms for each."""
        for file in self.path("/run/libvirt/qemu").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has just ended by itself
                found = find_in_namespace(self._pid_namespace, int(file.read_text()))
                if found is not None and file.name != "driver.pid":
                    found.send(signal.SIGKILL)

    def path(self, path: str) -> Path:
        """Where a file of the host is found from outside."""
        return Path(f"/proc/{self._pid}/root{path}")

    @property
    def enter(self) -> list[str]:
        """What runs a command in the host."""
        return ["nsenter", "--target", str(self._pid), "--mount", "--uts", "--net", "--pid", "--"]

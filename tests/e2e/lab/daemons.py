"""The two daemons of a host: the lock daemon under test, and libvirtd with its `lockd` plugin.

Either lock daemon can be in charge of a host: Debian's virtlockd, or holdfastd out of this checkout.
libvirtd can't tell them apart; that is the point.  With leases a host may also have Debian's sanlock, and its libvirtd the
`sanlock` plugin.  In *indirect* mode libvirt asks for a file in /srv/lockd
that is named by the hash of the disk's path, in *direct* mode for the disk's path itself.
"""

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tests.e2e.lab.hosts import CommandError, Host, Spawned
from tests.e2e.lab.polling import until
from tests.e2e.lab.processes import Process

Kind = Literal["virtlockd", "holdfastd", "sanlock", "in sanlock's place"]
"""`in sanlock's place`: holdfastd with sanlock's socket, and libvirt's sanlock plugin."""
WITH_SANLOCKS_PLUGIN: tuple[Kind, ...] = ("sanlock", "in sanlock's place")
LockMode = Literal["indirect", "direct", "leases", "hashed leases", "leases with sanlock's times"]
"""How libvirt asks, and what holds; with hashed leases alpha's libvirt sends hashes and beta's sends paths."""
FIRE_TIMEOUT_S, SANLOCKS_FIRE_TIMEOUT_S = 30, 60
"""All hosts of a lockspace need the same where one of them dies; sanlock's can't be changed."""

SOCKET = "/run/libvirt/virtlockd-sock"

VIRTLOCKD_CONF = """
log_outputs = "2:stderr"
"""

HOLDFAST_TOML = """
run_dir = "/run/holdfast"
state_dir = "/run/holdfast-state"
default_backend = "local"

[virtlockd]
socket = "/run/libvirt/virtlockd-sock"

[backend.local]
driver = "file"

# The folder is one file system for both hosts, and so are its locks.
[backend.shared]
driver = "file"
directory = "/srv/locks"
cross_host = true

[[disk]]
match = "/dev/lab/*"
backend = "shared"
"""

# Leases that fail after 8 s, VMs that get 15 s to end (with sanlock's times 40 s), and a dead host that is taken over after
# 38 s (68 s).
LEASES_TOML = """
[backend.leases]
driver = "paxos"
directory = "/srv/disk-leases"
host_id = {number}
io_timeout_s = 1
fire_timeout_s = {fire_timeout_s}
watchdog = "none"
hosts_max = 8
cross_host = true

[[disk]]
match = "/srv/*"
backend = "leases"

[[disk]]
match = "nbd:*"
backend = "leases"

[[disk]]
match = "iscsi:*"
backend = "leases"
"""

# In sanlock's place: no lockspace of its own, libvirt's plugin adds it.
SANLOCK_SOCKET = "/run/sanlock/sanlock.sock"
SANLOCKS_PLACE_TOML = f"""
[sanlock]
socket = "{SANLOCK_SOCKET}"
watchdog = "none"
fire_timeout_s = {{fire_timeout_s}}
"""

# The filter halves the time of a start: without it libvirt asks QEMU for 400 features of the processor, one by one.
QEMU_CONF = """
lock_manager = "{lock_manager}"
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
capability_filters = ["cpu-unavailable-features"]
keepalive_interval = -1
"""

# A loaded machine must not look like a broken connection: no keepalive.
SANLOCK_CONF = """
auto_disk_leases = 1
disk_lease_dir = "/srv/disk-leases"
host_id = {number}
io_timeout = 1
user = "root"
group = "root"
"""
# Without privileges, watchdog, real-time priority and locked memory, as in tests/interop; io_timeout 1.
SANLOCK = (
    "env",
    "SANLOCK_PRIVILEGED=0",
    "sanlock",
    "daemon",
    "-D",
    "-w",
    "0",
    "-l",
    "0",
    "-h",
    "0",
    "-o",
    "1",
)

LIBVIRTD_CONF = """
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{uuid}"
keepalive_interval = -1
log_outputs = "3:stderr"
"""

LEASES = ("leases", "hashed leases", "leases with sanlock's times")
QEMU_LOCKD_CONF = {
    "direct": "auto_disk_leases = 1\n",
    "leases": "auto_disk_leases = 1\n",
    "leases with sanlock's times": "auto_disk_leases = 1\n",
    "indirect": 'auto_disk_leases = 1\nfile_lockspace_dir = "/srv/lockd"\n',
}
QEMU_LOCKD_CONF["hashed leases"] = QEMU_LOCKD_CONF["indirect"]


class Daemon:
    """A daemon in the foreground; the subclasses say which."""

    name: str

    def __init__(self, host: Host) -> None:
        self.host = host
        self._running: Spawned | None = None
        self._log = host.folder / f"{self.name}.log"
        self._heard_bytes = 0

    @property
    def process(self) -> Process:
        """The running daemon."""
        assert self._running is not None, f"{self.name} on {self.host.name} was not started"
        return self._running.process

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self._running is not None and self._running.process.is_alive()

    @property
    def said(self) -> str:
        """Its standard error since the scenario began."""
        if not self._log.exists():
            return ""
        return self._log.read_bytes()[self._heard_bytes :].decode(errors="replace")

    def listen_anew(self) -> None:
        """A scenario begins."""
        self._heard_bytes = self._log.stat().st_size if self._log.exists() else 0

    def start(self) -> None:
        """Start it and wait until it answers."""
        if self.is_up:
            return
        self._running = self.host.spawn(self.name, *self._command())
        until(lambda: self._answers() or not self.is_up, f"{self.name} on {self.host.name} to answer")
        if not self.is_up:
            raise RuntimeError(f"{self.name} on {self.host.name} ended at once:\n{self.said}")

    def stop(self) -> int:
        """The orderly way: SIGTERM.  Returns the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """A crash: SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        assert self._running is not None
        self._running.process.send(number)
        return self._running.wait()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


class LockDaemon(Daemon):
    """What listens where libvirt looks for virtlockd."""

    name = "lockd"

    def __init__(self, host: Host, kind: Kind, mode: LockMode) -> None:
        super().__init__(host)
        self.kind = kind
        self.mode = mode
        self._configuration = host.folder / ("virtlockd.conf" if kind == "virtlockd" else "holdfast.toml")
        fire = SANLOCKS_FIRE_TIMEOUT_S if mode == "leases with sanlock's times" else FIRE_TIMEOUT_S
        leases = LEASES_TOML.format(number=host.number, fire_timeout_s=fire) if mode in LEASES else ""
        if kind == "in sanlock's place":
            leases = SANLOCKS_PLACE_TOML.format(fire_timeout_s=fire)
        holdfast = HOLDFAST_TOML + leases
        self._configuration.write_text(VIRTLOCKD_CONF if kind == "virtlockd" else holdfast)
        if kind in WITH_SANLOCKS_PLUGIN:
            (host.folder / "run" / "sanlock").mkdir(parents=True)
        self._under_manager = False
        self._main_pid_file = host.folder / "lockd-main.pid"

    @property
    def process(self) -> Process:
        """The running daemon; under a service manager that is the manager's child."""
        if self._under_manager:
            return self.host.process(int(self._main_pid_file.read_text()))
        return super().process

    def start_under_manager(self) -> None:
        """Start it as systemd would, with a descriptor store."""
        self._main_pid_file.unlink(missing_ok=True)
        self._under_manager = True
        self.start()

    def stop(self) -> int:
        """The orderly way, also for its manager."""
        code = super().stop()
        self._under_manager = False
        return code

    def crash_under_manager(self) -> None:
        """SIGKILL; returns when the manager's next instance answers."""
        self._wait_next_instance(lambda crashing: crashing.kill())

    def restart_under_manager(self) -> None:
        """systemctl restart."""
        assert self._running is not None
        manager = self._running.process
        self._wait_next_instance(lambda _: manager.send(signal.SIGHUP))

    def _wait_next_instance(self, end: Callable[[Process], None]) -> None:
        old, old_pid = self.process, self._main_pid_file.read_text()
        end(old)
        old.wait_gone()
        until(
            lambda: self._main_pid_file.read_text() != old_pid and self._answers(),
            f"the next instance of {self.kind} on {self.host.name} to answer",
        )

    def reexec(self) -> None:
        """SIGUSR1: the same process begins anew, with everything it holds.  Waits until it has."""
        before = self.process.image_identity()
        self.process.send(signal.SIGUSR1)
        until(
            lambda: not self.is_up or self.process.image_identity() != before,
            f"{self.kind} on {self.host.name} to re-exec",
        )
        # Asking virtlockd whether it is ready would break its next re-exec, if our connection still stood.
        if self.kind in ("holdfastd", "in sanlock's place"):
            until(lambda: not self.is_up or self._answers(), f"{self.kind} on {self.host.name} to answer")
        assert self.is_up, f"{self.kind} did not survive SIGUSR1:\n{self.said}"

    def connect(self) -> socket.socket:
        """A bare connection, from a client that says nothing."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.host.path(SOCKET)))
        except OSError:
            connection.close()
            raise
        return connection

    def holdfast(self, *arguments: str) -> str:
        """The operator's command on this host."""
        return self.host.run(_program("holdfast"), "--config", str(self._configuration), *arguments)

    def start(self) -> None:
        """Start it; with leases, wait until its host is in the lockspace."""
        super().start()
        if self.mode in LEASES and self.kind == "holdfastd":
            until(self.is_joined, f"{self.host.name} to join the lockspace")

    def is_joined(self) -> bool:
        """Whether the operator's command says so."""
        try:
            return bool(self.holdfast("lockspace", "list"))
        except CommandError:
            return False

    def _command(self) -> list[str]:
        if self.kind == "virtlockd":
            return ["/usr/sbin/virtlockd", "-f", str(self._configuration)]
        if self.kind == "sanlock":
            return [*SANLOCK, "-U", "root", "-G", "root", "-e", self.host.name]
        command = [_program("holdfastd"), "--config", str(self._configuration)]
        if self._under_manager:
            script = str(Path(__file__).with_name("servicemanager.py"))
            return [sys.executable, "-I", script, str(self._main_pid_file), *command]
        return command

    def _answers(self) -> bool:
        if self.kind == "sanlock":
            return self.host.path(SANLOCK_SOCKET).exists()
        try:
            self.connect().close()
        except OSError:
            return False
        return True


class Libvirtd(Daemon):
    """Debian's libvirtd, unmodified, asking its lockd plugin, or its sanlock plugin."""

    name = "libvirtd"

    def __init__(self, host: Host, kind: Kind, mode: LockMode) -> None:
        super().__init__(host)
        etc = host.folder / "etc-libvirt"
        for folder in ("qemu/networks", "hooks"):
            (etc / folder).mkdir(parents=True)
        (etc / "qemu.conf").write_text(
            QEMU_CONF.format(lock_manager="sanlock" if kind in WITH_SANLOCKS_PLUGIN else "lockd")
        )
        (etc / "qemu-sanlock.conf").write_text(SANLOCK_CONF.format(number=host.number))
        (etc / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(address=host.address, uuid=host.uuid))
        (etc / "qemu-lockd.conf").write_text(
            QEMU_LOCKD_CONF["direct" if mode == "hashed leases" and host.number == 2 else mode]
        )

    def _command(self) -> list[str]:
        return ["/usr/sbin/libvirtd", "--listen", "-f", "/etc/libvirt/libvirtd.conf"]

    def _answers(self) -> bool:
        try:
            self.host.virsh("uri")
        except CommandError:
            return False
        return True


def _program(name: str) -> str:
    """A program of this checkout's virtual environment."""
    return str(Path(sys.executable).parent / name)

"""A host of its own: a root file system with Debian's programs, a real systemd as pid 1, and nothing of this machine.

Its root is an overlay over one that all hosts start from, so each has packages, configuration and state of its own.
/proc/sys and /sys are read-only, /dev has no device of the machine, and it can't set the clock or load a module. Hosts
share what is mounted at /srv/shared. When its pid 1 is killed, everything in it ends at that moment: a power cut.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.readme import timed_lines
from tests.systemd.machine import PROJECT, init_of

SUITE = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
PACKAGES = (
    "systemd,systemd-sysv,dbus,libvirt-daemon-system,libvirt-clients,qemu-system-x86,augeas-tools,python3-click,"
    "python3-rich,python3-uvicorn,adduser,procps,iproute2,curl"
)
LOCKD = "libvirt-daemon-lock libvirt-daemon-plugin-lockd"
"""virtlockd and libvirt's plugin for it, from Debian 13 on; in Debian 12 they are parts of libvirt's other packages."""
START_TIMEOUT_S = 120.0
COMMAND_S = 300.0
SHARED = "/srv/shared"
NOT_WANTED = ("console-getty.service", "getty.target", "apt-daily.timer", "apt-daily-upgrade.timer")

_CGROUP = 'mkdir -p "$CGROUP"; echo $$ >"$CGROUP/cgroup.procs"; exec "$@"'
_BOOT = """
set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$TEMPLATE,upperdir=$DIR/upper,workdir=$DIR/work" "$DIR/root"
cd "$DIR/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    IFS=: read -r name major minor <<END
$node
END
    mknod -m 666 dev/$name c $major $minor
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 run run
mkdir -p ".$SHARED_AT"
mount --bind "$SHARED" ".$SHARED_AT"
hostname "$NAME"
ip link set lo up
mkdir -p old
pivot_root . old
umount -l /old
# As pid 1 has it on a machine: what it mounts for a unit, such as its credentials, is seen there.
mount --make-rshared /
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    setpriv --bounding-set=-sys_time,-sys_module /lib/systemd/systemd --system --show-status=no
"""


def of_libvirt_hosts(suite: str) -> str:
    """What a host of that release needs before Holdfast: libvirt with its lock daemon, QEMU, and what the package needs."""
    return PACKAGES if suite == "bookworm" else ",".join([PACKAGES, *LOCKD.split()])


def make_template(at: Path, suite: str = SUITE, packages: str = "") -> None:
    """A root file system that hosts start from: by default this release, with libvirt and QEMU, without Holdfast."""
    mirror = subprocess.run(
        [PROJECT / "tools" / "debian-mirror"], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--aptopt=Acquire::Check-Valid-Until \"false\"",
         f"--include={packages or of_libvirt_hosts(suite)}", suite, at, mirror],
        check=True, timeout=900,
    )  # fmt: skip


def _cgroups() -> Path:
    """Where the machine has its unified hierarchy: two systemds can't share one place in it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, at, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(at)
    raise AssertionError("no cgroup2 file system is mounted here")


class Failed(AssertionError):
    """A command in a host that should have worked."""


class RootHost:
    """One booted host."""

    def __init__(self, name: str, directory: Path, template: Path, shared: Path) -> None:
        self.name = name
        self.root = directory / "root"
        upper = directory / "upper"
        for each in (upper / "etc/systemd/system", directory / "work", self.root):
            each.mkdir(parents=True)
        (upper / "etc/hostname").write_text(f"{name}\n")
        (upper / "etc/machine-id").write_text("")
        for unit in NOT_WANTED:
            (upper / "etc/systemd/system" / unit).symlink_to("/dev/null")
        self._cgroup = _cgroups() / f"holdfast-{os.getpid()}-{name}"
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self._unshare = subprocess.Popen(
                ["sh", "-c", _CGROUP, "sh", "unshare", "-C", "-f", "-p", "-m", "-n", "-u", "-i", "--kill-child",
                 "sh", "-c", _BOOT],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "CGROUP": str(self._cgroup), "TEMPLATE": str(template),
                     "DIR": str(directory), "NAME": name, "SHARED": str(shared), "SHARED_AT": SHARED},
            )  # fmt: skip
        self.pid = 0
        try:
            self._wait(self._find_init, "systemd is pid 1")
            self._wait(
                lambda: self.try_run("systemctl is-system-running").stdout.strip() in ("running", "degraded"),
                "it has booted",
            )
        except BaseException:
            self.kill()
            raise

    def _find_init(self) -> bool:
        self.pid = init_of(self._unshare, self.log)
        return self.pid != 0

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"{self.name}: {what}: not in time: {self.log.read_text()}"
            time.sleep(0.1)

    def _enter(self, command: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "-C", "-n", "-u", "-i", "env", "-i", "HOME=/root",
                "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
                "bash", "-c", f"cd /root && {command}"]  # fmt: skip

    def try_run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A line of shell, as root."""
        return subprocess.run(
            self._enter(command), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=COMMAND_S, check=False,
        )  # fmt: skip

    def run(self, command: str) -> str:
        """Both outputs, in the order in which they came; raises `Failed`."""
        return "\n".join(line for _, line in self.lines(command))

    def lines(self, command: str) -> list[tuple[float, str]]:
        """The same, with the seconds since the command was begun."""
        code, said = timed_lines(self._enter(command))
        if code != 0:
            text = "\n".join(line for _, line in said)
            raise Failed(f"{self.name}: {command}: exit {code}:\n{text}")
        return said

    def show(self, unit: str, key: str) -> str:
        """One property of a unit."""
        return self.run(f"systemctl show -P {key} {unit}").strip()

    def put(self, source: Path, at: str) -> None:
        """A copy of a directory."""
        self.run(f"mkdir -p {at}")
        with subprocess.Popen(["tar", "-C", source, "-c", "."], stdout=subprocess.PIPE) as packed:
            subprocess.run(self._enter(f"tar -C {at} --no-same-owner -x"), stdin=packed.stdout, check=True)
        assert packed.returncode == 0

    def kill(self) -> None:
        """As a power cut: all that runs in it ends. It does not come back."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        elif self._unshare.poll() is None:
            self._unshare.kill()
        self._unshare.wait(timeout=60)
        self.pid = 0
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


@contextlib.contextmanager
def hosts(directory: Path, template: Path, shared: Path, *names: str) -> Iterator[list[RootHost]]:
    """Booted one after the other; all end with the context."""
    with contextlib.ExitStack() as stack:
        booted = []
        for name in names:
            host = RootHost(name, directory / name, template, shared)
            stack.callback(host.kill)
            booted.append(host)
        yield booted

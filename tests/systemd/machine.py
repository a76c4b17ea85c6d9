"""A real systemd as pid 1 of its own namespaces: what the unit files do is shown by the program that reads them.

A booting systemd cleans /tmp, sets sysctls and starts udev: so that it can do none of that to the machine it runs on,
its mounts (the checkout's own too, which may lie in /tmp) are read-only but for private file systems on /run, /tmp, /var and
/etc/systemd/system, and the tests' own directory; /proc/sys and /sys are read-only; network, host name and IPC are its own.
Everything ends with its pid 1.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
UNITS = PROJECT / "packaging" / "systemd"
START_TIMEOUT_S = 60.0

_SCRIPT = """
set -e
mount --make-rprivate /
cp -a /etc/libvirt "$DIR/etc-libvirt"
mount -t tmpfs holdfast-test /run
mkdir -p /run/lock /run/systemd/system /run/shared /run/project
mount --bind "$PROJECT" /run/project
mount -o remount,bind,ro /run/project
mount --bind "$SHARED" /run/shared
mount -t tmpfs holdfast-test /tmp
mkdir -p "$SHARED" "$PROJECT"
mount --bind /run/shared "$SHARED"
mount --bind /run/project "$PROJECT"
mount -o remount,bind,ro "$PROJECT"
for place in /var/lib /var/log /var/cache /var/tmp /etc/systemd/system; do
    mount -t tmpfs holdfast-test "$place"
done
mkdir -p /var/lib/libvirt/qemu /var/log/libvirt
mount --bind "$DIR/etc-libvirt" /etc/libvirt
cp -r "$DIR"/units/* /run/systemd/system/
umount -R -l /sys/fs/cgroup 2>/dev/null || true
for place in / /dev /sys; do mount -o remount,bind,ro "$place"; done
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t cgroup2 holdfast-test /sys/fs/cgroup
ip link set lo up
if touch /usr/holdfast-test 2>/dev/null; then echo "the root file system is not read-only"; exit 1; fi
export container=lxc
exec /lib/systemd/systemd --system --unit=holdfast-test.target --log-target=console --show-status=no
"""
UNSHARE = ("unshare", "-C", "-f", "-p", "-m", "-n", "-u", "-i", "--kill-child", "--mount-proc")


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.02)


def init_of(unshare: subprocess.Popen[bytes], log: Path) -> int:
    """The pid of the systemd that `unshare` has started, 0 before it is there; fails with the log if it has ended."""
    assert unshare.poll() is None, log.read_text()
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
    if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
        return int(children[0])
    return 0


class Machine:
    """One booted systemd."""

    def __init__(self, directory: Path, shared: Path) -> None:
        """`shared` is the one directory that both sides see and write; `directory` lies in it."""
        units = directory / "units"
        units.mkdir(parents=True)
        (units / "holdfast-test.target").write_text(
            "[Unit]\nDescription=test\nDefaultDependencies=no\nAllowIsolate=yes\n"
        )
        programs = Path(sys.executable).parent
        for name in ("holdfastd.service", "holdfastd.socket"):
            text = (UNITS / name).read_text().replace("/usr/bin/holdfast", str(programs / "holdfast"))
            (units / name).write_text(text)
        for name in ("virtlockd.service.d", "machine-.scope.d"):
            shutil.copytree(UNITS / name, units / name)
        for target in UNITS.glob("*.target"):
            shutil.copy(target, units)
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self._unshare = subprocess.Popen(
                [*UNSHARE, "sh", "-c", _SCRIPT],
                stdout=log,
                stderr=log,
                env={**os.environ, "DIR": str(directory), "SHARED": str(shared), "PROJECT": str(PROJECT)},
            )
        self.pid = 0
        wait_until(self._find_init, f"systemd is up; see {self.log.read_text()[-500:]!r}")
        wait_until(lambda: self.try_run("systemctl", "is-system-running").stdout != "", "systemctl answers")

    def _find_init(self) -> bool:
        self.pid = init_of(self._unshare, self.log)
        return self.pid != 0

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "-C", *command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run(self, *command: str) -> str:
        done = self.try_run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.log.read_text()[-2000:]}"
        return done.stdout.strip()

    def show(self, unit: str, key: str) -> str:
        return self.run("systemctl", "show", "-P", key, unit)

    def path(self, path: str) -> str:
        """A path inside, as the outside reaches it."""
        return f"/proc/{self.pid}/root{path}"

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait(timeout=60)


def require() -> None:
    """Fails, with what to do, where this can't run."""
    assert os.geteuid() == 0, "these tests need root: they boot systemd in namespaces of its own"
    for program in ("/lib/systemd/systemd", "unshare", "nsenter"):
        assert shutil.which(program), f"{program} is missing; as root: tools/debian-packages test"


@contextlib.contextmanager
def as_debian_leaves_it(directory: Path, base: Path) -> Iterator[Machine]:
    """virtlockd and libvirtd run, and libvirt asks nobody for locks, by its file."""
    require()
    machine = Machine(directory, base)
    try:
        machine.run("systemctl", "enable", "--now", "virtlockd.socket", "virtlockd-admin.socket")
        machine.run("systemctl", "start", "virtlockd.service", "libvirtd.service")
        yield machine
    finally:
        machine.close()

"""The Debian packages, built and installed in a clean root file system: what dpkg and an admin see.

For the release that this runs on, or for HOLDFAST_PACKAGE_SUITE (in tools/test-on's root: what is committed takes part).
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
HERE = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
SUITE = os.environ.get("HOLDFAST_PACKAGE_SUITE", HERE)

pytestmark = [
    pytest.mark.long,  # builds a root file system
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

# One shell that is pid 1 of the root, so that everything in it ends with the test.
ENTER = """
set -e
mount -t proc proc "$ROOT/proc"; mount --rbind /dev "$ROOT/dev"; mount -t tmpfs tmpfs "$ROOT/run"
exec chroot "$ROOT" env -i HOME=/root DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    bash -c 'echo ready; while read -r line; do eval "$line" </dev/null 2>&1; echo "end $?"; done'
"""


class Root:
    """A root file system with a shell in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shell = subprocess.Popen(
            ["unshare", "-m", "-p", "-f", "-u", "-i", "-n", "--kill-child", "sh", "-c", ENTER],
            env={"PATH": os.environ["PATH"], "ROOT": str(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._shell.stdout is not None
        assert self._shell.stdout.readline() == "ready\n"

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and output."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(command + "\n")
        self._shell.stdin.flush()
        said = ""
        for line in self._shell.stdout:
            if line.startswith("end "):
                return int(line.split()[1]), said
            said += line
        raise AssertionError(f"the shell has ended: {said}")

    def ok(self, command: str) -> str:
        code, said = self.run(command)
        assert code == 0, f"{command}: {code}: {said}"
        return said

    def wait(self, command: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.run(command)[0] != 0:
            assert time.monotonic() < deadline, f"{command}: {self.run(command)}"
            time.sleep(0.1)

    def close(self) -> None:
        self._shell.kill()
        self._shell.communicate()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    there = [] if SUITE == HERE else [f"DISTRO={SUITE}"]
    subprocess.run(["make", "-s", "deb", *there], cwd=PROJECT, check=True, timeout=500)
    path = tmp_path_factory.mktemp("package") / "root"
    mirror = subprocess.run(
        [PROJECT / "tools" / "debian-mirror"], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--aptopt=Acquire::Check-Valid-Until \"false\"",
         "--include=python3,python3-click,python3-rich,systemd", SUITE, path, mirror],
        check=True, timeout=500,
    )  # fmt: skip
    release = next(
        line.partition("=")[2].strip('"')
        for line in (path / "etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_ID=")
    )
    (path / "debs").mkdir()
    for each in (PROJECT / "build" / "deb").glob(f"*+deb{release}_*.deb"):
        (path / "debs" / each.name).write_bytes(each.read_bytes())
    made = Root(path)
    yield made
    made.close()


def refused_to_remove(root: Root) -> str:
    """What dpkg says of a removal that fails; the package and the hook are still there."""
    code, said = root.run("dpkg -r holdfast")
    assert code != 0
    root.ok("test -e /etc/libvirt/hooks/qemu.d/holdfast")
    return said


def files_of_holdfast(root: Root) -> str:
    return root.ok(
        "find / -xdev -path /debs -prune -o -name '*holdfast*' -print; ls -d /run/holdfast || true"
    )


def test_life_of_a_package(root: Root) -> None:
    # Installed without network: the root has a network namespace of its own. Nothing is enabled, nothing runs.
    root.ok("dpkg -i /debs/*.deb")
    assert root.ok("find /etc/systemd/system -name '*holdfast*' -o -name virtlockd.socket") == ""
    enabled = root.run("systemctl is-enabled holdfastd.service holdfastd.socket holdfast-lease-gc.timer")[1]
    assert enabled.split() == ["disabled"] * 3
    assert root.run("ls /run/holdfast /etc/libvirt/hooks/qemu.d/holdfast")[0] != 0

    # The programs work, and only they have the private directory.
    assert "version" in root.ok("holdfast --version")
    root.ok("holdfastd --check-config")
    root.ok("holdfastd --check-config --config /usr/share/doc/holdfast/examples/holdfast.toml")
    assert "0 violations" in root.ok("holdfast sim --seeds 1")
    assert root.run("python3 -c 'import holdfast'")[0] != 0
    assert root.run("python3 -c 'import msgspec'")[0] != 0
    root.ok("ls /usr/share/man/man1/holdfast-who.1.gz /usr/share/man/man8/holdfastd.8.gz")

    # The admin's set-up: a hook, a daemon, a lock.
    root.ok("install -D -m 755 /usr/share/holdfast/libvirt/qemu-hook /etc/libvirt/hooks/qemu.d/holdfast")
    root.ok("holdfastd >/tmp/log & daemon=$!")
    root.wait("holdfast list")
    root.ok("truncate -s 1M /srv/x.img")
    root.ok("holdfast run --disk /srv/x.img -- sleep 1000 & runner=$!")
    root.wait("holdfast list | grep -q /srv/x.img")

    # The package doesn't go while there is one, and an upgrade leaves it, over a reload too.
    code, said = root.run("dpkg -r holdfast-sim holdfast")
    assert code != 0
    assert "sleep (pid " in said
    assert "/srv/x.img" in said
    root.ok("dpkg -i /debs/*.deb")
    root.ok("holdfast reload")
    assert "/srv/x.img" in root.ok("holdfast list")
    root.ok("test -e /etc/libvirt/hooks/qemu.d/holdfast")

    # A daemon that can't be asked frees nothing.
    root.ok("kill -9 $daemon; wait $daemon; true")
    root.ok("dpkg -r holdfast-sim")
    assert "/srv/x.img" in refused_to_remove(root)

    # What had the lock ends while there is no daemon: whether the disk is still in use is for the next one to find out.
    root.ok(
        "for each in $(cat /proc/$runner/task/$runner/children) $runner; do kill -9 $each; done; wait $runner; true"
    )
    assert "start holdfastd" in refused_to_remove(root)
    root.ok("pkill -x sleep || for p in $(grep -lx sleep /proc/[0-9]*/comm); do kill ${p//[^0-9]/}; done")
    root.ok("holdfastd >/tmp/log & daemon=$!")
    root.wait("/usr/lib/holdfast/package/locks-held")

    # One that runs and can't be asked is not taken for none, whatever the journal says.
    root.ok("mv /run/holdfast/io.holdfast.Control /run/holdfast/elsewhere")
    assert "does not answer" in refused_to_remove(root)
    root.ok("mv /run/holdfast/elsewhere /run/holdfast/io.holdfast.Control")

    # A daemon that no systemd stops is not left without its package.
    assert "still runs" in refused_to_remove(root)
    root.ok("test -e /etc/libvirt/hooks/qemu.d/holdfast")
    root.ok("kill $daemon; wait $daemon; true")
    root.ok("dpkg -r holdfast")
    assert root.run("test -e /etc/libvirt/hooks/qemu.d/holdfast")[0] == 1
    root.ok("dpkg -P holdfast holdfast-sim")
    assert files_of_holdfast(root).split("\n", 1)[0].startswith("ls: ")

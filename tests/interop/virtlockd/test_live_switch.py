"""A live switch (ADR 0211): the real virtlockd becomes holdfastd, with the locks and connections of VMs that run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import BIN, listens, locked, make_disk
from tests.support.json_schema import why_not
from tests.support.polling import wait_until
from tests.support.virtlockd import Virtlockd

from holdfast.control.client import ControlClient
from holdfast.system.host.process import start_ticks
from holdfast.testing.virtlockd_client import CallFailed, VirtlockdClient

VM = """
import os, sys, time
from holdfast.testing.virtlockd_client import VirtlockdClient
client = VirtlockdClient("/run/libvirt/virtlockd-sock")
client.register(pid=os.getpid(), name=sys.argv[1])
for disk in sys.argv[2:]:
    path, _, flags = disk.partition(":")
    client.acquire(path, flags=int(flags or 0))
client.restrict()
print("runs", flush=True)
time.sleep(600)
"""
RIVAL = """
import fcntl, sys
files = [open(each, "r+b") for each in sys.argv[2:]]
kind = fcntl.LOCK_EX if sys.argv[1] == "exclusive" else fcntl.LOCK_SH
print("tries", flush=True)
while True:
    for each in files:
        try:
            fcntl.lockf(each, kind | fcntl.LOCK_NB, 1, 0)
        except BlockingIOError:
            continue
        print("got", each.name, flush=True)
        sys.stdin.read()
"""


class Site:
    """A host in a mount namespace: virtlockd, VMs with libvirt's status files, and the holdfast command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.virtlockd = Virtlockd(directory / "virtlockd")
        self.pid = self.virtlockd.process.pid
        self._anchor = subprocess.Popen(["nsenter", "-t", str(self.pid), "-m", "sleep", "600"])
        """Has the namespace when virtlockd has ended."""
        there = f"/proc/{self._anchor.pid}"
        wait_until(
            lambda: os.readlink(f"{there}/ns/mnt") != os.readlink("/proc/self/ns/mnt"), "it to be there"
        )
        self.root = Path(f"{there}/root")
        self.config = directory / "holdfast.toml"
        self.config.write_text(f'run_dir = "/run/holdfast"\nstate_dir = "{directory}/state"\n')
        (self.root / "run/libvirt/qemu").mkdir(parents=True)
        self.vms: dict[str, subprocess.Popen[str]] = {}

    def inside(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["nsenter", "-t", str(self._anchor.pid), "-m", *command],
            stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options,
        )  # fmt: skip

    def vm(self, name: str, *disks: str) -> subprocess.Popen[str]:
        vm = self.inside(sys.executable, "-c", VM, name, *disks)
        assert vm.stdout is not None
        assert vm.stdout.readline() == "runs\n", vm.communicate()
        sources = "".join(
            f"<disk type='file'><source file='{each.partition(':')[0]}'/></disk>" for each in disks
        )
        (self.root / f"run/libvirt/qemu/{name}.xml").write_text(
            f"<domstatus state='running' pid='{vm.pid}'><domain><name>{name}</name><devices>{sources}"
            "</devices></domain></domstatus>"
        )
        self.vms[name] = vm
        return vm

    def end(self, name: str) -> None:
        vm = self.vms.pop(name)
        (self.root / f"run/libvirt/qemu/{name}.xml").unlink()
        vm.kill()
        vm.communicate()

    def switch(self, *options: str) -> tuple[int, str]:
        holdfast = [str(BIN / "holdfast"), "--config", str(self.config), "switch", *options]
        command = self.inside(*holdfast)
        out, err = command.communicate(timeout=100)
        return command.returncode, out + err

    def program(self) -> str:
        """What virtlockd's process is."""
        return Path(f"/proc/{self.pid}/cmdline").read_bytes().decode().replace("\0", " ")

    def holders(self) -> list[tuple[str, str, bool]]:
        with ControlClient(str(self.root / "run/holdfast/io.holdfast.Control")) as admin:
            return sorted((each.owner, each.name, each.held) for each in admin.locks())

    def refused(self, disk: Path) -> str:
        with VirtlockdClient(str(self.root / "run/libvirt/virtlockd-sock")) as client:
            client.register(pid=os.getpid(), name="other")
            try:
                client.acquire(str(disk))
            except CallFailed as e:
                return e.reply.message
            client.release(str(disk))
            return ""

    def log(self) -> str:
        return self.virtlockd.log.read_text()

    def close(self) -> None:
        for vm in self.vms.values():
            vm.kill()
            vm.communicate()
        self.virtlockd.stop()
        here = os.readlink(f"/proc/{self._anchor.pid}/ns/mnt")
        for each in Path("/proc").glob("[0-9]*"):  # a keeper too
            with contextlib.suppress(OSError):
                if os.readlink(each / "ns/mnt") == here:
                    os.kill(int(each.name), signal.SIGKILL)
        self._anchor.wait()

    def answers(self) -> bool:
        return listens(str(self.root / "run/holdfast/io.holdfast.Control"))


@pytest.fixture
def site(place: Path) -> Iterator[Site]:
    site = Site(Path(tempfile.mkdtemp(dir=place)))
    yield site
    site.close()


@contextlib.contextmanager
def rival(kind: str, *disks: Path) -> Iterator[subprocess.Popen[str]]:
    """Somebody else who tries all the while."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", RIVAL, kind, *map(str, disks)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "tries\n"
        try:
            yield process
        finally:
            process.kill()


def test_virtlockd_becomes_holdfastd_and_no_vm_notices(site: Site, tmp_path: Path) -> None:
    disks = [make_disk(tmp_path, f"disk{number}") for number in range(6)]
    for number, disk in enumerate(disks[:4]):
        site.vm(f"vm{number}", str(disk))
    site.vm("both", f"{disks[4]}", f"{disks[5]}:1")
    code, said = site.switch("--dry-run", "--json")
    assert (code, "virtlockd" in site.program()) == (0, True), said
    assert why_not("switch --dry-run", json.loads(said)) == ""
    with rival("exclusive", *disks[:5]) as thief:
        code, said = site.switch("--json")
        assert code == 0, said + site.log()
        assert why_not("switch", json.loads(said)) == ""
        assert "holdfastd" in site.program()
        thief.kill()
        assert thief.stdout is not None
        assert thief.stdout.readline() == "", "it got a disk"
    names = [("both", str(disks[4]), True), ("both", str(disks[5]), True)]
    names += [(f"vm{number}", str(disks[number]), True) for number in range(4)]
    wait_until(lambda: site.holders() == names, "holdfastd to have all locks")
    assert "VM vm0 " in site.refused(disks[0])
    assert all(vm.poll() is None for vm in site.vms.values())
    # A VM's connection is served on, and its end ends its locks.
    site.end("vm0")
    wait_until(lambda: not locked(disks[0]), "the lock to end with its VM")
    assert locked(disks[1])
    # Nothing is left in virtlockd's place.
    assert not (site.root / "run/virtlockd-restart-exec.json").exists()
    assert "holdfast-virtlockd-switch" not in Path(f"/proc/{site.pid}/mountinfo").read_text()
    assert (site.root / "usr/sbin/virtlockd").read_bytes()[:4] == b"\x7fELF"


def test_a_connection_that_may_not_have_registered_bars_the_switch(site: Site, tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    site.vm("web1", str(disk))
    with VirtlockdClient(str(site.root / "run/libvirt/virtlockd-sock")):
        code, said = site.switch()
        assert code == 75
        assert f"(pid {os.getpid()})" in said
        assert "would lose all its locks" in said
    assert "virtlockd" in site.program()
    assert locked(disk)


@pytest.mark.long
def test_a_shared_rival_is_reported_and_the_lock_is_not_counted_as_exclusive(
    site: Site, tmp_path: Path
) -> None:
    disk, other = make_disk(tmp_path), make_disk(tmp_path, "other")
    site.vm("web1", str(disk))
    site.vm("web2", str(other))
    with rival("shared", disk) as thief:
        code, said = site.switch()
        got_in = code == 5
        assert code in (0, 5), said + site.log()
        if got_in:
            assert f"in doubt: web1: {disk} has a shared lock only" in said
            wait_until(lambda: site.holders()[0] == ("web1", str(disk), False), "the doubt to be shown")
            assert site.holders()[1] == ("web2", str(other), True)
            assert "LOCK IN DOUBT" in site.log()
            assert site.refused(disk), "nobody gets it"
            assert site.vms["web1"].poll() is None
        thief.kill()
    # When the other one is gone, the rest of the lock is taken.
    wait_until(lambda: site.holders()[0] == ("web1", str(disk), True), "the lock to be whole")


@pytest.mark.parametrize("what", ["no plan", "no program", "a program that can't be executed"])
def test_virtlockd_goes_on_with_its_locks_when_anything_is_wrong(
    site: Site, tmp_path: Path, what: str
) -> None:
    disk = make_disk(tmp_path)
    vm = site.vm("web1", str(disk))
    program = BIN / "holdfast-virtlockd-switch"
    broken = tmp_path / "broken"
    broken.write_bytes(b"no program at all")
    broken.chmod(0o755)
    order = {
        "pid": site.pid,
        "start": 1,
        "target": "/usr/sbin/virtlockd",
        "by": [vm.pid, start_ticks(vm.pid)],  # somebody who lives
        "command": [str(broken if "executed" in what else "/no/such/program")],
        "backend": "file",
    }
    script = (
        "mkdir -p /run/holdfast-switch && touch /run/holdfast-switch/virtlockd && "
        "mount --bind /usr/sbin/virtlockd /run/holdfast-switch/virtlockd && "
        f"mount --bind {program} /usr/sbin/virtlockd"
    )
    assert site.inside("sh", "-c", script).communicate()[1] == ""
    if what != "no plan":
        (site.root / "run/holdfast-switch/plan.json").write_text(json.dumps(order))
    with rival("exclusive", disk) as thief:
        os.kill(site.pid, signal.SIGUSR1)
        wait_until(lambda: "the real virtlockd is executed" in site.log(), "our program to give way")
        wait_until(lambda: site.program().startswith("/usr/sbin/virtlockd"), "virtlockd to run")
        assert site.refused(disk)
        thief.kill()
        assert thief.stdout is not None
        assert thief.stdout.readline() == "", "it got the disk"
    assert "POSIX" in Path("/proc/locks").read_text()
    assert vm.poll() is None
    # It is virtlockd's own lock again, and ends with its VM's connection.
    site.end("web1")
    wait_until(lambda: not locked(disk), "the lock to end with its VM")


ORDER = """
import subprocess, sys
from holdfast.switch.order import NotSwitched, find, order
vms, pid = [int(each) for each in sys.argv[2:]], int(sys.argv[1])
try:
    print(order(find(pid), vms, command=(), backend="file", keep=lambda command: subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)).outcome, flush=True)
except NotSwitched as e:
    print("not switched:", e, flush=True)
"""
ASKS = "from holdfast.switch.fetch import fetch; print(len(fetch('/run/holdfast-switch/keeper')[0].locks))"


@pytest.mark.parametrize(
    "point",
    [pytest.param("", marks=pytest.mark.long), "converted", pytest.param("before", marks=pytest.mark.long)],
)
def test_a_keeper_has_the_locks_whenever_the_switching_process_is_killed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setenv("HOLDFAST_SWITCH_STOP_AT", point)
    site = Site(Path(tempfile.mkdtemp(dir=place)))
    disks = [make_disk(tmp_path, f"disk{number}") for number in range(3)]
    try:
        for number, disk in enumerate(disks):
            site.vm(f"vm{number}", str(disk))
        pids = [str(vm.pid) for vm in site.vms.values()]
        # Before the conversion the locks are the killed process's: somebody else may be faster than the keeper.
        with rival("exclusive", *disks[: 0 if point == "before" else 3]) as thief:
            ordered = site.inside(sys.executable, "-c", ORDER, str(site.pid), *pids)
            if point:
                wait_until(lambda: is_stopped(site.pid), "the switching process to stand still")
                os.kill(site.pid, signal.SIGKILL)
            assert ordered.stdout is not None
            said = ordered.stdout.readline()
            assert said == "kept\n", said + site.log()
            site.virtlockd.process.wait(timeout=30)
            ordered.kill()
            ordered.communicate()
            # A holdfastd that ends before it has said that all is safe leaves it where it was.
            asked = site.inside(sys.executable, "-c", ASKS)
            assert asked.communicate() == ("3\n", "")
            holdfastd = site.inside(str(BIN / "holdfastd"), "--config", str(site.config))
            names = [(f"vm{number}", str(disk), True) for number, disk in enumerate(disks)]
            wait_until(lambda: site.answers() and site.holders() == names, "holdfastd to have all locks")
            wait_until(lambda: not (site.root / "run/holdfast-switch/keeper").exists(), "the keeper to end")
            assert "VM vm1 " in site.refused(disks[1])
            thief.kill()
            assert thief.stdout is not None
            assert thief.stdout.readline() == "", "it got a disk"
        site.end("vm0")
        wait_until(lambda: not locked(disks[0]), "the lock to end with its VM")
        holdfastd.kill()
        holdfastd.communicate()
    finally:
        site.close()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

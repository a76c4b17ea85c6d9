"""A host in a mount namespace with a real virtlockd, VMs that have locks in it, and others that want their disks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.control.client import ControlClient
from holdfast.testing.virtlockd_client import CallFailed, VirtlockdClient
from tests.support.daemon import BIN, listens
from tests.support.polling import wait_until
from tests.support.virtlockd import Virtlockd

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
import fcntl, struct, sys, time
OFD = 37  # F_OFD_SETLK
kind = fcntl.F_WRLCK if sys.argv[1] == "exclusive" else fcntl.F_RDLCK
lock = struct.pack("hhqqi4x", kind, 0, 0, 1, 0)
files = [open(each, "r+b") for each in sys.argv[2:]]
print("tries", flush=True)
while True:
    for each in list(files):
        for command in (fcntl.F_SETLK, OFD):
            try:
                fcntl.fcntl(each, command, lock)
            except BlockingIOError:
                continue
            print("got", each.name, flush=True)
            files.remove(each)
            break
    time.sleep(0.00002)
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
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            ["nsenter", "-t", str(self._anchor.pid), "-m", *command], text=True, **(pipes | options)
        )

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

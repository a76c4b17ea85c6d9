"""`holdfast setup` on a host whose virtlockd has locks of VMs that run: it becomes holdfastd, and no VM loses a lock."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import Machine, require, wait_until
from tests.systemd.test_setup import running, setup
from tests.systemd.test_units import LockWatch, Vm, owner_names

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """virtlockd serves, and libvirt asks it for locks."""
    require()
    machine = Machine(tmp_path_factory.mktemp("systemd"), tmp_path_factory.getbasetemp())
    try:
        conf = Path(machine.path("/etc/libvirt/qemu.conf"))
        conf.write_text(conf.read_text() + '\nlock_manager = "lockd"\n')
        machine.run("systemctl", "enable", "--now", "virtlockd.socket", "virtlockd-admin.socket")
        machine.run("systemctl", "start", "virtlockd.service")
        yield machine
    finally:
        machine.close()


def libvirt_knows(machine: Machine, vm: Vm, name: str) -> None:
    file = Path(machine.path(f"/run/libvirt/qemu/{name}.xml"))
    file.parent.mkdir(parents=True, exist_ok=True)
    inner = next(
        line.split()[-1]
        for line in Path(f"/proc/{machine.pid}/root/proc/{vm.pid}/status").read_text().splitlines()
        if line.startswith("NSpid")
    )
    file.write_text(
        f"<domstatus state='running' pid='{inner}'><domain><name>{name}</name><devices>"
        f"<disk type='file'><source file='{vm.disk}'/></disk></devices></domain></domstatus>"
    )


def test_setup_switches_a_host_whose_vms_run_and_they_keep_their_locks(
    machine: Machine, tmp_path: Path
) -> None:
    disks = [tmp_path / f"web{number}.img" for number in range(3)]
    vms = []
    try:
        for number, disk in enumerate(disks):
            disk.touch()
            vms.append(Vm(machine, disk, f"web{number}"))
            libvirt_knows(machine, vms[-1], f"web{number}")
        code, dry = setup(machine, "--dry-run")
        assert code == 5, dry
        step = next(each for each in dry["steps"] if each["id"] == "switch")
        assert "while VMs run" in step["title"]
        assert any("kill -USR1" in each for each in step["changes"])
        watches = [LockWatch(disk) for disk in disks]
        for watch in watches:
            watch.__enter__()
        code, done = setup(machine, "--yes")
        assert code == 0, (done, machine.log.read_text()[-3000:])
        assert not running(machine, "virtlockd")
        assert owner_names(machine) == ["web0", "web1", "web2"]
        assert all(vm.process.poll() is None for vm in vms)
        assert not os.path.exists(machine.path("/run/holdfast-switch/keeper"))
        assert "/usr/sbin/virtlockd " not in Path(f"/proc/{machine.pid}/mountinfo").read_text()
        # They are in systemd's store: a crash of holdfastd loses none.
        before = machine.show("holdfastd.service", "MainPID")
        os.kill(int(_outer(machine, int(before))), signal.SIGKILL)
        wait_until(
            lambda: (
                machine.show("holdfastd.service", "MainPID") not in ("0", before)
                and machine.show("holdfastd.service", "ActiveState") == "active"
            ),
            "holdfastd to be back",
        )
        assert owner_names(machine) == ["web0", "web1", "web2"]
        assert [watch.was_free for watch in watches] == [0, 0, 0]
        # The end of a VM is noticed by the connection that it had made to virtlockd.
        vms[0].end()
        wait_until(lambda: watches[0].was_free, "the lock of a VM that has ended to be free")
        assert setup(machine, "--undo", "--yes")[0] == 75, "virtlockd could not take these locks"
        assert [watch.was_free for watch in watches[1:]] == [0, 0]
        for watch in watches:
            watch.__exit__()
    finally:
        for vm in vms:
            vm.end()


def _outer(machine: Machine, pid: int) -> str:
    """The pid by which this side knows a process of the machine."""
    for each in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in each.read_text().splitlines() if ":" in line)
            same = os.readlink(each.parent / "ns/pid") == os.readlink(f"/proc/{machine.pid}/ns/pid")
        except OSError:
            continue
        if same and lines["NSpid"].split()[-1] == str(pid):
            return each.parent.name
    raise AssertionError(f"no process {pid}")

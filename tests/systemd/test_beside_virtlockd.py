"""A host with a running virtlockd, as everybody's is at first: what an operator tries there kills no VM.

virtlockd kills every VM that has a lock in it when it is stopped. It does that here to a process that stands for a QEMU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import PROJECT, Machine, require, wait_until
from tests.systemd.test_units import LIBVIRT_SOCKET, Vm, owner_names

pytestmark = pytest.mark.timeout(240)
HOLDFAST = str(Path(sys.executable).parent / "holdfast")


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With Holdfast's units installed and virtlockd serving."""
    require()
    machine = Machine(tmp_path_factory.mktemp("systemd"), tmp_path_factory.getbasetemp())
    try:
        machine.run("systemctl", "start", "virtlockd.socket", "virtlockd-admin.socket", "virtlockd.service")
        yield machine
    finally:
        machine.close()


@pytest.fixture
def vm(machine: Machine, tmp_path: Path) -> Iterator[Vm]:
    """Its lock is in virtlockd, and libvirt has a status file of it."""
    disk = tmp_path / "web.img"
    disk.touch()
    vm = Vm(machine, disk, "web1")
    says(machine, vm, "running")
    yield vm
    vm.end()


def says(machine: Machine, vm: Vm, state: str) -> None:
    file = Path(machine.path("/run/libvirt/qemu/web1.xml"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"<domstatus state='{state}' pid='{vm.pid}'><domain><name>web1</name><devices>"
        f"<disk type='file'><source file='{vm.disk}'/></disk></devices></domain></domstatus>"
    )


def virtlockd(machine: Machine) -> str:
    return machine.try_run("pgrep", "-x", "virtlockd").stdout.strip()


def problems(machine: Machine) -> dict[str, dict[str, str]]:
    result = json.loads(machine.try_run(HOLDFAST, "doctor", "--json").stdout)
    return {each["id"]: each for each in result if each["severity"] == "problem"}


TRIES = (
    ("systemctl", "enable", "--now", "holdfastd.socket", "holdfastd.service"),
    ("systemctl", "start", "holdfastd.service"),
    ("systemctl", "restart", "holdfastd.service"),
    ("systemctl", "start", "holdfastd.socket"),
    ("systemctl", "daemon-reload"),
)


def test_nothing_that_starts_holdfast_beside_virtlockd_kills_a_vm(machine: Machine, vm: Vm) -> None:
    before = virtlockd(machine)
    assert before
    for command in TRIES:
        result = machine.try_run(*command)
        assert virtlockd(machine) == before, command
        assert vm.process.poll() is None, command
        assert machine.show("holdfastd.service", "MainPID") != before, (
            f"{command}: systemd took virtlockd for it"
        )
        assert machine.show("holdfastd.service", "ActiveState") != "active", command
        assert (result.returncode == 0) is (
            command[1] == "daemon-reload" or command[-1].endswith(".socket")
        ), command
    assert machine.show("holdfastd.service", "ExecMainStatus") == "75"
    reason = machine.try_run(f"{HOLDFAST}d", "--check-virtlockd")
    assert f"virtlockd (pid {before}) runs, and VMs that hold locks in it would be killed" in reason.stderr
    assert machine.show("holdfastd.service", "NRestarts") == "0", "it would fill the journal"


def test_socket_alone_is_not_taken_from_virtlockd(machine: Machine, vm: Vm) -> None:
    """Before anything is enabled there is no alias: another socket unit, which would bind the same path."""
    before = virtlockd(machine)
    assert machine.try_run("systemctl", "start", "holdfastd.socket").returncode != 0
    assert virtlockd(machine) == before
    assert vm.process.poll() is None


def test_doctor_names_the_vm_and_its_fix_works_to_the_end(machine: Machine, vm: Vm) -> None:
    found = problems(machine)
    assert "web1" in found["HF022"]["facts"]
    assert "--now" not in found["HF003"]["fix"]
    # What `virsh suspend` and `resume` do to locks; there is no libvirtd here.
    machine.run("mkdir", "-p", "/run/bin")
    virsh = Path(machine.path("/run/bin/virsh"))
    virsh.write_text(f'#!/bin/sh\nexec {sys.executable} /run/bin/move "$@"\n')
    virsh.chmod(0o755)
    Path(machine.path("/run/bin/move")).write_text(
        "import sys; from holdfast.testing.virtlockd_client import *\n"
        f"c = VirtlockdClient({LIBVIRT_SOCKET!r}); c.register(pid={vm.pid}, name='web1')\n"
        f"c.release({str(vm.disk)!r}) if sys.argv[1] == 'suspend' else c.acquire({str(vm.disk)!r})\n"
        "f = open('/run/libvirt/qemu/web1.xml'); text = f.read()\n"
        "new = text.replace('running', 'paused') if sys.argv[1] == 'suspend' else text.replace('paused', 'running')\n"
        "open('/run/libvirt/qemu/web1.xml', 'w').write(new)\n"
    )
    path = f"/run/bin:{Path(HOLDFAST).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    done = machine.try_run(
        "env", f"PATH={path}", f"PYTHONPATH={PROJECT}/src", "bash", "-c", found["HF022"]["fix"]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert virtlockd(machine) == ""
    assert vm.process.poll() is None, "the VM lives"
    assert owner_names(machine) == ["web1"]
    assert not {"HF020", "HF021", "HF022", "HF023", "HF024", "HF025", "HF026", "HF028"} & set(
        problems(machine)
    )


def test_fix_goes_no_further_than_a_suspend_that_fails(machine: Machine, vm: Vm) -> None:
    fix = problems(machine)["HF022"]["fix"]
    before = virtlockd(machine)
    done = machine.try_run(
        "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "bash", "-c", fix
    )  # no libvirtd: virsh fails
    assert done.returncode != 0
    assert virtlockd(machine) == before
    assert vm.process.poll() is None


def test_virtlockd_does_not_start_beside_holdfast_and_does_after_the_way_back(machine: Machine) -> None:
    machine.run(
        "systemctl", "disable", "--now", "virtlockd.socket", "virtlockd-admin.socket", "virtlockd.service"
    )
    machine.run("systemctl", "enable", "--now", "holdfastd.socket", "holdfastd.service")
    assert machine.try_run("systemctl", "start", "virtlockd.service").returncode != 0
    assert virtlockd(machine) == ""
    machine.run("systemctl", "disable", "--now", "holdfastd.service", "holdfastd.socket")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", "--now", "virtlockd.socket", "virtlockd-admin.socket")
    machine.run("systemctl", "start", "virtlockd.service")
    wait_until(lambda: virtlockd(machine), "virtlockd runs again")

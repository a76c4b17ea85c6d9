"""`holdfast setup` on a host whose virtlockd has locks of VMs that run: it becomes holdfastd, and no VM loses a lock."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stopping_programs import Stop, StoppingPrograms
from tests.systemd.machine import Machine, as_debian_leaves_it, require, wait_until
from tests.systemd.test_setup import files, running, setup
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


@pytest.fixture
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """virtlockd and libvirtd run, and libvirt asks nobody for locks, by its file."""
    with as_debian_leaves_it(tmp_path_factory.mktemp("systemd"), tmp_path_factory.getbasetemp()) as machine:
        yield machine


SETUP, PROGRAM = "holdfast", "holdfast-virtlockd-switch"
STEPS = [
    Stop(SETUP, "holdfast.cli.setup.record:Record.replace"),
    Stop(SETUP, "holdfast.cli.setup.record:Record.step_is_done"),
    Stop(SETUP, "holdfast.cli.setup.execute:run", "after"),
    Stop(SETUP, "holdfast.cli.setup.execute:_keep", "after"),
    Stop(SETUP, "holdfast.switch.place:put", "after"),
    Stop(SETUP, "holdfast.cli.setup.execute:order", "after"),
    Stop(SETUP, "holdfast.cli.setup.execute:run", "after"),
    Stop(SETUP, "holdfast.cli.setup.execute:run", "after"),
    Stop(SETUP, "holdfast.cli.setup.execute:run", "after", 2),
]
"""Each run comes further than the one before: qemu.conf before it is changed and after; libvirt stopped; a keeper; the
program in virtlockd's place; everything at the keeper; virtlockd's units disabled; units loaded; holdfastd started.
"""


@pytest.mark.long
def test_setup_that_is_killed_at_each_step_goes_on_and_no_vm_loses_a_lock(
    bare: Machine, tmp_path: Path
) -> None:
    machine, before = bare, files(bare)
    disks = [tmp_path / f"web{number}.img" for number in range(3)]
    programs = StoppingPrograms(tmp_path / "bin")
    vms: list[Vm] = []
    with contextlib.ExitStack() as watching:
        for number, disk in enumerate(disks):
            disk.touch()
            vms.append(Vm(machine, disk, f"web{number}"))
            watching.callback(vms[-1].end)
            libvirt_knows(machine, vms[-1], f"web{number}")
        watches = [watching.enter_context(LockWatch(disk)) for disk in disks]
        for number, stop in enumerate(STEPS):
            killed_at(machine, programs, stop)
            assert all(vm.process.poll() is None for vm in vms), stop
            assert [watch.was_free for watch in watches] == [0, 0, 0], stop
            if number == 1:
                code, undone = setup(machine, "--undo", "--yes")
                assert code == 0, undone
                assert files(machine) == before
                assert running(machine, "virtlockd")
            if number == 5:
                code, refused = setup(machine, "--undo", "--yes")
                assert code == 75, refused
                assert "a keeper (pid " in refused["refused"][0]
                found = machine.try_run(str(programs.directory / "holdfast"), "doctor", "--only", "HF029")
                assert "has ended in a live switch" in found.stdout, found
        code, done = setup(machine, "--yes")
        assert code == 0, (done, machine.log.read_text()[-3000:])
        assert done["steps"] == []
        assert owner_names(machine) == ["web0", "web1", "web2"]
        assert all(vm.process.poll() is None for vm in vms)
        assert [watch.was_free for watch in watches] == [0, 0, 0]
        assert machine.show("libvirtd.service", "ActiveState") == "active"
        assert not os.path.exists(machine.path("/run/holdfast-switch/keeper"))
        assert not os.path.exists(machine.path("/run/holdfast-switch/locks"))


@pytest.mark.long
@pytest.mark.parametrize("who", ["the program", "the keeper"])
def test_setup_whose_switch_is_killed_says_so_and_has_holdfastd_take_the_locks_again(
    bare: Machine, tmp_path: Path, who: str
) -> None:
    machine = bare
    programs = StoppingPrograms(tmp_path / "bin")
    disk = tmp_path / "web.img"
    disk.touch()
    vm = Vm(machine, disk, "web")
    try:
        libvirt_knows(machine, vm, "web")
        if who == "the program":
            (reached,) = programs.stop_at(Stop(PROGRAM, "holdfast.switch.program:_give_to_keeper"))
        else:  # the keeper is killed when setup has its result, and setup continues
            (reached,) = programs.stop_at(Stop(SETUP, "holdfast.cli.setup.execute:order", "after"))
        run = begun(machine, programs, reached)
        if who == "the program":
            machine.run("kill", "-KILL", reached.read_text())
        else:
            machine.run("systemctl", "kill", "-s", "KILL", "holdfast-switch.service")
            machine.run("kill", "-CONT", reached.read_text())
            os.kill(run.pid, signal.SIGCONT)
        said = run.communicate(timeout=60)[0]
        assert run.returncode in (0, 5), said
        if who == "the program":
            assert "VIRTLOCKD WAS KILLED in the switch, and its 1 locks ended with it" in said
        assert "IN DOUBT" not in said
        wait_until(lambda: "ended in the switch" in machine.log.read_text() + journal(machine), "the log")
        assert owner_names(machine) == ["web"]
        with LockWatch(disk) as watch:
            wait_until(lambda: watch.tries > 10, "some tries")
        assert watch.was_free == 0
        assert vm.process.poll() is None
        assert machine.show("libvirtd.service", "ActiveState") == "active"
    finally:
        vm.end()


def journal(machine: Machine) -> str:
    return machine.try_run("journalctl", "-u", "holdfastd.service", "--no-pager").stdout


def killed_at(machine: Machine, programs: StoppingPrograms, stop: Stop) -> None:
    (reached,) = programs.stop_at(stop)
    run = begun(machine, programs, reached)
    machine.run("kill", "-KILL", reached.read_text())
    run.kill()  # nsenter stops with its child
    run.communicate()


def begun(machine: Machine, programs: StoppingPrograms, reached: Path) -> subprocess.Popen[str]:
    """`holdfast setup`, with one of its processes at the stop."""
    path = f"PATH={programs.directory}:/usr/sbin:/usr/bin:/sbin:/bin"
    command = ["env", path, programs.path("holdfast"), "setup", "--yes"]
    run = subprocess.Popen(
        ["nsenter", "-t", str(machine.pid), "-m", "-p", "-C", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: reached.exists() or run.poll() is not None, f"{reached.name} to be reached")
    if not reached.exists():
        raise AssertionError((run.communicate()[0], machine.log.read_text()[-3000:]))
    return run


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

"""holdfastd under a real systemd: activation, the descriptor store, reload, and libvirtd's dependency."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.control.client import ControlClient
from holdfast.model import Mode
from holdfast.system.files.ofd_lock import _PACKED, F_OFD_SETLK
from holdfast.testing.virtlockd_client import CallFailed, VirtlockdClient
from tests.systemd.machine import Machine, require, wait_until

pytestmark = pytest.mark.timeout(240)
LIBVIRT_SOCKET = "/run/libvirt/virtlockd-sock"
CONTROL_SOCKET = "/run/holdfast/io.holdfast.Control"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    require()
    machine = Machine(tmp_path_factory.mktemp("systemd"), tmp_path_factory.getbasetemp())
    try:
        machine.run("systemctl", "enable", "holdfastd.service")
        machine.run("systemctl", "start", "holdfastd.socket")
        yield machine
    finally:
        machine.close()


class LockWatch:
    """Tries to take a lock again and again; remembers every time that it was free."""

    def __init__(self, path: Path) -> None:
        self.tries = 0
        self.was_free = 0
        self._fd = os.open(path, os.O_RDWR)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.tries += 1
            try:
                fcntl.fcntl(self._fd, F_OFD_SETLK, _PACKED[Mode.EXCLUSIVE])
            except BlockingIOError:
                pass
            else:
                self.was_free += 1
                self.tries += 10
                return
            self._stop.wait(0.0005)

    def __enter__(self) -> LockWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._fd)


class Vm:
    """A process in the machine that keeps its registered connection open, as QEMU does, and its disk locked."""

    def __init__(self, machine: Machine, disk: Path, name: str) -> None:
        self.machine = machine
        self.disk = disk
        code = (
            "import os, sys, time; from holdfast.testing.virtlockd_client import *; "
            f"c = VirtlockdClient({LIBVIRT_SOCKET!r}); c.register(pid=os.getpid(), name={name!r}); "
            f"c.acquire({str(disk)!r}); c.restrict(); print(os.getpid(), flush=True); time.sleep(600)"
        )
        import sys

        self.process = subprocess.Popen(
            ["nsenter", "-t", str(machine.pid), "-m", "-p", "-C", sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())

    def end(self) -> None:
        self.machine.try_run("kill", "-KILL", str(self.pid))
        self.process.wait(timeout=30)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def vm(machine: Machine, tmp_path: Path) -> Iterator[Vm]:
    disk = tmp_path / "web.img"
    disk.touch()
    vm = Vm(machine, disk, "web1")
    yield vm
    vm.end()


def main_pid(machine: Machine) -> str:
    return machine.show("holdfastd.service", "MainPID")


def refused(machine: Machine, disk: Path) -> bool:
    with VirtlockdClient(machine.path(LIBVIRT_SOCKET)) as client:
        client.register(pid=1, name="other")
        try:
            client.acquire(str(disk))
        except CallFailed as e:
            assert (e.reply.code, e.reply.domain) == (87, 51)
            return "web1" in e.reply.message
        client.release(str(disk))
        return False


def owner_names(machine: Machine) -> list[str]:
    with ControlClient(machine.path(CONTROL_SOCKET)) as client:
        return [o.name for o in client.owners() if o.locks]


def test_units_have_no_errors(machine: Machine) -> None:
    result = machine.try_run("systemd-analyze", "verify", "--man=no", "holdfastd.service", "holdfastd.socket")
    complaints = [
        line
        for line in (result.stdout + result.stderr).splitlines()
        if "holdfastd" in line and "FileDescriptorStorePreserve" not in line  # systemd 254 and later
    ]
    assert complaints == []


def test_first_client_starts_the_daemon(machine: Machine) -> None:
    machine.run("systemctl", "stop", "holdfastd.service")
    with VirtlockdClient(machine.path(LIBVIRT_SOCKET), timeout_s=60) as client:
        client.create_lockspace("")
    assert machine.show("holdfastd.service", "ActiveState") == "active"
    assert "NRestarts=0" in machine.run("systemctl", "show", "holdfastd.service", "-p", "NRestarts")


def test_libvirtd_is_satisfied_by_holdfast_and_never_starts_virtlockd(machine: Machine) -> None:
    assert machine.show("virtlockd.socket", "Id") == "holdfastd.socket"
    assert machine.show("virtlockd.service", "Id") == "virtlockd.service", (
        "no alias: systemd would merge one that runs"
    )
    assert machine.try_run("systemctl", "start", "virtlockd.service").returncode != 0
    # It says virtlockd.socket: libvirt 11 wants what earlier ones require.
    needed = [machine.show("libvirtd.service", how) for how in ("Requires", "Wants")]
    assert any("holdfastd.socket" in units for units in needed)
    with open(machine.path("/etc/libvirt/qemu.conf"), "a", encoding="utf-8") as f:
        f.write(
            '\nlock_manager = "lockd"\nsecurity_driver = "none"\ncgroup_controllers = []\nnamespaces = []\n'
        )
    machine.run("systemctl", "start", "libvirtd.service")
    assert machine.show("holdfastd.socket", "ActiveState") == "active"
    assert machine.try_run("pgrep", "-x", "virtlockd").stdout == ""
    machine.run("virsh", "-q", "-c", "qemu:///system", "list")
    machine.run("systemctl", "stop", "libvirtd.service")


@pytest.mark.parametrize("how", ["kill -9", "stands still", "restart", "reload"])
def test_lock_is_never_let_go_while_the_daemon_is_replaced(machine: Machine, vm: Vm, how: str) -> None:
    before = main_pid(machine)
    with LockWatch(vm.disk) as watch:
        if how == "kill -9":
            machine.run("kill", "-KILL", before)
            wait_until(lambda: main_pid(machine) not in ("0", before), "another daemon runs")
        elif how == "stands still":
            # As a daemon that was killed while it hung in storage: it shows no sign of life (WatchdogSec=).
            machine.run("kill", "-STOP", before)
            wait_until(lambda: main_pid(machine) not in ("0", before), "systemd has replaced it", 120.0)
        else:
            machine.run("systemctl", how, "holdfastd.service")
        wait_until(lambda: owner_names(machine) == ["web1"], "the owner is known again")
        assert refused(machine, vm.disk)
        tried = watch.tries
        wait_until(lambda: watch.tries > tried + 20, "the lock was tried again")
    assert watch.was_free == 0
    assert (main_pid(machine) == before) is (how == "reload")


def test_daemon_that_guards_vms_is_replaced_although_a_virtlockd_was_started(
    machine: Machine, vm: Vm
) -> None:
    """A first start refuses beside a virtlockd (test_beside_virtlockd); one with locks must not leave its VMs alone."""
    before = main_pid(machine)
    machine.run("cp", "/bin/sleep", "/run/virtlockd")
    machine.run("systemd-run", "--unit=by-hand", "/run/virtlockd", "600")
    try:
        # Debian 13's systemd says that it is started before its executor has become the program.
        wait_until(lambda: machine.try_run("pgrep", "-x", "virtlockd").stdout, "the other virtlockd to run")
        machine.run("kill", "-KILL", before)
        wait_until(lambda: main_pid(machine) not in ("0", before), "another daemon runs")
        wait_until(lambda: owner_names(machine) == ["web1"], "the owner is known again")
        assert refused(machine, vm.disk)
    finally:
        machine.run("systemctl", "stop", "by-hand.service")


@pytest.fixture
def configured(machine: Machine, tmp_path: Path) -> Iterator[Path]:
    """A configuration of its own; the unit's line for a reload is the one that is shipped."""
    locks = tmp_path / "locks"
    locks.mkdir()
    file = tmp_path / "holdfast.toml"
    file.write_text(
        f'[backend.shared]\ndriver = "file"\ndirectory = "{locks}"\n[[disk]]\nmatch = "*"\nbackend = "shared"\n'
    )
    drop_in = Path(machine.path("/etc/systemd/system/holdfastd.service.d/test.conf"))
    drop_in.parent.mkdir()
    program = machine.show("holdfastd.service", "ExecStart").split("path=")[1].split(" ")[0]
    drop_in.write_text(
        f"[Service]\nExecStart=\nExecStart={program} -f {file}\nEnvironment=HOLDFAST_CONFIG={file}\n"
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "holdfastd.service")
    yield file
    drop_in.unlink()
    drop_in.parent.rmdir()
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "holdfastd.service")


def test_reload_that_takes_what_a_vm_needs_fails_with_the_reason(
    machine: Machine, configured: Path, vm: Vm
) -> None:
    before, good = main_pid(machine), configured.read_text()
    configured.write_text(good.replace("/locks", "/other"))
    failed = machine.try_run("systemctl", "reload", "holdfastd.service")
    assert failed.returncode != 0
    assert 'backend.shared.directory: "' in machine.show("holdfastd.service", "StatusText")
    assert f"web1: {vm.disk}" in machine.show("holdfastd.service", "StatusText")
    assert machine.show("holdfastd.service", "ActiveState") == "active"
    assert main_pid(machine) == before
    assert owner_names(machine) == ["web1"]
    assert refused(machine, vm.disk)
    configured.write_text(good)
    machine.run("systemctl", "reload", "holdfastd.service")
    assert "serving" in machine.show("holdfastd.service", "StatusText")
    assert main_pid(machine) == before
    assert owner_names(machine) == ["web1"]


def test_start_with_a_broken_configuration_goes_on_guarding(
    machine: Machine, configured: Path, vm: Vm
) -> None:
    good = configured.read_text()
    configured.write_text(good + "[virtlockd\n")
    machine.run("systemctl", "restart", "holdfastd.service")
    assert owner_names(machine) == ["web1"]
    assert refused(machine, vm.disk)
    with ControlClient(machine.path(CONTROL_SOCKET)) as client:
        assert any("is not TOML" in problem for problem in client.status().problems)
    configured.write_text(good)


def test_connection_of_a_vm_is_kept_over_a_crash_so_its_end_is_noticed(machine: Machine, vm: Vm) -> None:
    machine.run("kill", "-KILL", main_pid(machine))
    wait_until(lambda: owner_names(machine) == ["web1"], "the owner is known again")
    with ControlClient(machine.path(CONTROL_SOCKET)) as client:
        assert [o.connections for o in client.owners() if o.name == "web1"] == [1]
    vm.end()
    wait_until(lambda: owner_names(machine) == [], "its lock is free")
    wait_until(lambda: not refused(machine, vm.disk), "another VM may start")


@pytest.fixture
def hanging_scope(machine: Machine) -> Iterator[str]:
    """A VM's scope that systemd is stopping, and that does not end: SIGTERM does nothing."""
    machine.run("systemctl", "start", "holdfastd.service")
    scope = "machine-hangs.scope"
    process = subprocess.Popen(
        [
            *(
                "nsenter",
                "-t",
                str(machine.pid),
                "-m",
                "-p",
                "-C",
                "systemd-run",
                "--scope",
                "-q",
                f"--unit={scope}",
            ),
            *("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"),
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        machine.run("systemctl", "stop", "--no-block", scope)
        wait_until(lambda: machine.show(scope, "ActiveState") == "deactivating", "the scope is being stopped")
        yield scope
    finally:
        machine.run("systemctl", "kill", "-s", "KILL", scope)
        process.wait(timeout=60)
        process.stdout.close()


def test_daemon_that_falls_while_the_end_of_a_vm_hangs_is_replaced_at_once(
    machine: Machine, hanging_scope: str
) -> None:
    before = machine.show("holdfastd.service", "MainPID")
    machine.run("kill", "-9", before)
    wait_until(
        lambda: (
            machine.show("holdfastd.service", "MainPID") not in ("0", before)
            and machine.show("holdfastd.service", "ActiveState") == "active"
        ),
        f"holdfastd is replaced; jobs: {machine.run('systemctl', 'list-jobs')}",
        timeout_s=30,
    )
    assert machine.show(hanging_scope, "ActiveState") == "deactivating"


def test_at_a_shutdown_vms_end_before_the_daemon(machine: Machine, hanging_scope: str) -> None:
    """systemd stops what is after something first, and so the target between both."""
    assert machine.show("holdfast-vms.target", "ActiveState") == "active"
    assert "holdfastd.service" in machine.show("holdfast-vms.target", "After").split()
    assert "shutdown.target" in machine.show("holdfast-vms.target", "Conflicts").split()
    after = machine.show(hanging_scope, "After").split()
    assert "holdfast-vms.target" in after and "holdfastd.service" not in after


def test_descriptor_store_is_empty_once_nobody_holds_anything(machine: Machine, tmp_path: Path) -> None:
    disk = tmp_path / "a.img"
    disk.touch()
    vm = Vm(machine, disk, "web2")
    wait_until(
        lambda: machine.show("holdfastd.service", "NFileDescriptorStore") == "2",
        "lock and connection are stored",
    )
    vm.end()
    wait_until(lambda: machine.show("holdfastd.service", "NFileDescriptorStore") == "0", "the store is empty")


def test_released_lock_is_free_at_once_though_systemd_has_a_copy_of_it(machine: Machine, vm: Vm) -> None:
    """A migration's destination asks some milliseconds after the source's release."""
    vm_pid = int(machine.run("pgrep", "-f", "web1"))
    with VirtlockdClient(machine.path(LIBVIRT_SOCKET)) as client:
        client.register(pid=vm_pid, name="web1")
        os.kill(machine.pid, signal.SIGSTOP)  # systemd can't let go of its copy now
        try:
            client.release(str(vm.disk))
            with LockWatch(vm.disk) as watch:
                wait_until(lambda: watch.tries > 2, "the lock was tried")
            assert watch.was_free
        finally:
            os.kill(machine.pid, signal.SIGCONT)


def test_stop_leaves_the_vm_alone_and_start_takes_its_lock_again(machine: Machine, vm: Vm) -> None:
    machine.run("systemctl", "stop", "holdfastd.service")
    os.kill(vm.process.pid, 0)
    assert vm.process.poll() is None
    machine.run("systemctl", "start", "holdfastd.service")
    assert owner_names(machine) == ["web1"]
    assert refused(machine, vm.disk)
    assert vm.process.poll() is None

"""holdfast-sanlockd.service under a real systemd, with the real `sanlock` command as its client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.interop.sanlock.direct import blank_file
from tests.systemd.machine import UNITS, Machine, require, wait_until

pytestmark = pytest.mark.timeout(240)
UNIT = "holdfast-sanlockd.service"
OPTIONS = "/run/sanlock-options"
SPACE, RESOURCE = "LS1", "disk1"
LEASE_BYTES = 1 << 20


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The unit as it ships, with options as /etc/default/sanlock has them; this kernel has no watchdog."""
    require()
    machine = Machine(tmp_path_factory.mktemp("systemd"), tmp_path_factory.getbasetemp())
    try:
        units = Path(machine.path("/etc/systemd/system"))
        text = (UNITS / UNIT).read_text()
        assert "/usr/bin/holdfast-sanlockd" in text
        (units / UNIT).write_text(
            text.replace("/usr/bin/holdfast", f"{Path(sys.executable).parent}/holdfast")
        )
        Path(machine.path(OPTIONS)).write_text('SANLOCKOPTS="-w 0 -U root -G root -o 1"\n')
        drop_in = units / f"{UNIT}.d" / "options.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(f"[Service]\nEnvironmentFile=\nEnvironmentFile={OPTIONS}\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", UNIT)
        yield machine
    finally:
        machine.close()


def holds(machine: Machine) -> bool:
    status = machine.try_run("sanlock", "client", "status").stdout.splitlines()
    return any(line.startswith(f"r {SPACE}:{RESOURCE}:") and not line.endswith(" ADD") for line in status)


def clients(machine: Machine) -> list[str]:
    """Pids of registered processes, in the machine."""
    lines = machine.try_run("sanlock", "client", "status").stdout.splitlines()
    return [line.split()[1] for line in lines if line.startswith("p ") and not line.startswith("p -1 ")]


def is_another(machine: Machine, before: int) -> bool:
    return main_pid(machine) not in (0, before)


def main_pid(machine: Machine) -> int:
    return int(machine.show(UNIT, "MainPID"))


def test_a_client_keeps_its_lease_over_every_end_of_the_service(machine: Machine, tmp_path: Path) -> None:
    space, lease = tmp_path / "space", tmp_path / "lease"
    for path in (space, lease):
        blank_file(path, LEASE_BYTES)
    machine.run("sanlock", "client", "init", "-s", f"{SPACE}:0:{space}:0", "-o", "1")
    machine.run("sanlock", "client", "add_lockspace", "-s", f"{SPACE}:1:{space}:0", "-o", "1")
    machine.run("sanlock", "client", "init", "-r", f"{SPACE}:{RESOURCE}:{lease}:0")
    command = (
        "sanlock",
        "client",
        "command",
        "-r",
        f"{SPACE}:{RESOURCE}:{lease}:0",
        "-c",
        "/bin/sleep",
        "600",
    )
    client = subprocess.Popen(["nsenter", "-t", str(machine.pid), "-m", "-p", "-C", *command])
    try:
        wait_until(lambda: holds(machine), "the client has its lease")
        (pid,) = clients(machine)
        for way in ("kill", "restart", "reload"):
            before = main_pid(machine)
            if way == "kill":
                machine.run("kill", "-KILL", str(before))
            else:
                machine.run("systemctl", way, UNIT)
            if way == "reload":
                assert main_pid(machine) == before, "a reload keeps the process"
            else:
                wait_until(partial(is_another, machine, before), "the next daemon runs")
            wait_until(lambda: holds(machine), f"the lease is held on after {way}")
            assert clients(machine) == [pid] and client.poll() is None, way
        assert int(machine.show(UNIT, "NFileDescriptorStore")) > 0, (
            "its connection is kept for the next daemon"
        )
    finally:
        machine.try_run("kill", "-KILL", *clients(machine))
    client.wait(timeout=30)
    wait_until(lambda: not holds(machine), "the lease ends with its client")
    machine.run("systemctl", "stop", UNIT)
    assert machine.show(UNIT, "Result") == "success"
    assert machine.try_run("sanlock", "client", "status").returncode != 0

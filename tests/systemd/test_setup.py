"""`holdfast setup` on a host with virtlockd under a real systemd: protected, a no-op, back, and no file differs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.machine import Machine, as_debian_leaves_it
from tests.systemd.test_units import Vm

pytestmark = pytest.mark.timeout(240)
PROGRAMS = Path(sys.executable).parent
PLACES = ("/etc/libvirt", "/etc/systemd/system")
"""Where setup changes files and links."""
AT_WORK = {"qemu-conf", "switch", "libvirt"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """As Debian leaves it: virtlockd and libvirtd run, and libvirt asks nobody for locks."""
    with as_debian_leaves_it(tmp_path_factory.mktemp("systemd"), tmp_path_factory.getbasetemp()) as machine:
        yield machine


def setup(machine: Machine, *options: str, config: Path | None = None) -> tuple[int, dict[str, Any]]:
    named = ["--config", str(config)] if config else []
    done = machine.try_run(
        "env",
        f"PATH={PROGRAMS}:/usr/sbin:/usr/bin:/sbin:/bin",
        "holdfast",
        *named,
        "setup",
        "--json",
        *options,
    )
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def files(machine: Machine) -> dict[str, tuple[str, int, bytes]]:
    """Every file and link of `PLACES` but for those that a libvirtd writes by itself: a link's target, mode, content."""
    found = {}
    for place in PLACES:
        top = Path(machine.path(place))
        for path in sorted(top.rglob("*")):
            by_itself = place == "/etc/libvirt" and ".xml" in path.suffixes
            if by_itself or path.is_dir():
                continue
            state = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            target = str(path.readlink()) if path.is_symlink() else ""
            found[f"{place}/{path.relative_to(top)}"] = (target, state.st_mode, content)
    return found


def running(machine: Machine, program: str) -> bool:
    return machine.try_run("pgrep", "-x", program).returncode == 0


def test_host_is_protected_by_one_command_and_is_as_before_after_the_undo(
    machine: Machine, tmp_path: Path
) -> None:
    before = files(machine)
    code, dry = setup(machine, "--dry-run")
    assert code == 5, dry
    assert {each["id"] for each in dry["steps"]} == AT_WORK
    assert '+lock_manager = "lockd"' in dry["steps"][0]["changes"]
    assert files(machine) == before
    assert running(machine, "virtlockd"), "a dry run changes nothing"

    # A VM that has a lock in virtlockd would be killed.
    disk = tmp_path / "web.img"
    disk.touch()
    vm = Vm(machine, disk, "web1")
    try:
        code, refused = setup(machine, "--yes")
        assert code == 75, refused
        assert any("KILLS" in each and str(disk) in each for each in refused["refused"]), refused
        assert vm.process.poll() is None
        assert files(machine) == before
    finally:
        vm.end()

    code, done = setup(machine, "--yes")
    assert code == 0, done
    assert done["steps"] == []
    assert not running(machine, "virtlockd")
    assert machine.show("holdfastd.socket", "ActiveState") == "active"
    assert machine.show("libvirtd.service", "ActiveState") == "active"
    assert 'lock_manager = "lockd"' in Path(machine.path("/etc/libvirt/qemu.conf")).read_text()

    protected = files(machine)
    code, again = setup(machine, "--yes")
    assert (code, again["done"]) == (0, []), again
    assert files(machine) == protected

    # While a VM has a lock here, virtlockd could not take it over.
    vm = Vm(machine, disk, "web1")
    try:
        code, refused = setup(machine, "--undo", "--yes")
        assert code == 75
        assert "web1" in refused["refused"][0]
        assert files(machine) == protected
    finally:
        vm.end()

    code, undone = setup(machine, "--undo", "--yes")
    assert code == 0, undone
    assert files(machine) == before
    assert not Path(machine.path("/var/lib/holdfast/setup")).exists()
    assert machine.show("virtlockd.socket", "ActiveState") == "active"
    assert machine.show("virtlockd.socket", "Id") == "virtlockd.socket"
    assert machine.show("libvirtd.service", "ActiveState") == "active"
    assert machine.show("holdfastd.service", "ActiveState") == "inactive"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A block device that hosts are taken to share."""
    backing = tmp_path / "device"
    with backing.open("wb") as f:
        f.truncate(64 << 20)
    name = subprocess.run(
        ["losetup", "--find", "--show", backing], capture_output=True, text=True, check=True
    ).stdout.strip()
    yield name
    subprocess.run(["losetup", "-d", name], check=True)


@pytest.mark.long
def test_leases_on_a_device_are_made_joined_and_given_up(
    machine: Machine, device: str, tmp_path: Path
) -> None:
    """The unit is given a configuration file of its own, since /etc is read-only here."""
    file = tmp_path / "holdfast.toml"
    drop_in = Path(machine.path("/run/systemd/system/holdfastd.service.d/test.conf"))
    drop_in.parent.mkdir()
    drop_in.write_text(
        f"[Service]\nExecStart=\nExecStart={PROGRAMS}/holdfastd -f {file}\nEnvironment=HOLDFAST_CONFIG={file}\n"
    )
    machine.run("systemctl", "daemon-reload")
    before = files(machine)
    wishes = ("--leases", device, "--profile", "fast", "--watchdog", "none", "--yes")
    code, done = setup(machine, *wishes, config=file)
    assert (code, done["steps"], done["refused"]) == (0, [], []), done
    assert any("joined" in each for each in done["done"])
    listed = json.loads(
        machine.run(str(PROGRAMS / "holdfast"), "--config", str(file), "lockspace", "list", "--json")
    )
    assert [(each["name"], each["state"], each["host_id"]) for each in listed] == [("vms", "joined", 1)]
    assert setup(machine, "--yes", config=file)[1]["done"] == [], "the wishes are remembered"
    code, misfit = setup(machine, "--join", device, "--profile", "sanlock", "--dry-run", config=file)
    assert code == 75
    assert "does not fit" in misfit["refused"][0]
    assert setup(machine, "--undo", "--yes", config=file)[0] == 0
    assert files(machine) == before
    assert not file.exists()

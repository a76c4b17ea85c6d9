"""A live switch (ADR 0211): the real virtlockd becomes holdfastd, with the locks and connections of VMs that run."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon import BIN, locked, make_disk
from tests.support.json_schema import why_not
from tests.support.polling import wait_until
from tests.support.switch_site import Site, rival

from holdfast.system.host.process import start_ticks
from holdfast.testing.virtlockd_client import VirtlockdClient


@pytest.fixture
def site(place: Path) -> Iterator[Site]:
    site = Site(Path(tempfile.mkdtemp(dir=place)))
    yield site
    site.close()


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

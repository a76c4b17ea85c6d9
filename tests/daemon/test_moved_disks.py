"""VMs that run while the rule of their disk comes to name another backend: both locks are held until the VM asks again."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.daemon.conftest import MakeHost
from tests.daemon.test_leases import joined
from tests.support.daemon import Holdfastd, exists, locked, make_disk, refusal
from tests.support.polling import wait_until


def by_leases(host: Holdfastd) -> None:
    """All its disks have leases from the next reload on."""
    text = host.config.read_text()
    host.config.write_text(
        text.replace('match = "*/local/*"\nbackend = "file"', 'match = "*/nothing/*"\nbackend = "file"')
    )


def problems(host: Holdfastd) -> list[str]:
    return [p for p in host.cli_json("status")["problems"] if p.startswith("the lock on ")]


def guarded(host: Holdfastd) -> bool:
    return any("both are held" in problem for problem in problems(host))


def moved(make_host: MakeHost, place: Path) -> tuple[Holdfastd, Holdfastd, Path, int]:
    """Alpha's VM holds a file lock, and both hosts go by leases now."""
    alpha, beta = make_host("alpha", 1), make_host("beta", 2)
    for host in (alpha, beta):
        joined(host.start())
    (place / "local").mkdir()
    disk = make_disk(place / "local")
    vm = alpha.vm([disk], name="web1")
    assert refusal(alpha, disk) != ""
    for host in (alpha, beta):
        by_leases(host)
        host.reexec()
    return alpha, beta, disk, vm


def test_no_host_is_granted_the_disk_by_the_new_rule_while_the_vm_has_the_old_lock(
    make_host: MakeHost, place: Path
) -> None:
    alpha, beta, disk, vm = moved(make_host, place)
    wait_until(lambda: guarded(alpha), "the lease to be taken along")
    assert "is locked by VM web1" in refusal(beta, disk)
    (problem,) = problems(alpha)
    assert "is of backend 'file', and its rule names 'leases'" in problem
    assert problem.endswith("; to move it: virsh suspend web1 && virsh resume web1")
    assert {(row["resource"], row["backend"]) for row in alpha.cli_json("list")} == {
        (str(disk), "file"),
        (str(disk), "leases"),
    }
    assert alpha.cli("doctor").returncode != 0
    alpha.cli("lease", "gc")
    assert "is locked by VM web1" in refusal(beta, disk)
    for restart in (alpha.reexec, lambda: (alpha.kill(signal.SIGKILL), alpha.start())):
        restart()
        wait_until(lambda: guarded(alpha), "both to be held again")
        assert exists(vm)
        assert "is locked by VM web1" in refusal(beta, disk)
    alpha.end_vm(vm)
    wait_until(lambda: refusal(beta, disk) == "", "both to be free")
    assert problems(alpha) == []


def test_lease_is_given_up_with_the_lock_and_the_vm_that_asks_again_has_the_lease_alone(
    make_host: MakeHost, place: Path
) -> None:
    alpha, beta, disk, vm = moved(make_host, place)
    wait_until(lambda: guarded(alpha), "the lease to be taken along")
    with alpha.client() as libvirt:
        libvirt.register(pid=vm, name="web1")
        libvirt.release(str(disk))
        assert refusal(beta, disk) == ""
        libvirt.acquire(str(disk))
    assert problems(alpha) == []
    assert not locked(disk), "the file lock is gone"
    assert "is locked by VM web1" in refusal(beta, disk)


def test_disk_that_another_host_has_by_the_new_rule_is_reported(make_host: MakeHost, place: Path) -> None:
    alpha, beta = make_host("alpha", 1), make_host("beta", 2)
    for host in (alpha, beta):
        joined(host.start())
    (place / "local").mkdir()
    disk = make_disk(place / "local")
    alpha.vm([disk], name="web1")
    by_leases(beta)
    beta.reexec()
    beta.vm([disk], name="web2")
    by_leases(alpha)
    alpha.reexec()
    alpha.says("which does not guard it: it is held by VM web2")
    (problem,) = problems(alpha)
    assert "can start a second VM on it" in problem

"""VMs that run while the rule of their disk comes to name another backend: both locks are held until the VM asks again."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path

from tests.daemon.conftest import MakeHost
from tests.daemon.test_leases import joined
from tests.support.daemon import (
    Holdfastd,
    bystander,
    exists,
    locked,
    make_disk,
    refusal,
    with_status_files,
)
from tests.support.polling import wait_until

from holdfast.backends.naming import indirect_name
from holdfast.testing.virtlockd_client import AUTOCREATE


def by_leases(host: Holdfastd) -> None:
    """All its disks have leases from the next reload on."""
    host.config.write_text(host.config.read_text().replace('match = "*/local/*"', 'match = "*/nothing/*"'))


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


def in_lock_directory(make_host: MakeHost, place: Path) -> tuple[Holdfastd, Holdfastd, Path]:
    """Two hosts, joined, whose local disks have lock files in a directory until they go by leases; and such a disk."""
    locks, local = place / "locks", place / "local"
    for directory in (locks, local):
        directory.mkdir()
    shared = f'[backend.shared]\ndriver = "file"\ndirectory = "{locks}"\n'
    alpha, beta = make_host("alpha", 1, shared), make_host("beta", 2, shared)
    for host in (alpha, beta):
        host.config.write_text(host.config.read_text().replace('backend = "file"', 'backend = "shared"'))
        joined(host.start())
    return alpha, beta, make_disk(local)


def blank(path: Path, key: bytes) -> None:
    """Remove a number from a note, as an older daemon writes it; its length stays, and blanks mean nothing there."""
    raw = path.read_bytes()
    at = raw.find(b',"' + key + b'":')
    assert at > 0
    end = raw.index(b",", at + 1)
    path.write_bytes(raw[:at] + b" " * (end - at) + raw[end:])


def test_lock_that_is_attributed_only_when_its_vm_asks_again_is_guarded_from_then_on(
    make_host: MakeHost, place: Path
) -> None:
    alpha, beta, disk = in_lock_directory(make_host, place)
    pid = bystander(3)
    with alpha.client() as libvirt:
        libvirt.register(pid=pid, name="web1")
        libvirt.acquire(str(disk))
        alpha.kill()
    (lock_file,) = (place / "locks").iterdir()
    (alpha.run_dir / "journal").unlink()
    blank(lock_file, b"start")
    by_leases(beta)
    beta.reexec()
    by_leases(alpha)
    alpha.start()
    wait_until(lambda: alpha.cli_json("status")["locks_unknown"] == 1, "the lock to be held as unknown")
    with alpha.client() as libvirt:
        libvirt.register(pid=pid, name="web1")
        libvirt.acquire(str(disk))
        wait_until(lambda: guarded(alpha), "the lease to be taken along")
        assert "is locked by VM web1" in refusal(beta, disk)
        assert locked(lock_file)
        libvirt.release(str(disk))
        assert refusal(beta, disk) == ""
        assert not lock_file.exists()


def test_lock_that_is_held_again_only_later_is_guarded_from_then_on(make_host: MakeHost, place: Path) -> None:
    """The disk's storage comes back after the daemon has begun."""
    alpha, beta = make_host("alpha", 1), make_host("beta", 2)
    for host in (alpha, beta):
        joined(host.start())
    (place / "local").mkdir()
    disk = make_disk(place / "local")
    alpha.vm([disk], name="web1")
    alpha.kill()
    away = disk.rename(place / "away.img")
    for host in (alpha, beta):
        by_leases(host)
    beta.reexec()
    alpha.start()
    assert [held for _, _, held in alpha.holders(disk)] == [False]
    away.rename(disk)
    wait_until(lambda: guarded(alpha), "the lease to be taken along")
    assert "is locked by VM web1" in refusal(beta, disk)


def test_both_locks_are_found_and_go_together_when_the_journal_is_lost(
    make_host: MakeHost, place: Path
) -> None:
    alpha, beta, disk = in_lock_directory(make_host, place)
    pid = bystander(3)
    with alpha.client() as libvirt:
        libvirt.register(pid=pid, name="web1")
        libvirt.acquire(str(disk))
        for host in (alpha, beta):
            by_leases(host)
            host.reexec()
        wait_until(lambda: guarded(alpha), "the lease to be taken along")
        alpha.kill()
    (alpha.run_dir / "journal").unlink()
    alpha.start()
    wait_until(lambda: guarded(alpha), "both to be found")
    assert "is locked by VM web1" in refusal(beta, disk)
    with alpha.client() as libvirt:
        libvirt.register(pid=pid, name="web1")
        libvirt.release(str(disk))
        assert refusal(beta, disk) == ""
    wait_until(lambda: alpha.cli_json("list") == [], "the doubt about other leases to end")


def test_disk_that_libvirt_names_by_a_hash_is_guarded_by_the_lease_of_its_path(
    make_host: MakeHost, place: Path
) -> None:
    alpha, beta = make_host("alpha", 1), make_host("beta", 2)
    status, space, local = place / "status", place / "lockd", place / "local"
    for directory in (status, space, local):
        directory.mkdir()
    in_namespace = with_status_files(status)
    joined(alpha.start(preexec_fn=in_namespace))
    joined(beta.start())
    disk, pid = make_disk(local), bystander(3)
    name = indirect_name(str(disk))

    def listed() -> None:
        (status / "web1.xml").write_text(
            f"<domstatus state='running' reason='booted' pid='{pid}'><domain><name>web1</name>"
            f"<uuid>{uuid.uuid5(uuid.NAMESPACE_DNS, 'web1')}</uuid><devices><disk type='file' device='disk'>"
            f"<source file='{disk}'/></disk></devices></domain></domstatus>"
        )

    listed()
    with alpha.client() as libvirt:
        libvirt.register(pid=pid, name="web1")
        libvirt.acquire(name, lockspace=str(space), flags=AUTOCREATE)
        assert locked(space / name)
        (status / "web1.xml").unlink()
        for host in (alpha, beta):
            by_leases(host)
            host.reexec()
        (unclear,) = problems(alpha)
        assert "shows no disk with that hash" in unclear
        listed()
        alpha.reexec()
        wait_until(lambda: guarded(alpha), "the lease of the path to be taken along")
        assert problems(alpha)[0].startswith(f"the lock on {disk} of web1 ")
        assert "is locked by VM web1" in refusal(beta, disk)
        alpha.kill()
    alpha.start(preexec_fn=in_namespace)
    wait_until(lambda: guarded(alpha), "both to be held again")
    assert "is locked by VM web1" in refusal(beta, disk)
    with alpha.client() as libvirt:
        libvirt.register(pid=pid, name="web1")
        libvirt.acquire(name, lockspace=str(space), flags=AUTOCREATE)
        assert guarded(alpha), "a reboot of the guest changes nothing"
        libvirt.release(name, lockspace=str(space))
        libvirt.release(name, lockspace=str(space))

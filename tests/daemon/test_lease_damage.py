"""Lease storage that is full, damaged, cut or deleted under a real daemon: told clearly, and nobody else is concerned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon.conftest import MakeHost
from tests.daemon.test_leases import joined, record
from tests.support.daemon import exists, make_disk, refusal
from tests.support.leases import SPACE, lease_file, leases_in, make_lockspace
from tests.support.mounts import mounted
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.leader import Leader

SECTOR = DEFAULT.sector_bytes


def damage(path: Path, sector: int, content: bytes = b"\xa5" * SECTOR) -> None:
    with path.open("r+b") as f:
        f.seek(sector * SECTOR)
        f.write(content)


def assert_told(text: str, lease: Path, what: str) -> None:
    """Place, fault and fix."""
    assert str(lease) in text
    assert what in text
    assert "holdfast lease init --force" in text


def renewed(leases: Path, host_id: int = 1) -> None:
    """Renewals go on."""
    before = record(leases, host_id).timestamp
    wait_until(lambda: record(leases, host_id).timestamp > before, "the next renewal")


@pytest.fixture
def full(place: Path, leases: Path) -> Iterator[Path]:
    """The lease directory on a file system of 4 MiB: the lockspace and two or three leases."""
    with mounted(leases, "-t", "tmpfs", "-o", "size=3200k,mode=755", "tmpfs"):
        make_lockspace(leases / SPACE)
        yield leases


def test_full_storage_refuses_a_new_lease_and_keeps_those_that_are_held(
    make_host_by_path: MakeHost, place: Path, full: Path
) -> None:
    alpha, beta = make_host_by_path("alpha", 1).start(), make_host_by_path("beta", 2).start()
    joined(alpha), joined(beta)
    disks = [make_disk(place, f"{n}.img") for n in range(2)]
    vms = [alpha.vm([disk], name=disk.stem) for disk in disks]
    for disk in disks:
        # Every byte of it has its place on storage: no write to it can find it full.
        found = lease_file(full, disk).stat()
        assert found.st_blocks * 512 >= found.st_size == MIB
    text = refusal(alpha, make_disk(place, "one-too-many.img"))
    assert str(lease_file(full, place / "one-too-many.img")) in text
    assert "No space left on device" in text
    assert "holdfast lease gc" in text
    assert set(leases_in(full)) == {lease_file(full, disk) for disk in disks}
    renewed(full)
    assert all(exists(vm) for vm in vms)
    alpha.end_vm(vms[0])
    wait_until(lambda: refusal(beta, disks[0]) == "", "the lease to be taken by the other host")
    assert alpha.vm([disks[0]], name="again")
    assert alpha.cli("lease", "gc").returncode == 0
    assert refusal(alpha, disks[1])


def test_damaged_leases_are_refused_with_place_and_fix_and_concern_nobody_else(
    make_host_by_path: MakeHost, place: Path, leases: Path
) -> None:
    alpha, beta = make_host_by_path("alpha", 1).start(), make_host_by_path("beta", 2).start()
    joined(alpha), joined(beta)
    disks = {name: make_disk(place, f"{name}.img") for name in ("leader", "block", "cut", "sound")}
    vms = {name: alpha.vm([disk], name=name) for name, disk in disks.items()}
    files = {name: lease_file(leases, disk) for name, disk in disks.items()}
    damage(files["leader"], 0)
    damage(files["block"], 2)
    os.truncate(files["cut"], 0)
    for name, what in (("leader", "magic number"), ("cut", "shorter than a lease")):
        assert_told(refusal(beta, disks[name]), files[name], what)
    assert "(host_id 1)" in refusal(
        beta, disks["block"]
    )  # the leader says so; the VM's name was in the block
    for name, vm in vms.items():
        assert exists(vm)
        assert alpha.holders(disks[name]) == [(name, vm, True)]
    assert "locked by VM sound" in refusal(beta, disks["sound"])
    renewed(leases)
    # Given up: what can't be freed on storage says why, to whoever asks, until it is put right.
    for vm in vms.values():
        alpha.end_vm(vm)
    wait_until(lambda: not any(alpha.holders(disk) for disk in disks.values()), "the releases")
    wait_until(lambda: refusal(beta, disks["sound"]) == "", "the sound lease to be free")
    text = wait_until(lambda: refusal(alpha, disks["leader"]), "a refusal")
    assert "magic number" in text
    assert "holdfast lease init --force" in text
    text = "not yet released on storage (leader: magic number of another record (found 0xa5a5a5a5"
    assert alpha.count(text) == 1
    wait_until(lambda: refusal(beta, disks["block"]) == "", "the lease whose block was written anew")
    damage(files["block"], 2)
    assert_told(refusal(beta, disks["block"]), files["block"], "checksum")
    for name in ("leader", "block", "cut"):
        made = alpha.cli(
            "lease", "init", str(files[name]), "--lockspace", SPACE, "--resource", files[name].name, "--force"
        )
        assert made.returncode == 0, made.stderr
    wait_until(lambda: refusal(alpha, disks["leader"]) == "", "the lease to be had again")
    wait_until(lambda: refusal(alpha, disks["cut"]) == "", "the lease to be had again")
    assert [refusal(beta, disk) for disk in disks.values()] == ["", "", "", ""]
    assert "Traceback" not in alpha.log_text() + beta.log_text()


def test_lease_file_that_was_deleted_is_made_anew_and_its_holder_is_not_disturbed(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    alpha = joined(make_host("alpha", 1).start())
    disk, other = make_disk(place), make_disk(place, "other.img")
    vm, bystander = alpha.vm([disk], name="web1"), alpha.vm([other], name="web2")
    lease_file(leases, disk).unlink()
    assert "locked by VM web1" in refusal(alpha, disk)
    renewed(leases)
    assert exists(vm)
    alpha.end_vm(vm)
    wait_until(lambda: not alpha.holders(disk), "the release")
    wait_until(lambda: refusal(alpha, disk) == "", "a new lease")
    assert isinstance(Leader.decode(lease_file(leases, disk).read_bytes()[:SECTOR]), Leader)
    assert alpha.holders(other) == [("web2", bystander, True)]
    assert "Traceback" not in alpha.log_text()


def test_damaged_record_of_this_host_stops_its_vms_at_once_and_no_other_host(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    alpha, beta = make_host("alpha", 1).start(), make_host("beta", 2).start()
    joined(alpha), joined(beta)
    mine, theirs = make_disk(place), make_disk(place, "theirs.img")
    vm, kept = beta.vm([mine], name="web1"), alpha.vm([theirs], name="web2")
    damage(leases / SPACE, 1)
    wait_until(lambda: not exists(vm), "the VM to be stopped")
    beta.says("this host's record is damaged: delta lease: magic number")
    assert "delta lease: magic number" in wait_until(lambda: refusal(beta, mine), "a refusal")
    renewed(leases)
    assert exists(kept)
    assert alpha.holders(theirs) == [("web2", kept, True)]
    assert "Traceback" not in alpha.log_text() + beta.log_text()


@pytest.mark.parametrize("how", ["deleted", "replaced", "cut"])
def test_lockspace_that_is_not_the_one_any_more_is_lost_before_anybody_can_join_another(
    make_host: MakeHost, place: Path, leases: Path, how: str
) -> None:
    alpha = joined(make_host("alpha", 1).start())
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    if how == "cut":
        os.truncate(leases / SPACE, 0)
    else:
        (leases / SPACE).unlink()
    if how == "replaced":
        make_lockspace(leases / SPACE)
    wait_until(lambda: not exists(vm), "the VM to be stopped")
    # Owners are stopped before the loss is logged.
    (line,) = wait_until(
        lambda: [line for line in alpha.log_text().splitlines() if "is LOST" in line], "the loss to be logged"
    )
    assert ("Message too long" if how == "cut" else "deleted, replaced or unmounted") in line
    (leases / SPACE).unlink(missing_ok=True)
    make_lockspace(leases / SPACE)
    wait_until(lambda: alpha.count("joined as host_id 1") == 2, "the lockspace to be joined again")
    wait_until(lambda: refusal(alpha, disk) == "", "the disk to be had again")

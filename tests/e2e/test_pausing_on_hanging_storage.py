"""Requests of a guest hang: a paused guest has its lease until its QEMU answers, and is a user of a lockspace that fails.

QEMU reports a stop, and libvirt releases the guest's locks, before QEMU waits for the guest's requests. alpha has the images
on storage that can stall, beta has the same files beside it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from tests.e2e.conftest import clean
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.polling import until
from tests.e2e.lab.storage import Image, SharedFolder
from tests.support.fuse_storage import FaultyStorage
from tests.support.leases import SPACE

pytestmark = pytest.mark.holdfast_only("virtlockd has no leases")

STALLING = "/srv/stalling"
HELD_BACK = "it stays held until QEMU answers"
ALL_GONE = "nobody depends on it any more"


@pytest.fixture
def patient_lab(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    """A guest has 20 s to answer before it gets SIGTERM."""
    yield from clean(request, make_lab(("holdfastd", "holdfastd"), "leases with sanlock's times"))


def test_paused_guest_counts_until_its_requests_have_ended(patient_lab: Lab) -> None:
    lab = patient_lab
    with stalling_storage(lab) as (storage, disk):
        vm = lab.vm(lab.alpha, "web1", disk, on_lockfailure="pause").start()
        daemon, before = lab.lockd[lab.alpha], len(lab.lockd[lab.alpha].said)
        storage.stall_writes(disk.file)
        with failing_lockspace(lab):
            until(lambda: HELD_BACK in daemon.said[before:], "libvirt's release")
            assert ALL_GONE not in daemon.said[before:]
            assert "web1" in daemon.holdfast("list")
            written = disk.count
            storage.healthy()
            until(lambda: ALL_GONE in daemon.said[before:], "QEMU's answer")
            assert disk.count > written, "no request was under way"
            assert vm.state.startswith("paused")
            assert "web1" not in daemon.holdfast("list")
            assert vm.process.is_alive()
        until(daemon.is_joined, "alpha to be in the lockspace again")
        vm.virsh("resume")
        vm.assert_writes()


def test_suspended_guest_has_its_lease_until_its_requests_have_ended(patient_lab: Lab) -> None:
    """Nothing is lost, and alpha can release: another host must not get the disk while requests of alpha's guest hang."""
    lab = patient_lab
    with stalling_storage(lab) as (storage, disk):
        vm = lab.vm(lab.alpha, "web1", disk).start()
        daemon, before = lab.lockd[lab.alpha], len(lab.lockd[lab.alpha].said)
        storage.stall_writes(disk.file)
        until(lambda: hangs(disk), "a request of the guest to hang")
        suspend = lab.alpha.start_virsh("suspend", "web1")  # it waits as long as QEMU
        until(lambda: HELD_BACK in daemon.said[before:], "libvirt's release")
        there = lab.vm(lab.beta, "web1", disk)
        assert "alpha" in there.refused("start")
        written = disk.count
        storage.healthy()
        until(lambda: "web1" not in daemon.holdfast("list"), "the release")
        assert disk.count > written, "no request was under way"
        suspend.communicate(timeout=30)
        assert vm.state.startswith("paused") and vm.process.is_alive()
        there.start()
        there.assert_writes()


def test_guest_runs_on_at_once_after_a_stop(patient_lab: Lab) -> None:
    """As in each snapshot: libvirt acquires again what it has just released."""
    lab = patient_lab
    vm = lab.vm(lab.alpha, "web1", lab.storage.image("web1")).start()
    daemon = lab.lockd[lab.alpha]
    for _ in range(5):
        vm.virsh("suspend")
        vm.virsh("resume")
    vm.assert_writes()
    assert "web1" in daemon.holdfast("list")
    vm.virsh("suspend")
    until(lambda: "web1" not in daemon.holdfast("list"), "QEMU's answer")


@pytest.mark.long
def test_guest_whose_requests_hang_on_is_killed_and_a_late_write_lands(lease_lab: Lab) -> None:
    """The last is why `on_loss = "reset"` is for storage on which a killed process does not wait for its requests."""
    lab = lease_lab
    with stalling_storage(lab) as (storage, disk):
        vm = lab.vm(lab.alpha, "web1", disk, on_lockfailure="pause").start()
        daemon, before = lab.lockd[lab.alpha], len(lab.lockd[lab.alpha].said)
        qemu = vm.process
        storage.stall_writes(disk.file)
        with failing_lockspace(lab):
            until(lambda: "SIGKILL" in daemon.said[before:], "the end of the grace")
            written = disk.count
            storage.healthy()  # until then its threads may wait in the kernel, and may not
            until(lambda: disk.count > written, "the write that hung to land")
            until(lambda: ALL_GONE in daemon.said[before:], "its end to count")
            assert not qemu.is_alive()
            said = daemon.said[before:]
            assert said.index(HELD_BACK) < said.index("SIGKILL") < said.index(ALL_GONE)
        until(daemon.is_joined, "alpha to be in the lockspace again")


def hangs(disk: Image) -> bool:
    """A guest that runs writes 18 times a second; one that has not for so long waits for a write."""
    before = disk.count
    time.sleep(2.0)
    return disk.count == before


@contextmanager
def stalling_storage(lab: Lab) -> Iterator[tuple[FaultyStorage, Image]]:
    """alpha has an image on storage that stalls; both hosts know it by the same path."""
    behind = f"{STALLING}-behind"
    for path in (STALLING, behind):
        lab.storage.file(path).mkdir()
    disk = image_at(lab.storage, STALLING, behind)
    lab.beta.run("mount", "--bind", behind, STALLING)
    storage = FaultyStorage(Path(behind), Path(STALLING), "fuse.glusterfs", enter=lab.alpha.enter)
    try:
        yield storage, disk
    finally:
        storage.healthy()
        for host in (lab.alpha, lab.beta):
            host.kill_guests()
        storage.close()
        lab.alpha.run("umount", "--lazy", STALLING)
        lab.beta.run("umount", STALLING)
        for path in (STALLING, behind):
            lab.storage.file(path).rename(lab.storage.file(path).with_suffix(f".{disk.file.stem}"))


def image_at(folder: SharedFolder, path: str, behind: str) -> Image:
    """A boot disk; its file is where nothing ever stalls."""
    made = folder.image("stalling")
    file = folder.file(behind) / made.file.name
    made.file.rename(file)
    return Image(f"{path}/{file.name}", file)


@contextmanager
def failing_lockspace(lab: Lab) -> Iterator[None]:
    """alpha's record is overwritten, a failure at its next renewal; in the end it is as alpha would have left it."""
    host, space = lab.alpha, lab.storage.folder / "disk-leases" / SPACE
    offset = DEFAULT.delta_offset_bytes(host.number)
    with space.open("r+b", buffering=0) as file:
        file.seek(offset)
        sector = file.read(DEFAULT.sector_bytes)
        lease = DeltaLease.decode(sector)
        assert isinstance(lease, DeltaLease)
        file.seek(offset)
        file.write(bytes(DEFAULT.sector_bytes))
        try:
            yield
        finally:
            file.seek(offset)
            file.write(replace(lease, timestamp=0).encode() + sector[DeltaLease.BYTES :])

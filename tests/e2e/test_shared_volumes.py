"""driver = "lvm" under real libvirtd and QEMU: live migration of a guest on a shared volume, with no `lvchange` by hand.

lvmlockd is the fake, LVM a stand-in that makes and removes nodes of a loop device; libvirt, its hook and QEMU are real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.testing.fake_lvmlockd import FakeLvmlockd
from holdfast.wire.lvmlockd import Mode
from tests.e2e.conftest import clean
from tests.e2e.lab.daemons import HOLDFAST_TOML, Kind
from tests.e2e.lab.domains import Disk
from tests.e2e.lab.hosts import Host
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.polling import until
from tests.e2e.lab.storage import Image
from tests.e2e.lab.switchover import stands_still, stopped
from tests.support import lvm_stand_in
from tests.support.leases import SPACE, make_lockspace
from tests.support.shared_volumes import FIRE_TIMEOUT_S, IO_TIMEOUT_S, VG_UUID, LeasedModes, at, uuid_of

pytestmark = pytest.mark.holdfast_only("virtlockd knows no volumes")

EX, SH = Mode.EXCLUSIVE, Mode.SHARED
PATH = "/dev/vg/lv0"
MOUNTS = {
    "/dev/mapper/vg-lvmlock": "/srv/volumes/leases",
    "/sys/dev/block": "/srv/volumes/sysblock",
    "/usr/local/sbin": "/run/lvm/bin",
}
LVM_TOML = f"""{HOLDFAST_TOML}
[backend.san-lvm]
driver = "lvm"

[[disk]]
match = "/dev/vg/*"
backend = "san-lvm"
"""


GUARD_TOML = f"""
[backend.san]
driver = "paxos"
directory = "/srv/volumes/guard"
host_id = HOST_ID
watchdog = "none"
io_timeout_s = {IO_TIMEOUT_S}
fire_timeout_s = {FIRE_TIMEOUT_S}
cross_host = true
"""


class VolumeLab:
    """A lab whose devices sda and sdb are volumes of a shared volume group, lv0 and lv1. `activation`: with a guard, and
    that; empty: without.
    """

    def __init__(self, lab: Lab, activation: str = "") -> None:
        self.lab, self._activation = lab, activation
        devices = [lab.device(name).file for name in ("sda", "sdb")]
        self.image, self.data = (Image(f"/dev/vg/lv{n}", device) for n, device in enumerate(devices))
        folder = lab.storage.folder / "volumes"
        folder.mkdir()
        self.modes = LeasedModes(folder / "modes", folder / "leases")
        self._volumes: dict[str, dict[str, object]] = {}
        for n, device in enumerate(devices):
            major, minor = os.major(device.stat().st_rdev), os.minor(device.stat().st_rdev)
            uuid = folder / "sysblock" / f"{major}:{minor}" / "dm" / "uuid"
            uuid.parent.mkdir(parents=True)
            uuid.write_text("LVM-" + (VG_UUID + uuid_of(n)).replace("-", "") + "\n")
            place = {"at": at(n), "major": major, "minor": minor}
            self._volumes[f"lv{n}"] = {"vg": "vg", "uuid": uuid_of(n), **place}
        if activation:
            (folder / "guard").mkdir()
            make_lockspace(folder / "guard" / SPACE)
        self.daemons = [self._host(host) for host in lab.hosts]

    def _host(self, host: Host) -> FakeLvmlockd:
        folder = host.folder / "run" / "lvm"
        (folder / "bin").mkdir(parents=True)
        facts = {
            "host_id": host.number,
            "directory": "/proc",
            "vg_uuid": VG_UUID,
            "volumes": self._volumes,
        }
        (folder / "facts.json").write_text(json.dumps(facts))
        for command in ("lvchange", "lvs", "lvmconfig"):
            script = folder / "bin" / command
            script.write_text(
                f'#!/bin/sh\nexec {sys.executable} {lvm_stand_in.__file__} /run/lvm/facts.json {command} "$@"\n'
            )
            script.chmod(0o755)
        host.run("mkdir", "-p", "/dev/vg", "/dev/mapper")
        host.run("touch", "/dev/mapper/vg-lvmlock")
        for mounted, source in MOUNTS.items():
            host.run("mount", "--bind", source, mounted)
        lockd = self.lab.lockd[host]
        lockd._configuration.write_text(self._toml(host))
        # By a short path: that of the lab's folder may be too long for a socket.
        short = os.open(folder, os.O_DIRECTORY)
        socket = Path(f"/proc/self/fd/{short}/lvmlockd.socket")
        fake = FakeLvmlockd(socket, self.modes, host.number, ["vg"])
        os.close(short)
        lockd.stop()
        lockd.start()
        if self._activation:
            until(lockd.is_joined, f"{host.name} to join the lockspace")
        return fake

    def _toml(self, host: Host) -> str:
        if not self._activation:
            return LVM_TOML
        keys = f'driver = "lvm"\nguard = "san"\nactivation = "{self._activation}"'
        return LVM_TOML.replace('driver = "lvm"', keys) + GUARD_TOML.replace("HOST_ID", str(host.number))

    def close(self) -> None:
        """The lab is as it was."""
        for host, daemon in zip(self.lab.hosts, self.daemons, strict=True):
            lockd = self.lab.lockd[host]
            lockd.stop()
            lockd._configuration.write_text(HOLDFAST_TOML)
            lockd.start()
            daemon.close()
            for mounted in MOUNTS:
                host.run("umount", mounted)
            shutil.rmtree(host.folder / "run" / "lvm")
        shutil.rmtree(self.lab.storage.folder / "volumes")

    @property
    def held(self) -> dict[int, Mode]:
        return self.modes.of(uuid_of(0))

    def becomes(self, held: dict[int, Mode]) -> None:
        until(lambda: self.held == held, f"{PATH} to be held as {held}")

    def is_active(self, host: Host, path: str = PATH) -> bool:
        return host.path(path).exists()


@pytest.fixture
def volume_lab(request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind) -> Iterator[VolumeLab]:
    for lab in clean(request, make_lab((kind, kind), "direct", hook=True)):
        made = VolumeLab(lab)
        yield made
        lab.reset()
        made.close()


def test_guest_on_a_shared_volume_migrates_there_and_back(volume_lab: VolumeLab) -> None:
    lab, alpha, beta = volume_lab.lab, volume_lab.lab.alpha, volume_lab.lab.beta
    vm = lab.vm(alpha, "web1", Disk(volume_lab.image)).start()
    assert volume_lab.held == {1: EX}
    said = lab.vm(beta, "web2", Disk(volume_lab.image)).refused("start")
    assert "is held by host h1" in said
    assert not volume_lab.is_active(beta)
    for source, target, number in ((alpha, beta, 2), (beta, alpha, 1)):
        vm.migrate(target)
        vm.assert_writes()
        volume_lab.becomes({number: EX})
        assert not volume_lab.is_active(source)
    assert volume_lab.image.boots == 1
    vm.virsh("suspend")
    vm.virsh("resume")
    vm.assert_writes()
    running = vm.start_slow_migration(beta)
    assert volume_lab.held == {1: SH, 2: SH}
    for host in lab.hosts:
        lab.lockd[host].kill()
    lab.start_daemons()
    assert volume_lab.held == {1: SH, 2: SH}
    vm.virsh("domjobabort")
    running.communicate()
    volume_lab.becomes({1: EX})
    until(lambda: not volume_lab.is_active(beta), "the target to have let go")
    vm.assert_writes()
    vm.destroy()
    volume_lab.becomes({})
    assert not volume_lab.is_active(alpha)


def test_each_kind_of_migration_hands_the_volume_over(volume_lab: VolumeLab) -> None:
    lab = volume_lab.lab
    vm = lab.vm(lab.alpha, "web1", Disk(volume_lab.image)).start()
    for kind in ([], ["--p2p"], ["--p2p", "--tunnelled"]):
        source, target = vm.host, lab.other(vm.host)
        vm.migrate(target, *kind)
        vm.assert_writes()
        volume_lab.becomes({target.number: EX})
        assert not volume_lab.is_active(source)
    running = vm.start_slow_migration(lab.other(vm.host), "--p2p")
    lab.vm_at(lab.other(vm.host), vm).process.kill()
    running.communicate()
    assert running.returncode != 0
    volume_lab.becomes({vm.host.number: EX})
    vm.assert_writes()
    assert volume_lab.image.boots == 1


def test_volume_follows_a_vm_that_is_saved_reverted_and_given_another_disk(volume_lab: VolumeLab) -> None:
    lab, alpha, beta = volume_lab.lab, volume_lab.lab.alpha, volume_lab.lab.beta
    boots = lab.storage.image("web")
    qcow2 = ("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", boots.file, volume_lab.image.file)
    subprocess.run(qcow2, check=True)
    vm = lab.vm(alpha, "web1", Disk(volume_lab.image, format="qcow2")).start()
    vm.virsh("snapshot-create-as", "s1")
    assert volume_lab.held == {1: EX}
    vm.virsh("snapshot-revert", "s1", "--running")
    vm.assert_writes()
    volume_lab.becomes({1: EX})
    vm.virsh("managedsave")
    volume_lab.becomes({})
    assert not volume_lab.is_active(alpha)
    vm.start()
    assert volume_lab.held == {1: EX}
    vm.virsh("save", "/srv/save/web1")
    volume_lab.becomes({})
    beta.virsh("restore", "/srv/save/web1")
    vm.host = beta
    vm.assert_writes()
    assert volume_lab.held == {2: EX}
    lab.lockd[beta].holdfast("attach", "web1", volume_lab.data.path, "vdb")
    for number, image in enumerate((volume_lab.image, volume_lab.data)):
        assert volume_lab.modes.of(uuid_of(number)) == {2: EX}
        assert "is held by host h2" in lab.vm(alpha, f"thief{number}", Disk(image)).refused("start")
    vm.destroy()
    until(lambda: not volume_lab.modes.of(uuid_of(1)), "the attached volume to be free")
    assert not volume_lab.is_active(beta, volume_lab.data.path)


@pytest.mark.parametrize("activation", ["exclusive", "shared"])
def test_guest_with_a_guard_lease_migrates_there_and_back(
    request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind, activation: str
) -> None:
    for lab in clean(request, make_lab((kind, kind), "direct", hook=True)):
        volumes = VolumeLab(lab, activation)
        try:
            vm = lab.vm(lab.alpha, "web1", Disk(volumes.image)).start()
            assert volumes.held == {1: EX if activation == "exclusive" else SH}
            for source, target in ((lab.alpha, lab.beta), (lab.beta, lab.alpha)):
                vm.migrate(target)
                vm.assert_writes()
                said = lab.vm(source, "thief", Disk(volumes.image)).refused("start")
                assert ("held by" if activation == "exclusive" else "VM web1") in said
            if activation == "exclusive":
                volumes.becomes({1: EX})
            else:
                assert volumes.held == {1: SH, 2: SH}
            vm.virsh("suspend")
            vm.virsh("resume")
            vm.assert_writes()
            assert volumes.image.boots == 1
            vm.destroy()
        finally:
            lab.reset()
            volumes.close()


@pytest.mark.long  # tests/daemon/test_shared_volumes.py plays it with status files of its own
def test_guest_that_runs_on_after_its_release_is_the_only_one(volume_lab: VolumeLab) -> None:
    """Row 11a: QEMU and libvirtd of the target are killed at the switch-over, and libvirt never asks again."""
    lab, disk = volume_lab.lab, Disk(volume_lab.image)
    vm = lab.vm(lab.alpha, "web1", disk).start()
    migration = vm.start_slow_migration(lab.beta, "--p2p")
    with stopped(lab.lockd[lab.alpha].process):
        vm.virsh("migrate-setspeed", "1000")
        until(lambda: stands_still(vm), "the guest to stop for the switch-over")
        lab.libvirtd[lab.beta].kill()
        lab.vm_at(lab.beta, vm).process.kill()
    migration.communicate()
    assert migration.returncode != 0
    lab.start_daemons()
    vm.wait_state("running")
    vm.assert_writes()
    for host, name in ((lab.beta, "thief"), (lab.alpha, "thief2")):
        assert "held by" in lab.vm(host, name, disk).refused("start")
    volume_lab.becomes({1: EX})
    vm.assert_writes()
    assert volume_lab.image.boots == 1
    vm.migrate(lab.beta)
    vm.assert_writes()
    volume_lab.becomes({2: EX})

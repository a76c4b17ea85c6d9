"""Leases on storage that two hosts share: who may start what, where a lease goes, and what a host's death costs.

io_timeout 1 and fire timeout 30: a lease fails after 8 s, a dead host is taken over after 38 s.
"""

import hashlib
import signal
import time

import pytest

from holdfast.ondisk.leader import Leader
from tests.e2e.lab.domains import Disk
from tests.e2e.lab.hosts import CommandError, Host
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.storage import Image
from tests.e2e.lab.vms import Vm

pytestmark = pytest.mark.holdfast_only("virtlockd has no leases")

FAIL_S, DEAD_S, RENEWAL_S = 8, 38, 2


def owner(lab: Lab, image: Image) -> int:
    """The host id that the lease of a disk names; 0 if it is free."""
    name = hashlib.md5(image.path.encode()).hexdigest()
    leader = Leader.decode((lab.storage.folder / "disk-leases" / name).read_bytes()[:512])
    assert isinstance(leader, Leader)
    return 0 if leader.is_free else leader.owner_id


def power_off(lab: Lab, host: Host) -> None:
    """All of a host's processes end at once; the daemon first, lest it sees its owners end and frees their leases."""
    lab.lockd[host].kill()
    lab.libvirtd[host].kill()
    host.kill_guests()


def test_refused_start_names_the_other_hosts_vm_and_migration_carries_the_lease(lease_lab: Lab) -> None:
    lab = lease_lab
    disk, data = lab.storage.image("web"), lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(data, "vdb")).start()
    assert (owner(lab, disk), owner(lab, data)) == (1, 1)
    text = lab.vm(lab.beta, "web2", disk).refused("start")
    assert "is locked by VM web1" in text
    assert "on host alpha." in text
    assert "(host_id 1)" in text
    for target, host_id in ((lab.beta, 2), (lab.alpha, 1)):
        vm.migrate(target)
        vm.assert_writes()
        assert (owner(lab, disk), owner(lab, data)) == (host_id, host_id)
    assert disk.boots == 1
    vm.destroy()
    until(lambda: owner(lab, disk) == 0, "the lease to be free")
    lab.vm(lab.beta, "web3", disk).start()


def test_shared_disk_is_shared_across_hosts_and_alone_for_nobody(lease_lab: Lab) -> None:
    lab = lease_lab
    shared = lab.storage.image("cluster")
    members = [
        lab.vm(
            host,
            f"m{host.number}",
            Disk(lab.storage.image(f"m{host.number}")),
            Disk(shared, "vdb", shareable=True),
        )
        for host in lab.hosts
    ]
    for member in members:
        member.start()
    text = lab.vm(lab.beta, "alone", shared).refused("start")
    assert "is locked by" in text
    for member in members:
        member.destroy()
    until(lambda: lab.vm(lab.beta, "alone2", shared).start() is not None, "it to be free")


def test_host_that_dies_is_taken_over_after_the_bound_and_not_before(lease_lab: Lab) -> None:
    lab = lease_lab
    disk = lab.storage.image("web")
    lab.vm(lab.alpha, "web1", disk).start()
    rescue = lab.vm(lab.beta, "rescue", disk)
    assert "alive" in rescue.refused("start")
    died = time.monotonic()
    power_off(lab, lab.alpha)
    text = ""
    while time.monotonic() < died + DEAD_S + 15:
        try:
            rescue.virsh("start")
            break
        except Exception as refused:
            text = str(refused)
            time.sleep(0.5)
    took_s = time.monotonic() - died
    assert "can be taken over in" in text
    assert DEAD_S - 2 * RENEWAL_S < took_s < DEAD_S + 3 * RENEWAL_S + 2
    rescue.assert_writes()
    assert owner(lab, disk) == 2
    # The dead host comes back: its VM is refused, with the name of the one that has its disk.
    lab.start_daemons()
    until(lab.lockd[lab.alpha].is_joined, "alpha to join again")
    assert "VM rescue" in lab.vm(lab.alpha, "web2", disk).refused("start")


def test_guests_of_a_host_that_an_operator_calls_off_start_elsewhere_long_before_the_bound(
    lease_lab: Lab,
) -> None:
    lab = lease_lab
    disks = [lab.storage.image("web"), lab.storage.image("mail")]
    for number, disk in enumerate(disks):
        lab.vm(lab.alpha, f"guest{number}", disk).start()
    rescues = [lab.vm(lab.beta, f"rescue{number}", disk) for number, disk in enumerate(disks)]
    assert "VM guest0" in rescues[0].refused("start")
    died = time.monotonic()
    power_off(lab, lab.alpha)
    result = lab.lockd[lab.beta].holdfast("host", "fenced", "alpha", "--operator", "J. Doe", "--wait")
    # The other guest's disk is one that this host has never met: its lease says which disk it is for.
    for number, disk in enumerate(disks):
        assert f": {disk.path} (" in result
        assert f"free: VM guest{number} on host alpha." in result
    for rescue in rescues:
        rescue.start()
    assert time.monotonic() - died < DEAD_S / 2
    for rescue, disk in zip(rescues, disks, strict=True):
        rescue.assert_writes()
        assert owner(lab, disk) == 2


def metadata(vm: Vm) -> str:
    """What Holdfast has left in the domain's metadata; empty if nothing."""
    try:
        return vm.virsh("metadata", "urn:holdfast:lock-failure")
    except CommandError:
        return ""


def test_vm_of_a_lost_lease_is_paused_and_can_be_resumed_when_it_is_joined_again(lease_lab: Lab) -> None:
    lab = lease_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    daemon = lab.lockd[lab.alpha]
    daemon.process.send(signal.SIGSTOP)
    time.sleep(FAIL_S + 1)
    daemon.process.send(signal.SIGCONT)
    vm.wait_state("paused")
    until(lambda: "was lost" in metadata(vm), "libvirt to show why it is paused")
    until(daemon.is_joined, "alpha to join again")
    until(lambda: not metadata(vm), "that to be gone when it can be resumed")
    vm.virsh("resume")
    vm.assert_writes()
    assert disk.boots == 1
    assert owner(lab, disk) == 1
    assert "lease-lost" in daemon.holdfast("events")


def test_disk_that_one_libvirt_names_by_a_hash_has_the_lease_of_its_path(hashed_lease_lab: Lab) -> None:
    lab = hashed_lease_lab
    disk, data = lab.storage.image("hashed"), lab.storage.image("hashed-data")
    vm = lab.vm(lab.alpha, "h1", Disk(disk), Disk(data, "vdb")).start()
    assert (owner(lab, disk), owner(lab, data)) == (1, 1)
    assert "is locked by VM h1" in lab.vm(lab.beta, "h2", disk).refused("start")
    vm.virsh("suspend")
    until(lambda: owner(lab, disk) == 0, "the lease of a suspended VM to be free")
    vm.virsh("resume")
    assert (owner(lab, disk), owner(lab, data)) == (1, 1)
    for target, host_id in ((lab.beta, 2), (lab.alpha, 1)):
        vm.migrate(target)
        vm.assert_writes()
        assert (owner(lab, disk), owner(lab, data)) == (host_id, host_id)
    more = lab.storage.image("hashed-more")
    text = vm.refused("attach-disk", more.path, "vdc")
    assert "it can't be attached to a running VM" in text
    vm.destroy()
    until(lambda: owner(lab, disk) == 0, "the lease to be free")
    lab.vm(lab.beta, "h3", disk).start()

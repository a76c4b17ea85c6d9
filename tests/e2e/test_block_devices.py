"""Block devices: libvirt asks for the bare device path, and a rule of Holdfast makes the lock reach other
hosts.

A lock on a device node ends at the host, since each host has its own node.  The lab's holdfastd has a
`[[disk]]` rule that keeps the locks of /dev/lab/* as files in a folder that all hosts share.
"""

import pytest

from tests.e2e.lab.domains import Disk
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.refusals import assert_refused, assert_told_holder

ENDS_AT_THE_HOST = "a lock on a device node ends at the host"


@pytest.mark.virtlockd_fails(ENDS_AT_THE_HOST)
def test_rule_protects_a_block_device_across_hosts(direct_lab: Lab) -> None:
    lab = direct_lab
    disk = lab.device("sda")
    holder = lab.vm(lab.alpha, "web1", disk).start()
    for host in lab.hosts:
        assert_told_holder(lab.vm(host, "web2", disk).refused("start"), holder, asked=host, lab=lab)
    holder.assert_writes()
    assert disk.boots == 1
    holder.kill_qemu()
    lab.wait_free(disk)
    lab.vm(lab.beta, "web2", disk).start()


@pytest.mark.virtlockd_fails(ENDS_AT_THE_HOST)
def test_lock_of_a_block_device_goes_with_a_migrating_guest(direct_lab: Lab) -> None:
    lab = direct_lab
    disk, data = lab.device("sda"), lab.device("sdb")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(data, "vdb")).start()
    for source, target in ((lab.alpha, lab.beta), (lab.beta, lab.alpha)):
        vm.migrate(target)
        vm.assert_writes()
        assert (lab.lock(disk), lab.lock(data)) == ("write", "write")
        assert_told_holder(lab.vm(source, "thief", data).refused("start"), vm, asked=source, lab=lab)
    assert disk.boots == 1


@pytest.mark.virtlockd_fails(ENDS_AT_THE_HOST)
def test_rule_still_holds_after_the_daemon_crashed(direct_lab: Lab) -> None:
    lab = direct_lab
    disk = lab.device("sda")
    holder = lab.vm(lab.alpha, "web1", disk).start()
    lab.lockd[lab.alpha].kill()
    lab.lockd[lab.alpha].start()
    assert lab.lock(disk) == "write"
    second = lab.vm(lab.beta, "web2", disk)
    assert_told_holder(second.refused("start"), holder, asked=lab.beta, lab=lab)
    holder.destroy()
    lab.wait_free(disk)
    second.start()


def test_block_device_is_protected_across_hosts_when_libvirt_asks_by_hash(lab: Lab) -> None:
    disk = lab.device("sda")
    holder = lab.vm(lab.alpha, "web1", disk).start()
    for host in lab.hosts:
        assert_told_holder(lab.vm(host, "web2", disk).refused("start"), holder, asked=host, lab=lab)
    holder.assert_writes()


def test_device_attached_to_a_running_guest_is_refused_to_others(lab: Lab) -> None:
    disk = lab.device("sdb")
    vm = lab.vm(lab.alpha, "web1", lab.storage.image("own")).start()
    vm.virsh("attach-disk", disk.path, "sda", "--sourcetype", "block", "--subdriver", "raw", "--live")
    assert lab.lock(disk) == "write"
    assert_refused(lab.vm(lab.beta, "web2", disk).refused("start"))
    vm.virsh("detach-disk", "sda", "--live")
    lab.wait_free(disk)

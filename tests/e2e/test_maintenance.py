"""A host in maintenance, with the real libvirt: nothing begins there, and what is there goes on."""

import pytest

from tests.e2e.lab.lab import Lab

pytestmark = [pytest.mark.holdfast_only("virtlockd has no maintenance"), pytest.mark.long]
ENDS = "holdfast maintenance off"


def test_no_vm_is_started_restored_or_migrated_here_and_the_running_one_goes_on(direct_lab: Lab) -> None:
    lab = direct_lab
    disk, more, other = lab.storage.image("web"), lab.storage.image("data"), lab.storage.image("other")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    guest = lab.vm(lab.beta, "web2", other).start()
    holdfast = lab.lockd[lab.alpha].holdfast
    holdfast("maintenance", "on", "--reason", "new memory")
    try:
        refused = lab.vm(lab.alpha, "web3", lab.storage.image("third")).refused("start")
        assert ENDS in refused
        assert ENDS in guest.migrate_refused(lab.alpha)
        guest.wait_state("running")
        guest.assert_writes()
        vm.virsh("suspend")
        vm.virsh("resume")
        vm.virsh("attach-disk", more.path, "vdb", "--driver", "qemu", "--subdriver", "raw", "--live")
        vm.assert_writes()
        assert (lab.lock(disk), lab.lock(more)) == ("write", "write")
        vm.migrate(lab.beta)
        vm.assert_writes()
    finally:
        holdfast("maintenance", "off")
    guest.migrate(lab.alpha)
    guest.assert_writes()

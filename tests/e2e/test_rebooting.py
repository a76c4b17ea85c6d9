"""Guests that reboot keep their locks and their life.

For `virsh reboot` and on_poweroff=restart libvirt stops QEMU at the guest's power-off, resets it, and
acquires all locks again, which it never released.  A daemon that calls an owner's own lock busy makes
libvirt kill the guest.
"""

import pytest

from tests.e2e.lab.domains import Disk
from tests.e2e.lab.kernel_locks import Waiter
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.storage import Image
from tests.e2e.lab.vms import Vm

SAME_OWNER_IS_BUSY = "a lock that the same owner asks for again is busy: libvirt kills the guest"


def assert_boots_again(vm: Vm, disk: Image, command: str) -> None:
    """After `virsh COMMAND` the guest comes up anew in the QEMU that it had, and writes."""
    qemu, boots = vm.process, disk.boots
    vm.virsh(command)
    until(lambda: disk.boots > boots or not qemu.is_alive(), "the guest to boot again")
    assert qemu.is_alive(), f"the guest was killed: {vm.state}"
    vm.wait_state("running")
    vm.assert_writes()


@pytest.mark.virtlockd_fails(SAME_OWNER_IS_BUSY)
def test_virsh_reboot_survives_and_never_lets_go_of_the_disks(any_lab: Lab) -> None:
    lab = any_lab
    disk, data = lab.storage.image("web"), lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(data, "vdb")).start()
    with Waiter(lab.lock_file(disk)) as stranger:
        for _ in range(2):
            assert_boots_again(vm, disk, "reboot")
        assert not stranger.was_granted
    assert (lab.lock(disk), lab.lock(data)) == ("write", "write")


@pytest.mark.virtlockd_fails(SAME_OWNER_IS_BUSY)
def test_power_off_with_restart_survives(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk, on_poweroff="restart").start()
    assert_boots_again(vm, disk, "shutdown")
    assert lab.lock(disk) == "write"


@pytest.mark.virtlockd_fails(SAME_OWNER_IS_BUSY)
def test_rebooted_vm_suspends_and_migrates_at_once(lab: Lab) -> None:
    """What the reboot acquired a second time is released as if it had been acquired once."""
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    assert_boots_again(vm, disk, "reboot")
    vm.virsh("suspend")
    assert lab.lock(disk) is None
    vm.virsh("resume")
    assert_boots_again(vm, disk, "reboot")
    vm.migrate(lab.beta)
    vm.assert_writes()
    assert lab.lock(disk) == "write"
    assert disk.boots == 3


def test_reset_keeps_the_lock(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with Waiter(lab.lock_file(disk)) as stranger:
        vm.virsh("reset")
        until(lambda: disk.boots == 2, "the guest to boot again")
        assert stranger.is_waiting


def test_shutdown_after_a_reset_frees_the_disk(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    vm.virsh("reset")
    until(lambda: disk.boots == 2, "the guest to boot again")
    vm.virsh("shutdown")
    vm.wait_state("shut off (shutdown)")
    lab.wait_free(disk)

"""holdfastd under a service manager that keeps its descriptors: not even a crash lets go of a lock.

An open-file-description lock lives as long as any descriptor of its file description, so a lock that is
also in the manager's store outlives the daemon.  What the daemon must not forget: to unlock what it
releases, because the store would go on holding it, and to notice guests that died while nobody was looking.
"""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.lab.daemons import LockDaemon
from tests.e2e.lab.domains import Disk
from tests.e2e.lab.kernel_locks import Waiter
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.refusals import assert_refused, assert_told_holder

pytestmark = pytest.mark.holdfast_only("virtlockd has no descriptor store")


@pytest.fixture
def managed(lab: Lab) -> Iterator[LockDaemon]:
    """alpha's holdfastd, under the manager."""
    lockd = lab.lockd[lab.alpha]
    lockd.stop()
    lockd.start_under_manager()
    assert json.loads(lockd.holdfast("status", "--json"))["descriptor_store"]
    yield lockd
    lockd.stop()


@pytest.mark.parametrize("end", ["crash", "restart"])
def test_locks_and_connections_outlive_the_daemon_without_a_gap(
    lab: Lab, managed: LockDaemon, end: str
) -> None:
    disk, shared = lab.storage.image("web"), lab.storage.image("cluster")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(shared, "vdb", shareable=True)).start()
    with Waiter(lab.lock_file(disk)) as stranger, Waiter(lab.lock_file(shared)) as another:
        for _ in range(2):
            managed.crash_under_manager() if end == "crash" else managed.restart_under_manager()
            vm.assert_writes()
        assert_told_holder(lab.vm(lab.alpha, "web2", disk).refused("start"), vm, asked=lab.alpha, lab=lab)
        assert_told_holder(lab.vm(lab.beta, "web3", disk).refused("start"), vm, asked=lab.beta, lab=lab)
        assert stranger.is_waiting and another.is_waiting
    vm.kill_qemu()
    vm.start()
    vm.destroy()
    lab.wait_free(disk)
    lab.wait_free(shared)


def test_released_lock_is_not_kept_by_the_store(lab: Lab, managed: LockDaemon) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    managed.crash_under_manager()
    vm.virsh("suspend")
    assert lab.lock(disk) is None
    vm.virsh("resume")
    assert lab.lock(disk) == "write"
    vm.virsh("suspend")
    managed.crash_under_manager()
    assert lab.lock(disk) is None
    other = lab.vm(lab.beta, "web2", disk).start()
    assert_refused(vm.refused("resume"))
    other.destroy()
    lab.wait_free(disk)
    vm.virsh("resume")
    vm.migrate(lab.beta)
    vm.assert_writes()


def test_guest_that_dies_together_with_the_daemon_leaves_its_disk_free(lab: Lab, managed: LockDaemon) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    qemu = vm.process
    managed.process.kill()
    qemu.kill()
    lab.wait_free(disk)
    lab.vm(lab.beta, "heir", disk).start()


def test_disks_plugged_and_unplugged_between_crashes_are_held_and_free(lab: Lab, managed: LockDaemon) -> None:
    data = lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", lab.storage.image("web")).start()
    managed.crash_under_manager()
    vm.virsh("attach-disk", data.path, "sda", "--driver", "qemu", "--subdriver", "raw", "--live")
    with Waiter(lab.lock_file(data)) as stranger:
        managed.crash_under_manager()
        assert stranger.is_waiting
    vm.virsh("detach-disk", "sda", "--live")
    lab.wait_free(data)

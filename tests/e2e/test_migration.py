"""Live migration: the lock goes with the guest, and stays where the guest stays.

libvirt releases on the source when the guest has stopped there, and acquires on the destination before the
guest goes on.  When something goes wrong the source has to get its locks back.
"""

import pytest

from tests.e2e.lab.domains import Disk
from tests.e2e.lab.hosts import CommandError
from tests.e2e.lab.kernel_locks import Waiter
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.refusals import assert_refused, assert_told_holder

RACES_MAX = 5
"""Migrations until the target has lost one race for the lock against a process that waits for it."""


def test_live_migration_there_and_back_carries_the_lock(any_lab: Lab) -> None:
    lab = any_lab
    disk, data = lab.storage.image("web"), lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(data, "vdb")).start()
    for source, target in ((lab.alpha, lab.beta), (lab.beta, lab.alpha)):
        vm.migrate(target, *(["--p2p"] if target is lab.alpha else []))
        assert (lab.lock(disk), lab.lock(data)) == ("write", "write")
        vm.assert_writes()
        assert disk.boots == 1
        assert_refused(lab.vm(source, "thief", disk).refused("start"))
    second = lab.vm(lab.alpha, "web2", data)
    assert_told_holder(second.refused("start"), vm, asked=lab.alpha, lab=lab)
    vm.kill_qemu()
    lab.wait_free(disk)
    lab.wait_free(data)


def test_vm_that_migrated_away_and_was_killed_there_starts_here(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    vm.migrate(lab.beta)
    vm.kill_qemu()
    lab.vm(lab.alpha, "web1", disk).start()
    assert disk.boots == 2


def test_paused_vm_migrates_without_lock_and_is_resumed_under_it(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    vm.virsh("suspend")
    vm.migrate(lab.beta)
    assert lab.lock(disk) is None
    assert vm.state.startswith("paused")
    vm.virsh("resume")
    assert lab.lock(disk) == "write"
    vm.assert_writes()


def test_migration_that_suspends_the_vm_leaves_it_without_lock(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    vm.migrate(lab.beta, "--suspend")
    assert lab.lock(disk) is None
    vm.virsh("resume")
    vm.assert_writes()
    assert lab.lock(disk) == "write"


def test_shareable_disk_stays_shared_through_a_migration(lab: Lab) -> None:
    shared = lab.storage.image("cluster")
    member, other = (
        lab.vm(lab.alpha, name, Disk(lab.storage.image(name)), Disk(shared, "vdb", shareable=True)).start()
        for name in ("m1", "m2")
    )
    with Waiter(lab.lock_file(shared)) as stranger:
        member.migrate(lab.beta)
        member.assert_writes()
        assert stranger.is_waiting
    other.destroy()
    assert lab.lock(shared) == "read"
    member.destroy()
    lab.wait_free(shared)


def test_block_migration_hands_over_disks_that_are_not_shared(lab: Lab) -> None:
    here, there = lab.private_images("private")
    vm = lab.vm(lab.alpha, "web1", here).start()
    vm.migrate(lab.beta, "--copy-storage-all")
    vm.assert_writes(there)
    assert there.boots == 1
    assert lab.lock(there) == "write"
    assert_refused(lab.vm(lab.beta, "web2", there).refused("start"))


def test_post_copy_migration_carries_the_lock(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    vm.migrate(lab.beta, "--postcopy", "--postcopy-after-precopy")
    vm.assert_writes()
    assert lab.lock(disk) == "write"
    assert_refused(lab.vm(lab.alpha, "web2", disk).refused("start"))


def test_post_copy_hands_over_when_the_guest_runs_on_the_target(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    migration = vm.start_slow_migration(lab.beta, "--postcopy")
    vm.virsh("migrate-postcopy")
    migration.communicate()
    assert migration.returncode == 0
    vm.host = lab.beta
    vm.assert_writes()
    assert lab.lock(disk) == "write"
    assert_refused(lab.vm(lab.alpha, "thief", disk).refused("start"))


def test_cancelled_migration_leaves_the_vm_and_its_lock_alone(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with Waiter(lab.lock_file(disk)) as stranger:
        migration = vm.start_slow_migration(lab.beta)
        vm.virsh("domjobabort")
        _, error = migration.communicate()
        assert migration.returncode != 0
        # The other host's QEMU may be the first to report that its source went away.
        assert any(words in error for words in ("abort", "cancel", "closed the monitor")), error
        vm.wait_state("running")
        vm.assert_writes()
        assert stranger.is_waiting
    assert_refused(lab.vm(lab.beta, "web2", disk).refused("start"))
    vm.migrate(lab.beta)
    vm.assert_writes()


def test_migration_whose_destination_dies_leaves_the_vm_and_its_lock_alone(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with Waiter(lab.lock_file(disk)) as stranger:
        migration = vm.start_slow_migration(lab.beta)
        incoming = lab.vm_at(lab.beta, vm)
        incoming.process.kill()
        migration.communicate()
        assert migration.returncode != 0
        vm.wait_state("running")
        vm.assert_writes()
        assert stranger.is_waiting


def test_migration_whose_source_dies_frees_the_disk(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    migration = vm.start_slow_migration(lab.beta)
    vm.kill_qemu()
    migration.communicate()
    assert migration.returncode != 0
    lab.wait_free(disk)
    until(lambda: not lab.beta.virsh("list", "--name").split(), "the incoming guest to be gone")
    lab.vm(lab.beta, "web2", disk).start()
    assert disk.boots == 2


def test_migration_refused_by_the_destinations_lock_goes_on_at_the_source(direct_lab: Lab) -> None:
    """The disk is another guest's on the destination; libvirt finds out when ours has already stopped."""
    lab = direct_lab
    disk = lab.storage.image("web")
    here, there = lab.private_images("private")
    squatter = lab.vm(lab.beta, "squatter", there).start()
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(here, "vdb")).start()
    error = vm.migrate_refused(lab.beta)
    assert_told_holder(error, squatter, asked=lab.beta, lab=lab)
    vm.wait_state("running")
    vm.assert_writes()
    assert (lab.lock(disk), lab.lock(here)) == ("write", "write")
    assert disk.boots == 1
    squatter.destroy()
    vm.migrate(lab.beta)
    vm.assert_writes()


def test_vm_whose_lock_was_taken_between_the_hosts_stays_paused_and_can_be_resumed(direct_lab: Lab) -> None:
    """Nobody holds the disk between the hosts.  A stranger that takes it then stops both from running.

    The kernel wakes who waits for a lock, and does not hand it over: a busy machine may let the target be faster.
    """
    lab = direct_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    for _ in range(RACES_MAX):
        with Waiter(lab.lock_file(disk)) as stranger:
            try:
                vm.migrate(lab.beta)
            except CommandError as failed:
                assert_refused(failed.stderr)
                assert stranger.was_granted
                assert vm.state.startswith("paused")
                assert_refused(vm.refused("resume"))
                break
            assert not stranger.was_granted
        vm.migrate(lab.alpha)
    else:
        pytest.fail(f"the target was faster {RACES_MAX} times")
    vm.virsh("resume")
    vm.assert_writes()
    assert lab.lock(disk) == "write"
    vm.migrate(lab.beta)
    vm.assert_writes()

"""Starting and ending guests: one writer per disk, on one host and across hosts."""

import subprocess

import pytest

from tests.e2e.lab.domains import Disk
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.refusals import assert_refused, assert_told_holder
from tests.e2e.lab.storage import Image


def test_running_vm_holds_its_disk_and_shutdown_frees_it(start_lab: Lab) -> None:
    lab = start_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    assert lab.lock(disk) == "write"
    vm.virsh("shutdown")
    vm.wait_state("shut off")
    lab.wait_free(disk)
    vm.start()
    assert disk.boots == 2


def test_second_vm_on_the_host_is_refused_and_told_the_holder(start_lab: Lab) -> None:
    lab = start_lab
    disk = lab.storage.image("web")
    holder = lab.vm(lab.alpha, "web1", disk).start()
    second = lab.vm(lab.alpha, "web2", disk)
    assert_told_holder(second.refused("start"), holder, asked=lab.alpha, lab=lab)
    assert second.state == "shut off (failed)"
    holder.assert_writes()
    assert disk.boots == 1


def test_second_host_is_refused_and_told_the_holder(lab: Lab) -> None:
    disk = lab.storage.image("web")
    holder = lab.vm(lab.alpha, "web1", disk).start()
    second = lab.vm(lab.beta, "web2", disk)
    assert_told_holder(second.refused("start"), holder, asked=lab.beta, lab=lab)
    holder.assert_writes()
    holder.destroy()
    lab.wait_free(disk)
    second.start()
    assert disk.boots == 2


def test_second_host_is_refused_by_the_lock_on_the_image_itself(direct_lab: Lab) -> None:
    lab = direct_lab
    disk = lab.storage.image("web")
    holder = lab.vm(lab.alpha, "web1", disk).start()
    assert_refused(lab.vm(lab.beta, "web2", disk).refused("start"))
    holder.assert_writes()
    assert disk.boots == 1


def test_the_same_vm_does_not_start_on_a_second_host(start_lab: Lab) -> None:
    """A high-availability manager that lost sight of alpha starts the very same guest on beta."""
    lab = start_lab
    disk = lab.storage.image("web")
    running = lab.vm(lab.alpha, "web1", disk).start()
    assert_refused(lab.vm(lab.beta, "web1", disk).refused("start"))
    running.assert_writes()
    assert disk.boots == 1


def test_of_two_hosts_that_start_at_once_exactly_one_wins(start_lab: Lab) -> None:
    lab = start_lab
    disk = lab.storage.image("web")
    vms = [lab.vm(host, f"web-{host.name}", disk) for host in lab.hosts]
    racers = [vm.host.start_virsh("start", vm.name) for vm in vms]
    errors = [finish(racer) for racer in racers]
    winners = [vm for vm, error in zip(vms, errors, strict=True) if not error]
    assert len(winners) == 1, errors
    assert_refused("".join(errors))
    winners[0].assert_writes()
    assert disk.boots == 1


def test_nothing_is_kept_of_a_start_that_got_only_some_disks(start_lab: Lab) -> None:
    lab = start_lab
    own, contested = lab.storage.image("own"), lab.storage.image("contested")
    holder = lab.vm(lab.beta, "holder", contested).start()
    greedy = lab.vm(lab.alpha, "greedy", Disk(own), Disk(contested, "vdb"))
    assert_refused(greedy.refused("start"))
    lab.wait_free(own)
    lab.vm(lab.beta, "modest", own).start()
    holder.assert_writes()


@pytest.mark.virtlockd_fails("it knows a disk by the text of its path")
@pytest.mark.parametrize("alias", ["symbolic link", "hard link", "dots"])
def test_another_name_of_a_held_image_is_refused_too(direct_lab: Lab, alias: str) -> None:
    lab = direct_lab
    disk = lab.storage.image("web")
    other = lab.storage.place("alias", "raw")
    if alias == "symbolic link":
        other.file.symlink_to(disk.file.name)
    elif alias == "hard link":
        other.file.hardlink_to(disk.file)
    else:
        other = Image(disk.path.replace("/images/", "/images/../images/"), disk.file)
    holder = lab.vm(lab.alpha, "web1", disk).start()
    second = lab.vm(lab.alpha, "web2", other)
    assert_told_holder(second.refused("start"), holder, asked=lab.alpha, lab=lab)
    assert_refused(lab.vm(lab.beta, "web3", other).refused("start"))
    holder.destroy()
    lab.wait_free(disk)
    second.start()
    assert_refused(holder.refused("start"))


def test_one_image_twice_in_one_vm_is_refused(start_lab: Lab) -> None:
    """A mistake in the guest's definition would otherwise make it the second writer of its own disk."""
    lab = start_lab
    disk = lab.storage.image("web")
    assert_refused(lab.vm(lab.alpha, "web1", Disk(disk), Disk(disk, "vdb")).refused("start"))
    lab.wait_free(disk)
    lab.vm(lab.alpha, "web1", disk).start()


def test_readonly_disk_is_not_locked_and_serves_many(lab: Lab) -> None:
    template = lab.storage.image("template")
    readers = [
        lab.vm(
            host, f"reader-{host.name}", Disk(lab.storage.image("own")), Disk(template, "vdb", readonly=True)
        )
        for host in lab.hosts
    ]
    for reader in readers:
        reader.start()
    assert lab.lock(template) is None
    lab.vm(lab.beta, "editor", template).start()
    assert lab.lock(template) == "write"


def test_shareable_disk_is_shared_across_hosts_and_closed_to_a_single_writer(start_lab: Lab) -> None:
    lab = start_lab
    shared = lab.storage.image("cluster")
    members = [
        lab.vm(host, name, Disk(lab.storage.image("own")), Disk(shared, "vdb", shareable=True)).start()
        for host, name in ((lab.alpha, "m1"), (lab.alpha, "m2"), (lab.beta, "m3"))
    ]
    assert lab.lock(shared) == "read"
    for host in lab.hosts:
        assert_refused(lab.vm(host, "single", shared).refused("start"))
    for member in members:
        assert lab.lock(shared) == "read"
        member.destroy()
    lab.wait_free(shared)
    lab.vm(lab.alpha, "single", shared).start()
    assert lab.lock(shared) == "write"


def test_shareable_use_is_refused_while_a_single_writer_runs(lab: Lab) -> None:
    disk = lab.storage.image("cluster")
    single = lab.vm(lab.alpha, "single", disk).start()
    for host in lab.hosts:
        member = lab.vm(host, "member", Disk(lab.storage.image("own")), Disk(disk, "vdb", shareable=True))
        assert_refused(member.refused("start"))
    single.assert_writes()


def test_drives_without_a_writable_medium_lock_nothing(lab: Lab) -> None:
    own, medium = lab.storage.image("own"), lab.storage.image("install")
    lab.vm(
        lab.alpha,
        "web1",
        Disk(own),
        Disk(medium, "hda", device="cdrom"),
        Disk(None, "hdc", device="cdrom"),
        Disk(None, "fda", device="floppy"),
    ).start()
    assert lab.lock(own) == "write"
    assert lab.lock(medium) is None


def test_vm_without_a_writable_disk_starts(lab: Lab) -> None:
    medium = lab.storage.image("live")
    vm = lab.vm(lab.alpha, "live1", Disk(medium, "hda", device="cdrom"))
    vm.virsh("start")
    assert vm.state == "running (booted)"
    assert lab.lock(medium) is None


@pytest.mark.without_hook("with it a paused start keeps what it had from prepare on")
def test_paused_start_takes_no_lock_until_it_is_resumed(any_lab: Lab) -> None:
    lab = any_lab
    disk = lab.storage.image("web")
    paused = lab.vm(lab.alpha, "web1", disk)
    paused.virsh("start", "--paused")
    assert lab.lock(disk) is None
    other = lab.vm(lab.beta, "web2", disk).start()
    assert_refused(paused.refused("resume"))
    other.assert_writes()
    other.destroy()
    lab.wait_free(disk)
    paused.virsh("resume")
    paused.assert_writes()
    assert lab.lock(disk) == "write"


def test_killed_qemu_leaves_the_disk_free_and_the_next_start_works_at_once(start_lab: Lab) -> None:
    lab = start_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    vm.kill_qemu()
    vm.start()
    assert lab.lock(disk) == "write"
    vm.kill_qemu()
    lab.wait_free(disk)
    lab.vm(lab.beta, "web2", disk).start()
    assert disk.boots == 3


def test_qemus_own_image_locks_and_ours_do_not_meet(any_lab: Lab) -> None:
    lab = any_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk, qemu_locks_its_images=True).start()
    assert lab.lock(disk) == "write"
    vm.virsh("suspend")
    vm.virsh("resume")
    vm.assert_writes()


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a command; its error output, or nothing when it succeeded."""
    _, error = process.communicate()
    return error if process.returncode else ""

"""Disks that come, go and change under a running guest: every image that is written is locked, and no longer.

The calls that libvirt makes are the same for every lock daemon; what the daemon must get right is that a lock
taken for one operation is there for the next one too.
"""

import pytest

from tests.e2e.lab.domains import Disk
from tests.e2e.lab.hosts import CommandError
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.refusals import assert_refused, assert_told_holder
from tests.e2e.lab.storage import Image
from tests.e2e.lab.vms import Vm


def attach(vm: Vm, disk: Image, target: str) -> tuple[str, ...]:
    """The arguments of virsh attach-disk."""
    return (disk.path, target, "--driver", "qemu", "--subdriver", "raw", "--live")


def snapshot(lab: Lab, vm: Vm, name: str) -> Image:
    """Put an external snapshot's overlay on top of vda; returns the overlay."""
    overlay = lab.storage.place(f"{vm.name}-{name}", "qcow2")
    vm.virsh(
        "snapshot-create-as", name, "--disk-only", "--no-metadata", "--diskspec", f"vda,file={overlay.path}"
    )
    return overlay


def test_attached_disk_is_locked_and_detached_disk_is_free(any_lab: Lab) -> None:
    lab = any_lab
    vm = lab.vm(lab.alpha, "web1", lab.storage.image("own")).start()
    data = lab.storage.image("data")
    vm.virsh("attach-disk", *attach(vm, data, "sda"))
    assert lab.lock(data) == "write"
    assert_told_holder(lab.vm(lab.alpha, "web2", data).refused("start"), vm, asked=lab.alpha, lab=lab)
    assert_refused(lab.vm(lab.beta, "web3", data).refused("start"))
    vm.virsh("detach-disk", "sda", "--live")
    lab.wait_free(data)
    lab.vm(lab.beta, "web3", data).start()
    vm.assert_writes()


def test_attach_of_a_held_disk_is_refused_and_told_the_holder(lab: Lab) -> None:
    data = lab.storage.image("data")
    holder = lab.vm(lab.beta, "holder", data).start()
    vm = lab.vm(lab.alpha, "web1", lab.storage.image("own")).start()
    error = vm.refused("attach-disk", *attach(vm, data, "vdb"))
    assert_told_holder(error, holder, asked=lab.alpha, lab=lab)
    assert "vdb" not in vm.virsh("domblklist")
    vm.assert_writes()
    holder.destroy()
    lab.wait_free(data)
    vm.virsh("attach-disk", *attach(vm, data, "vdb"))
    assert lab.lock(data) == "write"


def test_attaching_a_disk_that_the_vm_has_already_never_frees_it(any_lab: Lab) -> None:
    """Refusing it is best.  If it is granted, the detach must not let go of the disk that still runs."""
    lab = any_lab
    disk, data = lab.storage.image("web"), lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(data, "vdb")).start()
    for own in (disk, data):
        try:
            vm.virsh("attach-disk", *attach(vm, own, "sda"))
        except CommandError as refusal:
            assert_refused(refusal.stderr)
        else:
            vm.virsh("detach-disk", "sda", "--live")
        assert (lab.lock(disk), lab.lock(data)) == ("write", "write")
    assert_refused(lab.vm(lab.beta, "web2", disk).refused("start"))


def test_attach_that_qemu_refuses_leaves_all_locks_as_they_were(any_lab: Lab) -> None:
    lab = any_lab
    disk, data = lab.storage.image("web"), lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", disk, qemu_locks_its_images=True).start()
    vm.refused("attach-disk", *attach(vm, disk, "vdb"))
    assert lab.lock(disk) == "write"
    vm.refused("attach-disk", data.path, "vdb", "--driver", "qemu", "--subdriver", "qcow2", "--live")
    assert (lab.lock(disk), lab.lock(data)) == ("write", None)
    assert_refused(lab.vm(lab.beta, "web2", disk).refused("start"))


def test_disk_whose_detach_waits_for_the_guest_stays_locked_until_then(lab: Lab) -> None:
    vm = lab.vm(lab.alpha, "web1", lab.storage.image("own")).start()
    data = lab.storage.image("data")
    vm.virsh("attach-disk", *attach(vm, data, "vdb"))
    vm.virsh("detach-disk", "vdb", "--live")  # our guest never answers the request
    assert lab.lock(data) == "write"
    vm.virsh("reset")
    lab.wait_free(data)
    vm.assert_writes()


def test_changing_media_moves_the_lock_from_old_to_new(lab: Lab) -> None:
    first, second, held = (lab.storage.image(name) for name in ("first", "second", "held"))
    holder = lab.vm(lab.beta, "holder", held).start()
    own = lab.storage.image("own")
    vm = lab.vm(lab.alpha, "web1", Disk(own), Disk(first, "fda", device="floppy")).start()
    assert lab.lock(first) == "write"
    vm.virsh("change-media", "fda", second.path, "--live", "--update")
    assert (lab.lock(first), lab.lock(second)) == (None, "write")
    error = vm.refused("change-media", "fda", held.path, "--live", "--update")
    assert_told_holder(error, holder, asked=lab.alpha, lab=lab)
    assert lab.lock(second) == "write"
    vm.virsh("change-media", "fda", "--eject", "--live")
    lab.wait_free(second)
    vm.virsh("change-media", "fda", first.path, "--live", "--insert")
    assert lab.lock(first) == "write"


@pytest.mark.virtlockd_fails("libvirt releases the refused medium, and it lets go of the running disk")
def test_changing_media_to_a_disk_of_the_vm_itself_never_frees_it(lab: Lab) -> None:
    disk, medium = lab.storage.image("web"), lab.storage.image("medium")
    vm = lab.vm(
        lab.alpha, "web1", Disk(disk), Disk(medium, "fda", device="floppy"), qemu_locks_its_images=True
    ).start()
    vm.refused("change-media", "fda", disk.path, "--live", "--update")
    assert lab.lock(disk) == "write"
    assert_refused(lab.vm(lab.beta, "web2", disk).refused("start"))


def test_copying_onto_a_disk_of_the_vm_itself_never_frees_it(lab: Lab) -> None:
    disk, data = lab.storage.image("web"), lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(data, "vdb"), qemu_locks_its_images=True).start()
    vm.refused(
        "blockcopy", "vda", data.path, "--format", "raw", "--reuse-external", "--transient-job", "--wait"
    )
    assert (lab.lock(disk), lab.lock(data)) == ("write", "write")


def test_readonly_medium_changes_without_locks(lab: Lab) -> None:
    own, first, second = (lab.storage.image(name) for name in ("own", "first", "second"))
    vm = lab.vm(lab.alpha, "web1", Disk(own), Disk(first, "hda", device="cdrom")).start()
    vm.virsh("change-media", "hda", second.path, "--live", "--update")
    assert (lab.lock(first), lab.lock(second)) == (None, None)
    assert vm.top_image("hda") == second.path


def test_external_snapshot_moves_the_lock_to_the_overlay(any_lab: Lab) -> None:
    lab = any_lab
    base = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", base).start()
    overlay = snapshot(lab, vm, "s1")
    assert (lab.lock(base), lab.lock(overlay)) == (None, "write")
    vm.assert_writes()
    assert_refused(
        lab.vm(lab.beta, "web2", Disk(lab.storage.image("own")), Disk(overlay, "vdb", "qcow2")).refused(
            "start"
        )
    )


def test_snapshot_into_a_held_image_is_refused(lab: Lab) -> None:
    base, held = lab.storage.image("web"), lab.storage.image("held")
    holder = lab.vm(lab.beta, "holder", held).start()
    vm = lab.vm(lab.alpha, "web1", base).start()
    error = vm.refused(
        "snapshot-create-as", "s1", "--disk-only", "--no-metadata", "--reuse-external",
        "--diskspec", f"vda,file={held.path}",
    )  # fmt: skip
    assert_told_holder(error, holder, asked=lab.alpha, lab=lab)
    assert lab.lock(base) == "write"
    vm.assert_writes(base)


def test_snapshot_with_memory_keeps_the_vm_and_its_lock(lab: Lab) -> None:
    base, overlay = lab.storage.image("web"), lab.storage.place("web-memory", "qcow2")
    vm = lab.vm(lab.alpha, "web1", base).start()
    vm.virsh(
        "snapshot-create-as", "s1", "--memspec", "file=/srv/save/web1.memory,snapshot=external",
        "--diskspec", f"vda,file={overlay.path},snapshot=external",
    )  # fmt: skip
    assert vm.state.startswith("running")
    assert (lab.lock(base), lab.lock(overlay)) == (None, "write")
    vm.assert_writes()


def test_active_commit_moves_the_lock_back_to_the_base(any_lab: Lab) -> None:
    lab = any_lab
    base = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", base).start()
    overlay = snapshot(lab, vm, "s1")
    vm.virsh("blockcommit", "vda", "--active", "--wait", "--pivot")
    assert lab.lock(base) == "write"
    lab.wait_free(overlay)
    vm.assert_writes(base)
    assert_told_holder(lab.vm(lab.alpha, "web2", base).refused("start"), vm, asked=lab.alpha, lab=lab)


def test_active_commit_into_a_held_base_is_refused(lab: Lab) -> None:
    base = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", base).start()
    overlay = snapshot(lab, vm, "s1")
    thief = lab.vm(lab.beta, "thief", base).start()
    assert_told_holder(
        vm.refused("blockcommit", "vda", "--active", "--wait", "--pivot"), thief, asked=lab.alpha, lab=lab
    )
    assert lab.lock(overlay) == "write"
    vm.assert_writes()


def test_inactive_commit_locks_the_base(lab: Lab) -> None:
    base = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", base).start()
    lower, top = snapshot(lab, vm, "s1"), snapshot(lab, vm, "s2")
    vm.virsh("blockcommit", "vda", "--base", base.path, "--top", lower.path, "--wait")
    assert lab.lock(top) == "write"
    vm.assert_writes()


@pytest.mark.virtlockd_fails("a lock that the same owner asks for again is busy")
def test_second_inactive_commit_into_the_same_base_works(lab: Lab) -> None:
    """After the first commit libvirt leaves the base locked until the guest ends, and asks for it again."""
    base = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", base).start()
    first, second, top = (snapshot(lab, vm, name) for name in ("s1", "s2", "s3"))
    for overlay in (first, second):
        vm.virsh("blockcommit", "vda", "--base", base.path, "--top", overlay.path, "--wait")
    assert lab.lock(top) == "write"
    vm.virsh("blockcommit", "vda", "--active", "--wait", "--pivot")
    assert lab.lock(base) == "write"
    vm.assert_writes(base)


def test_block_copy_locks_the_target_and_the_pivot_frees_the_source(any_lab: Lab) -> None:
    lab = any_lab
    source, target = lab.storage.image("web"), lab.storage.image("copy")
    vm = lab.vm(lab.alpha, "web1", source).start()
    copy = (
        "blockcopy",
        "vda",
        target.path,
        "--format",
        "raw",
        "--reuse-external",
        "--transient-job",
        "--wait",
    )
    vm.virsh(*copy)  # waits until the two are mirrors of each other
    assert (lab.lock(source), lab.lock(target)) == ("write", "write")
    vm.virsh("blockjob", "vda", "--pivot")
    until(lambda: vm.top_image() == target.path, "the pivot to be done")
    lab.wait_free(source)
    assert lab.lock(target) == "write"
    vm.assert_writes(target)


def test_cancelled_block_copy_frees_the_target(lab: Lab) -> None:
    source, target = lab.storage.image("web"), lab.storage.image("copy")
    vm = lab.vm(lab.alpha, "web1", source).start()
    copy = (
        "blockcopy",
        "vda",
        target.path,
        "--format",
        "raw",
        "--reuse-external",
        "--transient-job",
        "--wait",
    )
    vm.virsh(*copy)
    vm.virsh("blockjob", "vda", "--abort")
    lab.wait_free(target)
    assert lab.lock(source) == "write"
    vm.virsh(*copy, "--pivot")
    assert lab.lock(target) == "write"
    vm.assert_writes(target)


def test_block_copy_into_a_held_image_is_refused(lab: Lab) -> None:
    source, held = lab.storage.image("web"), lab.storage.image("held")
    holder = lab.vm(lab.beta, "holder", held).start()
    vm = lab.vm(lab.alpha, "web1", source).start()
    error = vm.refused(
        "blockcopy", "vda", held.path, "--format", "raw", "--reuse-external", "--transient-job", "--wait"
    )
    assert_told_holder(error, holder, asked=lab.alpha, lab=lab)
    vm.assert_writes(source)


def test_pull_backup_locks_its_scratch_file_as_long_as_it_runs(lab: Lab) -> None:
    disk, scratch = lab.storage.image("web"), lab.storage.place("web", "scratch")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    order = lab.alpha.folder / "backup.xml"
    order.write_text(
        "<domainbackup mode='pull'><server transport='unix' socket='/run/backup.sock'/><disks>"
        f"<disk name='vda' type='file'><driver type='qcow2'/><scratch file='{scratch.path}'/></disk>"
        "</disks></domainbackup>"
    )
    vm.virsh("backup-begin", str(order))
    assert lab.lock(scratch) == "write"
    vm.virsh("domjobabort")
    lab.wait_free(scratch)
    assert lab.lock(disk) == "write"
    vm.assert_writes()


def test_transient_disk_is_locked_by_its_overlay(lab: Lab) -> None:
    disk = lab.storage.image("kiosk")
    vm = lab.vm(lab.alpha, "kiosk1", Disk(disk, transient=True)).start()
    overlay = Image(vm.top_image(), lab.storage.file(vm.top_image()))
    assert overlay.path != disk.path
    assert (lab.lock(disk), lab.lock(overlay)) == (None, "write")
    assert disk.boots == 0
    vm.destroy()
    lab.wait_free(overlay)

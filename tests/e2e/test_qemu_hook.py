"""The hook that asks holdfastd at `prepare`: on one host the refusal names the holder, before QEMU opens anything.

Here QEMU has its own image locks, as it is delivered: without the hook its error comes first, and names nobody.
"""

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.e2e.lab.domains import Disk
from tests.e2e.lab.hosts import Host
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.refusals import assert_told_by_the_hook
from tests.e2e.lab.switchover import HELD, release_unanswered
from tests.e2e.lab.vms import Vm

pytestmark = pytest.mark.holdfast_only("virtlockd has no hook")


def restart_libvirtd(lab: Lab, name: str) -> None:
    (libvirtd,) = [daemon for host, daemon in lab.libvirtd.items() if host.name == name]
    libvirtd.stop()
    libvirtd.start()


def test_second_start_on_one_host_is_refused_by_the_hook_with_the_holders_name(hooked_lab: Lab) -> None:
    lab = hooked_lab
    disk = lab.storage.image("web")
    holder = lab.vm(lab.alpha, "web1", disk, qemu_locks_its_images=True).start()
    second = lab.vm(lab.alpha, "web2", disk, qemu_locks_its_images=True)
    assert_told_by_the_hook(
        second.refused("start"),
        f"VM web1 (uuid {holder.domain.uuid}, pid {holder.inner_pid}) on host alpha",
    )
    assert second.state.startswith("shut off")
    holder.assert_writes()
    assert disk.boots == 1
    holder.destroy()
    lab.wait_free(disk)
    second.start()


@pytest.mark.without_hook("QEMU's own error comes first")
def test_without_the_hook_qemu_refuses_first_and_names_nobody(direct_lab: Lab) -> None:
    lab = direct_lab
    disk = lab.storage.image("web")
    lab.vm(lab.alpha, "web1", disk, qemu_locks_its_images=True).start()
    error = lab.vm(lab.alpha, "web2", disk, qemu_locks_its_images=True).refused("start")
    assert "web1" not in error, error


def test_life_of_a_vm_with_the_hook_leaves_no_lock(hooked_lab: Lab) -> None:
    lab = hooked_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk, qemu_locks_its_images=True).start()
    assert owners(lab) == [("web1", vm.inner_pid)]
    vm.virsh("suspend")
    assert owners(lab) == [], "a suspended VM holds no lock"
    vm.virsh("resume")
    vm.assert_writes()
    assert owners(lab) == [("web1", vm.inner_pid)]
    vm.virsh("managedsave")
    lab.wait_free(disk)
    vm.start()
    assert owners(lab) == [("web1", vm.inner_pid)]
    vm.destroy()
    lab.wait_free(disk)
    vm.start()
    vm.kill_qemu()
    lab.wait_free(disk)
    assert owners(lab) == []


def test_paused_start_keeps_its_disk_until_it_ends(hooked_lab: Lab) -> None:
    lab = hooked_lab
    disk = lab.storage.image("web")
    paused = lab.vm(lab.alpha, "web1", disk, qemu_locks_its_images=True)
    paused.virsh("start", "--paused")
    assert owners(lab) == [("web1", paused.inner_pid)]
    second = lab.vm(lab.alpha, "web2", disk, qemu_locks_its_images=True)
    assert_told_by_the_hook(second.refused("start"), "VM web1 (")
    lab.lockd[lab.alpha].kill()
    lab.lockd[lab.alpha].start()
    assert owners(lab) == [("web1", paused.inner_pid)]
    paused.virsh("resume")
    paused.assert_writes()
    paused.destroy()
    lab.wait_free(disk)
    paused.virsh("start", "--paused")
    paused.destroy()
    lab.wait_free(disk)
    second.start()


def test_start_that_fails_after_prepare_leaves_no_lock(hooked_lab: Lab) -> None:
    lab = hooked_lab
    disk, missing = lab.storage.image("web"), lab.storage.image("gone")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(missing, "vdb"), qemu_locks_its_images=True)
    missing.file.unlink()
    assert "No such file" in vm.refused("start")
    lab.wait_free(disk)
    assert owners(lab) == []


def test_migration_there_and_back_passes_with_the_hook(hooked_lab: Lab) -> None:
    lab = hooked_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    for target in (lab.beta, lab.alpha):
        vm.migrate(target)
        vm.assert_writes()
        assert disk.boots == 1
    assert owners(lab) == [("web1", vm.inner_pid)]
    vm.destroy()
    lab.wait_free(disk)


def test_transient_disk_is_left_to_the_lock_on_its_overlay(hooked_lab: Lab) -> None:
    lab = hooked_lab
    disk = lab.storage.image("kiosk")
    vm = lab.vm(lab.alpha, "kiosk1", Disk(disk, transient=True))
    vm.virsh("start")
    assert lab.lock(disk) is None
    vm.destroy()
    assert owners(lab) == []


def test_start_without_the_daemon_fails_with_the_fix(hooked_lab: Lab) -> None:
    lab = hooked_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk)
    lab.lockd[lab.alpha].stop()
    error = vm.refused("start")
    lab.lockd[lab.alpha].start()
    assert "holdfastd does not answer" in error, error
    assert "systemctl start holdfastd.socket" in error, error
    vm.start()


@pytest.mark.parametrize("hooked_lab", ["leases"], indirect=True)
def test_guest_does_not_migrate_without_a_lock_manager(hooked_lab: Lab) -> None:
    """The target's hook says so at once. A source without one releases nothing, so the target gets no lock."""
    lab = hooked_lab
    disk = lab.storage.image("web")
    for without in (lab.beta, lab.alpha):
        with configured(lab, without, "qemu.conf", 'lock_manager = "lockd"\n', ""):
            vm = lab.vm(lab.alpha, "web1", disk, qemu_locks_its_images=True)
            vm.virsh("start")
            error = vm.migrate_refused(lab.beta)
            if without is lab.beta:
                assert "web1 would run on this host without a lock on its 1 writable disks" in error, error
                assert "/etc/libvirt/qemu.conf has no lock_manager" in error, error
            else:
                assert f"VM web1 (uuid {vm.domain.uuid}, started by libvirtd, pid " in error, error
            vm.assert_writes()
            assert lab.beta.virsh("list", "--name") == ""
            other = lab.vm(lab.beta, "web2", disk, qemu_locks_its_images=True)
            assert_told_by_the_hook(other.refused("start"), "VM web1")
            vm.destroy()
            lab.wait_free(disk)
            vm.virsh("undefine")


@contextlib.contextmanager
def configured(lab: Lab, host: Host, file: str, line: str, instead: str) -> Iterator[None]:
    """libvirt on this host, with another line in a file of its configuration."""
    conf = host.path(f"/etc/libvirt/{file}")
    text = conf.read_text()
    assert line in text
    conf.write_text(text.replace(line, instead))
    restart_libvirtd(lab, host.name)
    yield
    conf.write_text(text)
    restart_libvirtd(lab, host.name)


@pytest.fixture
def unasked_lab(hooked_lab: Lab) -> Iterator[Lab]:
    """One whose libvirt asks a lock for no disk by itself: only the hook does."""
    lab = hooked_lab
    none = "auto_disk_leases = 0\nrequire_lease_for_disks = 0\n"
    with contextlib.ExitStack() as stack:
        for host in lab.hosts:
            stack.enter_context(configured(lab, host, "qemu-lockd.conf", "auto_disk_leases = 1\n", none))
        yield lab
        lab.reset()


@pytest.mark.parametrize("hooked_lab", ["leases"], indirect=True)
def test_disk_that_libvirt_never_asks_for_is_held_over_migration_suspend_and_restart(
    unasked_lab: Lab,
) -> None:
    lab = unasked_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    for target, source in ((lab.beta, lab.alpha), (lab.alpha, lab.beta)):
        vm.migrate(target)
        vm.assert_writes()
        assert owners(lab, target) == [("web1", vm.inner_pid)]
        assert owners(lab, source) == []
        vm.virsh("suspend")
        lab.lockd[target].kill()
        lab.lockd[target].start()
        assert_told_by_the_hook(lab.vm(source, "web2", disk).refused("start"), "VM web1 (")
        vm.virsh("resume")
        vm.assert_writes()
    assert disk.boots == 1
    vm.destroy()
    lab.wait_free(disk)
    assert owners(lab) == []


@pytest.mark.parametrize("hooked_lab", ["leases"], indirect=True)
def test_failed_migration_leaves_such_a_disk_with_the_guest_that_runs_on(unasked_lab: Lab) -> None:
    lab = unasked_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_unanswered(lab, vm, lab.beta) as migration:
        lab.vm_at(lab.beta, vm).process.kill()
    assert migration.communicate()[1]
    vm.wait_state("running")
    vm.assert_writes()
    assert_told_by_the_hook(lab.vm(lab.beta, "web2", disk).refused("start"), "VM web1 (")
    assert owners(lab) == [("web1", vm.inner_pid)]
    assert owners(lab, lab.beta) == []
    until(lambda: HELD not in lab.lockd[lab.alpha].holdfast("list"), "the lock to be like any other")


FLASH_BYTES = 1 << 18
FOREVER = b"\xeb\xfe".ljust(16, b"\xff")
"""`jmp $` where the processor starts, 16 bytes below the end of the flash."""
NVRAM = "/var/lib/libvirt/vars/web.fd"


def give_nvram(lab: Lab, vm: Vm) -> None:
    """Firmware that does nothing, and an NVRAM file of the host's own, as a definition with UEFI has it."""
    code = lab.storage.folder / "images" / "code.fd"
    code.write_bytes(bytes(FLASH_BYTES - len(FOREVER)) + FOREVER)
    for host in lab.hosts:
        vars_file = host.path(NVRAM)
        vars_file.parent.mkdir(exist_ok=True)
        vars_file.write_bytes(bytes(FLASH_BYTES))
    firmware = f"<loader readonly='yes' type='pflash'>/srv/images/code.fd</loader><nvram>{NVRAM}</nvram></os>"
    file = vm.host.folder / f"{vm.name}.xml"
    file.write_text(vm.domain.xml().replace("</os>", firmware))
    vm.host.virsh("define", str(file))


@pytest.mark.parametrize("hooked_lab", ["leases"], indirect=True)
def test_nvram_that_only_this_host_has_is_held_by_one_vm_and_goes_with_it(hooked_lab: Lab) -> None:
    lab = hooked_lab
    vm = lab.vm(lab.alpha, "web1", lab.storage.image("web"), qemu_locks_its_images=True)
    second = lab.vm(lab.alpha, "web2", lab.storage.image("web"), qemu_locks_its_images=True)
    for each in (vm, second):
        give_nvram(lab, each)
    for host in (lab.alpha, lab.beta):
        if host is lab.alpha:
            vm.virsh("start")
        else:
            vm.migrate(host)
            second.virsh("start")
            second.destroy()
        assert (NVRAM, "web1", vm.inner_pid, "this host") in own_files(lab, host)
    assert own_files(lab, lab.alpha) == []
    vm.migrate(lab.alpha)
    error = second.refused("start")
    assert f"holdfast: Lockspace resource '{NVRAM}' is locked by VM web1 (" in error, error
    assert owners(lab) == [("web1", vm.inner_pid)]
    vm.destroy()
    until(lambda: own_files(lab, lab.alpha) == [], "the NVRAM to be free")
    second.virsh("start")


def own_files(lab: Lab, host: Host) -> list[tuple[str, str, int, str]]:
    """The files that VMs hold within a host: path, VM, pid and backend."""
    listed = json.loads(lab.lockd[host].holdfast("list", "--json"))
    return [
        (each["resource"], each["owner"], each["pid"], each["backend"])
        for each in listed
        if each["lockspace"] == "holdfast:host"
    ]


def test_libvirtd_that_is_killed_keeps_and_frees_the_locks_of_its_vms(hooked_lab: Lab) -> None:
    lab = hooked_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk, qemu_locks_its_images=True).start()
    lab.libvirtd[lab.alpha].kill()
    lab.libvirtd[lab.alpha].start()
    vm.assert_writes()
    assert owners(lab) == [("web1", vm.inner_pid)]
    vm.destroy()
    lab.wait_free(disk)


def owners(lab: Lab, host: Host | None = None) -> list[tuple[str, int]]:
    """The VMs that hold a lock on a host, which is alpha unless it is named, with their pids."""
    listed = json.loads(lab.lockd[host or lab.alpha].holdfast("list", "--json"))
    return sorted({(str(each["owner"]), int(each["pid"])) for each in listed})

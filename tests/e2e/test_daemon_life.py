"""Daemons that stop, crash and come back under running guests: guests live on, and locks still exclude.

A lock daemon without an upper instance that keeps its descriptors cannot keep its kernel locks over a
crash.  What it must do is find out, when it comes back, who still runs, and take the locks of those again
before it serves anybody.
"""

import signal

import pytest

from tests.e2e.lab.domains import Disk
from tests.e2e.lab.hosts import Host
from tests.e2e.lab.kernel_locks import Waiter
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.refusals import assert_refused, assert_told_holder
from tests.e2e.lab.storage import Image
from tests.e2e.lab.vms import Vm

KILLS_ITS_GUESTS = "closing the guests' connections at exit makes it kill the guests"
KNOWS_NOTHING = "it starts knowing nothing of running guests"
FORGETS_LOCKSPACES = "lockspaces are known only to the daemon that libvirtd has met when it started"


def assert_guarded(lab: Lab, vm: Vm, disk: Image) -> None:
    """The guest runs, nobody else gets its disk, and the refused user reads its name."""
    assert lab.lock(disk) == "write"
    vm.assert_writes()
    second = lab.vm(vm.host, "second", disk)
    assert_told_holder(second.refused("start"), vm, asked=vm.host, lab=lab)
    assert_refused(lab.vm(lab.other(vm.host), "second", disk).refused("start"))
    assert disk.boots == 1


def assert_freed_by_death(lab: Lab, vm: Vm, disk: Image) -> None:
    """The daemon still sees the guest's end, and the next start works at once."""
    vm.kill_qemu()
    vm.start()
    vm.kill_qemu()
    lab.wait_free(disk)
    lab.vm(lab.other(vm.host), "heir", disk).start()


def test_reexec_keeps_every_lock_without_a_gap(any_lab: Lab) -> None:
    lab = any_lab
    disk, data = lab.storage.image("web"), lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", Disk(disk), Disk(data, "vdb")).start()
    lockd = lab.lockd[lab.alpha]
    with Waiter(lab.lock_file(disk)) as stranger, Waiter(lab.lock_file(data)) as another:
        lockd.reexec()
        assert stranger.is_waiting and another.is_waiting
        assert_guarded(lab, vm, disk)
    assert_freed_by_death(lab, vm, disk)


@pytest.mark.holdfast_only(
    "it asks whether the daemon is ready in a way that virtlockd's re-exec does not bear"
)
def test_many_reexecs_in_a_row_keep_every_lock(lab: Lab) -> None:
    """Also when the next signal comes before the last re-exec is done."""
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    with Waiter(lab.lock_file(disk)) as stranger:
        for _ in range(3):
            lockd.reexec()
        for _ in range(5):
            lockd.process.send(signal.SIGUSR1)
        lockd.reexec()
        assert stranger.is_waiting
    assert_guarded(lab, vm, disk)
    assert_freed_by_death(lab, vm, disk)


@pytest.mark.virtlockd_fails("a connected client that has not registered breaks its re-exec")
def test_reexec_survives_a_client_that_says_nothing(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    with lockd.connect(), Waiter(lab.lock_file(disk)) as stranger:
        lockd.reexec()
        assert stranger.is_waiting
    assert_guarded(lab, vm, disk)


def test_reexec_keeps_shared_locks_and_what_was_released_stays_free(lab: Lab) -> None:
    shared, disk = lab.storage.image("cluster"), lab.storage.image("web")
    member = lab.vm(lab.alpha, "member", Disk(lab.storage.image("own")), Disk(shared, "vdb", shareable=True))
    member.start()
    paused = lab.vm(lab.alpha, "web1", disk).start()
    paused.virsh("suspend")
    with Waiter(lab.lock_file(shared)) as stranger:
        lab.lockd[lab.alpha].reexec()
        assert stranger.is_waiting
    assert (lab.lock(shared), lab.lock(disk)) == ("read", None)
    paused.virsh("resume")
    assert lab.lock(disk) == "write"


@pytest.mark.virtlockd_fails(KILLS_ITS_GUESTS)
def test_stopped_daemon_kills_nobody_and_guards_again_once_started(any_lab: Lab) -> None:
    lab = any_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    qemu = vm.process
    lockd = lab.lockd[lab.alpha]
    assert lockd.stop() == 0
    vm.assert_writes()
    lockd.start()
    assert_guarded(lab, vm, disk)
    assert qemu.is_alive()
    assert_freed_by_death(lab, vm, disk)


@pytest.mark.virtlockd_fails(KNOWS_NOTHING)
def test_crashed_daemon_guards_again_once_started(any_lab: Lab) -> None:
    lab = any_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    for _ in range(2):
        lockd.kill()
        vm.assert_writes()
        lockd.start()
        assert lab.lock(disk) == "write"
    assert_guarded(lab, vm, disk)
    assert_freed_by_death(lab, vm, disk)


@pytest.mark.virtlockd_fails(KNOWS_NOTHING)
def test_crash_of_both_hosts_daemons_lets_nobody_in(lab: Lab) -> None:
    disks = [lab.storage.image(f"web-{host.name}") for host in lab.hosts]
    shared = lab.storage.image("cluster")
    vms = [
        lab.vm(host, f"vm-{host.name}", Disk(disk), Disk(shared, "vdb", shareable=True)).start()
        for host, disk in zip(lab.hosts, disks, strict=True)
    ]
    for host in lab.hosts:
        lab.lockd[host].kill()
    for host in lab.hosts:
        lab.lockd[host].start()
    for vm, disk in zip(vms, disks, strict=True):
        assert_guarded(lab, vm, disk)
    assert lab.lock(shared) == "read"
    for vm in vms:
        vm.destroy()
    lab.wait_free(shared)


@pytest.mark.virtlockd_fails(FORGETS_LOCKSPACES)
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_vm_goes_through_its_whole_life_after_the_daemon_came_back(lab: Lab, end: str) -> None:
    disk, data = lab.storage.image("web"), lab.storage.image("data")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    lockd.stop() if end == "stop" else lockd.kill()
    lockd.start()
    vm.virsh("suspend")
    assert lab.lock(disk) is None
    vm.virsh("resume")
    assert lab.lock(disk) == "write"
    vm.virsh("attach-disk", data.path, "sda", "--driver", "qemu", "--subdriver", "raw", "--live")
    assert lab.lock(data) == "write"
    vm.virsh("detach-disk", "sda", "--live")
    lab.wait_free(data)
    vm.migrate(lab.beta)
    vm.assert_writes()
    assert lab.lock(disk) == "write"
    assert disk.boots == 1


@pytest.mark.virtlockd_fails(FORGETS_LOCKSPACES)
def test_without_a_daemon_nothing_starts_and_what_ended_meanwhile_is_free(lab: Lab) -> None:
    disk, other_disk = lab.storage.image("web"), lab.storage.image("db")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    paused = lab.vm(lab.alpha, "db1", other_disk).start()
    lockd = lab.lockd[lab.alpha]
    lockd.kill()
    refusal = lab.vm(lab.alpha, "web2", lab.storage.image("new")).refused("start")
    asked_by_hook = (
        "nobody knows whether another VM has the 1 writable disks of web2: systemctl start holdfastd"
    )
    assert (
        asked_by_hook if lab.hook else "Failed to connect socket to '/run/libvirt/virtlockd-sock'"
    ) in refusal
    paused.virsh("suspend")  # libvirt only warns that it could not release
    vm.kill_qemu()
    lockd.start()
    lab.wait_free(disk)
    lab.vm(lab.beta, "heir", disk).start()
    paused.virsh("resume")
    paused.assert_writes()
    assert lab.lock(other_disk) == "write"
    lab.vm(lab.alpha, "web2", lab.storage.image("new")).start()


def test_reexec_amid_a_migration_disturbs_neither_side(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with Waiter(lab.lock_file(disk)) as stranger:
        migration = vm.start_slow_migration(lab.beta)
        for host in lab.hosts:
            lab.lockd[host].reexec()
        vm.virsh("domjobabort")
        migration.communicate()
        vm.wait_state("running")
        assert stranger.is_waiting
    vm.migrate(lab.beta)
    vm.assert_writes()
    vm.kill_qemu()
    lab.wait_free(disk)


@pytest.mark.virtlockd_fails(FORGETS_LOCKSPACES)
def test_guest_that_moved_away_while_the_daemon_was_down_is_not_claimed_by_it(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    lockd.kill()
    vm.migrate(lab.beta)
    lockd.start()
    vm.assert_writes()
    vm.migrate(lab.alpha)
    vm.assert_writes()
    assert_guarded(lab, vm, disk)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_libvirtd_restart_leaves_guests_and_locks_alone(lab: Lab, end: str) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    libvirtd = lab.libvirtd[lab.alpha]
    with Waiter(lab.lock_file(disk)) as stranger:
        libvirtd.stop() if end == "stop" else libvirtd.kill()
        vm.assert_writes(disk)
        libvirtd.start()
        wait_reconnected(lab.alpha, vm)
        assert stranger.is_waiting
    assert_guarded(lab, vm, disk)
    vm.virsh("suspend")
    assert lab.lock(disk) is None
    vm.virsh("resume")
    assert_freed_by_death(lab, vm, disk)


def test_guest_that_died_while_libvirtd_was_down_leaves_its_disk_free(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    qemu = vm.process
    libvirtd = lab.libvirtd[lab.alpha]
    libvirtd.kill()
    qemu.kill()
    lab.wait_free(disk)
    libvirtd.start()
    until(lambda: vm.state.startswith("shut off"), "libvirtd to see that the guest is gone")
    vm.start()
    assert disk.boots == 2


def wait_reconnected(host: Host, vm: Vm) -> None:
    """A new libvirtd has found the guests of the old one."""
    until(lambda: vm.name in host.virsh("list", "--name").split(), f"libvirtd to find {vm.name}")

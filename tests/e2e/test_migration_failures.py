"""Migrations that end badly at the switch-over: wherever the guest runs on, it runs under its lock.

libvirt releases on the source when the guest has stopped, and the target acquires when the source's QEMU has handed over.
If the target dies in between, the guest runs on at the source, and libvirt acquires nothing: the lock daemon has to know
that the lock was never given up.
"""

import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.lab.kernel_locks import Waiter
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.refusals import assert_refused
from tests.e2e.lab.storage import Image
from tests.e2e.lab.switchover import HELD, release_answered, release_unanswered
from tests.e2e.lab.vms import Vm

fails_with_virtlockd = pytest.mark.virtlockd_fails(
    "what was released for a migration is free, whatever becomes of it"
)
asks_holdfast = pytest.mark.holdfast_only("asks the daemon what it holds on to")

WAYS = {
    "direct": [],
    "p2p": ["--p2p"],
    "tunnelled": ["--p2p", "--tunnelled"],
    "post-copy": ["--postcopy"],
}


TUNNEL_LIMIT_S = 40.0
"""libvirt 11.3's libvirtd on the target may crash when its tunnel breaks, or loop for ever in its event loop."""


def assert_stayed(lab: Lab, vm: Vm, disk: Image, migration: subprocess.Popen[str]) -> None:
    """The migration failed, and the guest runs on where it was, as the only one."""
    try:
        migration.communicate(timeout=TUNNEL_LIMIT_S)
    except subprocess.TimeoutExpired:
        lab.libvirtd[lab.beta].kill()
        migration.communicate(timeout=TUNNEL_LIMIT_S)
    assert migration.returncode != 0
    lab.start_daemons()
    vm.wait_state("running")
    vm.assert_writes()
    assert_refused(lab.vm(lab.other(vm.host), "thief", disk).refused("start"))
    assert_refused(lab.vm(vm.host, "thief2", disk).refused("start"))
    vm.assert_writes()
    assert disk.boots == 1
    until(lambda: HELD not in lab.lockd[vm.host].holdfast("list"), "the lock to be like any other")


@fails_with_virtlockd
@pytest.mark.parametrize("way", WAYS)
def test_target_that_dies_at_the_switchover_leaves_the_guest_under_its_lock(lab: Lab, way: str) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_unanswered(lab, vm, lab.beta, *WAYS[way]) as migration:
        lab.vm_at(lab.beta, vm).process.kill()
    assert_stayed(lab, vm, disk, migration)
    vm.migrate(lab.beta)
    vm.assert_writes()
    assert_refused(lab.vm(lab.alpha, "thief", disk).refused("start"))


@fails_with_virtlockd
def test_the_same_with_locks_on_the_images_themselves(direct_lab: Lab) -> None:
    lab = direct_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_unanswered(lab, vm, lab.beta) as migration:
        lab.vm_at(lab.beta, vm).process.kill()
    assert_stayed(lab, vm, disk, migration)


@fails_with_virtlockd
def test_the_same_with_leases(lease_lab: Lab) -> None:
    lab = lease_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_unanswered(lab, vm, lab.beta) as migration:
        lab.vm_at(lab.beta, vm).process.kill()
    assert_stayed(lab, vm, disk, migration)
    vm.migrate(lab.beta)
    vm.assert_writes()
    assert_refused(lab.vm(lab.alpha, "thief", disk).refused("start"))


@asks_holdfast
def test_operator_sees_a_lock_that_is_held_until_the_migration_ends(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    with release_answered(lab, vm, lab.beta, "--p2p") as migration:
        assert "1 until a migration ends" in lockd.holdfast("status")
        assert HELD in lockd.holdfast("who", disk.path)
        assert "lock-departing" in lockd.holdfast("events")
        with Waiter(lab.lock_file(disk)) as stranger:
            assert_refused(lab.vm(lab.beta, "thief", disk).refused("start"))
            assert stranger.is_waiting
    migration.communicate()
    assert migration.returncode == 0
    vm.host = lab.beta
    vm.assert_writes()
    assert lab.lock(disk) == "write"
    assert HELD not in lockd.holdfast("list")


@fails_with_virtlockd
def test_libvirtd_of_the_target_that_dies_too(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_unanswered(lab, vm, lab.beta, "--p2p") as migration:
        lab.libvirtd[lab.beta].kill()
        lab.vm_at(lab.beta, vm).process.kill()
    migration.communicate()
    lab.libvirtd[lab.beta].start()
    assert_stayed(lab, vm, disk, migration)


@asks_holdfast
def test_libvirtd_of_the_source_that_dies_never_lets_the_disk_go(lab: Lab) -> None:
    """QEMU waits for the order to hand over; the next libvirtd cancels, and the guest runs on before it acquires."""
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with Waiter(lab.lock_file(disk)) as stranger:
        with release_answered(lab, vm, lab.beta, "--p2p") as migration:
            lab.libvirtd[lab.alpha].kill()
        migration.communicate()
        lab.libvirtd[lab.alpha].start()
        vm.wait_state("running")
        vm.assert_writes()
        assert stranger.is_waiting
    assert_stayed(lab, vm, disk, migration)


@asks_holdfast
def test_lock_daemon_of_the_source_that_crashes_before_the_answer(lab: Lab) -> None:
    """The release is lost with it, and libvirt goes on; without a descriptor store so is the lock, and the target has it."""
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    with release_unanswered(lab, vm, lab.beta) as migration:
        lockd.kill()
    migration.communicate()
    lockd.start()
    assert migration.returncode == 0
    vm.host = lab.beta
    vm.assert_writes()
    assert lab.lock(disk) == "write"
    assert_refused(lab.vm(lab.alpha, "thief", disk).refused("start"))


@asks_holdfast
def test_release_that_no_lock_daemon_heard_is_made_up_for(lab: Lab) -> None:
    """systemd's store keeps the lock over the crash; the next daemon sees that the guest has left, and the target waits."""
    disk = lab.storage.image("web")
    lockd = lab.lockd[lab.alpha]
    lockd.stop()
    lockd.start_under_manager()
    try:
        vm = lab.vm(lab.alpha, "web1", disk).start()
        with release_unanswered(lab, vm, lab.beta) as migration:
            lockd.crash_under_manager()
        migration.communicate()
        assert migration.returncode == 0
        vm.host = lab.beta
        vm.assert_writes()
        assert lab.lock(disk) == "write"
    finally:
        lockd.stop()
        lockd.start()


@asks_holdfast
@pytest.mark.parametrize("target_dies", [False, True], ids=["goes-on", "target-dies"])
def test_lock_daemon_of_the_source_that_crashes_behind_the_answer(lab: Lab, target_dies: bool) -> None:
    """The next one knows from the journal that libvirt has released, and holds on until it is over."""
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    with release_answered(lab, vm, lab.beta) as migration:
        lockd.kill()
        lockd.start()
        assert HELD in lockd.holdfast("list")
        assert lab.lock(disk) == "write"
        if target_dies:
            lab.vm_at(lab.beta, vm).process.kill()
    if target_dies:
        assert_stayed(lab, vm, disk, migration)
        return
    migration.communicate()
    assert migration.returncode == 0
    vm.host = lab.beta
    vm.assert_writes()
    assert lab.lock(disk) == "write"
    assert HELD not in lockd.holdfast("list")


@asks_holdfast
def test_lock_daemon_that_is_reloaded_behind_the_answer_never_lets_go(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    with Waiter(lab.lock_file(disk)) as stranger:
        with release_answered(lab, vm, lab.beta) as migration:
            lockd.reexec()
            assert HELD in lockd.holdfast("list")
            lab.vm_at(lab.beta, vm).process.kill()
        migration.communicate()
        vm.assert_writes()
        assert stranger.is_waiting
    assert_stayed(lab, vm, disk, migration)


@asks_holdfast
def test_lock_daemon_of_the_target_that_dies_sends_the_guest_back(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_answered(lab, vm, lab.beta) as migration:
        lab.lockd[lab.beta].kill()
    migration.communicate()
    lab.lockd[lab.beta].start()
    assert_stayed(lab, vm, disk, migration)


@asks_holdfast
@pytest.mark.parametrize("way", ["direct", "p2p"])
def test_target_that_dies_when_the_source_has_handed_over_sends_the_guest_back(lab: Lab, way: str) -> None:
    """Between `perform3_done` and `confirm3`: libvirt resumes the guest at the source, and asks for its lock first."""
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.beta].process
    with release_unanswered(lab, vm, lab.beta, *WAYS[way]) as migration:
        lockd.send(signal.SIGSTOP)
    lab.wait_free(disk)  # the source has let go, and the target's ACQUIRE waits
    lab.vm_at(lab.beta, vm).process.kill()
    lockd.send(signal.SIGCONT)
    assert_stayed(lab, vm, disk, migration)
    vm.migrate(lab.beta)
    vm.assert_writes()


@asks_holdfast
def test_source_that_dies_at_the_switchover_frees_the_disk(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_answered(lab, vm, lab.beta) as migration:
        vm.process.kill()
        lab.wait_free(disk)
    migration.communicate()
    assert migration.returncode != 0
    until(lambda: not lab.beta.virsh("list", "--name").split(), "the incoming guest to be gone")
    lab.vm(lab.beta, "web2", disk).start()
    assert disk.boots == 2


@asks_holdfast
def test_migration_that_is_cancelled_at_the_switchover(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_answered(lab, vm, lab.beta, "--p2p") as migration:
        abort = vm.host.start_virsh("domjobabort", vm.name)
    abort.communicate(timeout=30)
    migration.communicate(timeout=30)
    if migration.returncode == 0:  # libvirt was quicker
        vm.host = lab.beta
        vm.assert_writes()
        assert lab.lock(disk) == "write"
        assert_refused(lab.vm(lab.alpha, "thief", disk).refused("start"))
    else:
        assert_stayed(lab, vm, disk, migration)


@fails_with_virtlockd
def test_guest_that_is_suspended_on_its_way_and_cancelled_runs_on_under_its_lock(lab: Lab) -> None:
    """libvirt resumes it itself; meanwhile nobody else gets the disk."""
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with Waiter(lab.lock_file(disk)) as stranger:
        migration = vm.start_slow_migration(lab.beta)
        vm.virsh("suspend")
        vm.host.start_virsh("domjobabort", vm.name).communicate()
        migration.communicate()
        vm.wait_state("running")
        vm.assert_writes()
        assert stranger.is_waiting
    vm.virsh("suspend")
    lab.wait_free(disk)


@pytest.fixture
def lending(lab: Lab) -> Iterator[Lab]:
    """alpha's holdfastd lets go at the release, for targets that ask once."""
    lockd, more = lab.lockd[lab.alpha], lab.alpha.folder / "conf.d"
    more.mkdir()
    (more / "peers.toml").write_text('migration_peers = "any"\n')
    lockd.reexec()
    yield lab
    shutil.rmtree(more)
    lockd.reexec()


@asks_holdfast
def test_lock_that_was_let_go_for_any_target_is_taken_back(lending: Lab) -> None:
    lab = lending
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_answered(lab, vm, lab.beta) as migration:
        assert lab.lock(disk) is None
        lab.lockd[lab.alpha].reexec()  # the next program knows of it, too
        lab.vm_at(lab.beta, vm).process.kill()
    migration.communicate()
    until(lambda: lab.lock(disk) == "write", "the lock to be taken back")
    assert_stayed(lab, vm, disk, migration)
    vm.migrate(lab.beta)
    vm.assert_writes()


@asks_holdfast
def test_guest_whose_lock_was_taken_meanwhile_is_paused(lending: Lab) -> None:
    lab = lending
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_answered(lab, vm, lab.beta) as migration:
        thief = lab.vm(lab.beta, "thief", disk).start()
        lab.vm_at(lab.beta, vm).process.kill()
    migration.communicate()
    vm.wait_state("paused")
    assert "LOCK LOST" in lab.lockd[lab.alpha].said
    assert_refused(vm.refused("resume"))
    thief.destroy()
    lab.wait_free(disk)
    vm.virsh("resume")
    assert lab.lock(disk) == "write"

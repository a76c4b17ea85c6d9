"""holdfastd in sanlock's place: libvirt's sanlock plugin asks it, unmodified, beside a host with the lockd plugin.

The same leases, named by libvirt's plugin: one host's VM is refused on the other, whatever plugin each has.
"""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import clean
from tests.e2e.lab.domains import Disk
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.polling import until
from tests.e2e.test_disk_changes import attach
from tests.e2e.test_leases_on_shared_storage import owner

pytestmark = pytest.mark.holdfast_only("is about holdfastd's own sockets")


@pytest.fixture
def both(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    """alpha with the lockd plugin, beta with the sanlock plugin; holdfastd on both."""
    yield from clean(request, make_lab(("holdfastd", "in sanlock's place"), "leases"))


def test_one_lease_for_both_plugins(both: Lab) -> None:
    disk = both.storage.image("web")
    for here in (both.beta, both.alpha):
        holder = both.vm(here, "web1", disk).start()
        assert owner(both, disk) == here.number
        for number, host in enumerate(both.hosts):
            said = both.vm(host, f"thief{number}", disk).refused("start")
            assert "lock" in said
        holder.assert_writes()
        holder.destroy()
        until(lambda: owner(both, disk) == 0, "the lease to be free")


def test_suspended_guest_gives_its_lease_up_and_takes_it_again(both: Lab) -> None:
    disk = both.storage.image("web")
    vm = both.vm(both.beta, "web1", disk).start()
    vm.virsh("suspend")
    until(lambda: owner(both, disk) == 0, "the lease to be free")
    vm.virsh("resume")
    assert owner(both, disk) == both.beta.number
    vm.assert_writes()
    both.vm(both.alpha, "thief", disk).refused("start")


DISKS_MAX = 8
"""Leases of one call: sanlock's limit, and libvirt's."""


def test_hot_plugged_disk_has_a_lease_while_it_is_plugged(both: Lab) -> None:
    disk, data = both.storage.image("web"), both.storage.image("data")
    vm = both.vm(both.beta, "web1", disk).start()
    vm.virsh("attach-disk", *attach(vm, data, "sda"))
    assert owner(both, data) == both.beta.number
    both.vm(both.alpha, "thief", data).refused("start")
    other = both.storage.image("other")
    holder = both.vm(both.alpha, "holder", other).start()
    assert "lock" in vm.refused("attach-disk", *attach(vm, other, "sdb"))
    assert owner(both, other) == both.alpha.number
    holder.assert_writes()
    vm.virsh("detach-disk", "sda", "--live")
    until(lambda: owner(both, data) == 0, "the lease to be free")
    vm.assert_writes()
    assert owner(both, disk) == both.beta.number


def test_guest_with_more_disks_than_leases_of_one_call_is_refused_by_libvirt(both: Lab) -> None:
    disks = [
        Disk(both.storage.image(f"d{number}"), f"vd{chr(ord('a') + number)}")
        for number in range(DISKS_MAX + 1)
    ]
    assert f"Too many resources {DISKS_MAX}" in both.vm(both.beta, "too-many", *disks).refused("start")
    both.vm(both.beta, "enough", *disks[:-1]).start()
    assert [owner(both, each.image) for each in disks[:-1] if each.image] == [both.beta.number] * DISKS_MAX


def test_guest_keeps_its_lease_over_a_restart_of_the_daemon(both: Lab) -> None:
    disk = both.storage.image("web")
    vm = both.vm(both.beta, "web1", disk).start()
    both.lockd[both.beta].kill()
    both.lockd[both.beta].start()
    assert owner(both, disk) == both.beta.number
    both.vm(both.alpha, "thief", disk).refused("start")
    both.vm(both.beta, "thief2", disk).refused("start")
    vm.assert_writes()
    vm.virsh("suspend")
    until(lambda: owner(both, disk) == 0, "the lease to be free")
    both.lockd[both.beta].kill()
    both.lockd[both.beta].start()
    vm.virsh("resume")
    assert owner(both, disk) == both.beta.number
    vm.assert_writes()
    vm.destroy()
    until(lambda: owner(both, disk) == 0, "the lease to be free")


@pytest.mark.long
def test_guest_is_saved_and_restored(both: Lab) -> None:
    disk = both.storage.image("web")
    vm = both.vm(both.beta, "web1", disk).start()
    vm.virsh("managedsave")
    until(lambda: owner(both, disk) == 0, "the lease to be free")
    vm.virsh("start")
    assert owner(both, disk) == both.beta.number
    vm.assert_writes()


@pytest.mark.long
def test_guest_whose_qemu_is_killed_frees_its_lease(both: Lab) -> None:
    disk = both.storage.image("web")
    vm = both.vm(both.beta, "web1", disk).start()
    vm.kill_qemu()
    until(lambda: owner(both, disk) == 0, "the lease to be free")
    both.vm(both.alpha, "web2", disk).start()


@pytest.mark.long
def test_guest_migrates_to_the_host_with_sanlocks_plugin_and_back(both: Lab) -> None:
    more = both.alpha.folder / "conf.d"
    more.mkdir(exist_ok=True)
    (more / "peers.toml").write_text('migration_peers = "any"\n')
    both.lockd[both.alpha].reexec()
    until(both.lockd[both.alpha].is_joined, "alpha to be in the lockspace again")
    try:
        disk = both.storage.image("web")
        vm = both.vm(both.alpha, "web1", disk).start()
        for target in (both.beta, both.alpha):
            vm.migrate(target)
            vm.assert_writes()
            assert owner(both, disk) == target.number
        assert disk.boots == 1
    finally:
        (more / "peers.toml").unlink()
        both.lockd[both.alpha].reexec()


@pytest.fixture
def moving(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    """alpha has been moved from sanlock to Holdfast in its place already; beta has sanlock still."""
    yield from clean(request, make_lab(("in sanlock's place", "sanlock"), "leases with sanlock's times"))


@pytest.mark.long
def test_site_moves_host_by_host_while_its_guests_run(moving: Lab) -> None:
    disk = moving.storage.image("web")
    vm = moving.vm(moving.beta, "web1", disk).start()
    for target in (moving.alpha, moving.beta, moving.alpha):
        vm.migrate(target)
        vm.assert_writes()
        assert owner(moving, disk) == target.number
        for number, host in enumerate(moving.hosts):
            moving.vm(host, f"thief{number}", disk).refused("start")
    assert disk.boots == 1

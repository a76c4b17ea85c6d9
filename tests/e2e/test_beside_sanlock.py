"""One host on holdfastd with leases, the other on Debian's sanlock with libvirt's sanlock plugin: they share one lockspace.

Neither knows what the other is: they meet in the leases, which libvirt's plugin names as Holdfast does.
"""

import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import clean
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.polling import until
from tests.e2e.lab.storage import Image
from tests.e2e.lab.switchover import release_answered
from tests.e2e.test_leases_on_shared_storage import owner

pytestmark = pytest.mark.holdfast_only("has both at once")


@pytest.fixture
def mixed(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    """alpha on holdfastd, beta on sanlock."""
    yield from clean(request, make_lab(("holdfastd", "sanlock"), "leases"))


@pytest.fixture
def lending(mixed: Lab) -> Iterator[Lab]:
    """alpha lets go at the release, for a target that asks once."""
    more = mixed.alpha.folder / "conf.d"
    more.mkdir()
    (more / "peers.toml").write_text('migration_peers = "any"\n')
    mixed.lockd[mixed.alpha].reexec()
    # On a busy machine the incarnation is too old to be resumed by then, and the next one is claimed.
    until(mixed.lockd[mixed.alpha].is_joined, "alpha to be in the lockspace again")
    yield mixed
    shutil.rmtree(more)
    mixed.lockd[mixed.alpha].reexec()


def refused(lab: Lab, disk: Image) -> None:
    """Both hosts refuse a second start."""
    for number, host in enumerate(lab.hosts):
        assert "Failed to acquire lock" in (
            told := lab.vm(host, f"thief{number}", disk).refused("start")
        ) or ("is locked by" in told)


@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_the_second_host_is_refused(mixed: Lab, first: str) -> None:
    here = mixed.alpha if first == "alpha" else mixed.beta
    disk = mixed.storage.image("web")
    holder = mixed.vm(here, "web1", disk).start()
    assert owner(mixed, disk) == here.number
    refused(mixed, disk)
    holder.assert_writes()
    assert disk.boots == 1
    holder.destroy()
    until(lambda: owner(mixed, disk) == 0, "the lease to be free")
    mixed.vm(mixed.other(here), "web2", disk).start()


def test_guest_migrates_to_a_host_with_sanlock_and_back(lending: Lab) -> None:
    lab = lending
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    for target in (lab.beta, lab.alpha):
        vm.migrate(target)
        vm.assert_writes()
        assert owner(lab, disk) == target.number
        refused(lab, disk)
    assert disk.boots == 1


def test_sanlock_target_that_dies_at_the_switchover_gives_the_lease_back(lending: Lab) -> None:
    lab = lending
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    with release_answered(lab, vm, lab.beta) as migration:
        until(lambda: owner(lab, disk) == 0, "the lease to be lent")
        lab.vm_at(lab.beta, vm).process.kill()
    migration.communicate()
    assert migration.returncode != 0
    vm.wait_state("running")
    vm.assert_writes()
    until(lambda: owner(lab, disk) == 1, "the lease to be taken back")
    refused(lab, disk)


def test_guest_whose_sanlock_target_came_too_early_runs_on_under_its_lease(mixed: Lab) -> None:
    """Without `migration_peers = "any"`: sanlock's plugin asks once, and is refused while the source still has the lease."""
    lab = mixed
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    migration = vm.start_migration(lab.beta)
    migration.communicate()
    if migration.returncode == 0:  # the source was quicker
        vm.host = lab.beta
    vm.wait_state("running")
    vm.assert_writes()
    until(lambda: owner(lab, disk) == vm.host.number, "the lease to be where the guest is")
    refused(lab, disk)

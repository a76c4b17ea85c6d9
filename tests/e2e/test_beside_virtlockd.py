"""One host on Debian's virtlockd, the other on holdfastd: a cluster in the middle of its change-over.

Neither knows what the other is.  They meet in the kernel's locks alone, on the image itself or on the file
that libvirt names by hash, which virtlockd creates at each acquire and removes at each release.
"""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import clean
from tests.e2e.lab.domains import Disk
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.refusals import assert_refused

pytestmark = pytest.mark.holdfast_only("has both daemons at once")


@pytest.fixture(params=["indirect", "direct"])
def mixed(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    """alpha on virtlockd, beta on holdfastd."""
    yield from clean(request, make_lab(("virtlockd", "holdfastd"), request.param))


@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_the_second_host_is_refused(mixed: Lab, first: str) -> None:
    here = mixed.alpha if first == "alpha" else mixed.beta
    there = mixed.other(here)
    disk = mixed.storage.image("web")
    holder = mixed.vm(here, "web1", disk).start()
    second = mixed.vm(there, "web2", disk)
    for _ in range(2):
        assert_refused(second.refused("start"))
    holder.assert_writes()
    assert disk.boots == 1
    holder.kill_qemu()
    mixed.wait_free(disk)
    second.start()
    assert_refused(holder.refused("start"))
    second.destroy()
    mixed.wait_free(disk)
    holder.start()
    assert disk.boots == 3


@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_suspended_guest_cannot_go_on_while_the_other_host_runs(mixed: Lab, first: str) -> None:
    here = mixed.alpha if first == "alpha" else mixed.beta
    disk = mixed.storage.image("web")
    paused = mixed.vm(here, "web1", disk).start()
    paused.virsh("suspend")
    other = mixed.vm(mixed.other(here), "web2", disk).start()
    assert_refused(paused.refused("resume"))
    other.assert_writes()
    other.destroy()
    mixed.wait_free(disk)
    paused.virsh("resume")
    paused.assert_writes()


def test_shareable_disk_is_shared_between_them_and_closed_to_a_writer(mixed: Lab) -> None:
    shared = mixed.storage.image("cluster")
    members = [
        mixed.vm(
            host, f"m-{host.name}", Disk(mixed.storage.image("own")), Disk(shared, "vdb", shareable=True)
        )
        for host in mixed.hosts
    ]
    for member in members:
        member.start()
    for member in members:
        for host in mixed.hosts:
            assert_refused(mixed.vm(host, "single", shared).refused("start"))
        member.destroy()
    mixed.wait_free(shared)
    for host in mixed.hosts:
        single = mixed.vm(host, "single", shared).start()
        assert_refused(members[0].refused("start"))
        assert_refused(members[1].refused("start"))
        single.destroy()
        mixed.wait_free(shared)


def test_guest_migrates_from_one_to_the_other_and_back(mixed: Lab) -> None:
    disk = mixed.storage.image("web")
    vm = mixed.vm(mixed.alpha, "web1", disk).start()
    for source, target in ((mixed.alpha, mixed.beta), (mixed.beta, mixed.alpha)):
        vm.migrate(target)
        vm.assert_writes()
        assert mixed.lock(disk) == "write"
        assert_refused(mixed.vm(source, "thief", disk).refused("start"))
    assert disk.boots == 1


def test_restarts_of_holdfastd_do_not_let_the_virtlockd_host_in(mixed: Lab) -> None:
    disk = mixed.storage.image("web")
    vm = mixed.vm(mixed.beta, "web1", disk).start()
    holdfastd = mixed.lockd[mixed.beta]
    thief = mixed.vm(mixed.alpha, "thief", disk)
    holdfastd.reexec()
    assert_refused(thief.refused("start"))
    for end in (holdfastd.stop, holdfastd.kill):
        end()
        holdfastd.start()
        assert_refused(thief.refused("start"))
        vm.assert_writes()
    assert disk.boots == 1
    vm.kill_qemu()
    mixed.wait_free(disk)
    thief.start()

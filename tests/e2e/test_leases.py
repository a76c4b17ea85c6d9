"""<lease> elements: locks that an administrator names, independent of disks.

libvirt's plugin never creates the lockspace of a lease, so with virtlockd a guest with a lease does not start
unless somebody prepared both the lockspace and the file.  With Holdfast it just starts.
"""

from pathlib import Path

import pytest

from tests.e2e.lab.domains import Disk, Lease
from tests.e2e.lab.kernel_locks import probe
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.refusals import assert_refused, assert_told_holder

pytestmark = pytest.mark.virtlockd_fails("nobody creates the lockspace of a lease")


def a_lease(lab: Lab, key: str) -> tuple[Lease, Path]:
    """A lease in a lockspace whose folder doesn't exist yet, and the file that will carry its lock."""
    lockspace = f"of-{key}"
    return Lease("/srv/leases", lockspace, key), lab.storage.file(f"/srv/leases/{lockspace}/{key}")


def test_lease_needs_no_preparation_and_excludes_on_all_hosts(any_lab: Lab) -> None:
    lab = any_lab
    lease, file = a_lease(lab, "licence")
    disks = [lab.storage.image(name) for name in ("first", "second", "third")]
    holder = lab.vm(lab.alpha, "first", Disk(disks[0]), lease).start()
    assert probe(file) == "write"
    second = lab.vm(lab.alpha, "second", Disk(disks[1]), lease)
    assert_told_holder(second.refused("start"), holder, asked=lab.alpha, lab=lab)
    third = lab.vm(lab.beta, "third", Disk(disks[2]), lease)
    assert_refused(third.refused("start"))
    assert lab.lock(disks[1]) is None
    holder.kill_qemu()
    third.start()
    assert probe(file) == "write"


def test_lease_with_another_key_is_another_lease(lab: Lab) -> None:
    one, one_file = a_lease(lab, "one")
    two, two_file = a_lease(lab, "two")
    lab.vm(lab.alpha, "first", Disk(lab.storage.image("first")), one).start()
    lab.vm(lab.beta, "second", Disk(lab.storage.image("second")), two).start()
    assert (probe(one_file), probe(two_file)) == ("write", "write")


def test_lease_is_attached_and_detached_while_the_guest_runs(lab: Lab) -> None:
    lease, file = a_lease(lab, "plugged")
    vm = lab.vm(lab.alpha, "first", lab.storage.image("first")).start()
    element = lab.alpha.folder / "lease.xml"
    element.write_text(lease.xml())
    vm.virsh("attach-device", str(element), "--live")
    assert probe(file) == "write"
    other = lab.vm(lab.beta, "second", Disk(lab.storage.image("second")), lease)
    assert_refused(other.refused("start"))
    vm.virsh("detach-device", str(element), "--live")
    assert probe(file) is None
    other.start()


def test_lease_goes_with_a_migrating_guest_and_rests_with_a_paused_one(lab: Lab) -> None:
    lease, file = a_lease(lab, "moving")
    vm = lab.vm(lab.alpha, "first", Disk(lab.storage.image("first")), lease).start()
    vm.migrate(lab.beta)
    assert probe(file) == "write"
    vm.virsh("suspend")
    assert probe(file) is None
    vm.virsh("resume")
    assert probe(file) == "write"
    vm.assert_writes()

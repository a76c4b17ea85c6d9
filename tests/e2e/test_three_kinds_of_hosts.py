"""Three hosts, one directory of leases: Holdfast with the lockd plugin, Holdfast in sanlock's place, and Debian's sanlock.

Each refuses what another one holds. When a host dies, the others take over what it had 68 s after its last renewal, as
sanlock does with io_timeout 1: 8 s until it has lost its leases, 60 s for its watchdog.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.conftest import clean
from tests.e2e.lab.daemons import Kind
from tests.e2e.lab.hosts import CommandError, Host
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.polling import until
from tests.e2e.lab.vms import Vm
from tests.e2e.test_leases_on_shared_storage import RENEWAL_S, owner, power_off

pytestmark = [pytest.mark.holdfast_only("has three kinds at once"), pytest.mark.long]

DEAD_S = 68
LATE_S = 25
"""More than a busy machine needs to start a VM after that."""


@pytest.fixture
def three(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    kinds: tuple[Kind, ...] = ("holdfastd", "in sanlock's place", "sanlock")
    yield from clean(request, make_lab(kinds, "leases with sanlock's times"))


def test_each_refuses_what_another_one_holds(three: Lab) -> None:
    for here in three.hosts:
        disk = three.storage.image(f"of-{here.name}")
        holder = three.vm(here, f"vm-{here.name}", disk).start()
        assert owner(three, disk) == here.number
        for host in three.hosts:
            said = three.vm(host, f"thief-{here.name}-{host.name}", disk).refused("start")
            assert "lock" in said
        holder.assert_writes()
        assert disk.boots == 1
    for here, there in zip(three.hosts, (*three.hosts[1:], three.hosts[0]), strict=True):
        disk = three.storage.image(f"of-{here.name}")
        three.vm(here, f"first-{here.name}", disk).start().destroy()
        until(lambda disk=disk: owner(three, disk) == 0, "the lease to be free")  # type: ignore[misc]
        three.vm(there, f"second-{here.name}", disk).start()
        assert owner(three, disk) == there.number


def seconds_until_started(vm: Vm) -> float:
    """Also where an answer takes until the owner's host is dead: sanlock's clients wait for that in one call."""
    begun = time.monotonic()

    def started() -> bool:
        try:
            vm.virsh("start")
        except CommandError:
            return False
        return True

    until(started, f"{vm.name} to start on {vm.host.name}", DEAD_S + LATE_S)
    return time.monotonic() - begun


def taken_over(lab: Lab, victim: Host) -> None:
    """Each other host has a VM of the victim, in time."""
    heirs = [host for host in lab.hosts if host is not victim]
    vms = []
    for heir in heirs:
        disk = lab.storage.image(f"{victim.name}-{heir.name}")
        lab.vm(victim, f"lost-{heir.name}", disk).start()
        assert owner(lab, disk) == victim.number
        vms.append((lab.vm(heir, f"heir-of-{victim.name}", disk), disk))
    power_off(lab, victim)
    with ThreadPoolExecutor(len(vms)) as pool:
        waited = list(pool.map(lambda each: seconds_until_started(each[0]), vms))
    for (vm, disk), seconds in zip(vms, waited, strict=True):
        where = f"{vm.host.name} took over from {victim.name} after {seconds:.1f} s"
        assert seconds > DEAD_S - RENEWAL_S - 1, where
        assert owner(lab, disk) == vm.host.number
        vm.assert_writes()
        vm.destroy()


@pytest.mark.parametrize("name", ["gamma", "beta", "alpha"])
def test_dead_host_is_taken_over_by_both_others_in_time(three: Lab, name: str) -> None:
    (victim,) = (host for host in three.hosts if host.name == name)
    taken_over(three, victim)

"""What a lease has to be worth for a VM that starts, and for one that ran before."""

from pathlib import Path

import pytest
from tests.unit.manager.world import World, run, want

from holdfast.errors import ProtectionTooWeak
from holdfast.manager.migration_roles import ran_before
from holdfast.model import Protection, Resource
from holdfast.system.libvirt.domains import Domain


def domain(state: str, reason: str, job: str = "") -> Domain:
    return Domain("vm7", "uuid-7", (), frozenset(), 7, state, job, reason=reason)


class Status:
    def __init__(self, now: Domain | None) -> None:
        self.now = now

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        return self.now if pid == 7 else None

    def running(self) -> list[Domain]:
        return []


ROWS = [
    (domain("paused", "user"), True),
    (domain("paused", "I/O error"), True),
    (domain("paused", "migration"), True),
    (domain("paused", "starting up", "migration in"), True),
    (domain("paused", "starting up", "start"), False),
    (domain("paused", ""), False),
    (domain("running", "booted"), False),
    (None, False),
]


@pytest.mark.parametrize(("now", "ran"), ROWS)
def test_vm_that_ran_before_is_told_from_one_that_starts(now: Domain | None, ran: bool) -> None:
    assert ran_before(now) is ran


@pytest.mark.parametrize(("now", "ran"), ROWS)
def test_lease_on_a_local_file_system_is_refused_to_what_starts(
    tmp_path: Path, now: Domain | None, ran: bool
) -> None:
    async def scene() -> None:
        world = World(tmp_path, leases=True, start_min=Protection.CROSS_HOST, status=Status(now))
        disk = tmp_path / "leased" / "a.img"
        disk.parent.mkdir()
        disk.touch()
        owner = world.owner(7)
        if ran:
            assert await world.manager.acquire(owner, want(str(disk)))
        else:
            with pytest.raises(ProtectionTooWeak, match="needs protection level 2 "):
                await world.manager.acquire(owner, want(str(disk)))
            assert world.manager.table.named(Resource("", str(disk))) is None

    run(scene)


def test_what_a_rule_demands_is_demanded_of_every_vm(tmp_path: Path) -> None:
    async def scene() -> None:
        world = World(
            tmp_path,
            leases=True,
            protection_min=Protection.CROSS_HOST,
            start_min=Protection.CROSS_HOST,
            status=Status(domain("paused", "user")),
        )
        disk = tmp_path / "leased" / "a.img"
        disk.parent.mkdir()
        disk.touch()
        with pytest.raises(ProtectionTooWeak):
            await world.manager.acquire(world.owner(7), want(str(disk)))

    run(scene)

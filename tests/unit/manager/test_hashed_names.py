"""Disks that libvirt names by a hash, where a lease or a rule goes by the path."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.manager.test_knows_writers import Volumes
from tests.unit.manager.world import World, locked, run, want

from holdfast.backends.naming import indirect_name
from holdfast.errors import DiskNotKnown, ProtectionTooWeak, Refused, ResourceBusy, ResourceNotLocked
from holdfast.manager import events as ev
from holdfast.manager.hashed_names import STATUS_WAIT_S, WORDS_WAIT_S
from holdfast.model import AcquireRequest, Mode, Protection, Resource
from holdfast.system.files.disk_identity import DiskIdentity, scsi_id_of
from holdfast.system.libvirt.domains import Disk, Domain
from holdfast.testing.fakes import settle

LVM_UUID = "06UgP5-2rhb-w3Bo-3mdR-WeoL-pytO-SAa2ky"


class Status:
    """libvirt's status file of VM 7, once `paths` are written into it."""

    def __init__(self, *paths: str, backing: tuple[str, ...] = ()) -> None:
        self.paths: tuple[str, ...] | None = paths or None
        self.backing = backing

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        if self.paths is None or pid != 7:
            return None
        disks = tuple(Disk(path, shareable=False) for path in self.paths)
        return Domain(name, uuid, disks, frozenset(self.backing), pid, "running")

    def running(self) -> list[Domain]:
        return []


def leased(tmp_path: Path, name: str = "a.img") -> str:
    path = tmp_path / "leased" / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return str(path)


def lockspace(tmp_path: Path) -> str:
    space = tmp_path / "lockd"
    space.mkdir(exist_ok=True)
    return str(space)


def test_lease_is_that_of_the_path_and_goes_by_the_name_that_libvirt_knows(tmp_path: Path) -> None:
    disk, space = leased(tmp_path), lockspace(tmp_path)

    async def scene() -> None:
        world = World(tmp_path, leases=True, status=Status(disk))
        owner, other = world.owner(7), world.owner(8)
        hashed = want(indirect_name(disk), lockspace=space, create=True)
        assert await world.manager.acquire(owner, hashed)
        lock = world.manager.table.named(Resource("", disk))
        assert lock is not None
        assert lock.backend == "leases"
        assert locked(disk)
        with pytest.raises(ResourceBusy):
            await world.manager.acquire(other, want(disk))
        await world.manager.release(owner, hashed.resource)
        assert not locked(disk)
        with pytest.raises(ResourceNotLocked):
            await world.manager.release(owner, hashed.resource)

    run(scene)


def test_status_file_that_is_about_to_be_written_is_waited_for(tmp_path: Path) -> None:
    disk, space = leased(tmp_path), lockspace(tmp_path)

    async def scene() -> None:
        status = Status()
        world = World(tmp_path, leases=True, status=status)
        trial = world.start(
            world.manager.acquire(world.owner(7), want(indirect_name(disk), lockspace=space, create=True))
        )
        await settle()
        assert not trial.done()
        status.paths = (disk,)
        await world.clock.advance(1)
        assert await trial
        assert world.manager.table.named(Resource("", disk)) is not None

    run(scene)


@pytest.mark.parametrize("paths", [(), ("/another",)], ids=["no-file", "not-listed"])
def test_disk_whose_path_is_not_known_is_refused(tmp_path: Path, paths: tuple[str, ...]) -> None:
    disk, space = leased(tmp_path), lockspace(tmp_path)

    async def scene() -> None:
        world = World(tmp_path, leases=True, status=Status(*paths))
        trial = world.start(
            world.manager.acquire(world.owner(7), want(indirect_name(disk), lockspace=space, create=True))
        )
        await settle()
        await world.clock.advance(STATUS_WAIT_S + 1)
        with pytest.raises(DiskNotKnown, match="qemu-lockd"):
            await trial
        assert not world.manager.table.of_owner(1)

    run(scene)


def test_lease_element_is_no_disk(tmp_path: Path) -> None:
    space = lockspace(tmp_path)
    (Path(space) / "key").touch()

    async def scene() -> None:
        world = World(tmp_path, leases=True, status=Status("/another"))
        assert await world.manager.acquire(world.owner(7), want("key", lockspace=space))

    run(scene)


def test_disk_without_a_lease_keeps_the_lock_file_that_other_hosts_know(tmp_path: Path) -> None:
    space = lockspace(tmp_path)

    async def scene() -> None:
        world = World(tmp_path, leases=True)
        disk = world.disk()
        world = World(tmp_path, leases=True, status=Status(disk))
        owner, name = world.owner(7), indirect_name(disk)
        assert await world.manager.acquire(owner, want(name, lockspace=space, create=True))
        assert locked(f"{space}/{name}")
        assert not locked(disk)
        await world.manager.release(owner, Resource(space, name))
        assert not (Path(space) / name).exists()

    run(scene)


def test_rule_of_a_path_demands_its_protection_of_a_hashed_name(tmp_path: Path) -> None:
    space = lockspace(tmp_path)

    async def scene() -> None:
        disk = str(tmp_path / "indirect" / "a.img")
        world = World(tmp_path, leases=True, status=Status(disk), protection_min=Protection.FENCED)
        with pytest.raises(ProtectionTooWeak):
            await world.manager.acquire(
                world.owner(7), want(indirect_name(disk), lockspace=space, create=True)
            )

    run(scene)


def test_lease_by_a_hash_from_an_older_daemon_keeps_others_out(tmp_path: Path) -> None:
    disk, space = leased(tmp_path), lockspace(tmp_path)
    name = indirect_name(disk)

    async def scene() -> None:
        world = World(tmp_path, leases=True, status=Status(disk))
        before = world.owner(9)
        held_by_hash = want(name, lockspace=space)
        (Path(space) / name).touch()
        assert await world.manager.acquire(before, held_by_hash)
        with pytest.raises(ResourceBusy):
            await world.manager.acquire(world.owner(7), held_by_hash._replace(create=True))
        await world.manager.release(before, held_by_hash.resource)
        assert await world.manager.acquire(world.owner(7), held_by_hash._replace(create=True))
        assert world.manager.table.named(Resource("", disk)) is not None

    run(scene)


@pytest.mark.parametrize(
    ("disk", "name"),
    [
        (DiskIdentity(lvm_uuid=LVM_UUID), LVM_UUID),
        (DiskIdentity(wwid="naa.6001405abc"), "36001405abc"),
        (DiskIdentity(wwid="t10.ATA     disk   42"), "1ATA_disk_42"),
        (DiskIdentity(wwid="36001405abc"), "36001405abc"),
    ],
)
def test_block_devices_are_found_by_the_name_that_lvm_or_udev_gives(
    tmp_path: Path, disk: DiskIdentity, name: str
) -> None:
    space = lockspace(tmp_path)
    path = "/dev/vg/leased/web"

    async def identify(asked: str) -> DiskIdentity:
        return disk if asked == path else DiskIdentity()

    async def scene() -> None:
        world = World(tmp_path, leases=True, status=Status("/dev/other", path), identify=identify)
        opened: list[Resource] = []

        async def opens(resource: Resource, **_: object) -> None:
            opened.append(resource)
            raise ResourceNotLocked(name="enough")

        world.backends["leases"].open = opens  # type: ignore[assignment,method-assign]
        with pytest.raises(ResourceNotLocked):
            await world.manager.acquire(world.owner(7), want(name, lockspace=space, create=True))
        assert opened == [Resource("", path)]

    run(scene)


def test_scsi_id_of_nothing_is_nothing() -> None:
    assert scsi_id_of("") == ""


def test_shared_stays_shared(tmp_path: Path) -> None:
    disk, space = leased(tmp_path), lockspace(tmp_path)

    async def scene() -> None:
        world = World(tmp_path, leases=True, status=Status(disk))
        owner = world.owner(7)
        await world.manager.acquire(
            owner, want(indirect_name(disk), Mode.SHARED, lockspace=space, create=True)
        )
        assert world.manager.claimed(owner, Resource("", disk)) is Mode.SHARED

    run(scene)


def test_place_of_a_lock_without_a_lease_does_not_depend_on_whether_the_path_is_known(tmp_path: Path) -> None:
    """Found by two real hosts: one attached a disk, the other one started a VM with it, by another lock file."""
    space = lockspace(tmp_path)

    async def scene() -> None:
        disk = str(tmp_path / "indirect" / "a.img")  # a rule gives it to another backend
        status = Status("/another")
        world = World(tmp_path, status=status)
        hashed = want(indirect_name(disk), lockspace=space, create=True)
        assert await world.manager.acquire(world.owner(7), hashed)
        status.paths = (disk,)
        (attached,) = world.manager.table
        await world.manager.release(world.owner(7), hashed.resource)
        assert await world.manager.acquire(world.owner(7), hashed)
        (started,) = world.manager.table
        assert (
            (started.path, started.backend)
            == (attached.path, attached.backend)
            == (f"{space}/{hashed.resource.name}", "file")
        )

    run(scene)


async def acquired(world: World, pid: int, wish: AcquireRequest) -> bool:
    """Long enough later that no status file is waited for any more."""
    trial = world.start(world.manager.acquire(world.owner(pid), wish))
    for wait_s in (STATUS_WAIT_S, WORDS_WAIT_S):
        await settle()
        await world.clock.advance(wait_s + 0.1)
    return await trial


async def refusal(world: World, pid: int, wish: AcquireRequest) -> str:
    with pytest.raises(ResourceBusy) as refused:
        await acquired(world, pid, wish)
    (event,) = [each for each in world.events.recent() if each.kind == ev.REFUSED]
    assert event.detail == str(refused.value)
    return str(refused.value)


def test_refusal_of_a_hash_without_a_lease_names_the_disk(tmp_path: Path) -> None:
    space = lockspace(tmp_path)

    async def scene() -> None:
        world = World(tmp_path, status=Status("/srv/a.img"))
        hashed = want(indirect_name("/srv/a.img"), lockspace=space, create=True)
        assert await acquired(world, 8, hashed)
        text = await refusal(world, 7, hashed)
        assert text.startswith(f"Lockspace resource '{hashed.resource.name}' is locked by VM vm8")
        assert text.endswith(f"; it is the disk /srv/a.img, which libvirt asks for in {space}")

    run(scene)


def test_refusal_of_a_disk_that_is_attached_names_what_its_holder_calls_it(tmp_path: Path) -> None:
    """The one who asks has it in no status file yet; the one who holds it is libvirt's VM 7."""
    space = lockspace(tmp_path)

    async def scene() -> None:
        world = World(tmp_path, status=Status("/srv/a.img"))
        hashed = want(indirect_name("/srv/a.img"), lockspace=space, create=True)
        assert await world.manager.acquire(world.owner(7), hashed)
        assert "; it is the disk /srv/a.img" in await refusal(world, 8, hashed)

    run(scene)


def test_refusal_of_a_hash_that_nobody_knows_says_so_and_names_the_disks_of_the_vm(tmp_path: Path) -> None:
    space = lockspace(tmp_path)

    async def scene() -> None:
        world = World(tmp_path, status=Status("/srv/b.img", "/srv/c\x1b.img"))
        hashed = want(indirect_name("/srv/a.img"), lockspace=space, create=True)
        assert await acquired(world, 8, hashed)
        text = await refusal(world, 7, hashed)
        assert "its disk is not known" in text
        assert "none of the disks in its status file (/srv/b.img, /srv/c\\x1b.img)" in text

    run(scene)


def test_refusal_of_a_lease_element_says_that_it_is_no_disk(tmp_path: Path) -> None:
    space = lockspace(tmp_path)
    (Path(space) / "key1").touch()

    async def scene() -> None:
        world = World(tmp_path, status=Status("/srv/b.img"))
        key = want("key1", lockspace=space)
        assert await world.manager.acquire(world.owner(8), key)
        assert (await refusal(world, 7, key)).endswith(f"; it is the <lease> {space}/key1, not a disk")

    run(scene)


def test_disk_that_is_locked_by_its_path_alone_gets_no_lock_file_in_the_lockspace_instead(
    tmp_path: Path,
) -> None:
    """A volume (driver lvm) whose lock libvirt asks for by a hash: the file of the hash would keep no other host out."""
    disk, space = "/writers/disk", lockspace(tmp_path)

    async def scene() -> None:
        volumes = Volumes()
        volumes.capabilities = replace(volumes.capabilities, by_path_alone=True)
        world = World(tmp_path, writers=volumes, status=Status(disk))
        with pytest.raises(Refused, match="by its path"):
            await world.manager.acquire(
                world.owner(7), want(indirect_name(disk), lockspace=space, create=True)
            )
        assert len(world.manager.table) == 0
        hidden = Status()
        world = World(tmp_path, writers=volumes, status=hidden)
        asking = world.start(
            world.manager.acquire(world.owner(7), want(indirect_name(disk), lockspace=space, create=True))
        )
        await settle()
        await world.clock.advance(STATUS_WAIT_S + 1)
        with pytest.raises(DiskNotKnown):
            await asking

    run(scene)

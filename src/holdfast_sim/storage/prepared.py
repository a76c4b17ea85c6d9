"""Storage as operators prepare it before the first daemon starts, with `holdfast lockspace init` and `lease init`.

fixed        a lockspace, followed by one lease for each resource
directory    a lockspace's file in a shared directory; leases are created on demand
device       a lockspace, a resource index with its lease, and room for the leases of its entries
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.ondisk import areas, delta
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.rindex import INTERNAL_LEASE_NAME
from holdfast.protocol.lease_area import GLANCED_AT_TOGETHER_BYTES
from holdfast_sim.check.leases import Checkers
from holdfast_sim.cluster.space import Space
from holdfast_sim.storage.disk import SharedDisk
from holdfast_sim.storage.disk_names import DiskNames, lease_of
from holdfast_sim.storage.files import File, SharedDirectory, Volume
from holdfast_sim.world import World

FEW_HOSTS = 8
"""The number of hosts that leases are formatted for: more than the hosts, fewer than a partial read covers."""
SPARE_ENTRIES = 2
"""More places in an index than resources, so that a removed lease may be created at another place."""
INDEX_AT = 1
OLDEST = (delta.VERSION, 0)
"""Version and flags of a lockspace."""
ONE_PATH = DiskNames()


def many_hosts(geometry: Geometry) -> int:
    """The least number of hosts for which a partial read does not cover all blocks of a lease."""
    return GLANCED_AT_TOGETHER_BYTES // geometry.sector_bytes - 1


def _lockspace(geometry: Geometry, space: Space, made: tuple[int, int] = OLDEST) -> bytes:
    version, flags = made
    area, first = areas.lockspace_area(geometry, space.name, 1, version=version, flags=flags)
    return first + area[len(first) :]


def _leases(space: Space, names: DiskNames) -> dict[str, str]:
    return {lease: of for disk in space.resources for lease, of in names.leases(disk).items()}


def _resource_of(space: Space, names: DiskNames) -> Callable[[str], str]:
    """The resource by the name of its lease; other leases belong to no resource."""
    known = _leases(space, names)
    return lambda name: known.get(name, "")


def fixed(world: World, geometry: Geometry, space: Space, hosts: int, checkers: Checkers) -> Volume:
    size = geometry.align_bytes
    disk = SharedDisk(world, space.name, size * (1 + len(space.resources)), geometry.sector_bytes)
    disk.content[:size] = _lockspace(geometry, space)
    offsets = {}
    for number, resource in enumerate(space.resources, start=1):
        offsets[resource] = number * size
        leader = areas.fresh_leader(geometry, space.name, lease_of(resource), hosts)
        disk.content[number * size : (number + 1) * size] = areas.lease_area(leader)
    disk.leader_offsets = frozenset(offsets.values())
    checkers.watch_fixed(disk, offsets)
    return Volume(space.name, disk, None, space.name, hosts)


def directory(
    world: World,
    geometry: Geometry,
    space: Space,
    hosts: int,
    number: int,
    checkers: Checkers,
    made: tuple[int, int] = OLDEST,
    names: DiskNames = ONE_PATH,
) -> Volume:
    disk = SharedDisk(world, space.name, 0, geometry.sector_bytes, number)
    shared = SharedDirectory(disk, geometry.align_bytes)
    shared.link(space.name, shared.make(_lockspace(geometry, space, made)), "")
    resource_of = _resource_of(space, names)

    def linked(name: str, file: File, who: str) -> None:
        if resource_of(name):
            world.record(who, f"makes the lease of {resource_of(name)}")
            checkers.leases.named(checkers.leases.made(disk.name, resource_of(name), file.offset))
            disk.leader_offsets |= {file.offset}

    shared.on_linked = linked
    shared.on_unlinked = lambda name, _, who: checkers.leases.unnamed(disk.name, resource_of(name), who)
    checkers.watch(disk)
    return Volume(f"/{space.name}", disk, shared, f"/{space.name}/{space.name}", hosts)


def with_leases(volume: Volume, geometry: Geometry, space: Space) -> Volume:
    """A directory in which a program of sanlock's clients has made the leases: the daemon makes none for them."""
    assert volume.directory is not None
    for resource in space.resources:
        leader = areas.fresh_leader(geometry, space.name, lease_of(resource), volume.lease_hosts)
        volume.directory.link(lease_of(resource), volume.directory.make(areas.lease_area(leader)), "a client")
    return volume


def device(
    world: World,
    geometry: Geometry,
    space: Space,
    hosts: int,
    number: int,
    checkers: Checkers,
    made: tuple[int, int] = OLDEST,
    names: DiskNames = ONE_PATH,
) -> Volume:
    entries = len(_leases(space, names)) + SPARE_ENTRIES
    size = geometry.align_bytes
    disk = SharedDisk(world, space.name, size * (INDEX_AT + 2 + entries), geometry.sector_bytes, number)
    header = areas.rindex_header(geometry, space.name, INDEX_AT * size, entries)
    internal = areas.fresh_leader(geometry, space.name, INTERNAL_LEASE_NAME, hosts)
    image = _lockspace(geometry, space, made) + areas.rindex_area(header) + areas.lease_area(internal)
    disk.content[: len(image)] = image
    disk.leader_offsets = frozenset((INDEX_AT + 1 + n) * size for n in range(entries + 1))
    checkers.watch_index(disk, _resource_of(space, names))
    return Volume(f"/dev/{space.name}", disk, None, f"/dev/{space.name}", hosts)


def below_mount_point(
    world: World,
    geometry: Geometry,
    space: Space,
    hosts: int,
    host: str,
    number: int,
    names: DiskNames = ONE_PATH,
) -> SharedDirectory:
    """A local directory with leases that protect nothing: they were created before the shared one was mounted over it."""
    disk = SharedDisk(world, f"{host}-below-{space.name}", 0, geometry.sector_bytes, number)
    local = SharedDirectory(disk, geometry.align_bytes)
    for lease in _leases(space, names):
        leader = areas.fresh_leader(geometry, space.name, lease, hosts)
        local.link(lease, local.make(areas.lease_area(leader)), host)
    return local

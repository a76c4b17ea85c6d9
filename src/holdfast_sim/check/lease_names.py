"""Which lease belongs to the name of a resource at any moment, derived from every write that takes effect on storage.

A lease may be created, removed, and created again at another place. Writes to a lease that has lost its name, or has not
got one yet, are recorded but belong to no resource. Names come from a fixed list, a directory, or a resource index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.ondisk import rindex
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.rindex import RindexHeader
from holdfast_sim.storage.disk import SharedDisk

INDEX_AREA = 1
"""The resource index is the area after the lockspace."""


@dataclass(eq=False)
class LeasePlace:
    """One lease, from its creation until another one is created in its place, with the state that was observed."""

    disk: str
    resource: str
    offset: int
    begins_at: int = 0
    """The version in the leader when it was created; the next owner has a greater one."""
    decided: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    mbal: dict[int, int] = field(default_factory=dict)
    leader: Leader | None = None
    """The last leader record that was written."""
    is_restored: bool = False
    """An older copy was put there: what was seen to land since it was made says nothing of what lands now."""
    was_restored: bool = False
    """An older copy was put there once: a host that remembers the newer state may write a block of that at any time."""


OnUnnamed = Callable[[LeasePlace, str], None]
"""(lease that has just lost its name, process that removed the name)"""


class NamedLeases:
    """The leases of all disks. ``resource_of`` maps a lease's own name to its resource."""

    def __init__(self, geometry: Geometry, on_unnamed: OnUnnamed) -> None:
        self._geometry = geometry
        self._on_unnamed = on_unnamed
        self._named: dict[tuple[str, str], LeasePlace] = {}
        self._by_area: dict[tuple[str, int], LeasePlace] = {}

    def of(self, disk: str, resource: str) -> LeasePlace | None:
        return self._named.get((disk, resource))

    def at(self, disk: str, area: int) -> LeasePlace | None:
        return self._by_area.get((disk, area))

    def named_on(self, disk: str) -> list[LeasePlace]:
        """Every lease of a disk that its name leads to now."""
        return [place for (on, _), place in self._named.items() if on == disk]

    def is_named(self, place: LeasePlace) -> bool:
        return self._named.get((place.disk, place.resource)) is place

    def made(self, disk: str, resource: str, offset: int, begins_at: int = 0) -> LeasePlace:
        """Record a lease that has never had an owner at this place; it replaces the one before it."""
        before = self.at(disk, offset // self._geometry.align_bytes)
        place = LeasePlace(disk, resource, offset, begins_at)
        if before is not None and before.resource == resource and self.is_named(before):
            self._named[disk, resource] = place  # its entry did not change
        self._by_area[disk, offset // self._geometry.align_bytes] = place
        return place

    def named(self, place: LeasePlace) -> None:
        self._named[place.disk, place.resource] = place

    def unnamed(self, disk: str, resource: str, who: str) -> None:
        place = self._named.pop((disk, resource), None)
        if place is not None:
            self._on_unnamed(place, who)

    def index_landed(self, disk: SharedDisk, resource_of: Callable[[str], str], who: str) -> None:
        """Apply a write to the index: entries may have been added and removed."""
        begin = INDEX_AREA * self._geometry.align_bytes
        raw = bytes(disk.content[begin : begin + self._geometry.align_bytes])
        header = RindexHeader.decode(raw)
        assert isinstance(header, RindexHeader), header
        listed = {
            resource_of(entry.name.text): rindex.slot_offset_bytes(self._geometry, begin, number)
            for number, entry in rindex.entries(header, raw)
        }
        for name, place in list(self._named.items()):
            if name[0] == disk.name and listed.get(place.resource) != place.offset and place.resource:
                self.unnamed(disk.name, place.resource, who)
        for resource, offset in listed.items():
            there = self.at(disk.name, offset // self._geometry.align_bytes)
            if there is not None and there.resource == resource:
                self.named(there)

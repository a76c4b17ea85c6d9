"""Which lease the name of a resource leads to, at any moment: by storage alone, as an observer of every landing sees it.

A lease may be made, taken out, and made again elsewhere; what lands on one that has lost its name, or not got it yet,
is seen but concerns no resource. Names come from a fixed list, from a directory, or from a resource index.
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
"""Behind the lockspace."""


@dataclass(eq=False)
class LeasePlace:
    """One lease, from when it was made until another one is made in its place, and what was seen of it."""

    disk: str
    resource: str
    offset: int
    begins_at: int = 0
    """The version that it goes on from."""
    decided: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    mbal: dict[int, int] = field(default_factory=dict)
    leader: Leader | None = None
    """What landed there last."""


OnUnnamed = Callable[[LeasePlace, str], None]
"""(the lease that has just lost its name, who took it away)"""


class NamedLeases:
    """Of all disks. ``resource_of`` tells what a lease is about by its own name."""

    def __init__(self, geometry: Geometry, on_unnamed: OnUnnamed) -> None:
        self._geometry = geometry
        self._on_unnamed = on_unnamed
        self._named: dict[tuple[str, str], LeasePlace] = {}
        self._by_area: dict[tuple[str, int], LeasePlace] = {}

    def of(self, disk: str, resource: str) -> LeasePlace | None:
        return self._named.get((disk, resource))

    def at(self, disk: str, area: int) -> LeasePlace | None:
        return self._by_area.get((disk, area))

    def is_named(self, place: LeasePlace) -> bool:
        return self._named.get((place.disk, place.resource)) is place

    def made(self, disk: str, resource: str, offset: int, begins_at: int = 0) -> LeasePlace:
        """A lease that was never owned is there from now on, whatever was there before."""
        before = self.at(disk, offset // self._geometry.align_bytes)
        place = LeasePlace(disk, resource, offset, begins_at)
        if before is not None and before.resource == resource and self.is_named(before):
            self._named[disk, resource] = place  # its entry was there all the time
        self._by_area[disk, offset // self._geometry.align_bytes] = place
        return place

    def named(self, place: LeasePlace) -> None:
        self._named[place.disk, place.resource] = place

    def unnamed(self, disk: str, resource: str, who: str) -> None:
        place = self._named.pop((disk, resource), None)
        if place is not None:
            self._on_unnamed(place, who)

    def index_landed(self, disk: SharedDisk, resource_of: Callable[[str], str], who: str) -> None:
        """Entries have come and gone."""
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

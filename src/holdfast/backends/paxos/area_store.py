"""Leases wherever sanlock's clients say: a path and a byte offset come with each request (sanlock-socket.md 2.3).

Such a lease is never made on demand, and never removed by us: its owner is the program that wrote it there (vdsm,
lvmlockd, `sanlock client init`). What stands at its place decides its sector and area size, whatever those of the lockspace
are. No lease but those that were asked for is known here.

A lease beside the lockspace's file is refused while their directory is not mounted: libvirt's plugin makes its leases there,
and below the mount point it would make one that no other host sees.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import NamedTuple

from holdfast.backends.paxos.lease_store import (
    Finding,
    Found,
    Removed,
    StorageFailed,
    Unusable,
    WithoutIndex,
    disk_in,
    lockspace_facts,
    opened,
    strayed,
)
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.membership import Membership
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.lease_files import LeaseDisk, LeaseStorage
from holdfast.system.block_io.offload import Job

AREAS_MAX = 100_000
"""Places that are remembered; the oldest is forgotten first. One is needed while its lease is being taken or adopted."""


class Area(NamedTuple):
    """Where a client says that a lease is; `wanted_lver` not 0: only that version of it is to be acquired."""

    path: str
    offset_bytes: int
    wanted_lver: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.offset_bytes}"


def area_of(place: str) -> Area | None:
    """The area whose `str` that is, as a journal has it; None if it is none."""
    path, _, offset = place.rpartition(":")
    return Area(path, int(offset)) if path and offset.isascii() and offset.isdigit() else None


class AreaStore(WithoutIndex):
    """Leases at places that are said before they are asked for, by name."""

    lists_all = False

    def __init__(self, storage: LeaseStorage) -> None:
        self._storage = storage
        self._areas: dict[str, Area] = {}

    def put(self, name: str, area: Area) -> None:
        """The lease of that name is looked for there from now on. Not while this host has it or is taking it."""
        self._areas.pop(name, None)
        self._areas[name] = area
        if len(self._areas) > AREAS_MAX:
            del self._areas[next(iter(self._areas))]

    def wants_version(self, name: str) -> bool:
        """Whether only one version of that lease is to be acquired."""
        area = self._areas.get(name)
        return area is not None and area.wanted_lver != 0

    def forget(self, name: str) -> None:
        """Nobody here has the lease of that name any more."""
        self._areas.pop(name, None)

    def place(self, name: str) -> str:
        area = self._areas.get(name)
        return name if area is None else str(area)

    async def find(self, job: Job, member: Membership, name: str) -> Finding:
        area = self._areas.get(name)
        if area is None:
            return Unusable(name, "no client has said where it is")
        return await self.open(job, member, name, area)

    async def open(self, job: Job, member: Membership, name: str, area: Area) -> Finding:
        """Open a lease at a place that need not be the one that is remembered."""
        place = str(area)
        disk = await self._storage.open(area.path, job=job)
        if isinstance(disk, IoFailed):
            return StorageFailed(place, disk)
        if (away := _below_mount_point(member, area, disk)) is not None:
            job.disk(disk).close()
            return away
        finding = await opened(job, disk, area.offset_bytes, member, name, place, None)
        if isinstance(finding, Removed) and await job.disk(disk).is_named():
            finding = Unusable(place, str(_CLEARED), _CLEARED)
        if isinstance(finding, Unusable) and isinstance(finding.cause, IoFailed):
            finding = StorageFailed(place, finding.cause)
        if not isinstance(finding, Found):
            job.disk(disk).close()
            return finding
        return replace(finding, wanted_lver=area.wanted_lver)

    async def names(self, member: Membership) -> list[str] | Unusable | StorageFailed:
        return sorted(self._areas)

    async def remove(
        self, member: Membership, found: Found, name: str, leader: Leader
    ) -> Unusable | StorageFailed | None:
        return Unusable(found.place, "it belongs to the program that has made it")

    async def still_there(self, member: Membership, found: Found, name: str, job: Job | None = None) -> bool:
        return await disk_in(job, found.disk).is_named()


def _below_mount_point(member: Membership, area: Area, disk: LeaseDisk) -> Unusable | None:
    """The refusal for a lease beside the lockspace's file, on another file system than the one that was joined."""
    directory = os.path.dirname(area.path)
    joined = lockspace_facts(member)
    if joined is None or disk.facts.is_block_device or os.path.dirname(joined.path) != directory:
        return None
    return strayed(member, directory, disk.facts.file_system)


GONE = StorageFailed("the lease", IoFailed(errno.ENOENT))
"""Its path leads to another file by now."""
_CLEARED = Malformed("leader", Reason.CLEARED, "a cleared lease", "a lease")

"""A lockspace's area: where the delta leases are, how a new one is made, how an old one is found.

A path, an offset and a name are enough to open a lockspace: its first record says the sizes.
Initialising takes two writes, and the area is a lockspace only after the second: until then host 1's record
has no magic number, so a crash leaves an area that every host refuses instead of one that is half old. It
is not locked against anything, so it refuses an area that already is a lockspace unless the caller says
that this was proven harmless.
"""

import errno
from dataclasses import dataclass

from holdfast.ondisk import areas, delta, leader
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_4096, Geometry
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.ports import Disk
from holdfast.protocol.types import HostId, IoFailed

# Initialising writes a whole area, which may be slow where the storage allocates it.
INIT_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class LockspaceArea:
    """A lockspace on a disk, and the access to its sectors."""

    disk: Disk
    offset_bytes: int
    geometry: Geometry
    space_name: str
    version: int = delta.VERSION
    """Of host 1's record when the area was opened. All records of one lockspace are made in one version."""

    @property
    def lease_version(self) -> int:
        """Of leases that are made in this lockspace."""
        return leader.version_beside(self.version)

    async def read_record(self, host_id: HostId, timeout_s: float) -> DeltaLease | Malformed | IoFailed:
        """Read and verify the record of one host id."""
        raw = await self.read_sector(host_id, timeout_s)
        return raw if isinstance(raw, IoFailed) else self.decode(host_id, raw)

    async def read_sector(self, host_id: HostId, timeout_s: float) -> bytes | IoFailed:
        """The whole sector of one host id, with its bitmap."""
        at = self.offset_bytes + self.geometry.delta_offset_bytes(host_id)
        return await self.disk.read(at, self.geometry.sector_bytes, timeout_s=timeout_s)

    def decode(self, host_id: HostId, raw: bytes) -> DeltaLease | Malformed:
        record = DeltaLease.decode(raw)
        if isinstance(record, Malformed):
            return record
        return record.verify(self.space_name, host_id) or record

    async def read_sectors(self, hosts: int, timeout_s: float) -> bytes | IoFailed:
        """Read the sectors of hosts 1..hosts in one request."""
        length = self.geometry.delta_offset_bytes(hosts) + self.geometry.sector_bytes
        return await self.disk.read(self.offset_bytes, length, timeout_s=timeout_s)

    def busy(self, host_id: HostId) -> IoFailed | None:
        """The refusal while a write of ours to that sector is in flight."""
        at = self.offset_bytes + self.geometry.delta_offset_bytes(host_id)
        in_flight = self.disk.in_flight(at, self.geometry.sector_bytes)
        return IoFailed(errno.EBUSY, in_flight=True) if in_flight else None

    async def write_sector(self, host_id: HostId, sector: bytes, timeout_s: float) -> IoFailed | None:
        at = self.offset_bytes + self.geometry.delta_offset_bytes(host_id)
        return await self.disk.write(at, sector, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True)
class Corrupt:
    """The sector holds no usable record."""

    found: Malformed


@dataclass(frozen=True, slots=True)
class Initialised:
    """The area is a lockspace now."""

    geometry: Geometry


@dataclass(frozen=True, slots=True)
class AlreadyThere:
    """A lockspace is there already, and overwriting it was not asked for: its hosts would lose their
    leases. It may be one of a newer version, that can't be read.
    """

    first: DeltaLease | Malformed


async def init(
    disk: Disk,
    offset_bytes: int,
    geometry: Geometry,
    space_name: str,
    *,
    io_timeout_s: int = areas.IO_TIMEOUT_DEFAULT_S,
    generation: int = 0,
    overwrite: bool = False,
) -> Initialised | AlreadyThere | IoFailed:
    """Make an area a lockspace. Valid only after the second write, so a crash leaves nothing half new.

    `generation`: what its host ids count from; sanlock starts at 0, and then a host that joins repeats a generation of the
    lockspace that was there before (safety.md A3).
    """
    if not geometry.is_aligned(offset_bytes):
        return IoFailed(errno.EINVAL)
    if not overwrite:
        present = await disk.read(offset_bytes, SECTOR_4096, timeout_s=INIT_TIMEOUT_S)
        if isinstance(present, IoFailed):
            return present
        first = DeltaLease.decode(present)
        if isinstance(first, DeltaLease) or first.is_newer:
            return AlreadyThere(first)
    area, first_sector = areas.lockspace_area(geometry, space_name, io_timeout_s, generation)
    for content in (area, first_sector):
        failed = await disk.write(offset_bytes, content, timeout_s=INIT_TIMEOUT_S)
        if failed is not None:
            return failed
    return Initialised(geometry)


async def open_area(
    disk: Disk, offset_bytes: int, space_name: str, timeout_s: float
) -> LockspaceArea | Corrupt | IoFailed:
    """Find out the sizes of an existing lockspace from its first record. One whose records may not be written plainly is
    refused: to look at it, decode it.
    """
    raw = await disk.read(offset_bytes, SECTOR_4096, timeout_s=timeout_s)
    if isinstance(raw, IoFailed):
        return raw
    first = DeltaLease.decode(raw)
    if isinstance(first, Malformed):
        return Corrupt(first)
    area = LockspaceArea(disk, offset_bytes, first.geometry, space_name, first.version)
    fault = first.verify(space_name, 1) or first.write_fault()
    return Corrupt(fault) if fault else area

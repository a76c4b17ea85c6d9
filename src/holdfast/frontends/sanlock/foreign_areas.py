"""Areas at places that sanlock's clients name, of any lockspace: opened, their sizes found out, read (sanlock-disk.md 1).

No lockspace has to be joined for that. Every failure is a `Result`, or a negative errno value that `Result` has no name for.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from holdfast.frontends.sanlock.engine_ports import ForeignAreas
from holdfast.frontends.sanlock.join_results import of_record
from holdfast.frontends.sanlock.lease_results import of_malformed
from holdfast.ondisk import geometry as geometries
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_4096, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.disk_file import DiskFacts
from holdfast.system.block_io.lease_files import LeaseDisk
from holdfast.wire.sanlock.flags import SIZE_FLAGS, SIZES
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import Disk

READ_TIMEOUT_S = 10.0
"""sanlock's default io_timeout."""
_SIZES_OF = {int(flags): sizes for sizes, flags in SIZES.items()}
_OF_ERRNO = {errno.ETIMEDOUT: Result.AIO_TIMEOUT, errno.ENOTBLK: Result.EINVAL}


class Refused(Exception):
    """The command ends with this code."""

    def __init__(self, result: int) -> None:
        super().__init__(result)
        self.result = result


def code_of(failed: IoFailed) -> int:
    """A failed request: sanlock answers with the kernel's own number."""
    return _OF_ERRNO.get(failed.errno, -failed.errno)


def done(failed: IoFailed | None) -> None:
    """Raises `Refused` for a write that failed."""
    if failed is not None:
        raise Refused(code_of(failed))


@asynccontextmanager
async def opened(
    areas: ForeignAreas, path: str, *, writable: bool = False, missing: int | None = None
) -> AsyncIterator[LeaseDisk]:
    """An open path; raises `Refused` with `missing`, or the errno value, if it can't be opened."""
    disk = await areas.open(path, writable=writable) if path else IoFailed(errno.ENOENT)
    if isinstance(disk, IoFailed):
        timed_out = disk.errno == errno.ETIMEDOUT
        raise Refused(code_of(disk) if missing is None or timed_out else missing)
    try:
        yield disk
    finally:
        disk.close()


async def read(disk: LeaseDisk, offset_bytes: int, length_bytes: int) -> bytes:
    raw = await disk.read(offset_bytes, length_bytes, timeout_s=READ_TIMEOUT_S)
    if isinstance(raw, IoFailed):
        raise Refused(code_of(raw))
    return raw


# --- sizes ---


def default_geometry(facts: DiskFacts) -> Geometry:
    """Of a new area whose client says no sizes."""
    large = facts.is_block_device and facts.logical_sector_bytes == SECTOR_4096
    return geometries.GEOMETRIES[-1] if large else geometries.DEFAULT


def geometry_of_flags(flags: int) -> Geometry | None:
    """The sizes that a client says; None if it says none. Raises `Refused` (-1) for half of a pair, or no pair."""
    if not flags & SIZE_FLAGS:
        return None
    sizes = _SIZES_OF.get(flags & SIZE_FLAGS)
    found = geometries.of(*sizes) if sizes is not None else None
    if not isinstance(found, Geometry):
        raise Refused(Result.FAILED)
    return found


def size_flags(geometry: Geometry) -> int:
    return int(SIZES[geometry.sector_bytes, geometry.align_bytes])


def new_geometry(flags: int, facts: DiskFacts) -> Geometry:
    return geometry_of_flags(flags) or default_geometry(facts)


# --- records ---


class LockspaceThere(NamedTuple):
    """A lockspace by its first record, and the record of the host that was asked for."""

    first: DeltaLease
    record: DeltaLease
    sector: bytes

    @property
    def geometry(self) -> Geometry:
        return self.first.geometry


async def read_lockspace(disk: LeaseDisk, place: Disk, name: str, host_id: int) -> LockspaceThere:
    """Raises `Refused`; `name` empty: any."""
    raw = await read(disk, place.offset_bytes, SECTOR_4096)
    first = DeltaLease.decode(raw)
    if isinstance(first, Malformed):
        raise Refused(of_record(first))
    if host_id > first.geometry.hosts_max:
        raise Refused(Result.LEADER_MAGIC)  # there is no record for it
    at = place.offset_bytes + first.geometry.delta_offset_bytes(host_id)
    sector = await read(disk, at, first.geometry.sector_bytes)
    record = DeltaLease.decode(sector)
    if isinstance(record, Malformed):
        raise Refused(of_record(record))
    if name and not record.space_name.says(name):
        raise Refused(Result.LEADER_LOCKSPACE)
    return LockspaceThere(first, record, sector)


async def read_leader(
    disk: LeaseDisk,
    place: Disk,
    space: str | None,
    name: str | None,
    *,
    nothing: Result = Result.LEADER_MAGIC,
) -> Leader:
    """Raises `Refused`, with `nothing` where there was never a lease; a name that is None matches any."""
    leader = Leader.decode(await read(disk, place.offset_bytes, SECTOR_4096))
    if isinstance(leader, Malformed):
        raise Refused(nothing if leader.reason is Reason.MAGIC else of_malformed(leader))
    if space is not None and not leader.space_name.says(space):
        raise Refused(Result.LEADER_LOCKSPACE)
    if name is not None and not leader.resource_name.says(name):
        raise Refused(Result.LEADER_RESOURCE)
    return leader

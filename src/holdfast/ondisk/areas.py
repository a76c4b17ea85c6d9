"""What freshly initialised areas look like, byte by byte, as sanlock would write them.

A lockspace area becomes valid only with its second write: the whole area is written with host 1's magic
number zero, and then host 1's sector alone is written as it shall be. A crash in between leaves an area
that nobody accepts, instead of one whose tail still belongs to an older lockspace. A lease area is written
at once.

These are pure images. Whether an area may be overwritten is for the caller to prove.
"""

import struct

from holdfast.ondisk import delta, leader
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.record_layout import padded_sector
from holdfast.ondisk.request import NO_REQUEST
from holdfast.ondisk.rindex import INTERNAL_LEASE_NAME, SPACE_NAME_BYTES_MAX, RindexHeader

IO_TIMEOUT_DEFAULT_S = 10
_MAGIC = struct.Struct("<I")


def fresh_delta_lease(
    geometry: Geometry,
    space_name: str,
    io_timeout_s: int = IO_TIMEOUT_DEFAULT_S,
    generation: int = 0,
    *,
    version: int = delta.VERSION,
    flags: int = 0,
) -> DeltaLease:
    """The record of a host id that nobody has used yet. `generation`: above those of every area that was there before.
    `flags`: beside the align flag.
    """
    return DeltaLease(
        geometry=geometry,
        space_name=PaddedName.of(space_name),
        io_timeout_s=io_timeout_s,
        generation=generation,
        version=version,
        flags=geometry.align_flag | flags,
    )


def lockspace_area(
    geometry: Geometry,
    space_name: str,
    io_timeout_s: int = IO_TIMEOUT_DEFAULT_S,
    generation: int = 0,
    *,
    version: int = delta.VERSION,
    flags: int = 0,
) -> tuple[bytes, bytes]:
    """The two writes that initialise a lockspace, both at the area's offset: whole area, then sector 0."""
    sector = fresh_delta_lease(
        geometry, space_name, io_timeout_s, generation, version=version, flags=flags
    ).sector()
    invalid_first = bytes(_MAGIC.size) + sector[_MAGIC.size :]
    area = invalid_first + sector * (geometry.hosts_max - 1)
    return area.ljust(geometry.align_bytes, b"\0"), sector


def fresh_leader(
    geometry: Geometry,
    space_name: str,
    resource_name: str,
    num_hosts: int | None = None,
    *,
    version: int = leader.VERSION,
) -> Leader:
    """The leader of a lease that was never owned, for hosts 1..num_hosts (all, when not given; never
    more). `version`: see `leader.version_beside`.
    """
    hosts = geometry.hosts_max if num_hosts is None else min(num_hosts, geometry.hosts_max)
    return Leader(
        geometry=geometry,
        space_name=PaddedName.of(space_name),
        resource_name=PaddedName.of(resource_name),
        num_hosts=hosts,
        max_hosts=geometry.hosts_max,
        version=version,
    )


def lease_area(record: Leader) -> bytes:
    """The one write that initialises a lease: leader, empty request record, no host blocks."""
    return _lease_area(record.encode(), record.geometry)


def cleared_lease_area(record: Leader) -> bytes:
    """The one write that clears a lease: readers then find the magic number of a cleared lease."""
    return _lease_area(record.encode_cleared(), record.geometry)


def _lease_area(record: bytes, geometry: Geometry) -> bytes:
    first = padded_sector(record, geometry.sector_bytes) + NO_REQUEST.sector(geometry.sector_bytes)
    return first.ljust(geometry.align_bytes, b"\0")


def rindex_area(header: RindexHeader) -> bytes:
    """An empty index; the lease that protects it is `lease_area(internal_leader(header))`, one area
    behind.
    """
    return header.sector().ljust(header.geometry.align_bytes, b"\0")


def rindex_header(
    geometry: Geometry, space_name: str, rindex_offset_bytes: int, entries_max: int
) -> RindexHeader:
    """A header for an index at that offset, with no more entries than the geometry allows."""
    return RindexHeader(
        geometry=geometry,
        rindex_offset_bytes=rindex_offset_bytes,
        space_name=PaddedName.of(space_name, SPACE_NAME_BYTES_MAX),
        entries_max=min(entries_max, geometry.rindex_entries_max),
    )


def internal_leader(header: RindexHeader) -> Leader:
    """The fresh leader of the lease that protects this index."""
    return fresh_leader(header.geometry, header.space_name.text, INTERNAL_LEASE_NAME)

"""The resource index: names of resources and the places of their leases, in one area.

    rindex_offset              header (sector 0), entries of 64 bytes from sector 1 on
    rindex_offset + 1 * align  a paxos lease named "rindex_lease" that protects the index
    rindex_offset + (2+i)*align  the lease of entry i

No checksum protects the index, so every value is checked against the place it describes. An entry is free
when its offset is 0 and its name is empty.

sanlock computes slot offsets in signed 32 bits when it creates, deletes or looks up by name: for i * align
>= 2 GiB it arrives elsewhere. Here offsets are exact, and `entries_shared_max` says how many entries both
programs agree upon: an entry beyond that would be found by us and missed, or worse, misplaced, by a sanlock
host.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from holdfast.ondisk import geometry as geometries
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.malformed import Malformed, Reason, too_short
from holdfast.ondisk.padded_name import NAME_BYTES, NO_NAME, PaddedName
from holdfast.ondisk.record_layout import U64_MAX, padded_sector, range_fault

MAGIC = 0x01042018
VERSION = 0x00010002
_MAJOR_SHIFT = 16
_HEADER = struct.Struct("<IIIIIIQ48s")
HEADER_BYTES = _HEADER.size
_ENTRY = struct.Struct("<QII48s")
ENTRY_BYTES = _ENTRY.size

INTERNAL_LEASE_NAME = "rindex_lease"
ENTRIES_DEFAULT = 4096
# The header check of sanlock compares this name as a C string: without its NUL the comparison runs on.
SPACE_NAME_BYTES_MAX = NAME_BYTES - 1

_SIGNED_32_BIT_LIMIT = 1 << 31
_U32_MAX = 0xFFFF_FFFF
_RECORD = "rindex header"
_ENTRY_RECORD = "rindex entry"
_AREAS_BEFORE_SLOTS = 2


def slot_offset_bytes(geometry: Geometry, rindex_offset_bytes: int, index: int) -> int:
    """Where on the path the lease of entry `index` is."""
    if not 0 <= index < geometry.rindex_entries_max:
        raise ValueError(f"entry {index} is not within 0..{geometry.rindex_entries_max - 1}")
    return rindex_offset_bytes + (_AREAS_BEFORE_SLOTS + index) * geometry.align_bytes


def internal_lease_offset_bytes(geometry: Geometry, rindex_offset_bytes: int) -> int:
    """Where on the path the lease that protects the index is."""
    return rindex_offset_bytes + geometry.align_bytes


def entry_offset_bytes(geometry: Geometry, index: int) -> int:
    """Where within the index area entry `index` is."""
    if not 0 <= index < geometry.rindex_entries_max:
        raise ValueError(f"entry {index} is not within 0..{geometry.rindex_entries_max - 1}")
    return geometry.sector_bytes + index * ENTRY_BYTES


def entries_shared_max(geometry: Geometry) -> int:
    """How many entries sanlock hosts can use with us: those whose i * align fits into signed 32 bits."""
    return min(geometry.rindex_entries_max, _SIGNED_32_BIT_LIMIT // geometry.align_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RindexHeader:
    """Sector 0 of a resource index."""

    geometry: Geometry
    rindex_offset_bytes: int
    space_name: PaddedName
    entries_max: int = ENTRIES_DEFAULT
    version: int = VERSION
    flags: int = -1
    unused: int = 0

    def __post_init__(self) -> None:
        if self.flags < 0:
            object.__setattr__(self, "flags", self.geometry.rindex_flag)

    @classmethod
    def decode(cls, raw: bytes) -> Self | Malformed:
        if len(raw) < HEADER_BYTES:
            return too_short(_RECORD, raw, HEADER_BYTES)
        magic, version, flags, sector_bytes, entries_max, unused, offset, space = _HEADER.unpack_from(raw, 0)
        if magic != MAGIC:
            return Malformed(_RECORD, Reason.MAGIC, f"{magic:#010x}", f"{MAGIC:#010x}")
        if version >> _MAJOR_SHIFT != VERSION >> _MAJOR_SHIFT:
            reason = Reason.NEWER if version > VERSION else Reason.VERSION
            return Malformed(_RECORD, reason, f"{version:#010x}", f"{VERSION:#010x}")
        geometry = geometries.of_rindex(_RECORD, sector_bytes, flags)
        if isinstance(geometry, Malformed):
            return geometry
        header = cls(
            geometry=geometry,
            rindex_offset_bytes=offset,
            space_name=PaddedName(space),
            entries_max=entries_max,
            version=version,
            flags=flags,
            unused=unused,
        )
        return header.fault() or header

    def encode(self) -> bytes:
        if fault := self.fault():
            raise ValueError(str(fault))
        return _HEADER.pack(
            MAGIC,
            self.version,
            self.flags,
            self.geometry.sector_bytes,
            self.entries_max,
            self.unused,
            self.rindex_offset_bytes,
            self.space_name.field,
        )

    def sector(self) -> bytes:
        return padded_sector(self.encode(), self.geometry.sector_bytes)

    def verify(self, space_name: str, rindex_offset_bytes: int) -> Malformed | None:
        """Check that this index is of that lockspace and describes the place it was read from."""
        if not self.space_name.says(space_name):
            return Malformed(_RECORD, Reason.LOCKSPACE_NAME, repr(self.space_name.text), repr(space_name))
        if self.rindex_offset_bytes != rindex_offset_bytes:
            found, expected = str(self.rindex_offset_bytes), str(rindex_offset_bytes)
            return Malformed(_RECORD, Reason.OFFSET, found, expected)
        return None

    def fault(self) -> Malformed | None:
        return range_fault(
            _RECORD,
            (
                ("max_resources", self.entries_max, 1, self.geometry.rindex_entries_max),
                ("rx_offset", self.rindex_offset_bytes, 0, U64_MAX),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RindexEntry:
    """One name and the offset of its lease. Lookups compute the offset from the entry's index instead."""

    offset_bytes: int = 0
    name: PaddedName = NO_NAME
    flags: int = 0
    unused: int = 0

    @classmethod
    def decode(cls, raw: bytes) -> Self | Malformed:
        if len(raw) < ENTRY_BYTES:
            return too_short(_ENTRY_RECORD, raw, ENTRY_BYTES)
        offset_bytes, flags, unused, name = _ENTRY.unpack_from(raw, 0)
        return cls(offset_bytes=offset_bytes, name=PaddedName(name), flags=flags, unused=unused)

    def encode(self) -> bytes:
        fault = range_fault(
            _ENTRY_RECORD, (("offset", self.offset_bytes, 0, U64_MAX), ("flags", self.flags, 0, _U32_MAX))
        )
        if fault:
            raise ValueError(str(fault))
        return _ENTRY.pack(self.offset_bytes, self.flags, self.unused, self.name.field)

    @property
    def is_free(self) -> bool:
        return self.offset_bytes == 0 and not self.name.text


def entries(header: RindexHeader, area: bytes) -> Iterator[tuple[int, RindexEntry]]:
    """The used entries of an index with their numbers; what was not read of the area is not there."""
    start = header.geometry.sector_bytes
    for index in range(header.entries_max):
        begin = start + index * ENTRY_BYTES
        entry = RindexEntry.decode(area[begin : begin + ENTRY_BYTES])
        if isinstance(entry, Malformed):
            return
        if not entry.is_free:
            yield index, entry


def lowest_free(header: RindexHeader, area: bytes, entries_max: int) -> int | None:
    """The first free entry among the first `entries_max`, or None when the index is full."""
    start = header.geometry.sector_bytes
    for index in range(min(header.entries_max, entries_max)):
        begin = start + index * ENTRY_BYTES
        entry = RindexEntry.decode(area[begin : begin + ENTRY_BYTES])
        if isinstance(entry, RindexEntry) and entry.is_free:
            return index
    return None


def sector_with_entry(header: RindexHeader, area: bytes, index: int, entry: RindexEntry) -> tuple[int, bytes]:
    """The one sector to write, as (offset within the area, bytes), when entry `index` becomes `entry`."""
    at = entry_offset_bytes(header.geometry, index)
    sector_bytes = header.geometry.sector_bytes
    begin = at - at % sector_bytes
    sector = bytearray(area[begin : begin + sector_bytes])
    if len(sector) != sector_bytes:
        raise ValueError(f"the area read holds no whole sector for entry {index}")
    sector[at - begin : at - begin + ENTRY_BYTES] = entry.encode()
    return begin, bytes(sector)

"""The 200 bytes that the leader of a paxos lease and a delta lease have in common, and their common checks.

    off size field               off size field               off size field
      0    4 magic                32    8 owner_id            168    4 checksum (over bytes 0..167)
      4    4 version              40    8 owner_generation    172    2 unused
      8    4 flags                48    8 lver                174    2 io_timeout      } outside
     12    4 sector_size          56   48 space_name          176    8 write_id        } the
     16    8 num_hosts           104   48 resource_name       184    8 write_generation} checksum
     24    8 max_hosts           152    8 timestamp           192    8 write_timestamp }
                                 160    8 unused

All integers are little endian. `leader` and `delta` give these fields their two meanings; this module knows
only where they are, what the first bytes must say, and that the checksum must hold.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.ondisk.checksum import sanlock_crc32c
from holdfast.ondisk.malformed import Malformed, Reason, too_short

RECORD_BYTES = 200
COVERED_BYTES = 168
_BEFORE_CHECKSUM = struct.Struct("<IIIIQQQQQ48s48sQQ")
_CHECKSUM = struct.Struct("<I")
_AFTER_CHECKSUM = struct.Struct("<HHQQQ")
_MAJOR_SHIFT = 16

U16_MAX = 0xFFFF
U64_MAX = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class KnownFormat:
    """Which records of one kind can be read: by magic number, major version and flags.

    sanlock raises the major version when an older reader would do harm (spec newer-sanlock.md, 1.1): 3.8 and 3.9 read delta
    leases of major 3 and leaders of major 6, 4.x also delta leases of major 4, 5.x also 5 and 7. All have one layout. So
    what is beyond the greatest known major, or bears a flag that a newer program has given a meaning, is `Reason.NEWER`:
    neither damaged nor free.
    """

    magic: int
    majors: range
    flags: int
    """The bits that have a meaning here."""
    flags_mean_from: int
    """The major version from which on a bit has a meaning; in older records other bits are ignored, as sanlock does."""
    magic_cleared: int | None = None


class RecordFields(NamedTuple):
    """Every field but the checksum, in the order of the disk."""

    magic: int
    version: int
    flags: int
    sector_bytes: int
    num_hosts: int
    max_hosts: int
    owner_id: int
    owner_generation: int
    lver: int
    space_name: bytes
    resource_name: bytes
    timestamp: int
    unused_160: int
    unused_172: int
    io_timeout: int
    write_id: int
    write_generation: int
    write_timestamp: int


def pack(fields: RecordFields) -> bytes:
    """Return the 200 bytes of `fields` with their checksum."""
    split = RecordFields._fields.index("unused_172")
    covered = _BEFORE_CHECKSUM.pack(*fields[:split])
    return covered + _CHECKSUM.pack(sanlock_crc32c(covered)) + _AFTER_CHECKSUM.pack(*fields[split:])


def major_of(version: int) -> int:
    """The part of a version that says who can read it."""
    return version >> _MAJOR_SHIFT


def version_text(version: int) -> str:
    """As people write it: 0x00050000 is 5.0."""
    return f"{major_of(version)}.{version & U16_MAX}"


def unpack(record: str, raw: bytes, known: KnownFormat) -> RecordFields | Malformed:
    """Check length, magic, major version, checksum and flags, in this order, and take the fields apart.

    A newer major version comes before the checksum, which another version may compute in another way.

    The checksum comes before anything else is believed. (sanlock compares names before the checksum; for a
    record that breaks both rules it names the other one of the two. Both programs refuse it.)
    """
    if len(raw) < RECORD_BYTES:
        return too_short(record, raw, RECORD_BYTES)
    before = _BEFORE_CHECKSUM.unpack_from(raw, 0)
    found_magic, found_version = before[0], before[1]
    if known.magic_cleared is not None and found_magic == known.magic_cleared:
        return Malformed(record, Reason.CLEARED, f"{found_magic:#010x}", f"{known.magic:#010x}")
    if found_magic != known.magic:
        return Malformed(record, Reason.MAGIC, f"{found_magic:#010x}", f"{known.magic:#010x}")
    if major_of(found_version) not in known.majors:
        reason = Reason.NEWER if major_of(found_version) >= known.majors.stop else Reason.VERSION
        majors = f"major version {known.majors[0]} to {known.majors[-1]}"
        return Malformed(record, reason, f"version {version_text(found_version)}", majors)
    (stored,) = _CHECKSUM.unpack_from(raw, COVERED_BYTES)
    computed = sanlock_crc32c(raw[:COVERED_BYTES])
    if stored != computed:
        return Malformed(record, Reason.CHECKSUM, f"{stored:#010x}", f"{computed:#010x}")
    unknown = before[2] & ~known.flags
    if unknown and major_of(found_version) >= known.flags_mean_from:
        found = f"version {version_text(found_version)} with flags {unknown:#x}"
        return Malformed(record, Reason.NEWER, found, f"no flags but {known.flags:#x}")
    after = _AFTER_CHECKSUM.unpack_from(raw, COVERED_BYTES + _CHECKSUM.size)
    return RecordFields(*before, *after)


def padded_sector(record: bytes, sector_bytes: int) -> bytes:
    """A whole sector with `record` at its begin and zeros behind: records are only ever written so."""
    if len(record) > sector_bytes:
        raise ValueError(f"{len(record)} bytes do not fit into a sector of {sector_bytes}")
    return record.ljust(sector_bytes, b"\0")


def range_fault(record: str, bounds: tuple[tuple[str, int, int, int], ...]) -> Malformed | None:
    """The first of (field name, value, least, greatest) that is out of its range, as an answer."""
    for name, value, least, greatest in bounds:
        if not least <= value <= greatest:
            return Malformed(record, Reason.RANGE, f"{name} {value}", f"{least}..{greatest}")
    return None

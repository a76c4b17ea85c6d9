"""The delta lease record: one host's claim on one host id, and its proof of life.

Sector h-1 of the lockspace area belongs to host id h. `timestamp` is the claimant's own clock at its last
renewal, 0 if the id is free; `generation` counts the terms of this id. Others compare a timestamp only with
an earlier sample of the same field. The layout is the leader's, with other meanings:

    owner_id          host id, 0 before first use      resource_name     name of the claiming host
    max_hosts         1                                write_id          event: generation of its destination
    num_hosts, lver   0                                write_generation  event: number
    io_timeout        the claimant's, in seconds       write_timestamp   event: argument
    (offset 160)      who has marked a term of this host as dead: host id << 16 | generation & 0xffff

Bytes 256..511 are a bitmap of hosts that shall look at their request records, also with 4096-byte sectors.
`io_timeout`, the event and the bitmap are outside the checksum: a torn write there is not detected, so they
are checked for their range and never taken as more than the protocols allow.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from holdfast.ondisk import geometry as geometries
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.malformed import Malformed, Reason, too_short
from holdfast.ondisk.padded_name import NO_NAME, PaddedName
from holdfast.ondisk.record_layout import (
    RECORD_BYTES,
    U16_MAX,
    U64_MAX,
    KnownFormat,
    RecordFields,
    major_of,
    pack,
    padded_sector,
    range_fault,
    unpack,
)

MAGIC = 0x12212010
VERSION = 0x00030004
VERSION_4 = 0x00040000
VERSION_5 = 0x00050000

# sanlock keeps io_timeout in 8 bits before it stores it; 0 stands for "not known, take your own".
IO_TIMEOUT_MAX_S = 255

BITMAP_OFFSET_BYTES = 256
BITMAP_BYTES = 256

# Flags beside the align bits have a meaning from this major version on (spec newer-sanlock.md, 1.2).
FLAGS_MEAN_FROM = 4
# This host's leases never expire by time: set in all records when the lockspace is made.
FLAG_NO_TIMEOUT = 0x2
# This generation of the host is dead, by an outside authority; the field at 160 says who marked it.
FLAG_DEAD_EXT = 0x4
# Every change of this record is made by SCSI COMPARE AND WRITE: a plain write may lie over what another host has just won.
FLAG_CAW = 0x8
_FLAG_NAMES = {"NO_TIMEOUT": FLAG_NO_TIMEOUT, "DEAD_EXT": FLAG_DEAD_EXT, "CAW": FLAG_CAW}
_MARKER_GENERATION_BITS = 16

_RECORD = "delta lease"
_KNOWN = KnownFormat(
    MAGIC,
    range(3, 6),
    geometries.ALIGN_FLAGS_MASK | FLAG_NO_TIMEOUT | FLAG_DEAD_EXT | FLAG_CAW,
    flags_mean_from=FLAGS_MEAN_FROM,
)


@dataclass(frozen=True, slots=True)
class Event:
    """A number and an argument for the host that holds its id in `generation`; all zero means no event."""

    generation: int = 0
    number: int = 0
    argument: int = 0


NO_EVENT = Event()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaLease:
    """One delta lease record without its bitmap, complete in its 200 bytes."""

    geometry: Geometry
    space_name: PaddedName
    owner_id: int = 0
    generation: int = 0
    host_name: PaddedName = NO_NAME
    timestamp: int = 0
    io_timeout_s: int = 0
    event: Event = NO_EVENT
    version: int = VERSION
    flags: int = -1
    # num_hosts, max_hosts, lver and the two unused fields: constant, but kept as found.
    num_hosts: int = 0
    max_hosts: int = 1
    lver: int = 0
    unused: tuple[int, int] = (0, 0)

    BYTES: ClassVar[int] = RECORD_BYTES

    def __post_init__(self) -> None:
        if self.flags < 0:
            object.__setattr__(self, "flags", self.geometry.align_flag)

    @classmethod
    def decode(cls, raw: bytes) -> Self | Malformed:
        """Read the first 200 bytes of a host's sector."""
        fields = unpack(_RECORD, raw, _KNOWN)
        if isinstance(fields, Malformed):
            return fields
        geometry = geometries.of_leader(_RECORD, fields.sector_bytes, fields.flags)
        if isinstance(geometry, Malformed):
            return geometry
        lease = cls(
            geometry=geometry,
            space_name=PaddedName(fields.space_name),
            owner_id=fields.owner_id,
            generation=fields.owner_generation,
            host_name=PaddedName(fields.resource_name),
            timestamp=fields.timestamp,
            io_timeout_s=fields.io_timeout,
            event=Event(fields.write_id, fields.write_generation, fields.write_timestamp),
            version=fields.version,
            flags=fields.flags,
            num_hosts=fields.num_hosts,
            max_hosts=fields.max_hosts,
            lver=fields.lver,
            unused=(fields.unused_160, fields.unused_172),
        )
        return lease.fault() or lease

    def encode(self) -> bytes:
        """The 200 bytes; ValueError if the record breaks its own rules, for then our code built it."""
        if fault := self.fault():
            raise ValueError(str(fault))
        return pack(
            RecordFields(
                magic=MAGIC,
                version=self.version,
                flags=self.flags,
                sector_bytes=self.geometry.sector_bytes,
                num_hosts=self.num_hosts,
                max_hosts=self.max_hosts,
                owner_id=self.owner_id,
                owner_generation=self.generation,
                lver=self.lver,
                space_name=self.space_name.field,
                resource_name=self.host_name.field,
                timestamp=self.timestamp,
                unused_160=self.unused[0],
                unused_172=self.unused[1],
                io_timeout=self.io_timeout_s,
                write_id=self.event.generation,
                write_generation=self.event.number,
                write_timestamp=self.event.argument,
            )
        )

    def sector(self, notified: Iterable[int] = ()) -> bytes:
        """The whole sector for a plain write, with the bits of the hosts in `notified` set."""
        if fault := self.write_fault():
            raise ValueError(str(fault))
        record = self.encode().ljust(BITMAP_OFFSET_BYTES, b"\0") + encode_bitmap(notified)
        return padded_sector(record, self.geometry.sector_bytes)

    @property
    def is_free(self) -> bool:
        return self.timestamp == 0

    @property
    def is_never_used(self) -> bool:
        """Whether no host has claimed the id since the lockspace was made; its generation may be any (`areas`)."""
        return self.is_free and self.owner_id == 0 and self.host_name == NO_NAME

    @property
    def is_no_timeout(self) -> bool:
        """Whether this host's leases may never be taken by time, however long its record stands unchanged."""
        return self._has(FLAG_NO_TIMEOUT)

    @property
    def is_marked_dead(self) -> bool:
        """Whether this generation of the host is dead, by an outside authority."""
        return self._has(FLAG_DEAD_EXT)

    @property
    def marked_by(self) -> tuple[int, int]:
        """Host id and the low 16 bits of the generation of who wrote the latest mark; zeros if nobody ever has."""
        return self.unused[0] >> _MARKER_GENERATION_BITS, self.unused[0] & U16_MAX

    def marked_dead(self, host_id: int, generation: int) -> Self:
        """This record with the mark of that host; all else is kept (spec newer-sanlock.md, 1.2 and 1.4)."""
        marker = host_id << _MARKER_GENERATION_BITS | generation & U16_MAX
        return replace(self, flags=self.flags | FLAG_DEAD_EXT, unused=(marker, self.unused[1]))

    def without_mark(self) -> Self:
        """As the next term of the host writes it: the flag goes, the field that says who marked it stays."""
        return replace(self, flags=self.flags & ~FLAG_DEAD_EXT) if self.is_marked_dead else self

    @property
    def flag_names(self) -> tuple[str, ...]:
        """sanlock's names of the flags that are set."""
        return tuple(name for name, flag in _FLAG_NAMES.items() if self._has(flag))

    def _has(self, flag: int) -> bool:
        return major_of(self.version) >= FLAGS_MEAN_FROM and bool(self.flags & flag)

    def verify(self, space_name: str, host_id: int) -> Malformed | None:
        """What must hold of the record in the sector of `host_id` before anything is concluded from it."""
        if not self.space_name.says(space_name):
            return Malformed(_RECORD, Reason.LOCKSPACE_NAME, repr(self.space_name.text), repr(space_name))
        if self.owner_id not in (0, host_id) or (self.owner_id == 0 and not self.is_free):
            return Malformed(_RECORD, Reason.HOST_ID, f"owner_id {self.owner_id}", f"0 or {host_id}")
        return None

    def write_fault(self) -> Malformed | None:
        """Why this record must not be written plainly. To read it is all right."""
        if not self.flags & FLAG_CAW:
            return None
        return Malformed(_RECORD, Reason.CAW, f"flags {self.flags:#x}", f"none with {FLAG_CAW:#x}")

    def fault(self) -> Malformed | None:
        """The first field that is out of its range."""
        return range_fault(
            _RECORD,
            (
                ("owner_id", self.owner_id, 0, self.geometry.hosts_max),
                ("generation", self.generation, 0, U64_MAX),
                ("timestamp", self.timestamp, 0, U64_MAX),
                ("io_timeout", self.io_timeout_s, 0, IO_TIMEOUT_MAX_S),
                ("event generation", self.event.generation, 0, U64_MAX),
                ("event number", self.event.number, 0, U64_MAX),
                ("event argument", self.event.argument, 0, U64_MAX),
            ),
        )


def encode_bitmap(host_ids: Iterable[int]) -> bytes:
    """Bit (h-1) % 8 of byte (h-1) / 8 stands for host h."""
    bitmap = bytearray(BITMAP_BYTES)
    for host_id in host_ids:
        if not 1 <= host_id <= geometries.HOSTS_MAX_LIMIT:
            raise ValueError(f"host id {host_id} is not within 1..{geometries.HOSTS_MAX_LIMIT}")
        bitmap[(host_id - 1) // 8] |= 1 << ((host_id - 1) % 8)
    return bytes(bitmap)


def decode_bitmap(raw_sector: bytes) -> frozenset[int] | Malformed:
    """The hosts whose bits are set in a delta lease sector; bits beyond the greatest host id mean nothing."""
    end = BITMAP_OFFSET_BYTES + BITMAP_BYTES
    if len(raw_sector) < end:
        return too_short("host bitmap", raw_sector, end)
    bitmap = raw_sector[BITMAP_OFFSET_BYTES:end]
    if not any(bitmap):
        return frozenset()
    hosts = range(1, geometries.HOSTS_MAX_LIMIT + 1)
    return frozenset(host for host in hosts if bitmap[(host - 1) // 8] >> ((host - 1) % 8) & 1)

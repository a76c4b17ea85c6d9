"""The leader record of a paxos lease: who owns version `lver` of a resource, and whether the lease is free.

Sector 0 of the lease's area. The owner is the host (owner_id, owner_generation) unless `timestamp` is 0,
which means free. `lver` grows by one with every committed ballot. The record may be written by another host
than the owner it names (a ballot is finished by the host that gets there first): `write_id` names the writer,
and it matters at release.

Two leaders are equal when all their 200 bytes are; the protocol restarts whenever a re-read leader is not
equal to the first one. Fields outside the checksum are checked for their range where a range exists.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Self

from holdfast.ondisk import geometry as geometries
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.record_layout import (
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

MAGIC = 0x06152010
MAGIC_CLEARED = 0x11282016
VERSION = 0x00060004
VERSION_7 = 0x00070000
_MAJOR_WITH_7 = 5
# The lease is held only for the moment that a shared acquirer needs to write its mode block.
FLAG_SHORT_HOLD = 0x1
# As in delta leases: never written plainly, but by SCSI COMPARE AND WRITE, which takes the place of ballots.
FLAG_CAW = 0x8

_RECORD = "leader"
_KNOWN = KnownFormat(
    MAGIC,
    range(6, 8),
    geometries.ALIGN_FLAGS_MASK | FLAG_SHORT_HOLD | FLAG_CAW,
    flags_mean_from=7,
    magic_cleared=MAGIC_CLEARED,
)


def version_beside(delta_version: int) -> int:
    """The version of a new lease in a lockspace whose delta leases have that version: one that every host which can join
    it can read (ADR 0170). 4.x reads leaders of major 6 only, 5.x reads both.
    """
    return VERSION_7 if major_of(delta_version) >= _MAJOR_WITH_7 else VERSION


def says_caw(raw: bytes) -> bool:
    """Whether what may be a leader, a cleared one too, has the flag that forbids to write over it plainly."""
    return bool(int.from_bytes(raw[8:12], "little") & FLAG_CAW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """One leader record, complete: `encode` of a decoded record gives back its 200 bytes."""

    BYTES: ClassVar[int] = 200

    geometry: Geometry
    space_name: PaddedName
    resource_name: PaddedName
    num_hosts: int
    max_hosts: int
    owner_id: int = 0
    owner_generation: int = 0
    lver: int = 0
    timestamp: int = 0
    short_hold: bool = False
    io_timeout: int = 0
    write_id: int = 0
    write_generation: int = 0
    write_timestamp: int = 0
    version: int = VERSION
    # Flag bits as found; the align flag is absent in records of old versions and stays so when we rewrite
    # one.
    flags: int = field(default=-1)
    unused: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        base = self.geometry.align_flag if self.flags < 0 else self.flags & ~FLAG_SHORT_HOLD
        object.__setattr__(self, "flags", base | (FLAG_SHORT_HOLD if self.short_hold else 0))

    @classmethod
    def decode(cls, raw: bytes) -> Self | Malformed:
        fields = unpack(_RECORD, raw, _KNOWN)
        if isinstance(fields, Malformed):
            return fields
        geometry = geometries.of_leader(_RECORD, fields.sector_bytes, fields.flags)
        if isinstance(geometry, Malformed):
            return geometry
        leader = cls(
            geometry=geometry,
            space_name=PaddedName(fields.space_name),
            resource_name=PaddedName(fields.resource_name),
            num_hosts=fields.num_hosts,
            max_hosts=fields.max_hosts,
            owner_id=fields.owner_id,
            owner_generation=fields.owner_generation,
            lver=fields.lver,
            timestamp=fields.timestamp,
            short_hold=bool(fields.flags & FLAG_SHORT_HOLD),
            io_timeout=fields.io_timeout,
            write_id=fields.write_id,
            write_generation=fields.write_generation,
            write_timestamp=fields.write_timestamp,
            version=fields.version,
            flags=fields.flags,
            unused=(fields.unused_160, fields.unused_172),
        )
        return leader.fault() or leader

    def encode(self) -> bytes:
        """The 200 bytes; ValueError if the record breaks its own rules, for then our code built it."""
        if fault := self.fault():
            raise ValueError(str(fault))
        return self._pack(MAGIC)

    def encode_cleared(self) -> bytes:
        """The 200 bytes of a lease that is no more: every reader answers "cleared"."""
        return self._pack(MAGIC_CLEARED)

    def sector(self) -> bytes:
        """The whole sector, for a plain write."""
        if fault := self.write_fault():
            raise ValueError(str(fault))
        return padded_sector(self.encode(), self.geometry.sector_bytes)

    @property
    def is_free(self) -> bool:
        return self.timestamp == 0

    def verify(self, space_name: str, resource_name: str, host_id: int) -> Malformed | None:
        """What a host must check of a leader before it acts on the lease."""
        if not self.space_name.says(space_name):
            return Malformed(_RECORD, Reason.LOCKSPACE_NAME, repr(self.space_name.text), repr(space_name))
        if not self.resource_name.says(resource_name):
            return Malformed(
                _RECORD, Reason.RESOURCE_NAME, repr(self.resource_name.text), repr(resource_name)
            )
        if host_id > self.num_hosts:
            return Malformed(_RECORD, Reason.HOST_ID, f"num_hosts {self.num_hosts}", f"at least {host_id}")
        return self.write_fault()

    def write_fault(self) -> Malformed | None:
        """Why this record must not be written plainly. To read it is all right."""
        if not self.uses_caw:
            return None
        return Malformed(_RECORD, Reason.CAW, f"flags {self.flags:#x}", f"none with {FLAG_CAW:#x}")

    @property
    def uses_caw(self) -> bool:
        return bool(self.flags & FLAG_CAW)

    def fault(self) -> Malformed | None:
        """The first field that is out of its range."""
        hosts_max = self.geometry.hosts_max
        return range_fault(
            _RECORD,
            (
                ("max_hosts", self.max_hosts, 1, hosts_max),
                ("num_hosts", self.num_hosts, 1, self.max_hosts),
                # An owner is a host that has a delta lease; only a lease that was never owned names nobody.
                ("owner_id", self.owner_id, 0 if self.is_free else 1, hosts_max),
                ("owner_generation", self.owner_generation, 0, U64_MAX),
                ("lver", self.lver, 0, U64_MAX),
                ("timestamp", self.timestamp, 0, U64_MAX),
                ("io_timeout", self.io_timeout, 0, U16_MAX),
                ("write_id", self.write_id, 0, U64_MAX),
                ("write_generation", self.write_generation, 0, U64_MAX),
                ("write_timestamp", self.write_timestamp, 0, U64_MAX),
            ),
        )

    def _pack(self, magic: int) -> bytes:
        return pack(
            RecordFields(
                magic=magic,
                version=self.version,
                flags=self.flags,
                sector_bytes=self.geometry.sector_bytes,
                num_hosts=self.num_hosts,
                max_hosts=self.max_hosts,
                owner_id=self.owner_id,
                owner_generation=self.owner_generation,
                lver=self.lver,
                space_name=self.space_name.field,
                resource_name=self.resource_name.field,
                timestamp=self.timestamp,
                unused_160=self.unused[0],
                unused_172=self.unused[1],
                io_timeout=self.io_timeout,
                write_id=self.write_id,
                write_generation=self.write_generation,
                write_timestamp=self.write_timestamp,
            )
        )

"""Where everything is: sector size, area size, and the offsets that follow from them.

An *area* is `align_bytes` long and holds one lockspace (delta leases), one paxos lease, or half a resource
index. A *sector* is a unit of the format, recorded in the leader: not necessarily the device's. Five pairs
exist:

    sector   area    hosts_max          lockspace area            lease area
       512   1 MiB        2000          sector 0: host 1          sector 0: leader
      4096   1 MiB         250          sector 1: host 2          sector 1: request record
      4096   2 MiB         500          ...                       sector 2: block of host 1
      4096   4 MiB        1000          sector h-1: host h        sector 1+h: block of host h
      4096   8 MiB        2000                                    sector 2002: lvb, if the area has one

Offsets are plain integers of any size: sanlock computes some of them in signed 32 bits and so reaches wrong
places for index slots beyond 2 GiB; `rindex` knows about that, this module never overflows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.ondisk.malformed import Malformed, Reason

KIB = 1024
MIB = 1024 * KIB

SECTOR_512 = 512
SECTOR_4096 = 4096
SECTOR_SIZES = (SECTOR_512, SECTOR_4096)

LEADER_SECTOR = 0
REQUEST_SECTOR = 1
# Host h's block is in sector 1 + h: two sectors stand before the block of host 1.
SECTORS_BEFORE_HOST_BLOCKS = 2
# Always this sector number, whatever the area's size; in areas with fewer sectors it would lie in a
# neighbour's.
LVB_SECTOR = 2002

# No lease serves more hosts, whatever its geometry.
HOSTS_MAX_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Geometry:
    """One of the five valid pairs, with what the format derives from it. Obtain one by `of` or from a
    record.
    """

    sector_bytes: int
    align_bytes: int
    hosts_max: int
    align_flag: int  # in the flags of leader records; the same bits serve as sanlock's API flag
    rindex_flag: int  # in the flags of a resource index header
    rindex_entries_max: int

    @property
    def sectors(self) -> int:
        return self.align_bytes // self.sector_bytes

    @property
    def sector_api_flag(self) -> int:
        return 0x100 if self.sector_bytes == SECTOR_512 else 0x200

    @property
    def has_lvb(self) -> bool:
        """Whether the lvb sector lies inside the area; where not, an lvb would corrupt another lease."""
        return self.sectors > LVB_SECTOR

    def delta_offset_bytes(self, host_id: int) -> int:
        """Offset of host_id's delta lease within a lockspace area."""
        self._require_host_id(host_id)
        return (host_id - 1) * self.sector_bytes

    def host_block_offset_bytes(self, host_id: int) -> int:
        """Offset of host_id's block (dblock and mode block) within a lease area."""
        self._require_host_id(host_id)
        return (SECTORS_BEFORE_HOST_BLOCKS + host_id - 1) * self.sector_bytes

    @property
    def request_offset_bytes(self) -> int:
        return REQUEST_SECTOR * self.sector_bytes

    @property
    def lvb_offset_bytes(self) -> int:
        if not self.has_lvb:
            raise ValueError(f"{self} has no room for an lvb")
        return LVB_SECTOR * self.sector_bytes

    def lease_span_bytes(self, num_hosts: int) -> int:
        """How much of a lease area a ballot among hosts 1..num_hosts must read: leader, request, their
        blocks.
        """
        self._require_host_id(num_hosts)
        return (SECTORS_BEFORE_HOST_BLOCKS + num_hosts) * self.sector_bytes

    def is_aligned(self, offset_bytes: int) -> bool:
        """Whether an area may begin here; sanlock does not check this, and then areas overlap."""
        return offset_bytes >= 0 and offset_bytes % self.align_bytes == 0

    def _require_host_id(self, host_id: int) -> None:
        if not 1 <= host_id <= self.hosts_max:
            raise ValueError(f"host id {host_id} is not within 1..{self.hosts_max}")

    def __str__(self) -> str:
        return f"{self.sector_bytes}/{self.align_bytes // MIB}M"


GEOMETRIES = (
    Geometry(SECTOR_512, 1 * MIB, 2000, 0x10, 0x1, 16000),
    Geometry(SECTOR_4096, 1 * MIB, 250, 0x10, 0x1, 16000),
    Geometry(SECTOR_4096, 2 * MIB, 500, 0x20, 0x2, 32000),
    Geometry(SECTOR_4096, 4 * MIB, 1000, 0x40, 0x4, 64000),
    Geometry(SECTOR_4096, 8 * MIB, 2000, 0x80, 0x8, 128000),
)
DEFAULT = GEOMETRIES[0]
ALIGN_FLAGS_MASK = 0xF0
RINDEX_FLAGS_MASK = 0x0F
# What a record without an align flag means: it was written before there was a choice.
_ALIGN_WITHOUT_FLAG = {SECTOR_512: 1 * MIB, SECTOR_4096: 8 * MIB}


def of(sector_bytes: int, align_bytes: int) -> Geometry | Malformed:
    """The geometry with these sizes, as an operator or a config names them."""
    return _search(
        "geometry", sector_bytes, f"align {align_bytes}", lambda each: each.align_bytes == align_bytes
    )


def of_leader(record: str, sector_bytes: int, flags: int) -> Geometry | Malformed:
    """The geometry that a leader record's sector size and align flag mean."""
    flag = flags & ALIGN_FLAGS_MASK
    if flag:
        return _search(record, sector_bytes, f"flag {flag:#x}", lambda each: each.align_flag == flag)
    align = _ALIGN_WITHOUT_FLAG.get(sector_bytes)
    return _search(record, sector_bytes, "no align flag", lambda each: each.align_bytes == align)


def of_rindex(record: str, sector_bytes: int, flags: int) -> Geometry | Malformed:
    """The geometry that a resource index header's sector size and flag mean."""
    flag = flags & RINDEX_FLAGS_MASK
    if flag:
        return _search(record, sector_bytes, f"flag {flag:#x}", lambda each: each.rindex_flag == flag)
    align = _ALIGN_WITHOUT_FLAG.get(sector_bytes)
    return _search(record, sector_bytes, "no align flag", lambda each: each.align_bytes == align)


def _search(
    record: str, sector_bytes: int, what: str, fits: Callable[[Geometry], bool]
) -> Geometry | Malformed:
    if sector_bytes not in SECTOR_SIZES:
        return Malformed(record, Reason.SECTOR_SIZE, str(sector_bytes), "512 or 4096")
    for each in GEOMETRIES:
        if each.sector_bytes == sector_bytes and fits(each):
            return each
    valid = ", ".join(str(each) for each in GEOMETRIES)
    return Malformed(record, Reason.GEOMETRY, f"sector {sector_bytes} with {what}", f"one of {valid}")

"""A paxos lease's area: its sectors, a look at all of them, and how a new one comes to be.

A look (`Snapshot`) is one read from sector 0 over the blocks of hosts 1..num_hosts, and not a sector more:
a lease formatted for 64 hosts costs 33 KiB per look, one for 2000 hosts a whole MiB. How many hosts the
lease serves stands in its leader, so the first look of all is made for `hosts_expected` and repeated if the
leader says more.

A *glance* reads the leader and our own block only. It is a look in which no other host has ever written: good for the first
step of a race, whose ballots look at everybody anyway.

A read of several sectors is not atomic: the leader may be older than a block read with it. Nothing here
assumes otherwise.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace

from holdfast.ondisk import areas
from holdfast.ondisk.geometry import KIB, Geometry
from holdfast.ondisk.host_block import HOST_BLOCK_BYTES, NEVER_WRITTEN, HostBlock, note_of
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.request import Request
from holdfast.protocol.ports import Disk
from holdfast.protocol.words import HostId, IoFailed

# Enough for a small cluster; with 512-byte sectors the first look is then one page.
HOSTS_EXPECTED_DEFAULT = 6
# Initialising writes a whole area, which may be slow where the storage allocates it.
INIT_TIMEOUT_S = 60

_NEVER_WRITTEN_BYTES = bytes(HOST_BLOCK_BYTES)
_GLANCED_AT_TOGETHER_BYTES = 32 * KIB
"""A read of so much takes no longer than two of a sector each."""
_LOOKED_AT_TOGETHER = 64
"""Host blocks that are compared with zeros in one go: 2000 comparisons cost more than reading them."""


_LEADERS_MAX = 1000
_leaders: dict[bytes, Leader] = {}
"""Records that were decoded or written lately: a ballot reads the same one three times, a release what it has written."""


def _leader_of(record: bytes) -> Leader | Malformed:
    known = _leaders.get(record)
    if known is not None:
        return known
    leader = Leader.decode(record)
    if isinstance(leader, Leader):
        _remember(record, leader)
    return leader


def _remember(record: bytes, leader: Leader) -> None:
    if len(_leaders) >= _LEADERS_MAX:
        _leaders.clear()
    _leaders[record] = leader


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a lease: its leader and the blocks that were ever written, of hosts 1..leader.num_hosts."""

    leader: Leader
    blocks: dict[HostId, HostBlock]

    def block(self, host_id: HostId) -> HostBlock:
        return self.blocks.get(host_id, NEVER_WRITTEN)

    @property
    def greatest_mbal(self) -> int:
        """Over blocks of every version: a ballot number is never used twice."""
        return max((block.dblock.mbal for block in self.blocks.values()), default=0)

    @property
    def greatest_lver(self) -> int:
        return max((block.dblock.lver for block in self.blocks.values()), default=0)

    @property
    def sharers(self) -> dict[HostId, HostBlock]:
        return {host_id: block for host_id, block in self.blocks.items() if block.mode.is_shared}


@dataclass(frozen=True, slots=True)
class LeaseArea:
    """A paxos lease on a disk, and the access to its sectors."""

    disk: Disk
    offset_bytes: int
    geometry: Geometry
    space_name: str
    resource_name: str
    hosts_expected: int = HOSTS_EXPECTED_DEFAULT
    note: bytes = b""
    """Goes with every write of our block, behind its records (`host_block.NOTE_OFFSET_BYTES`): words for people."""

    async def read_leader(self, host_id: HostId, timeout_s: float) -> Leader | Malformed | IoFailed:
        raw = await self.disk.read(self.offset_bytes, self.geometry.sector_bytes, timeout_s=timeout_s)
        return raw if isinstance(raw, IoFailed) else self._decode_leader(host_id, raw)

    async def look(self, host_id: HostId, timeout_s: float) -> Snapshot | Malformed | IoFailed:
        """Read the leader and all host blocks that matter. Every block must be readable."""
        hosts = min(max(self.hosts_expected, host_id), self.geometry.hosts_max)
        raw = await self._read_span(hosts, timeout_s)
        if isinstance(raw, IoFailed):
            return raw
        leader = self._decode_leader(host_id, raw)
        if isinstance(leader, Malformed):
            return leader
        if leader.geometry != self.geometry or leader.num_hosts > hosts:
            wiser = replace(self, geometry=leader.geometry, hosts_expected=leader.num_hosts)
            raw = await wiser._read_span(leader.num_hosts, timeout_s)
            if isinstance(raw, IoFailed):
                return raw
            return wiser._decode(host_id, raw, leader.num_hosts)
        return self._decode(host_id, raw, hosts)

    async def glance(self, host_id: HostId, timeout_s: float) -> Snapshot | Malformed | IoFailed:
        """The leader and, of all the blocks, our own: enough to begin with, at a fraction of the reading."""
        span = self.geometry.lease_span_bytes(min(host_id, self.geometry.hosts_max))
        together = span if span <= _GLANCED_AT_TOGETHER_BYTES else self.geometry.sector_bytes
        raw = await self.disk.read(self.offset_bytes, together, timeout_s=timeout_s)
        if isinstance(raw, IoFailed):
            return raw
        leader = self._decode_leader(host_id, raw)
        if isinstance(leader, Malformed):
            return leader
        if leader.geometry != self.geometry:
            return await self.look(host_id, timeout_s)
        block = self._own_block(host_id, raw) or await self.read_block(host_id, timeout_s)
        return Snapshot(leader, {host_id: block}) if isinstance(block, HostBlock) else block

    def glimpse(self, leader: Leader, host_id: HostId, raw: bytes) -> Snapshot | None:
        """A glance at what has just been read from the begin of the area, if that tells as much."""
        block = self._own_block(host_id, raw) if leader.geometry == self.geometry else None
        return Snapshot(leader, {host_id: block}) if isinstance(block, HostBlock) else None

    def _own_block(self, host_id: HostId, raw: bytes) -> HostBlock | Malformed | None:
        at = self.geometry.host_block_offset_bytes(host_id)
        block = raw[at : at + HOST_BLOCK_BYTES]
        return HostBlock.decode(block) if len(block) == HOST_BLOCK_BYTES else None

    async def read_block(self, host_id: HostId, timeout_s: float) -> HostBlock | Malformed | IoFailed:
        at = self.offset_bytes + self.geometry.host_block_offset_bytes(host_id)
        raw = await self.disk.read(at, self.geometry.sector_bytes, timeout_s=timeout_s)
        return raw if isinstance(raw, IoFailed) else HostBlock.decode(raw)

    async def write_block(self, host_id: HostId, block: HostBlock, timeout_s: float) -> IoFailed | None:
        at = self.offset_bytes + self.geometry.host_block_offset_bytes(host_id)
        sector = block.sector(self.geometry.sector_bytes, self.note)
        return await self.disk.write(at, sector, timeout_s=timeout_s)

    async def read_note(self, host_id: HostId, timeout_s: float) -> tuple[HostBlock, bytes] | None:
        """A host's block and the note behind it, for people; None if they cannot be read."""
        at = self.offset_bytes + self.geometry.host_block_offset_bytes(host_id)
        raw = await self.disk.read(at, self.geometry.sector_bytes, timeout_s=timeout_s)
        if isinstance(raw, IoFailed):
            return None
        block = HostBlock.decode(raw)
        return None if isinstance(block, Malformed) else (block, note_of(raw))

    async def write_leader(self, leader: Leader, timeout_s: float) -> IoFailed | None:
        sector = leader.sector()
        _remember(sector[: Leader.BYTES], leader)
        return await self.disk.write(self.offset_bytes, sector, timeout_s=timeout_s)

    async def read_request(self, timeout_s: float) -> Request | Malformed | IoFailed:
        at = self.offset_bytes + self.geometry.request_offset_bytes
        raw = await self.disk.read(at, self.geometry.sector_bytes, timeout_s=timeout_s)
        return raw if isinstance(raw, IoFailed) else Request.decode(raw)

    async def write_request(self, request: Request, timeout_s: float) -> IoFailed | None:
        at = self.offset_bytes + self.geometry.request_offset_bytes
        return await self.disk.write(at, request.sector(self.geometry.sector_bytes), timeout_s=timeout_s)

    def busy(self) -> IoFailed | None:
        """The refusal while a write of ours is in flight: what is read now may change under the reader's
        hands.
        """
        in_flight = self.disk.in_flight(self.offset_bytes, self.geometry.align_bytes)
        return IoFailed(errno.EBUSY, in_flight=True) if in_flight else None

    async def settled(self) -> None:
        """Return when no write of ours to this lease is in flight any more."""
        await self.disk.settled(self.offset_bytes, self.geometry.align_bytes)

    async def _read_span(self, hosts: int, timeout_s: float) -> bytes | IoFailed:
        span = self.geometry.lease_span_bytes(hosts)
        return await self.disk.read(self.offset_bytes, span, timeout_s=timeout_s)

    def _decode_leader(self, host_id: HostId, raw: bytes) -> Leader | Malformed:
        leader = _leader_of(raw[: Leader.BYTES])
        if isinstance(leader, Malformed):
            return leader
        return leader.verify(self.space_name, self.resource_name, host_id) or leader

    def _decode(self, host_id: HostId, raw: bytes, hosts: int) -> Snapshot | Malformed:
        leader = self._decode_leader(host_id, raw)
        if isinstance(leader, Malformed):
            return leader
        blocks = {}
        for other, written in self._written_blocks(raw, min(hosts, leader.num_hosts)):
            block = HostBlock.decode(written)
            if isinstance(block, Malformed):
                return block
            blocks[other] = block
        return Snapshot(leader, blocks)

    def _written_blocks(self, raw: bytes, hosts: int) -> Iterator[tuple[HostId, bytes]]:
        sector_bytes = self.geometry.sector_bytes
        begin = self.geometry.host_block_offset_bytes(1)
        zeros = bytes(_LOOKED_AT_TOGETHER * sector_bytes)
        for first in range(1, hosts + 1, _LOOKED_AT_TOGETHER):
            last = min(first + _LOOKED_AT_TOGETHER - 1, hosts)
            end = begin + (last - first + 1) * sector_bytes
            # Mostly nobody of so many has ever written.
            if not raw.startswith(zeros[: end - begin], begin):
                for host_id in range(first, last + 1):
                    written = raw[begin : begin + HOST_BLOCK_BYTES]
                    if written != _NEVER_WRITTEN_BYTES:
                        yield HostId(host_id), written
                    begin += sector_bytes
            begin = end


@dataclass(frozen=True, slots=True)
class LeaseInitialised:
    """The area is a lease that nobody has ever owned."""

    leader: Leader


@dataclass(frozen=True, slots=True)
class LeaseAlreadyThere:
    """A lease is there already; overwriting it would take it from its holder and forget its ballots."""

    leader: Leader


async def init(
    area: LeaseArea, num_hosts: int | None = None, *, overwrite: bool = False
) -> LeaseInitialised | LeaseAlreadyThere | IoFailed:
    """Make an area a free lease for hosts 1..num_hosts, all hosts of the geometry when not given."""
    if not area.geometry.is_aligned(area.offset_bytes):
        return IoFailed(errno.EINVAL)
    if not overwrite:
        raw = await area.disk.read(area.offset_bytes, area.geometry.sector_bytes, timeout_s=INIT_TIMEOUT_S)
        if isinstance(raw, IoFailed):
            return raw
        present = Leader.decode(raw)
        if isinstance(present, Leader):
            return LeaseAlreadyThere(present)
    leader = areas.fresh_leader(area.geometry, area.space_name, area.resource_name, num_hosts)
    failed = await area.disk.write(area.offset_bytes, areas.lease_area(leader), timeout_s=INIT_TIMEOUT_S)
    return failed or LeaseInitialised(leader)

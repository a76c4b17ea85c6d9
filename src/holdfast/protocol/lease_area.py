"""A paxos lease's area: its sectors, a read of all of them, and how a new one is made.

A `Snapshot` is one read from sector 0 over the blocks of hosts 1..num_hosts, and not a sector more: of a lease
formatted for 64 hosts it takes 33 KiB, of one for 2000 hosts a whole MiB. How many hosts the lease serves stands in its
leader, so the very first read is made for `hosts_expected` and repeated if the leader says more.

A *partial read* is for the first step of an acquire, whose ballots read all blocks anyway: of a large lease it has only the
leader, our own block, and that of the owner that the leader names, which usually holds a prepared ballot (`prepare_next`).

A read of several sectors is not atomic: the leader may be older than a block read with it. Nothing here
assumes otherwise.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from holdfast.ondisk import areas
from holdfast.ondisk import leader as leaders
from holdfast.ondisk.geometry import KIB, SECTOR_512, SECTOR_4096, Geometry
from holdfast.ondisk.host_block import HOST_BLOCK_BYTES, NEVER_WRITTEN, HostBlock, note_of
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.request import Request
from holdfast.protocol.ports import Disk
from holdfast.protocol.types import HostId, IoFailed

# Enough for a small cluster; with 512-byte sectors the first look is then one page.
HOSTS_EXPECTED_DEFAULT = 6
# Initialising writes a whole area, which may be slow where the storage allocates it.
INIT_TIMEOUT_S = 60

_NEVER_WRITTEN_BYTES = bytes(HOST_BLOCK_BYTES)
GLANCED_AT_TOGETHER_BYTES = 64 * KIB
"""A read of so much takes no longer than two of a sector each; that of a lease for 126 hosts is no larger."""
_ZEROS = tuple(bytes(sectors * SECTOR_512) for sectors in (64, 8))
"""Host blocks are compared with zeros in such chunks: most were never written, and 2000 single slices cost more than the
read of them all.
"""
_RECORDS_MAX = 1000

R = TypeVar("R", bound=Leader | HostBlock)


class _Lately(Generic[R]):
    """Records that were decoded or written lately: a ballot reads the same ones twice, a release what it has written."""

    def __init__(self, decode: Callable[[bytes], R | Malformed]) -> None:
        self._decode = decode
        self._known: dict[bytes, R] = {}

    def decoded(self, raw: bytes) -> R | Malformed:
        known = self._known.get(raw)
        if known is not None:
            return known
        record = self._decode(raw)
        if not isinstance(record, Malformed):
            self.written(raw, record)
        return record

    def written(self, raw: bytes, record: R) -> None:
        if len(self._known) >= _RECORDS_MAX:
            self._known.clear()
        self._known[raw] = record


_leaders = _Lately(Leader.decode)
_blocks = _Lately(HostBlock.decode)


def leader_of(raw: bytes) -> Leader | Malformed:
    """The leader at the begin of what was read from an area's."""
    return _leaders.decoded(raw[: Leader.BYTES])


def _not_only_zeros(
    raw: bytes, first: int, end: int, step: int, zeros: tuple[bytes, ...] = _ZEROS
) -> Iterator[int]:
    """The offsets first, first + step, … whose surroundings hold anything."""
    if not zeros:
        yield from range(first, end, step)
        return
    length = len(zeros[0])
    for begin in range(first, end, length):
        if not raw.startswith(zeros[0], begin):
            yield from _not_only_zeros(raw, begin, min(begin + length, end), step, zeros[1:])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a lease: its leader and the blocks that were ever written, of hosts 1..leader.num_hosts.

    Not `of_all`: a glance, that looked at some of them only.
    """

    leader: Leader
    blocks: dict[HostId, HostBlock]
    of_all: bool = True
    own_note: bytes = field(default=b"", compare=False)
    """What stands behind the block of the host that looks; nothing in a glance."""

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


def glance_bytes(geometry: Geometry, hosts: int, host_id: HostId) -> int:
    """How much to read for a first glance at a lease that is expected to serve so many hosts: all of it, or as far as to
    our own block, or one page.
    """
    for shown in (hosts, host_id):
        span = geometry.lease_span_bytes(min(shown, geometry.hosts_max))
        if span <= GLANCED_AT_TOGETHER_BYTES:
            return max(span, SECTOR_4096)
    return SECTOR_4096


def _glanced_at(leader: Leader, host_id: HostId) -> set[HostId]:
    owner = leader.owner_id if 1 <= leader.owner_id <= leader.num_hosts else host_id
    return {host_id, HostId(owner)}


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

    def over(self, disk: Disk) -> "LeaseArea":
        """The same area over another port to the same path."""
        return LeaseArea(
            disk,
            self.offset_bytes,
            self.geometry,
            self.space_name,
            self.resource_name,
            self.hosts_expected,
            self.note,
        )

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

    async def read_partial(self, host_id: HostId, timeout_s: float) -> Snapshot | Malformed | IoFailed:
        """Enough to begin an acquire with, for a fraction of the reading. Another host's block that can't be read is left
        out: the leader may show by itself that the lease is held, and every ballot reads all of them.
        """
        together = glance_bytes(self.geometry, self.hosts_expected, host_id)
        raw = await self.disk.read(self.offset_bytes, together, timeout_s=timeout_s)
        if isinstance(raw, IoFailed):
            return raw
        leader = self._decode_leader(host_id, raw)
        if isinstance(leader, Malformed):
            return leader
        if leader.geometry != self.geometry:
            return await self.look(host_id, timeout_s)
        if (seen := self.partial_snapshot(leader, host_id, raw)) is not None:
            return seen
        blocks = {}
        for shown in _glanced_at(leader, host_id):
            block = self._block_in(raw, shown) or await self.read_block(shown, timeout_s)
            if isinstance(block, HostBlock):
                blocks[shown] = block
            elif shown == host_id or isinstance(block, IoFailed):
                return block
        return Snapshot(leader, blocks, of_all=False)

    def partial_snapshot(self, leader: Leader, host_id: HostId, raw: bytes) -> Snapshot | None:
        """A partial read made of what was just read from the beginning of the area; None if that is too little."""
        if leader.geometry != self.geometry:
            return None
        if len(raw) >= self.geometry.lease_span_bytes(leader.num_hosts):
            seen = self._decode(host_id, raw, leader.num_hosts)
            return seen if isinstance(seen, Snapshot) else None
        blocks = {}
        for shown in _glanced_at(leader, host_id):
            block = self._block_in(raw, shown)
            if not isinstance(block, HostBlock):
                return None
            blocks[shown] = block
        return Snapshot(leader, blocks, of_all=False)

    def _block_in(self, raw: bytes, host_id: HostId) -> HostBlock | Malformed | None:
        at = self.geometry.host_block_offset_bytes(host_id)
        block = raw[at : at + HOST_BLOCK_BYTES]
        return _blocks.decoded(block) if len(block) == HOST_BLOCK_BYTES else None

    async def read_block(self, host_id: HostId, timeout_s: float) -> HostBlock | Malformed | IoFailed:
        at = self.offset_bytes + self.geometry.host_block_offset_bytes(host_id)
        raw = await self.disk.read(at, self.geometry.sector_bytes, timeout_s=timeout_s)
        return raw if isinstance(raw, IoFailed) else HostBlock.decode(raw)

    async def write_block(self, host_id: HostId, block: HostBlock, timeout_s: float) -> IoFailed | None:
        at = self.offset_bytes + self.geometry.host_block_offset_bytes(host_id)
        sector = block.sector(self.geometry.sector_bytes, self.note)
        _blocks.written(sector[:HOST_BLOCK_BYTES], block)
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
        _leaders.written(sector[: Leader.BYTES], leader)
        return await self.disk.write(self.offset_bytes, sector, timeout_s=timeout_s)

    async def read_request(self, timeout_s: float) -> Request | Malformed | IoFailed:
        at = self.offset_bytes + self.geometry.request_offset_bytes
        raw = await self.disk.read(at, self.geometry.sector_bytes, timeout_s=timeout_s)
        return raw if isinstance(raw, IoFailed) else Request.decode(raw)

    async def write_request(self, request: Request, timeout_s: float) -> IoFailed | None:
        at = self.offset_bytes + self.geometry.request_offset_bytes
        return await self.disk.write(at, request.sector(self.geometry.sector_bytes), timeout_s=timeout_s)

    async def read_lvb(self, timeout_s: float) -> bytes | IoFailed:
        """Sector 2002 without its trailing zeros: what must outlive a release. Nothing where the area has no such sector,
        or where a file ends before it.

        libvirt 12.8 keeps the UUID of the VM that owns the disk there (spec newer-libvirt.md, 3).
        """
        if not self.geometry.has_lvb:
            return b""
        at = self.offset_bytes + self.geometry.lvb_offset_bytes
        raw = await self.disk.read(at, self.geometry.sector_bytes, timeout_s=timeout_s)
        if isinstance(raw, IoFailed):
            return b"" if raw.errno == errno.EMSGSIZE else raw
        return raw.rstrip(b"\0")

    async def write_lvb(self, value: bytes, timeout_s: float) -> IoFailed | None:
        """Write sector 2002, for the exclusive owner; ValueError where the area has no such sector."""
        at = self.offset_bytes + self.geometry.lvb_offset_bytes
        sector = value.ljust(self.geometry.sector_bytes, b"\0")
        return await self.disk.write(at, sector, timeout_s=timeout_s)

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
        leader = leader_of(raw)
        if isinstance(leader, Malformed):
            return leader
        return leader.verify(self.space_name, self.resource_name, host_id) or leader

    def _decode(self, host_id: HostId, raw: bytes, hosts: int) -> Snapshot | Malformed:
        leader = self._decode_leader(host_id, raw)
        if isinstance(leader, Malformed):
            return leader
        blocks = {}
        for other, written in self._written_blocks(raw, min(hosts, leader.num_hosts)):
            block = _blocks.decoded(written)
            if isinstance(block, Malformed):
                return block
            blocks[other] = block
        own = self.geometry.host_block_offset_bytes(host_id)
        return Snapshot(leader, blocks, own_note=note_of(raw[own : own + self.geometry.sector_bytes]))

    def _written_blocks(self, raw: bytes, hosts: int) -> Iterator[tuple[HostId, bytes]]:
        sector_bytes = self.geometry.sector_bytes
        first = self.geometry.host_block_offset_bytes(1)
        end = first + hosts * sector_bytes
        for begin in _not_only_zeros(raw, first, end, sector_bytes):
            written = raw[begin : begin + HOST_BLOCK_BYTES]
            if written != _NEVER_WRITTEN_BYTES:
                yield HostId((begin - first) // sector_bytes + 1), written


@dataclass(frozen=True, slots=True)
class LeaseInitialised:
    """The area is a lease that nobody has ever owned."""

    leader: Leader


@dataclass(frozen=True, slots=True)
class LeaseAlreadyThere:
    """A lease is there already; overwriting it would take it from its holder and forget its ballots. It may be one of a
    newer version, that can't be read.
    """

    leader: Leader | Malformed


async def init(
    area: LeaseArea,
    num_hosts: int | None = None,
    *,
    version: int = leaders.VERSION,
    overwrite: bool = False,
) -> LeaseInitialised | LeaseAlreadyThere | IoFailed:
    """Make an area a free lease for hosts 1..num_hosts, all hosts of the geometry when not given.

    `version`: that of its lockspace's leases (`LockspaceArea.lease_version`).
    """
    if not area.geometry.is_aligned(area.offset_bytes):
        return IoFailed(errno.EINVAL)
    if not overwrite:
        raw = await area.disk.read(area.offset_bytes, area.geometry.sector_bytes, timeout_s=INIT_TIMEOUT_S)
        if isinstance(raw, IoFailed):
            return raw
        present = Leader.decode(raw)
        if isinstance(present, Leader) or present.is_newer:
            return LeaseAlreadyThere(present)
    leader = areas.fresh_leader(
        area.geometry, area.space_name, area.resource_name, num_hosts, version=version
    )
    failed = await area.disk.write(area.offset_bytes, areas.lease_area(leader), timeout_s=INIT_TIMEOUT_S)
    return failed or LeaseInitialised(leader)

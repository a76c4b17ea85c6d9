"""Operations on the resource index: finding a lease by its name, making one, removing one.

Looking up needs no lock. Changes are made under the index's own lease, one host at a time, in an order that a crash
at any point leaves harmless:

    create   own index lease ─ find the name     ─ lowest free entry ─ make the lease ─ write the entry ─ give back
             a crash leaves a lease without an entry: no host finds it, and the next create may use its place
    delete   own index lease ─ (the caller owns the lease) ─ clear the lease ─ clear the entry ─ give back
             a crash leaves an entry whose lease is cleared: no host can win it, and the next create makes it again

An area without an entry is used only if it holds nothing that anybody may hold: zeros, a cleared lease, or a lease of
this lockspace that was never owned. Entries beyond what sanlock hosts can reach are not used. An *unindexed* lease has no
entry and was owned: its leader landed late, on top of the clearing. Its place is lost until it is removed (`lease gc`).

Where a lease was before, the new one continues its versions, and the blocks stay as they are: ballots recorded in them
stay binding (ADR 0103), and a late write has an older version and loses.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from holdfast.ondisk import areas, rindex
from holdfast.ondisk.geometry import SECTOR_4096, Geometry
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import MAGIC_CLEARED, Leader, says_caw
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.rindex import INTERNAL_LEASE_NAME, RindexEntry, RindexHeader
from holdfast.protocol.lease_area import INIT_TIMEOUT_S, LeaseArea
from holdfast.protocol.paxos_outcomes import LockspaceLost
from holdfast.protocol.ports import Disk
from holdfast.protocol.types import IoFailed

_CLEARED = MAGIC_CLEARED.to_bytes(4, "little")
_UNREADABLE = Malformed("host block", Reason.RANGE, "of an older lease", "one that can be gone on with")


@dataclass(frozen=True, slots=True)
class Index:
    """An index as it was read: its header and the whole area."""

    disk: Disk
    header: RindexHeader
    raw: bytes

    @property
    def geometry(self) -> Geometry:
        return self.header.geometry

    def internal_lease(self) -> LeaseArea:
        """The lease under which changes are made."""
        at = rindex.internal_lease_offset_bytes(self.geometry, self.header.rindex_offset_bytes)
        return LeaseArea(self.disk, at, self.geometry, self.header.space_name.text, INTERNAL_LEASE_NAME)

    def lease(self, index: int, name: str) -> LeaseArea:
        """The lease of an entry."""
        return LeaseArea(
            self.disk, _offset_bytes(self, index), self.geometry, self.header.space_name.text, name
        )

    def find(self, name: str) -> int | None:
        """The entry of that name, the first one if somebody made two."""
        return next((index for index, entry in self.entries() if entry.name.says(name)), None)

    def entries(self) -> list[tuple[int, RindexEntry]]:
        return list(rindex.entries(self.header, self.raw))


@dataclass(frozen=True, slots=True)
class Created:
    """The lease of entry `index` can be acquired now."""

    index: int


@dataclass(frozen=True, slots=True)
class IndexFull:
    """No entry is free whose place is free too."""

    entries_max: int


async def read_index(
    disk: Disk, offset_bytes: int, space_name: str, timeout_s: float
) -> Index | Malformed | IoFailed:
    """Read and verify the index that begins at that offset."""
    first = await disk.read(offset_bytes, SECTOR_4096, timeout_s=timeout_s)
    if isinstance(first, IoFailed):
        return first
    header = RindexHeader.decode(first)
    if isinstance(header, Malformed):
        return header
    if fault := header.verify(space_name, offset_bytes):
        return fault
    sector_bytes = header.geometry.sector_bytes
    length = rindex.entry_offset_bytes(header.geometry, header.entries_max - 1) + sector_bytes
    length = min(length - length % sector_bytes, header.geometry.align_bytes)
    raw = await disk.read(offset_bytes, length, timeout_s=timeout_s)
    return raw if isinstance(raw, IoFailed) else Index(disk, header, raw)


async def create_entry(
    index: Index,
    name: str,
    num_hosts: int | None,
    timeout_s: float,
    *,
    may_write: Callable[[], bool],
    version: int,
) -> Created | IndexFull | LockspaceLost | IoFailed:
    """Make a lease and enter it, or find it made. `index` was read while its lease was ours. `version`: of its leader.

    A write that is in flight when this fails may land later: the index's lease must be kept until it has.
    """
    found = index.find(name)
    if found is not None:
        return await _made_again_if_cleared(index, found, name, num_hosts, timeout_s, may_write, version)
    for number in _without_entry(index):
        raw = await _first_sector(index, number, timeout_s)
        if isinstance(raw, IoFailed):
            return IndexFull(number) if raw.errno == errno.EMSGSIZE else raw
        if _may_be_used(raw, index.header):
            # Where a lease has been, something may have to outlive it, about the disk that it was for.
            lvb = await index.lease(number, name).read_lvb(timeout_s) if any(raw) else b""
            if isinstance(lvb, IoFailed):
                return lvb
            if lvb:
                continue
            made = await _make_lease(index, number, name, num_hosts, timeout_s, may_write, version)
            if made is _UNREADABLE:
                continue
            if isinstance(made, LockspaceLost | IoFailed):
                return made
            entry = RindexEntry(offset_bytes=index.lease(number, name).offset_bytes, name=PaddedName.of(name))
            return await _write_entry(index, number, entry, timeout_s, may_write) or Created(number)
    return IndexFull(_entries_max(index))


@dataclass(frozen=True, slots=True)
class UnindexedLease:
    """A lease that no entry leads to."""

    offset_bytes: int
    name: str


async def unindexed(index: Index, timeout_s: float) -> list[UnindexedLease] | IoFailed:
    """Every unindexed lease. One that is being made is not among them, as it was never owned."""
    found: list[UnindexedLease] = []
    for number in _without_entry(index):
        raw = await _first_sector(index, number, timeout_s)
        if isinstance(raw, IoFailed):
            return found if raw.errno == errno.EMSGSIZE else raw
        if not _may_be_used(raw, index.header):
            leader = Leader.decode(raw)
            if isinstance(leader, Leader) and leader.space_name == index.header.space_name:
                found.append(UnindexedLease(_offset_bytes(index, number), leader.resource_name.text))
    return found


def _entries_max(index: Index) -> int:
    return min(index.header.entries_max, rindex.entries_shared_max(index.geometry))


def _without_entry(index: Index) -> Iterator[int]:
    """Places to look at until one is beyond the end (EMSGSIZE): sanlock makes as many entries as fit into an index, however
    small the device.
    """
    used = {number for number, _ in index.entries()}
    return (number for number in range(_entries_max(index)) if number not in used)


def _offset_bytes(index: Index, number: int) -> int:
    return rindex.slot_offset_bytes(index.geometry, index.header.rindex_offset_bytes, number)


async def _first_sector(index: Index, number: int, timeout_s: float) -> bytes | IoFailed:
    return await index.disk.read(
        _offset_bytes(index, number), index.geometry.sector_bytes, timeout_s=timeout_s
    )


async def _made_again_if_cleared(
    index: Index,
    number: int,
    name: str,
    num_hosts: int | None,
    timeout_s: float,
    may_write: Callable[[], bool],
    version: int,
) -> Created | LockspaceLost | IoFailed:
    """For a name that has an entry: the host that removed its lease may have come no further than clearing it."""
    raw = await _first_sector(index, number, timeout_s)
    if isinstance(raw, IoFailed):
        return raw
    if not raw.startswith(_CLEARED) or says_caw(raw):
        return Created(number)
    lvb = await index.lease(number, name).read_lvb(timeout_s)
    if isinstance(lvb, IoFailed):
        return lvb
    made = await _make_lease(
        index, number, name, num_hosts, timeout_s, may_write, version, keep_rest=bool(lvb)
    )
    return made if isinstance(made, LockspaceLost | IoFailed) else Created(number)


def _may_be_used(raw: bytes, header: RindexHeader) -> bool:
    """By the first sector of a place without an entry."""
    if not any(raw) or (raw.startswith(_CLEARED) and not says_caw(raw)):
        return True
    leader = Leader.decode(raw)
    # Never owned: left by a create that was cut short before its entry was written.
    if not isinstance(leader, Leader) or leader.space_name != header.space_name:
        return False
    return leader.is_free and leader.owner_id == 0 and not leader.uses_caw


async def _make_lease(
    index: Index,
    number: int,
    name: str,
    num_hosts: int | None,
    timeout_s: float,
    may_write: Callable[[], bool],
    version: int,
    *,
    keep_rest: bool = False,
) -> LockspaceLost | IoFailed | Malformed | None:
    """A free lease in a place that nobody may hold; `_UNREADABLE` where what was there can't be continued.

    `keep_rest`: only its leader is written, for what stands at the end of the area has to outlive it.
    """
    area = index.lease(number, name)
    leader = areas.fresh_leader(index.geometry, area.space_name, name, num_hosts, version=version)
    span = await index.disk.read(
        area.offset_bytes, index.geometry.lease_span_bytes(leader.num_hosts), timeout_s=timeout_s
    )
    if isinstance(span, IoFailed):
        return span
    lver = _greatest_lver(span, leader)
    if lver is None:
        return _UNREADABLE
    if not may_write():
        return LockspaceLost()
    if not keep_rest and not lver and not any(span[index.geometry.host_block_offset_bytes(1) :]):
        image = areas.lease_area(leader)
        return await index.disk.write(area.offset_bytes, image, timeout_s=INIT_TIMEOUT_S)
    leader = replace(leader, lver=lver)
    return await index.disk.write(area.offset_bytes, leader.sector(), timeout_s=timeout_s)


def _greatest_lver(span: bytes, leader: Leader) -> int | None:
    """Of what the hosts' blocks are about; None if one of them can't be read."""
    greatest = 0
    size = leader.geometry.sector_bytes
    begin = leader.geometry.host_block_offset_bytes(1)
    for at in range(begin, len(span), size):
        block = HostBlock.decode(span[at : at + size])
        if isinstance(block, Malformed):
            return None
        greatest = max(greatest, block.dblock.lver)
    return greatest


async def is_entered(
    disk: Disk, geometry: Geometry, rindex_offset_bytes: int, offset_bytes: int, name: str, timeout_s: float
) -> bool | IoFailed:
    """Whether the index still names the lease at that offset so: one sector is read."""
    number = (
        offset_bytes - rindex.slot_offset_bytes(geometry, rindex_offset_bytes, 0)
    ) // geometry.align_bytes
    within = rindex.entry_offset_bytes(geometry, number)
    size = geometry.sector_bytes
    at = within - within % size
    raw = await disk.read(rindex_offset_bytes + at, size, timeout_s=timeout_s)
    if isinstance(raw, IoFailed):
        return raw
    entry = RindexEntry.decode(raw[within - at :])
    return not isinstance(entry, Malformed) and entry.offset_bytes == offset_bytes and entry.name.says(name)


async def clear_entry(
    index: Index, number: int, timeout_s: float, *, may_write: Callable[[], bool]
) -> LockspaceLost | IoFailed | None:
    """Take an entry out. The index's lease is ours, and the lease of the entry is cleared."""
    return await _write_entry(index, number, RindexEntry(), timeout_s, may_write)


async def _write_entry(
    index: Index, number: int, entry: RindexEntry, timeout_s: float, may_write: Callable[[], bool]
) -> LockspaceLost | IoFailed | None:
    at, sector = rindex.sector_with_entry(index.header, index.raw, number, entry)
    if not may_write():
        return LockspaceLost()
    return await index.disk.write(index.header.rindex_offset_bytes + at, sector, timeout_s=timeout_s)


def is_cleared(found: Malformed) -> bool:
    """Whether this is a lease that was removed on purpose."""
    return found.reason is Reason.CLEARED

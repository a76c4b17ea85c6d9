"""The resource index at work: finding a lease by its name, making one, taking one out.

Looking up needs no lock. Changes are made under the index's own lease, one host at a time, in an order that a crash
at any point leaves harmless:

    create   own index lease ─ look for the name ─ lowest free entry ─ make the lease ─ write the entry ─ give back
             a crash leaves a lease without an entry: nobody finds it, and the next create may use its place
    delete   own index lease ─ (the caller owns the lease) ─ clear the entry ─ clear the lease ─ give back
             a crash leaves a lease without an entry, owned by a host: its place is not used while that is so

An area without an entry is used only if it holds nothing that anybody may hold: zeros, a cleared lease, or a lease of
this lockspace that was never owned. Entries beyond what sanlock hosts can reach are not used.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.ondisk import areas, rindex
from holdfast.ondisk.geometry import SECTOR_4096, Geometry
from holdfast.ondisk.leader import MAGIC_CLEARED, Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.rindex import INTERNAL_LEASE_NAME, RindexEntry, RindexHeader
from holdfast.protocol.lease_area import INIT_TIMEOUT_S, LeaseArea
from holdfast.protocol.paxos_outcomes import LockspaceLost
from holdfast.protocol.ports import Disk
from holdfast.protocol.words import IoFailed

_CLEARED = MAGIC_CLEARED.to_bytes(4, "little")


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
        at = rindex.slot_offset_bytes(self.geometry, self.header.rindex_offset_bytes, index)
        return LeaseArea(self.disk, at, self.geometry, self.header.space_name.text, name)

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
) -> Created | IndexFull | LockspaceLost | IoFailed:
    """Make a lease and enter it, or find it made. `index` was read while its lease was ours.

    A write that is in flight when this fails may land later: the index's lease must be kept until it has.
    """
    found = index.find(name)
    if found is not None:
        return Created(found)
    used = {number for number, _ in index.entries()}
    entries_max = min(index.header.entries_max, rindex.entries_shared_max(index.geometry))
    for number in range(entries_max):
        if number in used:
            continue
        usable = await _place_is_free(index, number, timeout_s)
        if isinstance(usable, IoFailed) and usable.errno == errno.EMSGSIZE:
            return IndexFull(
                number
            )  # sanlock makes as many entries as fit into an index, however small the device
        if isinstance(usable, IoFailed):
            return usable
        if usable:
            return await _create_at(index, number, name, num_hosts, timeout_s, may_write)
    return IndexFull(entries_max)


async def _place_is_free(index: Index, number: int, timeout_s: float) -> bool | IoFailed:
    at = rindex.slot_offset_bytes(index.geometry, index.header.rindex_offset_bytes, number)
    raw = await index.disk.read(at, index.geometry.sector_bytes, timeout_s=timeout_s)
    if isinstance(raw, IoFailed):
        return raw
    if not any(raw) or raw.startswith(_CLEARED):
        return True
    leader = Leader.decode(raw)
    # Never owned: left by a create that was cut short before its entry was written.
    return isinstance(leader, Leader) and leader.lver == 0 and leader.space_name == index.header.space_name


async def _create_at(
    index: Index,
    number: int,
    name: str,
    num_hosts: int | None,
    timeout_s: float,
    may_write: Callable[[], bool],
) -> Created | LockspaceLost | IoFailed:
    area = index.lease(number, name)
    leader = areas.fresh_leader(index.geometry, area.space_name, name, num_hosts)
    if not may_write():
        return LockspaceLost()
    failed = await index.disk.write(area.offset_bytes, areas.lease_area(leader), timeout_s=INIT_TIMEOUT_S)
    if failed is not None:
        return failed
    entry = RindexEntry(offset_bytes=area.offset_bytes, name=PaddedName.of(name))
    return await _write_entry(index, number, entry, timeout_s, may_write) or Created(number)


async def clear_entry(
    index: Index, number: int, timeout_s: float, *, may_write: Callable[[], bool]
) -> LockspaceLost | IoFailed | None:
    """Take an entry out. The index's lease and the lease of the entry are ours."""
    return await _write_entry(index, number, RindexEntry(), timeout_s, may_write)


async def _write_entry(
    index: Index, number: int, entry: RindexEntry, timeout_s: float, may_write: Callable[[], bool]
) -> LockspaceLost | IoFailed | None:
    at, sector = rindex.sector_with_entry(index.header, index.raw, number, entry)
    if not may_write():
        return LockspaceLost()
    return await index.disk.write(index.header.rindex_offset_bytes + at, sector, timeout_s=timeout_s)


def is_cleared(found: Malformed) -> bool:
    """Whether this is a lease that was taken out on purpose."""
    return found.reason is Reason.CLEARED

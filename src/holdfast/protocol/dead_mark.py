"""The mark DEAD_EXT: "this host is dead, by an outside authority", written into another host's record.

sanlock 4 and later. A fencing agent or an operator knows that a host is off, and has any host of the lockspace mark it.
Every reader believes the mark at once, so one write frees all leases of that term, for hosts with sanlock too (spec
newer-sanlock.md, 1.4). It is the only write into another host's record that this protocol knows:

    marker (host 2, generation 1)                     the others
    reads the record of host 1: generation 4
    writes it with the flag, and 0x20001 at 160       see the flag: every lease of (host 1, generation 4) is free
    reads it again

The mark is about the generation that stands in the record, and no other. If that host lives all the same, its next renewal
finds the mark and ends its term (`delta_lease.MarkedDead`), unless that renewal was just being written: then the mark is
gone, which the second read shows. So it is written only over a record that is as our looks have shown it for a while,
and it must stand afterwards.
"""

from dataclasses import dataclass

from holdfast.ondisk.delta import FLAGS_MEAN_FROM, DeltaLease, decode_bitmap
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.record_layout import major_of, version_text
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.types import Generation, HostId, HostTimestamp, IoFailed


@dataclass(frozen=True, slots=True)
class Marked:
    """The mark stands. `record` is what was read last."""

    record: DeltaLease


@dataclass(frozen=True, slots=True)
class NotMarked:
    """Nothing was written, or what was written does not stand, and why."""

    reason: str


def can_be_marked(area: LockspaceArea) -> bool:
    """Whether records of this lockspace can carry the mark at all."""
    return major_of(area.version) >= FLAGS_MEAN_FROM


async def mark_dead(
    member: Membership, host_id: HostId, generation: Generation, timestamp: HostTimestamp
) -> Marked | NotMarked | IoFailed:
    """Mark this term of another host. `timestamp`: what our looks have shown, for as long as its silence has to be.

    sanlock accepts a generation greater than the one on disk, and writes that. Nothing is gained by it: the word would be
    about a term that nobody has seen.
    """
    area, timeout_s = member.lockspace, member.io_timeout_s
    raw = await area.read_sector(host_id, timeout_s)
    if isinstance(raw, IoFailed):
        return raw
    found = area.decode(host_id, raw)
    if isinstance(found, Malformed):
        return NotMarked(f"its record can't be read: {found}")
    if refusal := _refusal(found, generation, timestamp):
        return NotMarked(refusal)
    if found.is_marked_dead:
        return Marked(found)
    notified = decode_bitmap(raw)
    marked = found.marked_dead(member.host_id, member.generation)
    if not member.may_write():
        return NotMarked("this host has just lost the lockspace")
    sector = marked.sector(() if isinstance(notified, Malformed) else notified)
    if failed := await area.write_sector(host_id, sector, timeout_s):
        return failed
    again = await area.read_record(host_id, timeout_s)
    if isinstance(again, IoFailed):
        return again
    if again != marked:
        return NotMarked("its record has changed meanwhile: that host is not off")
    return Marked(marked)


def _refusal(found: DeltaLease, generation: Generation, timestamp: HostTimestamp) -> str:
    """Why this record may not be marked; empty if it may."""
    if major_of(found.version) < FLAGS_MEAN_FROM:
        return f"its record is of version {version_text(found.version)}, which has no such mark"
    if fault := found.write_fault():
        return str(fault)
    if found.generation != generation:
        return f"its record is of generation {found.generation} by now, not {generation}"
    if found.is_free:
        return "it has given its host id back"
    if HostTimestamp(found.timestamp) != timestamp and not found.is_marked_dead:
        return "it has renewed its record meanwhile: it is not off"
    return ""

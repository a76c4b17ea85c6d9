"""What is on an area? The first question before it is overwritten, and the whole question of a dump.

Pure: bytes in, findings out. Bytes come from a disk that anybody may have written to, so names are made harmless
before they are shown, and nothing raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from holdfast.ondisk import delta, leader, rindex
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_SIZES, Geometry
from holdfast.ondisk.host_block import HOST_BLOCK_BYTES, NEVER_WRITTEN, HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.rindex import RindexHeader
from holdfast.protocol.holders import Exclusive, Free, Holders, Released, Shared, Unclear, holders_of
from holdfast.protocol.types import HostId

_NAMES_MAX = 4
# (offset, bytes, what it is): enough to warn a person about the common cases, not a file(1).
_SIGNATURES = (
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"XFSB", "an XFS file system"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
)


@dataclass(frozen=True, slots=True)
class Blank:
    """Nothing but zeros, or nothing at all."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Bytes that are none of the format's records."""

    what: str
    is_known: bool = False
    """Whether a signature shows that."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """One of the format's records, unreadable."""

    fault: Malformed


@dataclass(frozen=True, slots=True)
class Newer:
    """A record that a newer program may have written: not damaged, and in use for all that can be known here."""

    fault: Malformed


@dataclass(frozen=True, slots=True)
class ClearedLease:
    """A lease that its makers have given up."""


@dataclass(frozen=True, slots=True)
class UnfinishedLockspace:
    """Somebody was about to initialise a lockspace here: host 1's record still lacks its magic number."""

    name: PaddedName


Found = (
    Blank
    | Foreign
    | Damaged
    | Newer
    | ClearedLease
    | UnfinishedLockspace
    | DeltaLease
    | Leader
    | RindexHeader
)


def shown(name: PaddedName | str) -> str:
    """A name for eyes and JSON: control characters and bytes that are no text are spelled out."""
    text = name if isinstance(name, str) else name.text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def identify(raw: bytes) -> Found:
    """What begins at the begin of `raw`, which is a whole area or what there is of one."""
    magic = int.from_bytes(raw[:4], "little")
    match magic:
        case delta.MAGIC:
            found: DeltaLease | Leader | RindexHeader | Malformed = DeltaLease.decode(raw)
        case leader.MAGIC:
            found = Leader.decode(raw)
        case leader.MAGIC_CLEARED:
            return ClearedLease()
        case rindex.MAGIC:
            found = RindexHeader.decode(raw)
        case _:
            return _without_magic(raw)
    if not isinstance(found, Malformed):
        return found
    return Newer(found) if found.is_newer else Damaged(found)


def _without_magic(raw: bytes) -> Blank | Foreign | UnfinishedLockspace:
    if raw.count(0) == len(raw):
        return Blank()
    for sector in SECTOR_SIZES:
        second = DeltaLease.decode(raw[sector : sector + DeltaLease.BYTES])
        if not any(raw[:4]) and isinstance(second, DeltaLease):
            return UnfinishedLockspace(second.space_name)
    for at, signature, what in _SIGNATURES:
        if raw[at : at + len(signature)] == signature:
            return Foreign(what, is_known=True)
    first = len(raw) - len(raw.lstrip(b"\0"))
    return Foreign(f"bytes of something else (the first at {first})")


def hosts_of(raw: bytes, geometry: Geometry) -> dict[int, DeltaLease | Malformed]:
    """The records of a lockspace area by host id, without those never used."""
    hosts: dict[int, DeltaLease | Malformed] = {}
    for host_id in range(1, geometry.hosts_max + 1):
        at = geometry.delta_offset_bytes(host_id)
        if at + geometry.sector_bytes > len(raw):
            break
        record = DeltaLease.decode(raw[at : at + DeltaLease.BYTES])
        if isinstance(record, Malformed) or not record.is_never_used:
            hosts[host_id] = record
    return hosts


def blocks_of(raw: bytes, lease: Leader) -> dict[HostId, HostBlock | Malformed]:
    """The host blocks of a lease area that were ever written."""
    blocks: dict[HostId, HostBlock | Malformed] = {}
    for host_id in range(1, lease.num_hosts + 1):
        at = lease.geometry.host_block_offset_bytes(host_id)
        if at + HOST_BLOCK_BYTES > len(raw):
            break
        block = HostBlock.decode(raw[at : at + HOST_BLOCK_BYTES])
        if block != NEVER_WRITTEN:
            blocks[HostId(host_id)] = block
    return blocks


def lvb_of(raw: bytes, lease: Leader) -> str:
    """What a lease keeps in its sector 2002, as far as it is text; libvirt keeps there which VM owns the disk."""
    if not lease.geometry.has_lvb:
        return ""
    at = lease.geometry.lvb_offset_bytes
    lvb = raw[at : at + lease.geometry.sector_bytes].rstrip(b"\0")
    return shown(lvb.decode("utf-8", "surrogateescape"))


def describe(found: Found, raw: bytes) -> str:
    """One sentence for a user who is about to overwrite it."""
    match found:
        case Blank():
            return "nothing"
        case Foreign(what):
            return what
        case Damaged(fault):
            return f"a damaged {fault.record} ({fault.reason.value})"
        case Newer(fault):
            return f"a {fault.record} {fault.reason.value} ({fault.found}), which a host may be using"
        case ClearedLease():
            return "a cleared lease"
        case UnfinishedLockspace(name):
            return f"lockspace {shown(name)!r}, whose initialisation was never finished"
        case DeltaLease():
            return _describe_lockspace(found, raw)
        case Leader():
            return _describe_lease(found, raw)
        case RindexHeader():
            entries = sum(1 for _ in rindex.entries(found, raw))
            return f"the resource index of lockspace {shown(found.space_name)!r} with {entries} entries"


def _describe_lockspace(first: DeltaLease, raw: bytes) -> str:
    hosts = hosts_of(raw, first.geometry)
    held = [
        f"{shown(record.host_name)} (host_id {host_id})"
        for host_id, record in hosts.items()
        if isinstance(record, DeltaLease) and not record.is_free
    ]
    names = ", ".join(held[:_NAMES_MAX])
    more = f" and {len(held) - _NAMES_MAX} more" if len(held) > _NAMES_MAX else ""
    users = f"in use by {names}{more}" if held else "used by no host now"
    return f"lockspace {shown(first.space_name)!r} ({first.geometry}), {users}"


def _describe_lease(lease: Leader, raw: bytes) -> str:
    what = f"the lease of {shown(lease.resource_name)!r} in lockspace {shown(lease.space_name)!r}"
    holders = holders_of(lease, blocks_of(raw, lease))
    lvb = lvb_of(raw, lease)
    return f"{what}, {_described(holders)}" + (f", with {lvb!r} in its sector 2002" if lvb else "")


def _described(holders: Holders) -> str:
    match holders:
        case Free() | Released():
            return "free"
        case Exclusive((host_id, generation)):
            return f"owned by host_id {host_id} generation {generation}"
        case Shared(sharers):
            hosts = ", ".join(str(host_id) for host_id, _ in sharers[:_NAMES_MAX])
            return f"shared by host_id {hosts}"
        case Unclear(_, known):
            rest = "" if isinstance(known, Free | Released) else f"{_described(known)}; "
            return f"{rest}{holders}"
        case _:
            assert_never(holders)


def is_reusable(found: Found) -> bool:
    """Whether a new area may be made here without --force."""
    return isinstance(found, Blank | ClearedLease)

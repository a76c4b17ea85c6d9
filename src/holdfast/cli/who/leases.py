"""The holders of a disk's leases, from storage alone: leader, shared holds, the notes after them, the hosts' records.

A disk has more than one lease where libvirt may name it in more than one way: by its path, and in each lockspace
directory of qemu-lockd.conf (`libvirt_files.libvirt_names`). Each is read; any of them that is held makes the disk held.

One read can't show whether a host lives, for timestamps are readings of the hosts' own clocks; the daemon, if it runs,
has read them all the time, and its answer is added. Nothing is written, and no lease is made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from holdfast.backends.naming import NameBy, lease_name
from holdfast.backends.paxos import owner_note
from holdfast.backends.paxos.config import LIBVIRT_LOCKSPACE
from holdfast.cli.offline import storage
from holdfast.cli.offline.identify import blocks_of, shown
from holdfast.cli.who.client_leases import ClientLease
from holdfast.cli.who.evidence import LeaseClaim, LeaseSeen, Unreadable
from holdfast.control.api import HostInfo, LeaseSpaceInfo
from holdfast.model import IDENTITY_LOCKSPACE, Resource
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_4096
from holdfast.ondisk.host_block import note_of
from holdfast.ondisk.leader import Leader
from holdfast.protocol.holders import Claim, Unclear, claims_of, holders_of
from holdfast.protocol.resource_index import Index, read_index
from holdfast.protocol.takeover import NEVER_BY_TIME
from holdfast.system.block_io.blocking_ports import run_blocking
from holdfast.system.block_io.disk import BlockingDisk
from holdfast.system.files.disk_identity import DiskIdentity

ONE_LOOK = "one look can't tell whether that host lives (holdfast host list --watch)"
_INDEX_TIMEOUT_S = 30.0


def look(
    backend: str,
    table: Mapping[str, object],
    resources: Sequence[Resource],
    disk: DiskIdentity,
    spaces: list[LeaseSpaceInfo],
    strong: str = "",
) -> list[LeaseSeen]:
    """The leases of a disk in one backend, under all names that libvirt may give it and under its identity (`strong`);
    those that nobody made are left out.
    """
    by = NameBy(str(table.get("name_by", NameBy.PATH_MD5.value)))
    if by in (NameBy.PATH_MD5, NameBy.PATH_SHA256) and strong:
        resources = [*resources, Resource(IDENTITY_LOCKSPACE, strong)]
    names = dict.fromkeys(lease_name(resource, by, disk) for resource in resources)
    seen = (_look(backend, table, name, spaces) for name in names if name)
    return [each for each in seen if each is not None]


def unreadable(place: str, reason: str) -> Unreadable:
    """For a lease of which something could not be read."""
    return Unreadable("its lease", f"lease {place}: {reason}")


def look_at(lease: ClientLease, space: LeaseSpaceInfo | None) -> LeaseSeen:
    """A lease of sanlock's clients at its place. `space`: the lockspace as this host's daemon sees it, if it does."""
    try:
        with storage.opened(lease.path) as disk:
            leader = Leader.decode(storage.read(disk, lease.offset_bytes, SECTOR_4096))
            if isinstance(leader, Leader):
                called = f"{shown(leader.space_name)}:{shown(leader.resource_name)}"
                if called != f"{lease.lockspace}:{lease.name}":
                    return unreadable_at(lease, f"the lease at that place is called {called}")
            return read(lease.lockspace, lease.place, disk, lease.offset_bytes, None, space)
    except storage.UsageError as e:
        return unreadable_at(lease, str(e))


def unreadable_at(lease: ClientLease, reason: str) -> LeaseSeen:
    """It may be held."""
    return LeaseSeen("", lease.place, unreadable=unreadable(lease.place, reason))


def _look(
    backend: str, table: Mapping[str, object], name: str, spaces: list[LeaseSpaceInfo]
) -> LeaseSeen | None:
    space = str(table.get("lockspace", LIBVIRT_LOCKSPACE))
    seen_by_daemon = next((each for each in spaces if each.name == space), None)
    directory = str(table.get("directory", ""))
    place = f"{directory}/{name}" if directory else str(table.get("device", ""))
    try:
        if directory:
            if not _is_there(place, f"{directory}/{space}"):
                return None
            with storage.opened(place) as disk, storage.opened(f"{directory}/{space}") as hosts:
                return read(backend, place, disk, 0, hosts, seen_by_daemon)
        with storage.opened(place) as disk:
            offset = _find(disk, space, name)
            if offset is None:
                return None
            place = f"{place}:{offset}"
            return read(backend, place, disk, offset, disk, seen_by_daemon)
    except storage.UsageError as e:
        return LeaseSeen(backend, place, unreadable=unreadable(place, str(e)))


def _is_there(lease: str, lockspace: str) -> bool:
    """False only if the lockspace is there and the lease is not: an empty mount point has neither."""
    try:
        os.stat(lockspace)
        os.stat(lease)
    except FileNotFoundError as e:
        if e.filename == lease:
            return False
        raise storage.UsageError(
            "directory", f"there is no lockspace {lockspace}", "see whether its storage is mounted"
        ) from None
    except OSError as e:
        raise storage.UsageError("directory", f"{e.filename}: {e.strerror}", "ask as root") from None
    return True


def _find(disk: BlockingDisk, space: str, name: str) -> int | None:
    first = DeltaLease.decode(storage.read(disk, 0, SECTOR_4096))
    if not isinstance(first, DeltaLease):
        fix = first.fix or "check the configuration"
        raise storage.UsageError("device", f"{disk.facts.path} holds no lockspace: {first}", fix)
    index = run_blocking(read_index(disk, first.geometry.align_bytes, space, _INDEX_TIMEOUT_S))
    if not isinstance(index, Index):
        raise storage.UsageError(
            "device", f"{disk.facts.path} has no index: {index}", "make it with 'lockspace init --index'"
        )
    number = index.find(name)
    return None if number is None else index.lease(number, name).offset_bytes


def read(
    backend: str,
    place: str,
    disk: BlockingDisk,
    offset: int,
    hosts: BlockingDisk | None,
    by_daemon: LeaseSpaceInfo | None,
) -> LeaseSeen:
    """One lease. `hosts`: where the hosts' records are, None if that is not known; `by_daemon`: what this host's daemon
    knows of them, if it runs.
    """
    leader = Leader.decode(storage.read(disk, offset, SECTOR_4096))
    if not isinstance(leader, Leader):
        why = f"{leader}; {leader.fix}" if leader.fix else str(leader)
        return LeaseSeen(backend, place, unreadable=unreadable(place, why))
    geometry = leader.geometry
    raw = storage.read(disk, offset, geometry.lease_span_bytes(leader.num_hosts))
    known = holders_of(leader, blocks_of(raw, leader))
    found: list[LeaseClaim] = []
    for claim in claims_of(known):
        at = geometry.host_block_offset_bytes(claim.term[0])
        found.append(_claim(claim, hosts, raw[at : at + geometry.sector_bytes], by_daemon))
    damaged = unreadable(place, str(known)) if isinstance(known, Unclear) else None
    return LeaseSeen(backend, place, leader.lver, known, tuple(found), damaged)


def _claim(
    claim: Claim, hosts: BlockingDisk | None, sector: bytes, by_daemon: LeaseSpaceInfo | None
) -> LeaseClaim:
    host_id, generation = claim.term
    record = record_of(hosts, host_id) if hosts is not None else None
    # A newer generation alone proves nothing about an older term, except to its own host (ADR 0141).
    own_earlier = by_daemon is not None and by_daemon.host_id == host_id and by_daemon.generation > generation
    ended = record is not None and (record.is_free or record.is_marked_dead)
    over = own_earlier or (record is not None and ended and record.generation == generation)
    newer = record.generation if record is not None and record.generation > generation else 0
    view = next((h for h in by_daemon.hosts if h.host_id == host_id), None) if by_daemon is not None else None
    own = by_daemon is not None and by_daemon.host_id == host_id and by_daemon.generation == generation
    alive = view.unchanged_s if view is not None and view.state == "LIVE" and not newer else None
    if own and by_daemon is not None:
        alive = by_daemon.renewed_s_ago
    holder = owner_note.decode(
        note_of(sector),
        host=shown(record.host_name) if record is not None else (view.name if view is not None else ""),
        host_id=host_id,
        mode=claim.mode,
        alive_s_ago=alive,
        remark=_remark(over, own, newer, view, never=record is not None and record.is_no_timeout),
    )
    return LeaseClaim(holder, claim.mode, over)


def _remark(over: bool, own: bool, newer: int, view: HostInfo | None, *, never: bool) -> str:
    state = view.state if view is not None else ""
    dead_in_s = view.dead_in_s if view is not None else None
    if newer and never and not over:
        return f"its host has joined again since (generation {newer}); {NEVER_BY_TIME}"
    if newer and not over:
        return (
            f"its host has joined anew since (generation {newer}); this hold counts until its end is proven"
        )
    if over or own or state == "LIVE":
        return ""
    if state == "DEAD":
        return "host DEAD: the next start takes it over"
    if never:
        return f"host {state or 'not seen'}: {NEVER_BY_TIME}"
    if state and dead_in_s is not None:
        return f"host {state}: can be taken over in {dead_in_s:.0f} s if it does not come back"
    return ONE_LOOK


def record_of(hosts: BlockingDisk, host_id: int) -> DeltaLease | None:
    """A host's record in a lockspace; None if there is none that can be read."""
    first = DeltaLease.decode(storage.read(hosts, 0, SECTOR_4096))
    if not isinstance(first, DeltaLease) or host_id > first.geometry.hosts_max:
        return None
    size = first.geometry.sector_bytes
    record = DeltaLease.decode(storage.read(hosts, first.geometry.delta_offset_bytes(host_id), size))
    return record if isinstance(record, DeltaLease) else None

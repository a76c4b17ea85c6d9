"""Who holds a disk's lease, from storage alone: the leader, the shared holds, the notes behind them, the hosts' records.

One look can't tell whether a host lives, for timestamps are readings of the hosts' own clocks; the daemon, if it runs,
has been looking all the time, and its word is added. Nothing is written, and no lease is made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.backends import lease_note
from holdfast.backends.lock_names import NameBy, lease_name
from holdfast.backends.paxos_table import LIBVIRT_LOCKSPACE
from holdfast.cli import storage
from holdfast.cli.area_contents import shown
from holdfast.control_api import LeaseSpaceInfo
from holdfast.model import Holder, Mode, Resource
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_4096
from holdfast.ondisk.host_block import HostBlock, note_of
from holdfast.ondisk.leader import Leader
from holdfast.protocol.owner_test import gave_up
from holdfast.protocol.rindex_area import Index, read_index
from holdfast.system.blocking_thread import run_blocking
from holdfast.system.disk import BlockingDisk
from holdfast.system.disk_identity import SystemDiskIdentities

_INDEX_TIMEOUT_S = 30.0


@dataclass
class LeaseSeen:
    """What storage tells of one disk's lease. `holders`: of terms that are not over."""

    backend: str
    place: str
    holders: list[Holder] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    unreadable: str = ""


def look(
    backend: str, table: Mapping[str, object], path: str, spaces: list[LeaseSpaceInfo]
) -> LeaseSeen | None:
    """The lease of a disk in one backend; None if the disk has none there."""
    by = NameBy(str(table.get("name_by", NameBy.PATH_MD5.value)))
    name = lease_name(Resource("", path), by, SystemDiskIdentities().look(path))
    if not name:
        return None
    space = str(table.get("lockspace", LIBVIRT_LOCKSPACE))
    seen_by_daemon = next((each for each in spaces if each.name == space), None)
    directory = str(table.get("directory", ""))
    seen = LeaseSeen(backend, f"{directory}/{name}" if directory else str(table.get("device", "")))
    try:
        if directory:
            if not os.path.exists(seen.place):
                return None
            with storage.opened(seen.place) as disk, storage.opened(f"{directory}/{space}") as hosts:
                _read(seen, disk, 0, hosts, seen_by_daemon)
        else:
            with storage.opened(seen.place) as disk:
                offset = _find(disk, space, name)
                if offset is None:
                    return None
                seen.place = f"{seen.place}:{offset}"
                _read(seen, disk, offset, disk, seen_by_daemon)
    except storage.Trouble as e:
        seen.unreadable = str(e)
    return seen


def _find(disk: BlockingDisk, space: str, name: str) -> int | None:
    first = DeltaLease.decode(storage.read(disk, 0, SECTOR_4096))
    if not isinstance(first, DeltaLease):
        raise storage.Trouble("device", f"{disk.facts.path} holds no lockspace", "check the configuration")
    index = run_blocking(read_index(disk, first.geometry.align_bytes, space, _INDEX_TIMEOUT_S))
    if not isinstance(index, Index):
        raise storage.Trouble(
            "device", f"{disk.facts.path} has no index: {index}", "make it with 'lockspace init --index'"
        )
    number = index.find(name)
    return None if number is None else index.lease(number, name).offset_bytes


def _read(
    seen: LeaseSeen, disk: BlockingDisk, offset: int, hosts: BlockingDisk, told: LeaseSpaceInfo | None
) -> None:
    leader = Leader.decode(storage.read(disk, offset, SECTOR_4096))
    if not isinstance(leader, Leader):
        seen.unreadable = str(leader)
        return
    geometry = leader.geometry
    raw = storage.read(disk, offset, geometry.lease_span_bytes(leader.num_hosts))
    sectors = {
        host_id: raw[at : at + geometry.sector_bytes]
        for host_id in range(1, leader.num_hosts + 1)
        if (at := geometry.host_block_offset_bytes(host_id)) < len(raw)
    }
    claims: list[tuple[int, int, Mode]] = []
    if not leader.is_free:
        block = HostBlock.decode(sectors.get(leader.owner_id, b""))
        if not (isinstance(block, HostBlock) and gave_up(block.dblock, leader.lver)):
            claims.append((leader.owner_id, leader.owner_generation, Mode.EXCLUSIVE))
    for host_id, sector in sectors.items():
        block = HostBlock.decode(sector)
        if isinstance(block, HostBlock) and block.mode.is_shared and block.mode.generation:
            claims.append((host_id, block.mode.generation, Mode.SHARED))
    for host_id, generation, mode in claims:
        _claim(seen, hosts, host_id, generation, mode, sectors.get(host_id, b""), told)
    if not claims:
        seen.lines.append(f"free at version {leader.lver}")


def _claim(
    seen: LeaseSeen,
    hosts: BlockingDisk,
    host_id: int,
    generation: int,
    mode: Mode,
    sector: bytes,
    told: LeaseSpaceInfo | None,
) -> None:
    record = _record(hosts, host_id)
    # A newer generation alone proves nothing about an older term, except to its own host (ADR 0141).
    own_earlier = told is not None and told.host_id == host_id and told.generation > generation
    over = own_earlier or (record is not None and record.is_free and record.generation == generation)
    newer = record.generation if record is not None and record.generation > generation else 0
    view = next((h for h in told.hosts if h.host_id == host_id), None) if told is not None else None
    own = told is not None and told.host_id == host_id and told.generation == generation
    alive = view.unchanged_s if view is not None and view.state == "LIVE" and not newer else None
    if own and told is not None:
        alive = told.renewed_s_ago
    holder = lease_note.decode(
        note_of(sector),
        host=shown(record.host_name) if record is not None else "",
        host_id=host_id,
        mode=mode,
        alive_s_ago=alive,
        remark=_remark(
            over, own, newer, view.state if view is not None else "", view.dead_in_s if view else None
        ),
    )
    if over:
        seen.lines.append(f"left by {holder}: that term of the host is over, so the next start may take it")
    else:
        seen.holders.append(holder)
        seen.lines.append(f"{mode.word} lease of {holder}")


def _remark(over: bool, own: bool, newer: int, state: str, dead_in_s: float | None) -> str:
    if newer and not over:
        return (
            f"its host has joined anew since (generation {newer}); this hold counts until its end is proven"
        )
    if over or own or state == "LIVE":
        return ""
    if state == "DEAD":
        return "host DEAD: the next start takes it over"
    if state and dead_in_s is not None:
        return f"host {state}: can be taken over in {dead_in_s:.0f} s if it does not come back"
    return "one look can't tell whether that host lives (holdfast host list --watch)"


def _record(hosts: BlockingDisk, host_id: int) -> DeltaLease | None:
    first = DeltaLease.decode(storage.read(hosts, 0, SECTOR_4096))
    if not isinstance(first, DeltaLease) or host_id > first.geometry.hosts_max:
        return None
    size = first.geometry.sector_bytes
    record = DeltaLease.decode(storage.read(hosts, first.geometry.delta_offset_bytes(host_id), size))
    return record if isinstance(record, DeltaLease) else None

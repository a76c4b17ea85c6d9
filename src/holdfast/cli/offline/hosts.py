"""What one read, or two, of a lockspace show of its hosts.

A timestamp is a reading of the other host's own clock, so its value says nothing here; that it *changes* says that
the host lives. The table that judges this is the daemon's own (`protocol.host_status`), fed with one or two reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from holdfast.cli.offline import storage
from holdfast.cli.offline.identify import Newer, describe, hosts_of, identify, shown
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_4096
from holdfast.ondisk.host_record import HostRecord, decode
from holdfast.ondisk.malformed import NEWER_FIX, Malformed
from holdfast.protocol.host_status import HostState, HostTable, HostView, Sampled
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId
from holdfast.system.block_io.blocking_ports import BlockingClock, run_blocking
from holdfast.system.block_io.disk import BlockingDisk
from holdfast.system.files.bounded_question import Silent, answer_in_time
from holdfast.system.files.host_record_files import read_records

_NOBODY = HostId(0)
"""We are no host of this lockspace: none of its ids is our own."""


@dataclass
class HostSeen:
    host_id: int
    name: str
    generation: int
    timestamp: int
    io_timeout: int
    state: str
    note: str
    fault: str | None = None
    node: str = ""
    """Its whole name, as it says itself; empty where it says nothing that can be believed."""
    version: str = ""
    fire_timeout: int = 0


@dataclass
class HostsSeen:
    path: str
    offset: int
    lockspace: str
    geometry: str
    watched_s: float | None
    hosts: list[HostSeen] = field(default_factory=list)


def look_at_hosts(
    disk: BlockingDisk,
    offset_bytes: int,
    clock: BlockingClock,
    timing: Timing,
    watch_s: float | None,
    said: Mapping[int, HostRecord],
) -> HostsSeen:
    first = _first_record(disk, offset_bytes)
    table = HostTable(first.space_name.text, _NOBODY, timing)
    raw = _look(disk, offset_bytes, first, clock, table)
    if watch_s is not None:
        run_blocking(clock.sleep(watch_s))
        raw = _look(disk, offset_bytes, first, clock, table)
    result = HostsSeen(disk.facts.path, offset_bytes, shown(first.space_name), str(first.geometry), watch_s)
    now = clock.now()
    for host_id, record in hosts_of(raw, first.geometry).items():
        view = table.view(HostId(host_id), now)
        seen = _seen(host_id, record, view, timing, watch_s)
        own = said.get(host_id)
        if own is not None and isinstance(record, DeltaLease) and own.is_about(record):
            seen.node, seen.version, seen.fire_timeout = own.node, own.version, own.fire_timeout_s
        result.hosts.append(seen)
    return result


def records_beside(path: str) -> dict[int, HostRecord]:
    """What hosts say of themselves, as far as it can be read in time. To be read before the lockspace is."""
    try:
        found = answer_in_time(partial(read_records, path))
    except (OSError, Silent):
        return {}
    if isinstance(found, str):
        return {}
    records = {host_id: decode(raw) for host_id, raw in found.items()}
    return {host_id: record for host_id, record in records.items() if record is not None}


def _first_record(disk: BlockingDisk, offset_bytes: int) -> DeltaLease:
    raw = storage.read(disk, offset_bytes, SECTOR_4096)
    first = identify(raw)
    if isinstance(first, DeltaLease):
        return first
    fix = "name a lockspace's path (see 'holdfast lease dump' for what is where)"
    if isinstance(first, Newer):
        fix = NEWER_FIX
    raise storage.UsageError(
        "LOCKSPACE-PATH",
        f"no lockspace in {disk.facts.path} at {offset_bytes}, but {describe(first, raw)}",
        fix,
    )


def _look(
    disk: BlockingDisk, offset_bytes: int, first: DeltaLease, clock: BlockingClock, table: HostTable
) -> bytes:
    begun_at = clock.now()
    geometry = first.geometry
    raw = storage.read(disk, offset_bytes, geometry.align_bytes)
    sectors = {
        HostId(host_id): raw[at : at + geometry.sector_bytes]
        for host_id in range(1, geometry.hosts_max + 1)
        if (at := geometry.delta_offset_bytes(host_id)) + geometry.sector_bytes <= len(raw)
    }
    table.step(clock.now(), Sampled(begun_at, sectors))
    return raw


def _seen(
    host_id: int, record: DeltaLease | Malformed, view: HostView, timing: Timing, watch_s: float | None
) -> HostSeen:
    if isinstance(record, Malformed):
        return HostSeen(host_id, "", 0, 0, 0, HostState.UNKNOWN.name, f"unreadable: {record}", str(record))
    seen = HostSeen(
        host_id,
        shown(record.host_name),
        record.generation,
        record.timestamp,
        record.io_timeout_s,
        view.state.name,
        "",
        view.fault or None,
    )
    bounds = timing.of_host(record.io_timeout_s, record.host_name.text)
    match view.state:
        case HostState.FREE:
            seen.note = "nobody holds this id"
        case HostState.LIVE:
            seen.note = "renewed meanwhile"
        case HostState.DEAD if view.marked_by is not None:
            seen.note = view.note
        case HostState.DEAD:
            seen.note = (
                f"unchanged for {view.unchanged_s:.0f} s, longer than its dead bound of {bounds.dead_s} s"
            )
        case HostState.FAIL if view.no_timeout:
            seen.note = f"unchanged for {view.unchanged_s:.0f} s; {view.note}"
        case HostState.FAIL:
            seen.note = (
                f"unchanged for {view.unchanged_s:.0f} s; dead at the earliest in {view.dead_in_s or 0:.0f} s"
            )
        case HostState.UNKNOWN if view.fault:
            seen.note = f"unusable: {view.fault}"
        case HostState.UNKNOWN if watch_s is None:
            seen.note = f"one look cannot tell; --watch {bounds.renewal_s + bounds.io_timeout_s} shows whether it renews"
        case HostState.UNKNOWN:
            seen.note = (
                f"not yet known: unchanged for {view.unchanged_s:.0f} s, a healthy host renews every "
                f"{bounds.renewal_s} s"
            )
    return seen

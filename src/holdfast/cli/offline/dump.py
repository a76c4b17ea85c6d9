"""What is on a path of shared storage, area by area, as records and for eyes.

Areas are found by their first record; its sizes say where the next one begins. Hosts are called by name where their
lockspace is on the same path or was named, and only for the very generation that owns: another generation of an id is
another incarnation, perhaps of another host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from holdfast.backends.paxos import owner_note
from holdfast.cli.offline import storage
from holdfast.cli.offline.identify import (
    Blank,
    Foreign,
    blocks_of,
    describe,
    hosts_of,
    identify,
    lvb_of,
    shown,
)
from holdfast.model import Mode
from holdfast.ondisk import rindex
from holdfast.ondisk.delta import NO_EVENT, DeltaLease, decode_bitmap
from holdfast.ondisk.geometry import MIB, SECTOR_4096
from holdfast.ondisk.host_block import HostBlock, note_of
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.record_layout import version_text
from holdfast.ondisk.request import Request
from holdfast.ondisk.rindex import RindexHeader
from holdfast.protocol.holders import Holders, Unclear, claims_of, holders_of
from holdfast.protocol.types import HostId
from holdfast.system.block_io.disk import BlockingDisk

AREAS_LOOKED_AT_MAX = 16_384
"""A device of 16 GiB in areas of 1 MiB: beyond it a person wants --offset."""

HostNames = dict[tuple[str, int, int], str]
"""(lockspace, host id, generation) to the host's name."""


@dataclass
class Area:
    """One area; its contents differ by kind: lockspace, lease, index, other."""

    offset: int
    kind: str
    told: dict[str, Any] = field(default_factory=dict)


@dataclass
class Dump:
    path: str
    access: str
    areas: list[Area] = field(default_factory=list)
    looked_at_all: bool = True


def dump(disk: BlockingDisk, offset_bytes: int | None, names: HostNames) -> Dump:
    """Everything on the path, or the one area at `offset_bytes`. Raises `UsageError` where the path holds nothing of the
    format, and nothing that is left of it.
    """
    result = Dump(disk.facts.path, disk.facts.how)
    found = list(_areas(disk, offset_bytes or 0, 1 if offset_bytes is not None else AREAS_LOOKED_AT_MAX))
    if offset_bytes is None and all(isinstance(record, Blank | Foreign) for _, _, record in found):
        raise storage.not_an_area(disk)
    for _, raw, record in found:
        if isinstance(record, DeltaLease):
            names.update(names_in(record, raw))
    result.areas = [
        _area(offset, raw, record, names)
        for offset, raw, record in found
        if offset_bytes is not None or not isinstance(record, Blank)
    ]
    if found and offset_bytes is None and found[-1][0] + len(found[-1][1]) < disk.facts.size_bytes - MIB:
        result.looked_at_all = False
    return result


def names_in(first: DeltaLease, raw: bytes) -> HostNames:
    space = first.space_name.text
    return {
        (space, host_id, record.generation): shown(record.host_name)
        for host_id, record in hosts_of(raw, first.geometry).items()
        if isinstance(record, DeltaLease)
    }


def _areas(disk: BlockingDisk, offset_bytes: int, areas_max: int) -> Iterator[tuple[int, bytes, Any]]:
    for _ in range(areas_max):
        raw = storage.read(disk, offset_bytes, SECTOR_4096)
        if not raw:
            return
        record = identify(raw)
        if isinstance(record, DeltaLease | Leader | RindexHeader):
            raw = storage.read(disk, offset_bytes, record.geometry.align_bytes)
            yield offset_bytes, raw, record
            offset_bytes += record.geometry.align_bytes
        else:
            yield offset_bytes, raw, record
            offset_bytes += MIB - offset_bytes % MIB


def _area(offset: int, raw: bytes, record: Any, names: HostNames) -> Area:
    match record:
        case DeltaLease():
            return Area(offset, "lockspace", _lockspace(record, raw))
        case Leader():
            return Area(offset, "lease", _lease(record, raw, names))
        case RindexHeader():
            return Area(offset, "index", _index(record, raw))
        case _:
            return Area(offset, "other", {"what": describe(record, raw)})


def _lockspace(first: DeltaLease, raw: bytes) -> dict[str, Any]:
    hosts: list[dict[str, Any]] = []
    for host_id, record in hosts_of(raw, first.geometry).items():
        if isinstance(record, Malformed):
            hosts.append({"host_id": host_id, "fault": str(record)})
            continue
        at = first.geometry.delta_offset_bytes(host_id)
        notified = decode_bitmap(raw[at : at + first.geometry.sector_bytes])
        event = record.event
        fault = record.verify(first.space_name.text, host_id)
        hosts.append(
            {
                "host_id": host_id,
                "name": shown(record.host_name),
                "generation": record.generation,
                "timestamp": record.timestamp,
                "io_timeout": record.io_timeout_s,
                "free": record.is_free,
                "flags": list(record.flag_names),
                "marked_by": record.marked_by[0] or None,
                "notifies": sorted(notified) if isinstance(notified, frozenset) else [],
                "event": None
                if event == NO_EVENT
                else {"generation": event.generation, "number": event.number, "argument": event.argument},
                "fault": str(fault) if fault else None,
            }
        )
    return {
        "lockspace": shown(first.space_name),
        "geometry": str(first.geometry),
        "version": version_text(first.version),
        "hosts": hosts,
    }


def _lease(lease: Leader, raw: bytes, names: HostNames) -> dict[str, Any]:
    space = lease.space_name.text
    blocks = blocks_of(raw, lease)
    holders = holders_of(lease, blocks)
    notes = {host_id: _note(lease, raw, host_id) for host_id in blocks}
    request = Request.decode(raw[lease.geometry.request_offset_bytes :])
    return {
        "lockspace": shown(lease.space_name),
        "resource": shown(lease.resource_name),
        "geometry": str(lease.geometry),
        "version": version_text(lease.version),
        "lver": lease.lver,
        "num_hosts": lease.num_hosts,
        "max_hosts": lease.max_hosts,
        "owner_id": lease.owner_id,
        "owner_generation": lease.owner_generation,
        "timestamp": lease.timestamp,
        "short_hold": lease.short_hold,
        "caw": lease.uses_caw,
        "written_by": {
            "host_id": lease.write_id,
            "generation": lease.write_generation,
            "timestamp": lease.write_timestamp,
        },
        "lvb": lvb_of(raw, lease) or None,
        "disks": sorted({disk for note in notes.values() if (disk := owner_note.disk_of(note))}),
        "owners": _owners(space, holders, lease, blocks, notes, names),
        "unclear": [host_id for host_id, _ in holders.damaged] if isinstance(holders, Unclear) else [],
        "request": {"fault": str(request)}
        if isinstance(request, Malformed)
        else {"lver": request.lver, "force_mode": request.force_mode},
        "blocks": [_block(host_id, block) for host_id, block in blocks.items()],
    }


def _note(lease: Leader, raw: bytes, host_id: int) -> bytes:
    at = lease.geometry.host_block_offset_bytes(host_id)
    return note_of(raw[at : at + lease.geometry.sector_bytes])


def _owners(
    space: str,
    holders: Holders,
    lease: Leader,
    blocks: dict[HostId, HostBlock | Malformed],
    notes: dict[HostId, bytes],
    names: HostNames,
) -> list[dict[str, Any]]:
    """The leader's owner, then the sharers. Whether they are alive is another question ('host list')."""

    def owner(host_id: HostId, generation: int, mode: Mode) -> dict[str, Any]:
        name, block = names.get((space, host_id, generation)), blocks.get(host_id)
        # The note is about the version of the block that it stands behind.
        noted = isinstance(block, HostBlock) and (mode is Mode.SHARED or block.dblock.lver == lease.lver)
        vm = owner_note.vm_of(notes.get(host_id, b"")) if noted else ""
        return {"host_id": host_id, "generation": generation, "name": name, "mode": mode.word, "vm": vm}

    return [owner(*claim.term, claim.mode) for claim in claims_of(holders)]


def _block(host_id: int, block: HostBlock | Malformed) -> dict[str, Any]:
    if isinstance(block, Malformed):
        return {"host_id": host_id, "fault": str(block)}
    dblock, mode = block.dblock, block.mode
    return {
        "host_id": host_id,
        "mbal": dblock.mbal,
        "bal": dblock.bal,
        "inp": dblock.inp,
        "inp2": dblock.inp2,
        "inp3": dblock.inp3,
        "lver": dblock.lver,
        "released": dblock.is_released,
        "shared": mode.is_shared,
        "shared_generation": mode.generation,
    }


def _index(header: RindexHeader, raw: bytes) -> dict[str, Any]:
    return {
        "lockspace": shown(header.space_name),
        "geometry": str(header.geometry),
        "entries_max": header.entries_max,
        "entries": [
            {
                "index": index,
                "resource": shown(entry.name),
                "offset": rindex.slot_offset_bytes(header.geometry, header.rindex_offset_bytes, index),
            }
            for index, entry in rindex.entries(header, raw)
        ],
    }


def show(result: Dump) -> None:
    """The same for eyes: one line for each area, its hosts or blocks below it."""
    click.echo(f"{result.path} ({result.access})")
    for area in result.areas:
        for line in _LINES[area.kind](area.told):
            click.echo(f"{area.offset:>12}  {line}")
    if not result.areas:
        click.echo("nothing")
    if not result.looked_at_all:
        click.echo(f"the first {AREAS_LOOKED_AT_MAX} areas; name a later one with --offset")


def _lockspace_lines(area: dict[str, Any]) -> Iterator[str]:
    yield f"lockspace {area['lockspace']}  {area['geometry']}  version {area['version']}"
    for host in area["hosts"]:
        if "name" not in host:
            yield f"  host_id {host['host_id']}  unreadable: {host['fault']}"
            continue
        state = "free" if host["free"] else f"timestamp {host['timestamp']}"
        line = f"  host_id {host['host_id']}  {host['name']}  generation {host['generation']}  {state}"
        line += f"  io_timeout {host['io_timeout']}" + "".join(f"  {flag}" for flag in host["flags"])
        if host["marked_by"]:
            line += f"  last marked by host_id {host['marked_by']}"
        if host["notifies"]:
            line += f"  notifies {','.join(map(str, host['notifies']))}"
        if host["event"]:
            line += f"  event {host['event']['number']}({host['event']['argument']})"
        yield line + (f"  unusable: {host['fault']}" if host["fault"] else "")


def _lease_lines(area: dict[str, Any]) -> Iterator[str]:
    owners = ", ".join(
        f"{o['name'] or 'host_id ' + str(o['host_id'])} (host_id {o['host_id']} generation {o['generation']}, "
        f"{o['mode']}{', VM ' + o['vm'] if o['vm'] else ''})"
        for o in area["owners"]
    )
    yield (
        f"lease {area['lockspace']}:{area['resource']}  {area['geometry']}  version {area['version']}  lver {area['lver']}  "
        f"hosts {area['num_hosts']}  {owners or ('unclear' if area['unclear'] else 'free')}"
    )
    for disk in area["disks"]:
        yield f"  disk {disk}"
    if area["lvb"]:
        yield f"  sector 2002  {area['lvb']}"
    writer = area["written_by"]
    yield (
        f"  leader  owner_id {area['owner_id']} generation {area['owner_generation']} timestamp "
        f"{area['timestamp']}  written by host_id {writer['host_id']} generation {writer['generation']}"
        + ("  short hold" if area["short_hold"] else "")
        + ("  CAW" if area["caw"] else "")
    )
    request = area["request"]
    if request.get("fault"):
        yield f"  request  unreadable: {request['fault']}"
    elif request["lver"]:
        yield f"  request  lver {request['lver']} force_mode {request['force_mode']}"
    for block in area["blocks"]:
        if "fault" in block:
            yield f"  block of host_id {block['host_id']}  unreadable: {block['fault']}"
            continue
        numbers = " ".join(f"{key} {block[key]}" for key in ("mbal", "bal", "inp", "inp2", "inp3", "lver"))
        shared = f"  SHARED generation {block['shared_generation']}" if block["shared"] else ""
        yield f"  block of host_id {block['host_id']}  {numbers}{'  RELEASED' if block['released'] else ''}{shared}"


def _index_lines(area: dict[str, Any]) -> Iterator[str]:
    yield f"index of lockspace {area['lockspace']}  {area['geometry']}  {len(area['entries'])} of {area['entries_max']}"
    for entry in area["entries"]:
        yield f"  {entry['index']}: {entry['resource']} at {entry['offset']}"


def _other_lines(area: dict[str, Any]) -> Iterator[str]:
    yield area["what"]


_LINES = {"lockspace": _lockspace_lines, "lease": _lease_lines, "index": _index_lines, "other": _other_lines}

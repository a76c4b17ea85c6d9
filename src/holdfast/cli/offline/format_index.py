"""Making the resource index behind a lockspace: the index area and the lease that protects it."""

from __future__ import annotations

import os

from holdfast.cli.offline import storage
from holdfast.ondisk import areas, rindex
from holdfast.ondisk.geometry import MIB, Geometry
from holdfast.protocol.lease_area import INIT_TIMEOUT_S
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.blocking_ports import run_blocking
from holdfast.system.block_io.disk import BlockingDisk

_AREAS_BEFORE_LEASES = 3
"""Lockspace, index, the index's own lease."""


def room_for_index(
    disk: BlockingDisk, geometry: Geometry, offset_bytes: int, wanted: int, *, force: bool
) -> int:
    """How many entries the index gets; refuses when its areas hold something, or there is no room for a lease."""
    for number in (1, 2):
        storage.require_room(disk, geometry, offset_bytes + number * geometry.align_bytes, force=force)
    most = rindex.entries_shared_max(geometry)
    if disk.facts.is_block_device:
        room = disk.facts.size_bytes - offset_bytes - _AREAS_BEFORE_LEASES * geometry.align_bytes
        most = min(most, room // geometry.align_bytes)
    if wanted > most or most < 1:
        raise storage.UsageError(
            "--index",
            f"{disk.facts.path} has room for {max(0, most)} leases of {geometry.align_bytes // MIB}M that all "
            "hosts can reach",
            "name no more than that, or make the device larger",
        )
    return wanted or min(most, rindex.ENTRIES_DEFAULT)


def make_index(
    disk: BlockingDisk, geometry: Geometry, offset_bytes: int, space_name: str, entries: int
) -> None:
    whole = offset_bytes + (_AREAS_BEFORE_LEASES + entries) * geometry.align_bytes
    if not disk.facts.is_block_device and disk.facts.size_bytes < whole:
        os.truncate(disk.facts.path, whole)  # leases are made where the file is long enough
    at = offset_bytes + geometry.align_bytes
    header = areas.rindex_header(geometry, space_name, at, entries)
    lease = areas.lease_area(areas.internal_leader(header))
    # The index last: without it nobody looks at its lease.
    for where, content in ((at + geometry.align_bytes, lease), (at, areas.rindex_area(header))):
        failed = run_blocking(disk.write(where, content, timeout_s=INIT_TIMEOUT_S))
        if isinstance(failed, IoFailed):
            raise storage.failed(disk.facts.path, "cannot write", failed)

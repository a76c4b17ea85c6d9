"""Commands on areas at places that clients name, of any lockspace (sanlock-socket.md 2.7, newer-sanlock.md 3).

ALIGN and the READ_ commands change nothing. The WRITE_ commands make areas byte by byte as sanlock does, where `area_guard`
lets them. Records are of versions 3.4 and 6.4, unless a joined lockspace has others: every sanlock reads those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from holdfast.frontends.sanlock.area_guard import AreaGuard
from holdfast.frontends.sanlock.engine_ports import ForeignAreas
from holdfast.frontends.sanlock.foreign_areas import (
    Refused,
    new_geometry,
    opened,
    read,
    read_leader,
    read_lockspace,
    size_flags,
)
from holdfast.model import Mode
from holdfast.ondisk import areas as images
from holdfast.ondisk import leader as leaders
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.holders import claims_of, holders_of
from holdfast.protocol.lease_area import INIT_TIMEOUT_S
from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import IO_TIMEOUT_MAX_S
from holdfast.protocol.types import HostId, IoFailed, timestamp_of
from holdfast.system.block_io.lease_files import LeaseDisk
from holdfast.system.clock import Clock
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import (
    SIZE_FLAGS,
    LockspaceFlag,
    ResourceFlag,
    WriteLockspaceFlag,
    WriteResourceFlag,
)
from holdfast.wire.sanlock.result import Result

log = logging.getLogger(__name__)


class AreaCommands:
    """`member` returns this host's membership in a lockspace, if it has one."""

    def __init__(
        self,
        areas: ForeignAreas,
        guard: AreaGuard,
        *,
        clock: Clock,
        member: Callable[[str], Membership | None],
        io_timeout_s: Callable[[], int],
    ) -> None:
        self._areas = areas
        self._guard = guard
        self._clock = clock
        self._member = member
        self._io_timeout_s = io_timeout_s
        """Of a lockspace whose client says none."""

    # --- reading ---

    async def align(self, request: r.Align) -> replies.Plain:
        try:
            async with opened(self._areas, request.disk.path, missing=Result.ENODEV) as disk:
                return replies.Plain(new_geometry(0, disk.facts).align_bytes)
        except Refused as refused:
            return replies.Plain(refused.result)

    async def read_lockspace(self, request: r.ReadLockspace) -> replies.LockspaceRead:
        wanted = request.lockspace
        try:
            found, _, io_timeout_s = await self._read_lockspace(wanted)
        except Refused as refused:
            return replies.LockspaceRead(refused.result, wanted)
        return replies.LockspaceRead(Result.OK, found, io_timeout_s)

    async def read_lockspace_host(self, request: r.ReadLockspaceHost) -> replies.LockspaceHostRead:
        wanted = request.lockspace
        try:
            found, host, io_timeout_s = await self._read_lockspace(wanted)
        except Refused as refused:
            return replies.LockspaceHostRead(refused.result, wanted, s.Host())
        return replies.LockspaceHostRead(Result.OK, found, host, io_timeout_s)

    async def _read_lockspace(self, wanted: s.Lockspace) -> tuple[s.Lockspace, s.Host, int]:
        host_id = wanted.host_id or 1
        async with opened(self._areas, wanted.disk.path, missing=Result.ENODEV) as disk:
            there = await read_lockspace(disk, wanted.disk, wanted.name.text, host_id)
        record = there.record
        flags = size_flags(there.geometry) | (LockspaceFlag.NO_TIMEOUT if record.is_no_timeout else 0)
        if record.write_fault() is not None:
            flags |= LockspaceFlag.USING_CAW
        host = s.Host(record.owner_id, record.generation, record.timestamp, record.io_timeout_s)
        found = wanted._replace(name=record.space_name, host_id=host_id, flags=int(flags))
        return found, host, record.io_timeout_s

    async def read_resource(self, request: r.ReadResource) -> replies.ResourceRead:
        wanted = request.resource
        try:
            async with self._of_resource(wanted) as disk:
                space, name = wanted.lockspace.text or None, wanted.name.text or None
                leader = await read_leader(disk, wanted.disks[0], space, name)
        except Refused as refused:
            return replies.ResourceRead(refused.result, wanted)
        return replies.ResourceRead(Result.OK, _described(wanted, leader))

    async def read_resource_owners(self, request: r.ReadResourceOwners) -> replies.OwnersRead:
        wanted = request.resource
        try:
            async with self._of_resource(wanted) as disk:
                space, name = wanted.lockspace.text, wanted.name.text
                leader = await read_leader(disk, wanted.disks[0], space, name, nothing=Result.EINVAL)
                said = wanted.flags & SIZE_FLAGS
                if said not in (0, size_flags(leader.geometry)):
                    raise Refused(Result.EINVAL)
                span = leader.geometry.lease_span_bytes(leader.num_hosts)
                raw = await read(disk, wanted.disks[0].offset_bytes, span)
        except Refused as refused:
            return replies.OwnersRead(refused.result, wanted)
        found = _described(wanted, leader)._replace(flags=wanted.flags)
        hosts = []
        blocks = _blocks(raw, leader)
        if any(isinstance(block, Malformed) for block in blocks.values()):
            return replies.OwnersRead(Result.DBLOCK_CHECKSUM, wanted)
        for claim in claims_of(holders_of(leader, blocks)):
            exclusive = claim.mode is Mode.EXCLUSIVE
            hosts.append(s.Host(claim.term[0], claim.term[1], leader.timestamp if exclusive else 0))
            if not exclusive:
                found = found._replace(flags=found.flags | ResourceFlag.SHARED)
        return replies.OwnersRead(Result.OK, found, tuple(hosts))

    def _of_resource(
        self, resource: s.Resource, *, writable: bool = False
    ) -> AbstractAsyncContextManager[LeaseDisk]:
        if len(resource.disks) > 1:
            log.warning("refused %s: a lease on several disks is not supported", resource.name)
            raise Refused(Result.EINVAL)
        return opened(self._areas, resource.disks[0].path, writable=writable)

    # --- writing ---

    async def write_lockspace(self, request: r.WriteLockspace) -> replies.Plain:
        wanted = request.lockspace
        io_timeout_s = request.io_timeout_s or self._io_timeout_s()
        if not wanted.name.text or io_timeout_s > IO_TIMEOUT_MAX_S:
            return replies.Plain(Result.EINVAL)
        if request.flags & WriteLockspaceFlag.LS_FLAGS or wanted.flags & LockspaceFlag.NO_TIMEOUT:
            log.warning("refused WRITE_LOCKSPACE %s: its version 3.4 has no flags", wanted.name)
            return replies.Plain(Result.EINVAL)
        if request.flags & WriteLockspaceFlag.USE_CAW:
            return replies.Plain(Result.CAW_CONFIG)
        try:
            async with opened(self._areas, wanted.disk.path, writable=True, missing=Result.ENODEV) as disk:
                geometry = _aligned(new_geometry(wanted.flags, disk.facts), wanted.disk)
                pieces = images.lockspace_area(geometry, wanted.name.text, io_timeout_s)
                await self._write(disk, wanted.disk.offset_bytes, *pieces)
        except Refused as refused:
            return replies.Plain(refused.result)
        return replies.Plain()

    async def write_resource(self, request: r.WriteResource) -> replies.Plain:
        wanted = request.resource
        if request.flags & WriteResourceFlag.USE_CAW:
            return replies.Plain(Result.CAW_CONFIG)
        try:
            async with self._of_resource(wanted, writable=True) as disk:
                place = wanted.disks[0]
                geometry = _aligned(new_geometry(wanted.flags, disk.facts), place)
                leader = self.fresh_leader(
                    geometry, wanted.lockspace.text, wanted.name.text, request.first_number
                )
                clear = request.flags & WriteResourceFlag.CLEAR
                image = self.cleared_area(leader) if clear else images.lease_area(leader)
                await self._write(disk, place.offset_bytes, image)
        except Refused as refused:
            return replies.Plain(refused.result)
        return replies.Plain()

    def fresh_leader(self, geometry: Geometry, space: str, name: str, num_hosts: int) -> Leader:
        """`num_hosts` 0, or more than there can be: as many as there can be."""
        member = self._member(space)
        version = leaders.VERSION if member is None else member.lockspace.lease_version
        return images.fresh_leader(geometry, space, name, num_hosts or None, version=version)

    def cleared_area(self, leader: Leader) -> bytes:
        now = timestamp_of(self._clock.now())
        return images.cleared_lease_area(replace(leader, write_timestamp=now))

    async def _write(self, disk: LeaseDisk, offset_bytes: int, *pieces: bytes) -> None:
        async def work() -> IoFailed | None:
            for piece in pieces:
                failed = await disk.write(offset_bytes, piece, timeout_s=INIT_TIMEOUT_S)
                if failed is not None:
                    return failed
            return None

        await self._guard.write(disk, offset_bytes, len(pieces[0]), work)


def _described(wanted: s.Resource, leader: Leader) -> s.Resource:
    """The client's structure, with what stands on storage."""
    flags = wanted.flags & ~SIZE_FLAGS | size_flags(leader.geometry)
    if leader.uses_caw:
        flags |= ResourceFlag.USING_CAW
    return wanted._replace(
        lockspace=leader.space_name, name=leader.resource_name, lver=leader.lver, flags=int(flags)
    )


def _blocks(raw: bytes, leader: Leader) -> dict[HostId, HostBlock | Malformed]:
    size = leader.geometry.sector_bytes
    found: dict[HostId, HostBlock | Malformed] = {}
    for host_id in range(1, leader.num_hosts + 1):
        at = leader.geometry.host_block_offset_bytes(host_id)
        sector = raw[at : at + size]
        if any(sector):
            found[HostId(host_id)] = HostBlock.decode(sector)
    return found


def _aligned(geometry: Geometry, place: s.Disk) -> Geometry:
    """sanlock does not check this, and then areas overlap."""
    if not geometry.is_aligned(place.offset_bytes):
        raise Refused(Result.EINVAL)
    return geometry

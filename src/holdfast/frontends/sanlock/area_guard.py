"""Which areas no client may write over: those on which others of this host depend (ADR 0200).

sanlock writes wherever it is asked to. Here the same storage may have leases of VMs that libvirt's other lock plugin locks.
So before a client's write it is read what stands there, and each record of ours is looked up in the lock table:

    a lease                  locked by an owner that is no client of sanlock's             stays
                             locked by clients alone, or orphans                          is written over, as sanlock does
                             of this incarnation by its record, and nobody has it here     stays: doubt is not free
    a joined lockspace       `why_not_removed` has a reason                               stays
    an index                 of a lockspace for which it has one                          stays

What can't be read counts as held. While the write is under way, nobody on this host can take a lease that stood there.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from holdfast.backends.paxos.area_backend import resource_in
from holdfast.backends.paxos.names import key_of_lease
from holdfast.frontends.sanlock.engine_ports import LockspaceView
from holdfast.frontends.sanlock.foreign_areas import READ_TIMEOUT_S, Refused, code_of, read
from holdfast.manager.client_leases import ClientLeases
from holdfast.model import SANLOCK_PREFIX
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import GEOMETRIES, MIB, SECTOR_512, SECTOR_4096
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.rindex import INTERNAL_LEASE_NAME, RindexHeader
from holdfast.protocol.holders import shared_by
from holdfast.protocol.membership import Membership
from holdfast.protocol.types import HostId, IoFailed
from holdfast.system.block_io.lease_files import LeaseDisk
from holdfast.wire.sanlock.result import Result

log = logging.getLogger(__name__)

_ALIGN_MAX = max(each.align_bytes for each in GEOMETRIES)


@dataclass(frozen=True, slots=True)
class _Lease:
    """A lease that stands there. `is_ours`: by its record this incarnation of this host has it."""

    space: str
    name: str
    is_ours: bool


class AreaGuard:
    """`member` returns this host's membership in a lockspace, if it has one, `views` all lockspaces of this host;
    `why_not_removed`: see `engine_ports.Lockspaces`.
    """

    def __init__(
        self,
        leases: ClientLeases,
        *,
        member: Callable[[str], Membership | None],
        views: Callable[[], list[LockspaceView]],
        why_not_removed: Callable[[str], str],
    ) -> None:
        self._leases = leases
        self._member = member
        self._views = views
        self._why_not_removed = why_not_removed

    async def write(
        self,
        disk: LeaseDisk,
        begin: int,
        length: int,
        work: Callable[[], Coroutine[Any, Any, IoFailed | None]],
    ) -> None:
        """Do a client's write to these bytes; raises `Refused` if they have to stay, or if it fails."""
        found: list[_Lease] = []
        for at in range(max(0, begin - begin % MIB - _ALIGN_MAX + MIB), begin + length, MIB):
            raw = await _read_beginning(disk, at)
            if raw is None:
                break
            lease = await self._examine(disk, at, raw, begin, begin + length)
            if lease is not None:
                found.append(lease)
        self._refuse_known_places(disk, begin, begin + length)
        keys = tuple({key_of_lease(lease.space, lease.name) for lease in found})
        failed = await self._leases.while_not_taken(keys, self._unless_held(disk, found, work))
        if failed is not None:
            raise Refused(code_of(failed))

    async def _unless_held(
        self, disk: LeaseDisk, found: list[_Lease], work: Callable[[], Awaitable[IoFailed | None]]
    ) -> IoFailed | None:
        for lease in found:
            if why := self._why_lease_stays(lease):
                _refuse(disk, f"lease {lease.name} of lockspace {lease.space}", why)
        return await work()

    # --- what stands there ---

    async def _examine(self, disk: LeaseDisk, at: int, raw: bytes, begin: int, end: int) -> _Lease | None:
        """A lease that reaches into these bytes; raises `Refused` for anything else that has to stay."""
        leader = Leader.decode(raw)
        if isinstance(leader, Leader):
            if not _reaches(at, leader.geometry.align_bytes, begin, end):
                return None
            return await self._lease(disk, at, leader)
        record = DeltaLease.decode(raw)
        if isinstance(record, DeltaLease):
            if _reaches(at, record.geometry.align_bytes, begin, end):
                await self._examine_lockspace(disk, at, record)
            return None
        index = RindexHeader.decode(raw)
        if isinstance(index, RindexHeader) and _reaches(at, index.geometry.align_bytes, begin, end):
            self.refuse_index(disk, index.space_name.text)
        return None

    async def _lease(self, disk: LeaseDisk, at: int, leader: Leader) -> _Lease:
        space, name = leader.space_name.text, leader.resource_name.text
        member = self._member(space)
        if member is None or name == INTERNAL_LEASE_NAME:
            return _Lease(space, name, is_ours=False)
        if member.owns(leader) and not leader.is_free:
            return _Lease(space, name, is_ours=True)
        if member.host_id > leader.num_hosts:
            return _Lease(space, name, is_ours=False)
        block_at = at + leader.geometry.host_block_offset_bytes(member.host_id)
        block = HostBlock.decode(await read(disk, block_at, leader.geometry.sector_bytes))
        shared = isinstance(block, Malformed) or shared_by(block) == member.generation
        return _Lease(space, name, is_ours=shared)

    async def _examine_lockspace(self, disk: LeaseDisk, at: int, first: DeltaLease) -> None:
        space = first.space_name.text
        member = self._member(space)
        if member is None or member.host_id > first.geometry.hosts_max:
            return
        own_at = at + first.geometry.delta_offset_bytes(member.host_id)
        own = DeltaLease.decode(await read(disk, own_at, first.geometry.sector_bytes))
        if isinstance(own, Malformed) or (own.owner_id, own.generation) == (
            member.host_id,
            member.generation,
        ):
            self._refuse_lockspace(disk, space)

    # --- what has to stay ---

    def _why_lease_stays(self, lease: _Lease) -> str:
        key = key_of_lease(lease.space, lease.name)
        lock = self._leases.held(resource_in(lease.space, lease.name)) or self._leases.with_key(key)
        if lock is None:
            return "this incarnation has it on storage, and nobody can tell for whom" if lease.is_ours else ""
        others = [name for name in lock.names() if not name.lockspace.startswith(SANLOCK_PREFIX)]
        return f"it is the lock of {others[0]}" if others else ""

    def _refuse_known_places(self, disk: LeaseDisk, begin: int, end: int) -> None:
        """A lockspace of ours whose record can't be read any more, or is not there yet."""
        for view in self._views():
            align_bytes = view.geometry.align_bytes if view.geometry is not None else _ALIGN_MAX
            if view.path == disk.facts.path and _reaches(view.offset_bytes, align_bytes, begin, end):
                self._refuse_lockspace(disk, view.name)

    def _refuse_lockspace(self, disk: LeaseDisk, space: str) -> None:
        if why := self._why_not_removed(space):
            _refuse(disk, f"lockspace {space}", why)

    def refuse_index(self, disk: LeaseDisk, space: str) -> None:
        """Raises `Refused` if the index of that lockspace has to stay."""
        if self._member(space) is not None and (why := self._why_not_removed(space)):
            _refuse(disk, f"the index of lockspace {space}", why)

    def refuse_own_record(self, disk: LeaseDisk, space: str, host_id: int) -> None:
        """Raises `Refused` if that host id is this host's in a lockspace that it is in."""
        member = self._member(space)
        if member is not None and HostId(host_id) == member.host_id:
            _refuse(disk, f"the record of host id {host_id} of lockspace {space}", "this host has it")


async def _read_beginning(disk: LeaseDisk, at: int) -> bytes | None:
    """Of what may be an area; None at the end of the storage."""
    for length in (SECTOR_4096, SECTOR_512):
        raw = await disk.read(at, length, timeout_s=READ_TIMEOUT_S)
        if not isinstance(raw, IoFailed):
            return raw
        if raw.errno != errno.EMSGSIZE:
            raise Refused(code_of(raw))
    return None


def _reaches(at: int, length: int, begin: int, end: int) -> bool:
    return at < end and begin < at + length


def _refuse(disk: LeaseDisk, what: str, why: str) -> None:
    log.error("refused to write over %s in %s for a client of sanlock: %s", what, disk.facts.path, why)
    raise Refused(Result.EBUSY)

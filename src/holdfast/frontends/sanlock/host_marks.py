"""Commands about one host's record in a lockspace: INIT_LOCKSPACE_HOST, SET_HOST (newer-sanlock.md 1.4, 3)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.backends.paxos.lease_jobs import member_in
from holdfast.frontends.sanlock.area_guard import AreaGuard
from holdfast.frontends.sanlock.engine_ports import ForeignAreas
from holdfast.frontends.sanlock.foreign_areas import Refused, code_of, done, opened, read_lockspace
from holdfast.frontends.sanlock.join_results import of_record
from holdfast.ondisk.delta import NO_EVENT
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX, PaddedName
from holdfast.protocol.dead_mark import NotMarked, can_be_marked, mark_dead
from holdfast.protocol.lease_area import INIT_TIMEOUT_S
from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import IO_TIMEOUT_MAX_S
from holdfast.protocol.types import Generation, HostId, HostTimestamp, IoFailed, timestamp_of
from holdfast.system.block_io.offload import TimedOut
from holdfast.system.clock import Clock
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import HostMark, InitHostFlag, LockspaceFlag
from holdfast.wire.sanlock.result import Result

log = logging.getLogger(__name__)

TIMESTAMP_NOW = 1
"""INIT_LOCKSPACE_HOST's word for the present time."""


class HostMarks:
    """`member` returns this host's membership in a lockspace, and `backend` the backend of its leases, if there is one."""

    def __init__(
        self,
        areas: ForeignAreas,
        guard: AreaGuard,
        *,
        clock: Clock,
        member: Callable[[str], Membership | None],
        backend: Callable[[str], AreaBackend | None],
        io_timeout_s: Callable[[], int],
    ) -> None:
        self._areas = areas
        self._guard = guard
        self._clock = clock
        self._member = member
        self._backend = backend
        self._io_timeout_s = io_timeout_s

    async def init(self, request: r.InitLockspaceHost) -> replies.Plain:
        """Write one host's record, in the version and with the sizes of its lockspace."""
        io_timeout_s = request.io_timeout_s or self._io_timeout_s()
        wanted, new = request.lockspace, request.record
        if request.flags & InitHostFlag.USE_CAW:
            return replies.Plain(Result.CAW_CONFIG)
        if not wanted.host_id or io_timeout_s > IO_TIMEOUT_MAX_S:
            return replies.Plain(Result.EINVAL)
        try:
            async with opened(self._areas, wanted.disk.path, writable=True, missing=Result.ENODEV) as disk:
                there = await read_lockspace(disk, wanted.disk, wanted.name.text, 1)
                geometry = there.geometry
                if wanted.host_id > geometry.hosts_max:
                    raise Refused(Result.EINVAL)
                if there.record.write_fault() is not None:
                    raise Refused(Result.WRONG_CAW)
                if wanted.flags & LockspaceFlag.NO_TIMEOUT and not there.record.is_no_timeout:
                    raise Refused(Result.EINVAL)
                at = wanted.disk.offset_bytes + geometry.delta_offset_bytes(wanted.host_id)
                self._guard.refuse_own_record(disk, there.record.space_name.text, wanted.host_id)
                now = timestamp_of(self._clock.now())
                record = replace(
                    there.record.without_mark(),
                    owner_id=new.owner_id,
                    generation=new.generation,
                    host_name=PaddedName.of(new.host_name.text[:HOST_NAME_BYTES_MAX]),
                    timestamp=now if new.timestamp == TIMESTAMP_NOW else new.timestamp,
                    io_timeout_s=io_timeout_s,
                    event=NO_EVENT,
                    unused=(0, 0),
                )
                if record.fault() is not None:
                    raise Refused(Result.EINVAL)
                done(await disk.write(at, record.sector(), timeout_s=INIT_TIMEOUT_S))
        except Refused as refused:
            return replies.Plain(refused.result)
        return replies.Plain()

    async def set_host(self, request: r.SetHost) -> replies.Plain:
        """Mark a term of another host as dead, by the client's word."""
        if request.mark != HostMark.DEAD_EXT:
            return replies.Plain(Result.EINVAL)
        name = request.lockspace.name.text
        backend, member = self._backend(name), self._member(name)
        if backend is None or member is None:
            return replies.Plain(Result.ENOSPC)
        host_id = request.host.host_id
        if not 1 <= host_id <= member.lockspace.geometry.hosts_max or host_id == member.host_id:
            return replies.Plain(Result.EINVAL)
        if not can_be_marked(member.lockspace):
            return replies.Plain(Result.VERSION_INCOMPAT)
        wanted = request.host.generation
        done = await backend.ports.offload.run(
            lambda job: self._mark(member_in(job, member), HostId(host_id), wanted), member.io_timeout_s
        )
        result = await done.over if isinstance(done, TimedOut) else done
        return replies.Plain(code_of(result) if isinstance(result, IoFailed) else result)

    async def _mark(self, member: Membership, host_id: HostId, wanted: int) -> int:
        """Runs on a worker: the membership's own disk is for the thread that renews."""
        record = await member.lockspace.read_record(host_id, member.io_timeout_s)
        if isinstance(record, IoFailed):
            return code_of(record)
        if isinstance(record, Malformed):
            return of_record(record)
        if wanted not in (0, record.generation):
            return Result.WRONG_GENERATION
        generation, timestamp = Generation(record.generation), HostTimestamp(record.timestamp)
        marked = await mark_dead(member, host_id, generation, timestamp)
        if isinstance(marked, IoFailed):
            return code_of(marked)
        if isinstance(marked, NotMarked):
            log.warning("host_id %d is not marked as dead: %s", host_id, marked.reason)
            return Result.ERROR
        return Result.OK

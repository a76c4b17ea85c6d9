"""Commands on resource indexes (sanlock-socket.md 2.7, sanlock-disk.md 6): FORMAT, LOOKUP, UPDATE, CREATE, DELETE, REBUILD.

CREATE, DELETE and REBUILD own the index's internal lease meanwhile, as `protocol.resource_index` has it: one host at a time,
and an order that a crash leaves harmless. One of these commands at a time per lockspace, until all of its writes have ended.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from holdfast.backends.base import Turn
from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.backends.paxos.device_store import INDEX_WAIT_S, IndexChange
from holdfast.backends.paxos.held_lease import HeldLease
from holdfast.frontends.sanlock.area_commands import AreaCommands
from holdfast.frontends.sanlock.area_guard import AreaGuard
from holdfast.frontends.sanlock.engine_ports import ForeignAreas, LeasesOfLockspaces
from holdfast.frontends.sanlock.foreign_areas import (
    READ_TIMEOUT_S,
    Refused,
    code_of,
    done,
    new_geometry,
    opened,
)
from holdfast.frontends.sanlock.lease_results import of_refusal
from holdfast.model import Mode
from holdfast.ondisk import areas as images
from holdfast.ondisk import rindex
from holdfast.ondisk.leader import MAGIC
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.ondisk.rindex import SPACE_NAME_BYTES_MAX, RindexEntry
from holdfast.protocol.lease_area import INIT_TIMEOUT_S
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_outcomes import InDoubt, LockspaceLost
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.resource_index import (
    Created,
    Index,
    IndexFull,
    clear_entry,
    create_entry,
    read_index,
)
from holdfast.protocol.types import IoFailed
from holdfast.system import eager_tasks
from holdfast.system.block_io.lease_files import LeaseDisk
from holdfast.system.clock import Clock
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import UpdateRindexFlag
from holdfast.wire.sanlock.result import Result

log = logging.getLogger(__name__)

_OF_HEADER = {
    Reason.MAGIC: Result.RINDEX_MAGIC,
    Reason.VERSION: Result.RINDEX_VERSION,
    Reason.NEWER: Result.RINDEX_VERSION,
    Reason.LOCKSPACE_NAME: Result.RINDEX_LOCKSPACE,
    Reason.OFFSET: Result.RINDEX_OFFSET,
}
_MAGIC = MAGIC.to_bytes(4, "little")
_NAME_AT = 104
"""Of a leader's resource name."""
_WHOLE_DEVICE_BYTES = 1 << 62
TURN_POLL_S = 0.02
"""Between two checks whether another change of the index by this host has ended: one takes some milliseconds."""
SETTLE_POLL_S = 1.0
"""Between two checks whether a release that failed has been repeated."""


class RindexCommands:
    """`areas_made` makes the images of leases."""

    def __init__(
        self,
        areas: ForeignAreas,
        guard: AreaGuard,
        backends: LeasesOfLockspaces,
        areas_made: AreaCommands,
        *,
        clock: Clock,
    ) -> None:
        self._areas = areas
        self._guard = guard
        self._backends = backends
        self._made = areas_made
        self._clock = clock
        self._busy: set[str] = set()
        self._late: set[str] = set()
        """Where the internal lease is not given back yet, because a write may still land."""

    def is_in_use(self, lockspace: str) -> bool:
        """Whether a command of these is under way in that lockspace, or a write of one may still land."""
        return lockspace in self._busy or lockspace in self._late

    # --- FORMAT, LOOKUP, UPDATE ---

    async def format(self, request: r.FormatRindex) -> replies.Plain:
        wanted = request.rindex
        space = wanted.lockspace.text
        if not space or len(wanted.lockspace.field.rstrip(b"\0")) > SPACE_NAME_BYTES_MAX:
            return replies.Plain(Result.EINVAL)
        try:
            async with self._alone(space), opened(self._areas, wanted.disk.path, writable=True) as disk:
                geometry = new_geometry(wanted.flags, disk.facts)
                at, align = wanted.disk.offset_bytes, geometry.align_bytes
                if not geometry.is_aligned(at):
                    raise Refused(Result.EINVAL)
                entries = wanted.max_resources or rindex.ENTRIES_DEFAULT
                header = images.rindex_header(geometry, space, at, entries)
                leader = self._made.fresh_leader(geometry, space, rindex.INTERNAL_LEASE_NAME, 0)
                lease = images.lease_area(leader)

                async def work() -> IoFailed | None:
                    failed = await disk.write(at, images.rindex_area(header), timeout_s=INIT_TIMEOUT_S)
                    return failed or await disk.write(at + align, lease, timeout_s=INIT_TIMEOUT_S)

                await self._guard.write(disk, at, 2 * align, work)
        except Refused as refused:
            return replies.Plain(refused.result)
        return replies.Plain()

    async def lookup(self, request: r.LookupRindex) -> replies.IndexEntry:
        async def work(disk: LeaseDisk, member: Membership) -> s.RindexEntry:
            index = await _read(disk, request.rindex)
            name, offset = request.entry.name.text, request.entry.offset_bytes
            if not name and not offset:
                free = rindex.lowest_free(index.header, index.raw, index.header.entries_max)
                if free is None:
                    raise Refused(Result.ENOENT)
                return s.RindexEntry(offset_bytes=_slot(index, free))
            if offset:
                number = _number(index, offset)
                entered = dict(index.entries()).get(number, RindexEntry())
                if name and not entered.name.says(name):
                    raise Refused(Result.RINDEX_DIFF)
                return s.RindexEntry(entered.name, offset)
            found = index.find(name)
            if found is None:
                raise Refused(Result.ENOENT)
            return s.RindexEntry(request.entry.name, _slot(index, found))

        return await self._answered(request.rindex, work, writable=False)

    async def update(self, request: r.UpdateRindex) -> replies.IndexEntry:
        """One entry, as the client says, without the index's lease."""
        add, remove = request.flags & UpdateRindexFlag.ADD, request.flags & UpdateRindexFlag.REM
        name, offset = request.entry.name, request.entry.offset_bytes

        async def work(disk: LeaseDisk, member: Membership) -> s.RindexEntry:
            if not offset or not (remove or (add and name.text)):
                raise Refused(Result.EINVAL)
            index = await _read(disk, request.rindex)
            number = _number(index, offset)
            self._guard.refuse_index(disk, index.header.space_name.text)
            entry = RindexEntry(offset_bytes=offset, name=name) if add else RindexEntry()
            await _enter(index, disk, number, entry, member)
            return s.RindexEntry(name, offset) if add else s.RindexEntry()

        return await self._answered(request.rindex, work)

    # --- CREATE, DELETE, REBUILD ---

    async def create(self, request: r.CreateResource) -> replies.IndexEntry:
        name = request.entry.name.text

        async def work(disk: LeaseDisk, member: Membership) -> s.RindexEntry:
            if not name:
                raise Refused(Result.EINVAL)
            async with self._owned(request.rindex, member) as (_, index):
                if index.find(name) is not None:
                    log.warning("refused CREATE_RESOURCE %s: its index has that name already", name)
                    raise Refused(Result.EEXIST)
                made = await create_entry(
                    index,
                    name,
                    request.num_hosts or None,
                    member.io_timeout_s,
                    may_write=member.may_write,
                    version=member.lockspace.lease_version,
                )
            match made:
                case Created(number):
                    return s.RindexEntry(offset_bytes=_slot(index, number))
                case IndexFull():
                    raise Refused(Result.ENOENT)
                case LockspaceLost():
                    raise Refused(Result.ENOSPC)
                case IoFailed():
                    raise Refused(code_of(made))

        return await self._answered(request.rindex, work)

    async def delete(self, request: r.DeleteResource) -> replies.IndexEntry:
        """First the lease is cleared, then its entry: the other way round a host that knows its place could still win it."""
        name, offset = request.entry.name.text, request.entry.offset_bytes

        async def work(disk: LeaseDisk, member: Membership) -> s.RindexEntry:
            async with self._owned(request.rindex, member) as (owned, index):
                number = index.find(name) if name else None
                if number is None:
                    raise Refused(Result.ENOENT)
                at = _slot(index, number)
                if offset not in (0, at):
                    raise Refused(Result.RINDEX_DIFF)
                leader = self._made.fresh_leader(index.geometry, index.header.space_name.text, name, 0)
                image = self._made.cleared_area(leader)
                await self._guard.write(
                    owned, at, len(image), lambda: owned.write(at, image, timeout_s=INIT_TIMEOUT_S)
                )
                _landed(await clear_entry(index, number, member.io_timeout_s, may_write=member.may_write))
            return s.RindexEntry()

        return await self._answered(request.rindex, work)

    async def rebuild(self, request: r.RebuildRindex) -> replies.Plain:
        """Write the whole index, by what the leases themselves are called."""

        async def work(disk: LeaseDisk, member: Membership) -> s.RindexEntry:
            async with self._owned(request.rindex, member) as (owned, index):
                self._guard.refuse_index(disk, index.header.space_name.text)
                area = bytearray(images.rindex_area(index.header))
                for number in range(index.header.entries_max):
                    found = await _leader_at(owned, index, number)
                    if found is None:
                        break
                    if found.name.text:
                        at = rindex.entry_offset_bytes(index.geometry, number)
                        area[at : at + rindex.ENTRY_BYTES] = found.encode()
                if not member.may_write():
                    raise Refused(Result.ENOSPC)
                at = index.header.rindex_offset_bytes
                done(await owned.write(at, bytes(area), timeout_s=INIT_TIMEOUT_S))
            return s.RindexEntry()

        answer = await self._answered(request.rindex, work)
        return replies.Plain(answer.result)

    # --- what they share ---

    async def _answered(
        self,
        wanted: s.Rindex,
        work: Callable[[LeaseDisk, Membership], Coroutine[Any, Any, s.RindexEntry]],
        *,
        writable: bool = True,
    ) -> replies.IndexEntry:
        """The answer; an entry of zeros with every error."""
        try:
            async with self._alone(wanted.lockspace.text):
                member = self._member(wanted.lockspace.text)
                async with opened(self._areas, wanted.disk.path, writable=writable) as disk:
                    return replies.IndexEntry(Result.OK, await work(disk, member))
        except Refused as refused:
            return replies.IndexEntry(refused.result, s.RindexEntry())

    def _member(self, space: str) -> Membership:
        backend = self._backends.backend_of(space)
        member = backend.presence.membership() if backend is not None else None
        if not isinstance(member, Membership):
            raise Refused(Result.ENOENT)
        return member

    @asynccontextmanager
    async def _alone(self, space: str) -> AsyncIterator[None]:
        if self.is_in_use(space):
            raise Refused(Result.EBUSY)
        self._busy.add(space)
        try:
            yield
        finally:
            self._busy.discard(space)

    @asynccontextmanager
    async def _owned(self, wanted: s.Rindex, member: Membership) -> AsyncIterator[tuple[LeaseDisk, Index]]:
        """The index, read while this host owns its internal lease, on an open path of its own."""
        backend = self._backends.backend_of(wanted.lockspace.text)
        assert backend is not None  # `member` is of it
        turn = await self._turn(backend)
        disk = await self._areas.open(wanted.disk.path)
        if isinstance(disk, IoFailed):
            turn.user = None
            raise Refused(code_of(disk))
        holding: HeldLease | None = None
        try:
            index = await _read(disk, wanted)
            holding = HeldLease(index.internal_lease(), member, backend.ports)
            taken = await holding.acquire(Mode.EXCLUSIVE)
            if not isinstance(taken, Lease):
                raise Refused(Result.ERROR if isinstance(taken, InDoubt) else of_refusal(taken))
            yield disk, await _read(disk, wanted)
        finally:
            space = wanted.lockspace.text
            if holding is None or holding.done:
                turn.user = None
                disk.close()
            else:
                self._late.add(space)
                await self._end(disk, holding, space, turn)

    async def _turn(self, backend: AreaBackend) -> Turn[IndexChange]:
        """It is ours: this host has one block in the internal lease, and a start of a VM may be changing the index."""
        turn, begun = backend.index_turn, self._clock.now()
        while turn.user is not None:
            if self._clock.now() - begun > INDEX_WAIT_S:
                raise Refused(Result.EBUSY)
            await self._clock.sleep(TURN_POLL_S)
        turn.user = IndexChange()
        return turn

    async def _end(self, disk: LeaseDisk, holding: HeldLease, space: str, turn: Turn[IndexChange]) -> None:
        """Release the internal lease; later, if a write is under way: it may land on what another host writes next."""
        if not disk.in_flight(0, _WHOLE_DEVICE_BYTES):
            if holding.lease is not None:
                await holding.release()
            if holding.done:
                self._ended(disk, space, turn)
                return
        eager_tasks.start(self._end_late(disk, holding, space, turn))

    async def _end_late(
        self, disk: LeaseDisk, holding: HeldLease, space: str, turn: Turn[IndexChange]
    ) -> None:
        await disk.settled(0, _WHOLE_DEVICE_BYTES)
        if holding.lease is not None:
            await holding.release()
        while not holding.done:
            await self._clock.sleep(SETTLE_POLL_S)
        self._ended(disk, space, turn)

    def _ended(self, disk: LeaseDisk, space: str, turn: Turn[IndexChange]) -> None:
        self._late.discard(space)
        turn.user = None
        disk.close()


async def _read(disk: LeaseDisk, wanted: s.Rindex) -> Index:
    index = await read_index(disk, wanted.disk.offset_bytes, wanted.lockspace.text, READ_TIMEOUT_S)
    if isinstance(index, IoFailed):
        raise Refused(code_of(index))
    if isinstance(index, Malformed):
        raise Refused(_OF_HEADER.get(index.reason, Result.ERROR))
    return index


def _slot(index: Index, number: int) -> int:
    return rindex.slot_offset_bytes(index.geometry, index.header.rindex_offset_bytes, number)


def _number(index: Index, offset_bytes: int) -> int:
    """The entry of the lease at that offset."""
    number, rest = divmod(offset_bytes - _slot(index, 0), index.geometry.align_bytes)
    if rest or not 0 <= number < index.header.entries_max:
        raise Refused(Result.RINDEX_OFFSET)
    return number


async def _enter(index: Index, disk: LeaseDisk, number: int, entry: RindexEntry, member: Membership) -> None:
    at, sector = rindex.sector_with_entry(index.header, index.raw, number, entry)
    if not member.may_write():
        raise Refused(Result.ENOSPC)
    done(await disk.write(index.header.rindex_offset_bytes + at, sector, timeout_s=member.io_timeout_s))


def _landed(failed: LockspaceLost | IoFailed | None) -> None:
    if isinstance(failed, LockspaceLost):
        raise Refused(Result.ENOSPC)
    done(failed)


async def _leader_at(disk: LeaseDisk, index: Index, number: int) -> RindexEntry | None:
    """The entry for what stands in a slot: a free one where there is no lease; None beyond the end of the storage."""
    at = _slot(index, number)
    raw = await disk.read(at, index.geometry.sector_bytes, timeout_s=READ_TIMEOUT_S)
    if isinstance(raw, IoFailed):
        if raw.errno == errno.EMSGSIZE:
            return None
        raise Refused(code_of(raw))
    if not raw.startswith(_MAGIC):
        return RindexEntry()
    name = PaddedName(raw[_NAME_AT : _NAME_AT + NAME_BYTES])  # a damaged one is not to be lost
    return RindexEntry(offset_bytes=at, name=PaddedName.of(name.text))

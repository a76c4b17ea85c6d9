"""Describes why a lease was refused: its holders as far as storage shows them, or why it can't be used.

The owner's host comes from its record in the lockspace (name, age of its last renewal as seen from here), the VM from the
note after the owner's block. A real sanlock leaves no note; then only the host is named.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import assert_never

from holdfast.backends.base import HeldElsewhere
from holdfast.backends.paxos import owner_note
from holdfast.errors import LeaseUnusable
from holdfast.model import Holder, Mode
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.host_status import HostState
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_lease import SharedBy
from holdfast.protocol.paxos_outcomes import (
    AlreadyShared,
    ClearedByAnother,
    Contended,
    InDoubt,
    LeaderBehind,
    LockspaceLost,
    Refusal,
    WrongVersion,
)
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.takeover import (
    NEVER_BY_TIME,
    Busy,
    FormerUser,
    HostUnknown,
    NeverByTime,
    older_term_stays,
)
from holdfast.protocol.types import Generation, HostId, IoFailed

TAKEN_OUT = "it has just been taken out by another host"
MAKE_ANEW = "make sure that no host uses the disk, then 'holdfast lease init --force' makes it anew"


def failure(why: IoFailed | Malformed) -> str:
    """What is wrong with a lease's storage, and the fix where it has one."""
    return os.strerror(why.errno) if isinstance(why, IoFailed) else f"{why}; {fix_of(why)}"


def fix_of(fault: Malformed) -> str:
    """What to do about a lease that can't be used. One that is good, but not for this program, is never to be made again."""
    return fault.fix or MAKE_ANEW


class Refusals:
    """Describes refusals of one lease."""

    def __init__(self, area: LeaseArea, member: Membership, place: str) -> None:
        self._area = area
        self._member = member
        self._place = place

    async def describe(self, refusal: Refusal | SharedBy | Lease | InDoubt) -> HeldElsewhere | IoFailed:
        """The holders, or a failed request; raises `LeaseUnusable` for everything else."""
        result = await self._described(refusal)
        return replace(result, cause=refusal) if isinstance(result, HeldElsewhere) else result

    async def _described(self, refusal: Refusal | SharedBy | Lease | InDoubt) -> HeldElsewhere | IoFailed:
        match refusal:
            case Busy(leader, _, seen_s):
                return await self._owner(HostId(leader.owner_id), leader.lver, seen_s, "")
            case HostUnknown(leader, _, dead_in_s):
                remark = (
                    f"not known to be alive; if it is dead, its leases can be taken over in {dead_in_s:.0f} s"
                )
                return await self._owner(HostId(leader.owner_id), leader.lver, None, remark)
            case FormerUser():
                return await self._former_user(str(refusal))
            case NeverByTime(leader):
                return await self._owner(HostId(leader.owner_id), leader.lver, None, str(refusal))
            case SharedBy(hosts):
                return HeldElsewhere(tuple([await self._sharer(*term) for term in hosts.items()]))
            case IoFailed():
                return refusal
            case Malformed():
                raise self._unusable(failure(refusal), refusal)
            case Contended(ballots):
                raise self._unusable(f"other hosts were quicker in {ballots} ballots; try again", refusal)
            case LeaderBehind(leader, lver_seen):
                raise self._unusable(
                    f"its leader is at version {leader.lver}, but a host's block is at {lver_seen}: "
                    "a record was written over with an older one",
                    refusal,
                )
            case LockspaceLost():
                raise self._unusable("this host has just lost the lockspace", refusal)
            case ClearedByAnother():
                reason = "another host has written over this host's block, as if it were dead"
                raise self._unusable(reason, refusal)
            case WrongVersion(leader):
                raise self._unusable(
                    f"it is at version {leader.lver}, and another one was asked for", refusal
                )
            case AlreadyShared():
                raise self._unusable(f"it is not as it should be: {type(refusal).__name__}", refusal)
            case Lease() | InDoubt():
                raise TypeError(f"no refusal: {refusal!r}")
            case _:
                assert_never(refusal)

    async def _former_user(self, remark: str) -> HeldElsewhere:
        """Named by the note after our own block, if that is still the former user's."""
        host_id = self._member.host_id
        read = await self._area.read_note(host_id, self._member.io_timeout_s)
        note = b"" if read is None else read[1]
        mode = Mode.SHARED if read is not None and read[0].mode.is_shared else Mode.EXCLUSIVE
        holder = owner_note.decode(note, host="", host_id=host_id, mode=mode, alive_s_ago=None, remark=remark)
        return HeldElsewhere((holder,))

    def _unusable(self, reason: str, cause: Refusal) -> LeaseUnusable:
        return LeaseUnusable(name=self._area.resource_name, place=self._place, reason=reason, cause=cause)

    async def _owner(self, host_id: HostId, lver: int, seen_s: float | None, remark: str) -> HeldElsewhere:
        read = await self._area.read_note(host_id, self._member.io_timeout_s)
        # The note is about the version of the block that it follows.
        note = read[1] if read is not None and read[0].dblock.lver == lver else b""
        return HeldElsewhere((await self._holder(host_id, note, Mode.EXCLUSIVE, seen_s, remark),))

    async def _sharer(self, host_id: HostId, generation: Generation) -> Holder:
        read = await self._area.read_note(host_id, self._member.io_timeout_s)
        note = read[1] if read is not None and read[0].mode.is_shared else b""
        view = self._member.view(host_id)
        seen_s = view.unchanged_s if view.state is HostState.LIVE else None
        remark = NEVER_BY_TIME if view.no_timeout and seen_s is None else ""
        if view.no_timeout and view.generation is not None and view.generation > generation:
            host = f"host {view.name} (host_id {host_id})"
            seen_s, remark = None, older_term_stays(host, view.generation, generation)
        return await self._holder(host_id, note, Mode.SHARED, seen_s, remark)

    async def _holder(
        self, host_id: HostId, note: bytes, mode: Mode, seen_s: float | None, remark: str
    ) -> Holder:
        record = await self._member.lockspace.read_record(host_id, self._member.io_timeout_s)
        host = record.host_name.text if isinstance(record, DeltaLease) else ""
        return owner_note.decode(
            note, host=host, host_id=host_id, mode=mode, alive_s_ago=seen_s, remark=remark
        )

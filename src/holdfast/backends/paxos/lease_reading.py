"""What storage shows of a lease at one moment, to this host: it holds it, left it behind, or others have it."""

from __future__ import annotations

from holdfast.backends.paxos.lease_jobs import HoldingPorts, area_in
from holdfast.model import Mode
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.holders import (
    Exclusive,
    Holders,
    HostTerm,
    claims_against,
    holders_of,
    holds_alone,
    may_yet_own,
    shared_by,
)
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.membership import Membership
from holdfast.protocol.types import IoFailed


def holders_seen(seen: Snapshot) -> Holders:
    return holders_of(seen.leader, seen.blocks)


class LeaseReading:
    """Reads one lease, in offloaded jobs. A single read proves nothing about other hosts."""

    def __init__(self, area: LeaseArea, member: Membership, ports: HoldingPorts) -> None:
        self.area = area
        self.member = member
        self._ports = ports

    async def look(self) -> Snapshot | Malformed | IoFailed:
        host_id, timeout_s = self.member.host_id, self.member.io_timeout_s
        return await self._ports.answer(
            lambda job: area_in(job, self.area).look(host_id, timeout_s), timeout_s
        )

    async def held_mode(self) -> Mode | IoFailed | None:
        """The mode in which storage shows this incarnation as holder; None if it does not."""
        seen = await self.look()
        if not isinstance(seen, Snapshot):
            return seen if isinstance(seen, IoFailed) else None
        if not is_held_by(self.member, seen):
            return None
        return Mode.EXCLUSIVE if is_alone_with(self.member, seen) else Mode.SHARED

    async def is_left_behind(self) -> bool | IoFailed:
        """Whether storage shows that this incarnation has it, alone or shared, or may get it by another host's ballot."""
        seen = await self.look()
        if not isinstance(seen, Snapshot):
            return seen if isinstance(seen, IoFailed) else False
        own = seen.block(self.member.host_id)
        holders = holders_seen(seen)
        alone = isinstance(holders, Exclusive) and holders.owner == self._term
        # An attempt that was not withdrawn: the next host's ballot has to decide for our value.
        return alone or is_shared_by(self.member, own) or may_yet_own(seen.leader, own, self._term)

    @property
    def _term(self) -> HostTerm:
        return self.member.host_id, self.member.generation

    async def claims(self) -> list[HostTerm] | str:
        """The incarnations of other hosts that one read shows on it, or why that is not known."""
        seen = await self.look()
        if not isinstance(seen, Snapshot):
            return str(seen)
        return [claim.term for claim in claims_against(holders_seen(seen), self._term)]

    async def who_holds(self) -> str:
        """A text that names a seeming holder, by one read that proves nothing; empty if there is none.

        An owner that was an incarnation of this host id before it was claimed is over, as for a start (`takeover`).
        """
        seen = await self.look()
        if not isinstance(seen, Snapshot):
            return str(seen)
        holders = holders_seen(seen)
        claims = [c for c in claims_against(holders, self._term) if not self.member.has_ended(c.term)]
        if claims and claims[0].mode is Mode.EXCLUSIVE:
            return f"host_id {claims[0].term[0]} has it"
        others = ", ".join(str(claim.term[0]) for claim in claims)
        return f"shared by host_id {others}" if others else ""


def is_held_by(member: Membership, seen: Snapshot) -> bool:
    """Whether storage shows this incarnation of our host as holder of the lease, alone or shared."""
    return is_alone_with(member, seen) or is_shared_by(member, seen.block(member.host_id))


def is_shared_by(member: Membership, own: HostBlock) -> bool:
    return shared_by(own) == member.generation


def is_alone_with(member: Membership, seen: Snapshot) -> bool:
    """Whether the lease is proven to be ours alone."""
    return holds_alone(seen.leader, seen.blocks, (member.host_id, member.generation))

"""Breaking a lease: the claims on it, the proof that they are over, and clearing the shared holds that remain.

An owner that is attested to be off does not own the next version. A shared hold is in the block of its host, and other hosts
respect it until that host's dead bound: so the host that has won the lease exclusively clears it there, and changes nothing
else of the block. Only blocks of attested incarnations are written; all others stay until their bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from holdfast.model import printable
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.host_block import NO_MODE, HostBlock
from holdfast.protocol.host_status import HostState, HostView, proven_gone
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.takeover import Attested, attested_off, word_covers
from holdfast.protocol.types import Generation, HostId, IoFailed
from holdfast.supervision.host_names import is_called

UNPROVEN = (
    ": not proven to be off; if you know that it is, name it (--attest-off HOST --operator YOU), and wait until it has "
    "not renewed for 3 io_timeouts"
)


@dataclass(frozen=True, slots=True)
class HoldStands:
    """A shared hold of an attested incarnation that is left to the host which has its host id by now."""

    term: tuple[HostId, Generation]

    def __str__(self) -> str:
        host_id, generation = self.term
        return (
            f"the shared hold of generation {generation} stands in the block of host id {host_id}, which a host has again: "
            "that host frees it ('holdfast lease gc' there)"
        )


async def clear_holds(
    area: LeaseArea, member: Membership, attested: Attested
) -> IoFailed | HoldStands | None:
    """Clear the shared holds of attested incarnations in their hosts' blocks. We must hold the lease exclusively."""
    stands: HoldStands | None = None
    for host_id, incarnation in sorted(attested):
        if host_id > area.hosts_expected:
            continue
        block = await area.read_block(host_id, member.io_timeout_s)
        if isinstance(block, IoFailed):
            return block
        if (
            not isinstance(block, HostBlock)
            or not block.mode.is_shared
            or block.mode.generation != incarnation
        ):
            continue
        # The attestation was about this incarnation: a host that came back meanwhile writes its block itself.
        record = await member.lockspace.read_record(host_id, member.io_timeout_s)
        if (
            not isinstance(record, DeltaLease)
            or not word_covers(record, incarnation)
            or not member.may_write()
        ):
            continue
        view = member.view(host_id)
        if record.generation > incarnation and not attested_off(
            attested, host_id, incarnation, record, view, member.timing
        ):
            # The end of that term was proven otherwise, and the host id's present user writes this block.
            stands = HoldStands((host_id, incarnation))
            continue
        cleared = replace(block, mode=NO_MODE)
        if failed := await replace(area, note=b"").write_block(host_id, cleared, member.io_timeout_s):
            return failed
    return stands


@dataclass(frozen=True, slots=True)
class Claimant:
    """An incarnation with a claim on a lease: its record on storage, our view of its host, and the VM from its note."""

    term: tuple[HostId, Generation]
    record: DeltaLease | None
    view: HostView
    vm: str = ""

    def is_called(self, name: str) -> bool:
        """Whether `name` is its host id, its whole name, or its node's name."""
        called = self.record.host_name.text if self.record is not None else ""
        return is_called(name, self.term[0], called)

    def proof(self, attested: frozenset[tuple[HostId, Generation]]) -> str:
        """Why its hold was over, after the lease was won from it."""
        if self.record is not None and proven_gone(self.term[1], self.record, self.view):
            if self.record.is_marked_dead and self.record.generation == self.term[1]:
                return f"{self}: marked as dead (DEAD_EXT) by host_id {self.record.marked_by[0]}"
            if self.view.state is HostState.DEAD:
                return f"{self}: DEAD, unchanged for {self.view.unchanged_s:.0f} s"
            return f"{self}: that term is over"
        if self.record is not None and self.record.generation < self.term[1]:
            return f"{self}: the lockspace has known only generation {self.record.generation} of it for its dead bound"
        if self.term in attested and self.record is not None and self.record.is_no_timeout:
            return f"{self}: attested to be off, unchanged for {self.view.unchanged_s:.0f} s"
        if self.record is not None and self.record.generation > self.term[1]:
            return f"{self}: its host has been seen as generation {self.record.generation} for its dead bound"
        if self.term in attested:
            return f"{self}: attested to be off, unchanged for {self.view.unchanged_s:.0f} s"
        return f"{self}: it had given the lease up"

    def __str__(self) -> str:
        called = printable(self.record.host_name.text) if self.record is not None else "unknown"
        vm = f"VM {self.vm} on " if self.vm else ""
        return f"{vm}host {called} (host_id {self.term[0]}, generation {self.term[1]})"

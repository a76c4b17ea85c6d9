"""Locks made of leases: exclusive and shared, acquired, released and converted.

    exclusive   the leader names the host; no other host has a shared hold
    shared      the leader is free; the host's own block says SHARED with the host's generation

A shared acquirer wins the leader as any other, writes its shared hold, and frees the leader again. So
every later winner of the leader sees the hold, and an exclusive acquirer refuses if the sharer lives. The
order of writes is everything: hold first, leader second, in one direction as in the other.

    host 1 (shared)                               host 2 (exclusive)
    wins lver 7, writes SHARED, frees leader
                                                  wins lver 8; phase 1 read host 1's block: SHARED
                                                  reads host 1's delta lease: alive -> frees leader, SharedBy

A dead sharer's block is left as it is, where sanlock overwrites it with zeros: its owner may come back
while we write, and then we would take back what a living host has promised in a ballot. A stale hold is recognised by its
generation.
"""

from dataclasses import dataclass, replace

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.host_block import NO_MODE, HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.ballot import PreparedBallot
from holdfast.protocol.holders import shared_by
from holdfast.protocol.host_status import proven_gone
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_acquire import AcquireIntent, acquire_version
from holdfast.protocol.paxos_outcomes import InDoubt, LockspaceLost, Refusal, Won
from holdfast.protocol.paxos_release import (
    DowngradeFailed,
    Lease,
    Mode,
    NotHeld,
    Released,
    ReleaseFailed,
    downgrade,
    release,
)
from holdfast.protocol.ports import Clock, Rng
from holdfast.protocol.takeover import NOBODY_ATTESTED, Attested, Busy, attested_off, other_term_left_s
from holdfast.protocol.types import Generation, HostId, IoFailed, OnWait, ignore_wait

# A shared acquirer meets other shared acquirers that hold the leader only for a moment; it tries again so
# often.
SHARED_RETRIES_MAX = 8
_SHARED_PAUSE_MAX_S = 1.0


@dataclass(frozen=True, slots=True)
class SharedBy:
    """Other hosts hold the lease shared and are not proven dead."""

    hosts: dict[HostId, Generation]


AcquireOutcome = Lease | SharedBy | Refusal | InDoubt


async def acquire_exclusive(
    area: LeaseArea,
    member: Membership,
    clock: Clock,
    rng: Rng,
    *,
    wanted_lver: int = 0,
    wait: bool = False,
    on_wait: OnWait = ignore_wait,
    attested: Attested = NOBODY_ATTESTED,
    partial_snapshot: Snapshot | None = None,
    promise: PreparedBallot | None = None,
) -> AcquireOutcome:
    """Acquire the lease for this host alone; `wait` for the dead bound of an owner that may be dead.

    `attested`: incarnations of hosts that a person vouches to be off, for which the dead bound need not pass.
    `partial_snapshot`: a partial read made just now, with no write of ours in flight.
    `promise`: what the last release by this incarnation left in our block (`Released`), passed once.
    """
    intent = AcquireIntent(
        wanted_lver=wanted_lver,
        wait=wait,
        on_wait=on_wait,
        attested=attested,
        partial_snapshot=partial_snapshot,
        promise=promise,
    )
    won = await acquire_version(area, member, clock, rng, intent)
    if not isinstance(won, Won):
        return won
    lease = Lease(Mode.EXCLUSIVE, won.leader, won.own, owns_leader=True)
    living = await living_sharers(area, member, clock, won.sharers, attested)
    if living == {}:
        return lease if member.may_write() else InDoubt(LockspaceLost(), won.own, NO_MODE)
    released = await release(area, member, clock, lease)
    if isinstance(released, Released | NotHeld):
        return SharedBy(living) if isinstance(living, dict) else living
    why = released.why if isinstance(released, ReleaseFailed) else released
    return InDoubt(why, won.own, NO_MODE)


async def acquire_shared(
    area: LeaseArea,
    member: Membership,
    clock: Clock,
    rng: Rng,
    *,
    wanted_lver: int = 0,
    wait: bool = False,
    on_wait: OnWait = ignore_wait,
    partial_snapshot: Snapshot | None = None,
    promise: PreparedBallot | None = None,
) -> AcquireOutcome:
    """Acquire the lease together with any other hosts that hold it shared."""
    intent = AcquireIntent(
        short_hold=True,
        wanted_lver=wanted_lver,
        wait=wait,
        on_wait=on_wait,
        partial_snapshot=partial_snapshot,
        promise=promise,
    )
    won = await acquire_version(area, member, clock, rng, intent)
    intent = replace(intent, partial_snapshot=None, promise=None)
    for _ in range(SHARED_RETRIES_MAX):
        if not (isinstance(won, Busy) and _held_for_a_moment(won.leader)):
            break
        await clock.sleep(rng.uniform(0, _SHARED_PAUSE_MAX_S))
        won = await acquire_version(area, member, clock, rng, intent)
    if not isinstance(won, Won):
        return won
    shared = await downgrade(
        area, member, clock, Lease(Mode.EXCLUSIVE, won.leader, won.own, owns_leader=True)
    )
    if isinstance(shared, DowngradeFailed):
        return InDoubt(shared.why, shared.lease.own, NO_MODE)
    return shared


def _held_for_a_moment(leader: Leader) -> bool:
    """A leader written for another host does not show whether that host wants it only for a moment."""
    return leader.short_hold or leader.write_id != leader.owner_id


async def living_sharers(
    area: LeaseArea,
    member: Membership,
    clock: Clock,
    sharers: dict[HostId, Generation],
    attested: Attested = NOBODY_ATTESTED,
) -> dict[HostId, Generation] | Malformed | IoFailed:
    """Which of the shared holds that a ballot saw still stand, by a fresh look at each, and are of
    living hosts.
    """
    living: dict[HostId, Generation] = {}
    for host_id in sharers:
        block = await area.read_block(host_id, member.io_timeout_s)
        if not isinstance(block, HostBlock):
            return block
        term = shared_by(block)
        if term is None:
            continue
        # Read after the hold was, so that a free record is no older than the hold.
        looked_at = clock.now()
        record = await member.lockspace.read_record(host_id, member.io_timeout_s)
        if not isinstance(record, DeltaLease):
            return record
        view = member.view(host_id)
        gone = proven_gone(term, record, view) or attested_off(
            attested, host_id, term, record, view, member.timing
        )
        if record.generation != term:
            gone = gone or other_term_left_s(member, host_id, term, record, looked_at) < 0
        if not gone:
            living[host_id] = term
    return living


async def upgrade(
    area: LeaseArea, member: Membership, clock: Clock, rng: Rng, lease: Lease
) -> AcquireOutcome:
    """From shared to exclusive, never letting go of the shared hold: refused while another host shares.

    Every write of our block on the way carries the shared hold. If the upgrade is refused, `lease` goes on
    as it was, except that its block has changed on disk: `SharedBy`, `Busy` and the others leave the hold
    standing.
    """
    hold = ModeBlock.shared(member.generation)
    won = await acquire_version(area, member, clock, rng, AcquireIntent(mode=hold))
    if not isinstance(won, Won):
        return won
    exclusive = Lease(Mode.EXCLUSIVE, won.leader, won.own, owns_leader=True)
    living = await living_sharers(area, member, clock, won.sharers)
    if living != {}:
        back = await downgrade(area, member, clock, exclusive)
        if isinstance(back, DowngradeFailed):
            return InDoubt(back.why, back.lease.own, hold)
        return SharedBy(living) if isinstance(living, dict) else living
    if not member.may_write():
        return InDoubt(LockspaceLost(), won.own, hold)
    own = HostBlock(dblock=won.own.dblock, mode=NO_MODE)
    # If this fails the hold stays beside the leader, which weakens nothing; the release will take both.
    await area.write_block(member.host_id, own, member.io_timeout_s)
    return Lease(Mode.EXCLUSIVE, won.leader, own, owns_leader=True)

"""Giving leases up: release, downgrade to shared, and the withdrawal of an attempt that ended in doubt.

The order is always our block first, the leader second. The block keeps all its values, with a flag that
says RELEASED: a slow host may still write an older leader over ours, and then these values are what the
next ballot finds. Blocks of zeros would let that ballot decide again what was decided long ago.

Where all hosts are Holdfast's, a release prepares the next version in the same write (ADR 0126). sanlock can't bring an
older leader forward over a prepared ballot, so beside its hosts the block keeps the values of its own version, as theirs do
(ADR 0195).

A leader that another host wrote on our behalf is not freed by us, because that host may still be about to
write it again. The flag in our block releases it.

What the caller asked to give up is given up, whatever the disk says: a failed release or downgrade is
repeated until it succeeds, and the resource is not acquired again here before.
"""

from dataclasses import dataclass, replace
from enum import Enum

from holdfast.ondisk.host_block import FLAG_RELEASED, NO_MODE, HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.ballot import PreparedBallot, prepare_next
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_outcomes import InDoubt, LockspaceLost
from holdfast.protocol.ports import Clock
from holdfast.protocol.types import IoFailed, timestamp_of


class Mode(Enum):
    """How a lease is held."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease held by this host: the leader that made it ours, and our block as last written.

    `owns_leader`: the leader on disk still names us. So it is while the lease is exclusive, and for as long
    as a downgrade has not succeeded.
    """

    mode: Mode
    leader: Leader
    own: HostBlock
    owns_leader: bool

    @property
    def lver(self) -> int:
        return self.leader.lver


@dataclass(frozen=True, slots=True)
class Released:
    """The lease is free, or as free as it was without us. `promise`: how it was left, for our own next acquire."""

    promise: PreparedBallot | None = None


@dataclass(frozen=True, slots=True)
class NotHeld:
    """The leader names somebody else, or another version: there was nothing to free."""

    found: Leader


@dataclass(frozen=True, slots=True)
class ReleaseFailed:
    """Not released yet: repeat, first after one io_timeout, then every two."""

    why: IoFailed | Malformed


@dataclass(frozen=True, slots=True)
class DowngradeFailed:
    """`lease` is worth no more than shared from now on: repeat until it is."""

    lease: Lease
    why: IoFailed | Malformed | LockspaceLost


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Nobody can make us the owner any more."""


ReleaseOutcome = Released | NotHeld | ReleaseFailed | LockspaceLost
DowngradeOutcome = Lease | DowngradeFailed
WithdrawOutcome = Withdrawn | ReleaseFailed | LockspaceLost


async def release(
    area: LeaseArea, member: Membership, clock: Clock, lease: Lease, *, renamed: str = ""
) -> ReleaseOutcome:
    """Give the lease up. Our block first, the leader second; may be repeated after a failure. `renamed`: the free leader of
    an exclusive lease is another resource's, in the same write.

    An owner who wrote the leader himself promises the next version in the same write: his value for this one is in the
    leader, and no host of Holdfast's needs it for a ballot any more.
    """
    may_promise = lease.mode is Mode.EXCLUSIVE and lease.leader.write_id == member.host_id
    promises = may_promise and not member.beside_others()  # reads the clock: before the question below
    if not member.may_write():
        return LockspaceLost()
    own = lease.own
    next_phase_one: HostBlock | None = None
    if promises:
        next_phase_one = prepare_next(own, lease.leader, member.host_id)
    elif may_promise or lease.mode is Mode.SHARED:
        # An upgrade that was refused has moved our ballots on, or an earlier attempt has promised when no other host was
        # seen; to write older ones would take back a promise.
        if busy := area.busy():
            return ReleaseFailed(busy)
        found = await area.read_block(member.host_id, member.io_timeout_s)
        if not isinstance(found, HostBlock):
            return ReleaseFailed(found)
        own = max(found, own, key=_age)
        if not member.may_write():
            return LockspaceLost()
    left = next_phase_one or _released(own, NO_MODE)
    block_failed = await area.write_block(member.host_id, left, member.io_timeout_s)
    if not lease.owns_leader:
        return ReleaseFailed(block_failed) if block_failed else Released()
    freed = await _free_leader(area, member, clock, lease.leader, next_phase_one, renamed)
    if isinstance(freed, Released) and block_failed:
        # The flag in our block may be all that releases a leader that another host wrote for us; and a shared hold that
        # an upgrade could not take away may still stand there, for everybody to respect as long as we live.
        return ReleaseFailed(block_failed)
    return freed


async def downgrade(area: LeaseArea, member: Membership, clock: Clock, lease: Lease) -> DowngradeOutcome:
    """From exclusive to shared: our shared hold first, then the leader is freed."""
    own = _released(lease.own, ModeBlock.shared(member.generation))
    shared = Lease(Mode.SHARED, lease.leader, own, owns_leader=True)
    if not member.may_write():
        return DowngradeFailed(shared, LockspaceLost())
    failed = await area.write_block(member.host_id, own, member.io_timeout_s)
    if failed is not None:
        return DowngradeFailed(shared, failed)
    freed = await _free_leader(area, member, clock, lease.leader)
    match freed:
        case ReleaseFailed(why):
            return DowngradeFailed(shared, why)
        case LockspaceLost():
            return DowngradeFailed(shared, freed)
        case Released() | NotHeld():
            return replace(shared, owns_leader=False)


TAKEN_OUT = (Reason.CLEARED, Reason.RESOURCE_NAME)
"""What a leader says where a lease was: it is cleared, or its place is another lease's by now."""


async def withdraw(area: LeaseArea, member: Membership, clock: Clock, doubt: InDoubt) -> WithdrawOutcome:
    """End a doubt: wait until nothing of ours is in flight, then make sure that nobody can make us the owner.

    The value in our block stays, as it may be decided already or be decided by another host later; what
    makes it harmless is the RELEASED flag beside it.
    """
    await area.settled()
    if not member.may_write():
        return LockspaceLost()
    found = await area.read_block(member.host_id, member.io_timeout_s)
    if isinstance(found, IoFailed):
        return ReleaseFailed(found)
    newest = doubt.own if isinstance(found, Malformed) else max(found, doubt.own, key=_age)
    if not member.may_write():
        return LockspaceLost()
    failed = await area.write_block(member.host_id, _released(newest, doubt.keep), member.io_timeout_s)
    if failed is not None:
        return ReleaseFailed(failed)
    leader = await area.read_leader(member.host_id, member.io_timeout_s)
    if isinstance(leader, Malformed) and leader.reason in TAKEN_OUT:
        return Withdrawn()  # there is no leader any more that could name us
    if not isinstance(leader, Leader):
        return ReleaseFailed(leader)
    if member.owns(leader) and not leader.is_free and leader.write_id == member.host_id:
        freed = await _free_leader(area, member, clock, leader)
        if isinstance(freed, ReleaseFailed | LockspaceLost):
            return freed
    return Withdrawn()


def _age(block: HostBlock) -> tuple[int, int, int]:
    return block.dblock.lver, block.dblock.mbal, block.dblock.bal


def _released(own: HostBlock, mode: ModeBlock) -> HostBlock:
    """Our block with all its values, the flag that we gave the lease up, and `mode`."""
    return HostBlock(dblock=replace(own.dblock, flags=FLAG_RELEASED), mode=mode)


async def _free_leader(
    area: LeaseArea,
    member: Membership,
    clock: Clock,
    ours: Leader,
    next_phase_one: HostBlock | None = None,
    renamed: str = "",
) -> Released | NotHeld | ReleaseFailed | LockspaceLost:
    """Write the leader free if it is still exactly the one that we wrote. `next_phase_one`: what our block says by then."""
    found = await area.read_leader(member.host_id, member.io_timeout_s)
    if not isinstance(found, Leader):
        return ReleaseFailed(found)
    if found.write_id != member.host_id:
        # Written for us by another host, which may still write it again: the flag in our block has to do.
        return Released()
    if found.is_free and member.owns(found) and found.lver == ours.lver:
        # By an earlier attempt, whose promise may not have been on disk by then.
        return _left(found, next_phase_one, before_free=False)
    if found != ours:
        return NotHeld(found)
    free = replace(
        found,
        timestamp=0,
        short_hold=False,
        write_id=member.host_id,
        write_generation=member.generation,
        write_timestamp=timestamp_of(clock.now()),
        resource_name=PaddedName.of(renamed) if renamed else found.resource_name,
    )
    if not member.may_write():
        return LockspaceLost()
    failed = await area.write_leader(free, member.io_timeout_s)
    return ReleaseFailed(failed) if failed else _left(free, next_phase_one, before_free=True)


def _left(leader: Leader, block: HostBlock | None, *, before_free: bool) -> Released:
    return Released(None if block is None else PreparedBallot(leader, block, before_free))

"""A ballot decides one thing: who owns version `lver` of a lease.

Disk Paxos (Gafni, Lamport: "Disk Paxos", 2003) with one disk. Each host has a block on it, dblock[q], that
only q writes and all read. A ballot of host p, numbered b:

    phase 1   write dblock[p] = (mbal b, bal and inp as they were); read all blocks
    phase 2   write dblock[p] = (mbal b, bal b, inp v);             read all blocks
              v: the inp of the block with the greatest bal, or p's own proposal if no block has one

    abort     in either phase, at a block of this version with a greater mbal: another ballot is under way
    decided   v, when phase 2 has read all blocks without an abort

Any later ballot of this version finds v in some block and can only decide v again. Ballot numbers are
unique because number modulo max_hosts names the host. Blocks of older versions do not count; a block of a
newer version means that this one is long decided (abort).

Differences from sanlock, none of which it can distinguish from a slow sanlock host:

* sanlock writes bal and inp as 0 in phase 1, so a retry forgets what it had accepted, which is sound only
  as long as nobody retries after a completed phase 2. Here phase 1 keeps them, as in the paper, so a retry
  is always sound.
* A block that cannot be read ends the ballot; a block skipped is a promise overlooked.
* The leader is read together with the blocks. If it has moved on, the ballot ends before it can decide for a
  version that is already past, and no leader is written over a newer one that was visible by then.
* A version that we have once accepted a value for and then given up (RELEASED) cannot be won by us any
  more. Its ballot can still be finished, with the flag standing all the way, to get on to the next version:

      host 3                                        host 2
      phase 2 for lver 1 fails; withdraws: RELEASED
                                                    adopts host 3's value: leader lver 1, owner 3
                                                    sees RELEASED: runs lver 2, and wins
      races for lver 1 again, clears the flag
      sees the leader of lver 1 naming itself: "won"

* Our own block must read back as written: if not, another host has judged us dead and cleared it.
* Phase 1 may have been written long before, by the release of the version before (`prepare_next`). Then the look that the
  race begins with is the look that ends it:

      release of lver 5     dblock[p] = (mbal b, bal 0, lver 6, RELEASED); leader lver 5 free
      …
      acquire               look: the leader and dblock[p] as they were left, nobody ahead of b
                            phase 2 of ballot b for lver 6

  That read can miss no shared hold although its leader and its blocks are of slightly different moments: a sharer has won
  a version first, and then the leader is not the one of the prepared ballot any more.

  The read need not cover all blocks if the prepared ballot was on disk while the leader still named p (ADR 0132). It would
  only show what others have accepted for lver 6 below b, and that is nothing:

      release of lver 5     dblock[p] = promise b ─ the leader is read: lver 5, p has it ─ leader lver 5 free
                            └── from here on, who looks sees b                           └── from here on, others may
                                                                                            begin ballots for lver 6
"""

from dataclasses import dataclass, replace

from holdfast.ondisk.host_block import FLAG_RELEASED, Dblock, HostBlock, ModeBlock, Value
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.record_layout import U64_MAX
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.membership import Membership
from holdfast.protocol.types import Generation, HostId, IoFailed

# Ballot numbers are 64 bit on disk; no lease gets there by itself, a forged block might.
MBAL_MAX = U64_MAX
LVER_MAX = U64_MAX


@dataclass(frozen=True, slots=True)
class Decided:
    """`value` owns the version, now and for ever. `sharers`: shared holds seen in the complete phase 1."""

    value: Value
    own: HostBlock
    sharers: dict[HostId, Generation]


@dataclass(frozen=True, slots=True)
class Outbid:
    """A ballot with a greater number is under way."""

    mbal: int
    by: HostId
    own: HostBlock


@dataclass(frozen=True, slots=True)
class VersionPassed:
    """A block is about a newer version than the one this ballot is for."""

    lver: int
    by: HostId
    own: HostBlock


@dataclass(frozen=True, slots=True)
class LeaderMoved:
    """The leader is not the one any more on which this ballot rests."""

    leader: Leader
    own: HostBlock


@dataclass(frozen=True, slots=True)
class Displaced:
    """Our own block does not read back as written."""

    found: HostBlock
    own: HostBlock


@dataclass(frozen=True, slots=True)
class BallotFailed:
    """Storage failed, or holds something unreadable. `own` is what may be in our block now or later."""

    why: IoFailed | Malformed
    own: HostBlock


@dataclass(frozen=True, slots=True)
class NoStanding:
    """Our delta lease has failed: we may not write."""

    own: HostBlock


BallotOutcome = Decided | Outbid | VersionPassed | LeaderMoved | Displaced | BallotFailed | NoStanding
_Abort = Outbid | VersionPassed | LeaderMoved | Displaced | BallotFailed | NoStanding


def next_mbal(greatest_mbal: int, host_id: HostId, max_hosts: int) -> int | None:
    """The least number of this host above every number seen; None when 64 bits are exhausted."""
    if greatest_mbal == 0:
        return host_id
    number = greatest_mbal - greatest_mbal % max_hosts + max_hosts + host_id
    return number if number <= MBAL_MAX else None


@dataclass(frozen=True, slots=True)
class PreparedBallot:
    """What a release has left on disk: the leader that it freed, and in our block phase 1 for the version after it.

    `before_free`: it was there while that leader still named us, so a host that begins a ballot for that version sees it.
    """

    leader: Leader
    block: HostBlock
    before_free: bool


def prepare_next(own: HostBlock, leader: Leader, host_id: HostId) -> HostBlock | None:
    """The block that the owner of this leader may write at its release: it says that the lease is given up, as any block
    about a newer version does (`takeover`), and is phase 1 of the owner's ballot for that version. None where numbers end.

    RELEASED is for sanlock, which looks at the flag alone.
    """
    mbal = next_mbal(own.dblock.mbal, host_id, leader.max_hosts)
    if mbal is None or leader.lver >= LVER_MAX:
        return None
    return HostBlock(dblock=Dblock(mbal=mbal, lver=leader.lver + 1, flags=FLAG_RELEASED))


def is_still_valid(promise: PreparedBallot, seen: Snapshot, host_id: HostId) -> bool:
    """Whether this read ends phase 1: the lease is as the release left it, and no host is ahead of the prepared ballot.

    A partial read is enough only if no vote can be older than the prepared ballot. Such a vote may be decided, and a host
    that votes above it without having seen it misleads the next ballot, even if it notices a moment later (ADR 0127).
    """
    if not (seen.of_all or promise.before_free):
        return False
    as_left = seen.leader == promise.leader and seen.block(host_id) == promise.block
    return as_left and _abort(seen, promise.block, host_id) is None


async def ballot(
    area: LeaseArea,
    member: Membership,
    *,
    leader: Leader,
    lver: int,
    mbal: int,
    proposal: Value,
    own: HostBlock,
    mode: ModeBlock,
    promised: Snapshot | None = None,
) -> BallotOutcome:
    """Run ballot `mbal` for version `lver`, upon this `leader`. `own` is our block as it is on disk.

    `mode` goes with both writes: nothing for a plain acquire, which so erases a shared hold of an earlier
    term, and our shared hold when it is being converted, which must not be lost if we are.
    `promised`: the look, or glance, in which `own` is a promise of this very number that `is_still_valid`. No number is
    used twice.
    """
    remembered = own.dblock if own.dblock.lver == lver else Dblock(lver=lver)
    # What was given up stays given up for this version: somebody may have seen the flag and gone on already.
    flags = remembered.flags & FLAG_RELEASED if remembered.accepted else 0
    promise = replace(remembered, mbal=mbal, flags=flags)
    first: Snapshot | _Abort
    if promised is not None:
        first = promised
    else:
        before, own = own, HostBlock(dblock=promise, mode=mode)
        first = await _phase(area, member, leader, own, before)
        if not isinstance(first, Snapshot):
            return first
    value = _accepted(first, lver) or proposal
    accept = replace(promise, bal=mbal, inp=value.owner_id, inp2=value.generation, inp3=value.timestamp)
    accepting = HostBlock(dblock=accept, mode=mode)
    second = await _phase(area, member, leader, accepting, own)
    if not isinstance(second, Snapshot):
        return second
    sharers = {
        host_id: Generation(block.mode.generation)
        for host_id, block in (first if first.of_all else second).sharers.items()
        if host_id != member.host_id
    }
    return Decided(value, accepting, sharers)


async def _phase(
    area: LeaseArea, member: Membership, leader: Leader, ours: HostBlock, before: HostBlock
) -> Snapshot | _Abort:
    """Write our block, read all blocks, and check that nobody is ahead of us."""
    if not member.may_write():
        return NoStanding(before)
    failed = await area.write_block(member.host_id, ours, member.io_timeout_s)
    if failed is not None:
        return BallotFailed(failed, ours)
    seen = await area.look(member.host_id, member.io_timeout_s)
    if not isinstance(seen, Snapshot):
        return BallotFailed(seen, ours)
    if seen.block(member.host_id) != ours:
        return Displaced(seen.block(member.host_id), ours)
    if seen.leader != leader:
        return LeaderMoved(seen.leader, ours)
    return _abort(seen, ours, member.host_id) or seen


def _abort(seen: Snapshot, ours: HostBlock, own_id: HostId) -> Outbid | VersionPassed | None:
    for host_id, block in seen.blocks.items():
        if host_id == own_id or block.dblock.lver < ours.dblock.lver:
            continue
        if block.dblock.lver > ours.dblock.lver:
            return VersionPassed(block.dblock.lver, host_id, ours)
        if block.dblock.mbal >= ours.dblock.mbal:
            return Outbid(block.dblock.mbal, host_id, ours)
    return None


def _accepted(seen: Snapshot, lver: int) -> Value | None:
    """The value accepted in the greatest ballot of this version, if any host has accepted one."""
    candidates = [
        (block.dblock.bal, value)
        for block in seen.blocks.values()
        if block.dblock.lver == lver and (value := block.dblock.accepted) is not None
    ]
    return max(candidates, key=lambda candidate: candidate[0])[1] if candidates else None

"""Acquiring the next version of a lease: from the first read to the leader that names us.

The very first read is a partial one; if a ballot then meets hosts that it did not show, all blocks are read. If the first
one shows the prepared ballot of our last release, the first ballot usually begins with phase 2 (`is_still_valid`).

    read -> may it be taken from its owner? -> ballot for lver + 1 -> write the leader
     ^            |                              |          |              |
     |            Busy, HostUnknown              outbid:    the leader     another host's value was decided:
     |                                           again      moved          its leader is written for it,
     +---------------------------------------- start over <-+--------------+ then its owner is judged

The leader is written blindly over whatever is there: no disk can compare and swap. So a host that is paused
right before that write may put an old leader over a newer one:

    host 1                                    host 2
    decides itself for lver 5 (phase 2)
    ---- paused ----                          takes over after host 1's dead bound: lver 6
    writes its leader, lver 5

What keeps this harmless: the leader is compared in the very read that ends phase 2; `may_write` is asked
right before the write; host 1's watchdog has reset it before host 2 may take over; and should the write
land after all, the block of host 2 still holds the value decided for lver 6. The next host that acquires
runs lver 6, finds that value and writes host 2's leader again. That is why a block is never written over
with zeros, neither our own nor another host's.

A write that lands still later can leave the leader two versions and more behind the blocks (a host that
finished a ballot for another one needs no lease of its own on the resource, so nobody waits for its death):

    host 1                        host 2                          host 3
                                  decides host 1 for lver 5; its write of that leader hangs
    the same for itself: wins
    releases                                                      lver 6 ... releases, lver 7 ... releases
                                  leader lver 5 lands           blocks say 7, the leader says 5

No ballot for lver 6 can mend that: its block would be below those of lver 7. But a host that began a ballot
for lver 7 had seen leader 6, and that its owner was gone. So after a few more reads the ballot is for the
newest version that any block is about, whatever the leader says. If that version was decided, the block of
the host that decided it still says so, and the ballot brings its leader back; if not, it may be won.
In that history host 1 has released version 5 in its block, or is over. An owner whose block says neither keeps the
lease while it lives: an older copy of the lease was put back, it has acquired that, and the newer blocks are those of
hosts that wrote again since.

If an attempt ends without a decision while our own value may stand in our block, another host may still decide
it and make us the owner. Then the outcome is `InDoubt`: the resource stays unusable here until it was
withdrawn.
"""

from dataclasses import dataclass, replace

from holdfast.ondisk.host_block import NO_MODE, HostBlock, ModeBlock, Value
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.ballot import (
    BallotFailed,
    Decided,
    Displaced,
    LeaderMoved,
    NoStanding,
    Outbid,
    PreparedBallot,
    VersionPassed,
    ballot,
    is_still_valid,
    next_mbal,
)
from holdfast.protocol.holders import shared_by
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_outcomes import (
    AlreadyShared,
    ClearedByAnother,
    Contended,
    InDoubt,
    LeaderBehind,
    LockspaceLost,
    Refusal,
    Won,
    WrongVersion,
)
from holdfast.protocol.ports import Clock, Rng
from holdfast.protocol.takeover import (
    NOBODY_ATTESTED,
    Attested,
    FormerUser,
    LeaderChanged,
    MayTakeOver,
    former_user,
    may_take_over,
)
from holdfast.protocol.types import Generation, HostId, IoFailed, OnWait, ignore_wait, timestamp_of

# Each start means that somebody else has got on; two hosts that race for seconds need a handful.
STARTS_MAX = 64
# Ballots lost in one race. Random pauses let one of the contenders through within a few.
BALLOTS_MAX = 64
# How often a leader behind its blocks is looked at before a ballot brings it forward, as a slow committer
# needs one more write, and how often that is tried before it is reported.
BEHIND_MAX = 8
# Contenders that were outbid wait up to this long.
_PAUSE_MAX_S = 1.0


@dataclass(frozen=True, slots=True)
class AcquireIntent:
    """What the race is for: `mode` is written with our block, `short_hold` into the leader."""

    mode: ModeBlock = NO_MODE
    short_hold: bool = False
    wanted_lver: int = 0  # 0: any
    wait: bool = False
    on_wait: OnWait = ignore_wait
    attested: Attested = NOBODY_ATTESTED
    partial_snapshot: Snapshot | None = None
    """A partial read made just now, with no write of ours in flight: the first attempt begins with it."""
    promise: PreparedBallot | None = None
    """What the last release of this process left in our block; passed to one acquire only."""


async def acquire_version(
    area: LeaseArea, member: Membership, clock: Clock, rng: Rng, intent: AcquireIntent
) -> Won | Refusal | InDoubt:
    """Win the next version of the lease, or say why not."""
    return await _Acquisition(area, member, clock, rng, intent).run()


class _Again:
    """Start over."""


class _Acquisition:
    """The state of one race. `_own` is the block that we last tried to write, None before the first
    ballot; `_named` whether the leader that we last knew names us.
    """

    def __init__(
        self, area: LeaseArea, member: Membership, clock: Clock, rng: Rng, intent: AcquireIntent
    ) -> None:
        self._area = area
        self._member = member
        self._clock = clock
        self._rng = rng
        self._intent = intent
        self._own: HostBlock | None = None
        self._named = False
        self._starts = 0
        self._ballots = 0
        self._behind = 0

    async def run(self) -> Won | Refusal | InDoubt:
        # A ballot of an earlier race may still land. What we read of our own block before that is too old
        # to be built upon: the next ballot would take back what that one promises.
        if busy := self._area.busy():
            return busy
        for _ in range(STARTS_MAX):
            outcome = await self._start()
            if not isinstance(outcome, _Again):
                return outcome
        return self._ended(Contended(self._ballots), None)

    async def _start(self) -> Won | Refusal | InDoubt | _Again:
        """One pass of the drawing above."""
        member, intent = self._member, self._intent
        seen = await self._look()
        if not isinstance(seen, Snapshot):
            return self._ended(seen, None)
        leader = seen.leader
        self._named = member.owns(leader) and not leader.is_free
        if self._own is not None and self._won_by_another(leader):
            return Won(leader, self._own, _sharers_of(seen, member.host_id))
        refusal = self._refusal_at_sight(seen)
        if refusal is not None:
            return self._ended(refusal, leader)
        if (former := shared_by(seen.block(member.host_id))) is not None:
            stands = await self._former_sharer(former)
            if not isinstance(stands, MayTakeOver):
                return self._ended(stands, leader)
        is_behind = seen.greatest_lver > leader.lver + 1
        if is_behind and not _owner_stands(seen):
            return await self._bring_forward(seen)
        verdict = await may_take_over(
            self._area,
            member,
            self._clock,
            leader,
            wait=intent.wait,
            on_wait=intent.on_wait,
            attested=intent.attested,
        )
        match verdict:
            case LeaderChanged():
                return _Again()
            case MayTakeOver() if is_behind:
                return await self._bring_forward(seen)
            case MayTakeOver(waited):
                # What was seen before a long wait is no ground for a ballot: ballot numbers have grown since.
                seen_now = await self._look_again(leader) if waited else seen
                if not isinstance(seen_now, Snapshot):
                    return seen_now
                return await self._compete(seen_now, leader.lver + 1)
            case _:
                return self._ended(verdict, leader)

    async def _bring_forward(self, seen: Snapshot) -> Won | Refusal | InDoubt | _Again:
        """A ballot for the version that blocks have reached, after some more reads of a leader behind them."""
        if self._behind < BEHIND_MAX or self._behind >= 2 * BEHIND_MAX:
            return await self._leader_is_behind(seen.leader, seen.greatest_lver)
        self._behind += 1
        return await self._compete(seen, seen.greatest_lver)

    async def _look(self) -> Snapshot | Malformed | IoFailed:
        """The first read is partial, as other hosts rarely compete; the ballots find out if one did."""
        self._starts += 1
        if self._starts == 1 and self._intent.partial_snapshot is not None:
            return self._intent.partial_snapshot
        look = self._area.read_partial if self._starts == 1 else self._area.look
        return await look(self._member.host_id, self._member.io_timeout_s)

    async def _former_sharer(self, term: Generation) -> MayTakeOver | FormerUser | Malformed | IoFailed:
        """Whether the shared hold in our own block is over: our first write would take it away."""
        member = self._member
        if term >= member.generation or member.has_ended((member.host_id, term)):
            return MayTakeOver(waited=False)
        return await former_user(member, self._clock, term)

    def _refusal_at_sight(self, seen: Snapshot) -> Refusal | None:
        member, intent = self._member, self._intent
        if intent.wanted_lver not in (0, seen.leader.lver) and self._own is None:
            return WrongVersion(seen.leader)
        own = seen.block(member.host_id).mode
        held_shared = own.is_shared and own.generation == member.generation
        if held_shared and not intent.mode.is_shared:
            return AlreadyShared()
        if intent.mode.is_shared and not held_shared and self._own is None:
            return ClearedByAnother()
        return None

    async def _look_again(self, leader: Leader) -> Snapshot | Refusal | InDoubt | _Again:
        seen = await self._area.look(self._member.host_id, self._member.io_timeout_s)
        if not isinstance(seen, Snapshot):
            return self._ended(seen, None)
        return seen if seen.leader == leader and seen.greatest_lver <= leader.lver + 1 else _Again()

    async def _compete(self, seen: Snapshot, lver: int) -> Won | Refusal | InDoubt | _Again:
        """Run ballots for `lver` upon this leader until one decides, or the leader moves."""
        leader, own = seen.leader, seen.block(self._member.host_id)
        greatest_mbal = seen.greatest_mbal
        while self._ballots < BALLOTS_MAX:
            promised = seen if self._is_promised(seen) else None
            mbal: int | None = own.dblock.mbal
            if promised is None:
                mbal = next_mbal(greatest_mbal, self._member.host_id, leader.max_hosts)
            if mbal is None:
                return self._ended(Contended(self._ballots), leader)
            self._ballots += 1
            outcome = await ballot(
                self._area,
                self._member,
                leader=leader,
                lver=lver,
                mbal=mbal,
                proposal=self._proposal(),
                own=own,
                mode=self._intent.mode,
                promised=promised,
            )
            self._own = own = outcome.own
            match outcome:
                case Decided(value, _, sharers):
                    return await self._commit(leader, lver, value, outcome.own, sharers)
                case Outbid() | VersionPassed() if not seen.of_all:
                    return _Again()  # the glance did not show that somebody was there before us
                case Outbid(greater):
                    greatest_mbal = greater
                case VersionPassed(newer):
                    return await self._leader_is_behind(leader, newer)
                case LeaderMoved():
                    return _Again()
                case Displaced():
                    return self._ended(ClearedByAnother(), leader)
                case NoStanding():
                    return self._ended(LockspaceLost(), leader)
                case BallotFailed(why):
                    return self._ended(why, leader)
            await self._pause()
            moved = await self._area.read_leader(self._member.host_id, self._member.io_timeout_s)
            if not isinstance(moved, Leader):
                return self._ended(moved, leader)
            if moved != leader:
                return _Again()
        return self._ended(Contended(self._ballots), leader)

    def _is_promised(self, seen: Snapshot) -> bool:
        """Whether phase 1 of our first ballot is on disk already."""
        promise, mode = self._intent.promise, self._intent.mode
        if promise is None or self._ballots or promise.block.mode != mode:
            return False
        return is_still_valid(promise, seen, self._member.host_id)

    async def _commit(
        self, leader: Leader, lver: int, value: Value, own: HostBlock, sharers: dict[HostId, Generation]
    ) -> Won | Refusal | InDoubt | _Again:
        """Write the leader that was decided, for us or on behalf of another host."""
        member = self._member
        if not 1 <= value.owner_id <= leader.geometry.hosts_max or value.timestamp == 0:
            found = f"owner {value.owner_id} timestamp {value.timestamp}"
            return self._ended(_bad_value(found), leader)
        committed = replace(
            leader,
            lver=lver,
            owner_id=value.owner_id,
            owner_generation=value.generation,
            timestamp=value.timestamp,
            # Whether another host wants the lease only for a moment is not ours to say.
            short_hold=self._intent.short_hold if value.owner_id == member.host_id else leader.short_hold,
            write_id=member.host_id,
            write_generation=member.generation,
            write_timestamp=timestamp_of(self._clock.now()),
        )
        # Asked last of all: whatever takes time before the write must not come between.
        if not member.may_write():
            return self._ended(LockspaceLost(), leader)
        failed = await self._area.write_leader(committed, member.io_timeout_s)
        if failed is not None:
            # Whichever host was decided, our leader may still land: nothing else may be done here until it has.
            return InDoubt(failed, own, self._intent.mode)
        self._named = member.is_named_by(value)
        won = self._named and not own.dblock.is_released
        return Won(committed, own, sharers) if won else _Again()

    def _won_by_another(self, leader: Leader) -> bool:
        """Whether another host has written the leader for the value that our block holds for its version.

        Our block still carries that value: phase 1 of a retry keeps what was accepted. A value that we had
        given up before this race is none that can be won: see `ballot`.
        """
        assert self._own is not None
        own = self._own.dblock
        standing = own.lver == leader.lver and not own.is_released
        return standing and self._member.owns(leader) and not leader.is_free

    async def _leader_is_behind(self, leader: Leader, lver_seen: int) -> Refusal | InDoubt | _Again:
        self._behind += 1
        if self._behind > 2 * BEHIND_MAX:
            return self._ended(LeaderBehind(leader, lver_seen), leader)
        await self._pause()
        return _Again()

    async def _pause(self) -> None:
        await self._clock.sleep(self._rng.uniform(0, _PAUSE_MAX_S))

    def _proposal(self) -> Value:
        return Value(self._member.host_id, self._member.generation, timestamp_of(self._clock.now()))

    def _ended(self, refusal: Refusal, leader: Leader | None) -> Refusal | InDoubt:
        """A refusal is final only if nobody can still decide the value that may stand in our block.

        Once the leader has reached our block's version, that version is decided, and not for us. But a leader
        that names us all the same, for a value that we had given up, would stand for ever: our block may not
        say any more that it is given up, and we live.
        """
        own = self._own
        if own is not None and self._named and not isinstance(refusal, LockspaceLost):
            return InDoubt(refusal, own, self._intent.mode)
        if own is None or (leader is not None and leader.lver >= own.dblock.lver):
            return refusal
        exposed = own.dblock.inp == self._member.host_id and own.dblock.inp2 == self._member.generation
        return InDoubt(refusal, own, self._intent.mode) if exposed else refusal


def _owner_stands(seen: Snapshot) -> bool:
    """Whether the owner's own block is about this very version, and not released: then no host has begun a newer one while
    the owner lived. Blocks that are newer all the same are those of a lease of which an older copy was put back; who has
    acquired that copy since has it.
    """
    leader = seen.leader
    dblock = seen.block(HostId(leader.owner_id)).dblock
    decided = (dblock.lver, dblock.inp, dblock.inp2) == (
        leader.lver,
        leader.owner_id,
        leader.owner_generation,
    )
    return decided and not leader.is_free and not dblock.is_released


def _sharers_of(seen: Snapshot, own_id: HostId) -> dict[HostId, Generation]:
    return {
        host_id: Generation(block.mode.generation)
        for host_id, block in seen.sharers.items()
        if host_id != own_id
    }


def _bad_value(found: str) -> Malformed:
    return Malformed("dblock", Reason.RANGE, found, "a host of the lease and a time")

"""One lease as this host has it: what is held, and what is still to be put right on storage.

The protocols answer honestly that something may be half done; here it is brought to its end, however long that takes:

    acquire ends in doubt    withdraw, until nobody can make us the owner any more
    release failed           repeat: the lease counts as given up from the first attempt on
    downgrade failed         repeat: it is worth no more than shared from the first attempt on
    storage is silent        whoever asked has been told so; what the errand comes home with is put right

Until then the lease is *unsettled*: nothing else may be done with it here. First the doubt, then whatever was asked
for meanwhile. When the lockspace is lost there is nothing to put right: a failed host writes no more, and its next
generation makes what it left behind stale.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar, assert_never

from holdfast.backends.base import LeftBehind
from holdfast.backends.paxos.refusals import failure
from holdfast.model import Mode
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.ballot import PreparedBallot
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
from holdfast.protocol.paxos_lease import (
    AcquireOutcome,
    acquire_exclusive,
    acquire_shared,
    living_sharers,
    upgrade,
)
from holdfast.protocol.paxos_outcomes import AlreadyShared, InDoubt, LockspaceLost
from holdfast.protocol.paxos_release import (
    TAKEN_OUT,
    DowngradeFailed,
    Lease,
    NotHeld,
    Released,
    ReleaseFailed,
    ReleaseOutcome,
    Withdrawn,
    downgrade,
    release,
    withdraw,
)
from holdfast.protocol.paxos_release import Mode as LeaseMode
from holdfast.protocol.ports import Rng
from holdfast.protocol.takeover import NOBODY_ATTESTED, Attested
from holdfast.protocol.types import Generation, HostId, IoFailed
from holdfast.system.block_io.offload import HomeClock, Offload, TimedOut
from holdfast.system.clock import Clock

log = logging.getLogger(__name__)
T = TypeVar("T")

Spawn = Callable[[Coroutine[Any, Any, None]], object]


def _holders(seen: Snapshot) -> Holders:
    return holders_of(seen.leader, seen.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingPorts:
    """What leases are taken and put right with. ``spawn`` runs what goes on beside."""

    offload: Offload
    clock: Clock
    rng: Rng
    spawn: Spawn

    async def answer(
        self,
        work: Coroutine[Any, Any, T],
        timeout_s: float,
        *,
        undo: Callable[[T | IoFailed], object] = lambda _: None,
    ) -> T | IoFailed:
        """What work finds out that changes nothing; silent storage is a failed request.

        `undo` gets an answer that came when nobody wanted it any more.
        """
        told = await self.offload.run(work, timeout_s)
        if not isinstance(told, TimedOut):
            return told

        def unasked(over: asyncio.Future[T | IoFailed]) -> None:
            # Nor does anybody want to be told that there is none.
            if not over.cancelled() and over.exception() is None:
                undo(over.result())

        told.over.add_done_callback(unasked)
        return IoFailed(errno.ETIMEDOUT)


async def acquire_lease(
    area: LeaseArea,
    member: Membership,
    ports: HoldingPorts,
    mode: Mode,
    *,
    attested: Attested = NOBODY_ATTESTED,
    partial_snapshot: Snapshot | None = None,
    promise: PreparedBallot | None = None,
) -> AcquireOutcome:
    """Take a lease: for an errand."""
    clock = HomeClock(ports.clock)
    if mode is Mode.SHARED:
        return await acquire_shared(
            area, member, clock, ports.rng, partial_snapshot=partial_snapshot, promise=promise
        )
    return await acquire_exclusive(
        area, member, clock, ports.rng, attested=attested, partial_snapshot=partial_snapshot, promise=promise
    )


class HeldLease:
    """See the module. ``on_settled`` is told whenever what goes on beside has ended; ``close`` closes the disk of a lease
    that was given up, on the errand that has done so.
    """

    def __init__(
        self,
        area: LeaseArea,
        member: Membership,
        ports: HoldingPorts,
        *,
        on_settled: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.area = area
        self.member = member
        self.lease: Lease | None = None
        self.trouble = ""
        """Why giving it up has not worked yet."""
        self.sharers_unasked: dict[HostId, Generation] = {}
        """Shared holds beside our leader, when it was taken up. The daemon that won it was killed, perhaps before it asked
        whether they stand; a VM may have it, or nobody was ever granted it.
        """
        self.promise: PreparedBallot | None = None
        """What our block says about the next version, once it is given up (`Released`)."""
        self._ports = ports
        self._clock = HomeClock(ports.clock)
        self._on_settled = on_settled
        self._close = close
        self._doubt: InDoubt | None = None
        self._late: tuple[asyncio.Future[Any], Callable[[Any], object]] | None = None
        self._given_up = False
        self._weaken = False
        self._settling = False

    @property
    def unsettled(self) -> bool:
        return self._settling

    @property
    def done(self) -> bool:
        """Nothing is held and nothing is left to do."""
        return self.lease is None and not self._settling

    # --- taking ---

    async def acquire(self, mode: Mode, attested: Attested = NOBODY_ATTESTED) -> AcquireOutcome:
        """Take it; the outcome is `InDoubt` only with the withdrawal already under way."""
        work = acquire_lease(self.area, self.member, self._ports, mode, attested=attested)
        told = await self._ports.offload.run(work, self.member.io_timeout_s)
        if isinstance(told, TimedOut):
            self._put_right_late(told, self._acquired_late)
            return IoFailed(errno.ETIMEDOUT, in_flight=True)
        return await self.acquired(told, mode)

    async def acquire_unless_held(
        self, mode: Mode, attested: Attested = NOBODY_ATTESTED
    ) -> AcquireOutcome | LeftBehind:
        """The same for what is no lock of this daemon's: to the protocol a host's own lease is free, and a lease that an
        earlier daemon of this incarnation took may be what a VM depends on.
        """

        async def work() -> AcquireOutcome | LeftBehind:
            seen = await self.area.read_partial(self.member.host_id, self.member.io_timeout_s)
            partial_snapshot = seen if isinstance(seen, Snapshot) else None
            if partial_snapshot is not None and is_held_by(self.member, partial_snapshot):
                return LeftBehind(self.area.resource_name)
            return await acquire_lease(
                self.area,
                self.member,
                self._ports,
                mode,
                attested=attested,
                partial_snapshot=partial_snapshot,
            )

        told = await self._ports.offload.run(work(), self.member.io_timeout_s)
        if isinstance(told, TimedOut):
            self._put_right_late(told, self._acquired_late)
            return IoFailed(errno.ETIMEDOUT, in_flight=True)
        return told if isinstance(told, LeftBehind) else await self.acquired(told, mode)

    async def acquired(self, outcome: AcquireOutcome, mode: Mode) -> AcquireOutcome:
        """Take over what an attempt to take it has come to."""
        if isinstance(outcome, AlreadyShared):
            # A hold of this very term that nobody here knows of: it was taken by a daemon that was killed.
            left = await self._left_shared()
            if isinstance(left, IoFailed):
                return left
            if left is not None:
                self.lease = left
                refused = await self.convert(mode)
                if refused is None:
                    return self.lease
                await self.release()  # nobody here has it
                return refused
        if isinstance(outcome, Lease):
            self.lease = outcome
        elif isinstance(outcome, InDoubt):
            self._doubted(outcome)
        return outcome

    def _acquired_late(self, outcome: AcquireOutcome | LeftBehind) -> None:
        if isinstance(outcome, Lease):
            self.lease, self._given_up = outcome, True
        elif isinstance(outcome, InDoubt):
            self._doubt = outcome

    async def _look(self) -> Snapshot | Malformed | IoFailed:
        timeout_s = self.member.io_timeout_s
        return await self._ports.answer(self.area.look(self.member.host_id, timeout_s), timeout_s)

    async def _left_shared(self) -> Lease | IoFailed | None:
        seen = await self._look()
        if not isinstance(seen, Snapshot):
            return seen if isinstance(seen, IoFailed) else None
        own = seen.block(self.member.host_id)
        if not _is_shared_by(self.member, own):
            return None
        return self._shared(seen)

    async def resume(self, mode: Mode) -> Lease | IoFailed | Malformed | None:
        """Take up what an earlier daemon of this very term of our host holds, if storage says that it still does,
        in the mode that storage says. `mode` is the journal's.

        Storage that does not answer says nothing: to race for a lease that is held would take our value out of our
        block.
        """
        seen = await self._look()
        if not isinstance(seen, Snapshot):
            return seen
        own = seen.block(self.member.host_id)
        # Whatever is written to our block from now on keeps the name of its owner: the next daemon may need it.
        self.area = replace(self.area, note=seen.own_note)
        alone = _is_alone_with(self.member, seen)
        if _is_shared_by(self.member, own) and not (alone and mode is Mode.EXCLUSIVE):
            # The journal may say more, if it was cut: to race would take our share out of our block.
            self.lease = self._shared(seen)
            if self.lease.owns_leader:
                self._settle_from(0.0)
        elif alone:
            # The journal may say less: a conversion was under way, or it was cut. A VM may
            # write already, so nothing is let go; it ends with the lock.
            self.lease = Lease(LeaseMode.EXCLUSIVE, seen.leader, own, owns_leader=True)
            holders = _holders(seen)
            shared = claims_against(holders, self._term)
            self.sharers_unasked = {claim.term[0]: claim.term[1] for claim in shared}
        return self.lease

    async def ask_sharers(self) -> None:
        """See `MayHaveSharers`; storage that is silent says nothing."""
        work = living_sharers(self.area, self.member, self._clock, self.sharers_unasked)
        if await self._ports.answer(work, self.member.io_timeout_s) == {}:
            self.sharers_unasked = {}

    def _shared(self, seen: Snapshot) -> Lease:
        """Our shared hold as it stands; the daemon may have been killed before it had freed the leader."""
        leader_is_ours = self.member.owns(seen.leader) and not seen.leader.is_free
        return Lease(
            LeaseMode.SHARED, seen.leader, seen.block(self.member.host_id), owns_leader=leader_is_ours
        )

    async def held_mode(self) -> Mode | IoFailed | None:
        """How storage says that this very incarnation holds it; None if it does not."""
        seen = await self._look()
        if not isinstance(seen, Snapshot):
            return seen if isinstance(seen, IoFailed) else None
        if not is_held_by(self.member, seen):
            return None
        return Mode.EXCLUSIVE if _is_alone_with(self.member, seen) else Mode.SHARED

    async def is_left_behind(self) -> bool | IoFailed:
        """Whether storage says that this very term of our host has it, alone or shared, or may be given it by others."""
        seen = await self._look()
        if not isinstance(seen, Snapshot):
            return seen if isinstance(seen, IoFailed) else False
        own = seen.block(self.member.host_id)
        holders = _holders(seen)
        alone = isinstance(holders, Exclusive) and holders.owner == self._term
        # An attempt that nobody has withdrawn: the next host that races has to decide for our value.
        return alone or _is_shared_by(self.member, own) or may_yet_own(seen.leader, own, self._term)

    @property
    def _term(self) -> HostTerm:
        return self.member.host_id, self.member.generation

    async def why_not_held(self) -> str:
        """See `Rereadable`. Our block decides, for nobody else writes it: another host's leader of an older version may land
        on top of ours at any time (ADR 0120), and takes nothing from us.
        """
        lease = self.lease
        if lease is None or self._settling or not self.member.may_write():
            return ""
        host_id, timeout_s = self.member.host_id, self.member.io_timeout_s
        seen = await self._ports.answer(self.area.read_partial(host_id, timeout_s), timeout_s)
        if isinstance(seen, IoFailed) or self.lease is not lease or self._settling:
            return ""
        if isinstance(seen, Malformed):
            return f"its sectors on storage can't be read: {seen}"
        own, leader = seen.block(host_id), seen.leader
        if lease.mode is LeaseMode.SHARED:
            return "" if _is_shared_by(self.member, own) else "its shared hold is not on storage any more"
        value = own.dblock.accepted
        named = value is not None and (value.owner_id, value.generation) == self._term
        if not named or own.dblock.lver != lease.lver or own.dblock.is_released:
            return "this host's block of it is not what this host wrote last"
        if leader.lver > lease.lver or (leader.lver == lease.lver and not self.member.owns(leader)):
            return f"its leader names host_id {leader.owner_id} at version {leader.lver}"
        return ""

    async def claims(self) -> list[HostTerm] | str:
        """The terms of other hosts that one read shows on it, or why that can't be said."""
        seen = await self._look()
        if not isinstance(seen, Snapshot):
            return str(seen)
        return [claim.term for claim in claims_against(_holders(seen), self._term)]

    async def who_holds(self) -> str:
        """Whether anybody seems to hold it, by one read that proves nothing; empty if not.

        An owner that was an earlier term of this very host is over, as for a start (`takeover`).
        """
        seen = await self._look()
        if not isinstance(seen, Snapshot):
            return str(seen)
        host_id, generation = self._term
        claims = [
            claim
            for claim in claims_against(_holders(seen), self._term)
            if claim.term[0] != host_id or claim.term[1] > generation
        ]
        if claims and claims[0].mode is Mode.EXCLUSIVE:
            return f"host_id {claims[0].term[0]} has it"
        others = ", ".join(str(claim.term[0]) for claim in claims)
        return f"shared by host_id {others}" if others else ""

    # --- changing ---

    async def convert(self, mode: Mode) -> AcquireOutcome | None:
        """None when it is held so now; else the refusal, with the lease as it was."""
        lease = self.lease
        assert lease is not None
        if mode is Mode.SHARED:
            if lease.mode is LeaseMode.EXCLUSIVE:
                self._weaken = True
                if not await self._downgrade(lease):
                    self._settle_from(self.member.io_timeout_s)
            return None
        if lease.mode is LeaseMode.EXCLUSIVE:
            return None
        work = upgrade(self.area, self.member, self._clock, self._ports.rng, lease)
        taken = await self._ports.offload.run(work, self.member.io_timeout_s)
        if isinstance(taken, TimedOut):
            self._put_right_late(taken, self._upgraded_late)
            return IoFailed(errno.ETIMEDOUT, in_flight=True)
        if isinstance(taken, Lease):
            self.lease, self._weaken = taken, False
            return None
        if isinstance(taken, InDoubt):
            self._doubted(taken)
        return taken

    def _upgraded_late(self, taken: AcquireOutcome) -> None:
        if isinstance(taken, Lease):
            self.lease, self._weaken = taken, True  # whoever wanted more has been refused
        elif isinstance(taken, InDoubt):
            self._doubt = taken

    async def _downgrade(self, lease: Lease) -> bool:
        """Whether there is nothing left to be done."""
        told = await self._ports.offload.run(
            downgrade(self.area, self.member, self._clock, lease), self.member.io_timeout_s
        )
        if isinstance(told, TimedOut):
            self._late = told.over, self._downgraded
            return False
        return self._downgraded(told)

    def _downgraded(self, outcome: Lease | DowngradeFailed | IoFailed) -> bool:
        if isinstance(outcome, Lease):
            self.lease, self._weaken = outcome, False
            return True
        why = outcome.why if isinstance(outcome, DowngradeFailed) else outcome
        if isinstance(outcome, DowngradeFailed):
            self.lease = outcome.lease
        if isinstance(why, LockspaceLost):
            return True
        log.warning("lease %s: not yet shared on storage (%s); repeating", self.area.resource_name, why)
        return False

    async def release(self) -> None:
        """Give it up. What fails is repeated beside; `done` tells when there is nothing left."""
        self._given_up = True
        if self._settling or self.lease is None:
            return
        if not await self._let_go(self.lease):
            self._settle_from(self.member.io_timeout_s)

    def forget(self) -> None:
        """The daemon ends: storage stays as it is."""
        self._drop()
        self._late = None

    # --- putting right ---

    def _doubted(self, doubt: InDoubt) -> None:
        log.warning(
            "lease %s: an attempt to take it ended in doubt (%s); withdrawing",
            self.area.resource_name,
            doubt.refusal,
        )
        self._doubt = doubt
        self._settle_from(0.0)

    def _put_right_late(self, silent: TimedOut[T], put_right: Callable[[T | IoFailed], object]) -> None:
        self._late = silent.over, put_right
        self._settle_from(0.0)

    def _settle_from(self, seconds: float) -> None:
        self._settling = True
        self._ports.spawn(self._settle(seconds))

    async def _settle(self, seconds: float) -> None:
        """Step by step until all is right, first after `seconds`, then every two io_timeouts."""
        while True:
            if seconds:
                await self._ports.clock.sleep(seconds)
            # What was asked for during the last step is still to be done.
            if await self._step() and not (self._given_up and self.lease is not None):
                break
            seconds = 2 * self.member.io_timeout_s if seconds else self.member.io_timeout_s
        self._settling = False
        self._on_settled()

    async def _step(self) -> bool:
        if (late := self._late) is not None:
            over, put_right = late
            log.warning("lease %s: waiting for its storage to answer", self.area.resource_name)
            outcome = await over
            if self._late is late:
                self._late = None
                put_right(outcome)
        if self._doubt is not None:
            if await self._is_taken_out(Reason.RESOURCE_NAME):
                self._drop()  # our block there is about the other lease by now
                return True
            ended = await self._patiently(withdraw(self.area, self.member, self._clock, self._doubt))
            match ended:
                case Withdrawn():
                    self._doubt = None
                case LockspaceLost():
                    self._drop()
                    return True
                case ReleaseFailed() | IoFailed():
                    return False
                case _:
                    assert_never(ended)
        if self.lease is None:
            return True
        if self._given_up:
            if await self._is_taken_out(*TAKEN_OUT):
                self._drop()  # it was free by then, and its place may be another lease's
                return True
            return self._released(self.lease, await self._patiently(self._release(self.lease)))
        if self._weaken or (self.lease.mode is LeaseMode.SHARED and self.lease.owns_leader):
            return self._downgraded(await self._patiently(self._downgrade_again(self.lease)))
        return True

    async def _downgrade_again(self, lease: Lease) -> Lease | DowngradeFailed:
        """Not from our block as it was when it was taken: an upgrade in doubt has moved our ballots on, and they are
        promises. On an errand.
        """
        if busy := self.area.busy():
            return DowngradeFailed(lease, busy)
        own = await self.area.read_block(self.member.host_id, self.member.io_timeout_s)
        if not isinstance(own, HostBlock):
            return DowngradeFailed(lease, own)
        return await downgrade(self.area, self.member, self._clock, replace(lease, own=own))

    async def _is_taken_out(self, *reasons: Reason) -> bool:
        timeout_s = self.member.io_timeout_s
        leader = await self._ports.answer(self.area.read_leader(self.member.host_id, timeout_s), timeout_s)
        return isinstance(leader, Malformed) and leader.reason in reasons

    async def _patiently(self, work: Coroutine[Any, Any, T]) -> T | IoFailed:
        told = await self._ports.offload.run(work, self.member.io_timeout_s)
        return await told.over if isinstance(told, TimedOut) else told

    async def _let_go(self, lease: Lease) -> bool:
        """Whether there is nothing left to be done."""
        told = await self._ports.offload.run(self._release(lease), self.member.io_timeout_s)
        if isinstance(told, TimedOut):
            self._late = told.over, lambda outcome: self._released(lease, outcome)
            return False
        return self._released(lease, told)

    async def _release(self, lease: Lease) -> ReleaseOutcome:
        """On an errand."""
        outcome = await release(self.area, self.member, self._clock, lease)
        if isinstance(outcome, Released):
            self._close()
        return outcome

    def _released(self, lease: Lease, outcome: ReleaseOutcome | IoFailed) -> bool:
        match outcome:
            case Released(promise):
                self.promise = promise
            case LockspaceLost():
                pass
            case NotHeld(found):
                log.error(
                    "lease %s: released, but the leader on storage was host %d's at version %d, not ours at %d",
                    self.area.resource_name,
                    found.owner_id,
                    found.lver,
                    lease.lver,
                )
            case ReleaseFailed() | IoFailed():
                told = failure(outcome.why if isinstance(outcome, ReleaseFailed) else outcome)
                if told != self.trouble:  # it may be repeated for days
                    self.trouble = told
                    log.warning(
                        "lease %s: not yet released on storage (%s); repeating", self.area.resource_name, told
                    )
                return False
            case _:
                assert_never(outcome)
        self._drop()
        return True

    def _drop(self) -> None:
        self.lease, self._doubt = None, None


def is_held_by(member: Membership, seen: Snapshot) -> bool:
    """Whether storage says that this very incarnation of our host holds the lease, alone or shared."""
    return _is_alone_with(member, seen) or _is_shared_by(member, seen.block(member.host_id))


def _is_shared_by(member: Membership, own: HostBlock) -> bool:
    return shared_by(own) == member.generation


def _is_alone_with(member: Membership, seen: Snapshot) -> bool:
    """Whether the lease is proven to be ours alone."""
    return holds_alone(seen.leader, seen.blocks, (member.host_id, member.generation))

"""One lease of this host: what is held, and what remains to be repaired on storage.

The protocols report that a change may be half done; this module completes or undoes it, however long that takes:

    acquire ends in doubt    withdraw, until no host can make us the owner any more
    release failed           repeat: the lease counts as released from the first attempt on
    downgrade failed         repeat: it counts as shared from the first attempt on
    storage is silent        the caller gets a timeout; a late result is rolled back

Until then the lease is *unsettled*: no other operation may use it here. The doubt is resolved first, then requests that
came meanwhile. When the lockspace is lost there is nothing to repair: a failed host writes no more, and its next generation
makes its remains stale.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, assert_never

from holdfast.backends.base import LeftBehind
from holdfast.backends.paxos.lease_jobs import HoldingPorts, acquire_lease, area_in, member_in
from holdfast.backends.paxos.lease_reading import (
    LeaseReading,
    holders_seen,
    is_alone_with,
    is_held_by,
    is_shared_by,
)
from holdfast.backends.paxos.refusals import failure
from holdfast.model import Mode
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.ondisk.request import Request
from holdfast.protocol.ballot import PreparedBallot
from holdfast.protocol.holders import (
    claims_against,
)
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_lease import (
    AcquireOutcome,
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
from holdfast.protocol.paxos_request import Force, asked_of_holder
from holdfast.protocol.takeover import NOBODY_ATTESTED, Attested
from holdfast.protocol.types import Generation, HostId, IoFailed
from holdfast.system.block_io.lease_files import LeaseDisk
from holdfast.system.block_io.offload import Job, JobClock, TimedOut, Work

log = logging.getLogger(__name__)
T = TypeVar("T")


class HeldLease(LeaseReading):
    """A lease and its repairs, on the event loop. `on_settled` is called whenever the background work has ended; `disk`
    is closed by the job that releases the lease.
    """

    def __init__(
        self,
        area: LeaseArea,
        member: Membership,
        ports: HoldingPorts,
        *,
        on_settled: Callable[[], None] = lambda: None,
        disk: LeaseDisk | None = None,
    ) -> None:
        super().__init__(area, member, ports)
        self.lease: Lease | None = None
        self.trouble = ""
        """Why the release has not succeeded yet."""
        self.sharers_unasked: dict[HostId, Generation] = {}
        """Shared holds beside our leader when the lease was resumed. The daemon that won it was killed, perhaps before it
        checked them; a VM may have the lease, or no owner was ever granted it.
        """
        self.promise: PreparedBallot | None = None
        """The prepared ballot in our block for the next version, after the release (`Released`)."""
        self.found_instead: Leader | None = None
        """The leader that the release found on storage, if it was not ours any more."""
        self.renamed = ""
        """What the lease is called from its release on; empty: the same."""
        self._on_settled = on_settled
        self._disk = disk
        self._doubt: InDoubt | None = None
        self._late: tuple[asyncio.Future[Any], Callable[[Any], object]] | None = None
        self._given_up = False
        self._weaken = False
        self._settling = False

    def _clock(self, job: Job) -> JobClock:
        return JobClock(self._ports.clock, job)

    @property
    def unsettled(self) -> bool:
        return self._settling

    @property
    def done(self) -> bool:
        """Whether nothing is held and nothing is left to do."""
        return self.lease is None and not self._settling

    # --- taking ---

    async def acquire(self, mode: Mode, attested: Attested = NOBODY_ATTESTED) -> AcquireOutcome:
        """Take it; the outcome is `InDoubt` only with the withdrawal already under way."""
        result = await self._ports.offload.run(
            lambda job: acquire_lease(job, self.area, self.member, self._ports, mode, attested=attested),
            self.member.io_timeout_s,
        )
        if isinstance(result, TimedOut):
            self._put_right_late(result, self._acquired_late)
            return IoFailed(errno.ETIMEDOUT, in_flight=True)
        return await self.acquired(result, mode)

    async def acquire_unless_held(
        self, mode: Mode, attested: Attested = NOBODY_ATTESTED
    ) -> AcquireOutcome | LeftBehind:
        """As `acquire`, for a lease on which this daemon has no lock: to the protocol a host's own lease is free, but a VM
        may depend on a lease that an earlier daemon of this incarnation took.
        """

        async def work(job: Job) -> AcquireOutcome | LeftBehind:
            seen = await area_in(job, self.area).read_partial(self.member.host_id, self.member.io_timeout_s)
            if not isinstance(seen, Snapshot):
                return seen  # a second read, by the ballot, would not ask whether the lease is ours already
            if is_held_by(self.member, seen):
                return LeftBehind(self.area.resource_name)
            return await acquire_lease(
                job,
                self.area,
                self.member,
                self._ports,
                mode,
                attested=attested,
                partial_snapshot=seen,
            )

        result = await self._ports.offload.run(work, self.member.io_timeout_s)
        if isinstance(result, TimedOut):
            self._put_right_late(result, self._acquired_late)
            return IoFailed(errno.ETIMEDOUT, in_flight=True)
        return result if isinstance(result, LeftBehind) else await self.acquired(result, mode)

    async def acquired(self, outcome: AcquireOutcome, mode: Mode) -> AcquireOutcome:
        """Take over the outcome of an attempt to take it."""
        if isinstance(outcome, AlreadyShared):
            # A hold of this incarnation that is not known here: it was taken by a daemon that was killed.
            left = await self._left_shared()
            if isinstance(left, IoFailed):
                return left
            if left is not None:
                self.lease = left
                refused = await self.convert(mode)
                if refused is None:
                    return self.lease
                await self.release()  # no lock here has it
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

    async def _left_shared(self) -> Lease | IoFailed | None:
        seen = await self.look()
        if not isinstance(seen, Snapshot):
            return seen if isinstance(seen, IoFailed) else None
        own = seen.block(self.member.host_id)
        if not is_shared_by(self.member, own):
            return None
        return self._shared(seen)

    async def resume(self, mode: Mode) -> Lease | IoFailed | Malformed | None:
        """Resume what an earlier daemon of this incarnation holds, if storage shows it, in the mode that storage shows.
        `mode` is the journal's.

        Storage that does not answer proves nothing: a ballot for a lease that is held would remove our value from our
        block.
        """
        seen = await self.look()
        if not isinstance(seen, Snapshot):
            return seen
        own = seen.block(self.member.host_id)
        # All later writes to our block keep the owner's note: the next daemon may need it.
        self.area = replace(self.area, note=seen.own_note)
        alone = is_alone_with(self.member, seen)
        if is_shared_by(self.member, own) and not (alone and mode is Mode.EXCLUSIVE):
            # The journal may say exclusive, if it was cut: a ballot would remove our share from our block.
            self.lease = self._shared(seen)
            if self.lease.owns_leader:
                self._settle_from(0.0)
        elif alone:
            # The journal may say shared: a conversion was under way, or it was cut. A VM may write already, so the mode
            # stays exclusive until the lock is released.
            self.lease = Lease(LeaseMode.EXCLUSIVE, seen.leader, own, owns_leader=True)
            holders = holders_seen(seen)
            shared = claims_against(holders, self._term)
            self.sharers_unasked = {claim.term[0]: claim.term[1] for claim in shared}
        return self.lease

    async def ask_sharers(self) -> None:
        """See `MayHaveSharers`; silent storage proves nothing."""
        living = await self._ports.answer(
            lambda job: living_sharers(
                area_in(job, self.area), member_in(job, self.member), self._clock(job), self.sharers_unasked
            ),
            self.member.io_timeout_s,
        )
        if living == {}:
            self.sharers_unasked = {}

    def _shared(self, seen: Snapshot) -> Lease:
        """Our shared hold as storage shows it; the daemon may have been killed before it had freed the leader."""
        leader_is_ours = self.member.owns(seen.leader) and not seen.leader.is_free
        return Lease(
            LeaseMode.SHARED, seen.leader, seen.block(self.member.host_id), owns_leader=leader_is_ours
        )

    async def why_not_held(self) -> str:
        """See `Rereadable`. Our block decides, as no other host writes it: another host's leader of an older version may
        overwrite ours at any time (ADR 0120), and takes nothing from us.
        """
        lease = self.lease
        if lease is None or self._settling or not self.member.may_write():
            return ""
        host_id, timeout_s = self.member.host_id, self.member.io_timeout_s
        seen = await self._ports.answer(
            lambda job: area_in(job, self.area).read_partial(host_id, timeout_s), timeout_s
        )
        if isinstance(seen, IoFailed) or self.lease is not lease or self._settling:
            return ""
        if isinstance(seen, Malformed):
            return f"its sectors on storage can't be read: {seen}"
        own, leader = seen.block(host_id), seen.leader
        if lease.mode is LeaseMode.SHARED:
            return "" if is_shared_by(self.member, own) else "its shared hold is not on storage any more"
        value = own.dblock.accepted
        named = value is not None and (value.owner_id, value.generation) == self._term
        if not named or own.dblock.lver != lease.lver or own.dblock.is_released:
            return "this host's block of it is not what this host wrote last"
        if leader.lver > lease.lver or (leader.lver == lease.lver and not self.member.owns(leader)):
            return f"its leader names host_id {leader.owner_id} at version {leader.lver}"
        return ""

    async def read_value_block(self, job: Job) -> bytes | IoFailed:
        """The lvb, a whole sector."""
        read = await area_in(job, self.area).read_lvb(self.member.io_timeout_s)
        return read if isinstance(read, IoFailed) else read.ljust(self.area.geometry.sector_bytes, b"\0")

    async def write_value_block(self, job: Job, value: bytes) -> IoFailed | None:
        """For the exclusive owner."""
        if not self.member.may_write() or self.lease is None or self.lease.mode is not LeaseMode.EXCLUSIVE:
            return IoFailed(errno.ESTALE)
        return await area_in(job, self.area).write_lvb(value, self.member.io_timeout_s)

    async def asked(self, job: Job) -> Force | None:
        """What another host asks of this exclusive hold; None also where that can't be read."""
        found = await area_in(job, self.area).read_request(self.member.io_timeout_s)
        if self.lease is None or not isinstance(found, Request):
            return None
        return asked_of_holder(found, self.lease)

    # --- changing ---

    async def convert(self, mode: Mode) -> AcquireOutcome | None:
        """None when it is held in that mode now; else the refusal, with the lease unchanged."""
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
        taken = await self._ports.offload.run(lambda job: self._upgrade(job, lease), self.member.io_timeout_s)
        if isinstance(taken, TimedOut):
            self._put_right_late(taken, self._upgraded_late)
            return IoFailed(errno.ETIMEDOUT, in_flight=True)
        if isinstance(taken, Lease):
            self.lease, self._weaken = taken, False
            return None
        if isinstance(taken, InDoubt):
            self._doubted(taken)
        return taken

    async def _upgrade(self, job: Job, lease: Lease) -> AcquireOutcome:
        member = member_in(job, self.member)
        return await upgrade(area_in(job, self.area), member, self._clock(job), self._ports.rng, lease)

    def _upgraded_late(self, taken: AcquireOutcome) -> None:
        if isinstance(taken, Lease):
            self.lease, self._weaken = taken, True  # whoever wanted more has been refused
        elif isinstance(taken, InDoubt):
            self._doubt = taken

    async def _downgrade(self, lease: Lease) -> bool:
        """Whether there is nothing left to be done."""
        result = await self._ports.offload.run(
            lambda job: downgrade(area_in(job, self.area), self.member, self._clock(job), lease),
            self.member.io_timeout_s,
        )
        if isinstance(result, TimedOut):
            self._late = result.over, self._downgraded
            return False
        return self._downgraded(result)

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
        """Release it. Failures are retried in the background; `done` is True when nothing is left."""
        self._given_up = True
        if self._settling or self.lease is None:
            return
        if not await self._let_go(self.lease):
            self._settle_from(self.member.io_timeout_s)

    def forget(self) -> None:
        """The daemon ends: storage stays as it is."""
        self._drop()
        self._late = None

    # --- repairs ---

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
        """Step by step until all is repaired, first after `seconds`, then every two io_timeouts."""
        while True:
            if seconds:
                await self._ports.clock.sleep(seconds)
            # Requests that came during the last step are still to be done.
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
            doubt = self._doubt
            ended = await self._patiently(
                lambda job: withdraw(area_in(job, self.area), self.member, self._clock(job), doubt)
            )
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
            lease = self.lease
            return self._released(lease, await self._patiently(lambda job: self._release(job, lease)))
        if self._weaken or (self.lease.mode is LeaseMode.SHARED and self.lease.owns_leader):
            lease = self.lease
            return self._downgraded(await self._patiently(lambda job: self._downgrade_again(job, lease)))
        return True

    async def _downgrade_again(self, job: Job, lease: Lease) -> Lease | DowngradeFailed:
        """Reads our block again: since the lease was taken, an upgrade in doubt has raised its ballot numbers, which stay
        binding.
        """
        area = area_in(job, self.area)
        if busy := area.busy():
            return DowngradeFailed(lease, busy)
        own = await area.read_block(self.member.host_id, self.member.io_timeout_s)
        if not isinstance(own, HostBlock):
            return DowngradeFailed(lease, own)
        return await downgrade(area, self.member, self._clock(job), replace(lease, own=own))

    async def _is_taken_out(self, *reasons: Reason) -> bool:
        host_id, timeout_s = self.member.host_id, self.member.io_timeout_s
        leader = await self._ports.answer(
            lambda job: area_in(job, self.area).read_leader(host_id, timeout_s), timeout_s
        )
        return isinstance(leader, Malformed) and leader.reason in reasons

    async def _patiently(self, work: Work[T]) -> T | IoFailed:
        result = await self._ports.offload.run(work, self.member.io_timeout_s)
        return await result.over if isinstance(result, TimedOut) else result

    async def _let_go(self, lease: Lease) -> bool:
        """Whether there is nothing left to be done."""
        result = await self._ports.offload.run(
            lambda job: self._release(job, lease), self.member.io_timeout_s
        )
        if isinstance(result, TimedOut):
            self._late = result.over, lambda outcome: self._released(lease, outcome)
            return False
        return self._released(lease, result)

    async def _release(self, job: Job, lease: Lease) -> ReleaseOutcome:
        area = area_in(job, self.area)
        outcome = await release(area, self.member, self._clock(job), lease, renamed=self.renamed)
        if isinstance(outcome, Released) and self._disk is not None:
            job.disk(self._disk).close()
        return outcome

    def _released(self, lease: Lease, outcome: ReleaseOutcome | IoFailed) -> bool:
        match outcome:
            case Released(promise):
                self.promise = promise
            case LockspaceLost():
                pass
            case NotHeld(found):
                self.found_instead = found
                log.error(
                    "lease %s: released, but the leader on storage was host %d's at version %d, not ours at %d",
                    self.area.resource_name,
                    found.owner_id,
                    found.lver,
                    lease.lver,
                )
            case ReleaseFailed() | IoFailed():
                result = failure(outcome.why if isinstance(outcome, ReleaseFailed) else outcome)
                if result != self.trouble:  # it may be repeated for days
                    self.trouble = result
                    log.warning(
                        "lease %s: not yet released on storage (%s); repeating",
                        self.area.resource_name,
                        result,
                    )
                return False
            case _:
                assert_never(outcome)
        self._drop()
        return True

    def _drop(self) -> None:
        self.lease, self._doubt = None, None

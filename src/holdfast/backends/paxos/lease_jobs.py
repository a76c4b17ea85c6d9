"""Offloaded jobs on leases: their ports, and an acquire within one."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from holdfast.model import Mode
from holdfast.protocol.ballot import PreparedBallot
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_lease import AcquireOutcome, acquire_exclusive, acquire_shared
from holdfast.protocol.ports import Rng
from holdfast.protocol.takeover import NOBODY_ATTESTED, Attested
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.offload import Job, JobClock, Offload, TimedOut, Work
from holdfast.system.clock import Clock

T = TypeVar("T")

Spawn = Callable[[Coroutine[Any, Any, None]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingPorts:
    """The ports for taking and repairing leases. `spawn` runs a background task."""

    offload: Offload
    clock: Clock
    rng: Rng
    spawn: Spawn

    async def answer(
        self,
        work: Work[T],
        timeout_s: float,
        *,
        undo: Callable[[T | IoFailed], object] = lambda _: None,
    ) -> T | IoFailed:
        """The result of work that changes nothing on storage; silent storage is a failed request.

        `undo` gets a result that came after the timeout.
        """
        result = await self.offload.run(work, timeout_s)
        if not isinstance(result, TimedOut):
            return result

        def unasked(over: asyncio.Future[T | IoFailed]) -> None:
            # The caller is gone, so drop errors too.
            if not over.cancelled() and over.exception() is None:
                undo(over.result())

        result.over.add_done_callback(unasked)
        return IoFailed(errno.ETIMEDOUT)


def area_in(job: Job, area: LeaseArea) -> LeaseArea:
    """The lease as the job reads and writes it."""
    return area.over(job.disk(area.disk))


def member_in(job: Job, member: Membership) -> Membership:
    """The membership for protocols that the job runs: they read other hosts' records."""
    return member.over(job.disk(member.lockspace.disk))


async def acquire_lease(
    job: Job,
    area: LeaseArea,
    member: Membership,
    ports: HoldingPorts,
    mode: Mode,
    *,
    attested: Attested = NOBODY_ATTESTED,
    partial_snapshot: Snapshot | None = None,
    promise: PreparedBallot | None = None,
    wanted_lver: int = 0,
) -> AcquireOutcome:
    """Take a lease, within an offloaded job; only at version `wanted_lver` unless that is 0."""
    area, member, clock = area_in(job, area), member_in(job, member), JobClock(ports.clock, job)
    if mode is Mode.SHARED:
        return await acquire_shared(
            area,
            member,
            clock,
            ports.rng,
            wanted_lver=wanted_lver,
            partial_snapshot=partial_snapshot,
            promise=promise,
        )
    return await acquire_exclusive(
        area,
        member,
        clock,
        ports.rng,
        wanted_lver=wanted_lver,
        attested=attested,
        partial_snapshot=partial_snapshot,
        promise=promise,
    )

"""The `paxos` driver: a lock is a lease on storage that hosts share, in sanlock's format.

A lock of this driver excludes every host of the lockspace, whether it runs Holdfast or sanlock, and outlives this daemon:
it consists of bytes on storage that name this host, and of the host's renewals. So there is no descriptor to keep; the
next daemon resumes what storage shows as ours if it resumed the same incarnation, and else acquires it again.

    open      name of the lease; no request to its storage yet
    take      find the lease, check it, make it if it is missing                            (lease_store)
              ballot for its next version; refused: its owner and that one's last renewal   (held_lease)
    release   our block, then the leader; failures are retried in the background

Finding and acquiring are one job on a worker (`system/block_io/offload`). If storage falls silent meanwhile, the start is
refused, and a lease that the job wins later is released.

No start waits for another host's death: if the owner may be dead, the start is refused with the remaining seconds; a retry
continues the same countdown.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from holdfast.backends.base import (
    Capabilities,
    Creation,
    HeldElsewhere,
    LeftBehind,
    OwnerNote,
    SavedLock,
    Stale,
)
from holdfast.backends.naming import NameBy
from holdfast.backends.paxos import owner_note
from holdfast.backends.paxos.held import PaxosHeld
from holdfast.backends.paxos.held_lease import HeldLease
from holdfast.backends.paxos.lease_failures import found_or_refused, io_failed
from holdfast.backends.paxos.lease_jobs import HoldingPorts, acquire_lease, area_in, member_in
from holdfast.backends.paxos.lease_reading import is_held_by
from holdfast.backends.paxos.lease_store import Found, LeaseStore, Removed
from holdfast.backends.paxos.maintenance import PaxosMaintenance
from holdfast.backends.paxos.names import LeaseNames
from holdfast.backends.paxos.refusals import TAKEN_OUT, Refusals
from holdfast.errors import LeaseUnusable, LockspaceAbsent
from holdfast.model import LockFailureAction, Mode, Protection, Resource
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol import types
from holdfast.protocol.ballot import PreparedBallot
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_lease import AcquireOutcome
from holdfast.protocol.paxos_outcomes import InDoubt, LockspaceLost
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.resource_index import UnindexedLease, is_cleared
from holdfast.supervision.lockspace_port import LockspacePort, NotAMember
from holdfast.system.block_io.offload import Job, TimedOut, Work
from holdfast.system.files.disk_identity import DiskIdentities
from holdfast.system.files.ofd_lock import FileKey, IoFailed
from holdfast.system.files.storage_executor import Storage

log = logging.getLogger(__name__)

ADOPTIONS_MAX = 64
"""Leases resumed concurrently after a restart: more than the workers of their storage can do. A request waits for a worker
within its io_timeout, and among 1024 others at most; one that got no worker would count as a lost lease."""
PROMISES_MAX = 10_000
"""Recently released leases whose prepared ballots are kept; an acquire of any other takes two requests more."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Result of an attempt to take a lease. `named`: its name still led to it after it was won."""

    found: Found
    outcome: AcquireOutcome
    named: bool = True


@dataclass(frozen=True, slots=True)
class _Left:
    """The prepared ballot that a release left in our block, with membership and place: a remade lease may be elsewhere."""

    term: Membership
    offset_bytes: int
    promise: PreparedBallot

    def is_of(self, area: LeaseArea, term: Membership) -> bool:
        return self.term is term and self.offset_bytes == area.offset_bytes


class LeaseCandidate:
    """A lease that could be taken, if it is found."""

    __slots__ = ("_backend", "_lease", "_member", "_resource", "keys")

    def __init__(
        self,
        backend: PaxosBackend,
        lease: str,
        member: Membership,
        resource: Resource,
        keys: tuple[FileKey, ...],
    ) -> None:
        self._backend = backend
        self._lease = lease
        self._member = member
        self._resource = resource
        self.keys = keys

    async def take(
        self, mode: Mode, note: OwnerNote
    ) -> PaxosHeld | HeldElsewhere | Stale | LeftBehind | IoFailed:
        return await self._backend.take(self._lease, self._member, self._resource, mode, note)

    async def abandon(self) -> None:
        """Nothing has been opened."""


async def _trusted() -> str:
    return ""


class PaxosBackend:
    """Holds locks as leases on shared storage. On the event loop, except where a method says otherwise."""

    capabilities = Capabilities(
        cross_host=True,
        shared_mode=True,
        converts=True,
        survives_restart=True,
        fenced=True,
        names_foreign_holders=True,
    )

    def __init__(
        self,
        name: str,
        *,
        presence: LockspacePort,
        places: LeaseStore,
        name_by: NameBy,
        on_lockfailure: LockFailureAction,
        resets: bool = False,
        reach: Protection,
        reach_note: str,
        ports: HoldingPorts,
        storage: Storage,
        untrusted: Callable[[], Awaitable[str]] | None = None,
        identities: DiskIdentities,
    ) -> None:
        self.name = name
        self.presence = presence
        self.on_lockfailure = on_lockfailure
        self.resets = resets
        """Whether a VM that ends for a lost lockspace has this host reset, for its writes may still be under way."""
        self.places = places
        self._untrusted = untrusted or _trusted
        """Why no new lease may be taken where the leases are; empty if one may be."""
        self.names = LeaseNames(name, presence.name, name_by, storage, identities)
        self._reach = reach
        self._reach_note = reach_note
        self.ports = ports
        self._unsettled: dict[str, tuple[HeldLease, Found]] = {}
        self._tried: dict[str, asyncio.Event] = {}
        """Leases that maintenance uses for a moment, until it is over."""
        self.maintenance = PaxosMaintenance(self)
        self._silent: set[str] = set()
        """Leases with an offloaded job under way whose caller has timed out."""
        self._promises: dict[str, _Left] = {}
        """Prepared ballots that releases left in our blocks, for the next acquire of the same membership."""
        self._adoptions = asyncio.Semaphore(ADOPTIONS_MAX)

    def share_leases(self, other: PaxosBackend) -> None:
        """Both are of one lockspace: neither opens a lease that the other is just using or giving up."""
        self._unsettled, self._tried = other._unsettled, other._tried
        self._silent, self._promises = other._silent, other._promises

    # --- which lease ---

    async def open(self, resource: Resource, *, create: Creation) -> LeaseCandidate | IoFailed:
        lease, identity = await self.names.of(resource)
        member = self.member(resource)
        if refused := self.presence.refuses_new():
            raise LockspaceAbsent(name=resource.name, lockspace=self.presence.name, reason=refused)
        if untrusted := await self._untrusted():
            raise LeaseUnusable(name=resource.name, place=self.places.place(lease), reason=untrusted)
        while (over := self._tried.get(lease)) is not None:
            await over.wait()  # a VM must not be refused because this daemon reads what nobody holds
        self._check_settled(resource, lease)
        keys: tuple[FileKey, ...] = (self.names.key(lease),)
        if identity.key is not None:
            keys += (identity.key,)
        return LeaseCandidate(self, lease, member, resource, keys)

    def take_nowait(self, resource: Resource, mode: Mode) -> None:
        return None

    def member(self, resource: Resource) -> Membership:
        member = self.presence.membership()
        if isinstance(member, NotAMember):
            raise LockspaceAbsent(name=resource.name, lockspace=self.presence.name, reason=str(member))
        return member

    def is_giving_up(self, lease: str) -> bool:
        """Whether a release of that lease is still being repeated, or its storage was silent."""
        return lease in self._unsettled or lease in self._silent

    def _check_settled(self, resource: Resource, lease: str) -> None:
        if self.is_giving_up(lease):
            known = self._unsettled.get(lease)
            trouble = (known[0].trouble if known is not None else "") or "its storage failed before"
            raise LeaseUnusable(
                name=resource.name,
                place=self.places.place(lease),
                reason=f"this host is still giving it up ({trouble}); try again",
            )

    async def look_up(self, member: Membership, resource: Resource, lease: str) -> Found | IoFailed:
        """Find the lease by an offloaded job of its own."""
        self._check_settled(resource, lease)
        return await self._looked_up(lambda job: self._find(job, member, resource, lease), member, lease)

    async def look_up_stray(self, member: Membership, unindexed: UnindexedLease) -> Found | IoFailed:
        """Find an unindexed lease by an offloaded job of its own."""
        resource = Resource("", unindexed.name)
        self._check_settled(resource, unindexed.name)
        return await self._looked_up(
            lambda job: self._open_stray(job, member, resource, unindexed), member, unindexed.name
        )

    async def _looked_up(
        self, finding: Work[Found | IoFailed], member: Membership, lease: str
    ) -> Found | IoFailed:
        result = await self.ports.answer(finding, member.io_timeout_s, undo=_close_found)
        if isinstance(result, types.IoFailed):
            return io_failed("Unable to open lease", self.places.place(lease), result)
        return result

    async def _find(self, job: Job, member: Membership, resource: Resource, lease: str) -> Found | IoFailed:
        for _ in range(VANISHED_MAX):
            found = await self.places.find(job, member, lease)
            if not isinstance(found, Removed):
                return found_or_refused(resource, found)
        raise LeaseUnusable(
            name=resource.name,
            place=self.places.place(lease),
            reason="it vanishes as often as it is made: if no host is just taking leases out, delete what is left of it",
        )

    async def _open_stray(
        self, job: Job, member: Membership, resource: Resource, unindexed: UnindexedLease
    ) -> Found | IoFailed:
        found = await self.places.open_stray(job, member, unindexed)
        if isinstance(found, Removed):
            raise LeaseUnusable(
                name=unindexed.name, place=self.places.place(unindexed.name), reason=TAKEN_OUT
            )
        return found_or_refused(resource, found)

    # --- taking ---

    async def take(
        self, lease: str, member: Membership, resource: Resource, mode: Mode, note: OwnerNote
    ) -> PaxosHeld | HeldElsewhere | Stale | LeftBehind | IoFailed:
        self._check_settled(resource, lease)
        # No number may be used for two ballots, so the prepared ballot is passed to this attempt only.
        left = self._promises.pop(lease, None)
        attempt = await self.ports.offload.run(
            lambda job: self._attempt(job, lease, member, resource, mode, note, left),
            member.io_timeout_s,
        )
        if isinstance(attempt, TimedOut):
            self._silent.add(lease)
            self.ports.spawn(self._give_back(lease, member, mode, attempt))
            attempt = types.IoFailed(errno.ETIMEDOUT)
        if isinstance(attempt, types.IoFailed):
            return io_failed("Unable to acquire lease", self.places.place(lease), attempt)
        if isinstance(attempt, IoFailed | LeftBehind):
            return attempt
        found = attempt.found
        holding = self.holding(found, member)
        self.unsettled(holding, found)
        outcome = await holding.acquired(attempt.outcome, mode)
        if not isinstance(outcome, Lease):
            try:
                if isinstance(outcome, Malformed) and is_cleared(outcome):
                    return Stale()  # removed since it was opened
                return await self.refusal(found, holding, outcome)
            finally:
                self.tidy(holding)
        if not attempt.named:
            # Removed or replaced since it was opened: other hosts that open the path now get another lease.
            await holding.release()
            self.tidy(holding)
            return Stale()
        return self.handed_out(found, holding, resource)

    async def _attempt(
        self,
        job: Job,
        lease: str,
        member: Membership,
        resource: Resource,
        mode: Mode,
        note: OwnerNote,
        left: _Left | None,
    ) -> _Attempt | LeftBehind | IoFailed:
        found = await self._find(job, member, resource, lease)
        if isinstance(found, IoFailed):
            return found
        seen = found.partial_snapshot or await area_in(job, found.area).read_partial(
            member.host_id, member.io_timeout_s
        )
        if not isinstance(seen, Snapshot):
            # The ballot would read again, and not ask whether the lease is ours already.
            return _Attempt(found, seen)
        if is_held_by(member, seen) and member.may_write():
            # To the protocol a host's own lease is free. But no lock of this process has this one: see `LeftBehind`.
            job.disk(found.disk).close()
            return LeftBehind(lease)
        found = replace(found, area=self.noted(found.area, note, str(resource), self.names.disk_of(resource)))
        outcome = await acquire_lease(
            job,
            found.area,
            member,
            self.ports,
            mode,
            partial_snapshot=seen,
            promise=left.promise if left is not None and left.is_of(found.area, member) else None,
            wanted_lver=found.wanted_lver,
        )
        named = not isinstance(outcome, Lease) or await self.places.still_there(member, found, lease, job)
        return _Attempt(found, outcome, named)

    async def _give_back(
        self, lease: str, member: Membership, mode: Mode, silent: TimedOut[_Attempt | LeftBehind | IoFailed]
    ) -> None:
        """Undo a late result: the request for the lease was refused, as its storage was silent."""
        log.warning("lease %s: its storage is silent; what comes of the attempt is given back", lease)
        try:
            attempt = await silent.over
        except LeaseUnusable:
            return
        finally:
            self._silent.discard(lease)
        if isinstance(attempt, _Attempt):
            holding = self.holding(attempt.found, member)
            self.unsettled(holding, attempt.found)
            if isinstance(await holding.acquired(attempt.outcome, mode), Lease):
                await holding.release()
            self.tidy(holding)

    async def still_there(self, found: Found, holding: HeldLease) -> bool:
        """Checks a lease after it was won. If it was removed or replaced since it was opened, other hosts open another
        lease under its name; then it is released.
        """
        if await self.places.still_there(holding.member, found, holding.area.resource_name):
            return True
        await holding.release()
        self.tidy(holding)
        return False

    def handed_out(self, found: Found, holding: HeldLease, resource: Resource) -> PaxosHeld:
        """The last check: from here to the lock table there is no await.

        A lease won while the lockspace is being lost or left is not in the lock table yet, so nothing would release it. It
        is handed out only if the membership is still the one under which it was won.
        """
        if self.presence.membership() is not holding.member or not holding.member.may_write():
            holding.forget()
            self.tidy(holding)
            raise LeaseUnusable(
                name=resource.name,
                place=found.place,
                reason="this host has just lost or left the lockspace",
                cause=LockspaceLost(),
            )
        del self._unsettled[holding.area.resource_name]
        # If a lease was resumed and its note can't be read, only the lease's name is known.
        disk = "" if resource.name == holding.area.resource_name else str(resource)
        return PaxosHeld(self, found, holding, disk)

    def noted(self, area: LeaseArea, note: OwnerNote, disk: str, path: str) -> LeaseArea:
        """The area, with a note of owner and disk after every block that is written there."""
        return replace(area, note=owner_note.encode(note, self.ports.clock.wall(), disk, path))

    def holding(self, found: Found, member: Membership) -> HeldLease:
        holding = HeldLease(
            found.area,
            member,
            self.ports,
            on_settled=lambda: self.tidy(holding),
            disk=found.disk,
        )
        return holding

    @contextmanager
    def trying(self, found: Found, member: Membership) -> Iterator[HeldLease]:
        """While an operation uses the lease, no other one of this host may open it; afterwards it is cleaned up."""
        found = replace(found, area=replace(found.area, note=owner_note.UPKEEP))
        holding = self.holding(found, member)
        self.unsettled(holding, found)
        name, over = found.area.resource_name, asyncio.Event()
        self._tried[name] = over
        try:
            yield holding
        finally:
            self.tidy(holding)
            if self._tried.get(name) is over:
                del self._tried[name]
            over.set()

    def unsettled(self, holding: HeldLease, found: Found) -> None:
        """Until it is cleaned up, no other operation of this host may open that lease."""
        self._unsettled[holding.area.resource_name] = (holding, found)

    def tidy(self, holding: HeldLease) -> None:
        """Close a lease that is settled and not held; it may be opened again."""
        name = holding.area.resource_name
        entry = self._unsettled.get(name)
        if entry is not None and entry[0] is holding and holding.done:
            del self._unsettled[name]
            entry[1].disk.close()
            if holding.promise is not None:
                if len(self._promises) >= PROMISES_MAX:
                    self._promises.clear()
                self._promises[name] = _Left(holding.member, holding.area.offset_bytes, holding.promise)

    async def refusal(
        self, found: Found, holding: HeldLease, outcome: AcquireOutcome
    ) -> HeldElsewhere | IoFailed:
        """The result for the manager when a lease was not won."""
        refused = outcome.refusal if isinstance(outcome, InDoubt) else outcome

        async def describe(job: Job) -> HeldElsewhere | types.IoFailed:
            area, member = area_in(job, found.area), member_in(job, holding.member)
            return await Refusals(area, member, found.place).describe(refused)

        result = await self.ports.answer(describe, holding.member.io_timeout_s)
        return (
            io_failed("Unable to acquire lease", found.place, result)
            if isinstance(result, types.IoFailed)
            else result
        )

    # --- after a restart ---

    async def adopt(self, saved: SavedLock, fd: int | None) -> PaxosHeld | HeldElsewhere | Stale | IoFailed:
        """Resume the lease if storage shows this incarnation of our host as holder; else acquire it again."""
        async with self._adoptions:
            return await self._adopt(saved)

    async def _adopt(self, saved: SavedLock) -> PaxosHeld | HeldElsewhere | Stale | IoFailed:
        resource = saved.resource
        member = self.member(resource)
        if saved.keys and saved.keys[0] == self.names.key(resource.name):
            lease = resource.name  # it was resumed without a readable note of its disk
        else:
            lease, _ = await self.names.of(resource)
            if saved.keys and saved.keys[0] != self.names.key(lease):
                return Stale()
        found = await self.look_up(member, resource, lease)
        if isinstance(found, IoFailed):
            return found
        holding = self.holding(found, member)
        self.unsettled(holding, found)
        resumed = await holding.resume(saved.mode)
        outcome = resumed if resumed is not None else await holding.acquire(saved.mode)
        if not isinstance(outcome, Lease):
            try:
                return await self.refusal(found, holding, outcome)
            finally:
                self.tidy(holding)
        if resumed is None and not await self.still_there(found, holding):
            return Stale()
        return self.handed_out(found, holding, resource)

    # --- what it is worth ---

    def protection(self, path: str) -> tuple[Protection, str]:
        member = self.presence.membership()
        if isinstance(member, NotAMember):
            return Protection.NONE, f"not in lockspace {self.presence.name}: {member}"
        return self.promised()

    @property
    def lost(self) -> str:
        """See `MayBeLost`."""
        member = self.presence.membership()
        return f"lockspace {self.presence.name}: {member}" if isinstance(member, NotAMember) else ""

    def promised(self) -> tuple[Protection, str]:
        """See `LeaseBackend`."""
        if self._reach < Protection.CROSS_HOST:
            return self._reach, self._reach_note
        if not self.presence.fences:
            return (
                Protection.CROSS_HOST,
                f"backend '{self.name}' has watchdog = \"none\": nothing resets a host that hangs",
            )
        return Protection.FENCED, ""

    def lock_path(self, resource: Resource) -> str:
        return self.places.place(self.names.shown(resource))


VANISHED_MAX = 10
"""How often a lease may be removed between being found and opened: each time needs another host's action."""


def _close_found(result: object) -> None:
    """Close a lease whose opening ended after its caller had timed out."""
    if isinstance(result, Found):
        result.disk.close()

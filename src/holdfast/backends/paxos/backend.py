"""The `paxos` driver: a lock is a lease on storage that hosts share, in sanlock's format.

A lock of this driver excludes every host of the lockspace, whether it runs Holdfast or sanlock, and outlives this
daemon: what holds it are bytes on storage that name this host, and the host's renewed proof of life. So there is no
descriptor to keep; the next daemon takes up what storage says is ours, if it took up the very term of our host, and
acquires anew otherwise.

    open      name of the lease; nothing is asked of its storage yet
    take      where is it, is it one, make it if it is not there                            (lease_places)
              race for its next version; refused: whose is it, alive since when             (lease_holding)
    release   our block, then the leader; what fails is repeated beside

Finding and racing are one job on a worker (`system/block_io/offload`). If storage falls silent meanwhile, the start is
refused, and what the job wins later is given back.

Nobody waits here for another host's death: a start that meets an owner who may be dead is refused with the seconds
that are left, and the next attempt finds the count further on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from holdfast.backends.base import (
    Capabilities,
    Creation,
    HeldElsewhere,
    LeftBehind,
    NotedOwner,
    OwnerNote,
    SavedLock,
    Stale,
)
from holdfast.backends.naming import NameBy
from holdfast.backends.paxos import owner_note
from holdfast.backends.paxos.held_lease import HeldLease, HoldingPorts, acquire_lease, is_held_by
from holdfast.backends.paxos.lease_store import Found, LeaseStore, Removed, StorageFailed, Unusable
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
from holdfast.protocol.paxos_outcomes import InDoubt
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.paxos_release import Mode as LeaseMode
from holdfast.protocol.resource_index import UnindexedLease, is_cleared
from holdfast.supervision.lockspace_port import LockspacePort, NotAMember
from holdfast.system.block_io.offload import TimedOut
from holdfast.system.files.disk_identity import DiskIdentities
from holdfast.system.files.ofd_lock import FileKey, IoFailed
from holdfast.system.files.storage_executor import Storage

log = logging.getLogger(__name__)

ADOPTIONS_MAX = 64
"""Leases that are taken up at once after a restart: more than the workers of their storage can do. A request waits for a
worker within its io_timeout, and among 1024 others at most; one that did not get there would count as a lost lease."""
PROMISES_MAX = 10_000
"""Leases that were given up lately; an acquire of any other takes two requests more."""


class PaxosHeld:
    """A lease that this host has won."""

    __slots__ = ("_backend", "_disk", "_found", "_holding", "create", "path")

    def __init__(self, backend: PaxosBackend, found: Found, holding: HeldLease, disk: str) -> None:
        self._backend = backend
        self._found = found
        self._holding = holding
        self._disk = disk
        self.path = found.place
        self.create = False

    def descriptor(self) -> int | None:
        return None

    @property
    def is_shared(self) -> bool:
        """See `MayBeShared`."""
        lease = self._holding.lease
        return lease is not None and lease.mode is LeaseMode.SHARED

    @property
    def sharers_unasked(self) -> bool:
        """See `MayHaveSharers`."""
        return bool(self._holding.sharers_unasked)

    async def ask_sharers(self) -> None:
        """See `MayHaveSharers`."""
        await self._holding.ask_sharers()

    async def why_not_held(self) -> str:
        """See `Rereadable`."""
        return await self._holding.why_not_held()

    async def convert(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | IoFailed | None:
        holding = self._holding
        if holding.unsettled or holding.lease is None:
            # Its last change is not through yet; that ends, or is repeated, soon. Or the lockspace has been lost amid it.
            return IoFailed("Unable to convert lease", self.path, errno.EAGAIN)
        disk = owner_note.disk_of(holding.area.note) or self._disk
        holding.area = self._backend.noted(holding.area, note, disk)
        refused = await holding.convert(mode)
        return None if refused is None else await self._backend.refusal(self._found, holding, refused)

    async def noted_owner(self) -> NotedOwner:
        """See `NotesOwner`."""
        return owner_note.noted(await self._backend.maintenance.own_note(self._found, self._holding.member))

    async def release(self) -> None:
        holding = self._holding
        self._backend.unsettled(holding, self._found)
        await holding.release()
        self._backend.tidy(holding)

    def release_nowait(self) -> bool:
        return False

    def forget(self) -> None:
        self._holding.forget()
        self._found.disk.close()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What an attempt to take a lease came to. `named`: its name still led to it when it had been won."""

    found: Found
    outcome: AcquireOutcome
    named: bool = True


@dataclass(frozen=True, slots=True)
class _Left:
    """What a release has left in our block, in which term and where: a lease that is made anew may be elsewhere."""

    term: Membership
    offset_bytes: int
    promise: PreparedBallot

    def is_of(self, area: LeaseArea, term: Membership) -> bool:
        return self.term is term and self.offset_bytes == area.offset_bytes


class LeaseCandidate:
    """A lease that could be taken, if it can be found."""

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
    """See the module."""

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
        self.maintenance = PaxosMaintenance(self)
        self._silent: set[str] = set()
        """Leases for which an errand is under way that nobody waits for any more."""
        self._promises: dict[str, _Left] = {}
        """What releases have left in our blocks, for the next acquire of the same term."""
        self._adoptions = asyncio.Semaphore(ADOPTIONS_MAX)

    # --- which lease ---

    async def open(self, resource: Resource, *, create: Creation) -> LeaseCandidate | IoFailed:
        lease, identity = await self.names.of(resource)
        member = self.member(resource)
        if refused := self.presence.refuses_new():
            raise LockspaceAbsent(name=resource.name, lockspace=self.presence.name, reason=refused)
        if untrusted := await self._untrusted():
            raise LeaseUnusable(name=resource.name, place=self.places.place(lease), reason=untrusted)
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

    def _check_settled(self, resource: Resource, lease: str) -> None:
        if lease in self._unsettled or lease in self._silent:
            known = self._unsettled.get(lease)
            trouble = (known[0].trouble if known is not None else "") or "its storage failed before"
            raise LeaseUnusable(
                name=resource.name,
                place=self.places.place(lease),
                reason=f"this host is still giving it up ({trouble}); try again",
            )

    async def look_up(self, member: Membership, resource: Resource, lease: str) -> Found | IoFailed:
        """Find it by an errand of its own."""
        self._check_settled(resource, lease)
        return await self._looked_up(self._find(member, resource, lease), member, lease)

    async def look_up_stray(self, member: Membership, stray: UnindexedLease) -> Found | IoFailed:
        """The same for a lease that its name does not lead to."""
        resource = Resource("", stray.name)
        self._check_settled(resource, stray.name)
        return await self._looked_up(self._open_stray(member, resource, stray), member, stray.name)

    async def _looked_up(
        self, finding: Coroutine[Any, Any, Found | IoFailed], member: Membership, lease: str
    ) -> Found | IoFailed:
        told = await self.ports.answer(finding, member.io_timeout_s, undo=_close_found)
        if isinstance(told, types.IoFailed):
            return _io_failed("Unable to open lease", self.places.place(lease), told)
        return told

    async def _find(self, member: Membership, resource: Resource, lease: str) -> Found | IoFailed:
        """On an errand."""
        for _ in range(VANISHED_MAX):
            found = await self.places.find(member, lease)
            if not isinstance(found, Removed):
                return _opened_or_told(resource, found)
        raise LeaseUnusable(
            name=resource.name,
            place=self.places.place(lease),
            reason="it vanishes as often as it is made: if no host is just taking leases out, delete what is left of it",
        )

    async def _open_stray(
        self, member: Membership, resource: Resource, stray: UnindexedLease
    ) -> Found | IoFailed:
        """On an errand."""
        found = await self.places.open_stray(member, stray)
        if isinstance(found, Removed):
            raise LeaseUnusable(name=stray.name, place=self.places.place(stray.name), reason=TAKEN_OUT)
        return _opened_or_told(resource, found)

    # --- taking ---

    async def take(
        self, lease: str, member: Membership, resource: Resource, mode: Mode, note: OwnerNote
    ) -> PaxosHeld | HeldElsewhere | Stale | LeftBehind | IoFailed:
        self._check_settled(resource, lease)
        # No number is used for two ballots, so whatever becomes of this attempt, no other one is told of it.
        left = self._promises.pop(lease, None)
        attempt = await self.ports.offload.run(
            self._attempt(lease, member, resource, mode, note, left),
            member.io_timeout_s,
        )
        if isinstance(attempt, TimedOut):
            self._silent.add(lease)
            self.ports.spawn(self._give_back(lease, member, mode, attempt))
            attempt = types.IoFailed(errno.ETIMEDOUT)
        if isinstance(attempt, types.IoFailed):
            return _io_failed("Unable to acquire lease", self.places.place(lease), attempt)
        if isinstance(attempt, IoFailed | LeftBehind):
            return attempt
        found = attempt.found
        holding = self.holding(found, member)
        self.unsettled(holding, found)
        outcome = await holding.acquired(attempt.outcome, mode)
        if not isinstance(outcome, Lease):
            try:
                if isinstance(outcome, Malformed) and is_cleared(outcome):
                    return Stale()  # taken out since it was opened
                return await self.refusal(found, holding, outcome)
            finally:
                self.tidy(holding)
        if not attempt.named:
            # Taken out or replaced since it was opened: whoever opens the path now meets another lease.
            await holding.release()
            self.tidy(holding)
            return Stale()
        return self.handed_out(found, holding, resource)

    async def _attempt(
        self,
        lease: str,
        member: Membership,
        resource: Resource,
        mode: Mode,
        note: OwnerNote,
        left: _Left | None,
    ) -> _Attempt | LeftBehind | IoFailed:
        """On an errand."""
        found = await self._find(member, resource, lease)
        if isinstance(found, IoFailed):
            return found
        seen = found.partial_snapshot or await found.area.read_partial(member.host_id, member.io_timeout_s)
        if isinstance(seen, Snapshot) and is_held_by(member, seen) and member.may_write():
            # To the protocol a host's own lease is free. But no lock of this process accounts for it: see `LeftBehind`.
            found.disk.close()
            return LeftBehind(lease)
        found = replace(found, area=self.noted(found.area, note, str(resource)))
        outcome = await acquire_lease(
            found.area,
            member,
            self.ports,
            mode,
            partial_snapshot=seen if isinstance(seen, Snapshot) else None,
            promise=left.promise if left is not None and left.is_of(found.area, member) else None,
        )
        named = not isinstance(outcome, Lease) or await self.places.still_there(member, found, lease)
        return _Attempt(found, outcome, named)

    async def _give_back(
        self, lease: str, member: Membership, mode: Mode, silent: TimedOut[_Attempt | LeftBehind | IoFailed]
    ) -> None:
        """Whoever wanted the lease has been refused, as its storage was silent; now it has spoken."""
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
        """Asked after it was won. If it was taken out or replaced since it was opened, whoever opens it now meets
        another lease; then it is given up.
        """
        if await self.places.still_there(holding.member, found, holding.area.resource_name):
            return True
        await holding.release()
        self.tidy(holding)
        return False

    def handed_out(self, found: Found, holding: HeldLease, resource: Resource) -> PaxosHeld:
        """The last look: from here to the lock table nothing waits.

        Whoever is told that the lockspace is lost, or leaves it because nobody holds anything, has not seen this
        lease among those that are held; so the membership must still be the very one under which it was won.
        """
        if self.presence.membership() is not holding.member or not holding.member.may_write():
            holding.forget()
            self.tidy(holding)
            raise LeaseUnusable(
                name=resource.name, place=found.place, reason="this host has just lost or left the lockspace"
            )
        del self._unsettled[holding.area.resource_name]
        # Of one that was taken up with a note that can't be read, the name of the lease is all there is.
        disk = "" if resource.name == holding.area.resource_name else str(resource)
        return PaxosHeld(self, found, holding, disk)

    def noted(self, area: LeaseArea, note: OwnerNote, disk: str) -> LeaseArea:
        """The area, with the names of owner and disk behind every block that is written there."""
        return replace(area, note=owner_note.encode(note, self.ports.clock.wall(), disk))

    def holding(self, found: Found, member: Membership) -> HeldLease:
        holding = HeldLease(
            found.area,
            member,
            self.ports,
            on_settled=lambda: self.tidy(holding),
            close=found.disk.close,
        )
        return holding

    @contextmanager
    def trying(self, found: Found, member: Membership) -> Iterator[HeldLease]:
        """While somebody tries something with a lease, nobody else of this host may open it; then it is tidied."""
        found = replace(found, area=replace(found.area, note=owner_note.UPKEEP))
        holding = self.holding(found, member)
        self.unsettled(holding, found)
        try:
            yield holding
        finally:
            self.tidy(holding)

    def unsettled(self, holding: HeldLease, found: Found) -> None:
        """Until it is tidied, nobody else of this host may open that lease."""
        self._unsettled[holding.area.resource_name] = (holding, found)

    def tidy(self, holding: HeldLease) -> None:
        """A lease that is over and done with is closed, and may be opened again."""
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
        """What the manager is told when a lease was not won."""
        refusals = Refusals(found.area, holding.member, found.place)
        told = await self.ports.answer(
            refusals.told(outcome.refusal if isinstance(outcome, InDoubt) else outcome),
            holding.member.io_timeout_s,
        )
        return (
            _io_failed("Unable to acquire lease", found.place, told)
            if isinstance(told, types.IoFailed)
            else told
        )

    # --- after a restart ---

    async def adopt(self, saved: SavedLock, fd: int | None) -> PaxosHeld | HeldElsewhere | Stale | IoFailed:
        """Take up what storage says this very term of our host holds; else acquire it anew."""
        async with self._adoptions:
            return await self._adopt(saved)

    async def _adopt(self, saved: SavedLock) -> PaxosHeld | HeldElsewhere | Stale | IoFailed:
        resource = saved.resource
        member = self.member(resource)
        if saved.keys and saved.keys[0] == self.names.key(resource.name):
            lease = resource.name  # it was taken up, and which disk it is for could not be read
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
        """What it is worth while its lockspace is joined."""
        if self._reach < Protection.CROSS_HOST:
            return self._reach, self._reach_note
        if not self.presence.fences:
            return (
                Protection.CROSS_HOST,
                f"backend '{self.name}' has watchdog = \"none\": nothing resets a host that hangs",
            )
        return Protection.FENCED, ""

    def lock_path(self, resource: Resource) -> str:
        return self.places.place(self.names.told(resource))


_MAKE_ROOM = "make room for a new lease, or have 'holdfast lease gc' take out leases that nobody holds"
VANISHED_MAX = 10
"""Times that a lease may be taken out between being found and opened: each needs another host's hand."""


def _io_failed(what: str, place: str, failed: types.IoFailed) -> IoFailed:
    return IoFailed(what, place, failed.errno)


def _opened_or_told(resource: Resource, found: Found | Unusable | StorageFailed) -> Found | IoFailed:
    """What finding a lease has come to; raises `LeaseUnusable`."""
    match found:
        case Found():
            return found
        case Unusable(place, reason):
            raise LeaseUnusable(name=resource.name, place=place, reason=reason)
        case StorageFailed(place, failed) if failed.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LeaseUnusable(
                name=resource.name, place=place, reason=f"{os.strerror(failed.errno)}: {_MAKE_ROOM}"
            )
        case StorageFailed(place, failed):
            return _io_failed("Unable to open lease", place, failed)


def _close_found(told: object) -> None:
    """Nobody wants the lease any more that was being opened."""
    if isinstance(told, Found):
        told.disk.close()

"""Leases as areas on one path, found by a resource index: lockspace, index, index lease, leases.

Every change of the index is made under the index's own lease, on an open path of its own, and keeps that lease until all
of its writes have landed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, assert_never

from holdfast.backends.base import Turn
from holdfast.backends.paxos.held_lease import HeldLease
from holdfast.backends.paxos.lease_jobs import HoldingPorts
from holdfast.backends.paxos.lease_store import (
    Finding,
    Found,
    Removed,
    StorageFailed,
    Unusable,
    clear,
    disk_in,
    opened,
)
from holdfast.model import Mode
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_outcomes import Contended, InDoubt, LockspaceLost
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.resource_index import (
    Created,
    Index,
    IndexFull,
    UnindexedLease,
    clear_entry,
    create_entry,
    is_cleared,
    is_entered,
    read_index,
    unindexed,
)
from holdfast.protocol.takeover import Busy, FormerUser, HostUnknown
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.lease_files import LeaseDisk, LeaseStorage
from holdfast.system.block_io.offload import Job

T = TypeVar("T")

INDEX_WAIT_S = 30.0
"""Hosts that make leases at the same moment alternate, with a few requests each; a longer wait has another cause."""
_INDEX_PAUSE_MAX_S = 0.5
_WHOLE_DEVICE_BYTES = 1 << 62


class DeviceStore:
    """Areas on one path, found by the resource index, which directly follows the lockspace."""

    lists_all = True

    def __init__(
        self,
        path: str,
        storage: LeaseStorage,
        num_hosts: int | None,
        ports: HoldingPorts,
        turn: Turn[IndexChange],
    ) -> None:
        """`turn`: who changes this index on this host; the same one for all stores of the path."""
        self._path = path
        self._storage = storage
        self._num_hosts = num_hosts
        self._ports = ports
        self._known: dict[str, int] = {}
        self.turn = turn

    def place(self, name: str) -> str:
        known = self._known.get(name)
        return f"{self._path}:{name}" if known is None else f"{self._path}:{known}"

    async def find(self, job: Job, member: Membership, name: str) -> Finding:
        return await self._opening(job, lambda disk: self._find(job, disk, member, name))

    async def open_stray(self, job: Job, member: Membership, unindexed: UnindexedLease) -> Finding:
        return await self._opening(
            job, lambda disk: self._opened(job, disk, unindexed.offset_bytes, member, unindexed.name)
        )

    async def _opening(self, job: Job, find: Callable[[LeaseDisk], Awaitable[Finding]]) -> Finding:
        """Open the path; it stays open with the lease that is found on it."""
        disk = await self._storage.open(self._path, job=job)
        if isinstance(disk, IoFailed):
            return StorageFailed(self._path, disk)
        finding = await find(disk)
        if not isinstance(finding, Found):
            job.disk(disk).close()
        return finding

    async def _find(self, job: Job, disk: LeaseDisk, member: Membership, name: str) -> Finding:
        if (remembered := await self._remembered(job, disk, member, name)) is not None:
            return remembered
        index = await self._index(job.disk(disk), member)
        if not isinstance(index, Index):
            return index
        number = index.find(name)
        finding: Finding = Removed()
        if number is not None:
            finding = await self._opened(job, disk, index.lease(number, name).offset_bytes, member, name)
        if isinstance(finding, Removed):
            # A change of the index keeps its lease until failures are repaired: too long for an offloaded job.
            made = await job.on_loop(lambda: self._create(member, name))
            if not isinstance(made, int):
                return made
            finding = await self._opened(job, disk, index.lease(made, name).offset_bytes, member, name)
        if isinstance(finding, Found):
            self._known[name] = finding.area.offset_bytes
        return finding

    async def _remembered(self, job: Job, disk: LeaseDisk, member: Membership, name: str) -> Finding | None:
        """The lease at its cached place, if the index still has it there; None: search the index."""
        known = self._known.get(name)
        if known is None:
            return None
        leads_there = await self._leads_to(job.disk(disk), member, name, known)
        if isinstance(leads_there, IoFailed):
            return StorageFailed(self._path, leads_there)
        if not leads_there:
            return None
        found = await self._opened(job, disk, known, member, name)
        if not isinstance(found, Unusable | Removed):
            return found
        self._known.pop(name, None)  # removed, and its place may be another lease's by now
        return None

    async def _opened(self, job: Job, disk: LeaseDisk, at: int, member: Membership, name: str) -> Finding:
        return await opened(job, disk, at, member, name, f"{self._path}:{at}", self._num_hosts)

    async def _index(self, disk: LeaseDisk, member: Membership) -> Index | Unusable | StorageFailed:
        at = member.lockspace.offset_bytes + member.lockspace.geometry.align_bytes
        index = await read_index(disk, at, member.lockspace.space_name, member.io_timeout_s)
        if isinstance(index, IoFailed):
            return StorageFailed(self._path, index)
        if isinstance(index, Malformed):
            fix = index.fix or "make one with 'holdfast lockspace init --index'"
            return Unusable(f"{self._path}:{at}", f"no resource index is there ({index}); {fix}")
        return index

    async def names(self, member: Membership) -> list[str] | Unusable | StorageFailed:
        async def entered(index: Index) -> list[str]:
            return [entry.name.text for _, entry in index.entries()]

        return await self._listed(member, entered)

    async def unindexed(self, member: Membership) -> list[UnindexedLease] | Unusable | StorageFailed:
        return await self._listed(member, lambda index: unindexed(index, member.io_timeout_s))

    async def _listed(
        self, member: Membership, listing: Callable[[Index], Awaitable[list[T] | IoFailed]]
    ) -> list[T] | Unusable | StorageFailed:
        """Read from the index on an open path of its own."""
        disk = await self._storage.open(self._path, writable=False)
        if isinstance(disk, IoFailed):
            return StorageFailed(self._path, disk)
        try:
            index = await self._index(disk, member)
            if not isinstance(index, Index):
                return index
            found = await listing(index)
            return StorageFailed(self._path, found) if isinstance(found, IoFailed) else found
        finally:
            disk.close()

    async def free_own(self, member: Membership) -> StorageFailed | None:
        async def nothing(_: Index) -> None:
            return None

        outcome = await self._change_index(member, nothing)
        return outcome if isinstance(outcome, StorageFailed) else None

    async def remove(
        self, member: Membership, found: Found, name: str, leader: Leader
    ) -> Unusable | StorageFailed | None:
        cleared = False

        async def work(index: Index) -> LockspaceLost | IoFailed | None:
            nonlocal cleared
            # First its content: a host that knows the place of a lease without an entry could still win it.
            failed = await clear(member, found, leader)
            if failed is not None:
                return LockspaceLost() if isinstance(failed, Unusable) else failed.failed
            cleared = True
            number = index.find(name)
            if number is None or index.lease(number, name).offset_bytes != found.area.offset_bytes:
                return None
            return await clear_entry(index, number, member.io_timeout_s, may_write=member.may_write)

        failed = await self._change_index(member, work)
        if not cleared and isinstance(failed, Unusable | StorageFailed):
            cleared = await self._is_cleared(member, found)
        self._known.pop(name, None)
        return failed if isinstance(failed, Unusable | StorageFailed) and not cleared else None

    async def _is_cleared(self, member: Membership, found: Found) -> bool:
        """Whether the write took effect although it was reported as failed."""
        area = found.area
        while member.may_write():
            await area.settled()
            seen = await area.read_leader(member.host_id, member.io_timeout_s)
            if not isinstance(seen, IoFailed):
                return isinstance(seen, Malformed) and is_cleared(seen)
            await self._ports.clock.sleep(member.io_timeout_s)
        return False  # nothing is written any more in any case

    async def still_there(self, member: Membership, found: Found, name: str, job: Job | None = None) -> bool:
        disk = disk_in(job, found.disk)
        return await self._leads_to(disk, member, name, found.area.offset_bytes) is True

    async def _leads_to(
        self, disk: LeaseDisk, member: Membership, name: str, offset_bytes: int
    ) -> bool | IoFailed:
        """Whether the index entry of that place has this name: reads one sector."""
        geometry = member.lockspace.geometry
        at = member.lockspace.offset_bytes + geometry.align_bytes
        entered = await is_entered(disk, geometry, at, offset_bytes, name, member.io_timeout_s)
        if entered is False:
            self._known.pop(name, None)  # it is elsewhere by now, or to be made
        return entered

    async def _create(self, member: Membership, name: str) -> int | Unusable | StorageFailed:
        async def work(index: Index) -> Created | IndexFull | LockspaceLost | IoFailed:
            return await create_entry(
                index,
                name,
                self._num_hosts,
                member.io_timeout_s,
                may_write=member.may_write,
                version=member.lockspace.lease_version,
            )

        made = await self._change_index(member, work)
        assert made is not None
        return made

    async def _change_index(
        self, member: Membership, work: IndexWork
    ) -> int | Unusable | StorageFailed | None:
        """Work under the index's own lease, on an open path of its own: repairs may take longer."""
        begun = self._ports.clock.now()
        taken: object = "this host is making another lease"
        while self._ports.clock.now() - begun <= INDEX_WAIT_S:
            # Another start on this host may be changing it, or its failed change is being repaired.
            if self.turn.user is None:
                self.turn.user = change = IndexChange()
                taken = await self._change(change, member, work)
                if isinstance(taken, int | Unusable | StorageFailed | None):
                    return taken
            await self._ports.clock.sleep(self._ports.rng.uniform(0, _INDEX_PAUSE_MAX_S))
        return Unusable(self._path, f"the resource index is being changed ({taken}); try again")

    async def _change(
        self, change: IndexChange, member: Membership, work: IndexWork
    ) -> int | Unusable | StorageFailed | Busy | HostUnknown | FormerUser | Contended | InDoubt | None:
        try:
            disk = await self._storage.open(self._path)
            if isinstance(disk, IoFailed):
                return StorageFailed(self._path, disk)
            change.disk = disk
            index = await self._index(disk, member)
            if not isinstance(index, Index):
                return index
            change.holding = holding = HeldLease(
                index.internal_lease(), member, self._ports, on_settled=lambda: self._changed(change)
            )
            taken = await holding.acquire(Mode.EXCLUSIVE)
            if isinstance(taken, Lease):
                return await self._work_as_owner(disk, member, holding, work)
        finally:
            self._changed(change)
        match taken:
            case IoFailed():
                return StorageFailed(self._path, taken)
            case Busy() | HostUnknown() | FormerUser() | Contended() | InDoubt():
                return taken
            case _:
                return Unusable(self._path, f"the index's own lease: {taken}")

    async def _work_as_owner(
        self, disk: LeaseDisk, member: Membership, holding: HeldLease, work: IndexWork
    ) -> int | Unusable | StorageFailed | None:
        index = await self._index(disk, member)
        if not isinstance(index, Index):
            await holding.release()
            return index
        made = await work(index)
        if isinstance(made, IoFailed) and made.in_flight:
            # What is under way may land on what another host writes next: it gets its turn only afterwards.
            self._ports.spawn(self._release_when_settled(disk, holding))
        else:
            await holding.release()
        match made:
            case None:
                return None
            case Created(number):
                return number
            case IndexFull(entries_max):
                return Unusable(
                    self._path,
                    f"all {entries_max} entries of its index that have room on it are used; "
                    "'holdfast lease gc' frees some",
                )
            case LockspaceLost():
                return Unusable(self._path, "the lockspace has been lost")
            case IoFailed():
                return StorageFailed(self._path, made)
            case _:
                assert_never(made)

    async def _release_when_settled(self, disk: LeaseDisk, holding: HeldLease) -> None:
        await disk.settled(0, _WHOLE_DEVICE_BYTES)
        await holding.release()
        change = self.turn.user
        if change is not None and change.holding is holding:
            self._changed(change)

    def _changed(self, change: IndexChange) -> None:
        if self.turn.user is change and (change.holding is None or change.holding.done):
            self.turn.user = None
            if change.disk is not None:
                change.disk.close()


IndexWork = Callable[[Index], Awaitable[Created | IndexFull | LockspaceLost | IoFailed | None]]


@dataclass(slots=True)
class IndexChange:
    """A change of the index by this host, until it is complete or repaired."""

    disk: LeaseDisk | None = None
    holding: HeldLease | None = None

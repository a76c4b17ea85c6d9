"""Where the leases of a backend are, and how a missing one is made.

*directory*: one file per lease beside the lockspace's file, as libvirt's sanlock plugin keeps them. *device*: areas on
one path, found by the resource index: lockspace, index, index lease, leases.

A lease is made on demand, but only where the lockspace is: when the directory is no longer on the file system of the
lockspace that this host has joined (it was unmounted, or another one was mounted over it), a new file there would be a
lease that no other host sees, and two hosts would write.

    joined:  /srv/leases  (NFS)      __LIBVIRT__DISKS__ renewed through an open file
    umount -l /srv/leases
    start:   /srv/leases  (local)    is on another file system than the lockspace: refused
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

from holdfast.backends.lease_holding import Holding, HoldingPorts
from holdfast.backends.lease_refusals import MAKE_ANEW
from holdfast.model import Mode
from holdfast.ondisk import areas
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.lease_area import LeaseArea, Snapshot, glance_bytes, leader_of
from holdfast.protocol.membership import Membership
from holdfast.protocol.owner_test import Busy, HostUnknown
from holdfast.protocol.paxos_outcomes import Contended, InDoubt, LockspaceLost
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.rindex_area import (
    Created,
    Index,
    IndexFull,
    clear_entry,
    create_entry,
    is_cleared,
    is_entered,
    read_index,
)
from holdfast.protocol.words import IoFailed
from holdfast.system.errands import at_home
from holdfast.system.lease_storage import LeaseDisk, LeaseStorage

INDEX_WAIT_S = 30.0
"""Hosts that make leases at the same moment take turns of a few requests each; after that something else is wrong."""
_INDEX_PAUSE_MAX_S = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """A lease, open."""

    area: LeaseArea
    disk: LeaseDisk
    place: str
    glimpse: Snapshot | None = None
    """What was seen of it when it was opened, if that was enough to begin a race with at once."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """What is there is no lease that may be used, and why; with the fix where there is one."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Vanished:
    """It was removed while it was being opened: look again."""


@dataclass(frozen=True, slots=True)
class StorageFailed:
    """A request failed."""

    place: str
    failed: IoFailed


Finding = Found | Unusable | Vanished | StorageFailed


class LeasePlaces(Protocol):
    """How a backend finds leases."""

    def place(self, name: str) -> str:
        """For people: where the lease of that name is."""

    async def find(self, member: Membership, name: str) -> Finding:
        """Open the lease of that name; a missing one is made."""

    async def names(self, member: Membership) -> list[str] | Unusable | StorageFailed:
        """Every name that has a lease, or something that looks like one."""

    async def free_own(self, member: Membership) -> StorageFailed | None:
        """Give back what an earlier daemon of this term may have held only to make or remove a lease."""

    async def remove(
        self, member: Membership, found: Found, name: str, leader: Leader
    ) -> Unusable | StorageFailed | None:
        """Take a lease out that this host owns by `leader`. Who has it open finds it cleared, and looks again.

        None: it is out, and nothing may be written there any more. Else it is certain that it is not, and stays so.
        """

    async def still_there(self, member: Membership, found: Found, name: str) -> bool:
        """Asked when a lease was won: whether its name still leads to it. Nobody else takes it out from now on."""


class DirectoryPlaces:
    """Files in a directory; ``lockspace_path`` is the lockspace's own file in it."""

    def __init__(
        self, directory: str, lockspace_path: str, storage: LeaseStorage, num_hosts: int | None
    ) -> None:
        self._directory = directory
        self._lockspace_path = lockspace_path
        self._storage = storage
        self._num_hosts = num_hosts

    def place(self, name: str) -> str:
        return f"{self._directory}/{name}"

    async def find(self, member: Membership, name: str) -> Finding:
        path = self.place(name)
        disk = await self._storage.open(path)
        if isinstance(disk, IoFailed) and disk.errno == errno.ENOENT:
            failed = await self._make(member, path, name)
            if failed is not None:
                return failed
            disk = await self._storage.open(path)
            if isinstance(disk, IoFailed) and disk.errno == errno.ENOENT:
                return Vanished()
        if isinstance(disk, IoFailed):
            return StorageFailed(path, disk)
        if (strayed := self._strayed(member, disk.facts.file_system)) is not None:
            disk.close()
            return strayed
        finding = await opened(disk, 0, member, name, path, self._num_hosts)
        if not isinstance(finding, Found):
            disk.close()
        return finding

    async def names(self, member: Membership) -> list[str] | Unusable | StorageFailed:
        found = await self._storage.names(self._directory)
        if isinstance(found, IoFailed):
            return StorageFailed(self._directory, found)
        lockspace = os.path.basename(self._lockspace_path)
        return [name for name in found if name != lockspace]

    async def free_own(self, member: Membership) -> StorageFailed | None:
        return None

    async def remove(
        self, member: Membership, found: Found, name: str, leader: Leader
    ) -> Unusable | StorageFailed | None:
        if not member.may_write():
            return Unusable(found.place, "the lockspace has been lost")
        # First its name, then its content: whoever opens the path from now on makes a new one.
        failed = await self._storage.remove(found.disk.facts)
        if failed is not None and failed.errno == errno.ESTALE:
            return Unusable(found.place, "its name leads to another file by now: is the directory mounted?")
        if failed is not None:
            return StorageFailed(found.place, failed)
        await _clear(member, found, leader)
        return None  # what is left has no name, so nobody rests on it

    async def still_there(self, member: Membership, found: Found, name: str) -> bool:
        return await found.disk.is_named()

    async def _make(self, member: Membership, path: str, name: str) -> Unusable | StorageFailed | None:
        # The lockspace's file as the directory shows it now, not as it was when it was joined.
        there = await self._storage.open(self._lockspace_path, writable=False)
        if isinstance(there, IoFailed):
            return StorageFailed(self._lockspace_path, there)
        strayed = self._strayed(member, there.facts.file_system, there.facts.inode)
        there.close()
        if strayed is not None:
            return strayed
        geometry = member.lockspace.geometry
        leader = areas.fresh_leader(geometry, member.lockspace.space_name, name, self._num_hosts)
        if not member.may_write():
            return Unusable(path, "the lockspace has been lost")
        failed = await self._storage.make(path, areas.lease_area(leader), like=self._lockspace_path)
        if failed is None or failed.errno == errno.EEXIST:
            return None
        return StorageFailed(path, failed)

    def _strayed(self, member: Membership, file_system: int, inode: int | None = None) -> Unusable | None:
        """The refusal for a directory that is not the one of the lockspace that was joined."""
        # A disk without facts is no file at all (a simulated one): it can't be mounted elsewhere.
        joined = getattr(member.lockspace.disk, "facts", None)
        if joined is None or (joined.file_system == file_system and (inode is None or joined.inode == inode)):
            return None
        return Unusable(
            self._directory,
            f"the directory is not the one any more in which this host has joined lockspace "
            f"{member.lockspace.space_name}: is it mounted?",
        )


class DevicePlaces:
    """Areas on one path, found by the resource index, which is right behind the lockspace."""

    def __init__(
        self,
        path: str,
        storage: LeaseStorage,
        num_hosts: int | None,
        ports: HoldingPorts,
    ) -> None:
        self._path = path
        self._storage = storage
        self._num_hosts = num_hosts
        self._ports = ports
        self._known: dict[str, int] = {}
        self._changing: _Change | None = None

    def place(self, name: str) -> str:
        known = self._known.get(name)
        return f"{self._path}:{name}" if known is None else f"{self._path}:{known}"

    async def find(self, member: Membership, name: str) -> Finding:
        disk = await self._storage.open(self._path)
        if isinstance(disk, IoFailed):
            return StorageFailed(self._path, disk)
        finding = await self._find(disk, member, name)
        if not isinstance(finding, Found):
            disk.close()
        return finding

    async def _find(self, disk: LeaseDisk, member: Membership, name: str) -> Finding:
        known = self._known.get(name)
        if known is not None:
            remembered = await opened(disk, known, member, name, f"{self._path}:{known}", self._num_hosts)
            if not isinstance(remembered, Unusable | Vanished):
                return remembered
            self._known.pop(name, None)  # taken out, and its place may be another lease's by now
        index = await self._index(disk, member)
        if not isinstance(index, Index):
            return index
        number = index.find(name)
        finding: Finding = Vanished()
        if number is not None:
            finding = await self._opened(disk, index, number, member, name)
        if isinstance(finding, Vanished):
            # Whoever changes the index keeps its lease until what failed is put right: that is no errand.
            made = await at_home(lambda: self._create(member, name))
            if not isinstance(made, int):
                return made
            finding = await self._opened(disk, index, made, member, name)
        if isinstance(finding, Found):
            self._known[name] = finding.area.offset_bytes
        return finding

    async def _opened(
        self, disk: LeaseDisk, index: Index, number: int, member: Membership, name: str
    ) -> Finding:
        at = index.lease(number, name).offset_bytes
        return await opened(disk, at, member, name, f"{self._path}:{at}", self._num_hosts)

    async def _index(self, disk: LeaseDisk, member: Membership) -> Index | Unusable | StorageFailed:
        at = member.lockspace.offset_bytes + member.lockspace.geometry.align_bytes
        index = await read_index(disk, at, member.lockspace.space_name, member.io_timeout_s)
        if isinstance(index, IoFailed):
            return StorageFailed(self._path, index)
        if isinstance(index, Malformed):
            return Unusable(
                f"{self._path}:{at}",
                f"no resource index is there ({index}); make one with 'holdfast lockspace init --index'",
            )
        return index

    async def names(self, member: Membership) -> list[str] | Unusable | StorageFailed:
        disk = await self._storage.open(self._path, writable=False)
        if isinstance(disk, IoFailed):
            return StorageFailed(self._path, disk)
        index = await self._index(disk, member)
        disk.close()
        return [entry.name.text for _, entry in index.entries()] if isinstance(index, Index) else index

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
            # First its content: a lease without an entry could still be won by whoever knows its place.
            failed = await _clear(member, found, leader)
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
        """What came of a write of which we were told that it failed."""
        area = found.area
        while member.may_write():
            await area.settled()
            seen = await area.read_leader(member.host_id, member.io_timeout_s)
            if not isinstance(seen, IoFailed):
                return isinstance(seen, Malformed) and is_cleared(seen)
            await self._ports.clock.sleep(member.io_timeout_s)
        return False  # nothing is written any more in any case

    async def still_there(self, member: Membership, found: Found, name: str) -> bool:
        at = member.lockspace.offset_bytes + member.lockspace.geometry.align_bytes
        geometry = member.lockspace.geometry
        entered = await is_entered(
            found.disk, geometry, at, found.area.offset_bytes, name, member.io_timeout_s
        )
        if entered is False:
            self._known.pop(name, None)  # it is elsewhere by now, or to be made
        return entered is True

    async def _create(self, member: Membership, name: str) -> int | Unusable | StorageFailed:
        async def work(index: Index) -> Created | IndexFull | LockspaceLost | IoFailed:
            return await create_entry(
                index, name, self._num_hosts, member.io_timeout_s, may_write=member.may_write
            )

        made = await self._change_index(member, work)
        assert made is not None
        return made

    async def _change_index(
        self, member: Membership, work: IndexWork
    ) -> int | Unusable | StorageFailed | None:
        """Work under the index's own lease, on an open path of its own: putting things right may take longer."""
        begun = self._ports.clock.now()
        taken: object = "this host is making another lease"
        while self._ports.clock.now() - begun <= INDEX_WAIT_S:
            # Another start on this host may be at it, or what it left is being put right.
            if self._changing is None:
                self._changing = _Change()
                taken = await self._change(self._changing, member, work)
                if isinstance(taken, int | Unusable | StorageFailed | None):
                    return taken
            await self._ports.clock.sleep(self._ports.chance.uniform(0, _INDEX_PAUSE_MAX_S))
        return Unusable(self._path, f"the resource index is being changed ({taken}); try again")

    async def _change(
        self, change: _Change, member: Membership, work: IndexWork
    ) -> int | Unusable | StorageFailed | Busy | HostUnknown | Contended | InDoubt | None:
        try:
            disk = await self._storage.open(self._path)
            if isinstance(disk, IoFailed):
                return StorageFailed(self._path, disk)
            change.disk = disk
            index = await self._index(disk, member)
            if not isinstance(index, Index):
                return index
            change.holding = holding = Holding(
                index.internal_lease(), member, self._ports, on_settled=self._changed
            )
            taken = await holding.acquire(Mode.EXCLUSIVE)
            if isinstance(taken, Lease):
                return await self._work_as_owner(disk, member, holding, work)
        finally:
            self._changed()
        match taken:
            case IoFailed():
                return StorageFailed(self._path, taken)
            case Busy() | HostUnknown() | Contended() | InDoubt():
                return taken
            case _:
                return Unusable(self._path, f"the index's own lease: {taken}")

    async def _work_as_owner(
        self, disk: LeaseDisk, member: Membership, holding: Holding, work: IndexWork
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

    async def _release_when_settled(self, disk: LeaseDisk, holding: Holding) -> None:
        await disk.settled(0, _WHOLE_DEVICE_BYTES)
        await holding.release()
        self._changed()

    def _changed(self) -> None:
        change = self._changing
        if change is not None and (change.holding is None or change.holding.done):
            self._changing = None
            if change.disk is not None:
                change.disk.close()


IndexWork = Callable[[Index], Awaitable[Created | IndexFull | LockspaceLost | IoFailed | None]]


@dataclass(slots=True)
class _Change:
    """A change of the index that this host makes, until it is through or put right."""

    disk: LeaseDisk | None = None
    holding: Holding | None = None


_WHOLE_DEVICE_BYTES = 1 << 62


async def _clear(member: Membership, found: Found, leader: Leader) -> StorageFailed | Unusable | None:
    if not member.may_write():
        return Unusable(found.place, "the lockspace has been lost")
    area = found.area
    sector = leader.encode_cleared().ljust(area.geometry.sector_bytes, b"\0")
    failed = await found.disk.write(area.offset_bytes, sector, timeout_s=member.io_timeout_s)
    return None if failed is None else StorageFailed(found.place, failed)


async def opened(
    disk: LeaseDisk, offset_bytes: int, member: Membership, name: str, place: str, num_hosts: int | None
) -> Finding:
    """The lease in an open path, with the sizes that its leader says. The path stays open in any case.

    `num_hosts`: how many hosts it is expected to serve; None: as many as there can be.
    """
    geometry = member.lockspace.geometry
    length = glance_bytes(geometry, num_hosts or geometry.hosts_max, member.host_id)
    quiet = not disk.in_flight(offset_bytes, length)
    raw = await disk.read(offset_bytes, length, timeout_s=member.io_timeout_s)
    if isinstance(raw, IoFailed):
        if raw.errno == errno.EMSGSIZE:
            return Unusable(place, f"it is shorter than a lease; {MAKE_ANEW}")
        return StorageFailed(place, raw)
    leader = leader_of(raw)
    space = member.lockspace.space_name
    fault = leader if isinstance(leader, Malformed) else leader.verify(space, name, member.host_id)
    if fault is not None:
        gone = is_cleared(fault) or not await disk.is_named()
        return Vanished() if gone else Unusable(place, _reason(fault, raw))
    assert isinstance(leader, Leader)
    area = LeaseArea(disk, offset_bytes, leader.geometry, space, name, hosts_expected=leader.num_hosts)
    return Found(area, disk, place, area.glimpse(leader, member.host_id, raw) if quiet else None)


def _reason(fault: Malformed, raw: bytes) -> str:
    if not any(raw):
        return f"it is empty: another host is just making it, or was cut short; {MAKE_ANEW}"
    if fault.reason is Reason.HOST_ID:
        return f"{fault}: this lease is for fewer hosts"
    return f"{fault}; {MAKE_ANEW}"


def lockspace_path(directory: str, name: str) -> str:
    """As libvirt's sanlock plugin names it."""
    return os.path.join(directory, name)

"""The `LeaseStore` protocol: finds, makes and removes leases; and the results of opening one.

A lease is made on demand, where the lockspace is. `directory_store` keeps one file per lease, `device_store` areas on one
path that are found by a resource index. `area_store` finds leases that others have made, where its callers say.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Protocol

from holdfast.backends.paxos.refusals import MAKE_ANEW, fix_of
from holdfast.ondisk.leader import Leader, says_caw
from holdfast.ondisk.malformed import CAW_FIX, Malformed, Reason
from holdfast.protocol.lease_area import LeaseArea, Snapshot, glance_bytes, leader_of
from holdfast.protocol.membership import Membership
from holdfast.protocol.resource_index import UnindexedLease, is_cleared
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.disk_file import DiskFacts
from holdfast.system.block_io.lease_files import LeaseDisk
from holdfast.system.block_io.offload import Job


@dataclass(frozen=True, slots=True)
class Found:
    """An open lease."""

    area: LeaseArea
    disk: LeaseDisk
    place: str
    partial_snapshot: Snapshot | None = None
    """What was seen of it when it was opened, if that was enough to begin a race with at once."""
    wanted_lver: int = 0
    """The only version that is to be acquired; 0: any."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """There is no usable lease at that place, and why; with the fix where there is one."""

    place: str
    reason: str
    cause: Malformed | IoFailed | None = None
    """What was read there instead, where that is all."""


@dataclass(frozen=True, slots=True)
class Removed:
    """It was removed while it was being opened: find it again."""


@dataclass(frozen=True, slots=True)
class StorageFailed:
    """A request failed."""

    place: str
    failed: IoFailed


Finding = Found | Unusable | Removed | StorageFailed


class LeaseStore(Protocol):
    """How a backend finds leases. What is given a `job` is done by that offloaded job, everything else on the event loop."""

    lists_all: bool
    """Whether `names` has every lease; False where only clients say where leases are."""

    def place(self, name: str) -> str:
        """Where the lease of that name is, as text for people."""

    async def find(self, job: Job, member: Membership, name: str) -> Finding:
        """Open the lease of that name; a missing one is made."""

    async def names(self, member: Membership) -> list[str] | Unusable | StorageFailed:
        """Every name that has a lease, or what may be one."""

    async def unindexed(self, member: Membership) -> list[UnindexedLease] | Unusable | StorageFailed:
        """Leases to which no name leads, and which still occupy space."""

    async def open_stray(self, job: Job, member: Membership, unindexed: UnindexedLease) -> Finding:
        """Open an unindexed lease, for removal only: owning it protects nothing."""

    async def free_own(self, member: Membership) -> StorageFailed | None:
        """Release what an earlier daemon of this incarnation may have held only to make or remove a lease."""

    async def remove(
        self, member: Membership, found: Found, name: str, leader: Leader
    ) -> Unusable | StorageFailed | None:
        """Remove a lease that this host owns by `leader`. Hosts that have it open read a cleared leader and find it again.

        None: it is removed, and nothing may be written there any more. Else it is certain that it is not, and stays so.
        """

    async def still_there(self, member: Membership, found: Found, name: str, job: Job | None = None) -> bool:
        """Whether the name of a lease that was just won still leads to it. No other host removes it from now on."""


class WithoutIndex:
    """The part of a store whose leases need no index: each is where its name leads."""

    async def unindexed(self, member: Membership) -> list[UnindexedLease] | Unusable | StorageFailed:
        return []

    async def open_stray(self, job: Job, member: Membership, unindexed: UnindexedLease) -> Finding:
        return Removed()

    async def free_own(self, member: Membership) -> StorageFailed | None:
        return None


def disk_in(job: Job | None, disk: LeaseDisk) -> LeaseDisk:
    """The disk as the job uses it, or as the event loop does."""
    return disk if job is None else job.disk(disk)


def lockspace_facts(member: Membership) -> DiskFacts | None:
    """Of the lockspace's file as it was joined; None of a disk that is no file: it can't be mounted elsewhere."""
    facts: DiskFacts | None = getattr(member.lockspace.disk, "facts", None)
    return facts


def strayed(
    member: Membership, directory: str, file_system: int, inode: int | None = None
) -> Unusable | None:
    """The refusal for what is in the lockspace's directory by its path, and on another file system than the lockspace that
    was joined: what is below the mount point protects nothing, as no other host sees it. `inode`: of the lockspace's file as
    it is there now.
    """
    joined = lockspace_facts(member)
    if joined is None or (joined.file_system == file_system and (inode is None or joined.inode == inode)):
        return None
    return Unusable(
        directory,
        f"the directory is not the one any more in which this host has joined lockspace "
        f"{member.lockspace.space_name}: is it mounted?",
    )


async def clear(member: Membership, found: Found, leader: Leader) -> StorageFailed | Unusable | None:
    """Write that the lease of this leader is removed: no host can win it from then on."""
    if not member.may_write():
        return Unusable(found.place, "the lockspace has been lost")
    area = found.area
    sector = leader.encode_cleared().ljust(area.geometry.sector_bytes, b"\0")
    failed = await found.disk.write(area.offset_bytes, sector, timeout_s=member.io_timeout_s)
    return None if failed is None else StorageFailed(found.place, failed)


async def opened(
    job: Job,
    disk: LeaseDisk,
    offset_bytes: int,
    member: Membership,
    name: str,
    place: str,
    num_hosts: int | None,
) -> Finding:
    """The lease in an open path, with the sizes from its leader. The path stays open in any case.

    `num_hosts`: how many hosts it is expected to serve; None: as many as there can be.
    """
    geometry = member.lockspace.geometry
    length = glance_bytes(geometry, num_hosts or geometry.hosts_max, member.host_id)
    quiet = not disk.in_flight(offset_bytes, length)
    jobs_disk = job.disk(disk)
    raw = await jobs_disk.read(offset_bytes, length, timeout_s=member.io_timeout_s)
    if isinstance(raw, IoFailed):
        if raw.errno == errno.EMSGSIZE:
            return Unusable(place, f"it is shorter than a lease; {MAKE_ANEW}", raw)
        return StorageFailed(place, raw)
    leader = leader_of(raw)
    space = member.lockspace.space_name
    fault = leader if isinstance(leader, Malformed) else leader.verify(space, name, member.host_id)
    if fault is not None:
        gone = (is_cleared(fault) and not says_caw(raw)) or not await jobs_disk.is_named()
        return Removed() if gone else Unusable(place, _reason(fault, raw), fault)
    assert isinstance(leader, Leader)
    area = LeaseArea(disk, offset_bytes, leader.geometry, space, name, hosts_expected=leader.num_hosts)
    return Found(area, disk, place, area.partial_snapshot(leader, member.host_id, raw) if quiet else None)


def _reason(fault: Malformed, raw: bytes) -> str:
    if not any(raw):
        return f"it is empty: another host is just making it, or was cut short; {MAKE_ANEW}"
    if is_cleared(fault):
        return f"{fault}; {CAW_FIX}"  # others are made again without a message
    if fault.reason is Reason.HOST_ID:
        return f"{fault}: this lease is for fewer hosts"
    return f"{fault}; {fix_of(fault)}"

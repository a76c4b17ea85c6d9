"""Leases as files: one per lease beside the lockspace's file, as libvirt's sanlock plugin keeps them.

A lease is made on demand, but only where the lockspace is: if the directory is no longer on the file system of the joined
lockspace (it was unmounted, or another one was mounted over it), a new file there would be a lease that no other host sees,
and two hosts would write.

    joined:  /srv/leases  (NFS)      __LIBVIRT__DISKS__ renewed through an open file
    umount -l /srv/leases
    start:   /srv/leases  (local)    is on another file system than the lockspace: refused
"""

from __future__ import annotations

import errno
import os

from holdfast.backends.paxos.lease_store import (
    Finding,
    Found,
    Removed,
    StorageFailed,
    Unusable,
    WithoutIndex,
    clear,
    disk_in,
    opened,
    strayed,
)
from holdfast.ondisk import areas
from holdfast.ondisk.host_record import is_record_name
from holdfast.ondisk.leader import Leader
from holdfast.protocol.membership import Membership
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.lease_files import LeaseStorage
from holdfast.system.block_io.offload import Job


class DirectoryStore(WithoutIndex):
    """Files in a directory; `lockspace_path` is the lockspace's own file in it."""

    lists_all = True

    def __init__(
        self, directory: str, lockspace_path: str, storage: LeaseStorage, num_hosts: int | None
    ) -> None:
        self._directory = directory
        self._lockspace_path = lockspace_path
        self._storage = storage
        self._num_hosts = num_hosts

    def place(self, name: str) -> str:
        return f"{self._directory}/{name}"

    async def find(self, job: Job, member: Membership, name: str) -> Finding:
        path = self.place(name)
        disk = await self._storage.open(path, job=job)
        if isinstance(disk, IoFailed) and disk.errno == errno.ENOENT:
            failed = await self._make(job, member, path, name)
            if failed is not None:
                return failed
            disk = await self._storage.open(path, job=job)
            if isinstance(disk, IoFailed) and disk.errno == errno.ENOENT:
                return Removed()
        if isinstance(disk, IoFailed):
            return StorageFailed(path, disk)
        if (away := strayed(member, self._directory, disk.facts.file_system)) is not None:
            job.disk(disk).close()
            return away
        finding = await opened(job, disk, 0, member, name, path, self._num_hosts)
        if not isinstance(finding, Found):
            job.disk(disk).close()
        return finding

    async def names(self, member: Membership) -> list[str] | Unusable | StorageFailed:
        # Where the directory is not mounted, an empty one may be in its place: that holds no proof that no lease is held.
        away = await self._away(member)
        found = await self._storage.names(self._directory)
        if isinstance(found, IoFailed):
            return StorageFailed(self._directory, found)
        if away is None:
            away = await self._away(member)
        if away is not None:
            return (
                away
                if isinstance(away, StorageFailed)
                else StorageFailed(self._directory, IoFailed(errno.ESTALE))
            )
        lockspace = os.path.basename(self._lockspace_path)
        return [name for name in found if name != lockspace and not is_record_name(name, lockspace)]

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
        await clear(member, found, leader)
        return None  # the rest has no name, so no host can use it

    async def still_there(self, member: Membership, found: Found, name: str, job: Job | None = None) -> bool:
        return await disk_in(job, found.disk).is_named()

    async def _make(
        self, job: Job, member: Membership, path: str, name: str
    ) -> Unusable | StorageFailed | None:
        if (away := await self._away(member, job)) is not None:
            return away
        space = member.lockspace
        leader = areas.fresh_leader(
            space.geometry, space.space_name, name, self._num_hosts, version=space.lease_version
        )
        if not member.may_write():
            return Unusable(path, "the lockspace has been lost")
        failed = await self._storage.make(path, areas.lease_area(leader), like=self._lockspace_path, job=job)
        if failed is None or failed.errno == errno.EEXIST:
            return None
        return StorageFailed(path, failed)

    async def _away(self, member: Membership, job: Job | None = None) -> Unusable | StorageFailed | None:
        """Why the directory is not that of the lockspace that was joined, by the lockspace's file as it is there now."""
        there = await self._storage.open(self._lockspace_path, writable=False, job=job)
        if isinstance(there, IoFailed):
            return StorageFailed(self._lockspace_path, there)
        away = strayed(member, self._directory, there.facts.file_system, there.facts.inode)
        disk_in(job, there).close()
        return away


def lockspace_path(directory: str, name: str) -> str:
    """The lockspace's file, named as by libvirt's sanlock plugin."""
    return os.path.join(directory, name)

"""Maps a disk to its lease, and the lease to its key in the lock table.

Two paths to one disk have one lease if leases are named by the disk's identity; a warning is logged about that.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from holdfast.backends.known_identities import KnownIdentities
from holdfast.backends.naming import NameBy, lease_name
from holdfast.errors import NoLeaseName
from holdfast.model import DIRECT_LOCKSPACE, IDENTITY_LOCKSPACE, Resource
from holdfast.network_disk import is_network_name
from holdfast.ondisk.padded_name import NAME_BYTES
from holdfast.system.files.canonical_path import PathWarnings
from holdfast.system.files.disk_identity import DiskIdentities, DiskIdentity
from holdfast.system.files.ofd_lock import FileKey
from holdfast.system.files.storage_executor import Storage

log = logging.getLogger(__name__)

LEASE_KEY_DEVICE = -2
"""The `device` of a key that stands for a lease: no file has it, nor has a block device (-1)."""
ALIASES_MAX = 100_000
"""Paths remembered to notice when two of them have one lease; when full, all are forgotten."""


def is_lease(keys: Sequence[tuple[int, int]]) -> bool:
    """Whether a lock with these (device, inode) keys is a lease, of whatever lockspace."""
    return bool(keys) and keys[0][0] == LEASE_KEY_DEVICE


class LeaseNames:
    """The lease names of one backend, in one lockspace."""

    def __init__(
        self, backend: str, lockspace: str, by: NameBy, storage: Storage, identities: DiskIdentities
    ) -> None:
        self._backend = backend
        self._lockspace = lockspace
        self._by = by
        self._by_path = by in (NameBy.PATH_MD5, NameBy.PATH_SHA256)
        self._storage = storage
        self._identities = identities
        self._paths: dict[str, str] = {}
        self._hints: dict[str, str] = {}
        self._known = KnownIdentities(storage, identities)
        self._warnings = PathWarnings(backend)

    @property
    def by_path(self) -> bool:
        return self._by_path

    async def of(self, resource: Resource) -> tuple[str, DiskIdentity]:
        """The name of its lease, and what the disk is; raises a `LockError`."""
        identity = await self._identity(resource)
        lease = lease_name(resource, self._by, identity)
        if not lease:
            kind = "LVM UUID" if self._by is NameBy.LVM_UUID else "SCSI WWID"
            raise NoLeaseName(
                name=resource.name,
                kind=kind,
                backend=self._backend,
                fix="give it to another backend by a [[disk]] rule, or name leases by path there",
            )
        if self._by_path and not resource.lockspace and identity.canonical:
            self._warnings.met(resource.name, identity.canonical)
        if len(self._paths) > ALIASES_MAX:
            self._paths.clear()
        before = self._paths.setdefault(lease, str(resource))
        if before != str(resource):
            self._paths[lease] = str(resource)
            log.warning("%s and %s are one disk: both have lease %s", before, resource, lease)
        return lease, identity

    async def identity(self, resource: Resource) -> Resource | None:
        """What the disk at a path is, as a resource with a lease of its own; None if leases go by that anyway, or if it has
        no name that is the same on all hosts. May wait for the storage of the disk.
        """
        if not self._by_path:
            return None
        return await self._known.of(resource.name)

    def disk_of(self, identity: Resource) -> str:
        """The path by which a disk was asked for whose identity that is; empty if that is not known, or it is a path."""
        return self._known.path_of(identity)

    async def _identity(self, resource: Resource) -> DiskIdentity:
        path = self.disk_of(resource) or ("" if resource.lockspace else resource.name)
        if not path or resource.lockspace not in (DIRECT_LOCKSPACE, IDENTITY_LOCKSPACE):
            return DiskIdentity()
        if is_network_name(path):
            return DiskIdentity()  # QEMU alone reaches it
        return await self._storage.call(path, lambda: self._identities.look(path))

    def shown(self, resource: Resource) -> str:
        """The name of its lease as text for people, without asking the disk."""
        if self._by_path or resource.lockspace:
            return lease_name(resource, self._by, DiskIdentity())
        return f"<{self._by.value} of {resource.name}>"

    def hint(self, lease: str, disk: str) -> None:
        """Remember a disk's name from another host's note. For display only: it is never opened or compared."""
        if disk and (not self._by_path or self.shown(Resource("", disk)) == lease):
            if len(self._hints) > ALIASES_MAX:
                self._hints.clear()
            self._hints[lease] = disk

    def path_of(self, lease: str) -> str:
        """The disk of a lease, if this daemon has seen it or its holder's note names it; else the lease's name."""
        return self._paths.get(lease) or self._hints.get(lease, lease)

    def makes(self, name: str) -> bool:
        """Whether this backend may have given that name."""
        return made_by_us(name, self._by)

    def key(self, lease: str) -> FileKey:
        """The key that a lock on it has in the lock table."""
        return key_of_lease(self._lockspace, lease)


def made_by_us(name: str, by: NameBy) -> bool:
    """Whether a lease's name is of the kind that this backend makes: others' leases are not ours to remove."""
    digits = {NameBy.PATH_MD5: 32, NameBy.PATH_SHA256: NAME_BYTES}.get(by)
    if digits is not None:
        return len(name) == digits and not name.strip("0123456789abcdef")
    if by is NameBy.LVM_UUID:
        return [len(part) for part in name.split("-")] == [6, 4, 4, 4, 4, 4, 6] and name.replace(
            "-", ""
        ).isalnum()
    return False  # a WWID has no fixed form


def key_of_lease(lockspace: str, lease: str) -> FileKey:
    """The key of a lease: 63 bits of a digest, so that it fits the journal. Resources with the same lease share it."""
    digest = hashlib.sha256(f"{lockspace}\0{lease}".encode("utf-8", "surrogateescape")).digest()
    return FileKey(LEASE_KEY_DEVICE, int.from_bytes(digest[:8], "big") >> 1)

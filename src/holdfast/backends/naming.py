"""Names of lock files and leases: libvirt's own, so that hosts with another lock manager use the same ones.

The operator chooses what a name is made from (`name_by`). All hosts must make the same name for one disk, so a disk without
such a name (a file has no LVM UUID) is refused; another kind of name would be another lease.
"""

from __future__ import annotations

import enum
import hashlib

from holdfast.model import Resource
from holdfast.ondisk.padded_name import NAME_BYTES
from holdfast.system.files.disk_identity import DiskIdentity


class NameBy(enum.Enum):
    """What the name of a lease is made from."""

    PATH_MD5 = "path-md5"
    """As libvirt's sanlock plugin names the leases of disks."""
    PATH_SHA256 = "path-sha256"
    """The first 48 of the 64 digits of libvirt's hash lockspaces: a lease name has no room for more."""
    LVM_UUID = "lvm-uuid"
    SCSI_WWID = "scsi-wwid"
    RESOURCE = "resource"
    """The resource's own name, as sanlock's clients give it; for no disk, so it can't be configured."""


def indirect_name(path: str) -> str:
    """The name of a disk path in a hash lockspace: lower-case hex SHA-256 (libvirt-integration.md 2.3, row 3)."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()


def lease_name(resource: Resource, by: NameBy, disk: DiskIdentity) -> str:
    """The lease of a resource; empty if it has no name of that kind.

    A resource in a directory lockspace has a key and no disk with an identity, so it is named by its whole name.
    """
    if by is NameBy.RESOURCE:
        return resource.name
    text = str(resource).encode("utf-8", "surrogateescape")
    if by is NameBy.PATH_SHA256:
        return hashlib.sha256(text).hexdigest()[:NAME_BYTES]
    if by is NameBy.PATH_MD5 or resource.lockspace:
        return hashlib.md5(text, usedforsecurity=False).hexdigest()
    if by is NameBy.LVM_UUID:
        return disk.lvm_uuid
    # A name too long for a lease, or that is no file name, is hashed: cut names make two disks one.
    name = disk.wwid
    plain = (
        len(name.encode()) <= NAME_BYTES and "/" not in name and not name.startswith(".") and " " not in name
    )
    return name if plain else hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()

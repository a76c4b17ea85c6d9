"""What hosts call a disk, and the leases that it has under these names.

    ONE        every host calls it by one path, and its lease goes by that
    ALIASES    two paths lead to it, and each start of a virtual machine uses one of them: the lease of what the disk is
               excludes them all, and each path has one beside it (ADR 0197)
    LATE       one path; a host knows nothing of identities until it is updated, under running virtual machines

A *resource* of the checkers is the disk: the lease that every host of the cluster knows. The other leases are resources of
their own, named by `beside`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from holdfast.backends.naming import NameBy, lease_name
from holdfast.model import IDENTITY_LOCKSPACE, Resource
from holdfast.system.files.disk_identity import DiskIdentity

PATHS = "/disks/", "/aliases/"
STRONG = "sim:"


class Naming(Enum):
    """How hosts name disks."""

    ONE = "one path"
    ALIASES = "two paths"
    LATE = "identities from an update on"


def strong_of(path: str) -> str:
    """What the disk at a path is, on every host."""
    return f"{STRONG}{path.rpartition('/')[2]}"


def disk_of(resource: Resource) -> str:
    """The checkers' name of the disk that a lock's name leads to; empty if it is no disk's."""
    if resource.lockspace == IDENTITY_LOCKSPACE:
        return resource.name.removeprefix(STRONG)
    return resource.name.rpartition("/")[2] if resource.name.startswith(PATHS) else ""


def resource_of(disk: str, path: int = 0) -> Resource:
    """A disk by one of its paths."""
    return Resource("", f"{PATHS[path]}{disk}")


def lease_of(disk: str) -> str:
    """The name of the lease of the disk's first path, as the backend derives it."""
    return _lease(resource_of(disk))


def _lease(resource: Resource) -> str:
    return lease_name(resource, NameBy.PATH_MD5, DiskIdentity())


def beside(disk: str, path: int) -> str:
    """The checkers' name of the lease of a path, where the disk's own goes by what it is."""
    return f"{disk} as {PATHS[path]}"


def base(resource: str) -> str:
    """The disk of a checkers' name."""
    return resource.partition(" ")[0]


IDENTITY_BESIDE = " as itself"
"""Follows the disk in the checkers' name of the lease of what it is, where the disk's own goes by its path."""


@dataclass(frozen=True)
class DiskNames:
    """The names of all disks of one cluster."""

    naming: Naming = Naming.ONE

    @property
    def paths(self) -> range:
        """Numbers of the paths that lead to each disk."""
        return range(2 if self.naming is Naming.ALIASES else 1)

    def leases(self, disk: str) -> Mapping[str, str]:
        """The checkers' names by the names of leases."""
        identity = _lease(Resource(IDENTITY_LOCKSPACE, f"{STRONG}{disk}"))
        match self.naming:
            case Naming.ONE:
                return {lease_of(disk): disk}
            case Naming.LATE:
                return {lease_of(disk): disk, identity: f"{disk}{IDENTITY_BESIDE}"}
            case Naming.ALIASES:
                by_path = {_lease(resource_of(disk, n)): beside(disk, n) for n in self.paths}
                return {identity: disk, **by_path}

    def beside(self, disk: str, path: int) -> str:
        """The checkers' name of the lease that a virtual machine has by its path beside the disk's own; empty for none."""
        return beside(disk, path) if self.naming is Naming.ALIASES else ""

    def first(self, resource: str) -> str:
        """The lease that has to be held before that one; empty if none has to."""
        return base(resource) if self.naming is Naming.ALIASES and base(resource) != resource else ""

"""What disks are on every host, for one backend, and the paths by which they were asked for (ADR 0197)."""

from __future__ import annotations

from holdfast.model import IDENTITY_LOCKSPACE, Resource
from holdfast.system.files.disk_identity import DiskIdentities
from holdfast.system.files.storage_executor import Storage

DISKS_MAX = 100_000
"""Paths that are remembered; when full, all are forgotten."""


class KnownIdentities:
    """On the event loop. `storage` reads, for a file system may hang."""

    def __init__(self, storage: Storage, identities: DiskIdentities) -> None:
        self._storage = storage
        self._identities = identities
        self._disks: dict[str, str] = {}
        """By identity: the path by which the disk was asked for last."""

    async def of(self, path: str) -> Resource | None:
        """What the disk at a path is, as a resource; None if it has no name that is the same on all hosts. May wait for the
        storage of the disk.
        """
        strong = await self._storage.call(path, lambda: self._identities.strong(path))
        if not strong:
            return None
        if len(self._disks) > DISKS_MAX:
            self._disks.clear()
        self._disks[strong] = path
        return Resource(IDENTITY_LOCKSPACE, strong)

    def path_of(self, identity: Resource) -> str:
        """The path by which a disk was asked for whose identity that is; empty if that is not known, or it is a path."""
        return self._disks.get(identity.name, "") if identity.lockspace == IDENTITY_LOCKSPACE else ""

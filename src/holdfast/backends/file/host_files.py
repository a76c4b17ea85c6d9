"""Locks on a VM's own files that only this host has: its NVRAM and the state of its TPM.

No other host can write a file on a local file system, so a lock within this host is all there is to have. Each is a lock
file in a directory of the daemon's own, as with the `file` driver and a ``directory``: a TPM's state is a folder, which is
not to be locked itself, and both may be made only after the lock is taken.
"""

from __future__ import annotations

from holdfast.backends.base import BackendPorts, Creation, NotedOwner
from holdfast.backends.file.backend import FileBackend, OpenFile
from holdfast.backends.naming import indirect_name
from holdfast.model import HOST_LOCKSPACE, Protection, Resource
from holdfast.system.files.ofd_lock import IoFailed

NAME = "this host"
"""With a space in it: no [backend.NAME] can be called so."""
PROTECTION_NOTE = "only this host has the file"


class HostFilesBackend(FileBackend):
    """`directory`: where the lock files are; on a local file system of this host."""

    def __init__(self, ports: BackendPorts, *, directory: str) -> None:
        super().__init__(NAME, ports, directory=directory)

    def lock_path(self, resource: Resource) -> str:
        return f"{self.directory}/{indirect_name(resource.name)}"

    async def open(self, resource: Resource, *, create: Creation) -> OpenFile | IoFailed:
        return await super().open(Resource("", resource.name), create=create)

    def protection(self, path: str) -> tuple[Protection, str]:
        return Protection.SAME_HOST, PROTECTION_NOTE

    def _resource(self, name: str, noted: NotedOwner) -> Resource:
        return super()._resource(name, noted)._replace(lockspace=HOST_LOCKSPACE)

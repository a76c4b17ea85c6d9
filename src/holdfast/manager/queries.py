"""Read-only queries: owners, locks, and the holders of a disk by any of its names."""

from __future__ import annotations

import os

from holdfast.backends.naming import indirect_name
from holdfast.control.api import HolderInfo, OwnerInfo
from holdfast.manager.identity_locks import identity_in, is_shown_with_a_path
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Owner
from holdfast.model import HOST_LOCKSPACE, Mode, Resource
from holdfast.network_disk import is_network_name
from holdfast.system.files.lockspace_files import LockspaceFiles
from holdfast.system.files.ofd_lock import FileKey
from holdfast.system.files.storage_executor import Storage

UNTIL_MIGRATED = "held until the migration ends"
UNTIL_QEMU_ANSWERS = "held until QEMU answers"


def shown(text: str) -> str:
    """The text for JSON and terminals, which are UTF-8: other bytes of a path are shown as replacement marks."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Inspection:
    """Read-only views on the manager."""

    def __init__(self, manager: LockManager, *, files: LockspaceFiles, storage: Storage, host: str) -> None:
        self._manager = manager
        self._files = files
        self._storage = storage
        self._host = host

    def owners(self) -> list[OwnerInfo]:
        table = self._manager.table
        found = []
        for owner in self._manager.owners:
            locks = table.of_owner(owner.id)
            # What only this host has could not be guarded better, and is no disk.
            disks = [lock for lock in locks if not _is_own_file(owner.id, lock)]
            weakest = min((self._manager.protection(lock)[0] for lock in disks), default=None)
            found.append(
                OwnerInfo(
                    name=shown(owner.name.name),
                    uuid=owner.name.uuid,
                    domain_id=owner.name.domain_id,
                    pid=owner.pid,
                    alive=owner.alive(),
                    stopping=owner.stopping,
                    connections=owner.connections,
                    locks=sum(not is_shown_with_a_path(table, owner.id, lock) for lock in locks),
                    protection=None if weakest is None else int(weakest),
                    protection_word="" if weakest is None else weakest.word,
                )
            )
        return found

    def locks(self) -> list[HolderInfo]:
        """Every claim on a disk; the lock of its identity is shown with it."""
        return [info for lock in self._manager.table for info in self._claims(lock)]

    def _identity(self, owner_id: int, lock: HostLock) -> str:
        """What the disk of a lock is, if the owner has the lock of that, too; else empty."""
        for other in self._manager.table.others_on_disk(owner_id, lock):
            if (identity := identity_in(other, owner_id)) is not None:
                return identity.name
        return ""

    async def holders_of(self, path: str) -> list[HolderInfo]:
        """All claims on a disk: by this path, by its hash in a lockspace, by its file."""
        return [info for lock in await self.locks_of(path) for info in self._claims(lock)]

    async def locks_of(self, path: str) -> list[HostLock]:
        """The locks on a disk, by the same names."""
        hashed = indirect_name(path)
        table = self._manager.table
        found: dict[HostLock, None] = {}
        names = [Resource("", path), Resource(os.path.dirname(path), os.path.basename(path))]
        names.append(Resource(HOST_LOCKSPACE, path))
        names += [Resource(space, hashed) for space in self._manager.lockspaces.known()]
        for name in names:
            if (lock := table.named(name)) is not None:
                found[lock] = None
        key: FileKey | None = await self._storage.call(path, lambda: self._files.key(path))
        if key is not None:
            found.update(dict.fromkeys(table.with_key(key)))
        return list(found)

    def _claims(self, lock: HostLock) -> list[HolderInfo]:
        return [
            self._info(lock, owner_id, resource, mode)
            for owner_id, names in lock.claims.items()
            for resource, mode in names.items()
            if not is_shown_with_a_path(self._manager.table, owner_id, lock)
        ]

    def _called(self, lock: HostLock, resource: Resource) -> str:
        """The shown name: for a lease that is held under its own name (`moved_disks`) its disk, if that is known."""
        backend = self._manager.routing.leases.get(lock.backend)
        if backend is not None and not resource.lockspace:
            return backend.names.path_of(resource.name)
        return str(resource)

    def _info(self, lock: HostLock, owner_id: int, resource: Resource, mode: Mode) -> HolderInfo:
        owner = self._manager.owners.get(owner_id)
        protection, note = self._manager.protection(lock)
        lost = self._manager.why_lost(lock)
        identity = "" if resource.lockspace else self._identity(owner_id, lock)
        known_by = "identity" if identity else ""
        if not (known_by or resource.lockspace) and lock.backend in self._manager.routing.leases:
            known_by = "name" if is_network_name(resource.name) else "path"
        return HolderInfo(
            resource=shown(self._called(lock, resource)),
            lockspace=shown(resource.lockspace),
            name=shown(resource.name),
            mode=mode.word,
            owner=shown(owner.name.name) if owner else "",
            owner_uuid=owner.name.uuid if owner else "",
            pid=owner.pid if owner else 0,
            host=self._host,
            since=lock.since_wall_s,
            backend=lock.backend,
            path=shown(lock.path),
            protection=int(protection),
            protection_word=protection.word,
            protection_note=shown(note),
            held=not lost,
            lost_reason=shown(lost),
            number=lock.id,
            identity=shown(identity),
            known_by=known_by,
            until=self._until(owner, lock, resource),
            unknown=shown(owner.unknown.why) if owner is not None and owner.unknown is not None else "",
        )

    def _until(self, owner: Owner | None, lock: HostLock, resource: Resource) -> str:
        """How long a claim stays that libvirt has released; empty for others."""
        if owner is None:
            return ""
        if (owner.id, resource) in lock.departing:
            return UNTIL_MIGRATED
        held_back = self._manager.releaser.held_back
        return UNTIL_QEMU_ANSWERS if held_back is not None and held_back.has(owner, resource) else ""


def _is_own_file(owner_id: int, lock: HostLock) -> bool:
    return any(name.lockspace == HOST_LOCKSPACE for name in lock.claims.get(owner_id, ()))

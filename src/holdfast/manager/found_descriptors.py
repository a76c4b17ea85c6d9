"""Descriptors found at a restart that are in no line of the journal.

A descriptor from systemd's store, or from a re-exec, still has its lock: closing it would free the disk of a VM that may
run. So it is held for an unknown owner (`unknown_locks`); the kernel knows which file it is open on, and in which mode it is
locked.
"""

from __future__ import annotations

import logging

from holdfast.backends.base import HeldElsewhere, KeepsDescriptors, Recognized, SavedLock, Stale
from holdfast.errors import LockError
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.owners import Evidence
from holdfast.system.files.ofd_lock import IoFailed, LockedFile, locked_file, path_of_descriptor
from holdfast.system.files.storage_executor import Storage

log = logging.getLogger(__name__)


class FoundDescriptors:
    """Holds found descriptors, each through the backend of its lock file."""

    def __init__(self, manager: LockManager, *, storage: Storage) -> None:
        self._manager = manager
        self._storage = storage

    async def hold(self, lock_id: int, fd: int, doubt: str) -> bool:
        """False if the descriptor has no lock, so that it may be closed."""
        path = path_of_descriptor(fd)
        try:
            found = await self._storage.call(path, lambda: locked_file(fd, path))
            if found is None:
                return False
            for name, backend in list(self._manager.backends.items()):
                if isinstance(backend, KeepsDescriptors):
                    known = await self._storage.call(path, lambda b=backend: b.recognize(fd, path))  # type: ignore[misc]
                    if known is not None and await self._held(name, lock_id, fd, found, known, doubt):
                        return True
        except LockError as e:
            log.critical("kept descriptor %d, on %s, stays open as it is: %s", lock_id, path, e)
            return True
        log.critical(
            "kept descriptor %d, on %s, is of no configured backend; it stays open as it is", lock_id, path
        )
        return True

    async def _held(
        self, backend: str, lock_id: int, fd: int, found: LockedFile, known: Recognized, doubt: str
    ) -> bool:
        saved = SavedLock(
            resource=known.resource, mode=found.mode, create=known.create, path=found.path, keys=(found.key,)
        )
        held = await self._manager.backends[backend].adopt(saved, fd)
        if isinstance(held, HeldElsewhere | Stale | IoFailed):
            log.critical("kept descriptor %d, on %s, can't be used any more: %s", lock_id, found.path, held)
            return True
        self._manager.unknown.hold(
            backend=backend,
            held=held,
            resource=known.resource,
            mode=found.mode,
            keys=(found.key,),
            name=known.noted.owner,
            evidence=Evidence(
                why=f"{doubt or 'the journal has no line about it'}; kept descriptor {lock_id}",
                process=known.noted.process,
                disk=known.noted.disk,
            ),
            lock_id=lock_id,
        )
        return True

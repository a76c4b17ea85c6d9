"""Taking out leases that nobody holds.

A host's own leases are free to itself on storage, so what this daemon holds is known from the lock table alone: a lease
is tried only while no lock has it, and with the turn on its key, so that no start of this host comes between.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from holdfast.backends.paxos import PaxosBackend, key_of_lease
from holdfast.errors import LockError, Refused
from holdfast.manager.lock_manager import LockManager
from holdfast.system.file_lock import FileKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """One lease: taken out (or would be), or why it stays."""

    backend: str
    name: str
    kept_because: str


class LeaseCollector:
    """See the module."""

    def __init__(self, manager: LockManager) -> None:
        self._manager = manager

    async def collect(self, *, dry_run: bool) -> list[Collected]:
        """Of every backend with leases; raises a `LockError` if there is none, or it can't be asked."""
        backends = [b for b in self._manager.backends.values() if isinstance(b, PaxosBackend)]
        if not backends:
            raise Refused(reason='no backend has leases (driver = "paxos")')
        collected: list[Collected] = []
        for backend in backends:
            names = await backend.upkeep.lease_names()
            # One after the other: this is nobody's hurry.
            collected += [Collected(backend.name, n, await self._one(backend, n, dry_run)) for n in names]
        out = sum(not each.kept_because for each in collected)
        log.info("leases: %d of %d %s", out, len(collected), "could be taken out" if dry_run else "taken out")
        return collected

    async def free_left_behind(self, backends: Collection[str]) -> None:
        """After a term of an earlier daemon is gone on with: free what that daemon had and nobody here has."""
        for backend in self._manager.backends.values():
            if not isinstance(backend, PaxosBackend) or backend.name not in backends:
                continue
            try:
                await backend.upkeep.free_own()
                names = await backend.upkeep.lease_names()
            except LockError as e:
                log.warning("leases that may have been left behind can't be looked for: %s", e)
                continue
            for name in names:
                await self._free(backend, name)

    async def _free(self, backend: PaxosBackend, name: str) -> None:
        manager = self._manager
        key = key_of_lease(backend.presence.name, name)
        if self._in_use(key):
            return
        try:
            if await manager.turns.during((key,), backend.upkeep.free_left_behind(name)):
                log.warning("lease %s was left behind by an earlier daemon; it is free now", name)
        except LockError as e:
            log.debug("lease %s: %s", name, e)

    async def _one(self, backend: PaxosBackend, name: str, dry_run: bool) -> str:
        manager = self._manager
        key = key_of_lease(backend.presence.name, name)
        if busy := self._in_use(key):
            return busy
        try:
            return await manager.turns.during((key,), backend.upkeep.take_out(name, dry_run=dry_run))
        except LockError as e:
            return str(e)

    def _in_use(self, key: FileKey) -> str:
        """Why nobody else of this host may try that lease now; empty if it may be tried."""
        if self._manager.table.of_lock_file(key) is not None:
            return "held here"
        return "being taken here" if self._manager.turns.taken(key) else ""

"""Taking out leases that nobody holds.

A host's own leases are free to itself on storage, so what this daemon holds is known from the lock table alone: a lease
is tried only while no lock has it, and with the turn on its key, so that no start of this host comes between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from holdfast.backends.paxos import PaxosBackend
from holdfast.errors import LockError, Refused, StorageFailed
from holdfast.manager.lock_manager import LockManager
from holdfast.supervision.presence import Absent
from holdfast.system import tasks
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
            upkeep = backend.upkeep
            # One after the other: this is nobody's hurry.
            for name in await upkeep.lease_names():
                taking = partial(upkeep.take_out, name, dry_run=dry_run)
                collected.append(Collected(backend.name, name, await self._one(backend, name, taking)))
            for stray in await upkeep.strays():
                taking = partial(upkeep.take_out_stray, stray, dry_run=dry_run)
                kept_because = await self._one(backend, stray.name, taking)
                shown = f"{stray.name} at {stray.offset_bytes}, which its name does not lead to"
                collected.append(Collected(backend.name, shown, kept_because))
        out = sum(not each.kept_because for each in collected)
        log.info("leases: %d of %d %s", out, len(collected), "could be taken out" if dry_run else "taken out")
        return collected

    def free_left_behind(self, backends: Collection[str]) -> None:
        """After a term of an earlier daemon is gone on with: free what that daemon had and nobody here has.

        As long as this host lives, nobody else may take that. So storage that fails is asked again, to the end of the term.
        """
        for backend in self._manager.backends.values():
            if isinstance(backend, PaxosBackend) and backend.name in backends:
                tasks.start(self._free_left_behind(backend))

    async def _free_left_behind(self, backend: PaxosBackend) -> None:
        term = backend.presence.membership()
        names: list[str] | None = None
        while names != [] and not isinstance(term, Absent):
            try:
                if names is None:
                    await backend.upkeep.free_own()
                    names = await backend.upkeep.lease_names()
                names = [name for name in names if not await self._freed(backend, name)]
            except StorageFailed as e:
                log.warning("leases that may have been left behind can't be looked for: %s; trying again", e)
            except LockError as e:
                log.warning("leases that may have been left behind can't be looked for: %s", e)
                return
            if names != []:
                await backend.ports.clock.sleep(2 * term.io_timeout_s)
                if self._manager.closing or backend.presence.membership() is not term:
                    return

    async def _freed(self, backend: PaxosBackend, name: str) -> bool:
        """Whether there is nothing left to do.  If not, storage fails, or did when this daemon wanted to take up what it
        found in the journal: should its owner end before it can be, nobody else gives it back.
        """
        key = backend.names.key(name)
        lock = self._manager.table.of_lock_file(key)
        if lock is not None or self._manager.turns.taken(key):
            return lock is not None and lock.held is not None
        try:
            if await self._manager.turns.during((key,), backend.upkeep.free_left_behind(name)):
                log.warning("lease %s was left behind by an earlier daemon; it is free now", name)
        except StorageFailed as e:
            log.warning("lease %s may have been left behind by an earlier daemon: %s; trying again", name, e)
            return False
        except LockError as e:
            log.debug("lease %s: %s", name, e)
        return True

    async def _one(
        self, backend: PaxosBackend, name: str, taking: Callable[[], Coroutine[Any, Any, str]]
    ) -> str:
        manager = self._manager
        key = backend.names.key(name)
        if busy := self._in_use(key):
            return busy
        try:
            return await manager.turns.during((key,), taking())
        except LockError as e:
            return str(e)

    def _in_use(self, key: FileKey) -> str:
        """Why nobody else of this host may try that lease now; empty if it may be tried."""
        if self._manager.table.of_lock_file(key) is not None:
            return "held here"
        return "being taken here" if self._manager.turns.taken(key) else ""

"""Locks that are claimed but not held: right after a restart, and as long as they can't be retaken.

They are in the table with their claims, so no other owner of this host gets them; `regain` takes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from holdfast.backends.base import (
    Backend,
    Held,
    HeldElsewhere,
    MayBeShared,
    OwnerNote,
    Rereadable,
    SavedLock,
    Stale,
)
from holdfast.errors import LockError, storage_failed
from holdfast.manager.holders import HolderDescriptions
from holdfast.manager.journal_replay import SavedClaims
from holdfast.manager.key_locks import KeyLocks
from holdfast.manager.lock_table import Lock, LockTable
from holdfast.model import Mode
from holdfast.system.files.ofd_lock import FileKey, IoFailed

DeadHolder = Callable[[Iterable[tuple[int, int]], str], int | None]


class LostLocks:
    """Retakes locks. `keep`: the descriptor store, if there is one. `dead_holder`: the pid of a daemon that was killed and
    whose lock on one of these files (device, inode) or on this path the kernel can't release yet; None if there is none.
    """

    def __init__(
        self,
        *,
        table: LockTable[Held],
        key_locks: KeyLocks,
        backends: Mapping[str, Backend],
        descriptions: HolderDescriptions,
        keep: Callable[[int, int | None], None] | None,
        dead_holder: DeadHolder = lambda _, __: None,
    ) -> None:
        self._dead_holder = dead_holder
        self._table = table
        self._key_locks = key_locks
        self._backends = backends
        self._descriptions = descriptions
        self._keep = keep
        self.on_regained: Callable[[Lock[Held]], None] = lambda _: None
        """Called with each lock that is held again."""

    def restore(self, saved: SavedClaims, owners: Iterable[int]) -> Lock[Held]:
        """A lock from the journal, claimed again but not yet held."""
        lock: Lock[Held] = Lock(
            lock_id=saved.id,
            backend=saved.backend,
            held=None,
            path=saved.path,
            create=saved.create,
            mode=saved.mode,
            keys=saved.keys,
            since_wall_s=saved.since_wall_s,
        )
        lock.lost_reason = "its lock is being retaken after a restart of the daemon"
        self._table.insert(lock)
        for owner_id in owners:
            for resource, mode in saved.claims[owner_id].items():
                self._table.claim(lock, owner_id, resource, mode)
        lock.departing = {claim for claim in saved.departing if claim[1] in lock.claims.get(claim[0], {})}
        lock.mode = max(m for names in lock.claims.values() for m in names.values())
        return lock

    async def reread(self, lock: Lock[Held]) -> str:
        """Mark a held lock as lost if storage does not show it as held; why, or empty if it does. Nothing is written."""
        return await self._key_locks.holding((lock,), self._reread(lock))

    async def _reread(self, lock: Lock[Held]) -> str:
        held = lock.held
        rereadable: object = held
        if held is None or not isinstance(rereadable, Rereadable):
            return ""
        why = await rereadable.why_not_held()
        if not why or lock.held is not held or not lock.claims:
            return ""
        held.forget()
        lock.held, lock.lost_reason, lock.lost_for_certain = None, why, False
        return why

    async def regain(self, lock: Lock[Held], fd: int | None = None) -> bool:
        """Hold a lost lock again, by the descriptor `fd` if it was kept. If that fails, `lock.lost_reason` says why."""
        return await self._key_locks.holding((lock,), self._regain(lock, fd))

    async def _regain(self, lock: Lock[Held], fd: int | None) -> bool:
        if lock.stands_for:
            return False
        backend = self._backends.get(lock.backend)
        if backend is None:
            lock.lost_reason = f"its backend '{lock.backend}' is no longer configured"
            return False
        saved = SavedLock(
            resource=next(lock.names()),
            mode=lock.mode,
            create=lock.create,
            path=lock.path,
            keys=tuple(FileKey(*k) for k in lock.keys),
        )
        dead = self._dead_holder(lock.keys, lock.path)  # before the attempt, as its lock may end during that
        try:
            outcome = await backend.adopt(saved, fd)
        except LockError as error:
            lock.lost_reason, lock.lost_for_certain = str(error), False
            return False
        if isinstance(outcome, HeldElsewhere) and dead is not None:
            reason = (
                f"an earlier daemon (pid {dead}) was killed, is stuck in storage that hangs, and still has it"
            )
            lock.lost_reason, lock.lost_for_certain = reason, False
        elif isinstance(outcome, HeldElsewhere):
            holders = "; ".join(str(h) for h in self._descriptions.with_programs(outcome.holders))
            lock.lost_reason, lock.lost_for_certain = f"it was taken by {holders}", True
        elif isinstance(outcome, Stale):
            lock.lost_reason, lock.lost_for_certain = "another file has its path now", False
        elif isinstance(outcome, IoFailed):
            lock.lost_reason, lock.lost_for_certain = str(storage_failed(outcome)), False
        elif not lock.claims:
            await outcome.release()  # its owners died meanwhile
        else:
            lock.held = outcome
            lock.lost_reason, lock.lost_for_certain = "", False
            self._is_as_held(lock)
            if self._keep is not None:
                self._keep(lock.id, outcome.descriptor())
            self.on_regained(lock)
        return lock.held is not None

    async def strengthen(self, lock: Lock[Held], note: OwnerNote) -> bool:
        """Try to make a held lock what its claims need (`MayBeWeaker`)."""

        async def work() -> bool:
            held = lock.held
            return held is not None and bool(lock.claims) and await held.convert(lock.mode, note) is None

        return await self._key_locks.holding((lock,), work())

    def _is_as_held(self, lock: Lock[Held]) -> None:
        """Gives claims the mode on storage: a cut journal or an interrupted conversion may claim more. An older journal may
        claim less: the one who has it alone shares it with nobody of this host.
        """
        held: object = lock.held
        if not isinstance(held, MayBeShared):
            return
        mode = Mode.SHARED if held.is_shared else Mode.EXCLUSIVE
        if mode is lock.mode or (mode is Mode.EXCLUSIVE and len(lock.claims) > 1):
            return
        lock.mode = mode
        for owner_id, names in lock.claims.items():
            for resource in list(names):
                self._table.claim(lock, owner_id, resource, mode)

    async def drop(self, lock: Lock[Held]) -> None:
        """Release a lock whose owners are all gone, without logging."""
        for owner_id in list(lock.claims):
            for resource in list(lock.claims[owner_id]):
                self._table.unclaim(lock, owner_id, resource)
        self._table.remove(lock)
        if self._keep is not None:
            self._keep(lock.id, None)
        if lock.held is not None:
            await lock.held.release()

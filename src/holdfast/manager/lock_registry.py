"""Applies each change of a lock to table, journal, descriptor store and event stream, in crash-safe order.

`journal` draws that order: a claim is recorded before it is reported, and its end before the lock is released. Locks that
were lost and are retaken are handled by `lost_locks`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping

import msgspec

from holdfast.backends.base import Backend, Held
from holdfast.errors import Refused
from holdfast.manager import events as ev
from holdfast.manager import journal_kinds as jn
from holdfast.manager.events import Events
from holdfast.manager.file_lockspaces import FileLockspaces
from holdfast.manager.journal import Journal
from holdfast.manager.journal_kinds import text_of
from holdfast.manager.journal_lines import (
    asked_line,
    claim_line,
    client_line,
    departing_line,
    hold_line,
    lent_line,
    lent_over_line,
    lock_line,
    owner_lines,
    persistent_line,
    unasked_line,
    unclaim_line,
    until_closed_line,
)
from holdfast.manager.lock_table import Key, Lock, LockTable, Unclaimed
from holdfast.manager.owners import NO_WISHES, Hold, Owner, Owners, Wishes
from holdfast.model import AcquireRequest, Mode, ProcessId, Resource
from holdfast.system.clock import Clock
from holdfast.system.host.process import Family

HostLock = Lock[Held]

log = logging.getLogger(__name__)

HAD_LOCKS_MAX = 20_000
"""Processes that are remembered to have had a lock; as many as owners."""


class LockRegistry:
    """Records locks. `keep` puts a lock's descriptor into the descriptor store, or removes it (None)."""

    def __init__(
        self,
        *,
        table: LockTable[Held],
        journal: Journal,
        events: Events,
        clock: Clock,
        keep: Callable[[int, int | None], None] | None,
    ) -> None:
        self._table = table
        self._journal = journal
        self._events = events
        self._clock = clock
        self._keep = keep
        self.incarnations: dict[str, str] = {}
        """This host's incarnations, by lockspace: the journal has a copy beside the locks that depend on them."""
        self.restarts: dict[str, dict[str, str]] = {}
        """By lockspace: UUIDs and names of domains that were stopped for its loss, to be started when it is joined."""
        self.lent: dict[tuple[int, Resource], tuple[Mode, bool]] = {}
        """By owner and name: what was let go for a migration that may fail; its mode, and whether a file was made for it."""
        self.added: dict[str, jn.SanlockLockspaceLine] = {}
        """By name, as in the journal: the lockspaces that clients of sanlock's protocol have added."""
        self._had_locks: dict[ProcessId, None] = {}
        self._unrecorded: set[int] = set()
        """Locks, by number, that were found held and could not be written into the journal since."""

    def had_locks(self, process: ProcessId | None) -> None:
        """Remember that this process has or had a lock here: it may get it back on a full disk."""
        if process is not None and process.start_ticks:
            self._had_locks.pop(process, None)
            self._had_locks[process] = None
            if len(self._had_locks) > HAD_LOCKS_MAX:
                del self._had_locks[next(iter(self._had_locks))]

    def remember(self, lockspace: str, state: str) -> None:
        """Write an incarnation to the journal; a failure is handled as any of the journal: it is written later."""
        self.incarnations[lockspace] = state
        self._journal.append_end(jn.IncarnationLine(lockspace, state))

    def lockspace_added(self, line: jn.SanlockLockspaceLine) -> None:
        """Record it for the next daemon; a failed write is repeated later."""
        self.added[line.name] = line
        self._journal.append_end(line)

    def lockspace_removed(self, name: str) -> None:
        """Record that the next daemon is not to join it. `name` as in its line."""
        if (line := self.added.pop(name, None)) is not None:
            self._journal.append_end(msgspec.structs.replace(line, stays=False))

    def owe_restart(self, lockspace: str, uuid: str, name: str) -> None:
        """Record that a domain is to be restarted, also by the next daemon; a failed write is repeated later."""
        self.restarts.setdefault(lockspace, {})[uuid] = name
        self._journal.append_end(jn.RestartLine(lockspace, uuid, text_of(name)))

    def restart_is_tried(self, lockspace: str, uuid: str) -> None:
        """Record that a restart was tried, with or without success."""
        name = self.restarts.get(lockspace, {}).pop(uuid, "")
        self._journal.append_end(jn.RestartLine(lockspace, uuid, text_of(name), owed=False))

    def restored(self, lock: HostLock, owner: Owner) -> None:
        """Add a held lock of the table, of an owner found after a restart, to descriptor store and journal."""
        if self._keep is not None and lock.held is not None:
            self._keep(lock.id, lock.held.descriptor())
        lines = [claim_line(lock, owner.id, name, mode) for name, mode in lock.claims[owner.id].items()]
        try:
            self._record(owner, lock_line(lock), *lines)
        except OSError:
            # It is held all the same; the journal reports that it can't be written, and is rewritten later.
            self._unrecorded.add(lock.id)

    def adopted(self, lock: HostLock, before: Owner, owner: Owner, resource: Resource) -> None:
        """An unknown owner's claims on a lock become one claim of `owner` under this name; the lock stays held.
        OSError: the journal can't be written, and nothing has changed.
        """
        strongest = max(lock.claims[before.id].values())
        self._write_what_is_missing(lock)
        self._record(owner, claim_line(lock, owner.id, resource, strongest))
        self._hand_over(lock, before, owner, {resource: strongest})

    def attributed(self, lock: HostLock, before: Owner, owner: Owner) -> None:
        """An unknown owner's claims on a lock become `owner`'s, unchanged."""
        self._hand_over(lock, before, owner, dict(lock.claims[before.id]))

    def started(self, lock: HostLock, before: Owner, owner: Owner) -> None:
        """The claims of a VM that was being started become those of its process, unchanged. The lock stays held, and the
        journal has the new claims before the old ones end.
        """
        self._hand_over(lock, before, owner, dict(lock.claims[before.id]), ev.STARTED)

    def registered(self, owner: Owner) -> None:
        """The owner is a client of sanlock's protocol: the next daemon knows its pid, also if it holds nothing."""
        if owner.registered:
            return
        owner.registered = True
        try:
            if owner.journaled:
                self._journal.append(client_line(owner))
            else:
                self._journal.append(*owner_lines(owner))
                owner.journaled = True
        except OSError as e:
            log.error("the journal can't record that %s is registered: %s", owner, e.strerror)

    def wishes(self, owner: Owner, wishes: Wishes) -> None:
        """How a registered client wants to be stopped: the next daemon knows that, too."""
        if owner.wishes != wishes:
            owner.wishes = wishes
            if owner.registered and owner.journaled:
                self._journal.append_end(client_line(owner))

    def no_more_registered(self, owner: Owner) -> None:
        if owner.registered:
            owner.registered, owner.wishes = False, NO_WISHES
            if owner.journaled:
                self._journal.append_end(jn.ClientLine(owner.id, stays=False))

    def holds(self, owner: Owner, client_id: int, resource: Resource, hold: Hold) -> None:
        """What a client's connection has of a lease, or is about to have: written before the claim that it is about, so that
        no claim is there without it. OSError: the journal can't be written, and nothing has changed.
        """
        if owner.holds.get((client_id, resource)) == hold:
            return
        line = hold_line(owner.id, client_id, resource, hold)
        if hold.stays:
            self._record(owner, line)
        elif owner.journaled:
            self._journal.append_end(line)
        owner.holds[client_id, resource] = hold

    def persists(self, owner: Owner, resource: Resource) -> None:
        """A client's lease is to outlive it. OSError: the journal can't be written, and nothing has changed."""
        if resource in owner.persistent:
            return
        self._record(owner, persistent_line(owner.id, resource))
        owner.persistent.add(resource)

    def persists_no_more(self, owner: Owner, resource: Resource) -> None:
        if resource in owner.persistent:
            owner.persistent.discard(resource)
            if owner.journaled:
                self._journal.append_end(persistent_line(owner.id, resource, stays=False))

    def orphaned(self, lock: HostLock, before: Owner, keeper: Owner) -> None:
        """An ended client's claims on a lock become those of a keeper of orphans; the lock stays held."""
        self._to_keeper_or_back(lock, before, keeper, ev.ORPHANED)

    def taken_up(self, lock: HostLock, keeper: Owner, owner: Owner) -> None:
        """A client has asked for an orphan: its claims are the client's now, and the lock stays held."""
        self._to_keeper_or_back(lock, keeper, owner, ev.ADOPTED)

    def _to_keeper_or_back(self, lock: HostLock, before: Owner, after: Owner, kind: str) -> None:
        claims = dict(lock.claims[before.id])
        after.persistent |= before.persistent & claims.keys()
        lines = [persistent_line(after.id, name) for name in claims if name in after.persistent]
        if after.journaled:
            self._journal.append_end(*lines)  # else they go with its own line
        self._hand_over(lock, before, after, claims, kind)
        for name in claims:
            self.persists_no_more(before, name)

    def _hand_over(
        self,
        lock: HostLock,
        before: Owner,
        owner: Owner,
        claims: dict[Resource, Mode],
        kind: str = ev.ADOPTED,
    ) -> None:
        old = list(lock.claims[before.id])
        for name, mode in claims.items():
            self._table.claim(lock, owner.id, name, mode)
        for name in old:
            self._table.unclaim(lock, before.id, name)
        try:
            self._record(owner, *(claim_line(lock, owner.id, name, mode) for name, mode in claims.items()))
        except OSError:
            pass  # the claim counts all the same; the journal is rewritten later
        self._journal.append_end(*(unclaim_line(lock, before.id, name) for name in old))
        for name, mode in claims.items():
            self._emit(kind, owner, name, mode)

    def wanted_by_hook(self, owner: Owner, wants: Mapping[Resource, Mode]) -> None:
        """libvirt's hook wants these held for an owner. OSError: the journal can't be written, and nothing has changed."""
        before = dict(owner.unasked)
        owner.unasked.update(wants)
        lines = [unasked_line(owner.id, *want) for want in wants.items()] if owner.journaled else []
        try:
            self._record(owner, *lines)
        except OSError:
            owner.unasked = before
            raise

    def asked(self, owner: Owner, resource: Resource) -> None:
        """libvirt asks for a disk of the hook, or has released it: from here on it follows libvirt."""
        if owner.unasked.pop(resource, None) is not None and owner.journaled:
            self._journal.append_end(asked_line(owner.id, resource))

    def enter(
        self, owner: Owner, want: AcquireRequest, backend: Backend, keys: tuple[Key, ...], held: Held
    ) -> None:
        """Enter a new lock with its first claim. OSError: the journal can't be written; nothing has changed."""
        lock: HostLock = Lock(
            lock_id=self._table.next_id(),
            backend=backend.name,
            held=held,
            path=held.path,
            create=held.create,
            mode=want.mode,
            keys=keys,
            since_wall_s=self._clock.wall(),
        )
        self._table.insert(lock)
        self._table.claim(lock, owner.id, want.resource, want.mode)
        if self._keep is not None:
            self._keep(lock.id, held.descriptor())
        try:
            self._record(owner, lock_line(lock), claim_line(lock, owner.id, want.resource, want.mode))
        except OSError:
            if self._keep is not None:
                self._keep(lock.id, None)
            self._table.unclaim(lock, owner.id, want.resource)
            self._table.remove(lock)
            raise
        self._emit(ev.ACQUIRED, owner, want.resource, want.mode)

    def claim(self, owner: Owner, want: AcquireRequest, lock: HostLock, *, converted: bool) -> None:
        """Add a claim, or change its mode. OSError: the journal can't be written; nothing has changed."""
        self._write_what_is_missing(lock)
        self._record(owner, claim_line(lock, owner.id, want.resource, want.mode))
        self._table.claim(lock, owner.id, want.resource, want.mode)
        lock.departing.discard((owner.id, want.resource))
        self._emit(ev.CONVERTED if converted else ev.ACQUIRED, owner, want.resource, want.mode)

    def unclaim(self, owner: Owner, lock: HostLock, resource: Resource) -> Unclaimed:
        """End a claim; with the last one the lock leaves the table, and the caller has to release it."""
        left = self._table.unclaim(lock, owner.id, resource)
        self._journal.append_end(unclaim_line(lock, owner.id, resource))
        self._emit(ev.RELEASED, owner, resource, lock.mode)
        if left.last:
            self._table.remove(lock)
            if self._keep is not None and lock.held is not None:
                self._keep(lock.id, None)
        return left

    def departs(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
        """A claim was released for a migration, and stays until that is over. If the journal can't be written, the next
        daemon treats it as not released.
        """
        lock.departing.add((owner.id, resource))
        self._journal.append_end(departing_line(lock, owner.id, resource))
        self._emit(ev.DEPARTING, owner, resource, lock.claims[owner.id][resource])

    def stayed(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
        """The guest of a departing claim continues here: it is a claim like any other again."""
        lock.departing.discard((owner.id, resource))
        mode = lock.claims[owner.id][resource]
        self._journal.append_end(claim_line(lock, owner.id, resource, mode))
        self._emit(ev.STAYED, owner, resource, mode)

    def lends(self, owner: Owner, lock: HostLock, resource: Resource) -> None:
        """Record a claim that is about to be released for a migration, and has to be taken back if the guest stays."""
        how = lock.claims[owner.id][resource], lock.create
        self.lent[owner.id, resource] = how
        self._journal.append_end(lent_line(owner.id, resource, *how))

    def lent_is_over(self, owner_id: int, resource: Resource) -> None:
        if self.lent.pop((owner_id, resource), None) is not None:
            self._journal.append_end(lent_over_line(owner_id, resource))

    def converted(self, lock: HostLock, mode: Mode) -> None:
        """Record that the lock itself is held in another mode now."""
        lock.mode = mode
        self._journal.append_end(jn.ModeLine(lock.id, int(mode)))

    def doubt_is_over(self) -> None:
        """Every lock of the placeholders has its own entry, or is over: the next daemon need not doubt the journal."""
        self._journal.compact()

    def until_closed(self, owner: Owner, family: Family | None) -> None:
        """From now on its locks outlive it until their disks are closed. Raises `Refused` if that can't be recorded."""
        owner.until_closed, owner.family = True, family
        if owner.journaled:
            try:
                self._journal.append(until_closed_line(owner))
            except OSError as e:
                owner.until_closed, owner.family = False, None
                raise Refused(reason=f"the journal can't be written: {e.strerror}") from e

    def needs(self, owner: Owner) -> bool:
        """Whether the owner holds a lock, is to hold one, may take back one that it lent, or is a registered client."""
        if owner.unasked or owner.registered or self._table.holds_any(owner.id):
            return True
        return any(owner_id == owner.id for owner_id, _ in self.lent)

    def owner_gone(self, owner: Owner) -> None:
        """Record that the owner holds nothing and has no connection any more."""
        for key in [key for key in self.lent if key[0] == owner.id]:
            del self.lent[key]
        if owner.journaled:
            owner.journaled = False
            self._journal.append_end(jn.OwnerGoneLine(owner.id))

    def lines(self, lockspaces: FileLockspaces, owners: Owners, *, everybody: bool) -> list[jn.Line]:
        """The whole state as lines, to rewrite the journal; `everybody`: also owners that hold nothing."""
        lines: list[jn.Line] = [
            jn.LockspaceLine(text_of(p), lockspaces.made_on_demand(p)) for p in lockspaces.known()
        ]
        lines.extend(jn.IncarnationLine(space, state) for space, state in self.incarnations.items())
        lines.extend(self.added.values())
        lines.extend(
            jn.RestartLine(space, uuid, text_of(name))
            for space, owed in self.restarts.items()
            for uuid, name in owed.items()
        )
        lines.extend(line for o in owners if everybody or o.journaled for line in owner_lines(o))
        for lock in self._table:
            if lock.stands_for:
                lines.append(jn.DoubtLine(text_of(lock.doubt)))
                continue
            lines.append(lock_line(lock))
            lines.extend(
                claim_line(lock, owner_id, resource, mode)
                for owner_id, names in lock.claims.items()
                for resource, mode in names.items()
            )
            lines.extend(departing_line(lock, *claim) for claim in sorted(lock.departing))
        lines.extend(lent_line(*key, *how) for key, how in self.lent.items())
        return lines

    def _write_what_is_missing(self, lock: HostLock) -> None:
        """A claim on a lock that is not in the journal is damage to the next daemon (found by seed 96001051)."""
        if lock.id in self._unrecorded:
            if not self._journal.compact():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._unrecorded.clear()

    def _record(self, owner: Owner, *lines: jn.Line) -> None:
        process = owner.process_id
        # A paused VM has released its locks: it gets back those that it had.
        urgent = process in self._had_locks
        if owner.journaled:
            self._journal.append(*lines, urgent=urgent)
        else:
            self._journal.append(*owner_lines(owner), *lines, urgent=urgent)
            owner.journaled = True
        self.had_locks(process)

    def _emit(self, kind: str, owner: Owner, resource: Resource, mode: Mode) -> None:
        self._events.emit(kind, owner.name, owner.pid, resource, mode)

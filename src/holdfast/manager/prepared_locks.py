"""Prepared locks: held for a VM that libvirt is about to start, before QEMU opens its disks.

libvirt's hook asks for all disks of a VM at `prepare` (`hook_operations`), when the VM has no process yet. So a *prepared
owner* holds them, for the VM's UUID and the libvirtd that starts it:

    prepare ─ prepared ─┬─ REGISTER for that UUID            ─ the claims of its QEMU: from here on as all others
                        ├─ `release` of that guest           ─ released
                        └─ that libvirtd has ended, no status file is of that UUID, and no process has the disk open
                                                             ─ released

A REGISTER moves the claims in one step, in table and journal: at no moment is a lock free. QEMU's end releases them, also
those that libvirt never asks for; a RELEASE before the first ACQUIRE releases one, as at any time. Where libvirt asks
for the hash of a path (`file_lockspace_dir`), the lock by the path is released when it has got the other one.

No process is stopped for a prepared lock: the VM runs no instruction before libvirt's ACQUIRE, which is refused when its
lockspace is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.backends.base import Held
from holdfast.backends.naming import indirect_name
from holdfast.manager.lock_registry import LockRegistry
from holdfast.manager.lock_table import LockTable
from holdfast.manager.owners import Owner, Owners
from holdfast.model import OwnerName, ProcessId, Resource
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.host.process import Process
from holdfast.system.libvirt.domains import DomainStatus

log = logging.getLogger(__name__)

STATUS_CHECK_S = 2.0
"""Between two reads of the status files after the end of a libvirtd: the next one of its VMs begins seconds later."""


class PreparedLocks:
    """The owners of VMs that are being started. `end` releases everything of an owner; `idle` forgets one that holds
    nothing. `domains` None: there are no status files.
    """

    def __init__(
        self,
        *,
        table: LockTable[Held],
        owners: Owners,
        book: LockRegistry,
        clock: Clock,
        domains: DomainStatus | None,
        end: Callable[[Owner], None],
        idle: Callable[[Owner], None],
        is_closing: Callable[[], bool],
    ) -> None:
        self._table = table
        self._owners = owners
        self._book = book
        self._clock = clock
        self._domains = domains
        self._end = end
        self._idle = idle
        self._is_closing = is_closing
        self._by_uuid: dict[str, list[Owner]] = {}
        """Those that may hold a lock, with those that have ended and whose disks are not closed yet."""
        self._libvirtds: dict[int, Process] = {}
        """By owner: the libvirtd that starts it, while it lives."""
        self._orphans: list[Owner] = []
        """Those whose libvirtd has ended."""

    def of(self, uuid: str) -> list[Owner]:
        """The prepared owners of that UUID, at most one of which has not ended."""
        found = [o for o in self._by_uuid.get(uuid, ()) if not o.gone or self._table.holds_any(o.id)]
        if found:
            self._by_uuid[uuid] = found
        else:
            self._by_uuid.pop(uuid, None)
        return found

    def begin(self, name: OwnerName, libvirtd: ProcessId) -> Owner:
        """A new prepared owner."""
        return self._add(self._owners.add_prepared(name, libvirtd))

    def restored(self, name: OwnerName, libvirtd: ProcessId, *, owner_id: int) -> Owner:
        """One from the journal of the last daemon."""
        return self._add(self._owners.add_prepared(name, libvirtd, owner_id=owner_id))

    def _add(self, owner: Owner) -> Owner:
        assert owner.prepared is not None
        self._by_uuid[owner.name.uuid] = [*self.of(owner.name.uuid), owner]
        process = self._owners.watched(owner.prepared, lambda: self._libvirtd_ended(owner))
        if process is not None:
            self._libvirtds[owner.id] = process
        else:
            self._libvirtd_ended(owner)
        return owner

    def started(self, owner: Owner) -> bool:
        """A process has registered for a UUID: what was prepared for that is its own now. Whether anything was."""
        if owner.prepared is not None or owner.unknown is not None or owner.name.uuid not in self._by_uuid:
            return False
        done = False
        for prepared in self.of(owner.name.uuid):
            if prepared.unasked:
                try:
                    self._book.wanted_by_hook(owner, prepared.unasked)
                except OSError as e:  # it counts all the same; the journal is rewritten later
                    log.warning("what libvirt never asks for of %s is not in the journal: %s", owner, e)
                    owner.unasked.update(prepared.unasked)
            for lock in self._table.of_owner(prepared.id):
                self._book.started(lock, prepared, owner)
                done = True
            prepared.unasked = {}
            self._forget(prepared)
        return done

    def asked(self, owner: Owner, resource: Resource) -> list[Resource]:
        """libvirt was granted this for an owner: what was prepared under another name of the disk, and is to be released."""
        self._book.asked(owner, resource)
        if not resource.lockspace:
            return []
        same = [each for each in owner.unasked if indirect_name(each.name) == resource.name]
        for each in same:
            self._book.asked(owner, each)
        return same

    def release(self, uuid: str, libvirtd: ProcessId) -> None:
        """libvirt says that nothing of that guest runs: release what was prepared, by this libvirtd or by one that ended."""
        for owner in self.of(uuid):
            if not owner.gone and (owner.prepared == libvirtd or not self._lives(owner)):
                self.abandon(owner)

    def abandon(self, owner: Owner) -> None:
        """Its start came to nothing, and no QEMU of it runs."""
        self._end(owner)
        self._forget(owner)

    def give_up(self, owner: Owner) -> None:
        """Nothing is known of its start any more: each lock is released when no process has the disk open."""
        owner.until_closed = True
        self._end(owner)
        self._forget(owner)

    def _forget(self, owner: Owner) -> None:
        if not owner.gone:
            self._idle(owner)
        if owner.gone and (process := self._libvirtds.pop(owner.id, None)) is not None:
            process.close()
        self.of(owner.name.uuid)

    def _lives(self, owner: Owner) -> bool:
        process = self._libvirtds.get(owner.id)
        return process is not None and process.alive()

    def _libvirtd_ended(self, owner: Owner) -> None:
        self._orphans.append(owner)
        if len(self._orphans) == 1:
            eager_tasks.start(self._wait_for_ends())

    async def _wait_for_ends(self) -> None:
        """Give up each whose UUID has no status file either: if it has a QEMU, that has the disk open."""
        while self._orphans:
            # Also before the first round: the start of this daemon, which adopts locks, may be under way.
            await self._clock.sleep(STATUS_CHECK_S)
            if self._is_closing():
                return
            there = {each.uuid for each in self._domains.running()} if self._domains is not None else set()
            for owner in [each for each in self._orphans if not each.gone and each.name.uuid not in there]:
                self.give_up(owner)
            self._orphans = [each for each in self._orphans if not each.gone]

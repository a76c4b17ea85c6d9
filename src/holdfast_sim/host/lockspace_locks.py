"""The host-wide locks of lockspaces in the simulator: one table per boot of a machine, shared by its daemons.

A lock belongs to a process and is free when that has ended. One that is passed to the next program, by number, stays held.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from dataclasses import dataclass

from holdfast.system.files.daemon_lock import InUse
from holdfast.system.files.regular_file import Unreadable
from holdfast.system.host.predecessor import Predecessors
from holdfast_sim.event_loop import Process


@dataclass(eq=False)
class Entry:
    """The lock and the record of one lockspace."""

    number: int
    owner: Process | None = None
    passed: bool = False
    """Whether the owner has executed its next program with it."""
    carrier: Process | None = None
    """That program, from its start until it adopts the lock: its end ends the lock."""
    raw: bytes = b""

    @property
    def is_carried(self) -> bool:
        return self.passed and (self.carrier is None or self.carrier.alive)


class HostTable:
    """The equivalent of `/run/holdfast/lockspaces` on a real host; lost at a reset, as all of /run."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.full = False
        """Whether its file system is full."""

    def entry(self, lockspace: str) -> Entry:
        return self._entries.setdefault(lockspace, Entry(len(self._entries) + 1))

    def names(self, lockspace: str, directory: str) -> bool:
        """Whether the record names a daemon with this directory."""
        return directory.encode() in self.entry(lockspace).raw

    def executed(self, process: Process, passed: Collection[int]) -> None:
        """The process executes its next program, which gets these descriptors; the kernel closes all others."""
        for entry in self._entries.values():
            if entry.owner is process:
                entry.passed = entry.number in passed
                entry.owner, entry.carrier = (process if entry.passed else None), None

    def started(self, process: Process, passed: Collection[int]) -> None:
        """The next program has begun, with these descriptors."""
        for entry in self._entries.values():
            if entry.number in passed:
                entry.carrier = process

    def drop(self, number: int) -> None:
        for entry in self._entries.values():
            if entry.number == number:
                entry.owner, entry.passed = None, False


class TableLocks:
    """`SpaceLocks` of one process. `lingers`: whether the kernel still has requests of an ended process."""

    def __init__(self, table: HostTable, process: Process, lingers: Callable[[Process], bool]) -> None:
        self._table = table
        self._process = process
        self._lingers = lingers

    def of(self, lockspace: str, passed: int = -1) -> TableLock:
        entry = self._table.entry(lockspace)
        if passed == entry.number:
            entry.owner, entry.passed = self._process, False
        return TableLock(self._table, entry, lockspace, self._process, self._lingers)

    def drop(self, passed: int) -> None:
        self._table.drop(passed)


class TableLock:
    """`SpaceLock` of one process."""

    def __init__(
        self,
        table: HostTable,
        entry: Entry,
        lockspace: str,
        process: Process,
        lingers: Callable[[Process], bool],
    ) -> None:
        self._lingers = lingers
        self._table = table
        self._entry = entry
        self._process = process
        self.path = f"/run/holdfast/lockspaces/{lockspace}/users.json"

    @property
    def held(self) -> bool:
        return self._entry.owner is self._process

    def descriptor(self) -> int | None:
        return self._entry.number if self.held else None

    def lock(self, *, patient: bool) -> Predecessors:
        if self.holder():
            raise InUse(self.holder())
        self._entry.owner = self._process
        return Predecessors()

    def unlock(self) -> None:
        if self.held:
            self._entry.owner = None

    def holder(self) -> int:
        owner = self._entry.owner
        if owner is None or owner is self._process:
            return 0
        return int(owner.alive or self._entry.is_carried or self._lingers(owner))

    def read(self) -> bytes | Unreadable:
        return self._entry.raw or Unreadable("it is not there", missing=True)

    def replace(self, raw: bytes) -> None:
        if raw and self._table.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._entry.raw = raw

"""Owners: the processes that hold locks, and the check whether they live.

An owner is always one process: its pid is pinned by a pidfd, and its start time identifies it across daemon restarts. Any
number of connections may speak for it. An owner whose process is not visible (it is in another PID namespace, or has ended
before libvirtd speaks for it) lives as long as a connection that registered it; libvirt leaves one open in QEMU for QEMU's
whole life.

A *prepared* owner is a VM that libvirt is about to start, and has no process yet (`prepared_locks`): it is found by its
UUID, and lives until a process registers for it, or its start is over.

A client of sanlock's protocol is its connection, which descendants may keep open: while one is open, the end of the process
is no end of the owner. Leases that are to outlive their client are kept by an *orphan keeper*, which has no process.

An *unknown* owner represents one that a damaged or lost journal no longer names. Nothing is concluded from the absence of
its process: it lives until `unknown_locks` has proven that it is over.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.model import Mode, OwnerName, ProcessId, Resource
from holdfast.system.host.process import Family, Process, Processes

BEING_STARTED = "being started"
"""What is said of a VM whose locks are prepared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The remaining facts about an owner that could not be attributed."""

    why: str
    """What could not be read, for people."""
    process: ProcessId | None = None
    """The process that a note, a record or a journal line names; start_ticks 0: only its pid is known."""
    disk: str = ""
    """What the owner calls its disk; empty if that is not known."""
    unseen: bool = False
    """Whether it ran where this daemon sees no processes (another PID namespace): nothing here proves its end."""
    may_persist: bool = False
    """Whether its lock may be one that outlives its process: an orphan of a client of sanlock's."""


class Wishes(NamedTuple):
    """What a client of sanlock's protocol has asked for, in case its leases have to end: which signals it must not get (bits
    of RESTRICT), and a command that is to be run instead (KILLPATH; its flags, path and arguments).
    """

    restricted: int = 0
    killpath_flags: int = 0
    killpath: str = ""
    arguments: str = ""


NO_WISHES = Wishes()


class Hold(NamedTuple):
    """What one connection of a client of sanlock's protocol has of a lease of its process. `request`: the number of the
    command that acquired or released it (`stays` False), or is about to.
    """

    request: int
    stays: bool = True
    value_block: bool = False
    was_orphan: bool = False
    path: str = ""
    """Of the lock that is released: where a release that was cut short can be made up for."""


NO_HOLD = Hold(0)
"""Of a lease that an earlier release has granted, which recorded none."""


class Owner:
    """One owner. `connections` counts open ones that registered it; `unknown` is set for an unknown one."""

    __slots__ = (
        "clients",
        "connections",
        "family",
        "gone",
        "holds",
        "id",
        "journaled",
        "keeps_orphans",
        "name",
        "persistent",
        "pid",
        "prepared",
        "process",
        "registered",
        "stopping",
        "unasked",
        "unknown",
        "until_closed",
        "wishes",
    )

    def __init__(self, owner_id: int, pid: int, name: OwnerName, process: Process | None) -> None:
        self.id = owner_id
        self.pid = pid
        self.name = name
        self.process = process
        self.connections = 0
        self.journaled = False
        self.stopping = ""
        """Why we are ending its process; empty if we are not."""
        self.gone = False
        self.unknown: Evidence | None = None
        self.prepared: ProcessId | None = None
        """Of a VM that is being started, and has no process of its own yet: the libvirtd that starts it."""
        self.unasked: dict[Resource, Mode] = {}
        """What the hook wants held for it, and libvirt has not asked for yet (`unasked_disks`)."""
        self.until_closed = False
        """It keeps locks for its descendants: when it has ended, each stays until no process has that disk open."""

        self.clients = 0
        """Open connections of sanlock's clients among them: descendants of the process may keep one open."""
        self.registered = False
        """It is a client of sanlock's protocol, also if an earlier daemon had its connection."""
        self.wishes = NO_WISHES
        """How it wants to be stopped, as a client of sanlock's protocol."""
        self.persistent: set[Resource] = set()
        """What stays held when its client ends without releasing it (`client_leases`)."""
        self.holds: dict[tuple[int, Resource], Hold] = {}
        """By client id and lease: which of its connections has what, as a client of sanlock's protocol."""
        self.keeps_orphans = False
        """It stands for clients that have ended, and keeps what they held persistently."""

        self.family: Family | None = None
        """The processes that it keeps locks for, where they have a control group of their own."""

    def signal(self, number: int) -> None:
        """Signal its process, if visible, and all processes for which it keeps locks, also after its own end."""
        alive = self.process is not None and self.alive()
        # The kernel kills a whole group at once: nobody forks away from that.
        if self.family is not None and (number == signal.SIGKILL or not alive):
            self.family.signal(number)
        if self.process is not None and alive:
            self.process.signal(number, tree=self.until_closed)

    def alive(self) -> bool:
        if self.gone:
            return False
        if self.unknown is not None or self.prepared is not None:
            return True  # until its end is proven, which ends the owner
        if self.clients or self.keeps_orphans:
            return True
        return self.process.alive() if self.process is not None else self.connections > 0

    @property
    def process_id(self) -> ProcessId:
        if self.unknown is not None:
            return self.unknown.process or ProcessId(self.pid, 0)
        return self.process.id if self.process is not None else ProcessId(self.pid, 0)

    def __str__(self) -> str:
        if self.unknown is not None:
            named = f"{self.name.name}, " if self.name.name else ""
            return f"{named}unknown owner ({self.unknown.why})"
        if self.prepared is not None:
            return f"{self.name.name} ({BEING_STARTED} by process {self.prepared.pid})"
        if self.keeps_orphans:
            return f"{self.name.name or 'unnamed owner'} (ended; its leases are orphans)"
        return f"{self.name.name or 'unnamed owner'} (pid {self.pid})"


class Owners:
    """Every owner that holds a lock or has a connection."""

    def __init__(self, processes: Processes, on_exit: Callable[[Owner], None]) -> None:
        self._processes = processes
        self._on_exit = on_exit
        self._by_pid: dict[int, Owner] = {}
        self._by_id: dict[int, Owner] = {}
        self._last_id = 0

    def __iter__(self) -> Iterator[Owner]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, owner_id: int) -> Owner | None:
        return self._by_id.get(owner_id)

    def with_pid(self, pid: int) -> Owner | None:
        return self._by_pid.get(pid)

    def find(self, pid: int, name: OwnerName) -> Owner:
        """The owner with this pid; a new one is added."""
        owner = self._by_pid.get(pid)
        if owner is not None and owner.process is not None:
            if owner.process.alive():
                # It pins the pid: no other process can have it.
                owner.name = name
                return owner
            self._on_exit(owner)  # the pid is free for another process; the report of its end is still queued
            owner = None
        process = self._processes.open(pid)
        if owner is not None:
            if process is None:
                owner.name = name
                return owner
            self._on_exit(owner)  # the invisible owner with that pid was another process
        return self.add(pid, name, process)

    def reserve(self, numbers: Iterable[int]) -> None:
        """Don't use these numbers for new owners: the journal has them until it is rewritten."""
        self._last_id = max(self._last_id, *numbers, 0)

    def add(self, pid: int, name: OwnerName, process: Process | None, *, owner_id: int = 0) -> Owner:
        """Add an owner; `owner_id` is its old number if it comes from the journal."""
        owner_id = self._number(owner_id)
        owner = Owner(owner_id, pid, name, process)
        self._by_pid[pid] = owner
        self._by_id[owner_id] = owner
        if process is not None:
            process.watch(lambda: self._on_exit(owner))
        return owner

    def add_unknown(self, name: OwnerName, evidence: Evidence, *, owner_id: int = 0) -> Owner:
        """Add an unknown owner. It is not found by its pid, as another process may have that by now."""
        owner = Owner(self._number(owner_id), evidence.process.pid if evidence.process else 0, name, None)
        self.keep_unknown(owner, evidence)
        return owner

    def add_prepared(self, name: OwnerName, libvirtd: ProcessId, *, owner_id: int = 0) -> Owner:
        """Add a VM that is being started. Its pid is 0: the process that starts it is not the VM's, and gets no signal."""
        owner = Owner(self._number(owner_id), 0, name, None)
        owner.prepared = libvirtd
        self._by_id[owner.id] = owner
        return owner

    def add_orphan_keeper(self, name: OwnerName, *, owner_id: int = 0) -> Owner:
        """Add the keeper of what a client held persistently that has ended. Its pid is 0: no signal is for it."""
        owner = Owner(self._number(owner_id), 0, name, None)
        owner.keeps_orphans = True
        self._by_id[owner.id] = owner
        return owner

    def _number(self, owner_id: int) -> int:
        """A new owner's number, or the old one if it comes from the journal."""
        if not owner_id:
            self._last_id += 1
            owner_id = self._last_id
        self._last_id = max(self._last_id, owner_id)
        return owner_id

    def keep_unknown(self, owner: Owner, evidence: Evidence) -> None:
        owner.unknown = evidence
        self._by_id[owner.id] = owner

    def known_process(self, process: ProcessId, name: OwnerName) -> Owner | None:
        """The owner of exactly this process; a new one is added; None if the process has ended."""
        owner = self._by_pid.get(process.pid)
        if owner is not None and owner.process_id == process:
            return owner
        found = self._processes.open(process.pid)
        if found is None or found.id != process:
            if found is not None:
                found.close()
            return None
        return self.add(process.pid, name, found)

    def watched(self, process: ProcessId, on_exit: Callable[[], None]) -> Process | None:
        """Exactly this process, pinned, with `on_exit` called once at its end; None if it has ended."""
        found = self._processes.open(process.pid)
        if found is not None and found.id != process:
            found.close()
            found = None
        if found is not None:
            found.watch(on_exit)
        return found

    def process_lives(self, process: ProcessId) -> bool:
        """Whether that process lives; with start_ticks 0, whether any process has its pid."""
        found = self._processes.open(process.pid)
        if found is None:
            return False
        try:
            return not process.start_ticks or found.id == process
        finally:
            found.close()

    def program(self, pid: int) -> str:
        return self._processes.program(pid)

    def family(self, path: str) -> Family | None:
        return self._processes.family(path) if path else None

    def forget(self, owner: Owner) -> None:
        """Remove an owner that holds nothing and has no connection."""
        self._by_id.pop(owner.id, None)
        if self._by_pid.get(owner.pid) is owner:
            del self._by_pid[owner.pid]
        if owner.process is not None:
            owner.process.close()

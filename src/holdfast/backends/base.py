"""What a backend is: the way a lock is held, behind one small protocol.

Taking a lock has two steps, because only opening tells *which disk* a name means:

    candidate = await backend.open(resource, create=…)     which file or lease is that?  (keys)
    …the manager compares keys with what this host already holds, and reserves them…
    outcome   = await candidate.take(mode, note)           Held | HeldElsewhere | Moved | IoFailed

A `Held` lock is converted, released, or, after a restart of the daemon, adopted again from what the
journal kept of it.  Everything may wait for storage and must not block the event loop.
Failures of storage are answers (`IoFailed`), exceptions are for bugs.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from holdfast.model import Holder, Mode, OwnerName, ProcessId, Protection, Resource
from holdfast.protocol.ports import Rng
from holdfast.supervision.lockspace_port import LockspacePort, WatchdogSpec
from holdfast.supervision.lockspace_supervisor import LockspaceSpec
from holdfast.system.block_io.lease_files import LeaseStorage
from holdfast.system.clock import Clock
from holdfast.system.files.disk_identity import DiskIdentities
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.ofd_lock import FileKey, IoFailed, LockFiles
from holdfast.system.files.storage_executor import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do at best; what a lock is worth on a given disk is `Backend.protection`."""

    cross_host: bool
    shared_mode: bool
    converts: bool
    survives_restart: bool
    """A held lock can be taken over by the next daemon through a descriptor or `adopt`."""
    fenced: bool
    names_foreign_holders: bool


class OwnerNote(NamedTuple):
    """What a backend may write beside a lock, so that others can name the owner."""

    owner: OwnerName
    pid: int
    start_ticks: int = 0
    """Start time of that process (`ProcessId`); 0 if it is not known."""


@dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """Somebody outside this daemon holds it: another host, or another program on this one."""

    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class Stale:
    """The name led to another file by the time the lock was taken: open again."""


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """Storage says that this host holds it, and this process never took it: an earlier daemon did, for some owner."""

    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLock:
    """What the journal keeps of a held lock; enough for `adopt`."""

    resource: Resource
    mode: Mode
    create: bool
    path: str
    keys: tuple[FileKey, ...]


class Creation(enum.Enum):
    """Whether the file of a lock may be made when it is not there."""

    NONE = "none"
    LASTING = "lasting"
    """Made once, never removed: the key file of a `<lease>`."""
    TEMPORARY = "temporary"
    """Made for the lock and removed with it: indirect lock files."""


class Held(Protocol):
    """A lock that this host holds."""

    path: str
    """What is locked, for people and the journal."""
    create: bool
    """Whether the lock's file was made for the lock and goes with it."""

    def descriptor(self) -> int | None:
        """The descriptor that carries the lock over exec and in a descriptor store; None if there is none."""

    async def convert(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | IoFailed | None:
        """Make it shared or exclusive without ever letting go; None when done, else it is as it was."""

    async def release(self) -> None:
        """Let go.  Never fails: what can't be tidied is logged."""

    def release_nowait(self) -> bool:
        """The same without a wait; False, and nothing done, if there may be one."""

    def forget(self) -> None:
        """Drop what this process has of it without tidying: the daemon ends, the lock may live on."""


TakeOutcome = Held | HeldElsewhere | Stale | LeftBehind | IoFailed


class Candidate(Protocol):
    """A lock that could be taken: its file is open, nothing is locked yet."""

    keys: tuple[FileKey, ...]
    """Of the lock first, then of the disk behind it; two resources with a common key are one disk."""

    async def take(self, mode: Mode, note: OwnerNote) -> TakeOutcome: ...

    async def abandon(self) -> None:
        """Close without locking."""


class Backend(Protocol):
    """A configured way to hold locks."""

    name: str
    capabilities: Capabilities

    async def open(self, resource: Resource, *, create: Creation) -> Candidate | IoFailed: ...

    def take_nowait(self, resource: Resource, mode: Mode) -> tuple[tuple[FileKey, ...], Held] | None:
        """The candidate's keys and the lock, if no storage has to be waited for and nobody is in the way.

        Else None, and nothing has changed: `open` and `take` then tell why.  For drivers that mostly can: their
        requests need neither turns nor coroutines (ADR 0007).  All others answer None.
        """

    async def adopt(self, saved: SavedLock, fd: int | None) -> Held | HeldElsewhere | Stale | IoFailed:
        """Hold again what the daemon held before: by its descriptor if that was kept, else by taking it anew."""

    def protection(self, path: str) -> tuple[Protection, str]:
        """What a lock on this path (a `Held.path`) is worth, and why it is not more, with the fix."""

    def lock_path(self, resource: Resource) -> str:
        """What would be locked for this resource, for people; empty if nothing."""


NOBODY = OwnerName("")


class NotedOwner(NamedTuple):
    """What stands beside a lock about its owner; unknown facts are None and empty."""

    process: ProcessId | None = None
    """Of this host; start_ticks 0 where only the pid is noted."""
    owner: OwnerName = NOBODY
    disk: str = ""
    """What the owner calls its disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """What a backend can say of one of its lock files by the file alone; unknown facts are None and empty."""

    resource: Resource
    create: bool
    noted: NotedOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftFile:
    """A lock file that names an owner of this host; another one may hold it now."""

    path: str
    key: FileKey
    resource: Resource
    mode: Mode
    noted: NotedOwner


@runtime_checkable
class KeepsDescriptors(Protocol):
    """A backend whose locks live in descriptors that a descriptor store can keep."""

    def recognize(self, fd: int, path: str) -> Recognized | None:
        """What an open lock file of this backend is for; None if it is none of them. May block on its file system."""

    async def left_files(self) -> list[LeftFile]:
        """The lock files with a record of this host; none where disks themselves are locked, or storage doesn't tell."""


@runtime_checkable
class MayBeShared(Protocol):
    """A held lock that may be held shared, whatever a journal says."""

    @property
    def is_shared(self) -> bool: ...


@runtime_checkable
class MayHaveSharers(Protocol):
    """A held lock that an earlier daemon may have won, and never asked for whether other hosts share it."""

    @property
    def sharers_unasked(self) -> bool: ...

    async def ask_sharers(self) -> None:
        """Clears `sharers_unasked` if it is proven that no living host shares it."""


@runtime_checkable
class Rereadable(Protocol):
    """A held lock that stands on storage, where others may have overwritten it."""

    async def why_not_held(self) -> str:
        """Why storage does not say any more that this host holds it; empty if it does, or if storage is silent."""


@runtime_checkable
class MayBeLost(Protocol):
    """A backend whose locks are all lost together, with their lockspace."""

    @property
    def lost(self) -> str:
        """Why its locks guard nothing now; empty if they do."""


@runtime_checkable
class NotesOwner(Protocol):
    """A held lock whose owner stands beside it, in a lease's note or in an owner record."""

    async def noted_owner(self) -> NotedOwner: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePorts:
    """What drivers need whose locks are leases."""

    lockspace: Callable[[LockspaceSpec, str, WatchdogSpec], LockspacePort]
    """Have this host in a lockspace, for the backend of that name; ValueError if another one wants it otherwise."""
    storage: Callable[[str], LeaseStorage]
    """Storage for the leases of a lockspace, with workers of its own."""
    identities: DiskIdentities
    rng: Rng
    spawn: Callable[[Coroutine[Any, Any, Any]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPorts:
    """What the composition root gives to every driver."""

    files: LockFiles
    storage: Storage
    mounts: MountTable
    clock: Clock
    host: str
    leases: LeasePorts | None = None


Driver = Callable[[str, Mapping[str, object], BackendPorts], Backend]
"""name, the table of [backend.NAME] without `driver`, ports -> backend; raises `ConfigError`-like ValueError."""


class KeyNotKnown(ValueError):
    """A key of a backend's table that its driver does not have."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        super().__init__(reason)


def unknown_keys(table: Mapping[str, object], known: Sequence[str]) -> None:
    """Raises ValueError for a key that the driver doesn't have."""
    for key in table:
        if key not in known:
            allowed = ", ".join(known) or "none besides driver"
            raise KeyNotKnown(key, f"unknown key '{key}'; this driver knows: {allowed}")

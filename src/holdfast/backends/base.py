"""The `Backend` protocol: a way to hold locks.

Taking a lock has two steps, because only opening shows *which disk* a name means:

    candidate = await backend.open(resource, create=…)     which file or lease is that?  (keys)
    …the manager compares keys with what this host already holds, and reserves them…
    outcome   = await candidate.take(mode, note)           Held | HeldElsewhere | Moved | IoFailed

A `Held` lock is converted, released, or, after a restart of the daemon, adopted from its journal entry. Methods run on
the event loop and must not block it; coroutines may wait for storage. Failures of storage are returned (`IoFailed`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

from holdfast.backends.lvm.host_volumes import HostVolumes
from holdfast.model import Holder, Mode, OwnerName, ProcessId, Protection, Resource
from holdfast.protocol.ports import Rng
from holdfast.supervision.lockspace_port import LockspacePort, LockspaceSpec, WatchdogSpec
from holdfast.system.block_io.lease_files import LeaseStorage
from holdfast.system.clock import Clock
from holdfast.system.files.disk_identity import DiskIdentities
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.ofd_lock import FileKey, IoFailed, LockFiles
from holdfast.system.files.storage_executor import Storage

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do at best; `Backend.protection` returns what a lock on a given disk is worth."""

    cross_host: bool
    shared_mode: bool
    converts: bool
    survives_restart: bool
    """A held lock can be taken over by the next daemon through a descriptor or `adopt`."""
    fenced: bool
    names_foreign_holders: bool
    by_path_alone: bool = False
    """It refuses a name in a lockspace that stands for one of its disks, rather than have that locked by another backend."""


class OwnerNote(NamedTuple):
    """The owner's details that a backend may write beside a lock, so that others can name it."""

    owner: OwnerName
    pid: int
    start_ticks: int = 0
    """Start time of that process (`ProcessId`); 0 if it is not known."""
    libvirtd: int = 0
    """The pid of the libvirtd that starts it, for a VM that has no process yet."""
    persists: bool = False
    """Whether the lock outlives that process, as an orphan of a client of sanlock's."""


@dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """The lock is held outside this daemon: by another host, or by another program on this one."""

    holders: tuple[Holder, ...]
    cause: object = field(default=None, compare=False)
    """The protocol's refusal, if a protocol has refused it; the frontend of that protocol's clients needs to know which."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The name led to another file by the time the lock was taken: the caller opens it again."""


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """By storage this host holds it, and this process never took it: an earlier daemon did, for some owner."""

    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLock:
    """The journal's record of a held lock; enough for `adopt`."""

    resource: Resource
    mode: Mode
    create: bool
    path: str
    keys: tuple[FileKey, ...]


class Creation(enum.Enum):
    """Whether a missing lock file may be made."""

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
        """Make it shared or exclusive without releasing it; None when done, else it is unchanged."""

    async def release(self) -> None:
        """Release the lock. Never fails: what can't be cleaned up is logged."""

    def release_nowait(self) -> bool:
        """Release the lock without waiting; False, with nothing done, if that could block."""

    def forget(self) -> None:
        """Close what this process has of it without cleaning up: the daemon ends, the lock may live on."""


TakeOutcome = Held | HeldElsewhere | Stale | LeftBehind | IoFailed


class Candidate(Protocol):
    """A lock that could be taken: its file or lease is known, nothing is locked yet."""

    keys: tuple[FileKey, ...]
    """First the key of the lock, then of the disk; two resources with a common key are one disk."""

    async def take(self, mode: Mode, note: OwnerNote) -> TakeOutcome: ...

    async def abandon(self) -> None:
        """Close without locking."""


class Backend(Protocol):
    """A configured way to hold locks."""

    name: str
    capabilities: Capabilities

    async def open(self, resource: Resource, *, create: Creation) -> Candidate | IoFailed: ...

    def take_nowait(self, resource: Resource, mode: Mode) -> tuple[tuple[FileKey, ...], Held] | None:
        """The candidate's keys and the lock, if that needs no wait for storage and there is no other holder.

        Else None, and nothing has changed: `open` and `take` then return why. For drivers that usually need no wait: their
        requests need neither key locks nor coroutines (ADR 0007). All others return None.
        """

    async def adopt(self, saved: SavedLock, fd: int | None) -> Held | HeldElsewhere | Stale | IoFailed:
        """Hold again what an earlier daemon held: by its descriptor `fd` if that was kept, else by taking it again."""

    def protection(self, path: str) -> tuple[Protection, str]:
        """What a lock on this path (a `Held.path`) is worth, and why it is not more, with the fix."""

    def lock_path(self, resource: Resource) -> str:
        """The file or lease that would be locked for this resource, as shown to people; empty if none."""


NOBODY = OwnerName("")


class NotedOwner(NamedTuple):
    """The record of its owner beside a lock; unknown facts are None or empty."""

    process: ProcessId | None = None
    """Of this host; start_ticks 0 where only the pid is noted."""
    owner: OwnerName = NOBODY
    disk: str = ""
    """What the owner calls its disk."""
    may_persist: bool = False
    """Whether the lock may be one that outlives that process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """What a backend knows of one of its lock files from the file alone; unknown facts are None or empty."""

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
        """What an open lock file of this backend is for; None for any other file. May block on its file system."""

    async def left_files(self) -> list[LeftFile]:
        """The lock files with a record of this host; empty where disks themselves are locked, or storage fails."""


@runtime_checkable
class LocksIdentities(Protocol):
    """A backend that may have a second lock for a disk, by what it is on every host (ADR 0197)."""

    async def identity(self, resource: Resource) -> Resource | None:
        """What the disk at a path is, as a resource; None if its lock does not reach other hosts, or if it has no name that
        is the same on all of them. May wait for the storage of the disk.
        """


@runtime_checkable
class MayBeWeaker(Protocol):
    """A held lock that may be less than its claims need. What there is of it is kept, and `convert` tries for the rest."""

    weaker: str
    """Why it is less; empty if it is not."""


def why_weaker(held: object) -> str:
    """Why a held lock is less than its claims need; empty if it is not."""
    return held.weaker if isinstance(held, MayBeWeaker) else ""


@runtime_checkable
class MayBeShared(Protocol):
    """A held lock that knows whether it is shared; it may be, whatever a journal says."""

    @property
    def is_shared(self) -> bool: ...


@runtime_checkable
class MayHaveSharers(Protocol):
    """A held lock that an earlier daemon may have won without checking whether other hosts share it."""

    @property
    def sharers_unasked(self) -> bool: ...

    async def ask_sharers(self) -> None:
        """Clears `sharers_unasked` if it is proven that no living host shares it."""


@runtime_checkable
class Rereadable(Protocol):
    """A held lock on storage, where others may have overwritten it."""

    async def why_not_held(self) -> str:
        """Why storage does not show this host as holder any more; empty if it does, or if storage is silent."""


@runtime_checkable
class MayBeLost(Protocol):
    """A backend whose locks are all lost together, with their lockspace."""

    @property
    def lost(self) -> str:
        """Why its locks protect nothing now; empty if they do."""


@runtime_checkable
class KnowsWriters(Protocol):
    """A held lock that other hosts may share during a migration: this host having it does not show who may write (ADR 0216).
    It stays this host's over a RELEASE, so it is never lent.
    """

    async def ask_again(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | IoFailed | None:
        """An owner asks for what it claims already, or joins the others: None if it may write now."""

    def owner_left(self, note: OwnerNote) -> None:
        """The last claim of an owner on it has ended, or came to nothing; does not wait, and never fails."""


@runtime_checkable
class RefusesNew(Protocol):
    """A held lock that depends on more of this host than its storage, such as a watchdog that is armed."""

    def refuses_new(self) -> str:
        """Why no owner more may depend on it, although it is held; empty if one may."""


def knows_writers(held: object) -> TypeGuard[KnowsWriters]:
    """As isinstance, which takes microseconds for a protocol; this is asked at each release."""
    known = _KNOW_WRITERS.get(type(held))
    if known is None:
        known = _KNOW_WRITERS[type(held)] = isinstance(held, KnowsWriters)
    return known


_KNOW_WRITERS: dict[type, bool] = {}
"""By class of held locks: each is asked once."""


@runtime_checkable
class NotesOwner(Protocol):
    """A held lock with its owner recorded beside it, in a lease's note or in an owner record."""

    async def noted_owner(self) -> NotedOwner: ...


@dataclass(slots=True)
class Turn(Generic[T]):
    """One user at a time of a thing that this host has one of, whichever backend wants it."""

    user: T | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePorts:
    """Ports for drivers whose locks are leases."""

    lockspace: Callable[[LockspaceSpec, str, WatchdogSpec], LockspacePort]
    """Have this host in a lockspace, for the backend of that name; ValueError if another one wants it otherwise."""
    storage: Callable[[str], LeaseStorage]
    """Storage for the leases of a lockspace, with workers of its own."""
    identities: DiskIdentities
    rng: Rng
    spawn: Callable[[Coroutine[Any, Any, Any]], object]
    turns: dict[str, Turn[Any]] = field(default_factory=dict)
    """By lockspace: who changes its resource index. Two backends may name one lockspace, under two names of one device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPorts:
    """The ports that the composition root passes to every driver."""

    files: LockFiles
    storage: Storage
    mounts: MountTable
    clock: Clock
    host: str
    leases: LeasePorts | None = None
    identities: DiskIdentities | None = None
    """For drivers whose locks reach other hosts and are not leases; None where nothing is locked."""
    volumes: HostVolumes | None = None
    """For driver lvm; None where nothing is locked."""


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

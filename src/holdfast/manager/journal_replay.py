"""Replays a journal: its lines give the saved state, and a description of any damage.

Pure: bytes to values. A journal that was damaged, cut inside an append or written by another version is recognized
(`SavedState.is_whole`); it may prove that a lock was held, never that none is.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from holdfast.manager.journal_extent import what_is_missing
from holdfast.manager.journal_kinds import (
    VERSION,
    AnyLine,
    AskedLine,
    ClaimLine,
    ClientLine,
    DepartingLine,
    DoubtLine,
    HoldLine,
    IncarnationLine,
    LentLine,
    LentOverLine,
    LockLine,
    LockspaceLine,
    ModeLine,
    OrphansLine,
    OwnerGoneLine,
    OwnerLine,
    PersistentLine,
    PreparedLine,
    RestartLine,
    SanlockLockspaceLine,
    SeriesLine,
    StartLine,
    SumLine,
    UnaskedLine,
    UnclaimLine,
    UnknownLine,
    UntilClosedLine,
    path_of,
)
from holdfast.manager.owners import NO_WISHES, Hold, Wishes
from holdfast.model import Mode, OwnerName, ProcessId, Resource
from holdfast.system.files.ofd_lock import FileKey

_decoder: msgspec.json.Decoder[AnyLine] = msgspec.json.Decoder(AnyLine)


@dataclass(slots=True)
class SavedOwner:
    id: int
    process: ProcessId
    name: OwnerName
    until_closed: bool = False
    family: str = ""
    prepared: ProcessId | None = None
    """The libvirtd that was about to start it, for a VM without a process."""
    unasked: dict[Resource, Mode] = field(default_factory=dict)
    """What only the hook has asked for so far."""
    persistent: set[Resource] = field(default_factory=set)
    """What is to outlive it, for a client of sanlock's protocol."""
    keeps_orphans: bool = False
    registered: bool = False
    """As a client of sanlock's protocol."""
    wishes: Wishes = NO_WISHES
    holds: dict[tuple[int, Resource], Hold] = field(default_factory=dict)
    """By client id and lease: what each of its connections has of it, or had."""


@dataclass(slots=True)
class SavedClaims:
    """A lock with its claims, from the journal."""

    id: int
    backend: str
    path: str
    create: bool
    mode: Mode
    keys: tuple[FileKey, ...]
    since_wall_s: float
    claims: dict[int, dict[Resource, Mode]] = field(default_factory=dict)
    departing: set[tuple[int, Resource]] = field(default_factory=set)
    last_name: Resource | None = None
    """Of the claim that has ended last."""


class EndedLock(NamedTuple):
    """A lock whose end was recorded: its last name, and where it was. Storage may not have its end."""

    backend: str
    name: Resource | None
    path: str


@dataclass(slots=True)
class SavedState:
    """The state from a journal; `damage` names what could not be read or does not fit its checksum."""

    boot: str = ""
    host: str = ""
    lockspaces: dict[str, bool] = field(default_factory=dict)
    owners: dict[int, SavedOwner] = field(default_factory=dict)
    locks: dict[int, SavedClaims] = field(default_factory=dict)
    incarnations: dict[str, bytes] = field(default_factory=dict)
    """By lockspace: the content of its state file."""
    added: dict[str, SanlockLockspaceLine] = field(default_factory=dict)
    """By name: the lockspaces that clients of sanlock's protocol have added."""
    restarts: dict[str, dict[str, str]] = field(default_factory=dict)
    """By lockspace: UUIDs and names of domains that are to be started when it is joined."""
    unknown: dict[int, UnknownLine] = field(default_factory=dict)
    """By owner: why it could not be attributed."""
    lent: dict[tuple[int, Resource], tuple[Mode, bool]] = field(default_factory=dict)
    """By owner and name: what was let go for a migration that may fail; its mode, and whether a file was made for it."""
    ended: set[int] = field(default_factory=set)
    """Locks whose end was recorded: the daemon was about to let go of them, or had."""
    ended_keys: dict[FileKey, set[ProcessId]] = field(default_factory=dict)
    """The lock files or leases of those, and whose claims on them have ended."""
    ended_locks: dict[FileKey, EndedLock] = field(default_factory=dict)
    """What these locks were."""
    ended_claims: dict[int, set[ProcessId]] = field(default_factory=dict)
    """By lock: whose claims on it have ended so far."""
    lock_of_key: dict[FileKey, int] = field(default_factory=dict)
    """Which lock has a lock file or lease: one at a time."""
    series: int = 0
    """Which rewriting it is (`SeriesLine`); 0 if it doesn't say."""
    lines: int = 0
    damage: str = ""
    carried_doubt: str = ""
    """Why the journal before this one was not whole, if not all was accounted for when this one was written."""

    @property
    def is_whole(self) -> bool:
        """Whether it names a boot and every line could be read. Else unknown lines are missing."""
        return bool(self.boot) and not self.damage and not self.carried_doubt

    @property
    def doubt(self) -> str:
        """Why it is not whole; empty if it is."""
        if self.damage:
            return f"the journal is damaged: {self.damage}"
        if self.carried_doubt:
            return self.carried_doubt
        return "" if self.boot else "the journal is missing"


def replay(raw: bytes) -> SavedState:
    """The state that a journal's bytes lead to.  Never raises: `damage` names the first line that can't be read."""
    state = SavedState()
    crc, unsummed, has_sums = 0, 0, False
    for text in raw.split(b"\n"):
        if not text:
            continue
        state.lines += 1
        try:
            line = _decoder.decode(text)
            if isinstance(line, SumLine):
                if line.crc != crc and not state.damage:
                    state.damage = f"the checksum in line {state.lines} is not that of the lines before it"
                crc, unsummed, has_sums = 0, 0, True
                continue
            _apply(state, line)
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError, RecursionError) as e:
            state.damage = state.damage or f"line {state.lines}: {e}"
        crc, unsummed = zlib.crc32(text + b"\n", crc), unsummed + 1
    if raw and not raw.endswith(b"\n") and not state.damage:
        state.damage = f"its last line, {state.lines}, was cut"
    if has_sums and unsummed and not state.damage:
        state.damage = f"its last {unsummed} lines have no checksum: an append was cut"
    for lock_id in [i for i, lock in state.locks.items() if not lock.claims]:
        _end(state, lock_id)
    return state


def replay_with_extent(raw: bytes, record: bytes) -> SavedState:
    """As `replay`, and a journal that is shorter than the extent beside it counts as damaged."""
    state = replay(raw)
    if state.boot and not state.damage:
        state.damage = what_is_missing(state.boot, state.series, len(raw), record)
    return state


def _end(state: SavedState, lock_id: int) -> None:
    lock = state.locks.pop(lock_id)
    state.ended.add(lock_id)
    for key in lock.keys[:1]:
        state.ended_keys[key] = state.ended_claims.pop(lock_id, set())
        state.ended_locks[key] = EndedLock(lock.backend, lock.last_name, lock.path)


def _claim_ended(state: SavedState, lock: SavedClaims, owner_id: int) -> None:
    owner = state.owners.get(owner_id)
    names = lock.claims.pop(owner_id, None)
    lock.last_name = next(iter(names or ()), lock.last_name)
    if names is not None and owner is not None:
        state.ended_claims.setdefault(lock.id, set()).add(owner.process)


def _unclaim(state: SavedState, line: UnclaimLine) -> None:
    if (lock := state.locks.get(line.lock)) is None:
        return
    names = lock.claims.get(line.owner, {})
    lock.last_name = Resource(path_of(line.lockspace), path_of(line.name))
    names.pop(lock.last_name, None)
    if not names:
        _claim_ended(state, lock, line.owner)
    if not lock.claims:
        _end(state, line.lock)


def _lock(state: SavedState, line: LockLine) -> None:
    keys = tuple(FileKey(*key) for key in line.keys)
    for file in keys[:1]:
        state.ended_keys.pop(file, None)
        state.ended_locks.pop(file, None)
        # This lock was taken, so an earlier lock of the same file is over, although its end can't be read.
        if (earlier := state.lock_of_key.get(file, line.id)) != line.id:
            state.locks.pop(earlier, None)
        state.lock_of_key[file] = line.id
    state.locks[line.id] = SavedClaims(
        line.id, line.backend, path_of(line.path), line.create, Mode(line.mode), keys, line.since
    )


def _restart(state: SavedState, line: RestartLine) -> None:
    owing = state.restarts.setdefault(line.lockspace, {})
    owing.pop(line.uuid, None)
    if line.owed:
        owing[line.uuid] = path_of(line.name)


def _added(state: SavedState, line: SanlockLockspaceLine) -> None:
    state.added.pop(line.name, None)
    if line.stays:
        state.added[line.name] = line


def _apply(state: SavedState, line: AnyLine) -> None:
    match line:
        case StartLine(version, boot, host):
            if version != VERSION:
                raise ValueError(f"journal version {version}, this program knows {VERSION}")
            state.boot, state.host = boot, host
        case LockspaceLine(path, on_demand):
            state.lockspaces[path_of(path)] = on_demand
        case OwnerLine(owner_id, pid, start, name, uuid, domain_id):
            state.owners[owner_id] = SavedOwner(
                owner_id, ProcessId(pid, start), OwnerName(path_of(name), uuid, domain_id)
            )
        case (
            UntilClosedLine()
            | PreparedLine()
            | UnaskedLine()
            | AskedLine()
            | PersistentLine()
            | OrphansLine()
            | ClientLine()
            | HoldLine()
        ):
            _apply_to_owner(state.owners[line.owner], line)
        case OwnerGoneLine(owner_id):
            for lock in state.locks.values():
                _claim_ended(state, lock, owner_id)
            state.owners.pop(owner_id, None)
            state.lent = {key: how for key, how in state.lent.items() if key[0] != owner_id}
        case LockLine():
            _lock(state, line)
        case ClaimLine(lock_id, owner_id, lockspace, name, mode):
            resource = Resource(path_of(lockspace), path_of(name))
            lock = state.locks[lock_id]
            lock.claims.setdefault(owner_id, {})[resource] = Mode(mode)
            lock.departing.discard((owner_id, resource))
        case DepartingLine() | LentLine() | LentOverLine():
            _apply_migration(state, line)
        case UnclaimLine():
            _unclaim(state, line)
        case ModeLine(lock_id, mode):
            if lock_id in state.locks:
                state.locks[lock_id].mode = Mode(mode)
        case IncarnationLine(lockspace, incarnation):
            state.incarnations[lockspace] = incarnation.encode()
        case UnknownLine(owner_id):
            state.unknown[owner_id] = line
        case RestartLine():
            _restart(state, line)
        case SanlockLockspaceLine():
            _added(state, line)
        case SeriesLine(series):
            state.series = series
        case DoubtLine(why):
            state.carried_doubt = path_of(why)
        case SumLine():
            pass  # `replay` has compared it


def _apply_to_owner(
    owner: SavedOwner,
    line: UntilClosedLine
    | PreparedLine
    | UnaskedLine
    | AskedLine
    | PersistentLine
    | OrphansLine
    | ClientLine
    | HoldLine,
) -> None:
    match line:
        case UntilClosedLine(_, family):
            owner.until_closed, owner.family = True, path_of(family)
        case PreparedLine(_, pid, start):
            owner.prepared = ProcessId(pid, start)
        case UnaskedLine(_, lockspace, name, mode):
            owner.unasked[Resource(path_of(lockspace), path_of(name))] = Mode(mode)
        case AskedLine(_, lockspace, name):
            owner.unasked.pop(Resource(path_of(lockspace), path_of(name)), None)
        case PersistentLine(_, lockspace, name, stays):
            resource = Resource(path_of(lockspace), path_of(name))
            (owner.persistent.add if stays else owner.persistent.discard)(resource)
        case OrphansLine():
            owner.keeps_orphans = True
        case ClientLine(_, stays, restricted, flags, killpath, arguments):
            owner.registered = stays
            owner.wishes = Wishes(restricted, flags, path_of(killpath), path_of(arguments))
        case HoldLine(_, client_id, lockspace, name):
            resource = Resource(path_of(lockspace), path_of(name))
            owner.holds[client_id, resource] = Hold(
                line.request, line.stays, line.value_block, line.was_orphan, path_of(line.path)
            )


def _apply_migration(state: SavedState, line: DepartingLine | LentLine | LentOverLine) -> None:
    resource = Resource(path_of(line.lockspace), path_of(line.name))
    match line:
        case DepartingLine(lock_id, owner_id):
            if lock_id in state.locks and resource in state.locks[lock_id].claims.get(owner_id, {}):
                state.locks[lock_id].departing.add((owner_id, resource))
        case LentLine(owner_id, mode=mode, create=create):
            state.lent[owner_id, resource] = Mode(mode), create
        case LentOverLine(owner_id):
            state.lent.pop((owner_id, resource), None)

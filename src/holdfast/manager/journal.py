"""The journal: who owns what, written before it is answered, so that the next daemon knows.

One JSON array per line in RUN_DIR/journal: a kind, then its fields in order.  Replaying the lines gives the state;
when the file has grown well past the state, it is rewritten.  A claim is recorded after its
lock is taken and before the client is told; its end is recorded before the lock is let go.  So whatever moment the daemon
is killed at, the journal claims nothing that a client was told is free, and misses
nothing that a client was told it has:

    take lock │ journal "claim" │ answer            killed before the answer: nobody was told
    journal "unclaim" │ let go  │ answer            killed before it: the kernel lets go anyway

The first line names the boot: owners of another boot are dead.

Each append ends with a checksum of its lines, so that a journal that was damaged, cut inside an append or written by
another version is recognized (`SavedState.is_whole`). Such a journal proves that somebody held something; it never
proves that nobody does. VERSION stays 1 and new facts are new kinds of lines, because an older daemon skips a kind that
it does not know, but takes another version for an earlier boot and frees everything.
"""

from __future__ import annotations

import errno
import logging
import urllib.parse
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from holdfast.manager.journal_extent import Extent, decode_extent, encode_extent, what_is_missing
from holdfast.model import Mode, OwnerName, ProcessId, Resource
from holdfast.system.append_file import AppendFile
from holdfast.system.file_lock import FileKey
from holdfast.system.fixed_record import FixedRecord

log = logging.getLogger(__name__)

VERSION = 1
COMPACT_LINES_MIN = 4096
"""Lines that are always allowed: below this, rewriting saves nothing worth having."""
COMPACT_FACTOR = 4
"""Rewrite when there are this many times more lines than the state needs: amortised, four writes a line."""


class Line(msgspec.Struct, array_like=True, tag_field="kind"):
    pass


class StartLine(Line, tag="start"):
    version: int
    boot: str
    host: str


class LockspaceLine(Line, tag="lockspace"):
    path: str
    on_demand: bool


class OwnerLine(Line, tag="owner"):
    id: int
    pid: int
    start: int
    name: str
    uuid: str
    domain_id: int


class OwnerGoneLine(Line, tag="gone"):
    id: int


class UntilClosedLine(Line, tag="until-closed"):
    """This owner keeps locks for its descendants, in a control group if it has one: each lock outlives it until none of
    them lives and no process has that disk open.
    """

    owner: int
    family: str


class LockLine(Line, tag="lock"):
    id: int
    backend: str
    path: str
    create: bool
    mode: int
    keys: tuple[tuple[int, int], ...]
    since: float


class ClaimLine(Line, tag="claim"):
    lock: int
    owner: int
    lockspace: str
    name: str
    mode: int


class UnclaimLine(Line, tag="unclaim"):
    lock: int
    owner: int
    lockspace: str
    name: str


class DepartingLine(Line, tag="departing"):
    """The RELEASE of this claim was answered and held back (ADR 0180): it stands until a migration is over, or until a
    further line claims or ends it. An older daemon keeps the claim, and doubts the journal.
    """

    lock: int
    owner: int
    lockspace: str
    name: str


class LentLine(Line, tag="lent"):
    """This owner let go of a name for a migration whose target asks once (ADR 0180); it is taken back if the guest stays."""

    owner: int
    lockspace: str
    name: str
    mode: int
    create: bool


class LentOverLine(Line, tag="lent-over"):
    """That migration is over."""

    owner: int
    lockspace: str
    name: str


class ModeLine(Line, tag="mode"):
    lock: int
    mode: int


class SumLine(Line, tag="sum"):
    """Checksum (zlib.crc32) of the bytes of all lines since the previous one of this kind; written by every append."""

    crc: int


class IncarnationLine(Line, tag="incarnation"):
    """This host's incarnation in a lockspace: one more copy of its state file, beside the locks that depend on it."""

    lockspace: str
    state: str


class UnknownLine(Line, tag="unknown"):
    """The owner of that number is unknown: `why` says what could not be read."""

    owner: int
    why: str
    unseen: bool = False


class SeriesLine(Line, tag="series"):
    """Which rewriting of the journal this is, counted from 1; its length is kept beside it (`journal_extent`)."""

    series: int


class RestartLine(Line, tag="restart"):
    """A domain that was stopped for a lost lockspace, to be started when that is joined; `owed` False: it was tried."""

    lockspace: str
    uuid: str
    name: str
    owed: bool = True


class DoubtLine(Line, tag="doubt"):
    """Locks may be held that no line names: the journal before this one was not whole, and not all is accounted for yet."""

    why: str


AnyLine = (
    StartLine
    | LockspaceLine
    | OwnerLine
    | UntilClosedLine
    | OwnerGoneLine
    | LockLine
    | ClaimLine
    | UnclaimLine
    | DepartingLine
    | LentLine
    | LentOverLine
    | ModeLine
    | SumLine
    | IncarnationLine
    | UnknownLine
    | SeriesLine
    | RestartLine
    | DoubtLine
)


def _encode_lines(lines: Sequence[Line]) -> bytes:
    raw = _encoder.encode_lines(lines)
    return b'%b["sum",%d]\n' % (raw, zlib.crc32(raw))


_FIRST = b'["sum",0]\n'
"""The first line: so a journal without any other checksum is seen to be cut. An older daemon wrote none at all."""
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyLine] = msgspec.json.Decoder(AnyLine)


@dataclass(slots=True)
class SavedOwner:
    id: int
    process: ProcessId
    name: OwnerName
    until_closed: bool = False
    family: str = ""


@dataclass(slots=True)
class SavedClaims:
    """A lock as the journal has it."""

    id: int
    backend: str
    path: str
    create: bool
    mode: Mode
    keys: tuple[FileKey, ...]
    since_wall_s: float
    claims: dict[int, dict[Resource, Mode]] = field(default_factory=dict)
    departing: set[tuple[int, Resource]] = field(default_factory=set)


@dataclass(slots=True)
class SavedState:
    """Everything that a journal says; `damage` names what could not be read or does not fit its checksum."""

    boot: str = ""
    host: str = ""
    lockspaces: dict[str, bool] = field(default_factory=dict)
    owners: dict[int, SavedOwner] = field(default_factory=dict)
    locks: dict[int, SavedClaims] = field(default_factory=dict)
    incarnations: dict[str, bytes] = field(default_factory=dict)
    """By lockspace: the content of its state file."""
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
        """Whether it names a boot and every line could be read. Else something is missing, nobody knows what."""
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
    """As `replay`, with the extent that is kept beside the journal: one that lacks something by that is damaged."""
    state = replay(raw)
    if state.boot and not state.damage:
        state.damage = what_is_missing(state.boot, state.series, len(raw), record)
    return state


def _end(state: SavedState, lock_id: int) -> None:
    lock = state.locks.pop(lock_id)
    state.ended.add(lock_id)
    for key in lock.keys[:1]:
        state.ended_keys[key] = state.ended_claims.pop(lock_id, set())


def _claim_ended(state: SavedState, lock: SavedClaims, owner_id: int) -> None:
    owner = state.owners.get(owner_id)
    if lock.claims.pop(owner_id, None) is not None and owner is not None:
        state.ended_claims.setdefault(lock.id, set()).add(owner.process)


def _lock(state: SavedState, line: LockLine) -> None:
    keys = tuple(FileKey(*key) for key in line.keys)
    for file in keys[:1]:
        state.ended_keys.pop(file, None)
        # It was taken for this lock, so an earlier one of it is over, although its end can't be read.
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
        case UntilClosedLine(owner_id, family):
            state.owners[owner_id].until_closed = True
            state.owners[owner_id].family = path_of(family)
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
        case UnclaimLine(lock_id, owner_id, lockspace, name):
            if lock_id not in state.locks:
                return
            lock = state.locks[lock_id]
            names = lock.claims.get(owner_id, {})
            names.pop(Resource(path_of(lockspace), path_of(name)), None)
            if not names:
                _claim_ended(state, lock, owner_id)
            if not lock.claims:
                _end(state, lock_id)
        case ModeLine(lock_id, mode):
            if lock_id in state.locks:
                state.locks[lock_id].mode = Mode(mode)
        case IncarnationLine(lockspace, told):
            state.incarnations[lockspace] = told.encode()
        case UnknownLine(owner_id):
            state.unknown[owner_id] = line
        case RestartLine():
            _restart(state, line)
        case SeriesLine(series):
            state.series = series
        case DoubtLine(why):
            state.carried_doubt = path_of(why)
        case SumLine():
            pass  # `replay` has compared it


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


def text_of(path: str) -> str:
    """Paths are bytes, JSON is text: whatever is not plain ASCII is percent-encoded."""
    if path.isascii() and "%" not in path:
        return path
    return urllib.parse.quote(path, safe="/ :;,=+@~()[]{}!$&'*#?|<>", errors="surrogateescape")


def path_of(text: str) -> str:
    return urllib.parse.unquote(text, errors="surrogateescape") if "%" in text else text


class Journal:
    """Appends lines, and rewrites the file from `snapshot` when it has outgrown the state. ``extent``: where it is kept how
    far the file goes; without one, a journal that lost its end may look whole.
    """

    def __init__(
        self,
        file: AppendFile,
        *,
        boot: str,
        host: str,
        snapshot: Callable[[], list[Line]],
        extent: FixedRecord | None = None,
    ) -> None:
        self._file = file
        self._start = StartLine(VERSION, boot, host)
        self._snapshot = snapshot
        self._extent = extent
        self._series = 0
        """0 while no extent is kept."""
        self._last_series = 0
        self._lines = 0
        self._lines_max = COMPACT_LINES_MIN
        self._failed_bytes = 0
        self._is_cut = False
        self.failing = ""
        """Why the journal cannot be written at the moment; empty if it can."""

    def load(self) -> SavedState:
        """What the last daemon left; the file itself is kept until `compact`."""
        record = self._extent.read() if self._extent is not None else b""
        kept = decode_extent(record)
        try:
            raw = self._file.read()
        except OSError as e:
            # As `holdfast status` shows it, until a line could be written.
            self.failing = e.strerror or str(e)
            return SavedState(damage=f"it can't be read: {self.failing}")
        # What is appended behind a line that was cut, should rewriting fail, must not become part of it.
        self._is_cut = bool(raw) and not raw.endswith(b"\n")
        state = replay_with_extent(raw, record)
        self._last_series = max(state.series, kept.series if kept is not None else 0)
        return state

    def append(self, *lines: Line) -> None:
        """Record lines, all or none; raises OSError.

        The file is rewritten, if it is time, *before* the lines: what they tell may not be in the snapshot yet.
        It may also be there already, so replaying a line twice, or an end of what is gone, must do no harm.
        """
        if self._lines > self._lines_max:
            self.compact()
        raw = _encode_lines(lines)
        try:
            try:
                self._file.append(b"\n" + raw if self._is_cut else raw)
            except OSError as full:
                self._make_room(full)
                self._file.append(raw)
        except OSError as e:
            if not self.failing:
                log.error("the journal can't be written: %s; no new lock is granted until it can", e)
            self.failing = e.strerror or str(e)
            is_full = e.errno in (errno.ENOSPC, errno.EDQUOT)
            self._failed_bytes = len(raw) if is_full else 0  # a shorter line may still fit a full disk
            raise
        self._is_cut = False
        if self.failing and len(raw) >= self._failed_bytes:
            log.warning("the journal can be written again")
            self.failing = ""
        self._lines += len(lines) + 1
        self._record_extent()

    def _record_extent(self) -> None:
        if self._series and self._extent is not None:
            try:
                self._extent.write(
                    encode_extent(Extent(self._start.boot, self._series, self._file.size_bytes))
                )
            except OSError as e:
                # The journal goes further than it, which is right; only a lost end would not be seen.
                log.error("how far the journal goes can't be recorded: %s", e)
                self._series = 0

    def _make_room(self, full: OSError) -> None:
        before = self._file.size_bytes
        self.compact()
        if self._file.size_bytes >= before:
            raise full

    def append_end(self, *lines: Line) -> None:
        """Record that something ended.  If that fails the end still counts: the journal then claims too much, and
        is rewritten as soon as that works.
        """
        try:
            self.append(*lines)
        except OSError:
            self._lines_max = 0

    def image(self, lines: list[Line]) -> bytes:
        """A whole journal with these lines, checksum included."""
        return _FIRST + _encode_lines([self._start, *lines])

    def compact(self) -> None:
        """Rewrite the file from the live state; if that fails the old file goes on."""
        lines = self._snapshot()
        series = self._next_series()
        head: list[Line] = [SeriesLine(series)] if series else []
        try:
            self._file.replace(self.image([*head, *lines]))
        except OSError as e:
            log.error("the journal can't be rewritten: %s", e)
            self._lines_max = self._lines + COMPACT_LINES_MIN
            return
        self._is_cut = False
        self._lines = 2 + len(head) + len(lines)
        self._lines_max = max(COMPACT_LINES_MIN, COMPACT_FACTOR * self._lines)
        self._series = series
        self._last_series = max(self._last_series, series)
        self._record_extent()

    def _next_series(self) -> int:
        """0 if no extent can be kept: a journal with a series and without its extent counts as damaged."""
        if self._extent is None:
            return 0
        try:
            self._extent.write(encode_extent(Extent(self._start.boot, self._last_series, 0)))
        except OSError as e:
            log.error("how far the journal goes can't be recorded: %s", e)
            return 0
        return self._last_series + 1

"""The kinds of lines in the journal, and how paths become text there.

One JSON array per line: a kind, then its fields in order. An older daemon skips a kind that it does not know, so new facts
are new kinds, and VERSION stays 1 (see `journal`).
"""

from __future__ import annotations

import urllib.parse

import msgspec

VERSION = 1


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
    """This owner keeps locks for its descendants, in a control group if it has one: each lock stays after its end until
    none of them lives and no process has that disk open.
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
    """The RELEASE of this claim was answered and held back (ADR 0180): the claim stays until a migration is over, or until
    a further line claims or ends it. An older daemon keeps the claim, and doubts the journal.
    """

    lock: int
    owner: int
    lockspace: str
    name: str


class LentLine(Line, tag="lent"):
    """This owner released a name for a migration whose target asks once (ADR 0180); it is taken back if the guest stays."""

    owner: int
    lockspace: str
    name: str
    mode: int
    create: bool


class LentOverLine(Line, tag="lent-over"):
    """The migration of a `LentLine` is over."""

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


class PreparedLine(Line, tag="prepared"):
    """The owner of that number is a VM that is being started, and has no process yet (ADR 0196). `pid` and `start` are those
    of the libvirtd that starts it. An older daemon holds its locks for an unknown owner.
    """

    owner: int
    pid: int
    start: int


class UnaskedLine(Line, tag="unasked"):
    """libvirt's hook wants this held for the owner until its end, unless libvirt itself asks for it (`unasked_disks`). An
    older daemon holds what is held, and takes nothing more.
    """

    owner: int
    lockspace: str
    name: str
    mode: int


class AskedLine(Line, tag="asked"):
    """libvirt has asked for what an `UnaskedLine` names, or has released it: from here on it follows libvirt."""

    owner: int
    lockspace: str
    name: str


class PersistentLine(Line, tag="persistent"):
    """The owner is a client of sanlock's protocol, and this lease is to outlive it as an orphan; `stays` False: not any
    more. An older daemon doubts the journal, and frees nothing whose owner it does not find.
    """

    owner: int
    lockspace: str
    name: str
    stays: bool = True


class ClientLine(Line, tag="client"):
    """The owner is a registered client of sanlock's protocol, with or without leases; `stays` False: not any more. An older
    daemon keeps its leases, and does not know its pid.
    """

    owner: int
    stays: bool = True
    restricted: int = 0
    killpath_flags: int = 0
    killpath: str = ""
    arguments: str = ""


class HoldLine(Line, tag="hold"):
    """A connection of a registered client (by its client id) holds a lease of its owner, or is about to acquire it; `stays`
    False: not any more, or it is about to release it. `request` is the number of the client's command that does so, for a
    daemon that finds that command unanswered (ADR 0204). An older daemon has the lease by the claim of the process.
    """

    owner: int
    client: int
    lockspace: str
    name: str
    request: int
    stays: bool = True
    value_block: bool = False
    was_orphan: bool = False
    path: str = ""


class OrphansLine(Line, tag="orphans"):
    """The owner of that number keeps leases of a client that has ended. An older daemon holds them for an unknown owner."""

    owner: int


class SeriesLine(Line, tag="series"):
    """Which rewriting of the journal this is, counted from 1; its length is kept beside it (`journal_extent`)."""

    series: int


class RestartLine(Line, tag="restart"):
    """A domain that was stopped for a lost lockspace, to be started when that is joined; `owed` False: it was tried."""

    lockspace: str
    uuid: str
    name: str
    owed: bool = True


class SanlockLockspaceLine(Line, tag="sanlock-lockspace"):
    """A client of sanlock's protocol has added this lockspace, to be joined again by the next daemon; `stays` False: it was
    removed. An older daemon does not join it.
    """

    name: str
    path: str
    offset_bytes: int
    sector_bytes: int
    align_bytes: int
    host_id: int
    io_timeout_s: int
    stays: bool = True
    uses: int = 0
    """Marks of clients (SET_CONFIG): it is not left while it has one."""


class DoubtLine(Line, tag="doubt"):
    """Locks may be held that no line names: the journal before this one was not whole, and not all of it is settled yet."""

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
    | PreparedLine
    | UnaskedLine
    | AskedLine
    | PersistentLine
    | ClientLine
    | HoldLine
    | OrphansLine
    | SeriesLine
    | RestartLine
    | SanlockLockspaceLine
    | DoubtLine
)


def text_of(path: str) -> str:
    """A path (bytes) as JSON text: everything but plain ASCII is percent-encoded."""
    if path.isascii() and "%" not in path:
        return path
    return urllib.parse.quote(path, safe="/ :;,=+@~()[]{}!$&'*#?|<>", errors="surrogateescape")


def path_of(text: str) -> str:
    return urllib.parse.unquote(text, errors="surrogateescape") if "%" in text else text

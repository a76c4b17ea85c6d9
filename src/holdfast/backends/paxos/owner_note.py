"""The owner note after our block in a lease: the VM and its disk, shown when another host is refused (the lease's name is
usually a hash).

It is part of the write that claims the lease (from byte 256 of our own host block on, which the format leaves empty and
sanlock neither reads nor writes), so it costs no request, and it is about the version in the block before it. It is a hint:
it is read when a lease was refused, and decides nothing.
"""

from __future__ import annotations

import msgspec

from holdfast.backends.base import NotedOwner, OwnerNote
from holdfast.model import SANLOCK, SANLOCK_PREFIX, Holder, Mode, OwnerName, ProcessId, printable
from holdfast.ondisk.host_block import NOTE_BYTES_MAX
from holdfast.supervision.host_names import node_of

_MAGIC = b'{"holdfast":1,'


class _Note(msgspec.Struct, frozen=True, omit_defaults=True):
    holdfast: int
    pid: int
    since: int
    start: int = 0
    """Start time of the process in clock ticks since boot (`ProcessId`); older daemons don't write it."""
    name: str = ""
    uuid: str = ""
    disk: str = ""
    path: str = ""
    """The path of the disk, in the lease of its identity."""
    libvirtd: int = 0
    """The pid of the libvirtd that was about to start the VM, which had no process yet: nothing is concluded from that."""
    maintenance: bool = False
    """No VM's: a daemon has it for a moment, to break it, to take it out or to free it."""
    persists: int = 0
    """Of a lease of a client of sanlock's, whether it outlives that process as an orphan: `ENDS` or `PERSISTS`; 0: an older
    daemon has not written that.
    """


ENDS, PERSISTS = 1, 2
_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Note)


UPKEEP = _encode(_Note(1, 0, 0, maintenance=True))
"""The note of a lease that a daemon takes for no VM."""


def is_of_upkeep(raw: bytes) -> bool:
    """Whether the note is of a lease held for maintenance; False without a note that can be read."""
    return _read(raw).maintenance


def encode(note: OwnerNote, since_wall_s: float, disk: str, path: str = "") -> bytes:
    """`path`, then the disk, is left out where there is no room for it; then a name too long for the place is cut, never the
    rest.
    """
    name = note.owner.name.encode("utf-8", "replace").decode()
    disk = disk.encode("utf-8", "replace").decode()
    uuid = note.owner.uuid[:36]
    start = note.start_ticks
    path = path.encode("utf-8", "replace").decode()
    libvirtd = note.libvirtd
    persists = 0
    if disk.startswith(SANLOCK_PREFIX):
        persists = PERSISTS if note.persists else ENDS
    for each in (path, "") if path else ("",):
        whole = _encode(
            _Note(1, note.pid, int(since_wall_s), start, name, uuid, disk, each, libvirtd, persists=persists)
        )
        if len(whole) <= NOTE_BYTES_MAX:
            return whole
    while True:
        raw = _encode(
            _Note(1, note.pid, int(since_wall_s), start, name, uuid, libvirtd=libvirtd, persists=persists)
        )
        if len(raw) <= NOTE_BYTES_MAX or not name:
            return raw[:NOTE_BYTES_MAX]
        name = name[: max(0, len(name) - max(1, (len(raw) - NOTE_BYTES_MAX) // 4))]


def decode(
    raw: bytes, *, host: str, host_id: int, mode: Mode, alive_s_ago: float | None, remark: str = ""
) -> Holder:
    """The holder that a note names; without a note that can be read, the host alone, and whether it has sanlock."""
    result = _read(raw)
    foreign = bool(host) and not raw.startswith(_MAGIC) and not node_of(host)
    return Holder(
        program=SANLOCK if foreign else "",
        name=result.name,
        uuid=result.uuid,
        pid=result.pid or None,
        host=host,
        mode=mode,
        since_wall_s=float(result.since) if result.since else None,
        source="lease",
        host_id=host_id,
        alive_s_ago=alive_s_ago,
        remark=remark,
        disk=_shown(result.path or result.disk),
        libvirtd=result.libvirtd,
    )


def vm_of(raw: bytes) -> str:
    """The name of the owner that a note names; empty if it names none."""
    return printable(_read(raw).name)


def disk_of(raw: bytes) -> str:
    """The path of the disk that a note names; empty if it names none, or one that can't be shown."""
    return _shown(_read(raw).disk)


def path_of(raw: bytes) -> str:
    """The path beside an identity that a note names; empty if it names none, or one that can't be shown."""
    return _shown(_read(raw).path)


def _shown(disk: str) -> str:
    return disk if disk.isprintable() else ""


def noted(raw: bytes) -> NotedOwner:
    """The owner in a note, for the host that wrote it; all empty without a note that can be read."""
    note = _read(raw)
    process = ProcessId(note.pid, note.start) if note.pid > 0 else None
    disk = path_of(raw) or disk_of(raw)
    may_persist = note.persists == PERSISTS or (note.persists == 0 and disk.startswith(SANLOCK_PREFIX))
    return NotedOwner(process, OwnerName(note.name, note.uuid), disk, may_persist)


def _read(raw: bytes) -> _Note:
    if raw.startswith(_MAGIC):
        try:
            return _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return _Note(1, 0, 0)

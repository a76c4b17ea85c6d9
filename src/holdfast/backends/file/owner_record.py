"""The owner record: a line of text in an indirect lock file that names its holder to other hosts.

libvirt's lock files are empty and are not read; only the lock on byte 0 counts. Holdfast writes a short record there, so
that a refused start can name the VM and the host that hold the lock. A real virtlockd ignores the content. The record is a
hint for people: it is read only when the kernel has refused the lock, and never decides anything (after a crash it may be
stale).

The file is a row of slots, one text line each. An exclusive holder empties the file and writes slot 0; a shared holder
writes the slot to which its host name hashes, so hosts seldom overwrite each other. Files with foreign content are left
alone.
"""

from __future__ import annotations

import zlib

import msgspec

from holdfast.model import Holder, Mode, OwnerName

SLOT_BYTES = 512
SLOTS_MAX = 64
"""Shared holders that can be named at once; more hosts than that share a slot and the last one is named."""
RECORD_FILE_BYTES_MAX = SLOT_BYTES * SLOTS_MAX
_MAGIC = b'{"holdfast":1,'


class _Record(msgspec.Struct, frozen=True):
    holdfast: int
    host: str
    pid: int
    mode: str
    since: float
    start: int = 0
    """Start time of the process in clock ticks since boot (`ProcessId`); older daemons don't write it."""
    name: str = ""
    uuid: str = ""
    disk: str = ""
    """Which disk the lock is for, as the file's name is a hash; left out where there is no room."""


_decoder = msgspec.json.Decoder(_Record)


def slot_of(host: str, mode: Mode) -> int:
    return 0 if mode is Mode.EXCLUSIVE else 1 + zlib.crc32(host.encode()) % (SLOTS_MAX - 1)


def encode(
    owner: OwnerName,
    *,
    host: str,
    pid: int,
    start_ticks: int = 0,
    mode: Mode,
    since_wall_s: float,
    disk: str = "",
) -> bytes:
    """One slot: a JSON line, padded with blanks. The disk is left out if there is no room for it or its path is not text;
    then a name too long for the slot is cut, never the rest.
    """
    name = owner.name
    disk = disk if disk.isprintable() else ""
    while True:
        record = _Record(1, host, pid, mode.word, round(since_wall_s, 3), start_ticks, name, owner.uuid, disk)
        raw = msgspec.json.encode(record)
        if len(raw) < SLOT_BYTES:
            return raw.ljust(SLOT_BYTES - 1) + b"\n"
        if disk:
            disk = ""
            continue
        if not name:
            return b"\n".rjust(SLOT_BYTES)
        name = name[: max(0, len(name) - max(1, (len(raw) - SLOT_BYTES) // 4))]


BLANK = b" " * (SLOT_BYTES - 1) + b"\n"


def decode(raw: bytes) -> list[Holder]:
    """Every record in a lock file's bytes; anything else is skipped."""
    found = []
    for offset in range(0, min(len(raw), RECORD_FILE_BYTES_MAX), SLOT_BYTES):
        slot = raw[offset : offset + SLOT_BYTES].strip(b" \n\0")
        if not slot.startswith(_MAGIC):
            continue
        try:
            r = _decoder.decode(slot)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        mode = Mode.SHARED if r.mode == Mode.SHARED.word else Mode.EXCLUSIVE
        found.append(
            Holder(
                name=r.name,
                uuid=r.uuid,
                pid=r.pid or None,  # 0 of a VM that was being started
                host=r.host,
                mode=mode,
                since_wall_s=r.since,
                source="record",
                start_ticks=r.start,
                disk=r.disk,
            )
        )
    return found


def is_ours(head: bytes) -> bool:
    """Whether a lock file with this beginning may be written: it is empty, or it holds our records."""
    stripped = head.lstrip(b" \n\0")
    return not stripped or stripped.startswith(_MAGIC)

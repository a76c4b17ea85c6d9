"""The note behind our block in a lease: which VM holds it, for the people of another host who are refused.

It rides in the very write that says "mine" (bytes 256 and on of our own host block, where the format has nothing and
sanlock neither looks nor writes), so it costs no request, and it is about the version that stands in the block before
it. It is a hint: it is read when a lease was refused, and decides nothing.
"""

from __future__ import annotations

import msgspec

from holdfast.backends.base import OwnerNote
from holdfast.model import Holder, Mode
from holdfast.ondisk.host_block import NOTE_BYTES_MAX

_MAGIC = b'{"holdfast":1,'


class _Note(msgspec.Struct, frozen=True, omit_defaults=True):
    holdfast: int
    pid: int
    since: int
    name: str = ""
    uuid: str = ""


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Note)


def encode(note: OwnerNote, since_wall_s: float) -> bytes:
    """A name too long for the place is cut, never the rest."""
    name = note.owner.name.encode("utf-8", "replace").decode()
    uuid = note.owner.uuid[:36]
    while True:
        raw = _encode(_Note(1, note.pid, int(since_wall_s), name, uuid))
        if len(raw) <= NOTE_BYTES_MAX or not name:
            return raw[:NOTE_BYTES_MAX]
        name = name[: max(0, len(name) - max(1, (len(raw) - NOTE_BYTES_MAX) // 4))]


def decode(
    raw: bytes, *, host: str, host_id: int, mode: Mode, alive_s_ago: float | None, remark: str = ""
) -> Holder:
    """The holder that a note names; without a note that can be read, the host alone."""
    told = _Note(1, 0, 0)
    if raw.startswith(_MAGIC):
        try:
            told = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return Holder(
        name=told.name,
        uuid=told.uuid,
        pid=told.pid or None,
        host=host,
        mode=mode,
        since_wall_s=float(told.since) if told.since else None,
        source="lease",
        host_id=host_id,
        alive_s_ago=alive_s_ago,
        remark=remark,
    )

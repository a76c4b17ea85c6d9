"""The records that STATUS, HOST_STATUS and RENEWAL stream until the daemon closes (sanlock-socket.md 2.9).

A record is 80 bytes, a text of `key=value` words with its NUL, and for lockspaces and resources the structure. Of the
keys clients read `list` alone and show the others as they come.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, Self

from holdfast.ondisk.padded_name import NO_NAME, PaddedName
from holdfast.wire.sanlock.malformed import MalformedMessage, need
from holdfast.wire.sanlock.structures import Lockspace, Raw, Resource

STATE_BYTES = 80
TEXT_BYTES_MAX = 4096
"""Of one record's text, with its NUL."""
PID_NONE = 0xFFFF_FFFF
"""data32 of a client without a process: -1."""
_STATE = struct.Struct("<IIIIQ48sII")


class RecordType(IntEnum):
    DAEMON = 1
    CLIENT = 2
    LOCKSPACE = 3
    RESOURCE = 4
    HOST = 5
    RENEWAL = 6
    WORKER = 7
    RESOURCE_THREAD = 8


class StateRecord(NamedTuple):
    """One record; which of the numbers mean what depends on the type. `attached` goes with LOCKSPACE and RESOURCE."""

    type: int
    data32: int = 0
    data64: int = 0
    name: PaddedName = NO_NAME
    text: str = ""
    attached: Lockspace | Resource | None = None
    flags: int = 0

    def encode(self) -> bytes:
        text = encode_text(self.text)
        head = _STATE.pack(self.type, self.flags, self.data32, 0, self.data64, self.name.field, len(text), 0)
        match self.attached:
            case None:
                return head + text
            case Lockspace():
                return head + text + self.attached.encode()
            case Resource():
                return head + text + self.attached.encode_whole()

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> tuple[Self, int]:
        """The record at `start`, and where the next one begins."""
        need(raw, start, STATE_BYTES, "a state record")
        kind, flags, data32, _, data64, name, text_bytes, _ = _STATE.unpack_from(raw, start)
        if text_bytes > TEXT_BYTES_MAX:
            raise MalformedMessage(f"a record's text has at most {TEXT_BYTES_MAX} bytes, not {text_bytes}")
        end = start + STATE_BYTES + text_bytes
        need(raw, start + STATE_BYTES, text_bytes, "a record's text")
        text = bytes(raw[start + STATE_BYTES : end]).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        attached: Lockspace | Resource | None = None
        if kind == RecordType.LOCKSPACE:
            attached = Lockspace.decode(raw, end)
            end += len(attached.encode())
        elif kind == RecordType.RESOURCE:
            attached = Resource.decode_whole(raw, end)
            end += attached.bytes_whole
        return cls(kind, data32, data64, PaddedName(name), text, attached, flags), end

    @property
    def words(self) -> dict[str, str]:
        """The text's keys, in order."""
        return dict(word.partition("=")[::2] for word in self.text.split(" ") if word)


def encode_text(text: str) -> bytes:
    """With its NUL; a text that is too long is cut, as sanlock does."""
    raw = text.encode("utf-8", "surrogateescape").split(b"\0", 1)[0]
    return raw[: TEXT_BYTES_MAX - 1] + b"\0"


def key_words(words: dict[str, object]) -> str:
    """`key=value` words, in order."""
    return " ".join(f"{key}={value}" for key, value in words.items())


def decode_records(raw: Raw, start: int = 0) -> tuple[StateRecord, ...]:
    """All records from `start` to the end."""
    records: list[StateRecord] = []
    while start < len(raw):
        record, start = StateRecord.decode(raw, start)
        records.append(record)
    return tuple(records)

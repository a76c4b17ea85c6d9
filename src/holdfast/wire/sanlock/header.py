"""The 32 bytes before each request and each reply (sanlock-socket.md 1.3).

All words are little endian. `length` is what the sender says; no body is sized by it but SET_LVB's.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.malformed import MalformedMessage, need

MAGIC = 0x04282010
PROTOCOL_VERSION = 1
HEADER_BYTES = 32
U32_MAX = 0xFFFF_FFFF
_MAJOR_SHIFT = 16
_HEADER = struct.Struct("<8I")


class Header(NamedTuple):
    """Unsigned words as they travel; `result` is `data` with its sign."""

    magic: int
    version: int
    command: int
    flags: int
    length: int
    seq: int
    data: int
    data2: int

    @property
    def result(self) -> int:
        return signed(self.data)

    def encode(self) -> bytes:
        return _HEADER.pack(*self)


def request_header(
    command: int, *, flags: int = 0, body_bytes: int = 0, data: int = 0, data2: int = 0
) -> Header:
    """That of a request; `data` and `data2` may be negative."""
    length = HEADER_BYTES + body_bytes
    return Header(MAGIC, PROTOCOL_VERSION, command, flags, length, 0, data & U32_MAX, data2 & U32_MAX)


def reply_header(request: Header, *, result: int, data2: int = 0, body_bytes: int = 0) -> Header:
    """The answer's: command, flags and seq come back; VERSION's flags and seq are 0."""
    echoed = request.command != Command.VERSION
    return Header(
        MAGIC,
        PROTOCOL_VERSION,
        request.command,
        request.flags if echoed else 0,
        HEADER_BYTES + body_bytes,
        request.seq if echoed else 0,
        result & U32_MAX,
        data2 & U32_MAX,
    )


EXIT_HEADER = Header(MAGIC, PROTOCOL_VERSION, 0, 0, HEADER_BYTES, 0, 0, 0)
"""SHUTDOWN_WAIT's good answer, sent when the daemon exits (sanlock-socket.md 2.10)."""


def decode_header(raw: bytes | bytearray, start: int = 0) -> Header:
    """The words at `start`, whatever they say; `MalformedMessage` if there are too few bytes."""
    need(raw, start, HEADER_BYTES, "a header")
    return tuple.__new__(Header, _HEADER.unpack_from(raw, start))


def decode_reply_header(raw: bytes | bytearray) -> Header:
    """For clients: a reply's header, which has to have magic and major version."""
    header = decode_header(raw)
    if header.magic != MAGIC:
        raise MalformedMessage(f"a reply has the magic number {MAGIC:#010x}, not {header.magic:#010x}")
    if header.version >> _MAJOR_SHIFT:
        raise MalformedMessage(f"a reply's version is {PROTOCOL_VERSION}, not {header.version:#x}")
    return header


def accepted(header: Header, commands: frozenset[Command]) -> bool:
    """Whether it is a request at all. All others get no answer, and what follows is read as another header."""
    if header.magic != MAGIC or header.command not in commands:
        return False
    return not header.version >> _MAJOR_SHIFT or header.command == Command.VERSION


def signed(word: int) -> int:
    """A 32-bit word with its sign."""
    return word - (1 << 32) if word >> 31 else word

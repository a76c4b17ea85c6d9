"""libvirt's RPC framing (virNetMessage): splitting a byte stream into messages, and building replies.

A message is a length word, six header words and a payload (virtlockd-rpc.md section 2).  Clients may
announce up to 32 MiB, but no call of ours needs more than `KEPT_BYTES`: the splitter keeps that much of a message and
counts the rest away, so a connection's memory is bounded whatever is announced.  Bytes behind the
arguments are ignored anyway, so nothing valid is lost.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.wire import xdr

LENGTH_BYTES = 4
HEADER_BYTES = 24
MESSAGE_BYTES_MIN = LENGTH_BYTES + HEADER_BYTES
LENGTH_WORD_MAX = 33554436
"""Largest length word that virtlockd accepts: 32 MiB of message plus the word itself."""
KEPT_BYTES = 256 * 1024
"""Two strings of 65536 bytes, the largest arguments of any call, with room to spare."""

PROGRAM_LOCKSPACE = 0x0EA7BEEF
PROGRAM_KEEPALIVE = 0x6B656570
VERSION = 1
KEEPALIVE_PING, KEEPALIVE_PONG = 1, 2

TYPE_CALL, TYPE_REPLY, TYPE_MESSAGE, TYPE_CALL_WITH_FDS = 0, 1, 2, 4
STATUS_OK, STATUS_ERROR = 0, 1

LEVEL_ERROR = 2

_LENGTH = struct.Struct(">I")
_HEADER = struct.Struct(">IIiiIi")
_WHOLE_HEADER = struct.Struct(">IIIiiIi")


class Header(NamedTuple):
    """The six words behind the length; integers as the spec signs them."""

    program: int
    version: int
    procedure: int
    type: int
    serial: int
    status: int


class Message(NamedTuple):
    """A header and the payload behind it, cut at `KEPT_BYTES`."""

    header: Header
    payload: bytes


def _message(raw: bytes) -> Message:
    return Message(Header._make(_HEADER.unpack_from(raw, LENGTH_BYTES)), raw[MESSAGE_BYTES_MIN:])


class FramingError(Exception):
    """The peer's bytes cannot be framed; the connection must be closed without an answer."""


def whole_message(chunk: bytes) -> Message | None:
    """The message that a chunk is, if it is exactly one: the common case, one read per request."""
    length = len(chunk)
    if MESSAGE_BYTES_MIN <= length <= KEPT_BYTES:
        words = _WHOLE_HEADER.unpack_from(chunk)
        if words[0] == length:
            # tuple.__new__ rather than the classes: this is once per request.
            header = tuple.__new__(Header, words[1:])
            return tuple.__new__(Message, (header, chunk[MESSAGE_BYTES_MIN:]))
    return None


class Splitter:
    """Turns received chunks into whole messages; raises `FramingError` on what cannot be one.

    `feed` takes any bytes and returns the messages that became complete, in order.
    """

    __slots__ = ("_kept", "_length", "_seen")

    def __init__(self, carried: bytes = b"") -> None:
        self._kept = bytearray(carried)  # of the current message, from its length word on
        self._seen = len(carried)  # bytes of the current message received so far, kept or not
        self._length = 0  # of the current message; 0 while its length word is incomplete

    @property
    def carried(self) -> bytes:
        """The incomplete message so far, to go on with after a re-exec; see `resumable`."""
        return bytes(self._kept)

    @property
    def resumable(self) -> bool:
        """False while the tail of an oversized message is being counted away: `carried` is not all of it."""
        return self._seen == len(self._kept)

    @property
    def idle(self) -> bool:
        return not self._seen

    def feed(self, chunk: bytes) -> list[Message]:
        done: list[Message] = []
        offset = 0
        end = len(chunk)
        while True:
            if self._length == 0:
                take = min(LENGTH_BYTES - self._seen, end - offset) if self._seen < LENGTH_BYTES else 0
                self._kept += chunk[offset : offset + take]
                self._seen += take
                offset += take
                if self._seen < LENGTH_BYTES:
                    return done
                self._length = _LENGTH.unpack_from(self._kept)[0]
                if not LENGTH_BYTES <= self._length <= LENGTH_WORD_MAX:
                    raise FramingError(f"length word {self._length} is outside 4..{LENGTH_WORD_MAX}")
            take = min(self._length - self._seen, end - offset)
            room = KEPT_BYTES - len(self._kept)
            self._kept += chunk[offset : offset + min(take, room)]
            self._seen += take
            offset += take
            if self._seen < self._length:
                return done
            if self._length < MESSAGE_BYTES_MIN:
                raise FramingError(f"message of {self._length} bytes has no whole header")
            raw = bytes(self._kept)
            self._kept.clear()
            self._seen = self._length = 0
            done.append(_message(raw))


def encode(header: Header, payload: bytes = b"") -> bytes:
    """A whole message; used by clients, tests and the keepalive answer."""
    return _WHOLE_HEADER.pack(MESSAGE_BYTES_MIN + len(payload), *header) + payload


def ok_reply(header: Header) -> bytes:
    """The success reply of every lock-space procedure: 28 bytes, no payload."""
    return _WHOLE_HEADER.pack(
        MESSAGE_BYTES_MIN,
        header.program,
        header.version,
        header.procedure,
        TYPE_REPLY,
        header.serial,
        STATUS_OK,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """The payload of an ERROR reply (virtlockd-rpc.md 2.3); the fields that are always absent are left out."""

    code: int
    domain: int
    message: str
    str1: str | None = None
    str2: str | None = None
    int1: int = -1
    int2: int = -1

    def encode(self) -> bytes:
        return b"".join(
            (
                xdr.s32(self.code),
                xdr.s32(self.domain),
                xdr.optional_string(text_bytes(self.message)),
                xdr.s32(LEVEL_ERROR),
                b"\0\0\0\0",  # dom
                xdr.optional_string(None if self.str1 is None else text_bytes(self.str1)),
                xdr.optional_string(None if self.str2 is None else text_bytes(self.str2)),
                b"\0\0\0\0",  # str3
                xdr.s32(self.int1),
                xdr.s32(self.int2),
                b"\0\0\0\0",  # net
            )
        )

    @staticmethod
    def decode(payload: bytes) -> ErrorReply:
        """For clients and tests; raises `xdr.XdrError` on anything but a well-formed payload."""
        r = xdr.Reader(payload)
        code, domain = r.s32(), r.s32()
        message = r.optional_string(ERROR_STRING_BYTES_MAX)
        r.s32()
        if r.u32():
            raise xdr.XdrError("error reply carries a domain object")
        str1, str2, _str3 = (r.optional_string(ERROR_STRING_BYTES_MAX) for _ in range(3))
        return ErrorReply(
            code=code,
            domain=domain,
            message=bytes_text(message or b""),
            str1=None if str1 is None else bytes_text(str1),
            str2=None if str2 is None else bytes_text(str2),
            int1=r.s32(),
            int2=r.s32(),
        )


ERROR_STRING_BYTES_MAX = 4194304


def error_reply(header: Header, error: ErrorReply) -> bytes:
    return encode(header._replace(type=TYPE_REPLY, status=STATUS_ERROR), error.encode())


def pong() -> bytes:
    return encode(Header(PROGRAM_KEEPALIVE, VERSION, KEEPALIVE_PONG, TYPE_MESSAGE, 0, STATUS_OK))


def text_bytes(text: str) -> bytes:
    """Paths travel as bytes; surrogateescape keeps every byte of a path that is not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def bytes_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")

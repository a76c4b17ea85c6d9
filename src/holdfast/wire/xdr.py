"""XDR (RFC 4506), the few types that libvirt's RPC uses, as one reader and small writers.

Limits follow virtlockd: a string may be at most as long as the caller says, must be wholly present with its
padding; the padding's value and bytes behind the arguments are ignored (virtlockd-rpc.md 2.1).
"""

from __future__ import annotations

import struct

_U32 = struct.Struct(">I")
_S32 = struct.Struct(">i")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


class XdrError(ValueError):
    """The bytes do not hold the value that was asked for."""


class Reader:
    """Takes values off a payload from the front; raises `XdrError` when they are not there."""

    __slots__ = ("_end", "_offset", "_raw")

    def __init__(self, raw: bytes, offset: int = 0) -> None:
        self._raw = raw
        self._offset = offset
        self._end = len(raw)

    def u32(self) -> int:
        offset = self._offset
        if self._end - offset < 4:
            raise XdrError("integer is cut short")
        self._offset = offset + 4
        value: int = _U32.unpack_from(self._raw, offset)[0]
        return value

    def s32(self) -> int:
        value = self.u32()
        return value - (1 << 32) if value & 0x80000000 else value

    def opaque(self, length: int) -> bytes:
        offset = self._offset
        end = offset + length + (-length & 3)
        if end > self._end:
            raise XdrError("opaque is cut short")
        self._offset = end
        return self._raw[offset : offset + length]

    def string(self, limit_bytes: int) -> bytes:
        """A counted string; what follows a NUL is dropped, as a C peer would."""
        length = self.u32()
        if length > limit_bytes:
            raise XdrError(f"string of {length} bytes is over the limit of {limit_bytes}")
        raw = self.opaque(length)
        nul = raw.find(b"\0")
        return raw if nul < 0 else raw[:nul]

    def optional_string(self, limit_bytes: int) -> bytes | None:
        return self.string(limit_bytes) if self.u32() else None


def u32(value: int) -> bytes:
    return _U32.pack(value)


def s32(value: int) -> bytes:
    return _S32.pack(value)


def string(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value + _PAD[len(value) & 3]


def optional_string(value: bytes | None) -> bytes:
    return b"\0\0\0\0" if value is None else b"\0\0\0\1" + string(value)

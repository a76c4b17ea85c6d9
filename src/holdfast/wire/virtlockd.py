"""The lock-space program of virtlockd (prog 0x0EA7BEEF): payload bytes to typed calls and back.

Eight procedures, none returns data (virtlockd-rpc.md section 3).  Which flags, names and states are
acceptable is not decided here: a call is just what the client said.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from holdfast.wire import xdr
from holdfast.wire.libvirt_rpc import bytes_text, text_bytes

_U32 = struct.Struct(">I")
_ID_PID_FLAGS = struct.Struct(">III")
_EMPTY_STRING = _U32.pack(0)
STRING_BYTES_MAX = 65536
UUID_BYTES = 16

ACQUIRE_SHARED, ACQUIRE_AUTOCREATE = 1, 2

PROC_REGISTER = 1
PROC_RESTRICT = 2
PROC_NEW = 3
PROC_CREATE_RESOURCE = 4
PROC_DELETE_RESOURCE = 5
PROC_ACQUIRE_RESOURCE = 6
PROC_RELEASE_RESOURCE = 7
PROC_CREATE_LOCKSPACE = 8


class Register(NamedTuple):
    uuid: bytes
    name: str
    domain_id: int
    pid: int
    flags: int

    def encode(self) -> bytes:
        return (
            self.uuid
            + xdr.string(text_bytes(self.name))
            + xdr.u32(self.domain_id)
            + xdr.u32(self.pid)
            + xdr.u32(self.flags)
        )


class Restrict(NamedTuple):
    flags: int

    def encode(self) -> bytes:
        return xdr.u32(self.flags)


class New(NamedTuple):
    path: str
    flags: int

    def encode(self) -> bytes:
        return xdr.string(text_bytes(self.path)) + xdr.u32(self.flags)


class ResourceCall(NamedTuple):
    """CREATE, DELETE, ACQUIRE and RELEASE share one shape; the procedure number distinguishes them."""

    path: str
    name: str
    flags: int

    def encode(self) -> bytes:
        return xdr.string(text_bytes(self.path)) + xdr.string(text_bytes(self.name)) + xdr.u32(self.flags)


class CreateLockspace(NamedTuple):
    path: str

    def encode(self) -> bytes:
        return xdr.string(text_bytes(self.path))


Call = Register | Restrict | New | ResourceCall | CreateLockspace


def decode(procedure: int, payload: bytes) -> Call | None:
    """The call in a payload; None for a procedure that does not exist; `xdr.XdrError` if it is not there."""
    if PROC_CREATE_RESOURCE <= procedure <= PROC_RELEASE_RESOURCE:
        # Usually a disk in the direct lockspace, whose path is empty.
        path, offset = ("", 4) if payload.startswith(_EMPTY_STRING) else _string_at(payload, 0)
        name, offset = _string_at(payload, offset)
        if len(payload) < offset + 4:
            raise xdr.XdrError("integer is cut short")
        return tuple.__new__(ResourceCall, (path, name, _U32.unpack_from(payload, offset)[0]))
    if procedure == PROC_REGISTER:
        name, offset = _string_at(payload, UUID_BYTES)
        if len(payload) < offset + _ID_PID_FLAGS.size:
            raise xdr.XdrError("integer is cut short")
        return Register(payload[:UUID_BYTES], name, *_ID_PID_FLAGS.unpack_from(payload, offset))
    r = xdr.Reader(payload)
    if procedure == PROC_RESTRICT:
        return Restrict(r.u32())
    if procedure == PROC_NEW:
        return New(_text(r), r.u32())
    if procedure == PROC_CREATE_LOCKSPACE:
        return CreateLockspace(_text(r))
    return None


def _string_at(raw: bytes, offset: int) -> tuple[str, int]:
    """A string and the offset behind it.  `xdr.Reader` does the same; resource calls are the hot path."""
    start = offset + 4
    if start > len(raw):
        raise xdr.XdrError("integer is cut short")
    length: int = _U32.unpack_from(raw, offset)[0]
    if length > STRING_BYTES_MAX:
        raise xdr.XdrError(f"string of {length} bytes is over the limit of {STRING_BYTES_MAX}")
    end = start + length + (-length & 3)
    if end > len(raw):
        raise xdr.XdrError("opaque is cut short")
    text = raw[start : start + length]
    nul = text.find(b"\0")
    return bytes_text(text if nul < 0 else text[:nul]), end


def _text(r: xdr.Reader) -> str:
    return bytes_text(r.string(STRING_BYTES_MAX))

"""The structures in bodies, with x86_64 offsets (sanlock-socket.md 1.4, newer-sanlock.md 3).

Names keep their whole field (`PaddedName`): some commands compare 48 bytes, others compare up to the first NUL. Paths
end at their first NUL, at 1023 bytes at most; what a client leaves behind it, and in pad words, is garbage and is not
kept. Integers are unsigned.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from holdfast.ondisk.padded_name import NAME_BYTES, NO_NAME, PaddedName
from holdfast.wire.sanlock.flags import HOST_STATE_MASK
from holdfast.wire.sanlock.header import HEADER_BYTES, MAGIC, PROTOCOL_VERSION, Header, decode_header
from holdfast.wire.sanlock.malformed import MalformedMessage, need

PATH_BYTES = 1024
"""With its NUL."""
DISK_BYTES = 1040
RESOURCE_BYTES = 128
OPTIONS_BYTES = 56
LOCKSPACE_BYTES = 1104
HOST_BYTES = 32
HOST_EVENT_BYTES = 32
RINDEX_BYTES = 1104
RINDEX_ENTRY_BYTES = 64
EVENT_CALLBACK_BYTES = 80
LEADER_BYTES = 200
DISKS_MAX = 4
"""Of one resource."""

Raw = bytes | bytearray

_DISK_HEAD = struct.Struct("<1024sQII")
_RESOURCE = struct.Struct("<48s48sQQIIII")
_NUM_DISKS_AT = 124
_OPTIONS = struct.Struct("<48sII")
_LOCKSPACE_HEAD = struct.Struct("<48sQII")
_HOST = struct.Struct("<QQQII")
_HOST_EVENT = struct.Struct("<QQQQ")
_RINDEX_HEAD = struct.Struct("<IIQ48s")
_RINDEX_ENTRY = struct.Struct("<48sQII")
_FROM_HOST = struct.Struct("<QQ")
_U32 = struct.Struct("<I")


def text_of(field: bytes) -> str:
    """Up to the first NUL; bytes that are not UTF-8 survive."""
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def field_of(text: str, size: int, what: str) -> bytes:
    """Padded with NULs, one at least."""
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw or len(raw) >= size:
        raise MalformedMessage(f"{what} has at most {size - 1} bytes and no NUL: {text!r}")
    return raw.ljust(size, b"\0")


class Disk(NamedTuple):
    """sanlk_disk: where an area begins."""

    path: str = ""
    offset_bytes: int = 0

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, DISK_BYTES, "a disk")
        path, offset_bytes, _, _ = _DISK_HEAD.unpack_from(raw, start)
        return cls(text_of(path[: PATH_BYTES - 1]), offset_bytes)

    def encode(self) -> bytes:
        return _DISK_HEAD.pack(field_of(self.path, PATH_BYTES, "a path"), self.offset_bytes, 0, 0)


class Resource(NamedTuple):
    """sanlk_resource. Where only its first part travels (RELEASE, CONVERT), `num_disks` stands without disks."""

    lockspace: PaddedName = NO_NAME
    name: PaddedName = NO_NAME
    lver: int = 0
    data64: int = 0
    data32: int = 0
    flags: int = 0
    num_disks: int = 0
    disks: tuple[Disk, ...] = ()

    @classmethod
    def of(cls, lockspace: str, name: str, *disks: Disk, flags: int = 0, lver: int = 0) -> Self:
        """As clients make it."""
        return cls(PaddedName.of(lockspace), PaddedName.of(name), lver, 0, 0, flags, len(disks), disks)

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        """The first part alone."""
        need(raw, start, RESOURCE_BYTES, "a resource")
        lockspace, name, lver, data64, data32, _, flags, num_disks = _RESOURCE.unpack_from(raw, start)
        return cls(PaddedName(lockspace), PaddedName(name), lver, data64, data32, flags, num_disks)

    @classmethod
    def decode_whole(cls, raw: Raw, start: int = 0) -> Self:
        """With the disks that it says."""
        head = cls.decode(raw, start)
        if not 1 <= head.num_disks <= DISKS_MAX:
            raise MalformedMessage(f"a resource has 1 to {DISKS_MAX} disks, not {head.num_disks}")
        first = start + RESOURCE_BYTES
        return head._replace(
            disks=tuple(Disk.decode(raw, first + n * DISK_BYTES) for n in range(head.num_disks))
        )

    def encode(self) -> bytes:
        return _RESOURCE.pack(
            self.lockspace.field,
            self.name.field,
            self.lver,
            self.data64,
            self.data32,
            0,
            self.flags,
            self.num_disks,
        )

    def encode_whole(self) -> bytes:
        if self.num_disks != len(self.disks):
            raise MalformedMessage(f"num_disks is {self.num_disks}, with {len(self.disks)} disks")
        return self.encode() + b"".join(disk.encode() for disk in self.disks)

    @property
    def bytes_whole(self) -> int:
        return RESOURCE_BYTES + self.num_disks * DISK_BYTES


def num_disks_of(head: Raw) -> int:
    """Of the first part of a resource."""
    count: int = _U32.unpack_from(head, _NUM_DISKS_AT)[0]
    return count


class Options(NamedTuple):
    """sanlk_options: the name that `status` shows for a client. Its flags and length mean nothing."""

    owner_name: PaddedName = NO_NAME

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, OPTIONS_BYTES, "the options")
        name, _, _ = _OPTIONS.unpack_from(raw, start)
        return cls(PaddedName(name))

    def encode(self) -> bytes:
        return _OPTIONS.pack(self.owner_name.field, 0, 0)


class Lockspace(NamedTuple):
    """sanlk_lockspace."""

    name: PaddedName = NO_NAME
    host_id: int = 0
    flags: int = 0
    disk: Disk = Disk()

    @classmethod
    def of(
        cls, name: str, host_id: int = 0, path: str = "", offset_bytes: int = 0, *, flags: int = 0
    ) -> Self:
        return cls(PaddedName.of(name), host_id, flags, Disk(path, offset_bytes))

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, LOCKSPACE_BYTES, "a lockspace")
        name, host_id, flags, _ = _LOCKSPACE_HEAD.unpack_from(raw, start)
        return cls(PaddedName(name), host_id, flags, Disk.decode(raw, start + _LOCKSPACE_HEAD.size))

    def encode(self) -> bytes:
        return _LOCKSPACE_HEAD.pack(self.name.field, self.host_id, self.flags, 0) + self.disk.encode()


class Host(NamedTuple):
    """sanlk_host: a host as another one or its record shows it."""

    host_id: int = 0
    generation: int = 0
    timestamp: int = 0
    io_timeout_s: int = 0
    flags: int = 0

    @property
    def state(self) -> int:
        """One of `HostState`, or 0 where no state is given."""
        return self.flags & HOST_STATE_MASK

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, HOST_BYTES, "a host")
        return cls(*_HOST.unpack_from(raw, start))

    def encode(self) -> bytes:
        return _HOST.pack(*self)


class HostEvent(NamedTuple):
    """sanlk_host_event."""

    host_id: int = 0
    generation: int = 0
    event: int = 0
    data: int = 0

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, HOST_EVENT_BYTES, "a host event")
        return cls(*_HOST_EVENT.unpack_from(raw, start))

    def encode(self) -> bytes:
        return _HOST_EVENT.pack(*self)


class EventCallback(NamedTuple):
    """What a channel gets for an event: `event` as it was set, and the host that set it."""

    event: HostEvent
    from_host_id: int
    from_generation: int

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, EVENT_CALLBACK_BYTES, "an event")
        if decode_header(raw, start)[:5] != _EVENT_HEADER[:5]:
            raise MalformedMessage(f"an event begins with {_EVENT_HEADER}")
        event = HostEvent.decode(raw, start + HEADER_BYTES)
        return cls(event, *_FROM_HOST.unpack_from(raw, start + HEADER_BYTES + HOST_EVENT_BYTES))

    def encode(self) -> bytes:
        sender = _FROM_HOST.pack(self.from_host_id, self.from_generation)
        return _EVENT_HEADER.encode() + self.event.encode() + sender


_EVENT_HEADER = Header(MAGIC, PROTOCOL_VERSION, 1, 0, EVENT_CALLBACK_BYTES, 0, 0, 0)


class Rindex(NamedTuple):
    """sanlk_rindex: the index of a lockspace's resources."""

    lockspace: PaddedName = NO_NAME
    flags: int = 0
    max_resources: int = 0
    disk: Disk = Disk()

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, RINDEX_BYTES, "an index")
        flags, max_resources, _, lockspace = _RINDEX_HEAD.unpack_from(raw, start)
        return cls(PaddedName(lockspace), flags, max_resources, Disk.decode(raw, start + _RINDEX_HEAD.size))

    def encode(self) -> bytes:
        head = _RINDEX_HEAD.pack(self.flags, self.max_resources, 0, self.lockspace.field)
        return head + self.disk.encode()


class RindexEntry(NamedTuple):
    """sanlk_rentry."""

    name: PaddedName = NO_NAME
    offset_bytes: int = 0
    flags: int = 0

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, RINDEX_ENTRY_BYTES, "an index entry")
        name, offset_bytes, flags, _ = _RINDEX_ENTRY.unpack_from(raw, start)
        return cls(PaddedName(name), offset_bytes, flags)

    def encode(self) -> bytes:
        return _RINDEX_ENTRY.pack(self.name.field, self.offset_bytes, self.flags, 0)


class HostRecord(NamedTuple):
    """What INIT_LOCKSPACE_HOST takes of a delta lease's 200 bytes; `timestamp` 1 means now."""

    owner_id: int = 0
    generation: int = 0
    host_name: PaddedName = NO_NAME
    timestamp: int = 0

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> Self:
        need(raw, start, LEADER_BYTES, "a leader record")
        owner_id, generation = _FROM_HOST.unpack_from(raw, start + _OWNER_AT)
        name_at = start + _HOST_NAME_AT
        host_name = PaddedName(bytes(raw[name_at : name_at + NAME_BYTES]))
        return cls(owner_id, generation, host_name, _U64.unpack_from(raw, start + _TIMESTAMP_AT)[0])

    def encode(self) -> bytes:
        raw = bytearray(LEADER_BYTES)
        _FROM_HOST.pack_into(raw, _OWNER_AT, self.owner_id, self.generation)
        raw[_HOST_NAME_AT : _HOST_NAME_AT + NAME_BYTES] = self.host_name.field
        _U64.pack_into(raw, _TIMESTAMP_AT, self.timestamp)
        return bytes(raw)


_OWNER_AT, _HOST_NAME_AT, _TIMESTAMP_AT = 32, 104, 152
_U64 = struct.Struct("<Q")

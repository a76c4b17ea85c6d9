"""Answers as values, and their bytes (sanlock-socket.md 2, newer-sanlock.md 3).

Some structures come back on errors too ("always X" of the specification): then they are as the client sent them.
`decode` is for clients; what streams until the end of the connection has to be whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.header import HEADER_BYTES, U32_MAX, Header, decode_reply_header, reply_header
from holdfast.wire.sanlock.malformed import MalformedMessage
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import StateRecord, decode_records
from holdfast.wire.sanlock.state_string import state_string
from holdfast.wire.sanlock.structures import (
    HOST_BYTES,
    LOCKSPACE_BYTES,
    RESOURCE_BYTES,
    Host,
    Lockspace,
    Resource,
    RindexEntry,
    text_of,
)

LOCKSPACES_BYTES_MAX = 1 << 20
"""GET_LOCKSPACES answers -ENOSPC beyond (sanlock-socket.md 2.6)."""


class Plain(NamedTuple):
    """The header alone. VERSION's `data2` is the version as 0xMMmmpp00."""

    result: int = Result.OK
    data2: int = 0

    def encode(self, request: Header) -> bytes:
        return reply_header(request, result=self.result, data2=self.data2).encode()

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, 0)
        return cls(header.result, header.data2)


class ClientState(NamedTuple):
    """INQUIRE's: how many leases, and the state string. With -81 the string is empty, and its NUL is sent all the same."""

    result: int = Result.OK
    leases: int = 0
    text: str = ""

    @classmethod
    def of(cls, resources: tuple[Resource, ...]) -> Self:
        text, has_space = state_string(resources)
        return cls(Result.ELIBSCN, len(resources)) if has_space else cls(Result.OK, len(resources), text)

    def encode(self, request: Header) -> bytes:
        body = self.text.encode("utf-8", "surrogateescape") + b"\0" if self.leases else b""
        return _with_body(request, self.result, self.leases, body)

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        if header.result == Result.ELIBSCN and len(body) == 1:
            body = b"\0"  # sanlock sends whatever its buffer begins with
        if body and not body.endswith(b"\0"):
            raise MalformedMessage("a state string ends with a NUL")
        return cls(header.result, header.data2, text_of(body))


class LockspaceRead(NamedTuple):
    """READ_LOCKSPACE's."""

    result: int
    lockspace: Lockspace
    io_timeout_s: int = 0

    def encode(self, request: Header) -> bytes:
        return _with_body(request, self.result, self.io_timeout_s, self.lockspace.encode())

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, LOCKSPACE_BYTES)
        return cls(header.result, Lockspace.decode(body), header.data2)


class LockspaceHostRead(NamedTuple):
    """READ_LOCKSPACE_HOST's."""

    result: int
    lockspace: Lockspace
    host: Host
    io_timeout_s: int = 0

    def encode(self, request: Header) -> bytes:
        body = self.lockspace.encode() + self.host.encode()
        return _with_body(request, self.result, self.io_timeout_s, body)

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, LOCKSPACE_BYTES + HOST_BYTES)
        return cls(header.result, Lockspace.decode(body), Host.decode(body, LOCKSPACE_BYTES), header.data2)


class ResourceRead(NamedTuple):
    """READ_RESOURCE's: the resource without its disks."""

    result: int
    resource: Resource

    def encode(self, request: Header) -> bytes:
        return _with_body(request, self.result, 0, self.resource.encode())

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, RESOURCE_BYTES)
        return cls(header.result, Resource.decode(body))


class OwnersRead(NamedTuple):
    """READ_RESOURCE_OWNERS': the exclusive owner first, then shared holders."""

    result: int
    resource: Resource
    hosts: tuple[Host, ...] = ()

    def encode(self, request: Header) -> bytes:
        body = self.resource.encode() + _encoded(self.hosts)
        return _with_body(request, self.result, len(self.hosts), body)

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, RESOURCE_BYTES + header.data2 * HOST_BYTES)
        return cls(header.result, Resource.decode(body), _hosts(body, RESOURCE_BYTES))


class Lockspaces(NamedTuple):
    """GET_LOCKSPACES'. More than fit are none, with -ENOSPC: clients read as many as `data2` says, so it says 0."""

    result: int = Result.OK
    lockspaces: tuple[Lockspace, ...] = ()

    def encode(self, request: Header) -> bytes:
        if len(self.lockspaces) * LOCKSPACE_BYTES > LOCKSPACES_BYTES_MAX:
            return Plain(Result.ENOSPC).encode(request)
        return _with_body(request, self.result, len(self.lockspaces), _encoded(self.lockspaces))

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, header.data2 * LOCKSPACE_BYTES)
        starts = range(0, len(body), LOCKSPACE_BYTES)
        return cls(header.result, tuple(Lockspace.decode(body, start) for start in starts))


class Hosts(NamedTuple):
    """GET_HOSTS'."""

    result: int = Result.OK
    hosts: tuple[Host, ...] = ()

    def encode(self, request: Header) -> bytes:
        return _with_body(request, self.result, len(self.hosts), _encoded(self.hosts))

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, header.data2 * HOST_BYTES)
        return cls(header.result, _hosts(body, 0))


class ValueBlock(NamedTuple):
    """GET_LVB's."""

    result: int = Result.OK
    value_block: bytes = b""

    def encode(self, request: Header) -> bytes:
        return _with_body(request, self.result, 0, self.value_block)

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        return cls(header.result, body)


class IndexEntry(NamedTuple):
    """That of UPDATE, LOOKUP, CREATE and DELETE."""

    result: int
    entry: RindexEntry

    def encode(self, request: Header) -> bytes:
        return _with_body(request, self.result, 0, self.entry.encode())

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        return cls(header.result, RindexEntry.decode(body))


class Holder(NamedTuple):
    """ACQUIRE2's refusal, when it names the holder; data2 is -1. `Plain` when there is nobody to name."""

    result: int
    host: Host
    host_name: PaddedName

    def encode(self, request: Header) -> bytes:
        return _with_body(request, self.result, U32_MAX, self.host.encode() + self.host_name.field)

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, HOST_BYTES + NAME_BYTES)
        return cls(header.result, Host.decode(body), PaddedName(body[HOST_BYTES:]))


class Records(NamedTuple):
    """Those of STATUS, HOST_STATUS and RENEWAL (`data2`: io_timeout); the end of the connection is the end of the list."""

    result: int = Result.OK
    records: tuple[StateRecord, ...] = ()
    data2: int = 0

    def encode(self, request: Header) -> bytes:
        head = reply_header(request, result=self.result, data2=self.data2).encode()
        return head + _encoded(self.records)

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        return cls(header.result, decode_records(body), header.data2)


class Log(NamedTuple):
    """LOG_DUMP's: `data` is the number of bytes behind the header."""

    text: bytes = b""

    @property
    def result(self) -> int:
        return Result.OK

    def encode(self, request: Header) -> bytes:
        return reply_header(request, result=len(self.text)).encode() + self.text

    @classmethod
    def decode(cls, header: Header, body: bytes) -> Self:
        _exactly(body, header.data)
        return cls(body)


Reply = (
    Plain
    | ClientState
    | LockspaceRead
    | LockspaceHostRead
    | ResourceRead
    | OwnersRead
    | Lockspaces
    | Hosts
    | ValueBlock
    | IndexEntry
    | Holder
    | Records
    | Log
)

_DECODERS: dict[Command, Callable[[Header, bytes], Reply]] = {
    Command.INQUIRE: ClientState.decode,
    Command.READ_LOCKSPACE: LockspaceRead.decode,
    Command.READ_LOCKSPACE_HOST: LockspaceHostRead.decode,
    Command.READ_RESOURCE: ResourceRead.decode,
    Command.READ_RESOURCE_OWNERS: OwnersRead.decode,
    Command.GET_LOCKSPACES: Lockspaces.decode,
    Command.GET_HOSTS: Hosts.decode,
    Command.GET_LVB: ValueBlock.decode,
    Command.UPDATE_RINDEX: IndexEntry.decode,
    Command.LOOKUP_RINDEX: IndexEntry.decode,
    Command.CREATE_RESOURCE: IndexEntry.decode,
    Command.DELETE_RESOURCE: IndexEntry.decode,
    Command.STATUS: Records.decode,
    Command.HOST_STATUS: Records.decode,
    Command.RENEWAL: Records.decode,
    Command.LOG_DUMP: Log.decode,
}
STREAMS = frozenset((Command.STATUS, Command.HOST_STATUS, Command.RENEWAL, Command.LOG_DUMP))
"""Whose answers have more bytes than `length` says, up to the end of the connection."""


def decode(command: Command, raw: bytes) -> Reply:
    """A whole answer; `MalformedMessage` if it is none of that command's."""
    header = decode_reply_header(raw)
    body = raw[HEADER_BYTES:]
    if command is Command.ACQUIRE2 and body:
        return Holder.decode(header, body)
    return _DECODERS.get(command, Plain.decode)(header, body)


def refusal(request: Header, body: bytes, result: int) -> Reply:
    """The answer to a request that is refused before it is served; `body` is as much of its body as was read.

    Where a structure always comes back, it is the client's own, or zeros where that has not been read.
    """
    command = request.command
    if command == Command.READ_LOCKSPACE:
        return LockspaceRead(result, Lockspace.decode(_padded(body, LOCKSPACE_BYTES)))
    if command == Command.READ_LOCKSPACE_HOST:
        return LockspaceHostRead(result, Lockspace.decode(_padded(body, LOCKSPACE_BYTES)), Host())
    if command == Command.READ_RESOURCE:
        return ResourceRead(result, Resource.decode(_padded(body, RESOURCE_BYTES)))
    if command == Command.READ_RESOURCE_OWNERS:
        return OwnersRead(result, Resource.decode(_padded(body, RESOURCE_BYTES)))
    if command in _INDEX_ENTRY:
        return IndexEntry(result, RindexEntry())
    return Plain(result)


_INDEX_ENTRY = frozenset(
    (Command.UPDATE_RINDEX, Command.LOOKUP_RINDEX, Command.CREATE_RESOURCE, Command.DELETE_RESOURCE)
)


def _with_body(request: Header, result: int, data2: int, body: bytes) -> bytes:
    header = reply_header(request, result=result, data2=data2, body_bytes=len(body))
    return header.encode() + body


def _encoded(values: tuple[Lockspace, ...] | tuple[Host, ...] | tuple[StateRecord, ...]) -> bytes:
    return b"".join(value.encode() for value in values)


def _hosts(body: bytes, start: int) -> tuple[Host, ...]:
    return tuple(Host.decode(body, at) for at in range(start, len(body), HOST_BYTES))


def _exactly(body: bytes, size: int) -> None:
    if len(body) != size:
        raise MalformedMessage(f"the answer has {size} bytes behind its header, not {len(body)}")


def _padded(body: bytes, size: int) -> bytes:
    return body[:size].ljust(size, b"\0")

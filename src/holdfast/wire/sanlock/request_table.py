"""Each command's fields: which header words and which body parts they are, for decoding and encoding alike.

This is the table of sanlock-socket.md 2 (and newer-sanlock.md 3) as code. `pieces` says how many bytes a body has, as
far as it is known: it follows from command, `data` and `num_disks`, never from `length`, which clients get wrong;
SET_LVB's value block alone has no other measure.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, cast

from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import FOR_CLIENT_ID, ReleaseFlag
from holdfast.wire.sanlock.header import HEADER_BYTES, U32_MAX, Header, request_header
from holdfast.wire.sanlock.malformed import MalformedMessage
from holdfast.wire.sanlock.result import Result

ACQUIRE_RESOURCES_MAX = 8
"""sanlock's own limit for one call."""
RELEASE_RESOURCES_MAX = 256
"""sanlock has none. This is 32 KiB, as much as ACQUIRE may send."""
VALUE_BLOCK_BYTES_MAX = 4096
"""The largest sector."""
KILLPATH_FIELD_BYTES = 128
"""Of path and of arguments, with their NULs."""
BODY_BYTES_MAX = ACQUIRE_RESOURCES_MAX * (s.RESOURCE_BYTES + s.DISKS_MAX * s.DISK_BYTES) + s.OPTIONS_BYTES
"""ACQUIRE's; RELEASE's and SET_LVB's stay below it."""

_MANY = frozenset((Command.ACQUIRE, Command.ACQUIRE2, Command.RELEASE))


class Part(NamedTuple):
    """One part of a body of fixed size."""

    size: int
    decode: Callable[[s.Raw, int], Any]
    encode: Callable[[Any], bytes]


def _text(raw: s.Raw, start: int) -> str:
    return s.text_of(bytes(raw[start : start + KILLPATH_FIELD_BYTES - 1]))


def _field(text: str) -> bytes:
    return s.field_of(text, KILLPATH_FIELD_BYTES, "a killpath's path or arguments")


LS = Part(s.LOCKSPACE_BYTES, s.Lockspace.decode, s.Lockspace.encode)
RES = Part(s.RESOURCE_BYTES, s.Resource.decode, s.Resource.encode)
WHOLE = Part(0, s.Resource.decode_whole, s.Resource.encode_whole)
"""A resource with its disks: always the last part, so its size is not needed for what follows."""
DISK = Part(s.DISK_BYTES, s.Disk.decode, s.Disk.encode)
HOST = Part(s.HOST_BYTES, s.Host.decode, s.Host.encode)
EVENT = Part(s.HOST_EVENT_BYTES, s.HostEvent.decode, s.HostEvent.encode)
RECORD = Part(s.LEADER_BYTES, s.HostRecord.decode, s.HostRecord.encode)
RX = Part(s.RINDEX_BYTES, s.Rindex.decode, s.Rindex.encode)
RE = Part(s.RINDEX_ENTRY_BYTES, s.RindexEntry.decode, s.RindexEntry.encode)
TEXT = Part(KILLPATH_FIELD_BYTES, _text, _field)


class Row(NamedTuple):
    """`words`: which header words are fields, in order: f flags, d data, 2 data2, t the target (of data2 and flags)."""

    request: type[tuple[Any, ...]]
    words: str
    parts: tuple[Part, ...] = ()


ROWS: dict[Command, Row] = {
    Command.REGISTER: Row(r.Register, ""),
    Command.ADD_LOCKSPACE: Row(r.AddLockspace, "fd", (LS,)),
    Command.REM_LOCKSPACE: Row(r.RemLockspace, "f", (LS,)),
    Command.SHUTDOWN: Row(r.Shutdown, "d"),
    Command.STATUS: Row(r.Status, "d"),
    Command.LOG_DUMP: Row(r.LogDump, ""),
    Command.ACQUIRE: Row(r.Acquire, "ft"),
    Command.RELEASE: Row(r.Release, "ft"),
    Command.INQUIRE: Row(r.Inquire, "ft"),
    Command.RESTRICT: Row(r.Restrict, "f"),
    Command.REQUEST: Row(r.Request, "fd", (WHOLE,)),
    Command.ALIGN: Row(r.Align, "", (DISK,)),
    Command.EXAMINE_LOCKSPACE: Row(r.ExamineLockspace, "", (LS,)),
    Command.EXAMINE_RESOURCE: Row(r.ExamineResource, "", (RES,)),
    Command.HOST_STATUS: Row(r.HostStatus, "", (LS,)),
    Command.INQ_LOCKSPACE: Row(r.InqLockspace, "f", (LS,)),
    Command.KILLPATH: Row(r.Killpath, "ft", (TEXT, TEXT)),
    Command.WRITE_LOCKSPACE: Row(r.WriteLockspace, "fd2", (LS,)),
    Command.WRITE_RESOURCE: Row(r.WriteResource, "fd2", (WHOLE,)),
    Command.READ_LOCKSPACE: Row(r.ReadLockspace, "", (LS,)),
    Command.READ_RESOURCE: Row(r.ReadResource, "", (WHOLE,)),
    Command.GET_LOCKSPACES: Row(r.GetLockspaces, ""),
    Command.GET_HOSTS: Row(r.GetHosts, "f", (LS,)),
    Command.READ_RESOURCE_OWNERS: Row(r.ReadResourceOwners, "", (WHOLE,)),
    Command.SET_LVB: Row(r.SetLvb, "", (RES,)),
    Command.GET_LVB: Row(r.GetLvb, "2", (RES,)),
    Command.CONVERT: Row(r.Convert, "ft", (RES,)),
    Command.VERSION: Row(r.Version, ""),
    Command.SHUTDOWN_WAIT: Row(r.ShutdownWait, "d"),
    Command.REG_EVENT: Row(r.RegEvent, "", (LS, EVENT)),
    Command.END_EVENT: Row(r.EndEvent, "", (LS,)),
    Command.SET_EVENT: Row(r.SetEvent, "f", (LS, EVENT)),
    Command.SET_CONFIG: Row(r.SetConfig, "d2", (LS,)),
    Command.RENEWAL: Row(r.Renewal, "", (LS,)),
    Command.FORMAT_RINDEX: Row(r.FormatRindex, "", (RX,)),
    Command.UPDATE_RINDEX: Row(r.UpdateRindex, "f", (RX, RE)),
    Command.LOOKUP_RINDEX: Row(r.LookupRindex, "", (RX, RE)),
    Command.CREATE_RESOURCE: Row(r.CreateResource, "d2", (RX, RE)),
    Command.DELETE_RESOURCE: Row(r.DeleteResource, "", (RX, RE)),
    Command.REBUILD_RINDEX: Row(r.RebuildRindex, "", (RX,)),
    Command.ACQUIRE2: Row(r.Acquire2, "ft"),
    Command.READ_LOCKSPACE_HOST: Row(r.ReadLockspaceHost, "", (LS,)),
    Command.INIT_LOCKSPACE_HOST: Row(r.InitLockspaceHost, "f2", (LS, RECORD)),
    Command.SET_HOST: Row(r.SetHost, "d2", (LS, HOST)),
}
_COMMANDS = {row.request: command for command, row in ROWS.items()}


def command_of(request: r.AnyRequest) -> Command:
    return _COMMANDS[type(request)]


def target_of(header: Header) -> r.Target:
    """Of a command that is bound to a client."""
    if header.data2 == U32_MAX:
        return r.OWN
    named_by_id = header.flags & FOR_CLIENT_ID and header.command != Command.KILLPATH
    return r.Target(header.data2, bool(named_by_id))


# --- sizes ---


class Piece(NamedTuple):
    """The next bytes of a body; `refused` if the request is refused by now, while these still belong to it."""

    size: int
    refused: Result | None = None


def pieces(header: Header) -> Generator[Piece, bytes | None, None]:
    """The body's pieces one after the other; each `send` passes the bytes of the piece before.

    Only a resource's first part has to be passed whole; anything may be passed for the others.
    """
    command = Command(header.command)
    if command in _MANY:
        yield from _resources(command, header)
        return
    row = ROWS[command]
    for part in row.parts:
        if part is WHOLE:
            yield from _whole_resource(None)
        else:
            yield Piece(part.size)
    if command is Command.SET_LVB:
        size = header.length - HEADER_BYTES - s.RESOURCE_BYTES
        if size > VALUE_BLOCK_BYTES_MAX:
            yield Piece(size, Result.E2BIG)
        elif size < 0:
            yield Piece(0, Result.ENOMEM)
        else:
            yield Piece(size)


def _resources(command: Command, header: Header) -> Generator[Piece, bytes | None, None]:
    if command is Command.RELEASE:
        if not header.flags & ReleaseFlag.ALL:
            refused = Result.E2BIG if header.data > RELEASE_RESOURCES_MAX else None
            yield Piece(header.data * s.RESOURCE_BYTES, refused)
        return
    refused = Result.E2BIG if header.data > ACQUIRE_RESOURCES_MAX else None
    if refused is not None:
        yield Piece(0, refused)
    for _ in range(header.data):
        yield from _whole_resource(refused)
    yield Piece(s.OPTIONS_BYTES)


def _whole_resource(refused: Result | None) -> Generator[Piece, bytes | None, None]:
    head = yield Piece(s.RESOURCE_BYTES, refused)
    assert head is not None
    count = s.num_disks_of(head)
    if not 1 <= count <= s.DISKS_MAX:
        refused = refused or Result.ERANGE
    yield Piece(count * s.DISK_BYTES, refused)


# --- decoding and encoding ---


def decode(header: Header, body: bytes | bytearray) -> r.AnyRequest:
    """The request that an accepted header and its whole body are; `MalformedMessage` if the body is not its."""
    try:
        command = Command(header.command)
    except ValueError:
        raise MalformedMessage(f"there is no command {header.command}") from None
    row = ROWS[command]
    values: list[Any] = [_word(word, header, row.words) for word in row.words]
    at = 0
    for part in row.parts:
        if len(body) < at + part.size:
            raise MalformedMessage(f"the body of {command.name} has {len(body)} bytes, too few")
        values.append(part.decode(body, at))
        at += part.size
    if command in _MANY:
        values += _many(command, header, body)
    elif command is Command.SET_LVB:
        values.append(bytes(body[at:]))
    return cast(r.AnyRequest, tuple.__new__(row.request, values))


def _word(word: str, header: Header, words: str) -> Any:
    if word == "f":
        return header.flags & ~FOR_CLIENT_ID if "t" in words and not _own_flag(header) else header.flags
    if word == "t":
        return target_of(header)
    return header.data if word == "d" else header.data2


def _own_flag(header: Header) -> bool:
    """Whether the bit of FOR_CLIENT_ID is another flag in this command."""
    return header.command == Command.KILLPATH


def _many(command: Command, header: Header, body: bytes | bytearray) -> list[Any]:
    whole = command is not Command.RELEASE
    if not whole and header.flags & ReleaseFlag.ALL:
        return [()]
    limit = ACQUIRE_RESOURCES_MAX if whole else RELEASE_RESOURCES_MAX
    if header.data > limit:
        raise MalformedMessage(f"{command.name} has at most {limit} resources, not {header.data}")
    resources: list[s.Resource] = []
    at = 0
    for _ in range(header.data):
        resource = s.Resource.decode_whole(body, at) if whole else s.Resource.decode(body, at)
        resources.append(resource)
        at += resource.bytes_whole if whole else s.RESOURCE_BYTES
    return [tuple(resources), s.Options.decode(body, at)] if whole else [tuple(resources)]


def encode(request: r.AnyRequest) -> bytes:
    """The bytes that a client sends; `length` is true."""
    command = command_of(request)
    row = ROWS[command]
    flags = data = data2 = 0
    values: list[Any] = list(request)
    for word in row.words:
        value = values.pop(0)
        if word == "f":
            flags = value
        elif word == "d":
            data = value
        elif word == "2":
            data2 = value
        else:
            data2 = value.number
            flags |= FOR_CLIENT_ID if value.by_client_id else 0
    body = b"".join(part.encode(values.pop(0)) for part in row.parts)
    if isinstance(request, r.SetLvb):
        body += request.value_block
    elif isinstance(request, r.Release):
        data = len(request.resources)
        body = b"".join(resource.encode() for resource in request.resources)
    elif isinstance(request, r.Acquire | r.Acquire2):
        data = len(request.resources)
        body = b"".join(resource.encode_whole() for resource in request.resources)
        body += request.options.encode()
    header = request_header(command, flags=flags, body_bytes=len(body), data=data, data2=data2)
    return header.encode() + body

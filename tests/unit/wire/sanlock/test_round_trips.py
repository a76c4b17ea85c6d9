"""Values to bytes and back: nothing is lost, and nothing that is cut or invented raises anything but `MalformedMessage`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.sanlock_values import (
    DISKS,
    ENTRIES,
    EVENTS,
    HEADS,
    HOSTS,
    INDEXES,
    LOCKSPACES,
    NAMES,
    OPTIONS,
    RECORDS,
    REQUEST_TYPES,
    REQUESTS,
    REQUESTS_BY_TYPE,
    U32,
    U64,
    WHOLE,
)

from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import EVERY_COMMAND, Command
from holdfast.wire.sanlock.header import HEADER_BYTES, Header, decode_header, request_header
from holdfast.wire.sanlock.malformed import MalformedMessage
from holdfast.wire.sanlock.requests import SetLvb
from holdfast.wire.sanlock.result import Result, described
from holdfast.wire.sanlock.state_records import (
    VERSION_3_8_5,
    VERSION_3_9,
    VERSION_5,
    RecordType,
    StateRecord,
    decode_records,
    key_words,
    keys_of,
)
from holdfast.wire.sanlock.state_string import parse, state_string

STRUCTURES: dict[str, tuple[int, st.SearchStrategy[Any], Callable[..., Any]]] = {
    "sanlk_disk": (1040, DISKS, s.Disk.decode),
    "sanlk_resource": (128, HEADS, s.Resource.decode),
    "sanlk_options": (56, OPTIONS, s.Options.decode),
    "sanlk_lockspace": (1104, LOCKSPACES, s.Lockspace.decode),
    "sanlk_host": (32, HOSTS, s.Host.decode),
    "sanlk_host_event": (32, EVENTS, s.HostEvent.decode),
    "sanlk_rindex": (1104, INDEXES, s.Rindex.decode),
    "sanlk_rentry": (64, ENTRIES, s.RindexEntry.decode),
    "event_cb": (80, st.builds(s.EventCallback, EVENTS, U64, U64), s.EventCallback.decode),
    "leader": (200, RECORDS, s.HostRecord.decode),
}


@pytest.mark.parametrize("name", STRUCTURES)
@given(data=st.data())
def test_structure_has_its_size_and_comes_back(name: str, data: st.DataObject) -> None:
    size, values, decode = STRUCTURES[name]
    value = data.draw(values)
    raw = value.encode()
    assert len(raw) == size
    assert decode(raw) == value
    assert decode(b"before" + raw, 6) == value
    with pytest.raises(MalformedMessage):
        decode(raw[: data.draw(st.integers(0, size - 1))])


@given(WHOLE)
def test_resource_comes_back_with_its_disks(resource: s.Resource) -> None:
    raw = resource.encode_whole()
    assert len(raw) == resource.bytes_whole
    assert s.Resource.decode_whole(raw) == resource


@pytest.mark.parametrize("disks", [0, 5, 2**32 - 1])
def test_resource_with_another_number_of_disks_is_refused(disks: int) -> None:
    with pytest.raises(MalformedMessage, match="1 to 4 disks"):
        s.Resource.decode_whole(s.Resource(num_disks=disks).encode() + bytes(6 * s.DISK_BYTES))


def test_path_without_a_nul_is_cut_where_its_nul_belongs() -> None:
    raw = b"x" * 1024 + bytes(16)
    assert s.Disk.decode(raw) == s.Disk("x" * 1023)
    assert s.Disk.decode(raw).encode() == b"x" * 1023 + bytes(17)


def test_number_of_disks_has_to_be_that_of_the_disks() -> None:
    with pytest.raises(MalformedMessage, match="num_disks is 2"):
        s.Resource(num_disks=2, disks=(s.Disk(),)).encode_whole()


@pytest.mark.parametrize("path", ["x" * 1024, "a\0b"])
def test_path_that_has_no_room_or_a_nul_is_not_sent(path: str) -> None:
    with pytest.raises(MalformedMessage, match="1023 bytes"):
        s.Disk(path).encode()


def test_path_ends_at_its_nul_and_a_name_keeps_what_is_behind() -> None:
    """libvirt leaves garbage there; RELEASE compares 48 bytes."""
    raw = bytearray(s.Lockspace.of("LS", 1, "/lease").encode())
    raw[3:6], raw[64 + 7 : 64 + 10] = b"xyz", b"xyz"
    found = s.Lockspace.decode(raw)
    assert (found.name.text, found.disk.path) == ("LS", "/lease")
    assert found.name.field[:6] == b"LS\0xyz"


# --- requests ---


def test_every_command_has_a_request_and_every_request_a_command() -> None:
    assert set(request_table.ROWS) == EVERY_COMMAND == set(map(Command, range(1, 45)))
    assert {row.request for row in request_table.ROWS.values()} == set(REQUEST_TYPES)


@pytest.mark.parametrize("kind", REQUEST_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=20)
@given(data=st.data())
def test_request_comes_back(kind: Any, data: st.DataObject) -> None:
    request = data.draw(REQUESTS_BY_TYPE[kind])
    raw = request_table.encode(request)
    header = decode_header(raw)
    assert header.length == len(raw)
    assert request_table.decode(header, raw[HEADER_BYTES:]) == request


@given(REQUESTS, st.data())
def test_cut_body_is_refused(request: Any, data: st.DataObject) -> None:
    raw = request_table.encode(request)
    body = raw[HEADER_BYTES:]
    if not body or isinstance(request, SetLvb):
        return
    with pytest.raises(MalformedMessage):
        request_table.decode(decode_header(raw), body[: data.draw(st.integers(0, len(body) - 1))])


@given(st.builds(Header, *([U32] * 8)), st.integers(0, 50), st.binary(max_size=3000))
def test_invented_request_raises_nothing_else(header: Header, command: int, body: bytes) -> None:
    try:
        request = request_table.decode(header._replace(command=command), body)
    except MalformedMessage:
        return
    assert request_table.command_of(request) == command


# --- answers ---

RECORD_TEXTS = st.text("ab= 01\n", max_size=60)


@st.composite
def state_records(draw: st.DrawFn) -> StateRecord:
    kind = draw(st.sampled_from(RecordType))
    attached: s.Lockspace | s.Resource | None = None
    if kind is RecordType.LOCKSPACE:
        attached = draw(LOCKSPACES)
    elif kind is RecordType.RESOURCE:
        attached = draw(WHOLE)
    return StateRecord(kind, draw(U32), draw(U64), draw(NAMES), draw(RECORD_TEXTS), attached, draw(U32))


RESULTS = st.sampled_from(Result).map(int)
SOME_HOSTS = st.lists(HOSTS, max_size=3).map(tuple)
SOME_RECORDS = st.lists(state_records(), max_size=3).map(tuple)
ANSWERS: dict[Command, st.SearchStrategy[Any]] = {
    Command.INQUIRE: st.builds(replies.ClientState, RESULTS, st.integers(1, 9), RECORD_TEXTS),
    Command.READ_LOCKSPACE: st.builds(replies.LockspaceRead, RESULTS, LOCKSPACES, U32),
    Command.READ_RESOURCE: st.builds(replies.ResourceRead, RESULTS, HEADS),
    Command.GET_LOCKSPACES: st.builds(
        replies.Lockspaces, RESULTS, st.lists(LOCKSPACES, max_size=3).map(tuple)
    ),
    Command.GET_HOSTS: st.builds(replies.Hosts, RESULTS, SOME_HOSTS),
    Command.READ_RESOURCE_OWNERS: st.builds(replies.OwnersRead, RESULTS, HEADS, SOME_HOSTS),
    Command.GET_LVB: st.builds(replies.ValueBlock, RESULTS, st.binary(max_size=512)),
    Command.LOOKUP_RINDEX: st.builds(replies.IndexEntry, RESULTS, ENTRIES),
    Command.ACQUIRE2: st.one_of(
        st.builds(replies.Holder, RESULTS, HOSTS, NAMES), st.builds(replies.Plain, RESULTS, U32)
    ),
    Command.READ_LOCKSPACE_HOST: st.builds(replies.LockspaceHostRead, RESULTS, LOCKSPACES, HOSTS, U32),
    Command.STATUS: st.builds(replies.Records, RESULTS, SOME_RECORDS, U32),
    Command.RENEWAL: st.builds(replies.Records, RESULTS, SOME_RECORDS, U32),
    Command.LOG_DUMP: st.builds(replies.Log, st.binary(max_size=300)),
    Command.ADD_LOCKSPACE: st.builds(replies.Plain, RESULTS, U32),
}


@pytest.mark.parametrize("command", ANSWERS, ids=lambda command: command.name)
@settings(max_examples=40)
@given(data=st.data())
def test_answer_comes_back_and_echoes_the_request(command: Command, data: st.DataObject) -> None:
    answer = data.draw(ANSWERS[command])
    request = request_header(command, flags=7)._replace(seq=data.draw(U32))
    raw = answer.encode(request)
    assert replies.decode(command, raw) == answer
    header = decode_header(raw)
    assert (header.command, header.flags, header.seq) == (command, 7, request.seq)
    assert header.length == (HEADER_BYTES if command in replies.STREAMS else len(raw))


@given(st.sampled_from(Command), st.one_of(st.binary(max_size=200), st.binary(max_size=300)))
def test_invented_answer_raises_nothing_else(command: Command, body: bytes) -> None:
    head = replies.Plain().encode(request_header(command))
    for raw in (body, head + body):
        try:
            replies.decode(command, raw)
        except MalformedMessage:
            pass


@given(st.binary(max_size=6000))
def test_invented_records_raise_nothing_else(raw: bytes) -> None:
    try:
        decode_records(raw)
    except MalformedMessage:
        pass


def test_record_text_is_cut_at_its_limit() -> None:
    record = StateRecord(RecordType.HOST, text="k=" + "v" * 5000)
    found, end = StateRecord.decode(record.encode())
    assert end == 80 + 4096
    assert found.text == record.text[:4095]


def test_record_says_the_keys_of_a_version_in_its_order() -> None:
    values: dict[str, object] = dict.fromkeys(keys_of(RecordType.RESOURCE, VERSION_5), 1)
    shown = [key_words(RecordType.RESOURCE, values, each) for each in (VERSION_3_8_5, VERSION_3_9, VERSION_5)]
    oldest = "list=1 flags=1 sector_size=1 align_size=1 lver=1 reused=1 res_id=1 token_id=1"
    caw = "res_id=1 caw=1 caw_dev=1 caw_off=1"
    assert shown == [oldest, f"{oldest} ci=1", f"{oldest} ci=1".replace("res_id=1", caw)]
    del values["ci"]
    assert key_words(RecordType.RESOURCE, values, VERSION_3_8_5) == oldest
    with pytest.raises(ValueError, match="RESOURCE needs ci"):
        key_words(RecordType.RESOURCE, values, VERSION_3_9)
    assert StateRecord(RecordType.RESOURCE, text=shown[1]).words["ci"] == "1"
    assert keys_of(99, VERSION_5) == ()


def test_more_lockspaces_than_a_megabyte_are_none() -> None:
    """A client reads as many as data2 says, also on an error."""
    many = replies.Lockspaces(Result.OK, (s.Lockspace(),) * 950)
    raw = many.encode(request_header(Command.GET_LOCKSPACES))
    assert replies.decode(Command.GET_LOCKSPACES, raw) == replies.Lockspaces(Result.ENOSPC)


@pytest.mark.parametrize(
    ("command", "behind"),
    [
        (Command.READ_LOCKSPACE, 1104),
        (Command.READ_RESOURCE, 128),
        (Command.READ_RESOURCE_OWNERS, 128),
        (Command.CREATE_RESOURCE, 64),
        (Command.READ_LOCKSPACE_HOST, 1136),
        (Command.ACQUIRE, 0),
        (Command.INQUIRE, 0),
    ],
)
@pytest.mark.parametrize("read", [0, 40, 2000])
def test_refusal_has_the_structure_that_always_comes_back(command: Command, behind: int, read: int) -> None:
    header = request_header(command)
    raw = replies.refusal(header, b"L" * read, Result.ENOTCONN).encode(header)
    assert len(raw) == HEADER_BYTES + behind
    assert decode_header(raw).result == Result.ENOTCONN


def test_every_result_has_a_meaning_and_a_number_of_its_own() -> None:
    assert len({result.value for result in Result}) == len(Result) == len(Result.__members__)
    assert all(result.meaning for result in Result)
    assert described(-16).startswith("-16 EBUSY: ")
    assert described(1048576) == "1048576"


# --- the state string ---

PLAIN_NAMES = st.text("aR0_-é", max_size=12)


@st.composite
def held(draw: st.DrawFn) -> s.Resource:
    """A lease whose text has no space and no backslash of its own."""
    text = st.text("a/:.é", max_size=20)
    disks = tuple(draw(st.lists(st.builds(s.Disk, text, U64), min_size=1, max_size=4)))
    shared = draw(st.booleans())
    lver = 0 if shared else draw(U64)
    flags = 4 if shared else 1
    return s.Resource.of(draw(PLAIN_NAMES), draw(PLAIN_NAMES), *disks, flags=flags, lver=lver)


@settings(max_examples=50)
@given(st.lists(held(), max_size=3).map(tuple))
def test_state_string_comes_back(resources: tuple[s.Resource, ...]) -> None:
    state = state_string(resources)
    assert not state.has_space
    assert parse(state.text) == resources


@given(st.text(st.sampled_from("a:\\ S0\0"), max_size=40))
def test_invented_state_string_raises_nothing_else(text: str) -> None:
    try:
        parse(text)
    except MalformedMessage:
        pass

"""Bytes to requests: any cut of the stream gives the same ones, refused ones leave it in sync, and memory stays bounded."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.sanlock_values import REQUESTS, U32

from holdfast.wire.sanlock import request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import COMMANDS_OF_3, COMMANDS_OF_5, Command
from holdfast.wire.sanlock.framer import KEPT_BYTES_MAX, Framed, Framer
from holdfast.wire.sanlock.header import HEADER_BYTES, Header, decode_header, request_header
from holdfast.wire.sanlock.result import Result

VERSION = request_table.encode(r.Version())
ONE = s.Resource.of("LS", "R1", s.Disk("/lease", 1048576))


def framed(framer: Framer, chunks: Iterable[bytes]) -> list[Framed]:
    done: list[Framed] = []
    for chunk in chunks:
        framer.feed(chunk)
        while (each := framer.next()) is not None:
            done.append(each)
    return done


def commands(done: list[Framed]) -> list[tuple[int, Result | None]]:
    return [(each.header.command, each.refused) for each in done]


def as_sent(request: r.AnyRequest) -> Framed:
    raw = request_table.encode(request)
    return Framed(decode_header(raw), raw[HEADER_BYTES:])


def changed(raw: bytes, **words: int) -> bytes:
    """The same request with other words in its header."""
    return decode_header(raw)._replace(**words).encode() + raw[HEADER_BYTES:]


@settings(max_examples=60)
@given(st.lists(REQUESTS, max_size=4), st.lists(st.integers(0, 20000), max_size=12))
def test_any_cut_of_the_stream_gives_the_same_requests(requests: list[r.AnyRequest], at: list[int]) -> None:
    raw = b"".join(map(request_table.encode, requests))
    places = sorted({0, len(raw), *(place % (len(raw) + 1) for place in at)})
    framer = Framer()
    chunks = [raw[a:b] for a, b in itertools.pairwise(places)]
    assert framed(framer, chunks) == [as_sent(request) for request in requests]
    assert not framer.waiting_bytes
    assert framer.unfinished is None


@given(REQUESTS, U32)
def test_body_is_not_sized_by_the_length_word(request: r.AnyRequest, length: int) -> None:
    """HOST_STATUS, RENEWAL and LOOKUP_RINDEX come with a wrong one; SET_LVB's value block has no other measure."""
    if isinstance(request, r.SetLvb):
        return
    raw = changed(request_table.encode(request), length=length) + VERSION
    assert [each.header.command for each in framed(Framer(), [raw])] == [
        request_table.command_of(request),
        Command.VERSION,
    ]


def test_partial_header_and_partial_body_wait() -> None:
    raw = request_table.encode(r.ReadResource(ONE))
    framer = Framer()
    assert not framed(framer, [raw[:31]])
    assert not framed(framer, [raw[31:-1]])
    assert framer.unfinished == decode_header(raw)
    assert commands(framed(framer, [raw[-1:]])) == [(Command.READ_RESOURCE, None)]


# --- headers that are none ---


@pytest.mark.parametrize(
    "word",
    [{"magic": 0x04282011}, {"version": 0x20001}, {"command": 0}, {"command": 45}, {"command": 2**32 - 1}],
    ids=str,
)
def test_header_that_is_none_is_dropped_and_the_next_one_is_read(word: dict[str, int]) -> None:
    raw = changed(request_table.encode(r.Inquire(0, r.OWN)), **word)
    assert commands(framed(Framer(), [raw + VERSION])) == [(Command.VERSION, None)]


@pytest.mark.parametrize("version", [0, 2, 0xFFFF])
def test_another_minor_version_is_accepted(version: int) -> None:
    raw = changed(request_table.encode(r.Inquire(0, r.OWN)), version=version)
    assert commands(framed(Framer(), [raw])) == [(Command.INQUIRE, None)]


def test_version_is_answered_whatever_version_asks() -> None:
    assert commands(framed(Framer(), [changed(VERSION, version=0x50000)])) == [(Command.VERSION, None)]


def test_body_of_a_dropped_header_is_read_as_headers() -> None:
    """As sanlock does: how long it is says only a header that is one."""
    raw = changed(request_table.encode(r.SetEvent(0, s.Lockspace(), s.HostEvent())), magic=1)
    assert (len(raw) - HEADER_BYTES) % HEADER_BYTES == 16
    assert not framed(Framer(), [raw + VERSION])
    assert commands(framed(Framer(), [raw + bytes(16) + VERSION])) == [(Command.VERSION, None)]


def test_restricted_connection_has_no_header_that_is_one() -> None:
    framer = Framer()
    framer.rejecting = True
    assert not framed(framer, [VERSION * 3])
    assert not framer.waiting_bytes


def test_commands_of_another_release_are_dropped() -> None:
    acquire2 = request_table.encode(r.Acquire2(0, r.OWN, (ONE,)))
    rebuild = request_table.encode(r.RebuildRindex(s.Rindex()))
    assert commands(framed(Framer(commands=COMMANDS_OF_5), [acquire2 + VERSION])) == [
        (Command.ACQUIRE2, None),
        (Command.VERSION, None),
    ]
    assert Command.ACQUIRE2 not in COMMANDS_OF_3
    assert Command.ACQUIRE2 not in [
        c for c, _ in commands(framed(Framer(commands=COMMANDS_OF_3), [acquire2]))
    ]
    assert not framed(Framer(commands=COMMANDS_OF_5), [rebuild])


# --- refused before the body is read ---


def test_more_than_eight_resources_are_refused_at_once_and_leave_the_stream_in_sync() -> None:
    two = s.Resource.of("LS", "R2", s.Disk("/a"), s.Disk("/b", 1))
    raw = request_table.encode(r.Acquire(0, r.OWN, (ONE, two) * 5))
    framer = Framer()
    assert commands(framed(framer, [raw[:HEADER_BYTES]])) == [(Command.ACQUIRE, Result.E2BIG)]
    assert framer.unfinished is None
    assert not framed(framer, [raw[HEADER_BYTES:-1]])
    assert commands(framed(framer, [raw[-1:] + VERSION])) == [(Command.VERSION, None)]


@pytest.mark.parametrize("disks", [0, 5, 7])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_number_of_disks_out_of_range_is_refused_and_leaves_the_stream_in_sync(disks: int, at: int) -> None:
    bad = s.Resource.of("LS", "R2", *[s.Disk("/x")] * disks)
    resources = [ONE] * 8
    resources[at] = bad
    raw = request_table.encode(r.Acquire(0, r.OWN, tuple(resources)))
    for chunks in ([raw + VERSION], [(raw + VERSION)[i : i + 100] for i in range(0, len(raw) + 32, 100)]):
        assert commands(framed(Framer(), chunks)) == [
            (Command.ACQUIRE, Result.ERANGE),
            (Command.VERSION, None),
        ]


def test_refusal_has_the_resource_that_was_read() -> None:
    """READ_RESOURCE sends it back."""
    bad = s.Resource.of("LS", "R2", *[s.Disk("/x")] * 5)
    (refused,) = framed(Framer(), [request_table.encode(r.ReadResource(bad))])
    assert refused.refused is Result.ERANGE
    assert s.Resource.decode(refused.body) == bad._replace(disks=())


def test_four_thousand_million_disks_are_counted_away_without_memory() -> None:
    raw = request_table.encode(r.Acquire(0, r.OWN, (ONE,)))
    head = raw[: HEADER_BYTES + 124] + struct.pack("<I", 2**32 - 1)
    framer = Framer()
    assert commands(framed(framer, [head])) == [(Command.ACQUIRE, Result.ERANGE)]
    for _ in range(50):
        assert not framed(framer, [bytes(65536)])
        assert framer.waiting_bytes <= HEADER_BYTES


@pytest.mark.parametrize(
    "request_",
    [
        r.Acquire(0, r.Target(4711), (ONE, ONE)),
        r.Release(0, r.Target(4711), (ONE, ONE)),
        r.Release(1, r.Target(4711), ()),
        r.Convert(0, r.Target(4711), ONE._replace(disks=())),
        r.Inquire(0, r.Target(4711)),
        r.Killpath(0, r.Target(4711), "/bin/true", ""),
    ],
    ids=lambda request: type(request).__name__,
)
def test_request_that_is_not_admitted_is_refused_at_its_header_and_its_body_is_left_out(
    request_: r.AnyRequest,
) -> None:
    seen: list[Header] = []

    def admit(header: Header) -> Result | None:
        seen.append(header)
        return None if header.command == Command.VERSION else Result.ESRCH

    framer = Framer(admit=admit)
    raw = request_table.encode(request_)
    assert commands(framed(framer, [raw[:HEADER_BYTES]])) == [(raw[8], Result.ESRCH)]
    assert commands(framed(framer, [raw[HEADER_BYTES:] + VERSION])) == [(Command.VERSION, None)]
    assert [header.command for header in seen] == [raw[8], Command.VERSION]


def test_value_block_is_sized_by_the_length_word() -> None:
    head = s.Resource.of("LS", "R1")
    for size in (0, 1, 512, 4096):
        raw = request_table.encode(r.SetLvb(head, b"v" * size))
        assert commands(framed(Framer(), [raw + VERSION])) == [
            (Command.SET_LVB, None),
            (Command.VERSION, None),
        ]
    raw = request_table.encode(r.SetLvb(head, b"v" * 4097))
    assert commands(framed(Framer(), [raw + VERSION])) == [
        (Command.SET_LVB, Result.E2BIG),
        (Command.VERSION, None),
    ]


@pytest.mark.parametrize("length", [0, 32, 159])
def test_length_below_the_resource_of_a_value_block_is_refused_and_leaves_the_stream_in_sync(
    length: int,
) -> None:
    raw = changed(request_table.encode(r.SetLvb(s.Resource.of("LS", "R1"), b"")), length=length)
    assert commands(framed(Framer(), [raw + VERSION])) == [
        (Command.SET_LVB, Result.ENOMEM),
        (Command.VERSION, None),
    ]


def test_release_of_all_has_no_body_whatever_its_count_says() -> None:
    raw = request_header(Command.RELEASE, flags=1, data=5, data2=-1).encode()
    (release, version) = framed(Framer(), [raw + VERSION])
    assert request_table.decode(release.header, release.body) == r.Release(1, r.OWN, ())
    assert version.header.command == Command.VERSION


def test_release_of_more_than_it_may_name_is_refused_and_leaves_the_stream_in_sync() -> None:
    raw = request_table.encode(r.Release(0, r.OWN, (ONE._replace(disks=()),) * 257))
    assert commands(framed(Framer(), [raw + VERSION])) == [
        (Command.RELEASE, Result.E2BIG),
        (Command.VERSION, None),
    ]


# --- bounds ---


@settings(max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=400), REQUESTS.map(request_table.encode)), max_size=12))
def test_no_bytes_raise_and_none_are_kept_beyond_one_request(chunks: list[bytes]) -> None:
    framer = Framer()
    for chunk in chunks:
        for each in framed(framer, [chunk]):
            if each.refused is None:
                request_table.decode(each.header, each.body)
        assert framer.waiting_bytes <= KEPT_BYTES_MAX


def test_largest_request_is_what_may_be_kept() -> None:
    largest = s.Resource.of("LS", "R1", *[s.Disk("/x")] * 4)
    raw = request_table.encode(r.Acquire(0, r.OWN, (largest,) * 8))
    assert len(raw) == KEPT_BYTES_MAX
    framer = Framer()
    assert not framed(framer, [raw[:-1]])
    assert framer.waiting_bytes == KEPT_BYTES_MAX - 1

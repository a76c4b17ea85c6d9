"""Bytes to messages: any cut of the stream gives the same messages, and memory stays bounded."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.wire import libvirt_rpc as rpc

S32 = st.integers(-(2**31), 2**31 - 1)
U32 = st.integers(0, 2**32 - 1)
HEADERS = st.builds(rpc.Header, U32, U32, S32, S32, U32, S32)
MESSAGES = st.builds(rpc.Message, HEADERS, st.binary(max_size=200))


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    """A stream in chunks, at these places."""
    places = sorted({0, len(raw), *(p % (len(raw) + 1) for p in at)})
    return [raw[a:b] for a, b in itertools.pairwise(places)]


def fed(splitter: rpc.Splitter, chunks: list[bytes]) -> list[rpc.Message]:
    return [message for chunk in chunks for message in splitter.feed(chunk)]


@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(0, 5000), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_messages(messages: list[rpc.Message], at: list[int]) -> None:
    raw = b"".join(rpc.encode(*m) for m in messages)
    splitter = rpc.Splitter()
    assert fed(splitter, cut(raw, at)) == messages
    assert splitter.idle
    assert splitter.carried == b""


@given(st.lists(MESSAGES, min_size=1, max_size=3))
def test_bytes_may_come_one_at_a_time(messages: list[rpc.Message]) -> None:
    raw = b"".join(rpc.encode(*m) for m in messages)
    assert fed(rpc.Splitter(), [raw[i : i + 1] for i in range(len(raw))]) == messages


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.data())
def test_what_is_carried_goes_on_in_another_splitter(
    messages: list[rpc.Message], data: st.DataObject
) -> None:
    raw = b"".join(rpc.encode(*m) for m in messages)
    at = data.draw(st.integers(0, len(raw)))
    first = rpc.Splitter()
    before = first.feed(raw[:at])
    assert first.resumable
    second = rpc.Splitter(first.carried)
    assert before + second.feed(raw[at:]) == messages


def test_chunk_is_taken_for_a_message_only_if_it_is_exactly_one() -> None:
    header = rpc.Header(rpc.PROGRAM_LOCKSPACE, rpc.VERSION, 6, rpc.TYPE_CALL, 3, 0)
    raw = rpc.encode(header, b"payload!")
    assert rpc.whole_message(raw) == rpc.Message(header, b"payload!")
    for other in (raw[:-1], raw + b"\0", raw + raw, raw[:20], b""):
        assert rpc.whole_message(other) is None


def test_message_and_a_half_gives_the_message_and_keeps_the_half() -> None:
    whole = rpc.encode(rpc.Header(1, 2, 3, 0, 5, 0), b"abcd")
    splitter = rpc.Splitter()
    assert len(splitter.feed(whole + whole[:10])) == 1
    assert splitter.carried == whole[:10]
    assert not splitter.idle


@pytest.mark.parametrize("length", [0, 1, 2, 3, 33554437, 0x7FFFFFFF, 0xFFFFFFFF])
def test_length_word_out_of_range_is_refused_at_once(length: int) -> None:
    with pytest.raises(rpc.FramingError, match=str(length)):
        rpc.Splitter().feed(struct.pack(">I", length))


@pytest.mark.parametrize("length", [4, 5, 27])
def test_short_header_is_refused_once_the_announced_bytes_have_come(length: int) -> None:
    splitter = rpc.Splitter()
    raw = struct.pack(">I", length) + bytes(length - 4)
    if length > 4:
        assert splitter.feed(raw[:-1]) == []
        raw = raw[-1:]
    with pytest.raises(rpc.FramingError):
        splitter.feed(raw)


def test_smallest_message_has_no_payload() -> None:
    header = rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, 6, 0, 7, 0)
    assert rpc.Splitter().feed(rpc.encode(header)) == [rpc.Message(header, b"")]


def test_largest_message_is_counted_away_in_bounded_memory() -> None:
    header = rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, 6, 0, 7, 0)
    head = struct.pack(">IIIiiIi", rpc.LENGTH_WORD_MAX, *header)
    splitter = rpc.Splitter()
    assert splitter.feed(head) == []
    left = rpc.LENGTH_WORD_MAX - len(head)
    chunk = b"x" * 65536
    while left > len(chunk):
        assert splitter.feed(chunk) == []
        left -= len(chunk)
        assert len(splitter.carried) <= rpc.KEPT_BYTES
    assert not splitter.resumable
    tail = rpc.encode(header, b"next")
    (large, after) = splitter.feed(b"x" * left + tail)
    assert large.header == header
    assert large.payload == b"x" * (rpc.KEPT_BYTES - rpc.MESSAGE_BYTES_MIN)
    assert after == rpc.Message(header, b"next")
    assert splitter.resumable


def test_oversized_message_in_one_chunk_is_cut_too() -> None:
    header = rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, 6, 0, 7, 0)
    (message,) = rpc.Splitter().feed(rpc.encode(header, b"x" * (2 * rpc.KEPT_BYTES)))
    assert len(message.payload) == rpc.KEPT_BYTES - rpc.MESSAGE_BYTES_MIN


@given(st.lists(st.binary(max_size=100), max_size=30))
def test_arbitrary_bytes_are_messages_or_a_framing_error_and_stay_within_the_bound(
    chunks: list[bytes],
) -> None:
    splitter = rpc.Splitter()
    try:
        fed(splitter, chunks)
    except rpc.FramingError:
        return
    assert len(splitter.carried) <= rpc.KEPT_BYTES

"""XDR and the eight calls: what is encoded decodes to the same, what is not there is an `XdrError`."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire
from holdfast.wire import xdr

S32 = st.integers(-(2**31), 2**31 - 1)
U32 = st.integers(0, 2**32 - 1)
PATHS = st.binary(max_size=300).map(lambda b: rpc.bytes_text(b.replace(b"\0", b"")))
"""Any bytes but NUL are a path, also those that are not UTF-8."""
RESOURCE_CALLS = st.builds(wire.ResourceCall, PATHS, PATHS, U32)
CALLS: st.SearchStrategy[tuple[int, wire.Call]] = st.one_of(
    st.tuples(
        st.just(1), st.builds(wire.Register, st.binary(min_size=16, max_size=16), PATHS, U32, U32, U32)
    ),
    st.tuples(st.just(2), st.builds(wire.Restrict, U32)),
    st.tuples(st.just(3), st.builds(wire.New, PATHS, U32)),
    st.tuples(st.sampled_from((4, 5, 6, 7)), RESOURCE_CALLS),
    st.tuples(st.just(8), st.builds(wire.CreateLockspace, PATHS)),
)


@given(CALLS)
def test_every_call_survives_the_wire(case: tuple[int, wire.Call]) -> None:
    procedure, call = case
    assert wire.decode(procedure, call.encode()) == call


@given(CALLS, st.binary(max_size=40))
def test_bytes_behind_the_arguments_are_ignored(case: tuple[int, wire.Call], extra: bytes) -> None:
    procedure, call = case
    assert wire.decode(procedure, call.encode() + extra) == call


@given(CALLS, st.data())
def test_any_truncation_is_an_xdr_error(case: tuple[int, wire.Call], data: st.DataObject) -> None:
    procedure, call = case
    raw = call.encode()
    with pytest.raises(xdr.XdrError):
        wire.decode(procedure, raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(S32, st.binary(max_size=200))
def test_arbitrary_payload_is_a_call_or_none_or_an_xdr_error(procedure: int, payload: bytes) -> None:
    with contextlib.suppress(xdr.XdrError):
        assert (wire.decode(procedure, payload) is None) == (not 1 <= procedure <= 8)


@given(RESOURCE_CALLS)
def test_fast_path_of_resource_calls_reads_what_the_plain_reader_reads(call: wire.ResourceCall) -> None:
    reader = xdr.Reader(call.encode())
    plain = (reader.string(wire.STRING_BYTES_MAX), reader.string(wire.STRING_BYTES_MAX), reader.u32())
    decoded = wire.decode(wire.PROC_ACQUIRE_RESOURCE, call.encode())
    assert isinstance(decoded, wire.ResourceCall)
    assert (rpc.text_bytes(decoded.path), rpc.text_bytes(decoded.name), decoded.flags) == plain


@pytest.mark.parametrize("procedure", [3, 6, 8])
def test_string_of_65536_bytes_is_taken_and_one_more_is_refused(procedure: int) -> None:
    rest = xdr.string(b"") + xdr.u32(0) if procedure == 6 else xdr.u32(0)
    assert wire.decode(procedure, xdr.string(b"x" * 65536) + rest) is not None
    with pytest.raises(xdr.XdrError, match="65537"):
        wire.decode(procedure, xdr.string(b"x" * 65537) + rest)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_missing_padding_is_an_error_and_its_value_is_not_looked_at(length: int) -> None:
    padded = xdr.u32(length) + b"abc"[:length] + b"\xff" * (4 - length)
    assert wire.decode(8, padded) == wire.CreateLockspace("abc"[:length])
    with pytest.raises(xdr.XdrError):
        wire.decode(8, padded[: 4 + length])


@pytest.mark.parametrize("procedure", [6, 8])
def test_string_ends_at_its_nul(procedure: int) -> None:
    raw = xdr.string(b"/a\0b") + xdr.string(b"n\0m") + xdr.u32(1)
    call = wire.decode(procedure, raw)
    assert call in (wire.ResourceCall("/a", "n", 1), wire.CreateLockspace("/a"))


@given(S32)
def test_signed_words_keep_their_sign(value: int) -> None:
    assert xdr.Reader(xdr.s32(value)).s32() == value


@given(
    st.builds(
        rpc.ErrorReply,
        code=S32,
        domain=st.integers(0, 100),
        message=PATHS,
        str1=st.none() | PATHS,
        str2=st.none() | PATHS,
        int1=S32,
        int2=S32,
    )
)
def test_error_replies_survive_the_wire(reply: rpc.ErrorReply) -> None:
    assert rpc.ErrorReply.decode(reply.encode()) == reply


@given(st.binary(max_size=120))
def test_arbitrary_error_payload_is_a_reply_or_an_xdr_error(payload: bytes) -> None:
    with contextlib.suppress(xdr.XdrError):
        rpc.ErrorReply.decode(payload)

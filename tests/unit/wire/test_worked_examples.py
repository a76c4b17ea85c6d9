"""The messages captured from a real virtlockd (virtlockd-rpc.md 2.4), byte for byte, both ways."""

from __future__ import annotations

import uuid

import pytest
from tests.support.examples import CALLS, PING, PONG, REPLIES, UNKNOWN_PROCEDURE

from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire


def only_message(octets: bytes) -> rpc.Message:
    (message,) = rpc.Splitter().feed(octets)
    return message


@pytest.mark.parametrize("name", CALLS)
def test_captured_call_decodes_to_what_the_client_meant(name: str) -> None:
    octets, serial, procedure, call = CALLS[name]
    header, payload = only_message(octets)
    assert header == rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, procedure, rpc.TYPE_CALL, serial, rpc.STATUS_OK)
    assert wire.decode(procedure, payload) == call


@pytest.mark.parametrize("name", CALLS)
def test_our_encoding_of_a_call_is_the_captured_one(name: str) -> None:
    octets, serial, procedure, call = CALLS[name]
    header = rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, procedure, rpc.TYPE_CALL, serial, rpc.STATUS_OK)
    assert rpc.encode(header, call.encode()) == octets


@pytest.mark.parametrize(("name", "procedure"), [("create_lockspace", 8), ("register", 1), ("acquire", 6)])
def test_success_reply_is_the_captured_28_bytes(name: str, procedure: int) -> None:
    serial = ("create_lockspace", "register", "acquire").index(name)
    header = rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, procedure, rpc.TYPE_CALL, serial, rpc.STATUS_OK)
    assert rpc.ok_reply(header) == REPLIES[name][0]
    assert len(rpc.ok_reply(header)) == 28


@pytest.mark.parametrize("name", [n for n, (_, error) in REPLIES.items() if error is not None])
def test_error_reply_is_byte_for_byte_the_captured_one(name: str) -> None:
    octets, error = REPLIES[name]
    assert error is not None
    header, payload = only_message(octets)
    assert rpc.ErrorReply.decode(payload) == error
    call = header._replace(type=rpc.TYPE_CALL, status=rpc.STATUS_OK)
    assert rpc.error_reply(call, error) == octets


def test_pong_is_byte_for_byte_the_captured_one() -> None:
    assert rpc.pong() == PONG
    header = only_message(PING).header
    assert (header.program, header.procedure) == (rpc.PROGRAM_KEEPALIVE, rpc.KEEPALIVE_PING)


def test_unknown_procedure_is_no_call() -> None:
    assert wire.decode(99, b"") is None
    assert only_message(UNKNOWN_PROCEDURE).header.procedure == 99


def test_registered_uuid_keeps_its_bytes() -> None:
    call = CALLS["register"][3]
    assert isinstance(call, wire.Register)
    assert str(uuid.UUID(bytes=call.uuid)) == "a4950ce2-51c7-4aba-8022-43e1697781b0"


def test_examples_say_their_own_length() -> None:
    for octets in (*(c[0] for c in CALLS.values()), *(r[0] for r in REPLIES.values()), PING, PONG):
        assert int.from_bytes(octets[:4], "big") == len(octets)

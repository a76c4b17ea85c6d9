"""What real clients and the real daemon sent, byte for byte (sanlock-socket.md 2.4 and 2.11, newer-sanlock.md 3)."""

from __future__ import annotations

import pytest

from holdfast.ondisk.padded_name import PaddedName
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import AddFlag, HostState, ResourceFlag
from holdfast.wire.sanlock.header import EXIT_HEADER, HEADER_BYTES, decode_header, request_header
from holdfast.wire.sanlock.malformed import MalformedMessage
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_string import escaped, parse, state_string


def octets(text: str) -> bytes:
    return bytes.fromhex("".join(text.split()))


def sparse(size: int, **pieces: str) -> bytes:
    """Zeros with pieces at hexadecimal offsets: x00a0=…; quotes hold text."""
    raw = bytearray(size)
    for at, text in pieces.items():
        piece = text[1:].encode() if text.startswith('"') else octets(text)
        raw[int(at[1:], 16) : int(at[1:], 16) + len(piece)] = piece
    return bytes(raw)


REQUESTS: dict[str, tuple[bytes, r.AnyRequest]] = {
    "VERSION": (
        octets("10202804 01000000 1c000000 00000000 20000000 00000000 00000000 00000000"),
        r.Version(),
    ),
    "GET_HOSTS": (
        sparse(1136, x0="10202804 01000000 17000000 00000000 70040000", x20='"LS'),
        r.GetHosts(0, s.Lockspace.of("LS")),
    ),
    "KILLPATH": (
        sparse(
            288,
            x0="10202804 01000000 11000000 00000000 20010000 00000000 00000000 ffffffff",
            x20="2f757372 2f6c6962 2f6c6962 76697274 2f6c6962 76697274 5f73616e 6c6f636b 5f68656c 706572",
            xa0="71656d75 3a2f2f2f 73797374 656d2036 62613762 3831302d 20706175 7365",
        ),
        r.Killpath(0, r.OWN, "/usr/lib/libvirt/libvirt_sanlock_helper", "qemu:///system 6ba7b810- pause"),
    ),
    "ACQUIRE": (
        sparse(
            1256,
            x0="10202804 01000000 07000000 00000000 e8040000 00000000 01000000 ffffffff",
            x20="5f5f4c49 42564952 545f5f44 49534b53 5f5f",
            x50="64343164 38636439 38663030 62323034 65393830 30393938 65636638 34323765",
            x90="00000000 00000000 00000000 01000000",
            xa0="2f766172 2f6c6962 2f6c6962 76697274 2f73616e 6c6f636b",
        ),
        r.Acquire(
            0,
            r.OWN,
            (
                s.Resource.of(
                    "__LIBVIRT__DISKS__",
                    "d41d8cd98f00b204e9800998ecf8427e",
                    s.Disk("/var/lib/libvirt/sanlock"),
                ),
            ),
        ),
    ),
    "INQUIRE": (
        octets("10202804 01000000 09000000 00000000 20000000 00000000 00000000 d2040000"),
        r.Inquire(0, r.Target(1234)),
    ),
    "ADD_LOCKSPACE": (
        sparse(
            1136,
            x0="10202804 01000000 02000000 01000000 70040000 00000000 01000000 00000000",
            x20="4c53",
            x50="01000000 00000000",
            x60='"/dev/ls',
        ),
        r.AddLockspace(AddFlag.ASYNC, 1, s.Lockspace.of("LS", 1, "/dev/ls")),
    ),
    "RELEASE": (
        sparse(
            160,
            x0="10202804 01000000 08000000 00000000 a0000000 00000000 01000000 d2040000",
            x20='"LS',
            x50='"R1',
            x9c="01000000",
        ),
        r.Release(0, r.Target(1234), (s.Resource(PaddedName.of("LS"), PaddedName.of("R1"), num_disks=1),)),
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_captured_request_is_read_and_written(name: str) -> None:
    raw, request = REQUESTS[name]
    assert request_table.decode(decode_header(raw), raw[HEADER_BYTES:]) == request
    assert request_table.encode(request) == raw


STATE = b"LS:R1:/lease:1048576:1"
ANSWERS: dict[str, tuple[Command, bytes, replies.Reply]] = {
    "VERSION": (
        Command.VERSION,
        octets("10202804 01000000 1c000000 00000000 20000000 00000000 00000000 00050803"),
        replies.Plain(0, 0x03080500),
    ),
    "GET_HOSTS refused": (
        Command.GET_HOSTS,
        octets("10202804 01000000 17000000 00000000 20000000 00000000 f5ffffff 00000000"),
        replies.Hosts(Result.EAGAIN),
    ),
    "GET_HOSTS": (
        Command.GET_HOSTS,
        octets(
            "10202804 01000000 17000000 00000000 40000000 00000000 00000000 01000000"
            "01000000 00000000 01000000 00000000 62040000 00000000 01000000 03000000"
        ),
        replies.Hosts(0, (s.Host(1, 1, 0x462, 1, HostState.LIVE),)),
    ),
    "ACQUIRE": (
        Command.ACQUIRE,
        octets("10202804 01000000 07000000 00000000 20000000 00000000 00000000 00000000"),
        replies.Plain(),
    ),
    "INQUIRE": (
        Command.INQUIRE,
        octets("10202804 01000000 09000000 00000000 37000000 00000000 00000000 01000000") + STATE + b"\0",
        replies.ClientState(0, 1, STATE.decode()),
    ),
    "INQUIRE of nothing": (
        Command.INQUIRE,
        octets("10202804 01000000 09000000 00000000 20000000 00000000 00000000 00000000"),
        replies.ClientState(0, 0, ""),
    ),
    "INQUIRE with a space": (
        Command.INQUIRE,
        octets("10202804 01000000 09000000 00000000 21000000 00000000 afffffff 01000000 00"),
        replies.ClientState(Result.ELIBSCN, 1, ""),
    ),
    "ACQUIRE2": (
        Command.ACQUIRE2,
        octets(
            "10202804 01000000 29000000 00000000 70000000 00000000 0dffffff ffffffff"
            "01000000 00000000 01000000 00000000 57060000 00000000 00000000 03000000"
        )
        + b"five-a".ljust(48, b"\0"),
        replies.Holder(
            Result.ACQUIRE_IDLIVE, s.Host(1, 1, 0x657, 0, HostState.LIVE), PaddedName.of("five-a")
        ),
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_captured_answer_is_read_and_written(name: str) -> None:
    command, raw, answer = ANSWERS[name]
    assert replies.decode(command, raw) == answer
    assert answer.encode(request_header(command)) == raw


def test_byte_that_sanlock_sends_with_a_space_says_nothing() -> None:
    raw = octets("10202804 01000000 09000000 00000000 21000000 00000000 afffffff 02000000") + b"L"
    assert replies.decode(Command.INQUIRE, raw) == replies.ClientState(Result.ELIBSCN, 2, "")
    good = octets("10202804 01000000 09000000 00000000 21000000 00000000 00000000 02000000") + b"L"
    with pytest.raises(MalformedMessage, match="ends with a NUL"):
        replies.decode(Command.INQUIRE, good)


def test_captured_event_is_read_and_written() -> None:
    raw = octets(
        "10202804 01000000 01000000 00000000 50000000 00000000 00000000 00000000"
        "01000000 00000000 01000000 00000000 bc0a0000 00000000 ef0d0000 00000000"
        "02000000 00000000 01000000 00000000"
    )
    event = s.EventCallback(s.HostEvent(1, 1, 0xABC, 0xDEF), 2, 1)
    assert s.EventCallback.decode(raw) == event
    assert event.encode() == raw
    with pytest.raises(MalformedMessage, match="an event begins"):
        s.EventCallback.decode(b"\0" + raw[1:])


def test_answer_of_a_daemon_that_exits_is_of_no_command() -> None:
    assert EXIT_HEADER.encode() == octets("10202804 01000000 00000000 00000000 20000000") + bytes(12)


# --- the state string ---

HELD = (
    s.Resource.of("LE", "RC", s.Disk("/mnt/d:c", 0), flags=ResourceFlag.LVER, lver=1),
    s.Resource.of("LE", "R2", s.Disk("/mnt/d5", 2097152), flags=ResourceFlag.SHARED),
)
HELD_TEXT = r"LE:RC:/mnt/d\:c:0:1 LE:R2:/mnt/d5:2097152:SH"


def test_captured_state_string_is_read_and_written() -> None:
    assert state_string(HELD) == (HELD_TEXT, False)
    assert parse(HELD_TEXT) == HELD


def test_space_in_a_path_is_said_and_not_sent() -> None:
    """-81 with the number of leases (sanlock-socket.md 2.4)."""
    spaced = s.Resource.of("LE", "RC", s.Disk("/mnt/a b", 0), lver=1)
    assert state_string((spaced,)) == (r"LE:RC:/mnt/a\ b:0:1", True)
    assert replies.ClientState.of((*HELD, spaced)) == replies.ClientState(Result.ELIBSCN, 3, "")
    assert replies.ClientState.of(HELD) == replies.ClientState(Result.OK, 2, HELD_TEXT)
    assert replies.ClientState.of(()) == replies.ClientState()


def test_colon_and_space_that_are_escaped_stay_so() -> None:
    assert escaped("/a:b c") == r"/a\:b\ c"
    assert escaped(r"/a\:b") == r"/a\:b"


@pytest.mark.parametrize(
    ("text", "disks", "flags", "lver"),
    [
        ("LS:R", 0, 0, 0),
        ("LS:R:/a:0", 1, 0, 0),
        ("LS:R:/a:0:7", 1, ResourceFlag.LVER, 7),
        ("LS:R:/a:0:SH", 1, ResourceFlag.SHARED, 0),
        ("LS:R:/a:0:/b:1:/c:2:/d:3:SHARED", 4, ResourceFlag.SHARED, 0),
        (r"LS:R:/a\ b:0:7", 1, ResourceFlag.LVER, 7),
    ],
)
def test_text_of_a_lease_is_read_as_the_command_line_reads_it(
    text: str, disks: int, flags: int, lver: int
) -> None:
    (resource,) = parse(text)
    assert (resource.num_disks, resource.flags, resource.lver) == (disks, flags, lver)


def test_space_before_the_third_colon_belongs_to_the_name() -> None:
    (resource,) = parse("LS one:R two:/a:0:1")
    assert (resource.lockspace.text, resource.name.text) == ("LS one", "R two")


@pytest.mark.parametrize(
    "text",
    [
        "LS",
        "LS:R:/a",
        "LS:R:/a:x",
        "LS:R:/a:0:x",
        "LS:R" + ":/a:0" * 5,
        "x" * 49 + ":R",
        "LS:R:/a:" + "9" * 20,
    ],
)
def test_text_that_is_no_lease_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse(text)


def test_empty_state_string_has_no_leases() -> None:
    assert parse("") == ()

"""Records of hosts: what is believed, and what says nothing."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.host_record import (
    RECORD_BYTES_MAX,
    HostRecord,
    decode,
    encode,
    is_record_name,
    path_of,
)
from holdfast.ondisk.padded_name import PaddedName

RECORD = HostRecord(
    lockspace="vms",
    host_id=3,
    generation=1795243323,
    host_name="compute-0017.rack-04.clou~5be1a90c.3f9c20b1a7d4",
    node="compute-0017.rack-04.cloud.example.org",
    version="0.1.0",
    boot="0b5c",
    io_timeout_s=10,
    fire_timeout_s=60,
    identities=True,
)
DELTA = DeltaLease(
    geometry=DEFAULT,
    space_name=PaddedName.of("vms"),
    owner_id=3,
    generation=1795243323,
    host_name=PaddedName.of(RECORD.host_name),
    timestamp=5,
)


def changed(**changes: Any) -> HostRecord:
    return msgspec.structs.replace(RECORD, **changes)


def test_record_is_read_as_it_was_written() -> None:
    raw = encode(RECORD)
    assert decode(raw) == RECORD
    assert len(raw) <= RECORD_BYTES_MAX
    assert raw.endswith(b"}\n")


def test_worked_example_of_the_specification() -> None:
    body = (
        b'{"holdfast_host_record":1,"lockspace":"vms","host_id":3,"generation":1795243323,'
        b'"host_name":"compute-0017.rack-04.clou~5be1a90c.3f9c20b1a7d4","node":"compute-0017.rack-04.cloud.example.org",'
        b'"version":"0.1.0","boot":"0b5c","io_timeout_s":10,"fire_timeout_s":60,"identities":true'
    )
    check = zlib.crc32(body + b"}")
    assert encode(RECORD) == body + b',"check":%d}\n' % check


@given(st.integers(0, 8 * len(encode(RECORD)) - 1))
def test_any_flipped_bit_is_noticed(bit: int) -> None:
    raw = bytearray(encode(RECORD))
    raw[bit // 8] ^= 1 << bit % 8
    assert decode(bytes(raw)) in (None, RECORD)  # the newline may change


@given(st.binary(max_size=200))
def test_what_is_no_record_says_nothing(raw: bytes) -> None:
    assert decode(raw) is None


@pytest.mark.parametrize("length", [0, 1, 100, len(encode(RECORD)) - 2])
def test_record_that_was_cut_says_nothing(length: int) -> None:
    assert decode(encode(RECORD)[:length]) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"holdfast_host_record": 2},
        {"host_id": 0},
        {"host_id": 2001},
        {"generation": 0},
        {"io_timeout_s": 256},
        {"fire_timeout_s": 0},
        {"node": ""},
        {"node": "n" * 257},
    ],
)
def test_values_out_of_their_ranges_are_neither_written_nor_believed(changes: dict[str, Any]) -> None:
    record = changed(**changes)
    with pytest.raises(ValueError, match="no possible record"):
        encode(record)
    raw = msgspec.json.encode(record)
    assert decode(raw[:-1] + b',"check":%d}\n' % zlib.crc32(raw)) is None


def test_keys_of_a_later_version_are_left_out() -> None:
    raw = msgspec.json.encode(RECORD)[:-1] + b',"colour":"red"}'
    assert decode(raw[:-1] + b',"check":%d}\n' % zlib.crc32(raw)) == RECORD


def test_record_is_about_one_term_of_one_host() -> None:
    assert RECORD.is_about(DELTA)
    assert not RECORD.is_about(replace(DELTA, generation=1795243324))
    assert not RECORD.is_about(replace(DELTA, owner_id=4))
    assert not RECORD.is_about(replace(DELTA, host_name=PaddedName.of("alpha")))


def test_names_of_records_are_known_beside_leases() -> None:
    assert path_of("/srv/vms", 3) == "/srv/vms.host-3"
    assert is_record_name("vms.host-3", "vms")
    for other in (
        "vms",
        "vms.host-",
        "vms.host-x",
        "vms.host-3.new",
        "other.host-3",
        "d41d8cd98f00b204e9800998ecf8427e",
    ):
        assert not is_record_name(other, "vms"), other

"""Every record: what is encoded decodes to itself, and no bytes whatsoever raise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ondisk import strategies as some

from holdfast.ondisk import record_layout
from holdfast.ondisk.checksum import sanlock_crc32c
from holdfast.ondisk.delta import DeltaLease, decode_bitmap, encode_bitmap
from holdfast.ondisk.host_block import Dblock, HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.ondisk.request import Request
from holdfast.ondisk.rindex import RindexEntry, RindexHeader

RECORDS = (Leader, DeltaLease, Dblock, ModeBlock, HostBlock, Request, RindexHeader, RindexEntry)


@given(some.leaders())
def test_a_leader_decodes_to_itself(leader: Leader) -> None:
    assert Leader.decode(leader.sector()) == leader
    assert len(leader.sector()) == leader.geometry.sector_bytes


@given(some.delta_leases(), st.sets(st.integers(1, 2000)))
def test_a_delta_lease_and_its_bitmap_decode_to_themselves(lease: DeltaLease, notified: set[int]) -> None:
    sector = lease.sector(notified)
    assert DeltaLease.decode(sector) == lease
    assert decode_bitmap(sector) == frozenset(notified)
    assert len(sector) == lease.geometry.sector_bytes


@given(some.host_blocks, st.sampled_from([512, 4096]))
def test_a_host_block_decodes_to_itself(block: HostBlock, sector_bytes: int) -> None:
    assert HostBlock.decode(block.sector(sector_bytes)) == block


@given(some.requests)
def test_a_request_decodes_to_itself(request_record: Request) -> None:
    assert Request.decode(request_record.sector(512)) == request_record


@given(some.rindex_headers(), some.entries)
def test_an_index_header_and_entry_decode_to_themselves(header: RindexHeader, entry: RindexEntry) -> None:
    assert RindexHeader.decode(header.sector()) == header
    assert RindexEntry.decode(entry.encode()) == entry


@pytest.mark.parametrize("record", RECORDS)
@given(raw=st.binary(max_size=600))
def test_arbitrary_bytes_are_an_answer_and_never_an_exception(record: type, raw: bytes) -> None:
    answer = record.decode(raw)  # type: ignore[attr-defined]
    assert isinstance(answer, (record, Malformed))
    assert str(answer)


def _with_true_checksum(raw: bytes) -> bytes:
    checksum = sanlock_crc32c(raw[:168]).to_bytes(4, "little")
    return raw[:168] + checksum + raw[172:]


@pytest.mark.parametrize(
    ("record", "head"),
    [
        (Leader, "10201506 04000600"),
        (DeltaLease, "10202112 04000300"),
    ],
)
@given(tail=st.binary(min_size=192, max_size=192), flags=st.sampled_from([0, 0x10, 0x11, 0x20, 0x40, 0x80]))
def test_what_decodes_encodes_to_the_same_bytes(record: type, head: str, tail: bytes, flags: int) -> None:
    """Whatever fields a valid checksum covers: a record that we read, change and write keeps the rest of
    it.
    """
    for sector_bytes in (512, 4096):
        fixed = bytes.fromhex(head) + flags.to_bytes(4, "little") + sector_bytes.to_bytes(4, "little")
        hosts = (10).to_bytes(8, "little") * 3
        raw = _with_true_checksum(fixed + hosts + tail[32:])
        answer = record.decode(raw)  # type: ignore[attr-defined]
        if not isinstance(answer, Malformed):
            assert answer.encode() == raw[: record_layout.RECORD_BYTES]


@given(some.leaders(), st.integers(0, 167), st.integers(1, 255))
def test_a_flipped_byte_under_the_checksum_is_malformed(leader: Leader, at: int, flip: int) -> None:
    raw = bytearray(leader.encode())
    raw[at] ^= flip
    assert isinstance(Leader.decode(bytes(raw)), Malformed)


@given(some.dblocks, st.integers(0, 51), st.integers(1, 255))
def test_a_flipped_byte_in_a_dblock_is_malformed(dblock: Dblock, at: int, flip: int) -> None:
    raw = bytearray(dblock.encode())
    raw[at] ^= flip
    answer = Dblock.decode(bytes(raw))
    assert isinstance(answer, Malformed)
    assert answer.reason is Reason.CHECKSUM


def test_a_never_written_dblock_is_valid_with_and_without_checksum() -> None:
    assert Dblock.decode(bytes(512)) == Dblock()
    assert Dblock.decode(Dblock().encode()) == Dblock()
    assert Dblock().encode()[48:52] == (0xCB5AD842).to_bytes(4, "little")


def test_a_value_without_ballot_number_was_never_accepted() -> None:
    assert Dblock(mbal=7, inp=3, inp2=1, inp3=9, lver=2).accepted is None
    assert Dblock(mbal=7, bal=7, inp=3, inp2=1, inp3=9, lver=2).accepted is not None


def test_junk_between_the_records_of_a_host_block_is_ignored() -> None:
    block = HostBlock(dblock=Dblock(mbal=5, lver=1), mode=ModeBlock.shared(3))
    raw = bytearray(block.sector(512))
    raw[56:128] = b"\xaa" * 72
    raw[132:136] = b"\xbb" * 4
    raw[144:] = b"\xcc" * (512 - 144)
    assert HostBlock.decode(bytes(raw)) == block


def test_junk_in_the_padding_of_a_request_is_ignored() -> None:
    raw = Request(lver=4, force_mode=2).encode() + b"\x35\x56\x00\x00"
    assert Request.decode(raw) == Request(lver=4, force_mode=2)


def test_the_bitmap_stands_at_256_in_large_sectors_too() -> None:
    assert encode_bitmap([3]) == b"\x04" + bytes(255)
    assert encode_bitmap([1, 9]) == b"\x01\x01" + bytes(254)
    answer = decode_bitmap(bytes(300))
    assert isinstance(answer, Malformed)
    with pytest.raises(ValueError, match="2001"):
        encode_bitmap([2001])

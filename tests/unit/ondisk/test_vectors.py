"""Numbers and dumps that were taken from the real sanlock."""

import pytest

from holdfast.ondisk.areas import fresh_leader
from holdfast.ondisk.checksum import sanlock_crc32c
from holdfast.ondisk.delta import DeltaLease, Event, decode_bitmap
from holdfast.ondisk.geometry import GEOMETRIES, MIB, Geometry
from holdfast.ondisk.host_block import FLAG_RELEASED, Dblock, HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.request import Request
from holdfast.ondisk.rindex import RindexHeader

G512, *_ = GEOMETRIES


def checksum_of(record: bytes, at: int) -> int:
    return int.from_bytes(record[at : at + 4], "little")


@pytest.mark.parametrize(
    ("covered", "expected"),
    [(b"123456789", 0xE8C7BB34), (bytes(48), 0xCB5AD842), (bytes(168), 0x7E11FBD1)],
)
def test_checksum_starts_at_fffffffe_and_is_not_inverted(covered: bytes, expected: int) -> None:
    assert sanlock_crc32c(covered) == expected


def test_checksum_of_a_fresh_delta_lease() -> None:
    lease = DeltaLease(geometry=G512, space_name=PaddedName.of("LS1"))
    assert checksum_of(lease.encode(), 168) == 0x4DBA1E1E


def test_checksum_of_a_held_delta_lease() -> None:
    lease = DeltaLease(
        geometry=G512,
        space_name=PaddedName.of("LS1"),
        owner_id=1,
        generation=1,
        host_name=PaddedName.of("host1"),
        timestamp=1170,
    )
    assert checksum_of(lease.encode(), 168) == 0x46C09448


@pytest.mark.parametrize(
    ("dblock", "expected"),
    [
        (Dblock(mbal=1, bal=1, inp=1, inp2=2, inp3=1337, lver=1), 0xB280AA80),
        (Dblock(mbal=4001, bal=4001, inp=1, inp2=2, inp3=1387, lver=3), 0x8F66A7F5),
    ],
)
def test_checksum_of_a_dblock_ignores_its_flags(dblock: Dblock, expected: int) -> None:
    assert checksum_of(dblock.encode(), 48) == expected


def dumped(sector_bytes: int, lines: dict[int, str]) -> bytes:
    raw = bytearray(sector_bytes)
    for at, line in lines.items():
        part = bytes.fromhex(line)
        raw[at : at + len(part)] = part
    return bytes(raw)


def test_a_dumped_delta_sector_with_an_event_for_host_3() -> None:
    raw = dumped(
        512,
        {
            0x00: "10202112 04000300 10000000 00020000 00000000 00000000 01000000 00000000",
            0x20: "01000000 00000000 02000000 00000000 00000000 00000000 4c533100",
            0x68: "686f7374 31000000",
            0x98: "3a060000 00000000",
            0xA8: "0d06f227 00000100 09000000 00000000 05000000 00000000 07000000 00000000",
            0x100: "04",
        },
    )
    lease = DeltaLease.decode(raw)
    assert lease == DeltaLease(
        geometry=G512,
        space_name=PaddedName.of("LS1"),
        owner_id=1,
        generation=2,
        host_name=PaddedName.of("host1"),
        timestamp=0x63A,
        io_timeout_s=1,
        event=Event(generation=9, number=5, argument=7),
    )
    assert decode_bitmap(raw) == frozenset({3})
    assert isinstance(lease, DeltaLease)
    assert lease.sector({3}) == raw


def test_a_dumped_exclusive_lease() -> None:
    raw = dumped(
        512,
        {
            0x00: "10201506 04000600 10000000 00020000 d0070000 00000000 d0070000 00000000",
            0x20: "01000000 00000000 02000000 00000000 01000000 00000000 4c533100",
            0x68: "52455331",
            0x98: "39050000 00000000 00000000 00000000 6831c2b7 00000000",
            0xB0: "01000000 00000000 02000000 00000000 39050000 00000000",
        },
    )
    leader = Leader.decode(raw)
    assert isinstance(leader, Leader)
    assert (leader.owner_id, leader.owner_generation, leader.lver, leader.timestamp) == (1, 2, 1, 1337)
    assert (leader.write_id, leader.write_generation, leader.write_timestamp) == (1, 2, 1337)
    assert (leader.space_name.text, leader.resource_name.text) == ("LS1", "RES1")
    assert leader.sector() == raw


def test_a_dumped_shared_host_block() -> None:
    raw = dumped(
        512,
        {
            0x00: "a10f0000 00000000 a10f0000 00000000 01000000 00000000 02000000 00000000",
            0x20: "6b050000 00000000 03000000 00000000 f5a7668f 01000000",
            0x80: "01000000 00000000 02000000 00000000",
        },
    )
    block = HostBlock(
        dblock=Dblock(mbal=4001, bal=4001, inp=1, inp2=2, inp3=1387, lver=3, flags=FLAG_RELEASED),
        mode=ModeBlock.shared(generation=2),
    )
    assert HostBlock.decode(raw) == block
    assert block.sector(512) == raw


def test_a_dumped_request_record() -> None:
    raw = bytes.fromhex("11202908 01000100 00000000 00000000 00000000")
    assert Request.decode(raw) == Request()
    assert Request().encode() == raw


def test_a_dumped_index_header() -> None:
    raw = bytes.fromhex(
        "18200401 02000100 01000000 00020000 00100000 00000000 00001000 00000000"
    ) + b"LSX".ljust(48, b"\0")
    header = RindexHeader(geometry=G512, rindex_offset_bytes=MIB, space_name=PaddedName.of("LSX"))
    assert RindexHeader.decode(raw) == header
    assert header.encode() == raw


@pytest.mark.parametrize(
    ("geometry", "row"),
    list(
        zip(
            GEOMETRIES,
            [
                (512, 1, 2000, 0x10, 0x1, 16000),
                (4096, 1, 250, 0x10, 0x1, 16000),
                (4096, 2, 500, 0x20, 0x2, 32000),
                (4096, 4, 1000, 0x40, 0x4, 64000),
                (4096, 8, 2000, 0x80, 0x8, 128000),
            ],
            strict=True,
        )
    ),
    ids=str,
)
def test_the_table_of_sizes(geometry: Geometry, row: tuple[int, ...]) -> None:
    sector, mebibytes, hosts_max, align_flag, rindex_flag, entries_max = row
    assert (geometry.sector_bytes, geometry.align_bytes) == (sector, mebibytes * MIB)
    assert (geometry.hosts_max, geometry.rindex_entries_max) == (hosts_max, entries_max)
    assert (geometry.align_flag, geometry.rindex_flag) == (align_flag, rindex_flag)
    assert geometry.sector_api_flag == (0x100 if sector == 512 else 0x200)
    assert fresh_leader(geometry, "LS", "R").flags == align_flag

"""What sanlock formats and what we format is the same, byte by byte, and each reads the other's records."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.interop.sanlock.direct import blank_file, direct, dump, read_at, read_leader, sizes, write_at

from holdfast.ondisk import areas, rindex
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import GEOMETRIES, Geometry
from holdfast.ondisk.host_block import FLAG_RELEASED, Dblock, HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.request import NO_REQUEST, REQUEST_BYTES, Request
from holdfast.ondisk.rindex import RindexEntry, RindexHeader

pytestmark = pytest.mark.interop

every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
LONG = "n" * 48


@every_geometry
def test_a_lockspace_is_initialised_with_the_same_bytes(geometry: Geometry, tmp_path: Path) -> None:
    theirs = blank_file(tmp_path / "theirs", 2 * geometry.align_bytes)
    at = geometry.align_bytes
    direct("init", "-s", f"LS1:0:{theirs}:{at}", *sizes(geometry))
    area, first_sector = areas.lockspace_area(geometry, "LS1")
    ours = first_sector + area[geometry.sector_bytes :]
    assert read_at(theirs, at, geometry.align_bytes) == ours


@every_geometry
@pytest.mark.parametrize("resource", ["disk", LONG])
def test_a_lease_is_initialised_with_the_same_bytes(
    geometry: Geometry, resource: str, tmp_path: Path
) -> None:
    theirs = blank_file(tmp_path / "theirs", 2 * geometry.align_bytes)
    at = geometry.align_bytes
    direct("init", "-r", f"LS1:{resource}:{theirs}:{at}", *sizes(geometry))
    ours = areas.lease_area(areas.fresh_leader(geometry, "LS1", resource))
    assert without_request_padding(geometry, read_at(theirs, at, geometry.align_bytes)) == ours


def without_request_padding(geometry: Geometry, area: bytes) -> bytes:
    """sanlock leaves 4 bytes of its memory behind the request record: the only bytes that may differ."""
    begin = geometry.request_offset_bytes + REQUEST_BYTES
    return area[:begin] + bytes(4) + area[begin + 4 :]


@every_geometry
def test_an_index_is_formatted_with_the_same_bytes(geometry: Geometry, tmp_path: Path) -> None:
    theirs = blank_file(tmp_path / "theirs", 4 * geometry.align_bytes)
    at = geometry.align_bytes
    direct("format", "-x", f"LS1:{theirs}:{at}", *sizes(geometry))
    header = areas.rindex_header(geometry, "LS1", at, rindex.ENTRIES_DEFAULT)
    assert read_at(theirs, at, geometry.align_bytes) == areas.rindex_area(header)
    lease = read_at(theirs, rindex.internal_lease_offset_bytes(geometry, at), geometry.align_bytes)
    assert without_request_padding(geometry, lease) == areas.lease_area(areas.internal_leader(header))


@every_geometry
def test_sanlock_reads_a_delta_lease_that_we_wrote(geometry: Geometry, tmp_path: Path) -> None:
    path = blank_file(tmp_path / "ours", geometry.align_bytes)
    area, first_sector = areas.lockspace_area(geometry, "LS1")
    write_at(path, 0, area)
    write_at(path, 0, first_sector)
    host_id = geometry.hosts_max
    held = replace(
        areas.fresh_delta_lease(geometry, "LS1"),
        owner_id=host_id,
        generation=7,
        host_name=PaddedName.of("alpha"),
        timestamp=123456,
        io_timeout_s=20,
    )
    write_at(path, geometry.delta_offset_bytes(host_id), held.sector({1}))
    seen = read_leader("-s", f"LS1:{host_id}:{path}:0")
    assert (seen["owner_id"], seen["owner_generation"], seen["timestamp"]) == (str(host_id), "7", "123456")
    assert (seen["resource_name"], seen["io_timeout"]) == ("alpha", "20")
    (line,) = (line for line in dump(path, 0, geometry.align_bytes) if line.timestamp)
    assert (line.lockspace, line.resource, line.owner_id, line.generation) == ("LS1", "alpha", host_id, 7)
    back = DeltaLease.decode(read_at(path, geometry.delta_offset_bytes(host_id), 512))
    assert back == held


@every_geometry
def test_sanlock_reads_a_lease_that_we_wrote(geometry: Geometry, tmp_path: Path) -> None:
    path = blank_file(tmp_path / "ours", geometry.align_bytes)
    leader = replace(
        areas.fresh_leader(geometry, "LS1", LONG),
        owner_id=2,
        owner_generation=5,
        lver=9,
        timestamp=4711,
        write_id=2,
        write_generation=5,
        write_timestamp=4711,
    )
    write_at(path, 0, areas.lease_area(leader))
    shared = HostBlock(
        dblock=Dblock(mbal=3, bal=3, inp=3, inp2=1, inp3=8, lver=8, flags=FLAG_RELEASED),
        mode=ModeBlock.shared(4),
    )
    write_at(path, geometry.host_block_offset_bytes(3), shared.sector(geometry.sector_bytes))
    seen = read_leader("-r", f"LS1:{LONG}:{path}:0")
    assert (seen["owner_id"], seen["owner_generation"], seen["lver"]) == ("2", "5", "9")
    assert seen["resource_name"] == LONG
    lines = dump(path, 0, geometry.align_bytes)
    assert [(line.timestamp, line.owner_id, line.generation) for line in lines[:1]] == [(4711, 2, 5)]
    text = direct("dump", f"{path}:0:{geometry.align_bytes}")
    assert "SH" in text


def test_sanlock_refuses_what_we_call_malformed(tmp_path: Path) -> None:
    geometry = GEOMETRIES[0]
    path = blank_file(tmp_path / "ours", geometry.align_bytes)
    leader = areas.fresh_leader(geometry, "LS1", "disk")
    write_at(path, 0, areas.cleared_lease_area(leader))
    direct("read_leader", "-r", f"LS1:disk:{path}:0", expect=1)
    write_at(path, 0, areas.lease_area(leader))
    direct("read_leader", "-r", f"LS1:disk:{path}:0")
    write_at(path, 167, b"\x01")
    direct("read_leader", "-r", f"LS1:disk:{path}:0", expect=1)


@every_geometry
def test_index_entries_written_by_either_are_found_by_the_other(geometry: Geometry, tmp_path: Path) -> None:
    path = blank_file(tmp_path / "index", 8 * geometry.align_bytes)
    at = geometry.align_bytes
    header = areas.rindex_header(geometry, "LS1", at, rindex.ENTRIES_DEFAULT)
    write_at(path, at, areas.rindex_area(header))
    write_at(path, at + geometry.align_bytes, areas.lease_area(areas.internal_leader(header)))
    ours = rindex.slot_offset_bytes(geometry, at, 0)
    entry = RindexEntry(offset_bytes=ours, name=PaddedName.of("made-by-us"))
    where, sector = rindex.sector_with_entry(header, areas.rindex_area(header), 0, entry)
    write_at(path, at + where, sector)
    theirs = rindex.slot_offset_bytes(geometry, at, 3)
    direct("update", "-x", f"LS1:{path}:{at}", "-e", f"made-by-them:{theirs}")

    found = direct("lookup", "-x", f"LS1:{path}:{at}", "-e", "made-by-us")
    assert f"offset {ours}" in found
    area = read_at(path, at, geometry.align_bytes)
    read_header = RindexHeader.decode(area)
    assert read_header == header
    assert {index: item.name.text for index, item in rindex.entries(header, area)} == {
        0: "made-by-us",
        3: "made-by-them",
    }
    assert rindex.lowest_free(header, area, 16000) == 1
    assert dict(rindex.entries(header, area))[3].offset_bytes == theirs


def test_sanlock_writes_an_empty_request_record_that_we_read(tmp_path: Path) -> None:
    geometry = GEOMETRIES[0]
    path = blank_file(tmp_path / "theirs", geometry.align_bytes)
    direct("init", "-r", f"LS1:disk:{path}:0", *sizes(geometry))
    assert Request.decode(read_at(path, geometry.request_offset_bytes, 512)) == NO_REQUEST
    assert HostBlock.decode(read_at(path, geometry.host_block_offset_bytes(1), 512)) == HostBlock()
    assert isinstance(Leader.decode(read_at(path, 0, 512)), Leader)

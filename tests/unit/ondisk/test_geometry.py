"""Offsets, sizes and the pairs that exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.ondisk import geometry as geometries
from holdfast.ondisk import rindex
from holdfast.ondisk.geometry import GEOMETRIES, MIB, Geometry
from holdfast.ondisk.malformed import Malformed, Reason

G512, G4K_1M, _, _, G4K_8M = GEOMETRIES


def test_only_five_pairs_exist() -> None:
    found = [
        (sector, align)
        for sector in (512, 1024, 4096)
        for align in (1, 2, 4, 8, 16)
        if isinstance(geometries.of(sector, align * MIB), Geometry)
    ]
    assert found == [(512, 1), (4096, 1), (4096, 2), (4096, 4), (4096, 8)]


def test_a_wrong_pair_says_what_was_found_and_what_exists() -> None:
    answer = geometries.of(512, 8 * MIB)
    assert isinstance(answer, Malformed)
    assert answer.reason is Reason.GEOMETRY
    assert "512/1M" in str(answer)


def test_a_leader_without_align_flag_is_of_an_old_version() -> None:
    assert geometries.of_leader("leader", 512, 0) is G512
    assert geometries.of_leader("leader", 4096, 0) is G4K_8M
    assert geometries.of_rindex("rindex header", 512, 0) is G512
    assert geometries.of_rindex("rindex header", 4096, 0) is G4K_8M


def test_two_align_flags_at_once_are_malformed() -> None:
    answer = geometries.of_leader("leader", 4096, 0x30)
    assert isinstance(answer, Malformed)
    assert answer.reason is Reason.GEOMETRY


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_sectors_of_all_hosts_lie_inside_the_area_and_never_overlap(geometry: Geometry) -> None:
    hosts = range(1, geometry.hosts_max + 1)
    blocks = [geometry.host_block_offset_bytes(host) for host in hosts]
    deltas = [geometry.delta_offset_bytes(host) for host in hosts]
    assert len(set(blocks)) == len(set(deltas)) == geometry.hosts_max
    assert min(deltas) == 0
    assert min(blocks) == geometry.request_offset_bytes + geometry.sector_bytes
    assert max(blocks) + geometry.sector_bytes <= geometry.align_bytes
    assert geometry.lease_span_bytes(geometry.hosts_max) == max(blocks) + geometry.sector_bytes


def test_a_ballot_among_few_hosts_reads_few_sectors() -> None:
    assert G512.lease_span_bytes(1) == 3 * 512
    assert G512.lease_span_bytes(64) == 66 * 512
    assert G4K_1M.lease_span_bytes(250) == 252 * 4096


@pytest.mark.parametrize("host_id", [-1, 0, 251])
def test_a_host_id_outside_the_area_has_no_offset(host_id: int) -> None:
    with pytest.raises(ValueError, match="is not within"):
        G4K_1M.host_block_offset_bytes(host_id)
    with pytest.raises(ValueError, match="is not within"):
        G4K_1M.delta_offset_bytes(host_id)


def test_an_lvb_exists_only_where_its_sector_is_inside_the_area() -> None:
    assert [each.has_lvb for each in GEOMETRIES] == [True, False, False, False, True]
    assert G512.lvb_offset_bytes == 2002 * 512
    with pytest.raises(ValueError, match="no room"):
        _ = G4K_1M.lvb_offset_bytes


@given(st.sampled_from(GEOMETRIES), st.integers(-(2**40), 2**60))
def test_an_area_begins_at_a_multiple_of_its_size(geometry: Geometry, offset: int) -> None:
    assert geometry.is_aligned(offset) == (offset >= 0 and offset % geometry.align_bytes == 0)


def test_index_slots_beyond_2_gib_are_exact_and_known_not_to_be_shared() -> None:
    assert rindex.slot_offset_bytes(G512, MIB, 2048) == 2051 * MIB
    assert rindex.slot_offset_bytes(G4K_8M, 0, 127_999) == 128_001 * 8 * MIB
    assert [rindex.entries_shared_max(each) for each in GEOMETRIES] == [2048, 2048, 1024, 512, 256]
    with pytest.raises(ValueError, match="is not within"):
        rindex.slot_offset_bytes(G512, 0, 16000)

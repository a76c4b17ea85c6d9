"""Which rule a record breaks, and what a record of ours may never say."""

from dataclasses import replace

import pytest

from holdfast.ondisk import areas, rindex
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import GEOMETRIES, MIB, Geometry
from holdfast.ondisk.leader import FLAG_SHORT_HOLD, Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX, PaddedName
from holdfast.ondisk.record_layout import COVERED_BYTES
from holdfast.ondisk.rindex import RindexEntry, RindexHeader

G512, G4K_1M, *_ = GEOMETRIES
LEADER = areas.fresh_leader(G512, "LS1", "disk")
DELTA = areas.fresh_delta_lease(G512, "LS1")


def reason_of(answer: object) -> Reason:
    assert isinstance(answer, Malformed)
    return answer.reason


def test_malformed_leaders_name_the_first_rule_they_break() -> None:
    raw = LEADER.encode()
    assert reason_of(Leader.decode(raw[:199])) is Reason.LENGTH
    assert reason_of(Leader.decode(bytes(512))) is Reason.MAGIC
    assert reason_of(Leader.decode(DELTA.encode())) is Reason.MAGIC
    assert reason_of(Leader.decode(LEADER.encode_cleared())) is Reason.CLEARED
    assert reason_of(Leader.decode(raw[:6] + b"\x05" + raw[7:])) is Reason.VERSION
    assert reason_of(Leader.decode(raw[:6] + b"\x08" + raw[7:])) is Reason.NEWER
    assert reason_of(Leader.decode(raw[:167] + b"\x01" + raw[168:])) is Reason.CHECKSUM


def test_another_minor_version_is_accepted_and_kept() -> None:
    newer = replace(LEADER, version=0x00060009)
    assert Leader.decode(newer.encode()) == newer


def test_fields_behind_the_checksum_do_not_change_it() -> None:
    raw = bytearray(replace(LEADER, write_id=1).encode())
    raw[176] = 9
    answer = Leader.decode(bytes(raw))
    assert isinstance(answer, Leader)
    assert answer.write_id == 9
    assert COVERED_BYTES < 176


def test_a_leader_for_more_hosts_than_fit_is_malformed() -> None:
    with pytest.raises(ValueError, match="num_hosts 2001"):
        replace(LEADER, num_hosts=2001).encode()
    with pytest.raises(ValueError, match="max_hosts 2000"):
        replace(LEADER, geometry=G4K_1M, flags=-1).encode()
    with pytest.raises(ValueError, match="owner_id 0"):
        replace(LEADER, timestamp=5).encode()


def test_short_hold_is_a_flag_beside_the_align_flag() -> None:
    held = replace(LEADER, short_hold=True)
    assert held.flags == 0x10 | FLAG_SHORT_HOLD
    assert replace(held, short_hold=False) == LEADER
    assert Leader.decode(held.encode()) == held


def test_a_leader_without_align_flag_keeps_being_without() -> None:
    old = replace(LEADER, flags=0)
    decoded = Leader.decode(old.encode())
    assert isinstance(decoded, Leader)
    assert decoded.geometry is G512
    assert replace(decoded, short_hold=True).flags == FLAG_SHORT_HOLD


def test_a_host_verifies_names_and_its_own_place_in_the_lease() -> None:
    leader = replace(LEADER, num_hosts=10)
    assert leader.verify("LS1", "disk", 10) is None
    assert reason_of(leader.verify("LS2", "disk", 1)) is Reason.LOCKSPACE_NAME
    assert reason_of(leader.verify("LS1", "disk2", 1)) is Reason.RESOURCE_NAME
    assert reason_of(leader.verify("LS1", "disk", 11)) is Reason.HOST_ID


def test_a_delta_lease_in_another_hosts_sector_proves_nothing() -> None:
    lease = replace(DELTA, owner_id=3, generation=1, timestamp=7)
    assert lease.verify("LS1", 3) is None
    assert DELTA.verify("LS1", 3) is None
    assert reason_of(lease.verify("LS1", 4)) is Reason.HOST_ID
    assert reason_of(lease.verify("LS", 3)) is Reason.LOCKSPACE_NAME
    assert reason_of(replace(DELTA, timestamp=7).verify("LS1", 3)) is Reason.HOST_ID


def test_an_io_timeout_that_no_host_can_have_is_malformed() -> None:
    raw = bytearray(DELTA.encode())
    raw[174:176] = (256).to_bytes(2, "little")
    assert reason_of(DeltaLease.decode(bytes(raw))) is Reason.RANGE
    with pytest.raises(ValueError, match="io_timeout 256"):
        replace(DELTA, io_timeout_s=256).encode()


def test_names_are_compared_up_to_the_first_nul_and_records_to_the_last_byte() -> None:
    clean = PaddedName.of("h1")
    with_tail = PaddedName(b"h1\0old-longer-name".ljust(48, b"\0"))
    assert with_tail.says("h1")
    assert with_tail.text == "h1"
    assert with_tail != clean
    assert replace(DELTA, host_name=clean) != replace(DELTA, host_name=with_tail)


def test_a_name_of_48_bytes_has_no_nul_and_a_longer_one_is_refused() -> None:
    full = PaddedName.of("n" * 48)
    assert full.says("n" * 48)
    assert not full.says("n" * 47)
    assert full.text == "n" * 48
    with pytest.raises(ValueError, match="at most 48 bytes"):
        PaddedName.of("n" * 49)
    with pytest.raises(ValueError, match="at most 47 bytes"):
        PaddedName.of("n" * 48, HOST_NAME_BYTES_MAX)
    with pytest.raises(ValueError, match="NUL"):
        PaddedName.of("a\0b")


def test_names_that_are_not_utf_8_survive() -> None:
    name = PaddedName(b"\xff\xfe".ljust(48, b"\0"))
    assert PaddedName.of(name.text) == name


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_lockspace_is_valid_only_after_its_second_write(geometry: Geometry) -> None:
    area, first_sector = areas.lockspace_area(geometry, "LS1")
    assert len(area) == geometry.align_bytes
    assert reason_of(DeltaLease.decode(area)) is Reason.MAGIC
    assert DeltaLease.decode(first_sector) == areas.fresh_delta_lease(geometry, "LS1")
    last = geometry.delta_offset_bytes(geometry.hosts_max)
    assert DeltaLease.decode(area[last:]) == areas.fresh_delta_lease(geometry, "LS1")
    assert not any(area[last + geometry.sector_bytes :])


def test_a_lease_never_claims_more_hosts_than_its_area_holds() -> None:
    assert areas.fresh_leader(G4K_1M, "LS1", "disk", 2000).num_hosts == 250
    assert areas.fresh_leader(G4K_1M, "LS1", "disk", 8).num_hosts == 8
    assert len(areas.lease_area(LEADER)) == MIB
    assert reason_of(Leader.decode(areas.cleared_lease_area(LEADER))) is Reason.CLEARED


def test_an_index_header_is_believed_only_at_the_place_it_names() -> None:
    header = areas.rindex_header(G512, "LS1", MIB, 100)
    assert header.verify("LS1", MIB) is None
    assert reason_of(header.verify("LS2", MIB)) is Reason.LOCKSPACE_NAME
    assert reason_of(header.verify("LS1", 2 * MIB)) is Reason.OFFSET
    assert reason_of(RindexHeader.decode(bytes(512))) is Reason.MAGIC
    assert areas.rindex_header(G512, "LS1", MIB, 10**6).entries_max == 16000
    with pytest.raises(ValueError, match="at most 47"):
        areas.rindex_header(G512, "n" * 48, MIB, 100)


def test_an_index_hands_out_its_lowest_free_entry_and_writes_one_sector() -> None:
    header = areas.rindex_header(G512, "LS1", MIB, 10)
    area = bytearray(areas.rindex_area(header))
    for expected in range(10):
        index = rindex.lowest_free(header, bytes(area), 16000)
        assert index == expected
        entry = RindexEntry(
            offset_bytes=rindex.slot_offset_bytes(G512, MIB, index), name=PaddedName.of(f"r{index}")
        )
        at, sector = rindex.sector_with_entry(header, bytes(area), index, entry)
        assert at % 512 == 0
        area[at : at + 512] = sector
    assert rindex.lowest_free(header, bytes(area), 16000) is None
    assert [entry.name.text for _, entry in rindex.entries(header, bytes(area))] == [
        f"r{index}" for index in range(10)
    ]
    assert rindex.lowest_free(areas.rindex_header(G512, "LS1", MIB, 5000), bytes(area), 3) is None

"""Which versions of the format are read, and what is said of the others: newer is neither damaged nor free."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from holdfast.backends.paxos.refusals import MAKE_ANEW, failure, fix_of
from holdfast.cli.main import cli
from holdfast.cli.offline.identify import Newer, describe, identify, is_reusable
from holdfast.ondisk import areas, delta
from holdfast.ondisk import leader as leaders
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, GEOMETRIES, MIB, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import NEWER_FIX, Malformed, Reason
from holdfast.ondisk.record_layout import COVERED_BYTES, version_text

LEADER = areas.fresh_leader(DEFAULT, "LS1", "disk")
DELTA = areas.fresh_delta_lease(DEFAULT, "LS1")
DELTA_6, LEADER_8 = 0x00060000, 0x00080000
UNKNOWN_FLAG = 0x100


def answer_of(record: DeltaLease | Leader) -> Malformed:
    answer = type(record).decode(record.encode())
    assert isinstance(answer, Malformed), answer
    return answer


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("version", [delta.VERSION, delta.VERSION_4, delta.VERSION_5], ids=version_text)
def test_delta_leases_of_every_known_version_are_read_without_loss(version: int, geometry: Geometry) -> None:
    record = replace(
        areas.fresh_delta_lease(geometry, "LS1"), version=version, owner_id=7, unused=(0x20001, 0)
    )
    assert DeltaLease.decode(record.encode()) == record


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("version", [leaders.VERSION, leaders.VERSION_7], ids=version_text)
def test_leaders_of_every_known_version_are_read_without_loss(version: int, geometry: Geometry) -> None:
    leader = replace(
        areas.fresh_leader(geometry, "LS1", "disk"), version=version, unused=(5, 0), short_hold=True
    )
    assert Leader.decode(leader.encode()) == leader


@pytest.mark.parametrize(
    "record",
    [
        replace(DELTA, version=DELTA_6),
        replace(LEADER, version=LEADER_8),
        replace(DELTA, version=delta.VERSION_5, flags=DELTA.flags | UNKNOWN_FLAG),
        replace(DELTA, version=delta.VERSION_4, flags=DELTA.flags | UNKNOWN_FLAG),
        replace(LEADER, version=leaders.VERSION_7, flags=LEADER.flags | UNKNOWN_FLAG),
    ],
    ids=str,
)
def test_a_greater_major_version_and_unknown_flags_are_newer_and_never_made_again(
    record: DeltaLease | Leader,
) -> None:
    fault = answer_of(record)
    assert fault.reason is Reason.NEWER
    for found in (failure(fault), fix_of(fault), describe(identify(record.encode()), record.encode())):
        assert "--force" not in found
        assert MAKE_ANEW not in found
        assert "a damaged" not in found
    assert "create_old_delta_disk_version" in failure(fault)
    assert "create_old_paxos_disk_version" in failure(fault)
    assert isinstance(identify(record.encode()), Newer)
    assert not is_reusable(identify(record.encode()))


def test_a_newer_record_is_newer_although_its_checksum_may_be_computed_in_another_way() -> None:
    raw = bytearray(replace(DELTA, version=DELTA_6).encode())
    raw[COVERED_BYTES] ^= 1
    answer = DeltaLease.decode(bytes(raw))
    assert isinstance(answer, Malformed)
    assert answer.is_newer


def test_flags_without_a_meaning_are_ignored_and_kept_in_old_versions() -> None:
    """As sanlock does (spec newer-sanlock.md, 1.2)."""
    old = replace(DELTA, flags=DELTA.flags | UNKNOWN_FLAG)
    assert DeltaLease.decode(old.encode()) == old
    older_leader = replace(LEADER, flags=LEADER.flags | UNKNOWN_FLAG)
    assert Leader.decode(older_leader.encode()) == older_leader


def test_an_older_major_version_is_not_newer() -> None:
    assert answer_of(replace(DELTA, version=0x00020000)).reason is Reason.VERSION
    assert answer_of(replace(LEADER, version=0x00050000)).reason is Reason.VERSION


@pytest.mark.parametrize(
    ("command", "record"),
    [
        (("lockspace", "init", "--name", "LS1"), replace(DELTA, version=DELTA_6)),
        (("lease", "init", "--lockspace", "LS1", "--resource", "disk"), replace(LEADER, version=LEADER_8)),
    ],
    ids=["lockspace", "lease"],
)
def test_nothing_is_made_over_a_newer_record_and_force_is_not_advised(
    command: tuple[str, ...], record: DeltaLease | Leader, tmp_path: Path
) -> None:
    path = tmp_path / "area"
    path.write_bytes(record.encode().ljust(MIB, b"\0"))
    before = path.read_bytes()
    done = CliRunner().invoke(cli, [*command, str(path)])
    assert done.exit_code == 75, done.output
    assert NEWER_FIX in done.output
    assert "--force" not in done.output
    assert path.read_bytes() == before

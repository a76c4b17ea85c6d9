"""Records with CAW (sanlock 5) are changed by COMPARE AND WRITE only: they are read and shown, and never written plainly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.contract.test_paxos_backend import Scene, play
from tests.support.leases import SPACE
from tests.unit.protocol.simulated import World

from holdfast.cli.main import cli
from holdfast.errors import LeaseUnusable
from holdfast.model import Mode
from holdfast.ondisk import areas, delta
from holdfast.ondisk import leader as leaders
from holdfast.ondisk.delta import FLAG_CAW, DeltaLease
from holdfast.ondisk.geometry import DEFAULT, GEOMETRIES, MIB, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import CAW_FIX, Malformed, Reason
from holdfast.protocol import delta_lease, lease_area
from holdfast.protocol.dead_mark import NotMarked, mark_dead
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.lockspace_area import Corrupt, LockspaceArea, open_area
from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, HostTimestamp
from holdfast.testing.conformance import assert_held, take

DELTA = areas.fresh_delta_lease(DEFAULT, "LS1", version=delta.VERSION_5, flags=FLAG_CAW)
LEADER = replace(
    areas.fresh_leader(DEFAULT, "LS1", "disk", version=leaders.VERSION_7),
    flags=DEFAULT.align_flag | leaders.FLAG_CAW,
)
TIMING = Timing(1, 60)


@pytest.mark.parametrize("record", [DELTA, LEADER], ids=["delta", "leader"])
def test_record_is_read_and_makes_no_sector_for_a_plain_write(record: DeltaLease | Leader) -> None:
    assert type(record).decode(record.encode()) == record
    with pytest.raises(ValueError, match="COMPARE AND WRITE"):
        record.sector()
    fault = record.write_fault()
    assert isinstance(fault, Malformed)
    assert (fault.reason, fault.fix) == (Reason.CAW, CAW_FIX)


def _world(record: DeltaLease, at: int) -> World:
    world = World(1, 2 * MIB)
    area, first = areas.lockspace_area(DEFAULT, "LS1", 1, version=delta.VERSION_5)
    world.content[:MIB] = first + area[len(first) :]
    world.content[at : at + DeltaLease.BYTES] = record.encode()
    return world


def test_lockspace_is_not_joined() -> None:
    world = _world(DELTA, 0)
    host = world.host()
    before = bytes(world.content)
    opened = host.run(open_area(host.disk, 0, "LS1", 1))
    assert isinstance(opened, Corrupt)
    assert opened.found.fix == CAW_FIX
    assert bytes(world.content) == before


def test_host_id_whose_record_has_the_flag_is_neither_claimed_nor_marked() -> None:
    """As `sanlock client init_host` leaves it in a lockspace without the flag."""
    record = replace(DELTA, owner_id=3, generation=4, timestamp=500)
    world = _world(record, DEFAULT.delta_offset_bytes(3))
    host = world.host()
    before = bytes(world.content)
    area = host.run(open_area(host.disk, 0, "LS1", 1))
    assert isinstance(area, LockspaceArea)
    claim = delta_lease.Claim(HostId(3), "beta", TIMING)
    claimed = host.run(delta_lease.acquire(area, host.clock, claim))
    assert isinstance(claimed, Corrupt)
    assert claimed.found.reason is Reason.CAW
    member = Membership(area, HostId(1), Generation(1), lambda: TIMING, lambda: True, lambda _: None)  # type: ignore[arg-type,return-value]
    marked = host.run(mark_dead(member, HostId(3), Generation(4), HostTimestamp(500)))
    assert isinstance(marked, NotMarked)
    assert "COMPARE AND WRITE" in marked.reason
    assert bytes(world.content) == before


@pytest.mark.parametrize("device", [False, True], ids=["directory", "device"])
@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=str)
@pytest.mark.parametrize("version", [leaders.VERSION, leaders.VERSION_7])
def test_lease_is_refused_for_every_use_and_stays_as_it_is(
    version: int, geometry: Geometry, device: bool, tmp_path: Path
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=device, geometry=geometry, version=delta.VERSION_5)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        place = s.lockspace if device else s.lease_file
        at = 3 * geometry.align_bytes if device else 0
        raw = bytearray(place.read_bytes())
        leader = Leader.decode(bytes(raw[at : at + Leader.BYTES]))
        assert isinstance(leader, Leader)
        held = replace(
            leader, version=version, flags=leader.flags | leaders.FLAG_CAW, timestamp=700, owner_id=2
        )
        raw[at : at + Leader.BYTES] = held.encode()
        place.write_bytes(raw)
        (name,) = await s.one.maintenance.lease_names()
        uses = (
            lambda mode: take(s.one, s.world(), mode),
            lambda _: s.one.maintenance.take_out(name, dry_run=False),
            lambda _: s.one.maintenance.break_lease(s.resource, ""),
            lambda _: s.one.maintenance.free_left_behind(name),
        )
        for use in uses:
            for mode in Mode:
                with pytest.raises(LeaseUnusable) as refused:
                    await use(mode)
                assert CAW_FIX in str(refused.value)
                assert "--force" not in str(refused.value)
        assert place.read_bytes() == raw
        result = CliRunner().invoke(cli, ["lease", "dump", str(place), "--json"])
        shown = next(
            a["told"] for a in json.loads(result.output)["areas"] if a["kind"] == "lease" and a["told"]["caw"]
        )
        assert (shown["owner_id"], shown["resource"]) == (2, name)

    play(scene)


def test_place_of_an_index_that_a_lease_with_the_flag_had_is_not_used_again(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        slot = 3 * DEFAULT.align_bytes
        never_owned = replace(
            areas.fresh_leader(DEFAULT, SPACE, "other"), flags=DEFAULT.align_flag | leaders.FLAG_CAW
        )
        raw = bytearray(s.lockspace.read_bytes())
        raw[slot : slot + Leader.BYTES] = never_owned.encode()
        after = slot + DEFAULT.align_bytes
        raw[after : after + Leader.BYTES] = never_owned.encode_cleared()
        s.lockspace.write_bytes(raw)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        now = s.lockspace.read_bytes()
        assert now[slot : slot + 2 * DEFAULT.align_bytes] == raw[slot : slot + 2 * DEFAULT.align_bytes]
        assert isinstance(Leader.decode(now[slot + 2 * DEFAULT.align_bytes :]), Leader)

    play(scene)


def test_lease_area_of_the_protocol_alone_refuses_it_too() -> None:
    world = World(1, 2 * MIB)
    host = world.host()
    world.content[MIB : MIB + Leader.BYTES] = LEADER.encode()
    area = LeaseArea(host.disk, MIB, DEFAULT, "LS1", "disk")
    for answer in (
        host.run(area.look(HostId(1), 1)),
        host.run(area.read_partial(HostId(1), 1)),
        host.run(area.read_leader(HostId(1), 1)),
    ):
        assert isinstance(answer, Malformed)
        assert answer.reason is Reason.CAW
    assert isinstance(host.run(lease_area.init(area)), lease_area.LeaseAlreadyThere)

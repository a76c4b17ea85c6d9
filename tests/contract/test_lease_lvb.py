"""Sector 2002 of a lease outlives its holders: libvirt 12.8 keeps there which VM owns the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.contract.test_paxos_backend import Scene, play
from tests.support.leases import entry_count

from holdfast.cli.main import cli
from holdfast.model import Mode
from holdfast.ondisk.geometry import DEFAULT, GEOMETRIES, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.rindex import ENTRY_BYTES, entry_offset_bytes
from holdfast.testing.conformance import assert_held, take

UUID = b"0f0e0d0c-0b0a-0908-0706-050403020100\0"
with_lvb = pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if g.has_lvb], ids=str)
everywhere = pytest.mark.parametrize("device", [False, True], ids=["directory", "device"])


class Placed:
    """The lease of the scene's disk, and its sector 2002."""

    def __init__(self, s: Scene, *, device: bool, geometry: Geometry, slot: int = 0) -> None:
        self.path = s.lockspace if device else s.lease_file
        self.at = (3 + slot) * geometry.align_bytes if device else 0
        self._lvb_at = self.at + 2002 * geometry.sector_bytes

    def owned(self) -> None:
        with self.path.open("r+b") as f:
            f.seek(self._lvb_at)
            f.write(UUID)

    def lvb(self) -> bytes:
        return self.path.read_bytes()[self._lvb_at :][: len(UUID)]

    def leader(self) -> object:
        return Leader.decode(self.path.read_bytes()[self.at :][: Leader.BYTES])


@with_lvb
@everywhere
def test_lease_that_keeps_something_there_is_not_taken_out_and_its_uses_leave_it_alone(
    device: bool, geometry: Geometry, tmp_path: Path
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=device, geometry=geometry)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        placed = Placed(s, device=device, geometry=geometry)
        placed.owned()
        (name,) = await s.two.maintenance.lease_names()
        for dry_run in (True, False):
            why = await s.two.maintenance.take_out(name, dry_run=dry_run)
            assert UUID.rstrip(b"\0").decode() in why
            assert placed.lvb() == UUID
        assert await s.two.maintenance.lease_names() == [name]
        for mode in Mode:
            await assert_held(await take(s.two, s.world(), mode)).release()
        assert await s.one.maintenance.break_lease(s.resource, "") == "nobody held it"
        assert placed.lvb() == UUID
        result = CliRunner().invoke(cli, ["lease", "dump", str(placed.path), "--json"])
        leases = [area["told"] for area in json.loads(result.output)["areas"] if area["kind"] == "lease"]
        assert UUID.rstrip(b"\0").decode() in [lease["lvb"] for lease in leases]

    play(scene)


@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if not g.has_lvb], ids=str)
def test_what_would_be_sector_2002_of_a_small_area_is_its_neighbours(
    geometry: Geometry, tmp_path: Path
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True, geometry=geometry)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        with s.lockspace.open("r+b") as f:
            f.truncate(3 * geometry.align_bytes + 2003 * geometry.sector_bytes)
        Placed(s, device=True, geometry=geometry).owned()
        (name,) = await s.two.maintenance.lease_names()
        assert await s.two.maintenance.take_out(name, dry_run=True) == ""

    play(scene)


@with_lvb
def test_lease_whose_removal_was_cut_short_is_made_again_with_what_it_keeps(
    geometry: Geometry, tmp_path: Path
) -> None:
    """Its entry still names it: the sector is about the same disk."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True, geometry=geometry)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        placed = Placed(s, device=True, geometry=geometry)
        leader = placed.leader()
        assert isinstance(leader, Leader)
        with s.lockspace.open("r+b") as f:
            f.seek(placed.at)
            f.write(leader.encode_cleared())
        placed.owned()
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        assert placed.lvb() == UUID
        assert isinstance(placed.leader(), Leader)

    play(scene)


def test_place_that_keeps_something_of_another_disk_gets_no_new_lease(tmp_path: Path) -> None:
    """sanlock takes a lease out by its entry and its leader alone."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        placed = Placed(s, device=True, geometry=DEFAULT)
        leader = placed.leader()
        assert isinstance(leader, Leader)
        with s.lockspace.open("r+b") as f:
            f.seek(placed.at)
            f.write(leader.encode_cleared())
            f.seek(DEFAULT.align_bytes + entry_offset_bytes(DEFAULT, 0))
            f.write(bytes(ENTRY_BYTES))
        placed.owned()
        assert entry_count(s.lockspace) == 0
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        assert placed.lvb() == UUID
        assert not isinstance(placed.leader(), Leader)
        second = Placed(s, device=True, geometry=DEFAULT, slot=1)
        assert isinstance(second.leader(), Leader)
        assert second.lvb() == bytes(len(UUID))

    play(scene)

"""Lockspaces and leases of other versions: new leases have their lockspace's, and what is rewritten keeps its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.test_device_store import device_leader
from tests.contract.test_paxos_backend import Scene, play

from holdfast.backends.base import HeldElsewhere
from holdfast.errors import LeaseUnusable
from holdfast.model import Mode
from holdfast.ondisk import areas, delta
from holdfast.ondisk import leader as leaders
from holdfast.ondisk.geometry import GEOMETRIES, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import NEWER_FIX
from holdfast.ondisk.record_layout import version_text
from holdfast.testing.conformance import assert_held, take

FAMILIES = [
    (delta.VERSION, leaders.VERSION),
    (delta.VERSION_4, leaders.VERSION),
    (delta.VERSION_5, leaders.VERSION_7),
]
every_family = pytest.mark.parametrize(("lockspace_version", "lease_version"), FAMILIES, ids=version_text)


@every_family
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("device", [False, True], ids=["directory", "device"])
def test_new_lease_has_the_version_of_its_lockspaces_family(
    device: bool, geometry: Geometry, lockspace_version: int, lease_version: int, tmp_path: Path
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=device, geometry=geometry, version=lockspace_version)
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        if device:
            raw = s.lockspace.read_bytes()[3 * geometry.align_bytes :]
            leader = Leader.decode(raw)
            assert isinstance(leader, Leader)
        else:
            leader = s.leader()
        assert (leader.version, leader.owner_id) == (lease_version, 1)
        await held.release()

    play(scene)


@pytest.mark.parametrize("version", [leaders.VERSION, leaders.VERSION_7], ids=version_text)
def test_version_flags_and_unused_fields_of_a_lease_outlive_every_write(version: int, tmp_path: Path) -> None:
    """A sanlock 5 host puts a 7.0 lease into a 3.4 lockspace; and the other way round."""

    async def scene() -> None:
        s = Scene(
            tmp_path / "leases", version=delta.VERSION_5 if version == leaders.VERSION else delta.VERSION
        )
        fresh = areas.fresh_leader(GEOMETRIES[0], s.lockspace.name, s.lease_file.name, 8)
        theirs = replace(fresh, version=version, unused=(0x20001, 7))
        s.lease_file.write_bytes(areas.lease_area(theirs))

        def assert_kept(owner: int) -> None:
            found = s.leader()
            assert (found.version, found.flags, found.unused) == (version, theirs.flags, theirs.unused)
            assert found.owner_id == owner

        for mode in (Mode.EXCLUSIVE, Mode.SHARED):
            held = assert_held(await take(s.one, s.world(), mode))
            assert_kept(1)
            if mode is Mode.EXCLUSIVE:
                assert isinstance(await take(s.two, s.world(), mode), HeldElsewhere)
            await held.release()
            assert_kept(1)
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        await held.release()
        assert_kept(2)

    play(scene)


@pytest.mark.parametrize("device", [False, True], ids=["directory", "device"])
def test_lease_of_a_newer_version_is_refused_and_stays_as_it_is(device: bool, tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=device)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        place = s.lockspace if device else s.lease_file
        at = 3 * GEOMETRIES[0].align_bytes if device else 0
        newer = replace(device_leader(s) if device else s.leader(), version=0x00080000)
        raw = bytearray(place.read_bytes())
        raw[at : at + Leader.BYTES] = newer.encode()
        place.write_bytes(raw)
        with pytest.raises(LeaseUnusable) as refused:
            await take(s.one, s.world(), Mode.EXCLUSIVE)
        assert NEWER_FIX in str(refused.value)
        assert "--force" not in str(refused.value)
        (name,) = await s.one.maintenance.lease_names()
        with pytest.raises(LeaseUnusable):
            await s.one.maintenance.take_out(name, dry_run=False)
        with pytest.raises(LeaseUnusable):
            await s.one.maintenance.break_lease(s.resource, "")
        assert place.read_bytes() == raw

    play(scene)

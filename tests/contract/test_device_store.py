"""Leases on a device are where the resource index says; a place that no name leads to is won back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.contract.test_paxos_backend import Scene, play
from tests.support.leases import SPACE, entry_count

from holdfast.backends.base import HeldElsewhere, Stale
from holdfast.backends.lease_backend import UNACCOUNTED
from holdfast.backends.paxos import owner_note
from holdfast.backends.paxos.lease_store import Finding, Found
from holdfast.backends.paxos.maintenance import FREED_THERE
from holdfast.errors import LeaseUnusable
from holdfast.lease_admin.garbage_collection import LeaseCollector
from holdfast.manager.key_locks import KeyLocks
from holdfast.manager.lock_table import LockTable
from holdfast.model import Mode, ProcessId, Resource
from holdfast.ondisk import areas, rindex
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.host_block import NOTE_BYTES_MAX, NOTE_OFFSET_BYTES, HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.membership import Membership
from holdfast.protocol.resource_index import UnindexedLease
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system.block_io.offload import Job
from holdfast.testing.conformance import NOTE, assert_held, opened, take
from holdfast.testing.fakes import SimulatedClock


def device_leader(s: Scene) -> Leader:
    """Of the first entry's place."""
    raw = s.lockspace.read_bytes()[3 * DEFAULT.align_bytes :]
    leader = Leader.decode(raw)
    assert isinstance(leader, Leader), leader
    return leader


def written(s: Scene, offset_bytes: int, raw: bytes) -> None:
    with s.lockspace.open("r+b") as f:
        f.seek(offset_bytes)
        f.write(raw)


def without_entry(s: Scene) -> None:
    """Somebody else takes the first entry out."""
    written(s, DEFAULT.align_bytes + rindex.entry_offset_bytes(DEFAULT, 0), bytes(rindex.ENTRY_BYTES))
    assert entry_count(s.lockspace) == 0


def test_lease_that_loses_its_entry_is_not_won_by_whoever_has_found_it_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        find = s.two.places.find

        async def find_in_time(job: Job, member: Membership, name: str) -> Finding:
            found = await find(job, member, name)
            without_entry(s)
            return found

        monkeypatch.setattr(s.two.places, "find", find_in_time)
        found_before = await opened(s.two, s.world())
        assert isinstance(await found_before.take(Mode.EXCLUSIVE, NOTE), Stale)
        assert device_leader(s).is_free

    play(scene)


def test_lease_is_looked_for_in_the_index_and_not_where_it_was(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        before = device_leader(s)
        without_entry(s)
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        assert device_leader(s) == before
        assert entry_count(s.lockspace) == 1
        assert isinstance(await take(s.one, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        await held.release()

    play(scene)


def test_entry_whose_lease_was_cleared_by_a_collector_that_died_is_made_again(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        written(s, 3 * DEFAULT.align_bytes, device_leader(s).encode_cleared())
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        assert isinstance(await take(s.two, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        assert entry_count(s.lockspace) == 1
        await held.release()

    play(scene)


VM_NOTE = owner_note.encode(NOTE._replace(start_ticks=99), 0.0, "/disks/disk")


def lives(_: ProcessId) -> bool:
    return False


async def late_leader(s: Scene, *, is_free: bool = True, name: str = "") -> UnindexedLease:
    """A lease was taken out by host 1, and a leader of host 2 lands on it afterwards."""
    held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
    late = device_leader(s)
    await held.release()
    (made,) = await s.one.maintenance.lease_names()
    assert await s.one.maintenance.take_out(made, dry_run=False) == ""
    late = replace(
        late, resource_name=PaddedName.of(name or made), timestamp=0 if is_free else late.timestamp
    )
    written(s, 3 * DEFAULT.align_bytes, late.sector())
    return UnindexedLease(3 * DEFAULT.align_bytes, name or made)


def test_place_of_a_lease_that_its_name_does_not_lead_to_is_won_back(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        stray = await late_leader(s)
        assert await s.one.maintenance.unindexed() == [stray]
        # Whoever wants the lease gets another place, and is not concerned by what becomes of the old one.
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        assert await s.one.maintenance.take_out_stray(stray, dry_run=True, has_ended=lives) == ""
        assert await s.one.maintenance.unindexed() == [stray]
        assert await s.one.maintenance.take_out_stray(stray, dry_run=False, has_ended=lives) == ""
        assert await s.one.maintenance.unindexed() == []
        assert isinstance(await take(s.one, s.world(), Mode.EXCLUSIVE), HeldElsewhere)
        await held.release()
        other = replace(s.world(), resource=Resource("", "/disks/other"))
        await assert_held(await take(s.two, other, Mode.EXCLUSIVE)).release()
        assert device_leader(s).resource_name.text != stray.name
        assert entry_count(s.lockspace) == 2

    play(scene)


def test_place_is_not_won_back_while_a_living_host_may_rest_on_it(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        stray = await late_leader(s, is_free=False)
        before = device_leader(s)
        for dry_run in (True, False):
            kept = await s.one.maintenance.take_out_stray(stray, dry_run=dry_run, has_ended=lives)
            assert "host_id 2" in kept
            assert dry_run or kept.endswith(FREED_THERE)
        assert device_leader(s) == before

    play(scene)


@pytest.mark.parametrize(
    ("note", "ended", "kept"),
    [
        (owner_note.UPKEEP, False, ""),
        (VM_NOTE, True, ""),
        (VM_NOTE, False, UNACCOUNTED),
        (b"", True, UNACCOUNTED),
    ],
    ids=["maintenance", "ended", "alive", "unknown"],
)
def test_stray_that_names_this_host_goes_if_its_note_says_that_nobody_has_it(
    tmp_path: Path, note: bytes, ended: bool, kept: str
) -> None:
    """The ballot of host 2 ends what host 1 had begun before it took the lease out: storage says that host 1 has it."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        stray = await late_leader(s)
        assert "host_id 1" in await s.two.maintenance.take_out_stray(stray, dry_run=False, has_ended=lives)
        at = 3 * DEFAULT.align_bytes + 2 * DEFAULT.sector_bytes + NOTE_OFFSET_BYTES
        written(s, at, note.ljust(NOTE_BYTES_MAX, b"\0"))
        asked: list[ProcessId] = []

        def has_ended(process: ProcessId) -> bool:
            asked.append(process)
            return ended

        assert await s.one.maintenance.take_out_stray(stray, dry_run=False, has_ended=has_ended) == kept
        assert bool(await s.one.maintenance.unindexed()) is bool(kept)
        assert asked == ([ProcessId(4711, 99)] if note == VM_NOTE else [])

    play(scene)


def test_lease_that_somebody_made_by_hand_beside_the_index_is_left_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        await late_leader(s, name="by-hand")
        before = device_leader(s)
        assert await s.one.maintenance.unindexed() == []
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        assert device_leader(s) == before

    play(scene)


def test_lease_that_is_just_being_made_is_no_stray(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        (name,) = await s.one.maintenance.lease_names()
        assert await s.one.maintenance.unindexed() == []
        await s.one.maintenance.take_out(name, dry_run=False)
        assert await s.one.maintenance.unindexed() == []  # cleared
        written(s, 3 * DEFAULT.align_bytes, areas.fresh_leader(DEFAULT, SPACE, name).sector())
        assert await s.one.maintenance.unindexed() == []  # made, and its entry is about to be written
        written(s, 3 * DEFAULT.align_bytes, b"\xff" * 512)
        assert await s.one.maintenance.unindexed() == []  # no lease at all

    play(scene)


def test_stray_is_not_opened_while_this_host_is_giving_that_lease_up(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        stray = await late_leader(s)
        member = s.alpha.presence.membership()
        assert not isinstance(member, NotAMember)
        found = await s.one.look_up_stray(member, stray)
        assert isinstance(found, Found)
        with s.one.trying(found, member), pytest.raises(LeaseUnusable, match="still giving it up"):
            await s.one.maintenance.take_out_stray(stray, dry_run=False, has_ended=lives)
        assert await s.one.maintenance.take_out_stray(stray, dry_run=False, has_ended=lives) == ""
        with pytest.raises(LeaseUnusable, match="taken out by another host"):
            await s.one.maintenance.take_out_stray(stray, dry_run=False, has_ended=lives)

    play(scene)


def test_collector_takes_strays_out_too_and_says_where_they_are(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        stray = await late_leader(s)
        key_locks = KeyLocks()
        manager = SimpleNamespace(
            backends={s.one.name: s.one}, key_locks=key_locks, table=LockTable(), acquirer=SimpleNamespace()
        )
        collector = LeaseCollector(manager, clock=SimulatedClock())  # type: ignore[arg-type]
        key = s.one.names.key(stray.name)
        key_locks.take(key)
        (kept,) = await collector.collect(dry_run=False)
        assert kept.kept_because == "being taken here"
        key_locks.end(key)
        (would,) = await collector.collect(dry_run=True)
        (has,) = await collector.collect(dry_run=False)
        assert would == has
        assert has.kept_because == ""
        assert f"at {stray.offset_bytes}" in has.name
        assert await collector.collect(dry_run=False) == []

    play(scene)


def test_what_a_release_promised_is_for_the_lease_in_that_place(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        (name,) = await s.one.maintenance.lease_names()
        size = DEFAULT.align_bytes
        # Somebody moves the lease, byte for byte, to the second entry.
        written(s, 4 * size, s.lockspace.read_bytes()[3 * size : 4 * size])
        entry = rindex.RindexEntry(offset_bytes=4 * size, name=PaddedName.of(name))
        without_entry(s)
        written(s, size + rindex.entry_offset_bytes(DEFAULT, 1), entry.encode())
        at = 4 * size + DEFAULT.host_block_offset_bytes(1)

        def ballot() -> int:
            block = HostBlock.decode(s.lockspace.read_bytes()[at : at + 512])
            assert isinstance(block, HostBlock)
            return block.dblock.mbal

        promised = ballot()
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        assert ballot() > promised
        await held.release()
        promised = ballot()
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        assert ballot() == promised
        await held.release()

    play(scene)


def test_lease_made_where_one_was_goes_on_with_its_versions_and_keeps_what_was_promised(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True)
        for _ in range(3):
            await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()
        at = 3 * DEFAULT.align_bytes + DEFAULT.host_block_offset_bytes(2)
        promised = s.lockspace.read_bytes()[at : at + 512]
        (name,) = await s.one.maintenance.lease_names()
        assert await s.one.maintenance.take_out(name, dry_run=False) == ""
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        assert device_leader(s).lver == 5  # three times taken, taken to be taken out, taken anew
        assert s.lockspace.read_bytes()[at : at + 512] == promised
        await held.release()

    play(scene)

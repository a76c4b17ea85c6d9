"""DEAD_EXT (sanlock 4 and later): the mark ends one term of one host at once, for us and for itself, and no other term."""

from dataclasses import replace

import pytest
from tests.unit.protocol.simulated import Host, World
from tests.unit.protocol.test_delta_lease import ID, TIMING, claim_of, on_disk
from tests.unit.protocol.test_host_status import ALIVE, OTHER, look, state, table
from tests.unit.protocol.test_owner_bounds import OUR_TIMING, OWNER, Scene

from holdfast.ondisk import areas, delta
from holdfast.ondisk.delta import FLAG_DEAD_EXT, FLAG_NO_TIMEOUT, DeltaLease, decode_bitmap
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.host_block import HostBlock, ModeBlock
from holdfast.protocol import delta_lease
from holdfast.protocol.dead_mark import Marked, NotMarked, can_be_marked, mark_dead
from holdfast.protocol.host_status import HostState, StateChanged, proven_gone
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.paxos_lease import SharedBy, acquire_exclusive
from holdfast.protocol.takeover import HostUnknown, MayTakeOver, NeverByTime
from holdfast.protocol.types import Generation, HostId, HostTimestamp, Instant, IoFailed

PLAIN = replace(ALIVE, version=delta.VERSION_5, flags=DEFAULT.align_flag)
MARKED = PLAIN.marked_dead(1, 7)
NEWER_FLAGS = {"version": delta.VERSION_5, "flags": DEFAULT.align_flag}


@pytest.mark.parametrize(
    ("host_id", "generation", "field"),
    [(2, 1, 0x20001), (258, 70001, 0x1021171)],  # as sanlock 5.1.1 wrote them (spec newer-sanlock.md, 1.2)
)
def test_mark_says_who_wrote_it_as_sanlock_does(host_id: int, generation: int, field: int) -> None:
    marked = PLAIN.marked_dead(host_id, generation)
    assert marked.unused == (field, 0)
    assert marked.marked_by == (host_id, generation & 0xFFFF)
    assert DeltaLease.decode(marked.encode()) == marked
    assert replace(marked, flags=PLAIN.flags, unused=PLAIN.unused) == PLAIN
    assert marked.without_mark().unused == marked.unused
    assert not marked.without_mark().is_marked_dead


def test_flag_in_a_record_of_version_3_is_no_mark() -> None:
    assert not replace(MARKED, version=delta.VERSION).is_marked_dead


# --- how others see it ---


def test_marked_host_is_dead_at_first_sight_and_only_while_the_mark_stands() -> None:
    hosts = table()
    look(hosts, 10, PLAIN)
    look(hosts, 12, replace(PLAIN, timestamp=502))
    changes = look(hosts, 14, replace(MARKED, timestamp=502))
    assert changes == (StateChanged(OTHER, HostState.LIVE, HostState.DEAD),)
    view = hosts.view(OTHER, Instant(14))
    assert (view.marked_by, view.note) == ((1, 7), "marked dead (DEAD_EXT) by host_id 1")
    # It lived, and its renewal was just being written: the mark is gone.
    renewed = replace(PLAIN, timestamp=504)
    look(hosts, 16, renewed)
    assert state(hosts, 16) is HostState.LIVE
    assert not proven_gone(Generation(3), renewed, hosts.view(OTHER, Instant(16)))


def test_mark_that_is_gone_from_the_record_proves_nothing_although_the_last_look_showed_it() -> None:
    hosts = table()
    look(hosts, 10, PLAIN)
    look(hosts, 12, MARKED)
    assert not proven_gone(Generation(3), PLAIN, hosts.view(OTHER, Instant(12)))


def test_mark_is_about_the_generation_in_its_record_alone() -> None:
    """sanlock lets a greater generation be named, and writes that over the one that still runs."""
    hosts = table()
    look(hosts, 10, PLAIN)
    view = hosts.view(OTHER, Instant(10))
    assert proven_gone(Generation(3), MARKED, view)
    for generation in (2, 4, 9):
        assert not proven_gone(Generation(3), replace(MARKED, generation=generation), view)


def test_newer_term_is_proof_of_the_end_of_one_that_was_seen_marked() -> None:
    hosts = table()
    look(hosts, 10, MARKED)
    newer = replace(MARKED.without_mark(), generation=4, timestamp=900)
    look(hosts, 12, newer)
    assert proven_gone(Generation(3), newer, hosts.view(OTHER, Instant(12)))


@pytest.mark.parametrize("no_timeout", [0, FLAG_NO_TIMEOUT], ids=["timed", "no time-out"])
def test_owner_that_was_marked_loses_its_lease_at_once_whatever_the_table_says(no_timeout: int) -> None:
    s = Scene()
    s.shows(version=delta.VERSION_5, flags=DEFAULT.align_flag | no_timeout)
    s.seen_unchanged_for(1.0)
    s.view = replace(s.view, state=HostState.LIVE)
    assert not isinstance(s.verdict(), MayTakeOver)
    s.shows(flags=s.record.flags | FLAG_DEAD_EXT)
    begun = s.world.now
    assert s.verdict() == MayTakeOver(waited=False)
    assert s.world.now - begun < 1


@pytest.mark.parametrize(("no_timeout", "verdict"), [(0, HostUnknown), (FLAG_NO_TIMEOUT, NeverByTime)])
def test_mark_of_another_generation_does_not_free_an_owners_lease(no_timeout: int, verdict: type) -> None:
    s = Scene()
    for generation in (0, 9):
        flags = DEFAULT.align_flag | FLAG_DEAD_EXT | no_timeout
        s.shows(version=delta.VERSION_5, flags=flags, generation=generation)
        assert isinstance(s.verdict(), verdict)


def test_share_of_a_marked_host_counts_no_more() -> None:
    s = Scene()
    s.shows(**NEWER_FLAGS)
    s.world.content[MIB : MIB + 512] = replace(s.leader, timestamp=0).sector()
    at = MIB + DEFAULT.host_block_offset_bytes(OWNER)
    s.world.content[at : at + 512] = HostBlock(mode=ModeBlock.shared(Generation(1))).sector(512)

    def acquired() -> object:
        return s.host.run(acquire_exclusive(s.area, s.member(), s.host.clock, s.host.rng))

    assert acquired() == SharedBy({OWNER: Generation(1)})
    s.shows(flags=DEFAULT.align_flag | FLAG_DEAD_EXT, generation=2)
    assert acquired() == SharedBy({OWNER: Generation(1)})
    s.shows(generation=1)
    assert not isinstance(acquired(), SharedBy)


# --- a mark on our own record ---


def _world(no_timeout: int = 0) -> World:
    world = World(1, MIB)
    area, first = areas.lockspace_area(DEFAULT, "LS1", 1, version=delta.VERSION_5, flags=no_timeout)
    world.content[:MIB] = first + area[len(first) :]
    return world


def _area(host: Host) -> LockspaceArea:
    return LockspaceArea(host.disk, 0, DEFAULT, "LS1", delta.VERSION_5)


def _claimed(host: Host, name: str = "") -> delta_lease.AcquireOutcome:
    claim = replace(claim_of(host), host_name=name or host.name)
    return host.run(delta_lease.acquire(_area(host), host.clock, claim))


def _held(world: World, name: str = "") -> tuple[Host, delta_lease.Held]:
    host = world.host()
    held = _claimed(host, name)
    assert isinstance(held, delta_lease.Held)
    return host, held


def _put(world: World, record: DeltaLease) -> None:
    at = DEFAULT.delta_offset_bytes(ID)
    world.content[at : at + 512] = record.sector()


@pytest.mark.parametrize("certain", [True, False], ids=["certain", "after a failed write"])
@pytest.mark.parametrize("more", [0, 8], ids=["own generation", "greater generation"])
def test_marked_host_ends_its_term_at_its_next_renewal_and_leaves_the_mark(certain: bool, more: int) -> None:
    world = _world()
    host, held = _held(world)
    marked = replace(on_disk(world), generation=held.generation + more).marked_dead(5, 1)
    _put(world, marked)
    outcome = host.run(delta_lease.renew(_area(host), host.clock, replace(held, certain=certain)))
    assert isinstance(outcome, delta_lease.MarkedDead), outcome
    assert "host_id 5 has marked generation" in str(outcome)
    assert on_disk(world) == marked
    released = host.run(delta_lease.release(_area(host), host.clock, held))
    assert isinstance(released, delta_lease.NotReleased)
    assert on_disk(world) == marked


def test_mark_of_an_older_term_does_not_end_ours() -> None:
    """It can't stand in a record of ours; a late write of it says that somebody else has our id's record."""
    world = _world()
    host, held = _held(world)
    _put(world, replace(on_disk(world), generation=held.generation - 1).marked_dead(5, 1))
    outcome = host.run(delta_lease.renew(_area(host), host.clock, held))
    assert isinstance(outcome, delta_lease.NotOurs)


def test_flags_that_others_change_under_us_end_the_term_even_after_a_failed_write() -> None:
    """Or the next renewal would write over what somebody has just decided for the whole lockspace."""
    world = _world()
    host, held = _held(world)
    changed = replace(on_disk(world), flags=DEFAULT.align_flag | FLAG_NO_TIMEOUT)
    _put(world, changed)
    outcome = host.run(delta_lease.renew(_area(host), host.clock, replace(held, certain=False)))
    assert isinstance(outcome, delta_lease.Diverged)
    assert on_disk(world) == changed


def test_term_that_was_marked_is_not_resumed_by_the_next_daemon() -> None:
    world = _world()
    host, held = _held(world)
    marked = on_disk(world).marked_dead(5, 1)
    _put(world, marked)
    outcome = host.run(delta_lease.resume(_area(host), host.clock, held.claim, held.generation))
    assert isinstance(outcome, delta_lease.NotResumed)
    assert "has marked generation 1 of this host as dead" in outcome.reason
    assert not outcome.given_back
    assert on_disk(world) == marked


@pytest.mark.parametrize("name", ["", "gamma"], ids=["own name", "another name"])
@pytest.mark.parametrize("no_timeout", [0, FLAG_NO_TIMEOUT], ids=["timed", "no time-out"])
def test_marked_id_is_claimed_after_the_large_delay_and_the_claim_takes_the_mark_away(
    no_timeout: int, name: str
) -> None:
    world = _world(no_timeout)
    _, held = _held(world, "beta")
    _put(world, on_disk(world).marked_dead(5, 1))
    begun = world.now
    again = _claimed(world.host(), name or "beta")
    assert isinstance(again, delta_lease.Held), again
    assert world.now - begun > TIMING.dead_s
    record = on_disk(world)
    assert (record.generation, record.is_marked_dead) == (held.generation + 1, False)
    assert (record.marked_by, record.is_no_timeout) == ((5, 1), bool(no_timeout))


# --- marking ---


def _marking(s: Scene, generation: int = 1, timestamp: int = 500) -> Marked | NotMarked | IoFailed:
    member = replace(s.member(), generation=Generation(70001), host_id=HostId(258))
    marking = mark_dead(member, OWNER, Generation(generation), HostTimestamp(timestamp))
    return s.host.run(marking)


def _sector(s: Scene) -> bytes:
    at = DEFAULT.delta_offset_bytes(OWNER)
    return bytes(s.world.content[at : at + 512])


def test_marking_keeps_all_else_of_the_record_its_bitmap_too() -> None:
    s = Scene()
    s.shows(**NEWER_FLAGS, event=delta.Event(9, 5, 7))
    at = DEFAULT.delta_offset_bytes(OWNER)
    s.world.content[at : at + 512] = s.record.sector([3, 1999])
    outcome = _marking(s)
    assert isinstance(outcome, Marked)
    found = DeltaLease.decode(_sector(s))
    assert found == outcome.record == s.record.marked_dead(258, 70001)
    assert decode_bitmap(_sector(s)) == frozenset({3, 1999})
    before = _sector(s)
    assert isinstance(_marking(s), Marked), "it stands already"
    assert _sector(s) == before


@pytest.mark.parametrize(
    ("generation", "timestamp", "changes", "reason"),
    [
        (2, 500, {}, "generation 1 by now, not 2"),
        (9, 500, {}, "generation 1 by now, not 9"),
        (1, 500, {"generation": 2}, "generation 2 by now, not 1"),
        (1, 500, {"timestamp": 502}, "has renewed its record"),
        (1, 500, {"timestamp": 0}, "given its host id back"),
        (1, 500, {"version": delta.VERSION}, "of version 3.4, which has no such mark"),
        (1, 500, {"owner_id": 7}, "can't be read"),
    ],
)
def test_nothing_is_marked_that_looks_have_not_shown_so(
    generation: int, timestamp: int, changes: dict[str, int], reason: str
) -> None:
    s = Scene()
    s.shows(**{**NEWER_FLAGS, **changes})
    before = bytes(s.world.content)
    outcome = _marking(s, generation, timestamp)
    assert isinstance(outcome, NotMarked)
    assert reason in outcome.reason
    assert bytes(s.world.content) == before


def test_host_that_has_lost_the_lockspace_marks_nobody() -> None:
    s = Scene()
    s.shows(**NEWER_FLAGS)
    before = bytes(s.world.content)
    marking = mark_dead(s.member(may_write=lambda: False), OWNER, Generation(1), HostTimestamp(500))
    assert isinstance(s.host.run(marking), NotMarked)
    assert bytes(s.world.content) == before


def test_mark_that_does_not_stand_afterwards_is_reported_as_none() -> None:
    """The host lives, and its renewal was just being written."""
    s = Scene()
    s.shows(**NEWER_FLAGS)

    def renewal_lands(host: Host, offset: int, content: bytes) -> None:
        s.world.at(s.world.now, lambda: s.shows(timestamp=502))

    s.world.on_write = renewal_lands
    outcome = _marking(s)
    assert isinstance(outcome, NotMarked)
    assert "is not off" in outcome.reason


def test_lockspace_of_version_3_has_no_marks() -> None:
    s = Scene()
    area = s.member().lockspace
    assert not can_be_marked(area)
    assert can_be_marked(replace(area, version=delta.VERSION_4))
    assert OUR_TIMING.dead_s > 0

"""NO_TIMEOUT (sanlock 4 and later): no time proves the end of a host; a free record and a person's word do."""

import math
from dataclasses import replace

import pytest
from tests.unit.protocol.simulated import World
from tests.unit.protocol.test_delta_lease import ID, TIMING, claim_of, on_disk
from tests.unit.protocol.test_host_status import ALIVE, OTHER, look, state, table
from tests.unit.protocol.test_owner_bounds import OUR_TIMING, OWNER, Scene

from holdfast.ondisk import areas, delta
from holdfast.ondisk.delta import FLAG_NO_TIMEOUT, DeltaLease
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.host_block import HostBlock, ModeBlock
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol import delta_lease
from holdfast.protocol.host_status import HostState, HostView, SeenTerm, proven_gone, succeeded_left_s
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.paxos_lease import SharedBy, acquire_exclusive
from holdfast.protocol.takeover import (
    NEVER_BY_TIME,
    Busy,
    MayTakeOver,
    NeverByTime,
    attested_off,
    missed_left_s,
)
from holdfast.protocol.types import Generation, HostTimestamp, Instant

FLAGS = DEFAULT.align_flag | FLAG_NO_TIMEOUT
FOR_EVER_S = 10_000.0
BEYOND = replace(ALIVE, version=delta.VERSION_5, flags=FLAGS)
NO_TIMEOUT_SHOWN = {"version": delta.VERSION_5, "flags": FLAGS}


@pytest.mark.parametrize(
    ("version", "flags", "never"),
    [
        (delta.VERSION, FLAGS, False),  # sanlock ignores flags of a 3.4 record
        (delta.VERSION_4, FLAGS, True),
        (delta.VERSION_5, FLAGS, True),
        (delta.VERSION_5, DEFAULT.align_flag, False),
    ],
)
def test_flag_has_its_meaning_from_version_4_on(version: int, flags: int, never: bool) -> None:
    record = DeltaLease.decode(replace(ALIVE, version=version, flags=flags).encode())
    assert isinstance(record, DeltaLease)
    assert record.is_no_timeout is never
    assert record.flag_names == (("NO_TIMEOUT",) if never else ())


# --- the table of hosts ---


def test_host_that_is_silent_for_ever_fails_and_never_is_dead() -> None:
    hosts = table()
    look(hosts, 10, BEYOND)
    look(hosts, 12, replace(BEYOND, timestamp=502))
    look(hosts, FOR_EVER_S, replace(BEYOND, timestamp=502))
    assert state(hosts, FOR_EVER_S) is HostState.FAIL
    view = hosts.view(OTHER, Instant(FOR_EVER_S))
    assert (view.no_timeout, view.dead_in_s) == (True, None)
    assert "NO_TIMEOUT" in view.note
    look(hosts, FOR_EVER_S + 2, replace(BEYOND, timestamp=0))
    assert state(hosts, FOR_EVER_S + 2) is HostState.FREE


@pytest.mark.parametrize("timestamp", [500, 502], ids=["unchanged", "renewed"])
def test_flag_that_vanishes_from_a_record_still_counts_for_that_term(timestamp: int) -> None:
    """Somebody rewrote the flags of all records under hosts that hold leases."""
    hosts = table()
    look(hosts, 10, BEYOND)
    without = replace(BEYOND, flags=DEFAULT.align_flag, timestamp=timestamp)
    look(hosts, 12, without)
    look(hosts, FOR_EVER_S, without)
    assert state(hosts, FOR_EVER_S) is HostState.FAIL
    assert not proven_gone(Generation(3), without, hosts.view(OTHER, Instant(FOR_EVER_S)))


def test_flag_that_comes_later_counts_at_once() -> None:
    hosts = table()
    look(hosts, 10, ALIVE)
    look(hosts, 12, BEYOND)
    look(hosts, FOR_EVER_S, BEYOND)
    assert state(hosts, FOR_EVER_S) is HostState.FAIL


def test_newer_term_proves_nothing_however_long_it_is_seen_unless_the_older_one_was_seen_free() -> None:
    hosts, newer = table(), replace(BEYOND, generation=4, timestamp=900)
    look(hosts, 10, BEYOND)
    look(hosts, 12, newer)
    view = hosts.view(OTHER, Instant(FOR_EVER_S))
    assert not proven_gone(Generation(3), newer, view)
    assert succeeded_left_s(Generation(3), newer, view, Instant(FOR_EVER_S), TIMING) == math.inf
    hosts = table()
    look(hosts, 10, replace(BEYOND, timestamp=0))
    look(hosts, 12, newer)
    assert proven_gone(Generation(3), newer, hosts.view(OTHER, Instant(13)))


def test_only_the_older_terms_flag_makes_a_succeeded_term_last() -> None:
    plain = replace(ALIVE, generation=4)
    view = HostView(
        host_id=OTHER,
        state=HostState.LIVE,
        generation=Generation(4),
        terms=(
            SeenTerm(Generation(3), Instant(1), 1, no_timeout=True),
            SeenTerm(Generation(4), Instant(2), 1),
        ),
    )
    assert succeeded_left_s(Generation(3), plain, view, Instant(FOR_EVER_S), TIMING) == math.inf
    view = replace(view, terms=(replace(view.terms[0], no_timeout=False), view.terms[1]))
    assert succeeded_left_s(Generation(3), plain, view, Instant(FOR_EVER_S), TIMING) < 0


# --- the owner test ---


def test_owner_that_was_silent_for_ever_keeps_its_lease_and_nobody_waits_for_it() -> None:
    s = Scene()
    s.shows(**NO_TIMEOUT_SHOWN)
    for seconds in (0.0, OUR_TIMING.dead_s + 1.0, FOR_EVER_S):
        s.world.now += seconds
        s.seen_unchanged_for(seconds)
        begun = s.world.now
        for wait in (False, True):
            verdict = s.verdict(wait=wait)
            assert isinstance(verdict, NeverByTime), verdict
            assert NEVER_BY_TIME in str(verdict)
        assert s.world.now - begun < 1
    s.shows(timestamp=0)
    assert isinstance(s.verdict(), MayTakeOver)


def test_owner_whose_term_showed_the_flag_before_keeps_its_lease() -> None:
    s = Scene()
    s.world.now += FOR_EVER_S
    s.seen_unchanged_for(FOR_EVER_S)
    s.view = replace(s.view, no_timeout=True)
    assert isinstance(s.verdict(wait=True), NeverByTime)


def test_owner_that_lives_is_reported_alive_as_anywhere_else() -> None:
    s = Scene()
    s.shows(**NO_TIMEOUT_SHOWN)
    s.seen_unchanged_for(1.0)
    s.view = replace(s.view, state=HostState.LIVE)
    for wait in (False, True):
        assert isinstance(s.verdict(wait=wait), Busy)


@pytest.mark.parametrize("generation", [0, 2], ids=["older", "newer"])
def test_term_that_does_not_stand_in_the_lockspace_is_never_over_by_time(generation: int) -> None:
    s = Scene()
    s.shows(**NO_TIMEOUT_SHOWN, generation=generation)
    s.world.now += FOR_EVER_S
    s.seen_unchanged_for(FOR_EVER_S)
    present = Generation(generation)
    s.view = replace(
        s.view,
        generation=present,
        generation_since=Instant(0),
        terms=(SeenTerm(present, Instant(0), 1, no_timeout=True),),
    )
    verdict = s.verdict(wait=True)
    assert isinstance(verdict, NeverByTime)
    assert f"generation {generation}" in str(verdict)
    if generation == 0:
        left_s = missed_left_s(s.member(), OWNER, Generation(1), s.record, Instant(FOR_EVER_S))
        assert left_s == math.inf


def test_persons_word_stands_for_the_host_that_is_off_and_for_its_older_terms() -> None:
    s = Scene()
    s.shows(**NO_TIMEOUT_SHOWN, generation=2)
    attested = frozenset({(OWNER, Generation(1))})
    view = HostView(
        host_id=OWNER,
        state=HostState.FAIL,
        generation=Generation(2),
        timestamp=HostTimestamp(500),
        io_timeout_s=1,
        unchanged_s=3.5,
    )
    assert attested_off(attested, OWNER, Generation(1), s.record, view, OUR_TIMING)
    renewing = replace(view, unchanged_s=2.0)
    assert not attested_off(attested, OWNER, Generation(1), s.record, renewing, OUR_TIMING)
    timed = replace(s.record, flags=DEFAULT.align_flag)
    assert not attested_off(attested, OWNER, Generation(1), timed, view, OUR_TIMING)
    older = replace(s.record, generation=0)
    assert not attested_off(
        attested, OWNER, Generation(1), older, replace(view, generation=Generation(0)), OUR_TIMING
    )


def test_sharer_that_was_silent_for_ever_keeps_its_share() -> None:
    s = Scene()
    s.shows(**NO_TIMEOUT_SHOWN)
    free = replace(s.leader, timestamp=0)
    hold = HostBlock(mode=ModeBlock.shared(Generation(1)))
    s.world.content[MIB : MIB + 512] = free.sector()
    at = MIB + DEFAULT.host_block_offset_bytes(OWNER)
    s.world.content[at : at + 512] = hold.sector(512)
    s.world.now += FOR_EVER_S
    s.seen_unchanged_for(FOR_EVER_S)
    member = s.member()
    outcome = s.host.run(acquire_exclusive(s.area, member, s.host.clock, s.host.rng, wait=True))
    assert outcome == SharedBy({OWNER: Generation(1)})
    s.shows(timestamp=0)
    outcome = s.host.run(acquire_exclusive(s.area, member, s.host.clock, s.host.rng, wait=True))
    assert not isinstance(outcome, SharedBy)


# --- host ids ---


def _world(**record: object) -> World:
    world = World(1, MIB)
    area, first = areas.lockspace_area(DEFAULT, "LS1", 1, version=delta.VERSION_5, flags=FLAG_NO_TIMEOUT)
    world.content[:MIB] = first + area[len(first) :]
    fresh = areas.fresh_delta_lease(DEFAULT, "LS1", 1, version=delta.VERSION_5, flags=FLAG_NO_TIMEOUT)
    found = replace(fresh, owner_id=ID, host_name=PaddedName.of("beta"), **record)  # type: ignore[arg-type]
    at = DEFAULT.delta_offset_bytes(ID)
    world.content[at : at + 512] = found.sector()
    return world


def _claim(world: World, name: str) -> delta_lease.AcquireOutcome:
    host = world.host()
    area = LockspaceArea(host.disk, 0, DEFAULT, "LS1")
    return host.run(delta_lease.acquire(area, host.clock, replace(claim_of(host), host_name=name)))


def test_host_id_of_a_silent_host_is_never_claimed_by_another_name() -> None:
    world = _world(generation=4, timestamp=500)
    before = bytes(world.content)
    begun = world.now
    assert isinstance(_claim(world, "gamma"), delta_lease.HostIdBusy)
    assert world.now - begun < TIMING.dead_s / 2
    assert bytes(world.content) == before


@pytest.mark.parametrize(("name", "timestamp"), [("beta", 500), ("gamma", 0)], ids=["own name", "given back"])
def test_host_id_of_its_own_name_or_given_back_is_claimed_and_keeps_the_flag(
    name: str, timestamp: int
) -> None:
    world = _world(generation=4, timestamp=timestamp)
    assert isinstance(_claim(world, name), delta_lease.Held)
    assert (on_disk(world).generation, on_disk(world).is_no_timeout) == (5, True)

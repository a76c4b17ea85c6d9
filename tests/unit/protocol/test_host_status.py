"""Who is alive: judged by changes that were seen, never by what a foreign clock says."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import pytest

from holdfast.ondisk.areas import fresh_delta_lease
from holdfast.ondisk.delta import DeltaLease, Event
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.host_status import (
    TERMS_KEPT_MAX,
    HostState,
    HostTable,
    Notified,
    Sampled,
    StateChanged,
    Ticked,
    proven_gone,
    succeeded_left_s,
)
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, HostTimestamp, Instant

TIMING = Timing(1, 60)  # fail 8, dead 68
OWN, OTHER = HostId(1), HostId(2)
FRESH = fresh_delta_lease(DEFAULT, "LS1", 1)
ALIVE = replace(
    FRESH, owner_id=2, generation=3, host_name=PaddedName.of("beta"), timestamp=500, io_timeout_s=1
)


def table() -> HostTable:
    return HostTable("LS1", OWN, TIMING)


def look(
    hosts: HostTable, at: float, record: DeltaLease | bytes, begun: float | None = None
) -> tuple[object, ...]:
    sector = record if isinstance(record, bytes) else record.sector()
    return hosts.step(Instant(at), Sampled(Instant(at if begun is None else begun), {OTHER: sector}))


def state(hosts: HostTable, at: float) -> HostState:
    return hosts.view(OTHER, Instant(at)).state


def test_a_host_that_was_never_looked_at_is_unknown() -> None:
    assert state(table(), 0) is HostState.UNKNOWN


def test_a_free_id_is_free_at_first_sight() -> None:
    hosts = table()
    look(hosts, 10, FRESH)
    assert state(hosts, 10) is HostState.FREE


def test_a_host_is_live_only_after_its_record_was_seen_to_change() -> None:
    hosts = table()
    look(hosts, 10, ALIVE)
    assert state(hosts, 10) is HostState.UNKNOWN
    look(hosts, 12, replace(ALIVE, timestamp=502))
    assert state(hosts, 12) is HostState.LIVE


@contextmanager
def decoded() -> Iterator[list[int]]:
    """How many records are decoded in the body."""
    decode, count = DeltaLease.decode.__func__.__code__, [0]  # type: ignore[attr-defined]

    def called(frame: FrameType, event: str, _argument: object) -> None:
        count[0] += event == "call" and frame.f_code is decode

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        yield count
    finally:
        sys.setprofile(before)


def test_a_record_is_decoded_only_when_it_has_changed() -> None:
    """Two thousand records that stand still cost no more than a comparison each (bench/scale.py)."""
    hosts = table()
    with decoded() as count:
        look(hosts, 10, ALIVE)
        for at in range(12, 200, 2):
            look(hosts, at, ALIVE)
        assert count == [1]
        look(hosts, 200, replace(ALIVE, timestamp=501))
        assert count == [2]


@pytest.mark.parametrize(
    "record", [ALIVE, FRESH, b"no record".ljust(512, b"\0")], ids=["host", "free", "bad"]
)
def test_an_equal_sector_proves_as_much_as_its_record(record: DeltaLease | bytes) -> None:
    """The time that it is unchanged goes on; a look that was reported late does not take it back."""
    hosts = table()
    look(hosts, 10, record)
    look(hosts, 90, record)
    look(hosts, 91, record, begun=50)
    view = hosts.view(OTHER, Instant(91))
    expected = {"host": HostState.DEAD, "free": HostState.FREE, "bad": HostState.UNKNOWN}
    kind = "bad" if isinstance(record, bytes) else "free" if record.is_free else "host"
    assert view.state is expected[kind]
    assert view.unchanged_s == (0 if kind == "bad" else 80)


def test_fail_and_dead_come_strictly_after_their_bounds() -> None:
    hosts = table()
    look(hosts, 1415, replace(ALIVE, timestamp=400))
    look(hosts, 1417, ALIVE)
    for at in range(1418, 1486):
        look(hosts, at, ALIVE)
        assert state(hosts, at) is (HostState.LIVE if at <= 1425 else HostState.FAIL)
    look(hosts, 1486, ALIVE)
    assert state(hosts, 1486) is HostState.DEAD


def test_a_timestamp_that_goes_backwards_is_as_good_as_any_other_change() -> None:
    hosts = table()
    look(hosts, 10, ALIVE)
    look(hosts, 12, replace(ALIVE, timestamp=1))
    assert state(hosts, 12) is HostState.LIVE


def test_a_paused_observer_does_not_take_its_own_pause_for_the_death_of_others() -> None:
    hosts = table()
    look(hosts, 10, ALIVE)
    look(hosts, 12, replace(ALIVE, timestamp=502))
    hosts.step(Instant(5000), Ticked())
    assert state(hosts, 5000) is HostState.FAIL
    look(hosts, 5001, replace(ALIVE, timestamp=5400))
    assert state(hosts, 5001) is HostState.LIVE


def test_a_look_that_began_before_the_bound_proves_nothing_beyond_it() -> None:
    hosts = table()
    look(hosts, 10, replace(ALIVE, timestamp=1))
    look(hosts, 12, ALIVE)
    # This read was issued at 20 and came back at 200; what it shows is as old as 20.
    look(hosts, 200, ALIVE, begun=20)
    assert state(hosts, 200) is HostState.FAIL
    look(hosts, 201, ALIVE)
    assert state(hosts, 201) is HostState.DEAD


def test_an_older_look_that_is_reported_late_changes_nothing() -> None:
    hosts = table()
    look(hosts, 10, ALIVE)
    look(hosts, 20, replace(ALIVE, timestamp=510))
    look(hosts, 21, ALIVE, begun=11)
    assert hosts.view(OTHER, Instant(21)).timestamp == HostTimestamp(510)


@pytest.mark.parametrize(
    "record",
    [bytes(512), b"\xff" * 512, replace(ALIVE, space_name=PaddedName.of("LS2")), replace(ALIVE, owner_id=7)],
    ids=["zeros", "ones", "other lockspace", "other host"],
)
def test_an_unreadable_record_is_never_proof_of_death(record: DeltaLease | bytes) -> None:
    hosts = table()
    for at in range(10, 300, 10):
        look(hosts, at, record)
        assert state(hosts, at) is HostState.UNKNOWN
    assert hosts.view(OTHER, Instant(300)).fault


def test_the_greatest_io_timeout_of_a_term_counts() -> None:
    """The field is under no checksum: a torn small value must not hasten a takeover."""
    hosts = table()
    look(hosts, 0, replace(ALIVE, timestamp=1, io_timeout_s=20))
    look(hosts, 1, replace(ALIVE, io_timeout_s=1))
    for at in range(2, 221):
        look(hosts, at, replace(ALIVE, io_timeout_s=1))
        assert state(hosts, at) is not HostState.DEAD
    look(hosts, 222, replace(ALIVE, io_timeout_s=1))
    assert state(hosts, 222) is HostState.DEAD


def test_a_new_term_brings_its_own_io_timeout() -> None:
    hosts = table()
    look(hosts, 0, replace(ALIVE, io_timeout_s=20))
    look(hosts, 1, replace(ALIVE, generation=4, io_timeout_s=1))
    look(hosts, 70, replace(ALIVE, generation=4, io_timeout_s=1))
    assert state(hosts, 70) is HostState.DEAD


def test_changes_of_state_and_notifications_are_told() -> None:
    hosts = table()
    assert look(hosts, 10, FRESH) == (StateChanged(OTHER, HostState.UNKNOWN, HostState.FREE),)
    event = Event(generation=1, number=2, argument=3)
    sector = replace(ALIVE, event=event).sector({OWN})
    changes = look(hosts, 12, sector)
    assert changes == (
        Notified(OTHER, Generation(3), event),
        StateChanged(OTHER, HostState.FREE, HostState.LIVE),
    )
    assert look(hosts, 14, sector) == ()
    assert hosts.step(Instant(21), Ticked()) == (StateChanged(OTHER, HostState.LIVE, HostState.FAIL),)


def test_what_proves_that_a_term_is_over() -> None:
    hosts = table()
    look(hosts, 0, replace(ALIVE, timestamp=1))
    look(hosts, 1, ALIVE)
    living = hosts.view(OTHER, Instant(1))
    look(hosts, 70, ALIVE)
    dead = hosts.view(OTHER, Instant(70))
    assert dead.state is HostState.DEAD
    term = Generation(3)
    assert not proven_gone(term, ALIVE, living)
    assert proven_gone(term, ALIVE, dead)
    assert not proven_gone(term, replace(ALIVE, timestamp=501), dead)
    assert not proven_gone(Generation(4), ALIVE, dead)
    assert proven_gone(term, replace(ALIVE, timestamp=0), living)
    assert not proven_gone(Generation(4), replace(ALIVE, timestamp=0), living)
    # Another term's record, free or not, is no proof by itself.
    assert not proven_gone(term, replace(ALIVE, generation=4), living)
    assert not proven_gone(term, replace(ALIVE, generation=4, timestamp=0), living)


REJOINED = replace(ALIVE, generation=4, timestamp=600)


def left_s(hosts: HostTable, at: float, fresh: DeltaLease = REJOINED, term: int = 3) -> float:
    return succeeded_left_s(Generation(term), fresh, hosts.view(OTHER, Instant(at)), Instant(at), TIMING)


def test_newer_term_is_proof_of_the_end_of_one_that_was_seen_free_or_dead() -> None:
    for last in (replace(ALIVE, timestamp=0), ALIVE):
        hosts = table()
        look(hosts, 0, ALIVE)
        look(hosts, 70, last)
        look(hosts, 72, REJOINED)
        assert proven_gone(Generation(3), REJOINED, hosts.view(OTHER, Instant(72)))
        # How long ago that was makes no difference.
        look(hosts, 74, replace(REJOINED, generation=5))
        assert proven_gone(Generation(3), REJOINED, hosts.view(OTHER, Instant(74)))
        assert not proven_gone(Generation(4), replace(REJOINED, generation=5), hosts.view(OTHER, Instant(74)))


def test_term_that_a_newer_one_succeeded_at_once_is_over_when_that_was_seen_for_the_dead_bound() -> None:
    """Also if the older one was not seen to renew for a while: it may have renewed after the last look that showed it."""
    hosts = table()
    look(hosts, 0, ALIVE)
    look(hosts, 60, ALIVE)
    look(hosts, 62, REJOINED)
    for at in (62, 100, 130):
        look(hosts, at, replace(REJOINED, timestamp=600 + at))
        assert not proven_gone(Generation(3), REJOINED, hosts.view(OTHER, Instant(at)))
        assert left_s(hosts, at) == 62 + 68 - at
    assert left_s(hosts, 130.5) < 0


def test_bound_of_a_succeeded_term_goes_by_the_greatest_io_timeout_of_both() -> None:
    for older_s, newer_s in ((4, 1), (1, 4)):
        hosts = table()
        look(hosts, 0, replace(ALIVE, io_timeout_s=older_s))
        newer = replace(REJOINED, io_timeout_s=newer_s)
        look(hosts, 2, newer)
        assert left_s(hosts, 2, newer) == 8 * 4 + 60


def test_term_that_was_never_seen_counts_from_the_first_sight_of_a_newer_one() -> None:
    hosts = table()
    assert left_s(hosts, 5) == 68, "only the read that asks has shown it"
    look(hosts, 10, REJOINED)
    look(hosts, 40, replace(REJOINED, generation=5))
    assert left_s(hosts, 50) == 10 + 68 - 50
    assert left_s(hosts, 50, term=4) == 40 + 68 - 50


def test_generation_that_goes_back_takes_back_what_the_newer_one_proved() -> None:
    hosts = table()
    look(hosts, 0, ALIVE)
    look(hosts, 10, REJOINED)
    look(hosts, 20, replace(ALIVE, timestamp=520))  # a renewal that had hung lands, or its host goes on
    assert left_s(hosts, 25) == 68
    look(hosts, 30, REJOINED)
    assert left_s(hosts, 40) == 30 + 68 - 40


def test_term_that_two_hosts_have_shown_is_not_over_when_one_of_them_gives_it_back() -> None:
    hosts = table()
    look(hosts, 0, ALIVE)
    of_gamma = replace(ALIVE, host_name=PaddedName.of("gamma"), timestamp=20)
    look(hosts, 1, of_gamma)
    assert hosts.view(OTHER, Instant(1)).disputed == "beta"
    freed = replace(of_gamma, timestamp=0)
    look(hosts, 2, freed)
    look(hosts, 70, freed)
    assert not proven_gone(Generation(3), freed, hosts.view(OTHER, Instant(70)))
    look(hosts, 71, freed)  # the free record has stood for the dead bound
    assert hosts.view(OTHER, Instant(71)).disputed == ""
    assert proven_gone(Generation(3), freed, hosts.view(OTHER, Instant(71)))


def test_newer_term_does_not_prove_the_end_of_a_disputed_one_by_its_free_record() -> None:
    hosts = table()
    look(hosts, 0, ALIVE)
    freed = replace(ALIVE, host_name=PaddedName.of("gamma"), timestamp=0)
    look(hosts, 1, freed)
    look(hosts, 2, REJOINED)
    assert not proven_gone(Generation(3), REJOINED, hosts.view(OTHER, Instant(2)))
    assert left_s(hosts, 2) == 68


SHORT = Timing(1, 10)  # of a host whose watchdog fires after 10 s
OF_HOLDFAST = replace(ALIVE, host_name=PaddedName.of("beta.0123456789ab"))


@pytest.mark.parametrize(("record", "dead_s"), [(OF_HOLDFAST, 18), (ALIVE, 68)])
def test_watchdog_of_a_host_that_is_not_holdfasts_fires_after_60_s_whatever_ours_does(
    record: DeltaLease, dead_s: int
) -> None:
    hosts = HostTable("LS1", OWN, SHORT)
    look(hosts, 0, replace(record, timestamp=1))
    look(hosts, 1, record)
    look(hosts, 1 + dead_s, record)
    assert hosts.view(OTHER, Instant(1 + dead_s)).state is HostState.FAIL
    look(hosts, 1.1 + dead_s, record)
    assert hosts.view(OTHER, Instant(1.1 + dead_s)).state is HostState.DEAD


@pytest.mark.parametrize(("before", "dead_s"), [(OF_HOLDFAST, 18), (ALIVE, 68)])
def test_older_term_that_any_other_program_had_counts_60_s_too(before: DeltaLease, dead_s: int) -> None:
    hosts = HostTable("LS1", OWN, SHORT)
    look(hosts, 0, before)
    rejoined = replace(OF_HOLDFAST, generation=4, timestamp=600)
    look(hosts, 1, rejoined)
    view = hosts.view(OTHER, Instant(1))
    assert succeeded_left_s(Generation(3), rejoined, view, Instant(1), SHORT) == dead_s


def test_longer_bound_counts_if_two_programs_have_shown_one_term() -> None:
    hosts = HostTable("LS1", OWN, SHORT)
    look(hosts, 0, ALIVE)
    look(hosts, 1, replace(OF_HOLDFAST, timestamp=20))
    look(hosts, 20, replace(OF_HOLDFAST, timestamp=20))
    view = hosts.view(OTHER, Instant(20))
    assert (view.state, view.disputed) == (HostState.FAIL, "beta")
    look(hosts, 70, replace(OF_HOLDFAST, timestamp=20))
    assert hosts.view(OTHER, Instant(70)).state is HostState.DEAD


def test_free_record_of_another_name_than_the_table_has_seen_is_no_proof() -> None:
    """It was written on top of the record of a member just now."""
    hosts = table()
    look(hosts, 0, ALIVE)
    freed = replace(ALIVE, timestamp=0)
    of_gamma = replace(freed, host_name=PaddedName.of("gamma"))
    assert proven_gone(Generation(3), freed, hosts.view(OTHER, Instant(0)))
    assert not proven_gone(Generation(3), of_gamma, hosts.view(OTHER, Instant(0)))


def test_another_name_is_a_change_although_the_timestamp_is_the_same() -> None:
    hosts = table()
    look(hosts, 0, ALIVE)
    look(hosts, 1, replace(ALIVE, host_name=PaddedName.of("gamma")))
    assert hosts.view(OTHER, Instant(1)).disputed == "beta"
    assert hosts.view(OTHER, Instant(1)).changed_at == Instant(1)


def test_terms_of_one_host_are_kept_up_to_a_bound() -> None:
    hosts = table()
    for generation in range(3, 3 + TERMS_KEPT_MAX + 5):
        look(hosts, generation, replace(ALIVE, generation=generation, timestamp=0))
    view = hosts.view(OTHER, Instant(50))
    assert len(view.terms) == TERMS_KEPT_MAX
    newest = replace(ALIVE, generation=2 + TERMS_KEPT_MAX + 5)
    assert proven_gone(Generation(newest.generation - 1), newest, view)
    # How the oldest ones ended is forgotten: they are waited for.
    assert not proven_gone(Generation(3), newest, view)
    assert left_s(hosts, 50, newest) == view.terms[0].since + 68 - 50


def test_a_generation_that_goes_back_keeps_the_greater_io_timeout_and_is_counted_from_when_it_was_seen() -> (
    None
):
    hosts = table()
    look(hosts, 0, replace(ALIVE, generation=4, io_timeout_s=20))
    look(hosts, 10, replace(ALIVE, generation=3, io_timeout_s=1))
    look(hosts, 12, replace(ALIVE, generation=3, io_timeout_s=1, timestamp=501))
    view = hosts.view(OTHER, Instant(13))
    assert (view.generation_since, view.io_timeout_s) == (Instant(10), 20)
    look(hosts, 14, b"\x01" * 512)
    look(hosts, 16, replace(ALIVE, generation=3, io_timeout_s=1, timestamp=502))
    assert hosts.view(OTHER, Instant(17)).generation_since == Instant(16)


def test_a_change_counts_from_the_end_of_the_look_that_showed_it() -> None:
    """The record may have been written at any moment of a look that takes long."""
    hosts = table()
    look(hosts, 10, ALIVE)
    look(hosts, 20, replace(ALIVE, timestamp=502), begun=12)
    assert hosts.view(OTHER, Instant(20)).unchanged_since == Instant(20)
    look(hosts, 82, replace(ALIVE, timestamp=502), begun=12 + TIMING.dead_s + 1)
    assert state(hosts, 82) is HostState.FAIL, (
        "not unchanged for the bound, counted from when it was surely so"
    )
    look(hosts, 90, replace(ALIVE, timestamp=502), begun=20 + TIMING.dead_s + 1)
    assert state(hosts, 90) is HostState.DEAD

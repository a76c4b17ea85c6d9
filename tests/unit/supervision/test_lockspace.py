"""A host in a lockspace: it joins, renews, sees the others, leaves or loses, and the watchdog follows."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from tests.unit.protocol.simulated import Faults
from tests.unit.supervision.rig import TIMING, Supervised, put_record, record_of, world_with_lockspaces

from holdfast.ondisk import delta
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.host_status import HostState
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId, Instant
from holdfast.supervision.join_errors import Hindrance, NotJoined
from holdfast.supervision.peer_monitor import NEWCOMERS, WIDE_LOOK_EVERY, PeerMonitor
from holdfast.supervision.renewal import Left, Lost, Standing

FAST_BEAT_S = 1.2
"""A beat and what the simulated clock adds to a sleep."""


def test_a_free_id_is_joined_after_it_has_settled_and_then_renewed_in_time() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(3)
    at, membership = member.told.joined[0]
    assert TIMING.settle_s <= at <= TIMING.claim_free_s[1]
    assert (membership.host_id, membership.generation) == (3, 1)
    assert record_of(world, 3).host_name.text == "alpha"
    assert member.lockspace.standing is Standing.JOINED
    world.run(until=1000)
    own = [time for time, _, offset, _ in world.writes if offset == DEFAULT.delta_offset_bytes(3)]
    assert max(b - a for a, b in pairwise(own[2:])) <= TIMING.renewal_s + 1
    assert membership.may_write()
    assert not member.told.expiring
    assert not member.told.lost


def test_nothing_is_fed_before_the_id_is_ours_and_every_beat_feeds_it_afterwards() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(1)
    assert alpha.watchdog.feedings[0][0] >= TIMING.settle_s
    assert alpha.watchdog.feedings[0][0] <= member.told.joined[0][0]
    world.run(until=300)
    times = [at for at, _ in alpha.watchdog.feedings]
    assert max(b - a for a, b in pairwise(times)) <= FAST_BEAT_S
    assert all(at < until <= at + TIMING.fail_s for at, until in alpha.watchdog.feedings)


def test_an_id_that_another_host_holds_is_refused_with_that_hosts_name() -> None:
    world = world_with_lockspaces()
    alpha, beta = Supervised(world, "alpha"), Supervised(world, "beta")
    alpha.joined(1)
    refused = beta.join(1)
    world.run(refused.task)
    answer = refused.task.result
    assert isinstance(answer, NotJoined)
    assert "host id 1 of lockspace A is held by host alpha (generation 1)" in answer.reason
    assert "give this host (beta) another host id" in answer.reason
    assert answer.holder is not None
    assert refused.told.waits
    assert not beta.watchdog.feedings
    assert record_of(world, 1).host_name.text == "alpha"


def test_two_hosts_that_claim_one_free_id_at_once_do_not_both_join() -> None:
    for seed in range(20):
        world = world_with_lockspaces(seed)
        members = [Supervised(world, name).join(1) for name in ("alpha", "beta")]
        world.run(until=250)
        assert sum(bool(member.told.joined) for member in members) == 1
        (loser,) = [member for member in members if member.task.done]
        assert isinstance(loser.task.result, NotJoined)


def test_the_same_name_rejoins_its_id_without_waiting_for_its_own_death() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    alpha.joined(1)
    alpha.host.reset()
    begun = world.now
    again = Supervised(world, "again").joined(1, host_name="alpha")
    assert again.told.joined[0][0] - begun <= TIMING.claim_free_s[1]
    assert again.told.joined[0][1].generation == 2


def test_another_name_waits_for_the_dead_bound_of_the_former_holder() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    alpha.joined(1)
    alpha.host.reset()
    begun = world.now
    beta = Supervised(world, "beta").joined(1)
    took = beta.told.joined[0][0] - begun
    assert TIMING.claim_held_s[0] < took <= TIMING.claim_held_s[1]


def test_an_id_beyond_the_lockspace_and_a_lockspace_of_another_name_are_refused_with_both_values() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    beyond, wrong = alpha.join(2001), alpha.join(1, space="B")
    wrong.lockspace.name = "C"
    world.run(beyond.task, wrong.task)
    assert "host id 2001 is not within 1..2000" in str(beyond.task.result)
    assert "'B'" in str(wrong.task.result)
    assert "'C'" in str(wrong.task.result)


def test_bounds_that_break_the_safety_argument_are_refused_before_anything_is_written() -> None:
    world = world_with_lockspaces()
    member = Supervised(world, "alpha").join(1, timing=Timing(10, 0))
    world.run(member.task)
    assert "must be below dead" in str(member.task.result)
    assert not world.writes


def test_a_watchdog_that_does_not_work_refuses_the_join_and_leaves_the_id_free() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    alpha.watchdog.refusal = "no such device"
    member = alpha.join(1)
    world.run(member.task)
    assert member.task.result == NotJoined("watchdog: no such device", cause=Hindrance.WATCHDOG)
    assert not world.writes
    alpha.watchdog.refusal, alpha.watchdog.dumb = "", True
    member = alpha.join(1)
    world.run(member.task)
    assert "the watchdog is not fed" in str(member.task.result)
    assert alpha.watchdog.disarmed_at is not None
    assert not member.told.joined
    assert record_of(world, 1).is_free


def test_leaving_disarms_the_watchdog_and_frees_the_id() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(1)
    member.lockspace.leave()
    world.run(member.task)
    assert member.task.result == Left(released=True)
    assert alpha.watchdog.disarmed_at is not None
    assert record_of(world, 1).is_free
    fed = len(alpha.watchdog.feedings)
    world.run(until=world.now + 300)
    assert len(alpha.watchdog.feedings) == fed
    assert not member.told.lost


# --- losing it ---


def test_the_age_of_a_lease_counts_from_before_its_renewal_was_written() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(1)
    world.run(until=100)
    # One renewal's write takes 50 s and then succeeds; afterwards storage is gone.
    world.faults = Faults(latency_s=0.0)
    slow = 50.0
    member.disk.script = ["read", "write slow"]
    original = member.disk._fate

    def fate(kind: str, timeout_s: float) -> tuple[str, float]:
        what, took = original(kind, timeout_s)
        if what != "slow":
            return what, took
        issued.append(world.now)
        member.disk.cut = True
        return "", slow

    issued: list[float] = []
    member.disk._fate = fate  # type: ignore[method-assign]
    world.run(until=400)
    (written_from,) = issued
    ((lost_at, _),) = member.told.lost
    assert written_from + TIMING.fail_s - 1 <= lost_at <= written_from + TIMING.fail_s + FAST_BEAT_S
    assert alpha.watchdog.last_fed_at < written_from + TIMING.fail_s
    assert alpha.watchdog.fires_at <= written_from + TIMING.dead_s


@pytest.mark.parametrize("how", ["hang", "errors"])
def test_storage_that_is_gone_starves_the_watchdog_before_the_dead_bound(how: str) -> None:
    world = world_with_lockspaces()
    alpha, beta = Supervised(world, "alpha"), Supervised(world, "beta")
    member, other = alpha.joined(1), beta.joined(2)
    world.run(until=200)
    if how == "errors":
        member.disk.cut = True
    else:
        member.disk.script = ["read stall", "write stall"] * 1000
    world.faults.stall_max_s = 1e6
    world.run(until=1000)
    own = [time for time, _, offset, _ in world.writes if offset == DEFAULT.delta_offset_bytes(1)]
    renewed_at = own[-1]
    ((lost_at, reason),) = member.told.lost
    assert "not renewed in time" in reason
    assert len(member.told.expiring) == 1
    assert renewed_at + TIMING.warn_s - 1 <= member.told.expiring[0] <= lost_at
    assert lost_at <= renewed_at + TIMING.fail_s + FAST_BEAT_S
    assert alpha.watchdog.last_fed_at < renewed_at + TIMING.fail_s
    assert alpha.watchdog.fires_at <= renewed_at + TIMING.dead_s
    dead_at = next(c for c in other.told.hosts if (c.host_id, c.after) == (1, HostState.DEAD))
    assert dead_at.before is HostState.FAIL
    assert not member.told.joined[0][1].may_write()
    assert not other.told.lost


def test_a_lost_lease_is_not_renewed_any_more_even_if_a_late_write_succeeds() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(1)
    world.run(until=100)
    last = max(time for time, _, offset, _ in world.writes if offset == 0)
    # Reads fail until shortly before the bound; then a write goes out that completes after it.
    member.disk.cut = True
    world.run(until=last + TIMING.fail_s - 3)
    member.disk.cut = False
    original = member.disk._fate
    member.disk._fate = (  # type: ignore[method-assign]
        lambda kind, timeout_s: ("", 10.0) if kind == "write" else original(kind, timeout_s)
    )
    world.run(until=last + TIMING.fail_s + 20)
    assert len(member.told.lost) == 1
    world.run(member.task)
    assert isinstance(member.task.result, Lost)
    written = len(world.writes)
    world.run(until=world.now + 500)
    assert len(world.writes) == written
    assert alpha.watchdog.fires_at <= last + TIMING.dead_s + 1


def test_a_lease_that_is_given_up_during_a_renewals_read_is_not_written_however_young() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(1)
    world.run(until=100)
    member.disk._fate = lambda kind, timeout_s: ("", 5.0)  # type: ignore[method-assign]
    looks = len(member.disk.reads)
    while len(member.disk.reads) == looks:
        world.run(until=world.now + 1)
    written = len(world.writes)
    member.lockspace.users_gone()
    world.run(member.task)
    assert isinstance(member.task.result, Lost)
    assert len(world.writes) == written


def test_a_record_that_another_host_has_overwritten_ends_the_lease_at_once() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(1)
    world.run(until=100)
    area = bytes(world.content[:512])
    world.content[:512] = area.replace(b"alpha", b"aLpha")
    world.run(until=130)
    assert not member.told.joined[0][1].may_write()
    ((_, reason),) = member.told.lost
    assert "damaged" in reason
    assert member.lockspace.standing is Standing.LOST
    fed = len(alpha.watchdog.feedings)
    world.run(until=400)
    assert len(alpha.watchdog.feedings) == fed


def test_a_host_that_sleeps_past_its_bound_feeds_nothing_when_it_wakes() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(1)
    world.run(until=100)
    alpha.host.pause(200)
    world.run(until=600)
    assert all(at < until for at, until in alpha.watchdog.feedings)
    assert alpha.watchdog.last_fed_at <= 100
    assert len(member.told.lost) == 1
    written = [time for time, _, _, _ in world.writes if time > 100]
    assert not written


def test_a_write_that_may_still_land_starves_the_watchdog_although_the_users_are_gone() -> None:
    world = world_with_lockspaces(faults=Faults(stall_max_s=1))
    alpha = Supervised(world, "alpha")
    sick = alpha.joined(1)
    world.run(until=100)
    world.faults.stall_max_s = 400.0
    sick.disk.script = ["write stall"]
    while not sick.told.lost:
        world.run(until=world.now + 1)
    assert sick.disk.in_flight(0, MIB)
    sick.lockspace.users_gone()
    world.run(until=world.now + 5)
    assert alpha.watchdog.disarmed_at is None
    while sick.disk.in_flight(0, MIB):
        world.run(until=world.now + 1)
    world.run(until=world.now + 2)
    assert alpha.watchdog.disarmed_at is not None


@pytest.mark.parametrize("ends", ["lost", "left"])
def test_a_lease_write_elsewhere_that_may_still_land_starves_the_watchdog_too(ends: str) -> None:
    """Leases in files of their own are on other disks than the lockspace."""
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    under_way = [True]
    member = alpha.joined(1, lease_writes=lambda: lambda: bool(under_way))
    world.run(until=100)
    if ends == "left":
        member.lockspace.leave()
    else:
        member.disk.script = ["read stall"] * 1000
        world.faults.stall_max_s = 1e6
        while not member.told.lost:
            world.run(until=world.now + 1)
        member.lockspace.users_gone()
    world.run(until=world.now + 30)
    assert alpha.watchdog.disarmed_at is None
    under_way.clear()
    world.run(until=world.now + 2)
    assert alpha.watchdog.disarmed_at is not None


def test_lease_writes_that_begin_later_hold_up_nobody() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    asked: list[float] = []

    def lease_writes() -> Callable[[], bool]:
        begun = world.now
        asked.append(begun)
        return lambda: world.now < begun + 1

    member = alpha.joined(1, lease_writes=lease_writes)
    world.run(until=100)
    member.lockspace.leave()
    world.run(until=world.now + 5)
    assert member.task.result == Left(released=True)
    assert alpha.watchdog.disarmed_at is not None
    assert len(asked) == 1


# --- two lockspaces of one host ---


def test_two_lockspaces_do_not_influence_each_other() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    sick, well = alpha.joined(1), alpha.joined(7, space="B")
    world.run(until=100)
    sick.disk.script = ["read stall", "write stall"] * 1000
    world.faults.stall_max_s = 1e6
    world.run(until=1000)
    assert len(sick.told.lost) == 1
    assert not well.told.lost
    assert not well.told.expiring
    assert well.told.joined[0][1].may_write()
    assert well.lockspace.standing is Standing.JOINED
    own = [time for time, _, offset, _ in world.writes if offset == MIB + DEFAULT.delta_offset_bytes(7)]
    assert max(b - a for a, b in pairwise(own[2:])) <= TIMING.renewal_s + 1


def test_a_lost_lockspace_starves_the_watchdog_until_its_users_are_gone() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    sick, well = alpha.joined(1), alpha.joined(1, space="B")
    sick.disk.cut = True
    while not sick.told.lost:
        world.run(until=world.now + 1)
    starved_since = alpha.watchdog.last_fed_at
    world.run(until=world.now + 10)
    assert alpha.watchdog.last_fed_at == starved_since
    assert alpha.lease_monitor.starving
    sick.lockspace.users_gone()
    world.run(until=world.now + 5)
    assert alpha.watchdog.last_fed_at > starved_since + 10
    assert alpha.watchdog.fires_at > world.now
    assert well.told.joined[0][1].may_write()


# --- the table of hosts ---


def test_hosts_see_each_other_live_fail_die_and_leave() -> None:
    world = world_with_lockspaces()
    alpha, beta = Supervised(world, "alpha"), Supervised(world, "beta")
    one, two = alpha.joined(1), beta.joined(40)
    world.run(until=world.now + WIDE_LOOK_EVERY * TIMING.renewal_s + 60)
    views = {view.host_id: view for view in one.lockspace.hosts()}
    assert set(views) == {1, 40}
    assert (views[HostId(40)].state, views[HostId(40)].name) == (HostState.LIVE, "beta")
    beta.host.reset()
    begun = world.now
    world.run(until=begun + TIMING.fail_s + 2 * TIMING.renewal_s)
    view = next(v for v in one.lockspace.hosts() if v.host_id == 40)
    assert view.state is HostState.FAIL
    assert view.dead_in_s is not None
    assert 0 < view.dead_in_s <= TIMING.fire_timeout_s
    world.run(until=begun + TIMING.dead_s + 3 * TIMING.renewal_s)
    assert next(v for v in one.lockspace.hosts() if v.host_id == 40).state is HostState.DEAD
    assert not two.task.done


def test_a_look_reads_no_more_than_the_hosts_that_are_there() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    member = alpha.joined(5)
    world.run(until=1000)
    lengths = [length for offset, length in member.disk.reads if offset == 0]
    wide = [length for length in lengths if length > (5 + NEWCOMERS) * 512]
    assert (5 + NEWCOMERS) * 512 in lengths
    assert len(wide) <= 3 + len(lengths) // WIDE_LOOK_EVERY
    membership = member.told.joined[0][1]
    assert membership.view(HostId(9)).state is HostState.UNKNOWN
    world.run(until=world.now + 60)
    assert member.disk.reads[-1] == (0, (9 + NEWCOMERS) * 512)


def test_a_newcomer_with_the_next_id_is_seen_and_heard_at_the_next_look() -> None:
    world = world_with_lockspaces()
    alpha, beta = Supervised(world, "alpha"), Supervised(world, "beta")
    one = alpha.joined(1)
    world.run(until=world.now + 60)
    two = beta.joined(2)
    two.lockspace.notify(HostId(1))
    world.run(until=world.now + 3 * TIMING.renewal_s)
    assert [found.sender_id for found in one.told.notified]


def test_a_notified_host_is_told_who_notified_it() -> None:
    world = world_with_lockspaces()
    alpha, beta = Supervised(world, "alpha"), Supervised(world, "beta")
    one, two = alpha.joined(1), beta.joined(2)
    world.run(until=world.now + 60)
    one.lockspace.notify(HostId(2))
    world.run(until=world.now + 60)
    assert {n.sender_id for n in two.told.notified} == {1}
    two.told.notified.clear()
    world.run(until=world.now + 200)
    assert len(two.told.notified) == 0


@pytest.mark.parametrize("seed", range(5))
def test_host_that_renews_rarely_is_notified_by_one_that_renews_often(seed: int) -> None:
    """A bit that stands for three renewals of the fast one may lie between two looks of the slow one (seed 100001598)."""
    world = world_with_lockspaces(seed)
    fast, slow = Supervised(world, "alpha"), Supervised(world, "beta")
    one, two = fast.joined(1, timing=Timing(1, 60)), slow.joined(2, timing=Timing(10, 60))
    world.run(until=world.now + 60 + seed)
    one.lockspace.notify(HostId(2))
    world.run(until=world.now + 40)
    assert {n.sender_id for n in two.told.notified} == {1}


@pytest.mark.parametrize("seed", range(10))
def test_on_unreliable_storage_no_feeding_ever_comes_after_the_bound(seed: int) -> None:
    faults = Faults(latency_s=3, error_rate=0.1, stall_rate=0.1, stall_max_s=100)
    world = world_with_lockspaces(seed, faults)
    alpha = Supervised(world, "alpha")
    members = {0: alpha.join(1), MIB + 512: alpha.join(2, space="B")}
    world.run(until=3000)
    for at, until in alpha.watchdog.feedings:
        assert at < until <= at + TIMING.fail_s
    for offset, member in members.items():
        landed = [time for time, _, where, _ in world.writes if where == offset]
        for joined_at, _ in member.told.joined:
            for at, until in alpha.watchdog.feedings:
                # What is fed upon is on the disk by then, and was begun before it got there.
                if at >= joined_at:
                    assert until <= max(time for time in landed if time <= at) + TIMING.fail_s


def test_host_that_is_marked_as_dead_ends_its_term_and_leaves_the_mark_until_it_joins_again() -> None:
    """DEAD_EXT, as sanlock 4 and later write it into another host's record: others take its leases at once."""
    world = world_with_lockspaces(version=delta.VERSION_5)
    alpha = Supervised(world, "alpha")
    member = alpha.joined(3)
    world.run(until=world.now + 5)
    marked = record_of(world, 3).marked_dead(2, 1)
    put_record(world, 3, marked)
    world.run(until=world.now + TIMING.renewal_s + 1)
    ((_, reason),) = member.told.lost
    assert "host_id 2 has marked generation 1 of this host as dead (DEAD_EXT)" in reason
    assert member.lockspace.standing is Standing.LOST
    fed_last_at = alpha.watchdog.last_fed_at
    world.run(until=world.now + TIMING.fail_s)
    assert record_of(world, 3) == marked
    assert alpha.watchdog.last_fed_at == fed_last_at, "users that run on there have to be reset"
    member.lockspace.users_gone()
    begun = world.now
    alpha.joined(3)
    assert world.now - begun > TIMING.dead_s
    record = record_of(world, 3)
    assert (record.generation, record.is_marked_dead, record.marked_by) == (2, False, (2, 1))


@pytest.mark.parametrize(
    ("name", "is_ours"), [("beta.0123456789ab", True), ("beta", False), ("a1b2.beta.lan", False)]
)
def test_host_that_may_be_none_of_holdfasts_is_seen_by_its_name_and_not_forgotten(
    name: str, is_ours: bool
) -> None:
    world = world_with_lockspaces()
    one = Supervised(world, "alpha").joined(1, host_name="alpha.0123456789ab")
    (_, member), *_ = one.told.joined
    assert PeerMonitor("A", HostId(1), DEFAULT, TIMING).beside_others(Instant(0)), "nobody has looked yet"
    world.run(until=world.now + 3 * TIMING.renewal_s)
    assert not member.beside_others()
    Supervised(world, "beta").joined(3, host_name=name)
    world.run(until=world.now + 3 * TIMING.renewal_s)
    assert member.beside_others() is not is_ours
    put_record(world, 3, record_of(world, 4))
    world.run(until=world.now + 3 * TIMING.renewal_s)
    assert member.beside_others() is not is_ours


def test_a_lockspace_made_with_generations_is_sampled_and_listed_no_further_than_its_hosts() -> None:
    """Holdfast's own lockspaces have a generation in each of 2000 records (ADR 0166)."""
    monitor = PeerMonitor("A", HostId(1), DEFAULT, TIMING)
    unused = DeltaLease(geometry=DEFAULT, space_name=PaddedName.of("A"), generation=1_700_000_000)
    records = dict.fromkeys(range(1, 2001), unused)
    records[3] = replace(unused, owner_id=3, host_name=PaddedName.of("beta"), timestamp=7)
    sectors = b"".join(records[host_id].sector() for host_id in range(1, 2001))
    assert monitor.hosts_to_read() == DEFAULT.hosts_max
    monitor.looked(Instant(1.0), Instant(0.5), sectors)
    assert monitor.hosts_to_read() == 3 + NEWCOMERS
    assert [view.host_id for view in monitor.views(Instant(1.0))] == [3]

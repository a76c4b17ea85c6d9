"""An io_timeout that changes while its host is in the lockspace: never does that host count for longer than others."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tests.unit.protocol.test_delta_lease import area_of, claim_of, held_by, new_world, on_disk
from tests.unit.supervision.rig import TIMING, Member, Supervised, record_of, world_with_lockspaces
from tests.unit.supervision.test_lockspace_supervisor import Rig, member

from holdfast.ondisk.geometry import DEFAULT
from holdfast.protocol import delta_lease as delta
from holdfast.protocol.expiry import Expiry, Lowered, Phase, Renewed, Ticked
from holdfast.protocol.host_status import HostState
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId, Instant
from holdfast.supervision.host_identity import (
    HostIdChooser,
    HostIdentity,
    Incarnation,
    JoinPlan,
    decode_term,
    encode_term,
)
from holdfast.supervision.lockspace_news import Changed
from holdfast.supervision.lockspace_supervisor import LockspaceState, LockspaceSupervisor
from holdfast.system.files.state_file import StateFile

RAISED, LOWERED = Timing(20, 60), Timing(2, 60)


def silent_from_now_on(it: Member) -> None:
    """Its storage answers no request any more."""
    it.disk.script = ["read stall", "write stall"] * 1000
    it.told.world.faults.stall_max_s = 1e6


@pytest.mark.parametrize("wanted", [RAISED, LOWERED], ids=["raised", "lowered"])
def test_the_next_renewals_show_it_and_their_pace_and_bounds_follow(wanted: Timing) -> None:
    world = world_with_lockspaces()
    alpha, beta = Supervised(world, "alpha"), Supervised(world, "beta")
    ours, theirs = alpha.joined(1), beta.joined(2)
    world.run(until=200)
    ours.lockspace.change_io_timeout(wanted.io_timeout_s)
    world.run(until=200 + 3 * TIMING.renewal_s)
    ((_, told_s),) = ours.told.io_timeouts
    assert told_s == wanted.io_timeout_s == record_of(world, 1).io_timeout_s
    membership = ours.told.joined[0][1]
    assert ours.lockspace.timing == membership.timing == wanted
    began = world.now
    world.run(until=began + 5 * wanted.renewal_s)
    own = [at for at, _, offset, _ in world.writes if offset == DEFAULT.delta_offset_bytes(1) and at > began]
    assert max(b - a for a, b in pairwise(own)) <= wanted.renewal_s + 2
    assert min(b - a for a, b in pairwise(own)) >= wanted.renewal_s - 2
    silent_from_now_on(ours)
    world.run(until=own[-1] + TIMING.dead_s + RAISED.dead_s)
    ((lost_at, _),) = ours.told.lost
    assert wanted.fail_s - 1 <= lost_at - own[-1] <= wanted.fail_s + 3
    assert alpha.watchdog.fires_at <= own[-1] + wanted.dead_s
    # The greatest that a term has shown counts for others: the field is under no checksum.
    dead_at = [c for c in theirs.told.hosts if (c.host_id, c.after) == (1, HostState.DEAD)]
    assert dead_at and not theirs.told.lost


@pytest.mark.parametrize("wanted", [RAISED, LOWERED], ids=["raised", "lowered"])
def test_storage_that_hangs_before_any_renewal_shows_it_ends_the_lease_by_the_bound_that_others_know(
    wanted: Timing,
) -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    ours = alpha.joined(1)
    world.run(until=200)
    shown_at = max(at for at, _, offset, _ in world.writes if offset == DEFAULT.delta_offset_bytes(1))
    silent_from_now_on(ours)
    ours.lockspace.change_io_timeout(wanted.io_timeout_s)
    world.run(until=1000)
    assert record_of(world, 1).io_timeout_s == TIMING.io_timeout_s
    assert alpha.watchdog.fires_at <= shown_at + TIMING.dead_s
    assert not ours.told.io_timeouts
    assert ours.lockspace.next_io_timeout_s == wanted.io_timeout_s


def test_a_raised_one_counts_only_from_a_write_that_is_known_to_have_landed() -> None:
    """The write of the renewal that shows it hangs: nobody knows whether it has landed, and it has."""
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    ours = alpha.joined(1)
    world.run(until=200)
    certain_at = max(at for at, _, offset, _ in world.writes if offset == DEFAULT.delta_offset_bytes(1))
    ours.disk.script = ["read", "write stall", *["read stall"] * 1000]
    world.faults.stall_max_s = 30.0
    ours.lockspace.change_io_timeout(RAISED.io_timeout_s)
    world.run(until=1000)
    assert record_of(world, 1).io_timeout_s == RAISED.io_timeout_s
    assert alpha.watchdog.fires_at <= certain_at + TIMING.dead_s


def test_a_lowered_one_counts_before_any_record_shows_it() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    ours = alpha.joined(1)
    world.run(until=200)
    ours.lockspace.change_io_timeout(LOWERED.io_timeout_s)
    assert ours.lockspace._watched is not None
    while ours.lockspace._watched.expiry.timing == TIMING:
        world.run(until=world.now + 0.1)
    assert record_of(world, 1).io_timeout_s == TIMING.io_timeout_s
    renewed_at = max(at for at, _, offset, _ in world.writes if offset == DEFAULT.delta_offset_bytes(1))
    silent_from_now_on(ours)
    world.run(until=1000)
    assert alpha.watchdog.fires_at <= renewed_at + LOWERED.dead_s


def test_no_record_shows_a_lowered_one_while_the_lease_monitor_stands_still() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    ours = alpha.joined(1)
    world.run(until=200)
    beat = alpha.lease_monitor.beat
    alpha.lease_monitor.beat = lambda: None  # type: ignore[method-assign]
    ours.lockspace.change_io_timeout(LOWERED.io_timeout_s)
    world.run(until=250)
    assert record_of(world, 1).io_timeout_s == TIMING.io_timeout_s and ours.lockspace.timing == TIMING
    alpha.lease_monitor.beat = beat  # type: ignore[method-assign]
    world.run(until=300)
    assert record_of(world, 1).io_timeout_s == LOWERED.io_timeout_s and not ours.told.lost


def test_a_renewal_that_took_long_does_not_begin_to_count_by_a_bound_that_it_has_passed() -> None:
    world = world_with_lockspaces()
    alpha = Supervised(world, "alpha")
    ours = alpha.joined(1)
    world.run(until=200)
    fate = ours.disk._fate
    slow = [LOWERED.fail_s + 2.0]
    ours.disk._fate = lambda kind, timeout_s: (  # type: ignore[method-assign]
        ("", slow.pop()) if kind == "write" and slow else fate(kind, timeout_s)
    )
    ours.lockspace.change_io_timeout(LOWERED.io_timeout_s)
    world.run(until=400)
    assert not slow and not ours.told.lost
    assert ours.told.io_timeouts and record_of(world, 1).io_timeout_s == LOWERED.io_timeout_s


def test_one_change_at_a_time() -> None:
    world = world_with_lockspaces()
    ours = Supervised(world, "alpha").joined(1)
    ours.lockspace.change_io_timeout(20)
    with pytest.raises(ValueError, match="being changed to 20 s"):
        ours.lockspace.change_io_timeout(30)


# --- the record ---


def test_a_renewal_within_the_second_of_the_one_before_does_not_raise_it() -> None:
    """Others may read a record again only when its timestamp has changed."""
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    while True:
        renewed = host.run(delta.renew(area_of(host), host.clock, held, raised_io_timeout_s=3))
        assert isinstance(renewed, delta.Renewed)
        if renewed.held.record.timestamp > held.record.timestamp:
            break
        assert on_disk(world).io_timeout_s == 1 == renewed.held.claim.timing.io_timeout_s
        held = renewed.held
    assert on_disk(world).io_timeout_s == 3 == renewed.held.claim.timing.io_timeout_s


def test_a_write_that_may_have_raised_it_is_recognised_as_ours() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    world.run(until=world.now + 2)
    host.disk.script = ["read", "write error"]
    at = DEFAULT.delta_offset_bytes(3)
    failed = host.run(delta.renew(area_of(host), host.clock, held, raised_io_timeout_s=3))
    assert isinstance(failed, delta.RenewalFailed)
    assert failed.held.claim.timing.io_timeout_s == 1
    # It has landed all the same.
    tried = replace(held.record, timestamp=failed.held.tried_timestamp, io_timeout_s=3)
    world.content[at : at + 512] = tried.sector()
    again = host.run(delta.renew(area_of(host), host.clock, failed.held, raised_io_timeout_s=3))
    assert isinstance(again, delta.Renewed)
    # No other io_timeout is.
    odd = delta.Held(
        again.held.claim, on_disk(world), again.held.renewed_at, certain=False, tried_io_timeout_s=2
    )
    world.content[at + 174 : at + 176] = (9).to_bytes(2, "little")
    assert isinstance(host.run(delta.renew(area_of(host), host.clock, odd)), delta.Diverged)


@pytest.mark.parametrize(("before_s", "after_s"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("shown", ["before", "after"])
def test_a_restart_in_the_midst_goes_by_what_the_record_shows(
    before_s: int, after_s: int, shown: str
) -> None:
    world = new_world()
    host = world.host("alpha")
    record_s = before_s if shown == "before" else after_s
    held = held_by(host, record_s)
    claim = delta.Claim(HostId(3), host.name, Timing(before_s, 60), next_io_timeout_s=after_s)
    resumed = host.run(delta.resume(area_of(host), host.clock, claim, held.generation))
    assert isinstance(resumed, delta.Held)
    assert resumed.claim.timing.io_timeout_s == record_s == on_disk(world).io_timeout_s


def test_a_record_with_an_io_timeout_that_nobody_gave_it_is_not_resumed() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host, 2)
    for claim in (claim_of(host, 1), delta.Claim(HostId(3), host.name, Timing(1, 60), next_io_timeout_s=3)):
        gone = host.run(delta.resume(area_of(host), host.clock, claim, held.generation))
        assert isinstance(gone, delta.NotResumed) and "io_timeout 2 s" in gone.reason


# --- the age ---


def test_raised_bounds_come_with_a_renewal_and_save_no_lease_that_was_over_before_it() -> None:
    expiry = Expiry(TIMING, Instant(1000))
    expiry.step(Instant(1079), Renewed(Instant(1075), RAISED))
    assert expiry.fails_at == Instant(1075 + RAISED.fail_s)
    late = Expiry(TIMING, Instant(1000))
    late.step(Instant(1081), Renewed(Instant(1075), RAISED))
    assert late.phase is Phase.FAIL and not late.may_feed(Instant(1081))


def test_lowered_bounds_count_at_once_and_greater_ones_are_no_lowered_ones() -> None:
    expiry = Expiry(TIMING, Instant(1000))
    expiry.step(Instant(1005), Lowered(LOWERED))
    assert expiry.may_feed(Instant(1015.9)) and not expiry.may_feed(Instant(1016))
    expiry.step(Instant(1016), Ticked())
    assert expiry.phase is Phase.FAIL
    for timing in (TIMING, Timing(2, 30)):
        with pytest.raises(ValueError, match="not below"):
            Expiry(LOWERED, Instant(0)).step(Instant(1), Lowered(timing))


def test_a_lease_that_is_old_by_lowered_bounds_goes_on_by_its_own() -> None:
    expiry = Expiry(TIMING, Instant(1000))
    expiry.step(Instant(1012), Lowered(LOWERED))
    assert expiry.timing == TIMING
    expiry.step(Instant(1021), Renewed(Instant(1020)))
    expiry.step(Instant(1021), Lowered(LOWERED))
    assert expiry.timing == LOWERED and expiry.fails_at == Instant(1036)


# --- what is remembered ---

TERM = Incarnation(
    lockspace="A",
    host_id=1,
    generation=4,
    host_name="alpha.x",
    boot="b",
    machine="m",
    io_timeout_s=10,
    fire_timeout_s=60,
    next_io_timeout_s=20,
)


def test_copies_of_an_incarnation_that_is_not_being_changed_are_as_they_were() -> None:
    raw = encode_term(TERM)
    assert decode_term(raw.encode()) == TERM
    assert decode_term(raw.replace('"next_io_timeout_s":20', '"next_io_timeout_s":30').encode()) is not None
    damaged = decode_term(raw.replace('"next_io_timeout_s":20', '"next_io_timeout_s":30').encode())
    assert damaged is not None and damaged.next_io_timeout_s == 0
    settled = Incarnation(**{f: getattr(TERM, f) for f in TERM.__struct_fields__ if f != "next_io_timeout_s"})
    assert "next_" not in encode_term(settled)


def test_a_restart_knows_both() -> None:
    chooser = HostIdChooser(
        host_id=HostId(1),
        hosts_max=None,
        timing=TIMING,
        identity=HostIdentity(node="alpha", boot="b", machine="m"),
        token="0" * 12,
        on_wait=lambda _: None,
    )
    plan = chooser.resumption(TERM, in_use=True)
    assert plan is not None
    assert (plan.timing.io_timeout_s, plan.next_io_timeout_s) == (10, 20)


class Renewal:
    """Stands for the renewal: it remembers what it is to change to, if the copies knew that first."""

    def __init__(self, rig: Rig, copy: StateFile) -> None:
        self.timing = TIMING
        self.next_io_timeout_s = 0
        self.knew: list[Incarnation | None] = []
        self._copy = copy

    def change_io_timeout(self, io_timeout_s: int) -> None:
        self.knew.append(decode_term(self._copy.read()))


@pytest.fixture
def changed(tmp_path: Path) -> tuple[Rig, Renewal, list[Changed]]:
    rig = Rig(tmp_path)
    news: list[Changed] = []
    read = rig.supervisor._report
    rig.supervisor._report = lambda each: news.append(each) if isinstance(each, Changed) else read(each)
    rig.supervisor._become(LockspaceState.JOINING, "")
    rig.supervisor._joined(JoinPlan(HostId(1), "alpha.x", TIMING), member())
    renewal = Renewal(rig, StateFile(str(tmp_path / "term")))
    rig.supervisor._lockspace = renewal  # type: ignore[assignment]
    return rig, renewal, news


def io_timeouts(supervisor: LockspaceSupervisor) -> tuple[int, int]:
    assert supervisor.incarnation is not None
    return supervisor.incarnation.io_timeout_s, supervisor.incarnation.next_io_timeout_s


def test_the_copies_know_of_a_change_before_it_begins_and_of_its_end(
    changed: tuple[Rig, Renewal, list[Changed]],
) -> None:
    rig, renewal, news = changed
    supervisor = rig.supervisor
    assert supervisor.change_io_timeout(10) == "" and not renewal.knew
    assert supervisor.change_io_timeout(20) == ""
    (knew,) = renewal.knew
    assert knew is not None and (knew.io_timeout_s, knew.next_io_timeout_s) == (10, 20)
    assert supervisor.change_io_timeout(20) == "" and len(renewal.knew) == 1
    assert "being changed to 20 s" in supervisor.change_io_timeout(30)
    supervisor._io_timeout_changed(RAISED)
    assert io_timeouts(supervisor) == (20, 0) and supervisor.spec.timing == RAISED
    assert [(n.incarnation.io_timeout_s, n.incarnation.next_io_timeout_s) for n in news] == [
        (10, 20),
        (20, 0),
    ]
    # The latest copy counts, also where another one is older.
    assert news[0].incarnation.joined_at <= news[1].incarnation.joined_at


def test_what_can_not_be_changed_is_refused_with_the_reason(
    changed: tuple[Rig, Renewal, list[Changed]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, renewal, _ = changed
    supervisor = rig.supervisor
    assert "0" in supervisor.change_io_timeout(0) and "256" in supervisor.change_io_timeout(256)

    def full(self: StateFile, raw: bytes) -> None:
        raise OSError(28, "No space left on device", "term")

    with monkeypatch.context() as patched:
        patched.setattr(StateFile, "replace", full)
        assert "No space left on device" in supervisor.change_io_timeout(20)
    assert not renewal.knew and io_timeouts(supervisor) == (10, 0)
    supervisor._become(LockspaceState.LOST, "")
    assert "not joined" in supervisor.change_io_timeout(20)


def test_a_lockspace_that_was_left_on_purpose_has_its_configured_one_again(
    changed: tuple[Rig, Renewal, list[Changed]],
) -> None:
    rig, _, _ = changed
    rig.supervisor._io_timeout_changed(RAISED)
    rig.supervisor._become(LockspaceState.LEFT, "")
    rig.supervisor.join()
    assert rig.supervisor.spec.timing == TIMING

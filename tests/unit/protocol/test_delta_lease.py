"""Host ids: claimed by one host at a time, in bounded time, and proof that the former holder is gone."""

import errno
from dataclasses import replace

import pytest
from tests.unit.protocol.simulated import Faults, Host, Task, World

from holdfast.ondisk.delta import DeltaLease, decode_bitmap
from holdfast.ondisk.geometry import GEOMETRIES, MIB
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol import delta_lease as delta
from holdfast.protocol.lockspace_area import (
    AlreadyThere,
    Corrupt,
    Initialised,
    LockspaceArea,
    init,
    open_area,
)
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, Instant, IoFailed

G512 = GEOMETRIES[0]
ID = HostId(3)
TIMING = Timing(1, 60)


def new_world(seed: int = 1, faults: Faults | None = None, io_timeout_s: int = 1) -> World:
    world = World(seed, MIB)
    outcome = world.host("admin").run(init(world.hosts[0].disk, 0, G512, "LS1", io_timeout_s=io_timeout_s))
    assert outcome == Initialised(G512)
    world.faults = faults or Faults()
    return world


def area_of(host: Host) -> LockspaceArea:
    return LockspaceArea(host.disk, 0, G512, "LS1")


def claim_of(host: Host, io_timeout_s: int = 1) -> delta.Claim:
    return delta.Claim(ID, host.name, Timing(io_timeout_s, 60))


def claiming(host: Host, io_timeout_s: int = 1) -> Task[delta.AcquireOutcome]:
    return host.spawn(delta.acquire(area_of(host), host.clock, claim_of(host, io_timeout_s)))


def held_by(host: Host, io_timeout_s: int = 1) -> delta.Held:
    task = claiming(host, io_timeout_s)
    host.world.run(task)
    assert isinstance(task.result, delta.Held)
    return task.result


def on_disk(world: World, host_id: int = ID) -> DeltaLease:
    at = G512.delta_offset_bytes(host_id)
    record = DeltaLease.decode(bytes(world.content[at : at + 512]))
    assert isinstance(record, DeltaLease)
    return record


async def renewing(host: Host, held: delta.Held, until: float) -> delta.RenewOutcome | delta.Held:
    """What a lockspace thread does: renew each 2 io_timeouts until the lease is over."""
    while host.world.now < until:
        outcome = await delta.renew(area_of(host), host.clock, held)
        match outcome:
            case delta.Renewed(held) | delta.RenewalFailed(held):
                await host.clock.sleep(held.claim.timing.renewal_s)
            case _:
                return outcome
    return held


def test_a_free_id_is_held_after_settling_and_its_generation_grows() -> None:
    world = new_world()
    host = world.host("alpha")
    first = held_by(host)
    assert first.generation == 1
    assert 2 <= world.now <= 3
    assert on_disk(world) == first.record
    assert first.record.host_name.text == "alpha"
    assert isinstance(host.run(delta.release(area_of(host), host.clock, first)), delta.Released)
    assert on_disk(world).is_free
    assert on_disk(world).generation == 1
    assert held_by(world.host("beta")).generation == 2


def test_settling_takes_the_former_holders_io_timeout() -> None:
    world = new_world(io_timeout_s=5)
    held_by(world.host("alpha"))
    assert 10 <= world.now < 13


def test_a_held_lease_is_fresh_even_if_settling_took_longer_than_it_lasts() -> None:
    """The former holder had io_timeout 10: settling takes 20 s, but our own lease fails after 8 s."""
    world = new_world(io_timeout_s=10)
    host = world.host("alpha")
    held = held_by(host)
    assert host.clock.now() - held.renewed_at < 1
    assert held.generation == 2
    assert on_disk(world).io_timeout_s == 1


def test_a_live_holder_is_told_by_name_without_waiting_for_the_dead_bound() -> None:
    world = new_world()
    alpha, beta = world.host("alpha"), world.host("beta")
    alpha.spawn(renewing(alpha, held_by(alpha), until=1000))
    begun = world.now
    task = claiming(beta)
    world.run(task)
    assert isinstance(task.result, delta.HostIdBusy)
    assert task.result.by.host_name.text == "alpha"
    assert world.now - begun < 10


@pytest.mark.parametrize("seed", range(20))
def test_a_dead_hosts_id_is_taken_only_after_its_dead_bound(seed: int) -> None:
    world = new_world(seed)
    alpha, beta = world.host("alpha"), world.host("beta")
    alpha.spawn(renewing(alpha, held_by(alpha), until=1e6))
    world.run(until=world.now + world.random.uniform(3, 20))
    alpha.reset()
    last_write = max(at for at, host, _, _ in world.writes if host is alpha)
    task = claiming(beta)
    world.run(task)
    assert isinstance(task.result, delta.Held)
    taken = min(at for at, host, _, _ in world.writes if host is beta)
    assert taken - last_write > TIMING.dead_s
    assert task.result.generation == 2


def test_id_that_another_host_has_by_now_is_left_to_it_if_it_was_chosen_for_a_name() -> None:
    """The lockspace was restored between the choice and the claim (seed 100000694)."""
    world = new_world()
    held_by(world.host("alpha"))
    beta = world.host("beta")
    begun = world.now
    chosen = replace(claim_of(beta), only_of="beta-before")
    outcome = beta.run(delta.acquire(area_of(beta), beta.clock, chosen))
    assert isinstance(outcome, delta.HostIdBusy)
    assert world.now - begun < TIMING.dead_s
    assert on_disk(world).host_name.text == "alpha"
    waiting = replace(claim_of(beta), only_of="alpha")
    assert isinstance(beta.run(delta.acquire(area_of(beta), beta.clock, waiting)), delta.Held)


def test_the_same_name_takes_its_id_back_at_once() -> None:
    world = new_world()
    held_by(world.host("alpha"))
    begun = world.now
    assert held_by(world.host("alpha")).generation == 2
    assert world.now - begun < 4


class Beliefs:
    """Which host believes to hold the id from when to when, where a watchdog ends every belief at its
    dead bound.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._until: dict[str, tuple[float, float]] = {}
        self.ever_held: set[str] = set()

    def held(self, host: Host, held: delta.Held) -> None:
        until = self._world.now + held.renewed_at + held.claim.timing.dead_s - host.clock.now()
        for other, (since, others_until) in self._until.items():
            if other != host.name:
                assert others_until <= self._world.now, (
                    f"{other} holds the id since {since}, now {host.name} does"
                )
        since = self._until.get(host.name, (self._world.now, 0))[0]
        self._until[host.name] = (since, until)
        self.ever_held.add(host.name)

    def over(self, host: Host) -> None:
        self._until.pop(host.name, None)


async def living(host: Host, beliefs: Beliefs, until: float) -> None:
    """Claim the id, and renew it as long as it is ours."""
    outcome = await delta.acquire(area_of(host), host.clock, claim_of(host))
    if not isinstance(outcome, delta.Held):
        return
    held = outcome
    while host.world.now < until:
        beliefs.held(host, held)
        await host.clock.sleep(TIMING.renewal_s)
        renewed = await delta.renew(area_of(host), host.clock, held)
        match renewed:
            case delta.Renewed(held) | delta.RenewalFailed(held):
                pass
            case _:
                beliefs.over(host)
                return


def test_a_claim_that_did_not_stand_is_not_held_even_if_the_renewal_after_it_cannot_read() -> None:
    world = new_world()
    alpha = world.host("alpha")
    alpha.disk.script = ["read", "write", "read", "read error"]
    task = claiming(alpha)
    world.run(until=world.now + 1)
    rival = replace(on_disk(world), host_name=PaddedName.of("rival"))
    at = G512.delta_offset_bytes(ID)
    world.content[at : at + 512] = rival.sector()
    world.run(task)
    assert task.result == delta.HostIdBusy(rival)


@pytest.mark.parametrize("first_seed", range(0, 1000, 100))
def test_two_hosts_never_hold_one_id_at_once(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 100):
        world = new_world(seed, Faults(latency_s=0.9))
        beliefs = Beliefs(world)
        hosts = [world.host(f"h{n}") for n in range(3)]
        tasks = []
        for host in hosts:
            world.run(until=world.now + world.random.uniform(0, 1.5))
            tasks.append(host.spawn(living(host, beliefs, until=world.now + 100)))
            if world.random.random() < 0.4:
                world.run(until=world.now + world.random.uniform(0, 2))
                host.pause(world.random.uniform(0, 6))
        world.run(*tasks)


def test_a_claimant_paused_before_its_write_does_not_write_over_the_new_holder() -> None:
    """Both watch a dead host; one of them falls asleep around the moment at which the dead bound passes."""
    takeovers = 0
    for seed in range(400):
        world = new_world(seed, Faults(latency_s=0.9))
        alpha, beta, gamma = world.host("alpha"), world.host("beta"), world.host("gamma")
        held_by(alpha)
        beliefs = Beliefs(world)
        tasks = [host.spawn(living(host, beliefs, until=world.now + 160)) for host in (beta, gamma)]
        world.run(until=world.now + 68 + world.random.uniform(0, 3))
        gamma.pause(30)
        world.run(*tasks)
        takeovers += len(beliefs.ever_held)
    assert takeovers > 300


def test_a_claim_whose_write_took_too_long_is_none_although_it_stands() -> None:
    world = new_world()
    alpha, beta = world.host("alpha"), world.host("beta")
    write = beta.disk.write

    async def late(offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        await beta.clock.sleep(10)
        return await write(offset_bytes, content, timeout_s=timeout_s)

    beta.disk.write = late  # type: ignore[method-assign]
    claim = claiming(beta)
    world.run(until=world.now + 1)
    first = held_by(alpha)
    world.run(claim)
    assert on_disk(world).host_name.says("beta")
    assert on_disk(world).generation == first.generation
    assert isinstance(claim.result, delta.TooSlow)


def test_renewing_writes_a_new_timestamp_event_and_bitmap_and_returns_what_it_read() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    world.run(until=world.now + 2)
    outcome = host.run(delta.renew(area_of(host), host.clock, held, notified={1, ID}, hosts_watched=64))
    assert isinstance(outcome, delta.Renewed)
    assert len(outcome.sectors) == 64 * 512
    assert outcome.held.record.timestamp == int(outcome.held.renewed_at) > held.record.timestamp
    at = G512.delta_offset_bytes(ID)
    assert decode_bitmap(bytes(world.content[at : at + 512])) == frozenset({1})
    assert outcome.held.renewed_at < host.clock.now()


def test_the_renewal_time_is_sampled_before_the_write() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    before = host.clock.now()
    world.faults = Faults(latency_s=0.0)
    host.disk.script = ["read", "write stall"]
    outcome = host.run(delta.renew(area_of(host), host.clock, held))
    assert isinstance(outcome, delta.RenewalFailed)
    assert on_disk(world).timestamp == int(before)
    assert not outcome.held.certain


def test_after_a_failed_write_either_record_may_be_on_disk() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    host.disk.script = ["read", "write error"]
    failed = host.run(delta.renew(area_of(host), host.clock, held))
    assert isinstance(failed, delta.RenewalFailed)
    again = host.run(delta.renew(area_of(host), host.clock, failed.held))
    assert isinstance(again, delta.Renewed)
    assert again.held.certain


def test_a_record_that_is_ours_but_not_what_we_wrote_ends_the_lease() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    at = G512.delta_offset_bytes(ID)
    world.content[at : at + 512] = replace(held.record, timestamp=held.record.timestamp + 1).sector()
    assert isinstance(host.run(delta.renew(area_of(host), host.clock, held)), delta.Diverged)
    world.content[at : at + 512] = replace(held.record, host_name=PaddedName.of("thief")).sector()
    assert isinstance(host.run(delta.renew(area_of(host), host.clock, held)), delta.NotOurs)
    world.content[at : at + 512] = replace(held.record, generation=9).sector()
    assert isinstance(host.run(delta.renew(area_of(host), host.clock, held)), delta.NotOurs)
    world.content[at] ^= 1
    assert isinstance(host.run(delta.renew(area_of(host), host.clock, held)), Corrupt)


def test_a_failed_lease_is_not_written_again() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    written = len(world.writes)
    world.run(until=world.now + 8)
    assert isinstance(host.run(delta.renew(area_of(host), host.clock, held)), delta.TooLate)
    assert isinstance(host.run(delta.release(area_of(host), host.clock, held)), delta.NotReleased)
    assert len(world.writes) == written


def test_release_leaves_alone_what_is_not_certainly_ours() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    uncertain = replace(held, certain=False)
    assert isinstance(host.run(delta.release(area_of(host), host.clock, uncertain)), delta.NotReleased)
    at = G512.delta_offset_bytes(ID)
    world.content[at : at + 512] = replace(held.record, generation=2).sector()
    assert isinstance(host.run(delta.release(area_of(host), host.clock, held)), delta.NotReleased)
    assert not on_disk(world).is_free


def test_no_renewal_is_issued_while_an_earlier_one_is_in_flight() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    world.faults = Faults(latency_s=0.0, stall_max_s=1000)
    host.disk.script = ["read", "write stall"]
    task = host.spawn(delta.renew(area_of(host), host.clock, held))
    world.run(until=world.now + 1)
    direct_write = host.run(area_of(host).write_sector(ID, held.record.sector(), timeout_s=1))
    assert direct_write == IoFailed(errno.EBUSY, in_flight=True)
    assert not task.done


@pytest.mark.parametrize("seed", range(100))
def test_renewals_survive_faults_or_the_lease_ends_but_nobody_else_holds_it(seed: int) -> None:
    world = new_world(seed)
    alpha, beta = world.host("alpha"), world.host("beta")
    held = held_by(alpha)
    world.faults = Faults(latency_s=0.5, error_rate=0.2, stall_rate=0.1, stall_max_s=5)
    supervisor = alpha.spawn(renewing(alpha, held, until=world.now + 200))
    rival = claiming(beta)
    world.run(supervisor, rival)
    assert not (isinstance(rival.result, delta.Held) and isinstance(supervisor.result, delta.Held))


def test_slow_storage_holds_no_lease() -> None:
    world = new_world()
    host = world.host("alpha")

    class Sluggish:
        async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
            await host.clock.sleep(1.5)
            return await host.disk.read(offset_bytes, length_bytes, timeout_s=timeout_s)

        async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
            raise AssertionError("a claim may not rest on a read that old")

        def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
            return False

        async def settled(self, offset_bytes: int, length_bytes: int) -> None: ...

    area = LockspaceArea(Sluggish(), 0, G512, "LS1")
    assert isinstance(host.run(delta.acquire(area, host.clock, claim_of(host))), delta.TooSlow)


def test_initialising_refuses_an_existing_lockspace_and_an_unaligned_place() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    assert isinstance(host.run(init(host.disk, 0, G512, "LS2")), AlreadyThere)
    assert on_disk(world) == held.record
    assert host.run(init(host.disk, 777, G512, "LS2")) == IoFailed(errno.EINVAL)
    assert isinstance(host.run(init(host.disk, 0, G512, "LS2", overwrite=True)), Initialised)
    assert isinstance(host.run(open_area(host.disk, 0, "LS2", 1)), LockspaceArea)
    assert isinstance(host.run(open_area(host.disk, 0, "LS1", 1)), Corrupt)


def test_a_crash_between_the_two_writes_leaves_no_lockspace() -> None:
    world = World(1, MIB)
    host = world.host()
    host.disk.script = ["read", "write", "write error"]
    assert host.run(init(host.disk, 0, G512, "LS1")) == IoFailed(errno.EIO)
    assert isinstance(host.run(open_area(host.disk, 0, "LS1", 1)), Corrupt)
    assert Instant(0) <= host.clock.now()


def test_a_term_that_a_restart_goes_on_with_is_as_old_as_its_record_until_it_is_renewed() -> None:
    """The first renewal of the next process fails: others count from the last one that reached the disk."""
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    written_at = host.clock.now()
    world.run(until=world.now + 5)
    host.disk.script = ["read", "read", "write error"]
    resumed = host.run(delta.resume(area_of(host), host.clock, claim_of(host), held.generation))
    assert isinstance(resumed, delta.Held)
    assert resumed.renewed_at <= written_at
    assert host.clock.now() - resumed.renewed_at >= 5


def test_a_term_that_a_restart_finds_too_old_is_not_gone_on_with() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    world.run(until=world.now + TIMING.fail_s)
    gone = host.run(delta.resume(area_of(host), host.clock, claim_of(host), held.generation))
    assert isinstance(gone, delta.NotResumed)


def test_a_term_that_is_over_is_reported_with_what_its_record_says() -> None:
    world = new_world()
    host = world.host("alpha")
    held = held_by(host)
    fresh = init(host.disk, 0, G512, "LS1", io_timeout_s=1, overwrite=True)

    def reason(generation: int = held.generation) -> str:
        gone = host.run(delta.resume(area_of(host), host.clock, claim_of(host), Generation(generation)))
        assert isinstance(gone, delta.NotResumed)
        return gone.reason

    assert reason(9) == "the record of host id 3 is of generation 1 by now, not 9"
    assert isinstance(host.run(delta.release(area_of(host), host.clock, held)), delta.Released)
    assert reason() == "host id 3 has been given back"
    held_by(world.host("beta"))
    assert reason() == "host id 3 is host beta's by now"
    assert isinstance(host.run(fresh), Initialised)
    assert reason() == "no host has had host id 3 in this lockspace: it was initialized again, or restored"


def test_a_host_id_of_a_silent_host_with_a_greater_io_timeout_is_claimed_after_its_own_bound() -> None:
    world = new_world()
    held_by(world.host("alpha"), io_timeout_s=2)
    begun = world.now
    rival = claiming(world.host("beta"))
    world.run(rival)
    assert isinstance(rival.result, delta.Held)
    assert world.now - begun > Timing(2, 60).dead_s > TIMING.dead_s

"""Leases: who gets them, who is refused and why, and what stands on disk afterwards."""

import errno
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from tests.unit.protocol.cluster import G512, MANY_HOSTS, TIMING, Cluster, Node

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import MIB, SECTOR_4096
from holdfast.ondisk.host_block import FLAG_RELEASED, Dblock, HostBlock, ModeBlock
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol import paxos_lease, paxos_release
from holdfast.protocol.ballot import LVER_MAX, MBAL_MAX, PreparedBallot, next_mbal, prepare_next
from holdfast.protocol.expiry import Corrupted
from holdfast.protocol.holders import gave_up
from holdfast.protocol.lease_area import LeaseAlreadyThere, LeaseArea, init
from holdfast.protocol.paxos_lease import SharedBy
from holdfast.protocol.paxos_outcomes import (
    AlreadyShared,
    InDoubt,
    LockspaceLost,
    WrongVersion,
)
from holdfast.protocol.paxos_release import (
    DowngradeFailed,
    Lease,
    Mode,
    NotHeld,
    Released,
    ReleaseFailed,
    Withdrawn,
)
from holdfast.protocol.takeover import Busy, HostUnknown
from holdfast.protocol.types import Generation, HostId, IoFailed

T = TypeVar("T")


def exclusive(node: Node, **options: Any) -> paxos_lease.AcquireOutcome:
    host = node.host
    return run(
        node, paxos_lease.acquire_exclusive(node.lease_area, node.member, host.clock, host.rng, **options)
    )


def shared(node: Node, **options: Any) -> paxos_lease.AcquireOutcome:
    host = node.host
    return run(
        node, paxos_lease.acquire_shared(node.lease_area, node.member, host.clock, host.rng, **options)
    )


def run(node: Node, coroutine: Coroutine[Any, Any, T]) -> T:
    return node.host.run(coroutine)


def release(node: Node, lease: Lease) -> paxos_release.ReleaseOutcome:
    return run(node, paxos_release.release(node.lease_area, node.member, node.host.clock, lease))


def downgrade(node: Node, lease: Lease) -> paxos_release.DowngradeOutcome:
    return run(node, paxos_release.downgrade(node.lease_area, node.member, node.host.clock, lease))


def upgrade(node: Node, lease: Lease) -> paxos_lease.AcquireOutcome:
    host = node.host
    return run(node, paxos_lease.upgrade(node.lease_area, node.member, host.clock, host.rng, lease))


def withdraw(node: Node, doubt: InDoubt) -> paxos_release.WithdrawOutcome:
    return run(node, paxos_release.withdraw(node.lease_area, node.member, node.host.clock, doubt))


def held(outcome: object) -> Lease:
    assert isinstance(outcome, Lease), outcome
    return outcome


def test_ballot_numbers_are_those_of_the_real_program() -> None:
    numbers, greatest = [], 0
    for host_id in (1, 2, 1, 2):
        number = next_mbal(greatest, HostId(host_id), 2000)
        assert number is not None
        numbers.append(number)
        greatest = number
    assert numbers == [1, 2002, 4001, 6002]
    assert next_mbal(3, HostId(3), 250) == 253
    assert next_mbal(999999, HostId(10), 2000) == 1000010
    assert next_mbal(MBAL_MAX, HostId(1), 2000) is None


def test_an_uncontended_acquire_is_three_looks_and_three_writes_and_reads_no_sector_too_many() -> None:
    cluster = Cluster(1)
    (node,) = cluster.join(2)
    node.host.kill()  # No renewals in between.
    before = len(cluster.world.writes)
    node.host.disk.reads.clear()
    lease = held(exclusive(node))
    assert lease.leader == cluster.leader()
    assert (lease.leader.owner_id, lease.leader.owner_generation, lease.lver) == (2, 1, 1)
    assert len(cluster.world.writes) - before == 3
    # The first look is for the hosts expected (6), the ballot's are for the 4 that the leader names.
    assert all(length <= 8 * 512 for _, length in node.host.disk.reads)
    assert len(node.host.disk.reads) == 3


def test_a_lease_for_more_hosts_than_expected_is_looked_at_whole() -> None:
    cluster = Cluster(1, num_hosts=2000)
    one, two = cluster.join(1, 2)
    at = G512.host_block_offset_bytes(1999)
    ahead = HostBlock(dblock=Dblock(mbal=999999, lver=1))
    cluster.put(at, ahead.sector(512))
    assert held(exclusive(one)).own.dblock.mbal == 1000001
    assert isinstance(exclusive(two), Busy)


def test_a_held_lease_is_refused_by_name_and_free_after_release() -> None:
    cluster = Cluster(2)
    one, two = cluster.join(1, 2)
    lease = held(exclusive(one))
    refused = exclusive(two)
    assert isinstance(refused, Busy)
    assert (refused.leader.owner_id, refused.host_name) == (1, str(one))
    assert isinstance(release(one, lease), Released)
    assert cluster.leader().is_free
    assert cluster.block(1) == prepare_next(lease.own, lease.leader, one.host_id)
    second = held(exclusive(two))
    assert second.lver == 2
    assert isinstance(release(one, lease), Released | NotHeld)
    assert cluster.leader() == second.leader


def test_release_asks_last_whether_it_may_write() -> None:
    """To ask who else is there reads the clock, and the lease may fail meanwhile (seed 101000160)."""
    cluster = Cluster(2)
    one, _ = cluster.join(1, 2)
    lease = held(exclusive(one))
    fails: list[bool] = []

    def asked_for_others() -> bool:
        fails.append(True)
        return False

    one.member = replace(one.member, may_write=lambda: not fails, beside_others=asked_for_others)
    before = cluster.block(1)
    assert isinstance(release(one, lease), LockspaceLost)
    assert fails
    assert cluster.block(1) == before


def given_up(node: Node, lease: Lease) -> PreparedBallot:
    """Released; what it promised."""
    released = release(node, lease)
    assert isinstance(released, Released)
    assert released.promise is not None
    assert released.promise == PreparedBallot(
        node.cluster.leader(), node.cluster.block(node.host_id), before_free=True
    )
    return released.promise


def lease_writes(node: Node) -> int:
    return len([w for w in node.host.world.writes if w[1] is node.host and w[2] >= MIB])


@pytest.mark.parametrize("num_hosts", [4, MANY_HOSTS])
def test_what_a_release_promised_is_phase_one_of_the_next_acquire(num_hosts: int) -> None:
    cluster = Cluster(2, num_hosts=num_hosts)
    (one,) = cluster.join(1)
    one.host.kill()
    promise = given_up(one, held(exclusive(one)))
    assert (promise.block.dblock.lver, promise.block.dblock.bal, promise.block.dblock.inp) == (2, 0, 0)
    assert promise.block.dblock.is_released  # all that sanlock looks at
    before = len(cluster.world.writes)
    one.host.disk.reads.clear()
    lease = held(exclusive(one, promise=promise))
    assert (lease.lver, lease.own.dblock.mbal, lease.own.dblock.is_released) == (
        2,
        promise.block.dblock.mbal,
        False,
    )
    assert lease.own == cluster.block(1)
    # Phase 2 and the leader; the first look or glance, and the look of phase 2, which expected fewer hosts.
    assert len(cluster.world.writes) - before == 2
    again = [(2 + num_hosts) * 512] if num_hosts == MANY_HOSTS else []
    assert [length for _, length in one.host.disk.reads] == [SECTOR_4096, SECTOR_4096, *again]


def test_release_beside_other_hosts_leaves_the_values_of_its_own_version() -> None:
    cluster = Cluster(2)
    (one,) = cluster.join(1)
    one.member = replace(one.member, beside_others=lambda: True)
    lease = held(exclusive(one))
    assert release(one, lease) == Released()
    assert cluster.leader().is_free
    assert cluster.block(1).dblock == replace(lease.own.dblock, flags=FLAG_RELEASED)


def test_release_that_is_repeated_keeps_its_promise_although_another_host_is_seen_by_then() -> None:
    cluster = Cluster(2)
    (one,) = cluster.join(1)
    one.host.kill()  # no renewal comes between
    lease = held(exclusive(one))
    one.host.disk.script = ["write", "read", "write error"]
    assert isinstance(release(one, lease), ReleaseFailed)
    promised = cluster.block(1)
    assert promised == prepare_next(lease.own, lease.leader, one.host_id)
    one.member = replace(one.member, beside_others=lambda: True)
    assert release(one, lease) == Released()
    assert cluster.leader().is_free
    assert cluster.block(1) == promised


@pytest.mark.parametrize("num_hosts", [4, MANY_HOSTS])
@pytest.mark.parametrize("failed", ["promise", "leader"])
def test_a_vote_from_before_a_promise_is_adopted(num_hosts: int, failed: str) -> None:
    """The lease was free already when the promise was made, as a release was repeated (seed 1100094)."""
    cluster = Cluster(2, num_hosts=num_hosts)
    one, _ = cluster.join(1, 3)
    lease = held(exclusive(one))
    one.host.disk.script = ["write error"] if failed == "promise" else ["write", "read", "write stall"]
    assert isinstance(release(one, lease), ReleaseFailed)
    cluster.world.run(until=cluster.world.now + cluster.world.faults.stall_max_s)
    assert not one.host.disk.script
    assert cluster.leader().is_free
    below = Dblock(mbal=3, bal=3, inp=3, inp2=1, inp3=5, lver=2)
    cluster.put(G512.host_block_offset_bytes(3), HostBlock(dblock=below).sector(512))
    released = release(one, lease)
    assert isinstance(released, Released)
    assert released.promise is not None
    assert not released.promise.before_free
    before = len(cluster.world.writes)
    assert isinstance(exclusive(one, promise=released.promise), Busy)
    leader = cluster.leader()
    assert (leader.owner_id, leader.lver, leader.write_id) == (3, 2, 1)
    blocks = [
        HostBlock.decode(content) for _, host, at, content in cluster.world.writes[before:] if at != MIB
    ]
    # A look at all shows it before we vote: nothing for ourselves meanwhile.
    assert {block.dblock.inp for block in blocks if isinstance(block, HostBlock)} <= {0, 3}


def test_a_promise_is_no_obstacle_for_others_and_worth_nothing_after_them() -> None:
    cluster = Cluster(2)
    one, two = cluster.join(1, 2)
    promise = given_up(one, held(exclusive(one)))
    lease = held(exclusive(two))
    assert lease.own.dblock.mbal > promise.block.dblock.mbal
    # They see the owner's block at the first glance, and are not outbid.
    assert lease_writes(two) == 3
    assert isinstance(release(two, lease), Released)
    again = held(exclusive(one, promise=promise))
    assert again.lver == 3
    assert again.own.dblock.mbal > lease.own.dblock.mbal


@pytest.mark.parametrize("num_hosts", [4, 2000])
def test_who_has_never_had_it_is_not_outbid_by_a_promise(num_hosts: int) -> None:
    cluster = Cluster(2, num_hosts=num_hosts)
    one, four = cluster.join(1, 4)
    for _ in range(3):
        given_up(one, held(exclusive(one)))
    four.host.disk.reads.clear()
    held(exclusive(four))
    assert lease_writes(four) == 3
    looks = [at for at, length in four.host.disk.reads if at == MIB and length > SECTOR_4096]
    assert len(looks) == (2 if num_hosts == 2000 else 0)


@pytest.mark.parametrize(("num_hosts", "ballots"), [(4, 1), (MANY_HOSTS, 2)])
def test_a_promise_that_another_hosts_ballot_has_passed_decides_nothing(num_hosts: int, ballots: int) -> None:
    cluster = Cluster(2, num_hosts=num_hosts)
    one, _ = cluster.join(1, 2)
    promise = given_up(one, held(exclusive(one)))
    # Host 2 has accepted a value of its own for that very version, and stopped before its leader was written.
    ahead = Dblock(mbal=8002, bal=8002, inp=2, inp2=1, inp3=5, lver=2)
    cluster.put(G512.host_block_offset_bytes(2), HostBlock(dblock=ahead).sector(512))
    before = lease_writes(one)
    assert isinstance(exclusive(one, promise=promise), Busy)
    assert cluster.leader().owner_id == 2
    # Both phases and the leader; a glance does not show the other host, so the promise is lost first.
    assert lease_writes(one) - before == 3 + (ballots - 1)


def test_a_shared_hold_that_a_glance_did_not_show_is_respected() -> None:
    cluster = Cluster(2, num_hosts=MANY_HOSTS)
    one, three = cluster.join(1, 3)
    promise = given_up(one, held(exclusive(one)))
    hold = HostBlock(mode=ModeBlock.shared(three.member.generation))
    cluster.put(G512.host_block_offset_bytes(3), hold.sector(512))
    assert isinstance(exclusive(one, promise=promise), SharedBy)


def test_a_promise_goes_with_the_very_leader_that_was_freed() -> None:
    cluster = Cluster(2)
    (one,) = cluster.join(1)
    promise = given_up(one, held(exclusive(one)))
    cluster.put(0, replace(cluster.leader(), write_timestamp=1).sector())
    before = lease_writes(one)
    assert held(exclusive(one, promise=promise)).lver == 2
    assert lease_writes(one) - before == 3


def test_a_promise_is_for_one_version_and_one_ballot() -> None:
    cluster = Cluster(2)
    (one,) = cluster.join(1)
    promise = given_up(one, held(exclusive(one)))
    cluster.put(0, replace(cluster.leader(), lver=2).sector())
    before = lease_writes(one)
    lease = held(exclusive(one, promise=promise))
    assert (lease.lver, lease_writes(one) - before) == (3, 3)
    promise = given_up(one, lease)
    ahead = HostBlock(dblock=Dblock(mbal=20002, lver=promise.block.dblock.lver))
    cluster.world.on_write = lambda *_: cluster.put(G512.host_block_offset_bytes(2), ahead.sector(512))
    lease = held(exclusive(one, promise=promise))
    assert (lease.lver, lease.own.dblock.mbal) == (4, 22001)


def test_there_is_no_promise_where_numbers_end() -> None:
    cluster = Cluster(2)
    (one,) = cluster.join(1)
    lease = held(exclusive(one))
    greatest = MBAL_MAX - MBAL_MAX % 2000 + one.host_id
    last = replace(lease.own, dblock=replace(lease.own.dblock, mbal=greatest, bal=greatest))
    assert prepare_next(last, lease.leader, one.host_id) is None
    assert prepare_next(lease.own, replace(lease.leader, lver=LVER_MAX), one.host_id) is None
    assert isinstance(release(one, replace(lease, own=last)), Released)
    assert cluster.block(1).dblock == replace(last.dblock, flags=FLAG_RELEASED)


def test_a_promise_that_does_not_stand_as_it_was_left_is_not_used() -> None:
    cluster = Cluster(2)
    (one,) = cluster.join(1)
    promise = given_up(one, held(exclusive(one)))
    other = HostBlock(dblock=replace(promise.block.dblock, mbal=promise.block.dblock.mbal + 2000))
    cluster.put(G512.host_block_offset_bytes(1), other.sector(512))
    lease = held(exclusive(one, promise=promise))
    assert lease.own.dblock.mbal > other.dblock.mbal


@pytest.mark.parametrize("seed", range(10))
def test_a_dead_owners_lease_is_taken_only_after_its_dead_bound(seed: int) -> None:
    cluster = Cluster(seed)
    one, two = cluster.join(1, 2)
    held(exclusive(one))
    one.power_off()
    renewed = max(at for at, host, offset, _ in cluster.world.writes if host is one.host and offset == 0)
    # Right after our latest look saw a change, the owner counts as alive.
    outcome = exclusive(two, wait=True)
    while isinstance(outcome, Busy):
        cluster.world.run(until=cluster.world.now + 1)
        outcome = exclusive(two, wait=True)
    taken = held(outcome)
    assert taken.lver == 2
    assert cluster.world.now - renewed > TIMING.dead_s
    assert cluster.world.now - renewed < TIMING.takeover_s[1] + 3


def test_without_waiting_a_silent_owner_is_neither_alive_nor_dead() -> None:
    cluster = Cluster(3)
    one, two = cluster.join(1, 2)
    held(exclusive(one))
    one.power_off()
    cluster.world.run(until=cluster.world.now + TIMING.renewal_s + 1)
    assert isinstance(exclusive(two), Busy)
    cluster.world.run(until=cluster.world.now + TIMING.fail_s)
    outcome = exclusive(two)
    assert isinstance(outcome, HostUnknown)
    assert 0 < outcome.dead_in_s < TIMING.dead_s


def test_an_owner_that_was_never_seen_is_not_taken_for_dead_at_first_sight() -> None:
    cluster = Cluster(4)
    (one,) = cluster.join(1)
    held(exclusive(one))
    one.power_off()
    cluster.world.run(until=cluster.world.now + 1000)
    (two,) = cluster.join(2)
    begun = cluster.world.now
    assert isinstance(exclusive(two), HostUnknown)
    held(exclusive(two, wait=True))
    assert cluster.world.now - begun > TIMING.dead_s - 4 * TIMING.renewal_s


def test_an_own_earlier_term_and_a_returned_owner_are_no_obstacle() -> None:
    cluster = Cluster(5)
    one, two = cluster.join(1, 2)
    held(exclusive(one))
    one.power_off()
    (again,) = cluster.join(1)
    assert again.member.generation == 2
    assert held(exclusive(again)).leader.owner_generation == 2
    again.power_off()
    (third,) = cluster.join(1)
    assert third.member.generation == 3
    assert held(exclusive(two)).lver == 3


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_lease_of_a_host_that_rejoined_at_once_is_taken_only_after_the_dead_bound_of_its_older_term(
    mode: Mode,
) -> None:
    """sanlock of 3.9 and later, killed and started again: the older term's VMs run until its watchdog fires."""
    cluster = Cluster(5)
    one, two = cluster.join(1, 2)
    held(exclusive(one) if mode is Mode.EXCLUSIVE else shared(one))
    record = DeltaLease.decode(bytes(cluster.world.content[:512]))
    assert isinstance(record, DeltaLease)
    one.power_off()  # its daemon; nothing of it renews any more
    begun = cluster.world.now
    cluster.world.content[:512] = replace(record, generation=2, timestamp=record.timestamp + 1).sector()
    rejoined = 0
    while isinstance(outcome := exclusive(two), HostUnknown | SharedBy | Busy):
        assert cluster.world.now - begun < 2 * TIMING.dead_s
        rejoined += 1
        # The new term renews.
        cluster.world.content[:512] = replace(
            record, generation=2, timestamp=record.timestamp + 1 + rejoined
        ).sector()
        cluster.world.run(until=cluster.world.now + 0.5)
    held(outcome)
    assert cluster.world.now - begun > TIMING.dead_s


def test_who_waits_for_an_older_term_gives_up_when_its_own_lockspace_is_lost() -> None:
    """The looks that would prove that term over have ended with our own term: the wait would never end."""
    cluster = Cluster(5)
    one, two = cluster.join(1, 2)
    held(exclusive(one))
    one.daemon_restarts_as_sanlocks()
    cluster.world.run(until=cluster.world.now + 3 * TIMING.renewal_s)
    waiting = two.host.spawn(
        paxos_lease.acquire_exclusive(two.lease_area, two.member, two.host.clock, two.host.rng, wait=True)
    )
    two.expiry.step(two.host.clock.now(), Corrupted("lost"))
    cluster.world.run(until=cluster.world.now + 3)
    assert waiting.done
    assert isinstance(waiting.result, HostUnknown)


def test_a_higher_generation_of_our_own_id_is_a_stranger() -> None:
    cluster = Cluster(6)
    (one,) = cluster.join(1)
    lease = held(exclusive(one))
    cluster.put(0, replace(lease.leader, owner_generation=7).sector())
    assert isinstance(exclusive(one), HostUnknown | Busy)


@pytest.mark.parametrize(("owner", "asking"), [(1, 2), (1, 1), (3, 2)])
def test_a_term_newer_than_its_hosts_record_is_over_when_it_was_missed_for_the_dead_bound(
    owner: int, asking: int
) -> None:
    """The lockspace was made anew; the host renews an older term by now, is ourselves, or never came back."""
    cluster = Cluster(6)
    one, two = cluster.join(1, 2)
    node = one if asking == 1 else two
    lease = held(exclusive(one))
    cluster.put(0, replace(lease.leader, owner_id=owner, owner_generation=7, write_id=owner).sector())
    begun = cluster.world.now
    while isinstance(outcome := exclusive(node), HostUnknown):
        assert cluster.world.now - begun < 2 * TIMING.dead_s
        assert 0 <= outcome.dead_in_s <= TIMING.dead_s
        cluster.world.run(until=cluster.world.now + 0.5)
    assert held(outcome).lver == 2
    assert TIMING.dead_s < cluster.world.now - begun < TIMING.dead_s + 3


def test_who_waits_for_a_term_newer_than_its_hosts_record_gets_the_lease() -> None:
    cluster = Cluster(6)
    one, two = cluster.join(1, 2)
    lease = held(exclusive(one))
    cluster.put(0, replace(lease.leader, owner_generation=7).sector())
    begun = cluster.world.now
    assert held(exclusive(two, wait=True)).lver == 2
    assert TIMING.dead_s < cluster.world.now - begun < TIMING.dead_s + 4


def test_a_term_that_is_seen_again_has_to_be_missed_anew() -> None:
    cluster = Cluster(6)
    one, two = cluster.join(1, 2)
    lease = held(exclusive(one))
    cluster.put(0, replace(lease.leader, owner_id=3, owner_generation=7, write_id=3).sector())
    assert isinstance(exclusive(two), HostUnknown)
    cluster.world.run(until=cluster.world.now + TIMING.dead_s - 1)
    at = slice(2 * 512, 3 * 512)
    before = bytes(cluster.world.content[at])
    record = DeltaLease.decode(before)
    assert isinstance(record, DeltaLease)
    cluster.world.content[at] = replace(record, owner_id=3, generation=7, timestamp=99).sector()
    cluster.world.run(until=cluster.world.now + TIMING.renewal_s + 1)
    cluster.world.content[at] = before
    assert isinstance(exclusive(two), HostUnknown)  # before our next look
    cluster.world.run(until=cluster.world.now + TIMING.dead_s - 2)
    assert isinstance(exclusive(two), HostUnknown)
    cluster.world.run(until=cluster.world.now + TIMING.renewal_s + 3)
    held(exclusive(two))


def test_a_shared_hold_of_a_term_newer_than_its_hosts_record_is_respected_for_as_long() -> None:
    cluster = Cluster(6)
    (two,) = cluster.join(2)
    hold = HostBlock(mode=ModeBlock.shared(Generation(7)))
    cluster.put(G512.host_block_offset_bytes(3), hold.sector(512))
    begun = cluster.world.now
    while isinstance(outcome := exclusive(two), SharedBy):
        assert cluster.world.now - begun < 2 * TIMING.dead_s
        cluster.world.run(until=cluster.world.now + 0.5)
    held(outcome)
    assert TIMING.dead_s < cluster.world.now - begun < TIMING.dead_s + 3


def test_a_value_decided_for_another_host_is_written_for_that_host() -> None:
    """A host that stops between phase 2 and its leader write still gets the lease."""
    cluster = Cluster(7)
    _, two = cluster.join(1, 2)
    accepted = Dblock(mbal=1, bal=1, inp=1, inp2=1, inp3=77, lver=1)
    cluster.put(G512.host_block_offset_bytes(1), HostBlock(dblock=accepted).sector(512))
    assert isinstance(exclusive(two), Busy)
    leader = cluster.leader()
    assert (leader.owner_id, leader.timestamp, leader.write_id, leader.lver) == (1, 77, 2, 1)


def test_a_value_of_our_own_earlier_term_is_not_taken_for_a_win() -> None:
    cluster = Cluster(7)
    (one,) = cluster.join(1)
    accepted = Dblock(mbal=1, bal=1, inp=1, inp2=0, inp3=77, lver=1)
    cluster.put(G512.host_block_offset_bytes(1), HostBlock(dblock=accepted).sector(512))
    lease = held(exclusive(one))
    assert (lease.lver, lease.leader.owner_generation) == (2, 1)
    assert cluster.checker.decided[1] == (1, 0, 77)


def test_a_lease_committed_by_another_is_released_by_the_flag_alone() -> None:
    cluster = Cluster(8)
    one, two = cluster.join(1, 2)
    lease = held(exclusive(one))
    by_two = replace(lease.leader, write_id=2, write_timestamp=5)
    cluster.put(0, by_two.sector())
    assert isinstance(exclusive(two), Busy)
    assert release(one, replace(lease, leader=by_two)) == Released()
    assert cluster.leader() == by_two
    assert cluster.block(1).dblock == replace(lease.own.dblock, flags=FLAG_RELEASED)
    assert held(exclusive(two)).lver == 2


def test_the_released_flag_counts_only_for_its_version_or_a_newer_one() -> None:
    value = {"mbal": 9, "bal": 9, "inp": 1, "inp2": 1, "inp3": 5}
    assert gave_up(Dblock(**value, lver=3, flags=FLAG_RELEASED), 3)
    assert gave_up(Dblock(**value, lver=4, flags=FLAG_RELEASED), 3)
    assert not gave_up(Dblock(**value, lver=2, flags=FLAG_RELEASED), 3)
    assert not gave_up(Dblock(**value, lver=3), 3)
    assert gave_up(Dblock(flags=FLAG_RELEASED), 3)
    # Who races for a newer version has given this one up, whatever the race did to the flag.
    assert gave_up(Dblock(mbal=9, lver=4), 3)


def test_sharers_hold_together_and_exclude_an_exclusive_acquirer() -> None:
    cluster = Cluster(9)
    one, two, three = cluster.join(1, 2, 3)
    first, second = held(shared(one)), held(shared(two))
    assert cluster.leader().is_free
    assert cluster.block(1).mode == ModeBlock.shared(1)
    refused = exclusive(three)
    assert isinstance(refused, SharedBy)
    assert refused.hosts == {1: 1, 2: 1}
    assert cluster.leader().is_free
    assert isinstance(release(one, first), Released)
    assert isinstance(exclusive(three), SharedBy)
    assert isinstance(release(two, second), Released)
    held(exclusive(three))
    assert isinstance(shared(one), Busy)


def test_a_dead_sharers_hold_is_ignored_and_its_block_left_alone() -> None:
    cluster = Cluster(10)
    one, two = cluster.join(1, 2)
    held(shared(one))
    before = cluster.block(1)
    one.power_off()
    assert isinstance(exclusive(two), SharedBy)
    cluster.world.run(until=cluster.world.now + TIMING.dead_s + 5)
    held(exclusive(two))
    assert cluster.block(1) == before


def test_a_returned_sharers_old_hold_is_stale() -> None:
    cluster = Cluster(11)
    one, two = cluster.join(1, 2)
    held(shared(one))
    one.power_off()
    cluster.join(1)
    held(exclusive(two))


def test_a_host_that_shares_converts_instead_of_acquiring() -> None:
    cluster = Cluster(12)
    one, two = cluster.join(1, 2)
    lease = held(shared(one))
    assert isinstance(exclusive(one), AlreadyShared)
    assert isinstance(shared(one), AlreadyShared)
    raised = held(upgrade(one, lease))
    assert raised.mode is Mode.EXCLUSIVE
    assert not cluster.block(1).mode.is_shared
    assert isinstance(shared(two), Busy)
    lowered = downgrade(one, raised)
    assert isinstance(lowered, Lease)
    assert cluster.leader().is_free
    held(shared(two))


def test_a_refused_upgrade_keeps_the_shared_hold_and_takes_no_promise_back() -> None:
    cluster = Cluster(13)
    one, two = cluster.join(1, 2)
    first = held(shared(one))
    held(shared(two))
    assert isinstance(upgrade(one, first), SharedBy)
    moved_on = cluster.block(1)
    assert moved_on.mode == ModeBlock.shared(1)
    assert moved_on.dblock.is_released
    assert moved_on.dblock.mbal > first.own.dblock.mbal
    assert isinstance(release(one, first), Released)
    assert cluster.block(1).dblock == moved_on.dblock
    assert not cluster.block(1).mode.is_shared


@pytest.mark.parametrize("seed", range(30))
def test_two_sharers_that_upgrade_at_once_never_both_get_it(seed: int) -> None:
    cluster = Cluster(seed)
    one, two = cluster.join(1, 2)
    leases = held(shared(one)), held(shared(two))
    tasks = [
        node.host.spawn(
            paxos_lease.upgrade(node.lease_area, node.member, node.host.clock, node.host.rng, lease)
        )
        for node, lease in zip((one, two), leases, strict=True)
    ]
    cluster.world.run(*tasks)
    assert not any(isinstance(task.result, Lease) for task in tasks)
    assert isinstance(release(two, leases[1]), Released)
    held(upgrade(one, leases[0]))


@pytest.mark.parametrize("fate", ["error", "stall"])
@pytest.mark.parametrize("at", range(1, 4))
def test_a_failed_write_leaves_a_doubt_that_can_be_withdrawn(fate: str, at: int) -> None:
    """Write 1 is phase 1, write 2 phase 2, write 3 the leader; only from phase 2 on is there a doubt."""
    cluster = Cluster(14)
    one, two = cluster.join(1, 2)
    cluster.world.run(until=cluster.world.now + 0.5)
    steps = ["read", "write"] * 3
    one.host.disk.script = [*steps[: 2 * at - 1], f"write {fate}"]
    one.host.kill()
    outcome = exclusive(one)
    if at == 1:
        assert isinstance(outcome, IoFailed)
    else:
        assert isinstance(outcome, InDoubt)
        assert isinstance(outcome.refusal, IoFailed)
        assert outcome.refusal.in_flight == (fate == "stall")
        cluster.world.run(until=cluster.world.now + 0.1)
        one.expiry._renewed_at = one.host.clock.now()  # Its renewals were stopped above.
        withdrawn = one.host.spawn(
            paxos_release.withdraw(one.lease_area, one.member, one.host.clock, outcome)
        )
        cluster.world.run(until=cluster.world.now + 7)
        one.expiry._renewed_at = one.host.clock.now()
        while not withdrawn.done:
            cluster.world.run(until=cluster.world.now + 1)
            one.expiry._renewed_at = one.host.clock.now()
        assert isinstance(withdrawn.result, Withdrawn)
        assert cluster.block(1).dblock.is_released
    taken = exclusive(two)
    assert isinstance(taken, Lease), taken


def test_a_lease_that_fails_during_the_ballot_is_not_committed() -> None:
    cluster = Cluster(15)
    (one,) = cluster.join(1)
    one.host.kill()
    before = cluster.leader()
    seen = []

    def fail_after_phase_2(_host: object, _offset: int, content: bytes) -> None:
        seen.append(content)
        one.running = len(seen) < 2

    cluster.world.on_write = fail_after_phase_2
    outcome = exclusive(one)
    assert isinstance(outcome, InDoubt)
    assert isinstance(outcome.refusal, LockspaceLost)
    assert cluster.leader() == before


def test_no_race_begins_while_a_write_to_the_lease_is_in_flight() -> None:
    cluster = Cluster(15)
    (one,) = cluster.join(1)
    lease = held(shared(one))
    cluster.world.faults = replace(cluster.world.faults, stall_max_s=6)
    one.host.disk.script = ["read", "write stall"]
    one.host.kill()
    failed = upgrade(one, lease)
    assert isinstance(failed, IoFailed)
    assert failed.in_flight
    reads = len(one.host.disk.reads)
    assert exclusive(one) == IoFailed(errno.EBUSY, in_flight=True)
    assert release(one, lease) == ReleaseFailed(IoFailed(errno.EBUSY, in_flight=True))
    assert len(one.host.disk.reads) == reads


def test_nothing_is_written_once_our_own_lease_has_failed() -> None:
    cluster = Cluster(15)
    (one,) = cluster.join(1)
    lease = held(exclusive(one))
    one.running = False
    written = len(cluster.world.writes)
    one.host.kill()
    assert isinstance(exclusive(one), LockspaceLost)
    assert isinstance(release(one, lease), LockspaceLost)
    failed = downgrade(one, lease)
    assert isinstance(failed, DowngradeFailed)
    assert failed.lease.mode is Mode.SHARED
    assert len(cluster.world.writes) == written


def test_a_leader_two_versions_behind_is_brought_forward_by_the_ballot_of_the_newest_version() -> None:
    cluster = Cluster(16)
    one, two = cluster.join(1, 2)
    old = cluster.leader()
    for _ in range(2):
        lease = held(exclusive(one))
        release(one, lease)
    cluster.put(0, old.sector())
    lease = held(exclusive(two))
    assert lease.lver == 3
    assert cluster.checker.decided[2][:2] == (1, 1)


def test_an_owner_whose_leader_fell_behind_keeps_the_lease() -> None:
    cluster = Cluster(17)
    one, two = cluster.join(1, 2)
    old = cluster.leader()
    release(one, held(exclusive(one)))
    mine = held(exclusive(one))
    cluster.put(0, old.sector())
    refused = exclusive(two)
    assert isinstance(refused, Busy)
    assert (refused.leader.owner_id, refused.leader.lver) == (1, mine.lver)
    assert isinstance(release(one, mine), Released)
    assert held(exclusive(two)).lver == mine.lver + 1


def test_an_old_leader_written_late_over_a_newer_one_does_not_free_the_lease() -> None:
    cluster = Cluster(17)
    one, two = cluster.join(1, 2)
    first = held(exclusive(one))
    release(one, first)
    free_of_one = cluster.leader()
    second = held(exclusive(two))
    cluster.put(0, free_of_one.sector())
    refused = exclusive(one)
    assert isinstance(refused, Busy)
    assert refused.leader.owner_id == 2
    assert cluster.leader().lver == second.lver


def test_an_unreadable_block_refuses_the_lease_and_tells_which_rule_it_breaks() -> None:
    cluster = Cluster(18)
    (one,) = cluster.join(1)
    cluster.put(G512.host_block_offset_bytes(3), b"\x01" + bytes(511))
    outcome = exclusive(one)
    assert isinstance(outcome, Malformed)
    assert outcome.reason is Reason.CHECKSUM


def test_names_and_places_are_verified_before_anything_is_written() -> None:
    cluster = Cluster(19)
    (one,) = cluster.join(1)
    written = len(cluster.world.writes)
    one.host.kill()
    elsewhere = replace(one.lease_area, resource_name="other")
    outcome = run(one, paxos_lease.acquire_exclusive(elsewhere, one.member, one.host.clock, one.host.rng))
    assert isinstance(outcome, Malformed)
    assert outcome.reason is Reason.RESOURCE_NAME
    assert isinstance(exclusive(one, wanted_lver=3), WrongVersion)
    assert len(cluster.world.writes) == written


def test_only_the_very_leader_that_made_the_lease_ours_is_freed() -> None:
    cluster = Cluster(20)
    (one,) = cluster.join(1)
    lease = held(exclusive(one))
    for other in (replace(lease.leader, lver=9), replace(lease.leader, timestamp=1, write_timestamp=1)):
        cluster.put(0, other.sector())
        assert release(one, lease) == NotHeld(other)
        assert cluster.leader() == other


def test_a_release_that_failed_is_repeated_and_then_succeeds() -> None:
    cluster = Cluster(20)
    one, two = cluster.join(1, 2)
    lease = held(exclusive(one))
    one.host.disk.cut = True
    assert isinstance(release(one, lease), ReleaseFailed)
    assert isinstance(exclusive(two), Busy)
    one.host.disk.cut = False
    assert isinstance(release(one, lease), Released)
    held(exclusive(two))


def test_a_shared_hold_that_an_upgrade_could_not_take_away_goes_with_the_release() -> None:
    """Seed 51576: the release had freed the leader and was done, and the hold stood for as long as its host lived."""
    cluster = Cluster(20)
    one, two = cluster.join(1, 2)
    lease = held(shared(one))
    one.host.kill()  # renews no more, so the writes are the lease's
    one.host.disk.script = ["write", "write", "write", "write error"]
    lease = held(upgrade(one, lease))
    assert cluster.block(1).mode.is_shared
    one.host.disk.script = ["write error"]
    assert isinstance(release(one, lease), ReleaseFailed)
    assert cluster.leader().is_free
    assert isinstance(exclusive(two), SharedBy)
    assert isinstance(release(one, lease), Released)
    held(exclusive(two))


def test_a_failed_downgrade_is_worth_no_more_than_shared_and_can_be_repeated_or_released() -> None:
    cluster = Cluster(21)
    one, two = cluster.join(1, 2)
    lease = held(exclusive(one))
    one.host.disk.cut = True
    failed = downgrade(one, lease)
    assert isinstance(failed, DowngradeFailed)
    assert failed.lease.mode is Mode.SHARED
    one.host.disk.cut = False
    again = downgrade(one, failed.lease)
    assert isinstance(again, Lease)
    assert not again.owns_leader
    assert isinstance(release(one, failed.lease), Released)
    held(exclusive(two))


def test_initialising_refuses_a_lease_that_exists() -> None:
    cluster = Cluster(22)
    (one,) = cluster.join(1)
    lease = held(exclusive(one))
    assert isinstance(run(one, init(one.lease_area, 4)), LeaseAlreadyThere)
    assert cluster.leader() == lease.leader
    unaligned = LeaseArea(one.host.disk, 512, G512, "LS1", "disk")
    assert run(one, init(unaligned)) == IoFailed(errno.EINVAL)

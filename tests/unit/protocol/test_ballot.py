"""One ballot at a time: what ends it, what it adopts, and what it leaves in our block."""

from dataclasses import replace

import pytest
from tests.unit.protocol.cluster import G512, Cluster, Node

from holdfast.ondisk.host_block import FLAG_RELEASED, NO_MODE, Dblock, HostBlock, ModeBlock, Value
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.ballot import (
    BallotFailed,
    BallotOutcome,
    Decided,
    Displaced,
    LeaderMoved,
    NoStanding,
    Outbid,
    VersionPassed,
    ballot,
)
from holdfast.protocol.lease_area import Snapshot
from holdfast.protocol.types import HostId

MINE = Value(1, 1, 4711)
MBAL = 4001
NEVER = HostBlock()


def joined() -> tuple[Cluster, Node]:
    cluster = Cluster(1)
    (node,) = cluster.join(1)
    node.host.kill()
    return cluster, node


def put_block(cluster: Cluster, host_id: int, block: HostBlock) -> None:
    cluster.put(G512.host_block_offset_bytes(host_id), block.sector(512))


def accepted(bal: int, owner: int, lver: int = 1) -> Dblock:
    return Dblock(mbal=bal, bal=bal, inp=owner, inp2=1, inp3=77, lver=lver)


def voted(
    cluster: Cluster,
    node: Node,
    own: HostBlock = NEVER,
    mode: ModeBlock = NO_MODE,
    promised: Snapshot | None = None,
) -> BallotOutcome:
    leader = cluster.leader()
    return node.host.run(
        ballot(
            node.lease_area,
            node.member,
            leader=leader,
            lver=leader.lver + 1,
            mbal=MBAL,
            proposal=MINE,
            own=own,
            mode=mode,
            promised=promised,
        )
    )


def test_alone_it_decides_its_own_proposal() -> None:
    cluster, node = joined()
    outcome = voted(cluster, node)
    assert isinstance(outcome, Decided)
    assert outcome.value == MINE
    assert outcome.own == cluster.block(1)
    assert cluster.block(1).dblock == Dblock(
        mbal=MBAL, bal=MBAL, inp=1, inp2=1, inp3=4711, lver=cluster.leader().lver + 1
    )


def test_it_adopts_the_value_of_the_greatest_ballot_of_this_version_only() -> None:
    cluster, node = joined()
    put_block(cluster, 2, HostBlock(dblock=accepted(2002, 2)))
    put_block(cluster, 3, HostBlock(dblock=accepted(2003, 3)))
    put_block(cluster, 4, HostBlock(dblock=accepted(3999, 4, lver=0)))
    outcome = voted(cluster, node)
    assert isinstance(outcome, Decided)
    assert outcome.value == Value(3, 1, 77)


def test_it_keeps_and_proposes_again_what_it_accepted_before() -> None:
    cluster, node = joined()
    own = HostBlock(dblock=accepted(1, 2))
    outcome = voted(cluster, node, own)
    assert isinstance(outcome, Decided)
    assert outcome.value == Value(2, 1, 77)
    first = next(content for _, host, _, content in cluster.world.writes[-2:] if host is node.host)
    promise = HostBlock.decode(first)
    assert isinstance(promise, HostBlock)
    assert (promise.dblock.mbal, promise.dblock.bal, promise.dblock.inp) == (MBAL, 1, 2)


def test_a_value_that_was_given_up_keeps_its_flag_and_an_empty_promise_does_not() -> None:
    cluster, node = joined()
    released = replace(accepted(1, 1), flags=FLAG_RELEASED)
    outcome = voted(cluster, node, HostBlock(dblock=released))
    assert isinstance(outcome, Decided)
    assert outcome.own.dblock.is_released
    cluster, node = joined()
    outcome = voted(cluster, node, HostBlock(dblock=Dblock(mbal=1, lver=1, flags=FLAG_RELEASED)))
    assert isinstance(outcome, Decided)
    assert not outcome.own.dblock.is_released


@pytest.mark.parametrize("mbal", [MBAL, MBAL + 1])
def test_a_ballot_of_this_version_with_no_smaller_number_ends_it(mbal: int) -> None:
    cluster, node = joined()
    put_block(cluster, 2, HostBlock(dblock=Dblock(mbal=mbal, lver=1)))
    outcome = voted(cluster, node)
    assert outcome == Outbid(mbal, HostId(2), cluster.block(1))
    assert cluster.block(1).dblock.bal == 0


def test_a_block_of_a_newer_version_ends_it_whatever_its_number() -> None:
    cluster, node = joined()
    put_block(cluster, 3, HostBlock(dblock=Dblock(mbal=3, lver=2)))
    outcome = voted(cluster, node)
    assert isinstance(outcome, VersionPassed)
    assert (outcome.lver, outcome.by) == (2, 3)


def test_an_older_version_counts_for_nothing_however_great_its_number() -> None:
    cluster, node = joined()
    put_block(cluster, 3, HostBlock(dblock=Dblock(mbal=10**9, lver=0)))
    assert isinstance(voted(cluster, node), Decided)


def test_a_leader_that_has_moved_on_ends_it() -> None:
    cluster, node = joined()
    before = cluster.leader()
    cluster.put(0, replace(before, lver=1).sector())
    outcome = node.host.run(
        ballot(
            node.lease_area,
            node.member,
            leader=before,
            lver=before.lver + 1,
            mbal=MBAL,
            proposal=MINE,
            own=NEVER,
            mode=NO_MODE,
        )
    )
    assert isinstance(outcome, LeaderMoved)
    assert cluster.block(1).dblock.bal == 0


def test_an_unreadable_block_ends_it() -> None:
    cluster, node = joined()
    cluster.put(G512.host_block_offset_bytes(4), b"\x01" + bytes(100))
    outcome = voted(cluster, node)
    assert isinstance(outcome, BallotFailed)
    assert isinstance(outcome.why, Malformed)


def test_our_own_block_must_read_back_as_written() -> None:
    cluster, node = joined()
    watch = cluster.world.on_write
    assert watch is not None

    def clear(host: object, offset: int, content: bytes) -> None:
        put_block(cluster, 1, NEVER)

    cluster.world.on_write = clear
    assert isinstance(voted(cluster, node), Displaced)


def test_without_standing_nothing_is_written() -> None:
    cluster, node = joined()
    node.running = False
    assert isinstance(voted(cluster, node), NoStanding)
    assert cluster.block(1) == NEVER


def test_a_shared_hold_is_carried_by_both_writes_and_others_are_told() -> None:
    cluster, node = joined()
    put_block(cluster, 2, HostBlock(mode=ModeBlock.shared(8)))
    outcome = voted(cluster, node, mode=ModeBlock.shared(1))
    assert isinstance(outcome, Decided)
    assert outcome.sharers == {2: 8}
    for _, _, _, content in cluster.world.writes[-2:]:
        block = HostBlock.decode(content)
        assert isinstance(block, HostBlock)
        assert block.mode == ModeBlock.shared(1)

"""A host id that was found free because its lockspace was restored or made again: who had it may still run (ADR 0184)."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from tests.unit.protocol.cluster import TIMING, Cluster
from tests.unit.protocol.test_paxos_lease import exclusive, held, shared

from holdfast.ondisk import areas
from holdfast.ondisk.delta import FLAG_NO_TIMEOUT, VERSION, VERSION_4
from holdfast.ondisk.geometry import GEOMETRIES, MIB
from holdfast.protocol import delta_lease as delta
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.takeover import FormerUser
from holdfast.supervision.host_identity import Incarnation, decode_term, encode_term

G512 = GEOMETRIES[0]


class Restored:
    """Host 1 has the lease; the lockspace is made again under it, with a later date, and another host claims host id 1."""

    def __init__(self, *, mode: str = "exclusive", flags: int = 0) -> None:
        self.cluster = Cluster(3)
        (former,) = self.cluster.join(1)
        self.lease = held(exclusive(former) if mode == "exclusive" else shared(former))
        self.former_generation = former.member.generation
        former.host.kill()  # its renewals would find the other record, and its host would be reset
        version = VERSION_4 if flags else VERSION
        area, first = areas.lockspace_area(
            G512, "LS1", 1, generation=self.former_generation + 10, version=version, flags=flags
        )
        self.cluster.world.content[:MIB] = (first + area[len(first) :]).ljust(MIB, b"\0")
        (self.successor,) = self.cluster.join(1)
        assert self.successor.member.generation > self.former_generation

    def proven(self, generation: int) -> None:
        """As if the record that was claimed had proven so much over."""
        self.successor.member = replace(self.successor.member, ended_generation=generation)


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
@pytest.mark.parametrize("wanted", [exclusive, shared])
def test_lease_of_an_older_generation_is_not_taken_with_the_host_id(mode: str, wanted) -> None:  # type: ignore[no-untyped-def]
    """Red before: the id's new host took the lease at once, or wrote over the shared hold, while the VM ran."""
    scene = Restored(mode=mode)
    before = scene.cluster.block(1), scene.cluster.leader()
    refused = wanted(scene.successor)
    assert isinstance(refused, FormerUser), refused
    assert refused.generation == scene.former_generation
    assert 0 < refused.dead_in_s <= TIMING.dead_s
    assert (scene.cluster.block(1), scene.cluster.leader()) == before


def test_generation_that_was_proven_over_at_the_claim_is_taken_over_at_once() -> None:
    scene = Restored()
    scene.proven(scene.former_generation)
    assert isinstance(exclusive(scene.successor), Lease)


def test_record_that_went_back_proves_only_the_generations_up_to_it() -> None:
    scene = Restored()
    scene.proven(scene.former_generation - 1)
    assert isinstance(exclusive(scene.successor), FormerUser)


def test_where_leases_never_expire_no_time_frees_them() -> None:
    scene = Restored(flags=FLAG_NO_TIMEOUT)
    refused = exclusive(scene.successor)
    assert isinstance(refused, FormerUser)
    assert refused.dead_in_s == math.inf
    assert "never expire" in str(refused)


def test_record_that_was_never_used_proves_nothing() -> None:
    (node,) = Cluster(1).join(1)
    assert node.held.generation == 1
    assert node.held.ended_generation == 0


def test_record_that_was_given_back_proves_its_generations_over() -> None:
    cluster = Cluster(1)
    (first,) = cluster.join(1)
    first.host.kill()
    renewed = first.host.run(
        delta.renew(first.lockspace, first.host.clock, replace(first.held, certain=False))
    )
    assert isinstance(renewed, delta.Renewed)
    released = first.host.run(delta.release(first.lockspace, first.host.clock, renewed.held))
    assert isinstance(released, delta.Released)
    (second,) = cluster.join(1)
    assert (second.held.generation, second.held.ended_generation) == (2, 1)


def test_proof_is_kept_by_renewals() -> None:
    cluster = Cluster(1)
    (node,) = cluster.join(1)
    node.host.kill()
    proven = replace(node.held, ended_generation=7, certain=False)
    renewed = node.host.run(delta.renew(node.lockspace, node.host.clock, proven))
    assert isinstance(renewed, delta.Renewed), renewed
    assert renewed.held.ended_generation == 7


def test_incarnation_that_is_resumed_keeps_what_its_claim_proved() -> None:
    cluster = Cluster(1)
    (node,) = cluster.join(1)
    node.host.kill()
    claim = replace(node.held.claim, ended_generation=7)
    resumed = node.host.run(delta.resume(node.lockspace, node.host.clock, claim, node.held.generation))
    assert isinstance(resumed, delta.Held), resumed
    assert resumed.ended_generation == 7


INCARNATION = Incarnation(
    lockspace="LS1",
    host_id=1,
    generation=9,
    host_name="alpha.1",
    boot="b",
    machine="m",
    io_timeout_s=1,
    fire_timeout_s=60,
    joined_at=4.0,
    ended_generation=8,
)


def test_incarnation_remembers_what_its_claim_proved() -> None:
    assert decode_term(encode_term(INCARNATION).encode()) == INCARNATION


def test_damaged_proof_counts_as_none() -> None:
    damaged = encode_term(INCARNATION).replace('"ended_generation":8', '"ended_generation":9').encode()
    assert decode_term(damaged) == msgspec.structs.replace(INCARNATION, ended_generation=0)


def test_incarnation_of_an_older_daemon_is_read_and_proves_nothing() -> None:
    older = encode_term(INCARNATION).split(',"ended_generation"')[0] + "}"
    assert decode_term(older.encode()) == msgspec.structs.replace(INCARNATION, ended_generation=0)

"""Requests: written only when they can mean something, obeyed only when they still do."""

from typing import Any

import pytest
from tests.unit.protocol.cluster import Cluster, Node
from tests.unit.protocol.test_paxos_lease import downgrade, exclusive, held, release, run

from holdfast.ondisk.request import Request
from holdfast.protocol import paxos_request
from holdfast.protocol.paxos_release import Mode
from holdfast.protocol.paxos_request import (
    Cleared,
    Force,
    NewerRequested,
    NobodyHolds,
    NotNewer,
    Requested,
    asked_of_holder,
)


def ask(node: Node, force: Force = Force.GRACEFUL, lver: int | None = None) -> Any:
    return run(node, paxos_request.request(node.lease_area, node.member, force, lver))


def on_disk(node: Node) -> Request:
    found = run(node, node.lease_area.read_request(1))
    assert isinstance(found, Request)
    return found


def test_a_free_lease_needs_no_request() -> None:
    (one,) = Cluster(1).join(1)
    assert ask(one) == NobodyHolds()
    assert on_disk(one) == Request()


def test_a_request_names_the_next_version_and_whom_to_notify() -> None:
    one, two, three = Cluster(2).join(1, 2, 3)
    lease = held(exclusive(one))
    assert ask(two) == Requested(2, one.host_id)
    assert asked_of_holder(on_disk(one), lease) is Force.GRACEFUL
    assert ask(three, Force.FORCE) == Requested(2, one.host_id)
    assert asked_of_holder(on_disk(one), lease) is Force.FORCE
    assert ask(two, lver=1) == NotNewer(1)
    assert ask(two, lver=9) == Requested(9, one.host_id)
    assert ask(three) == NewerRequested(9)
    assert run(two, paxos_request.clear(two.lease_area, two.member)) == Cleared()
    assert asked_of_holder(on_disk(one), lease) is None


def test_a_stale_request_is_not_obeyed() -> None:
    one, two = Cluster(3).join(1, 2)
    lease = held(exclusive(one))
    ask(two)
    release(one, lease)
    newer = held(exclusive(one))
    assert on_disk(one).lver == newer.lver
    assert asked_of_holder(on_disk(one), newer) is None


def test_a_sharer_does_not_obey_requests() -> None:
    one, _ = Cluster(4).join(1, 2)
    lowered = downgrade(one, held(exclusive(one)))
    lease = held(lowered)
    assert lease.mode is Mode.SHARED
    assert asked_of_holder(Request(lver=99, force_mode=1), lease) is None


@pytest.mark.parametrize("force_mode", [0, 3, 2**32 - 1])
def test_an_unknown_force_mode_asks_for_nothing(force_mode: int) -> None:
    (one,) = Cluster(5).join(1)
    assert asked_of_holder(Request(lver=99, force_mode=force_mode), held(exclusive(one))) is None

"""A name means one host, or none is touched."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import Refused
from holdfast.lease_admin.host_meant import Candidate, meant
from holdfast.ondisk.host_record import HostRecord
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.types import Generation, HostId
from holdfast.supervision.host_names import NODE_BYTES_MAX, fresh_name

TOKEN = "0123456789ab"
ONE, TWO = (f"prod-eu-central-1-hypervisor-compute-node-00{n}" for n in (1, 2))


def host(
    host_id: int,
    node: str,
    *,
    space: str = "A",
    state: HostState = HostState.LIVE,
    name: str = "",
    boot: str = "",
) -> Candidate:
    """`boot`: it says what it is; `name`: as its record has it."""
    name = name or fresh_name(node, TOKEN)
    view = HostView(host_id=HostId(host_id), state=state, name=name, generation=Generation(1))
    said = HostRecord(
        lockspace=space,
        host_id=host_id,
        generation=1,
        host_name=name,
        node=node,
        version="1",
        boot=boot,
        io_timeout_s=10,
        fire_timeout_s=60,
    )
    return Candidate(space, view, said if boot else None)


def ids(name: str, *hosts: Candidate) -> list[tuple[str, int]]:
    return [(each.lockspace, each.view.host_id) for each in meant(name, hosts)]


@pytest.mark.parametrize("boot", ["", "boot-1"])
def test_long_names_that_begin_alike_each_mean_one_host(boot: str) -> None:
    hosts = host(1, ONE, boot=boot), host(2, TWO, boot=boot and "boot-2")
    assert ids(ONE, *hosts) == [("A", 1)]
    assert ids(TWO, *hosts) == [("A", 2)]
    assert ids(ONE[:NODE_BYTES_MAX], *hosts) == []
    assert ids("2", *hosts) == ids(fresh_name(TWO, TOKEN), *hosts) == [("A", 2)]


@pytest.mark.parametrize("state", [HostState.LIVE, HostState.FAIL, HostState.DEAD, HostState.UNKNOWN])
def test_name_that_two_hosts_have_is_refused_with_both_and_a_host_id_is_not(state: HostState) -> None:
    hosts = host(1, "localhost", boot="boot-1"), host(7, "localhost", boot="boot-2", state=state)
    with pytest.raises(Refused) as refused:
        meant("localhost", hosts)
    assert "host_id 1 of lockspace A (localhost, LIVE)" in str(refused.value)
    assert f"host_id 7 of lockspace A (localhost, {state.name})" in str(refused.value)
    assert "say the host id" in str(refused.value)
    assert ids("7", *hosts) == [("A", 7)]


def test_record_that_was_given_back_makes_no_name_ambiguous() -> None:
    assert ids("alpha", host(1, "alpha", state=HostState.FREE), host(4, "alpha")) == [("A", 1), ("A", 4)]


def test_name_that_an_earlier_version_cut_is_refused_unless_it_is_said_as_it_stands_there() -> None:
    cut = host(1, ONE, name=f"{ONE[:NODE_BYTES_MAX]}.{TOKEN}")
    with pytest.raises(Refused, match="an earlier holdfast has cut the name of host_id 1"):
        meant(ONE, [cut])
    assert ids(ONE[:NODE_BYTES_MAX], cut) == [("A", 1)]
    assert ids("1", cut) == [("A", 1)]
    assert ids(TWO, cut, host(2, TWO)) == [("A", 2)], "one that is certain"


def test_host_that_was_renamed_is_found_by_either_name() -> None:
    renamed = host(1, "omega", name=f"alpha.{TOKEN}", boot="boot-1")
    assert ids("omega", renamed) == ids("alpha", renamed) == [("A", 1)]


def test_one_host_is_meant_in_each_lockspace_and_two_are_not() -> None:
    both = host(1, "alpha", boot="boot-1"), host(5, "alpha", space="B", boot="boot-1")
    assert ids("alpha", *both) == [("A", 1), ("B", 5)]
    assert ids("alpha", both[0], host(5, "alpha", space="B")) == [("A", 1), ("B", 5)]
    with pytest.raises(Refused, match="say which lockspace is meant"):
        meant("alpha", [both[0], host(5, "alpha", space="B", boot="boot-2")])
    with pytest.raises(Refused, match="say which lockspace is meant"):
        meant("1", [both[0], host(1, "beta", space="B")])


def test_number_that_is_a_host_id_here_and_a_name_there_is_refused() -> None:
    with pytest.raises(Refused, match="say the host id of the one"):
        meant("7", [host(7, "alpha"), host(2, "7")])


def test_host_with_sanlock_is_meant_by_its_whole_name_or_its_id() -> None:
    sanlock: dict[str, Any] = {"name": "3f1c-uuid.alpha"}
    assert ids("3f1c-uuid.alpha", host(1, "", **sanlock), host(9, "", space="B", **sanlock)) == [
        ("A", 1),
        ("B", 9),
    ]
    assert ids("alpha", host(1, "", **sanlock)) == []

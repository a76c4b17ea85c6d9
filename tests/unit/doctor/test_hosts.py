"""What `holdfast doctor` finds about the hosts of a lockspace."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from holdfast.cli.doctor.hosts import hosts
from holdfast.control.api import HostInfo, LeaseSpaceInfo

TOKEN = "0123456789ab"


def host(
    host_id: int, node: str, *, fire_timeout_s: int = 60, state: str = "LIVE", name: str = ""
) -> HostInfo:
    return HostInfo(
        host_id=host_id,
        name=name or f"{node}.{TOKEN}",
        state=state,
        generation=1,
        io_timeout_s=10,
        unchanged_s=1.0,
        dead_in_s=None,
        note="",
        node=node if fire_timeout_s else "",
        version="0.1.0" if fire_timeout_s else "",
        fire_timeout_s=fire_timeout_s,
    )


def space(*others: HostInfo, fire_timeout_s: int = 60, misfits: str = "") -> LeaseSpaceInfo:
    return LeaseSpaceInfo(
        name="vms",
        path="/srv/vms",
        state="joined",
        reason="",
        seconds_left=None,
        host_id=1,
        host_name=f"alpha.{TOKEN}",
        generation=1,
        renewed_s_ago=1.0,
        fails_in_s=79.0,
        fenced=True,
        backends=["san"],
        leases=0,
        hosts=[host(1, "alpha", fire_timeout_s=fire_timeout_s), *others],
        fire_timeout_s=fire_timeout_s,
        misfits=misfits,
    )


def found(space: LeaseSpaceInfo) -> list[tuple[str, str]]:
    return [(each.severity, f"{each.facts}; {each.fix}") for each in hosts(SimpleNamespace(spaces=[space]))]  # type: ignore[arg-type]


def test_hosts_that_agree_and_have_names_of_their_own_are_no_finding() -> None:
    assert found(space(host(2, "beta"))) == []
    assert list(hosts(SimpleNamespace(spaces=None))) == []  # type: ignore[arg-type]


def test_host_whose_fire_timeout_does_not_fit_is_a_problem() -> None:
    ((level, text),) = found(
        space(host(2, "beta", fire_timeout_s=10), misfits="watchdogs differ in their fire timeout")
    )
    assert level == "problem"
    assert "vms: watchdogs differ" in text
    assert "fire_timeout_s" in text


def test_holdfast_that_says_nothing_is_a_note_and_one_that_is_gone_is_not() -> None:
    silent = host(2, "beta", fire_timeout_s=0)
    ((level, text),) = found(space(silent, fire_timeout_s=10))
    assert level == "note"
    assert "host beta.0123456789ab (host_id 2) can't tell this host their fire timeout" in text
    assert "counts its own 10 s" in text
    assert found(space(silent, fire_timeout_s=60)) == []
    for state in ("FREE", "DEAD"):
        assert found(space(replace(silent, state=state), fire_timeout_s=10)) == []


@pytest.mark.parametrize("fire_timeout_s", [60, 0])
def test_two_hosts_of_one_name_are_a_note_with_their_ids(fire_timeout_s: int) -> None:
    ((level, text),) = found(space(host(7, "alpha", fire_timeout_s=fire_timeout_s)))
    assert level == "note"
    assert "2 hosts are called alpha (host_id 1, 7)" in text
    assert found(space(host(7, "alpha", fire_timeout_s=fire_timeout_s, state="FREE"))) == []

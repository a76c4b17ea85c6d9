"""Which id a host claims, under which name, and when it may be quick about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.protocol.simulated import Host, World
from tests.unit.supervision.rig import record_of, world_with_lockspaces

from holdfast.daemon.system_ports import machine_of
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX, PaddedName
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId
from holdfast.supervision.host_identity import HostIdChooser, HostIdentity, Incarnation, JoinPlan, decode_term
from holdfast.supervision.host_names import fresh_name
from holdfast.supervision.join_errors import NotJoined
from holdfast.system.host.process import is_proven_hardware

TIMING = Timing(10, 60)
ME = HostIdentity("alpha", "boot-2", "machine-1")
TOKEN, OLD_NAME = "0123456789ab", "alpha.ba9876543210"
TERM = Incarnation(
    lockspace="A",
    host_id=3,
    generation=7,
    host_name=OLD_NAME,
    boot="boot-1",
    machine="machine-1",
    io_timeout_s=10,
    fire_timeout_s=60,
)


def chooser(
    host_id: int | None = None, identity: HostIdentity = ME, hosts_max: int | None = None
) -> HostIdChooser:
    return HostIdChooser(
        host_id=HostId(host_id) if host_id else None,
        hosts_max=hosts_max,
        timing=TIMING,
        identity=identity,
        token=TOKEN,
        on_wait=lambda _: None,
    )


def put(world: World, host_id: int, name: str, generation: int = 1, timestamp: int = 5) -> None:
    record = replace(
        record_of(world, host_id),
        owner_id=host_id,
        generation=generation,
        host_name=PaddedName.of(name, HOST_NAME_BYTES_MAX),
        timestamp=timestamp,
    )
    at = DEFAULT.delta_offset_bytes(host_id)
    world.content[at : at + DeltaLease.BYTES] = record.encode()


def plan(
    world: World, chooser: HostIdChooser, term: Incarnation | None = None, *, gone: bool = True
) -> JoinPlan | NotJoined:
    host: Host = world.host("alpha")
    area = LockspaceArea(host.disk, 0, DEFAULT, "A")
    result: Any = host.run(chooser.plan(area, host.clock, term, users_gone=gone))
    return result  # type: ignore[no-any-return]


def claimed(found: JoinPlan | NotJoined) -> tuple[int, str]:
    assert isinstance(found, JoinPlan), found
    assert found.resumed is None
    return found.host_id, found.host_name


def chosen_name(world: World, chooser: HostIdChooser, term: Incarnation | None = None) -> str:
    found = plan(world, chooser, term)
    assert isinstance(found, JoinPlan), found
    return found.only_of


def test_term_of_this_boot_is_gone_on_with() -> None:
    same_boot = replace_term(boot="boot-2")
    found = chooser().resumption(same_boot, in_use=False)
    assert found == JoinPlan(HostId(3), OLD_NAME, TIMING, 7)  # type: ignore[arg-type]
    assert chooser().resumption(TERM, in_use=True) is None
    assert chooser(4).resumption(same_boot, in_use=False) is None
    assert chooser().resumption(None, in_use=True) is None


def test_incarnation_that_vms_depend_on_is_resumed_whatever_host_id_is_configured() -> None:
    found = chooser(4).resumption(replace_term(boot="boot-2"), in_use=True)
    assert found is not None
    assert (found.host_id, found.resumed) == (3, 7)


def searched(host: Host, chooser: HostIdChooser) -> JoinPlan | NotJoined:
    area = LockspaceArea(host.disk, 0, DEFAULT, "A")
    result: Any = host.run(chooser.search(area, host.clock, fences=True))
    return result  # type: ignore[no-any-return]


def test_incarnation_that_no_copy_remembers_is_found_on_storage_by_name_and_age() -> None:
    world = world_with_lockspaces()
    host = world.host("alpha")
    put(world, 5, "beta.0123456789ab", 2, timestamp=int(host.clock.now()))
    put(world, 3, OLD_NAME, 7, timestamp=int(host.clock.now()))
    found = searched(host, chooser())
    assert isinstance(found, JoinPlan), found
    assert (found.host_id, found.host_name, found.resumed) == (3, OLD_NAME, 7)


@pytest.mark.parametrize("age_s", [-50, 80, 100_000])
def test_record_whose_last_renewal_does_not_fit_this_boots_clock_is_not_resumed(age_s: int) -> None:
    world = world_with_lockspaces()
    world.now = 200_000.0
    host = world.host("alpha")
    put(world, 3, OLD_NAME, 7, timestamp=int(host.clock.now()) - age_s)
    assert isinstance(searched(host, chooser()), NotJoined)


def test_two_records_that_look_like_ours_are_doubt_and_none_is_resumed() -> None:
    world = world_with_lockspaces()
    host = world.host("alpha")
    now = int(host.clock.now())
    put(world, 3, OLD_NAME, 7, timestamp=now)
    put(world, 4, OLD_NAME, 7, timestamp=now)
    found = searched(host, chooser())
    assert isinstance(found, NotJoined)
    assert "2 records" in found.reason


@pytest.mark.parametrize(
    ("age_s", "over"), [(80, False), (139, False), (141, True), (-50, True), (100_000, True)]
)
def test_no_vm_depends_on_a_record_that_this_host_has_outlived_or_that_is_of_another_boot(
    age_s: int, over: bool
) -> None:
    world = world_with_lockspaces()
    world.now = 200_000.0
    host = world.host("alpha")
    put(world, 3, OLD_NAME, 7, timestamp=int(host.clock.now()) - age_s)
    found = searched(host, chooser())
    assert isinstance(found, NotJoined)
    assert found.is_over is over


def is_over(host: Host, *, fences: bool = True, identity: HostIdentity = ME) -> bool:
    area = LockspaceArea(host.disk, 0, DEFAULT, "A")
    plan = chooser().resumption(replace_term(boot="boot-2"), in_use=True)
    assert plan is not None
    return host.run(chooser(identity=identity).is_over(area, host.clock, plan, fences=fences))


LONG = replace(ME, node="prod-eu-central-1-hypervisor-compute-node-001")
CUT = "prod-eu-central-1-hypervisor-compu.0123456789ab"
"""How an earlier version wrote it."""


def test_incarnation_of_a_host_with_a_long_name_is_found_on_storage() -> None:
    world = world_with_lockspaces()
    host = world.host("alpha")
    put(world, 3, fresh_name(LONG.node, TOKEN), 7, timestamp=int(host.clock.now()))
    put(world, 4, fresh_name(LONG.node[:-1] + "2", TOKEN), 2, timestamp=int(host.clock.now()))
    found = searched(host, chooser(identity=LONG))
    assert isinstance(found, JoinPlan), found
    assert (found.host_id, found.resumed) == (3, 7)


def test_record_that_an_earlier_version_cut_is_not_resumed_and_not_over_either() -> None:
    """It may be of this host, whose VMs may depend on it, or of one whose name begins alike."""
    world = world_with_lockspaces()
    host = world.host("alpha")
    put(world, 3, CUT, 7, timestamp=int(host.clock.now()))
    found = searched(host, chooser(identity=LONG))
    assert isinstance(found, NotJoined)
    assert not found.is_over
    assert not is_over(host, identity=LONG)


def test_incarnation_is_over_when_it_was_given_back_or_the_watchdog_would_have_fired() -> None:
    world = world_with_lockspaces()
    world.now = 200_000.0
    host = world.host("alpha")
    now = int(host.clock.now())
    put(world, 3, OLD_NAME, 7, timestamp=0)
    assert is_over(host, fences=False), "it was given back"
    put(world, 3, OLD_NAME, 7, timestamp=now - 139)
    assert not is_over(host), "its VMs may still run"
    put(world, 3, OLD_NAME, 7, timestamp=now - 141)
    assert is_over(host)
    assert not is_over(host, fences=False), "nothing resets this host"


def test_incarnation_is_over_when_another_host_has_its_id_but_not_when_this_host_has() -> None:
    world = world_with_lockspaces()
    host = world.host("alpha")
    now = int(host.clock.now())
    put(world, 3, "beta.0123456789ab", 8, timestamp=now)
    assert is_over(host)
    put(world, 3, "alpha.ffffffffffff", 8, timestamp=now)
    assert not is_over(host), "VMs may depend on an incarnation that no copy names"
    put(world, 3, OLD_NAME, 8, timestamp=now)
    assert not is_over(host)


def test_claim_of_this_host_that_a_kill_cut_short_is_over_when_its_dead_bound_has_passed() -> None:
    """It was never joined, so no copy names it, and it would keep the lockspace lost for good (found by seed 2057)."""
    world = world_with_lockspaces()
    world.now = 200_000.0
    host = world.host("alpha")
    now = int(host.clock.now())
    put(world, 3, "alpha.ffffffffffff", 8, timestamp=now - 139)
    assert not is_over(host)
    put(world, 3, "alpha.ffffffffffff", 8, timestamp=now - 141)
    assert is_over(host)
    assert not is_over(host, fences=False)


def replace_term(**changes: Any) -> Incarnation:
    import msgspec

    return msgspec.structs.replace(TERM, **changes)


def test_host_that_was_rebooted_claims_its_id_under_its_old_name_after_a_look() -> None:
    world = world_with_lockspaces()
    put(world, 3, OLD_NAME, 7)
    assert claimed(plan(world, chooser(), TERM)) == (3, OLD_NAME)
    assert 30 <= world.now < 32  # longer than a healthy host takes to renew, shorter than the dead bound


def test_clone_that_renews_is_seen_in_time() -> None:
    world = world_with_lockspaces()
    put(world, 3, OLD_NAME, 7)
    world.at(20.0, lambda: put(world, 3, OLD_NAME, 7, timestamp=25))
    assert claimed(plan(world, chooser(), TERM)) == (1, f"alpha.{TOKEN}"), "one of its own"


def test_clone_that_renews_the_configured_host_id_is_met_under_a_fresh_name() -> None:
    world = world_with_lockspaces()
    put(world, 3, OLD_NAME, 7)
    world.at(20.0, lambda: put(world, 3, OLD_NAME, 7, timestamp=25))
    assert claimed(plan(world, chooser(3), TERM)) == (3, f"alpha.{TOKEN}")


def test_memory_of_a_virtual_machine_proves_nothing() -> None:
    """A second instance with the same ids may run elsewhere, and be slow (safety.md A7)."""
    world = world_with_lockspaces()
    put(world, 3, OLD_NAME, 7)
    virtual = chooser(identity=replace(ME, machine=""))
    assert claimed(plan(world, virtual, replace_term(machine=""))) == (3, f"alpha.{TOKEN}")


@pytest.mark.parametrize(
    ("cpuinfo", "is_hardware"),
    [
        ("processor\t: 0\nflags\t\t: fpu vme sse2\n", True),
        ("processor\t: 0\nflags\t\t: fpu vme hypervisor sse2\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_hardware_is_proven_by_the_processor_alone(tmp_path: Path, cpuinfo: str, is_hardware: bool) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert is_proven_hardware(str(tmp_path / "cpuinfo")) is is_hardware
    assert not is_proven_hardware(str(tmp_path / "missing"))
    assert bool(machine_of("alpha", "id", is_hardware=is_hardware)) is is_hardware


def test_memory_of_another_machine_proves_nothing() -> None:
    world = world_with_lockspaces()
    put(world, 3, OLD_NAME, 7)
    assert claimed(plan(world, chooser(identity=replace(ME, machine="machine-2")), TERM)) == (
        3,
        f"alpha.{TOKEN}",
    )


def test_term_of_this_boot_is_ours_only_when_its_users_are_gone() -> None:
    world = world_with_lockspaces()
    put(world, 3, OLD_NAME, 7)
    same_boot = replace_term(boot="boot-2")
    assert claimed(plan(world, chooser(), same_boot, gone=False)) == (3, f"alpha.{TOKEN}")
    assert claimed(plan(world, chooser(), same_boot, gone=True)) == (3, OLD_NAME)


def test_id_that_went_to_another_host_is_not_claimed_again() -> None:
    world = world_with_lockspaces()
    put(world, 3, "beta.aaaaaaaaaaaa", 8)
    assert claimed(plan(world, chooser(), TERM)) == (1, f"alpha.{TOKEN}")
    assert claimed(plan(world, chooser(3), TERM)) == (3, f"alpha.{TOKEN}")


def test_id_that_a_host_chooses_is_that_of_the_name_in_its_record_only() -> None:
    """Between the choice and the claim the lockspace may be restored; a configured id is claimed from any host."""
    world = world_with_lockspaces()
    put(world, 4, "alpha.aaaaaaaaaaaa")
    assert chosen_name(world, chooser()) == "alpha.aaaaaaaaaaaa"
    put(world, 3, OLD_NAME, 7)
    assert chosen_name(world, chooser(), TERM) == OLD_NAME
    assert chosen_name(world, chooser(3), TERM) == ""
    assert chosen_name(world, chooser(5)) == ""


def test_id_is_found_by_the_nodes_name_then_among_the_unused_then_among_the_free() -> None:
    world = world_with_lockspaces()
    put(world, 1, "beta.aaaaaaaaaaaa")
    put(world, 2, "gamma.aaaaaaaaaaaa", timestamp=0)
    assert claimed(plan(world, chooser()))[0] == 3
    assert claimed(plan(world, chooser(hosts_max=2)))[0] == 2
    put(world, 4, "alpha.aaaaaaaaaaaa")
    assert claimed(plan(world, chooser()))[0] == 4
    full = plan(world, chooser(hosts_max=1))
    assert isinstance(full, NotJoined)
    assert "all 1 host ids" in full.reason


def test_memory_that_can_not_be_read_is_none() -> None:
    assert decode_term(b"") is None
    assert decode_term(b"{") is None
    assert decode_term(b'{"lockspace": "A"}') is None

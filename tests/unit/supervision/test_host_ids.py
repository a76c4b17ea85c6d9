"""Hosts that look alike, each with ``host_id = "auto"``: every one gets an id of its own, and keeps it.

The hosts are keepers over one simulated disk, with all that ships above the ports; their state is in real files.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.unit.protocol.simulated import SimulatedDisk, World
from tests.unit.supervision.rig import TIMING, Supervised, record_of, world_with_lockspaces

from holdfast.supervision.host_identity import HostIdentity
from holdfast.supervision.host_names import is_of_node
from holdfast.supervision.incarnation_copies import IncarnationCopies
from holdfast.supervision.lockspace_port import LockspaceSpec
from holdfast.supervision.lockspace_supervisor import (
    LockspaceState,
    LockspaceSupervisor,
)
from holdfast.supervision.lockspace_use import LockspaceUse, User
from holdfast.system.block_io.renewal_threads import Life
from holdfast.system.files.lockspace_locks import SystemSpaceLocks
from holdfast.system.files.state_file import StateFile

JOINED_WITHIN_S = 3 * TIMING.dead_s
TOKENS = itertools.count(1)
LONG = "prod-eu-central-1-hypervisor-compute-node-00{}"


@dataclass
class Box:
    """A machine: what is on its local disk, and what it is. `start` boots it and starts its daemon."""

    world: World
    place: Path
    node: str
    machine: str = ""
    """What its hardware says of itself; empty for a virtual machine, of which that proves nothing."""
    boots: int = 0
    on: Supervised | None = None
    supervisor: LockspaceSupervisor = field(init=False)

    def start(self, host_id: int | None = None) -> LockspaceSupervisor:
        """Boot."""
        self.boots += 1
        boot = f"{self.place.name}-{self.boots}"
        self.on = supervised = Supervised(self.world, f"{self.place.name}-{self.boots}")
        host, disk = supervised.host, SimulatedDisk(supervised.host)
        self.place.mkdir(exist_ok=True)

        class Threads:
            def start_on_disk(
                self, name: str, path: str, life: Life, on_end: Callable[[object], None]
            ) -> None:
                async def whole() -> None:
                    on_end(await life(disk, host.clock, lambda: None))

                host.spawn(whole())

            def call_soon(self, callback: Callable[[], None]) -> None:
                callback()

        self.supervisor = LockspaceSupervisor(
            LockspaceSpec(name="A", path="/ls", host_id=host_id, hosts_max=None, timing=TIMING),
            lease_monitor=supervised.lease_monitor,
            threads=Threads(),
            clock=host.clock,  # type: ignore[arg-type]
            copies=IncarnationCopies("A", [StateFile(str(self.place / "term.json"))]),
            use=LockspaceUse(
                "A",
                SystemSpaceLocks(str(self.place / f"host-{self.boots}")).of("A"),
                User(boot, "/run/a", "/var/a"),
            ),
            identity=HostIdentity(self.node, boot, self.machine and f"{self.machine} {self.node}"),
            token=lambda: f"{next(TOKENS):012x}",
            in_use=lambda: False,
            lease_writes=lambda: lambda: False,
            spawn=host.spawn,
            report=lambda _: None,
        )
        self.supervisor.start()
        return self.supervisor

    def power_off(self) -> None:
        assert self.on is not None
        self.on.host.reset()
        self.on = None

    def clone(self, place: Path, node: str = "") -> Box:
        shutil.copytree(self.place, place)
        return Box(self.world, place, node or self.node, self.machine)

    def reinstalled(self) -> None:
        shutil.rmtree(self.place)

    @property
    def id(self) -> int:
        assert self.supervisor.host_id is not None
        return self.supervisor.host_id


class Hall:
    """The hosts of a test."""

    def __init__(self, place: Path) -> None:
        self.world = world_with_lockspaces()
        self.place = place
        self.number = itertools.count(1)

    def box(self, node: str, machine: str = "") -> Box:
        return Box(self.world, self.place / f"box{next(self.number)}", node, machine)

    def passed(self, seconds: float) -> None:
        self.world.run(until=self.world.now + seconds)

    def joined(self, *boxes: Box) -> list[int]:
        """Their ids, once all are in; each is seen to stand under its own name, and goes on for a while."""
        until = self.world.now + JOINED_WITHIN_S
        while any(box.supervisor.state is not LockspaceState.JOINED for box in boxes):
            assert self.world.now < until, [(box.node, box.supervisor.reason) for box in boxes]
            self.passed(1)
        self.passed(10 * TIMING.renewal_s)
        for box in boxes:
            assert box.supervisor.state is LockspaceState.JOINED, box.supervisor.reason
            assert is_of_node(record_of(self.world, box.id).host_name.text, box.node)
        return [box.id for box in boxes]


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    yield Hall(tmp_path)


def test_hosts_whose_names_begin_alike_get_and_keep_ids_of_their_own(hall: Hall) -> None:
    one, two = hall.box(LONG.format(1)), hall.box(LONG.format(2))
    one.start()
    first = hall.joined(one)
    two.start()
    both = hall.joined(one, two)
    assert both[:1] == first
    assert len(set(both)) == 2
    for box in (two, one):
        box.power_off()
    for box in (two, one):
        box.reinstalled()
        box.start()
    assert hall.joined(one, two) == both, "each is recognised by its whole name"


def test_two_hosts_of_one_name_get_and_keep_ids_of_their_own(
    hall: Hall, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = hall.box("localhost"), hall.box("localhost")
    one.start()
    hall.joined(one)
    with caplog.at_level(logging.WARNING):
        two.start()
        both = hall.joined(one, two)
    assert len(set(both)) == 2
    assert (
        "it has the same name as this host, or is its clone: give each host a name of its own" in caplog.text
    )
    for box in (one, two):
        box.power_off()
    for box in (two, one):
        box.start()
    assert hall.joined(one, two) == both


def test_two_hosts_of_one_name_that_come_up_together_get_ids_of_their_own(hall: Hall) -> None:
    one, two = hall.box("localhost"), hall.box("localhost")
    one.start()
    two.start()
    assert len(set(hall.joined(one, two))) == 2


@pytest.mark.parametrize("machine", ["", "one-product-uuid"])
@pytest.mark.parametrize("name", ["golden", "clone"])
def test_clone_with_the_state_of_a_running_host_gets_an_id_of_its_own(
    hall: Hall, name: str, machine: str, caplog: pytest.LogCaptureFixture
) -> None:
    golden = hall.box("golden", machine)
    golden.start()
    first = hall.joined(golden)
    clone = golden.clone(hall.place / "clone", name)
    with caplog.at_level(logging.WARNING):
        clone.start()
        both = hall.joined(golden, clone)
    assert both[:1] == first
    assert len(set(both)) == 2
    assert "clone" in caplog.text
    for box in (golden, clone):
        box.power_off()
        box.start()
    assert hall.joined(golden, clone) == both


def test_clone_that_starts_while_its_original_is_off_takes_the_id_and_both_keep_what_they_have(
    hall: Hall,
) -> None:
    golden = hall.box("golden")
    golden.start()
    first = hall.joined(golden)
    golden.power_off()
    clone = golden.clone(hall.place / "clone", "golden")
    clone.start()
    assert hall.joined(clone) == first, "nothing tells it from the original"
    golden.start()
    both = hall.joined(golden, clone)
    assert len(set(both)) == 2
    for box in (golden, clone):
        box.power_off()
        box.start()
    assert hall.joined(golden, clone) == both


@pytest.mark.parametrize("node", ["alpha", LONG.format(1)])
def test_host_that_was_reinstalled_gets_its_id_back(hall: Hall, node: str) -> None:
    other, host = hall.box("other"), hall.box(node)
    other.start()
    hall.joined(other)
    host.start()
    before = hall.joined(other, host)
    host.power_off()
    host.reinstalled()
    host.start()
    assert hall.joined(other, host) == before


def test_host_that_was_renamed_keeps_its_id_and_has_its_new_name_there(hall: Hall) -> None:
    other, host = hall.box("other"), hall.box("alpha")
    other.start()
    hall.joined(other)
    host.start()
    before = hall.joined(other, host)
    host.power_off()
    host.node = "omega"
    host.start()
    assert hall.joined(other, host) == before


def test_configured_host_id_of_another_host_is_refused_with_the_reason_and_the_way_out(
    hall: Hall, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = hall.box("alpha"), hall.box("alpha")
    one.start(1)
    hall.joined(one)
    two.start(1)
    with caplog.at_level(logging.WARNING):
        hall.passed(JOINED_WITHIN_S)
    assert two.supervisor.state is not LockspaceState.JOINED
    assert 'another host id (host_id = N, or "auto"), and each host a name of its own' in caplog.text

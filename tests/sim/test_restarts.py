"""A simulated daemon is reloaded, stopped and killed by the code that ships, while its virtual machine runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from holdfast.protocol.paxos_release import Mode
from holdfast_sim.cluster.cluster import Cluster, Kind, Places, Scenario
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.cluster.lockspace import ManagedSeat
from holdfast_sim.drive.config_edits import TAKING
from holdfast_sim.drive.habits import NO_HABITS
from holdfast_sim.host.machine import DAEMON, STORE, VirtualMachine
from holdfast_sim.run.seed import play
from holdfast_sim.storage.disk import FaultProfile
from holdfast_sim.world import World

PATIENCE_S = 60.0
"""Virtual time: a restart and a join take a few seconds of it."""


class Scene:
    """One host without any trouble, and a virtual machine on it."""

    def __init__(self, places: Places, wdmd: bool) -> None:
        self.world = World(7)
        scenario = replace(
            Scenario.drawn(Random(7), hosts=1),
            kind=Kind.MANAGED,
            spaces=1,
            resources=1,
            io_timeouts_s=(1,),
            manners=FaultProfile(latency_s=0.005),
            twin=False,
            stubborn_rate=0.0,
            places=places,
            wdmd=wdmd,
        )
        self.cluster = Cluster(self.world, scenario)
        self.cluster.start_pauses_s = (0.2,)
        self.machine = self.cluster.machines[0]
        self.until(lambda: bool(self.cluster.daemons) and self.seat.member is not None)
        (desk,) = self.daemon.desks
        self.daemon.process.spawn(desk.start(Mode.EXCLUSIVE, wait=False))
        self.until(lambda: desk.lease is not None)
        assert desk.lease is not None
        self.vm: VirtualMachine = desk.lease
        self.term = self.seat.term
        self.first = self.daemon

    @property
    def daemon(self) -> ManagedDaemon:
        daemon = self.cluster.daemons[self.machine.name]
        assert isinstance(daemon, ManagedDaemon)
        return daemon

    @property
    def seat(self) -> ManagedSeat:
        return self.daemon.seats["space1"]

    def until(self, reached: Callable[[], bool]) -> None:
        end = self.world.now + PATIENCE_S
        while not reached():
            assert self.world.now < end, "\n".join(
                f"{at:.2f} {who}: {what}" for at, who, what in self.world.lines
            )
            self.world.run(self.world.now + 0.1)

    def next_daemon_serves(self) -> None:
        self.until(lambda: self.daemon is not self.first and self.daemon.serving)

    def vm_runs_on_under_the_same_term(self) -> None:
        assert self.vm.running and not self.vm.paused
        assert [lock.held is not None for lock in self.daemon.manager.table] == [True]
        assert self.seat.term is self.term
        assert self.term is not None and not self.term.over
        assert self.seat.supervisor is not None and self.seat.supervisor.gone_on
        self.world.run(self.world.now + 30)
        assert self.machine.up and self.vm.running
        assert self.seat.term is self.term
        assert self.term is not None and not self.term.over


@pytest.fixture(params=[Places.DIRECTORY, Places.DEVICE], ids=["directory", "device"])
def places(request: pytest.FixtureRequest) -> Places:
    assert isinstance(request.param, Places)
    return request.param


@pytest.mark.parametrize("wdmd", [False, True], ids=["device", "wdmd"])
def test_reload_carries_locks_events_and_watchdog_into_the_next_program(places: Places, wdmd: bool) -> None:
    scene = Scene(places, wdmd)
    scene.daemon.process.spawn(scene.daemon.reload())
    emitted = scene.daemon.parts.events.last
    scene.next_daemon_serves()
    reexec = scene.daemon.parts.inherited.reexec
    assert reexec is not None
    assert reexec.watchdog_fd == scene.daemon.parts.leases.watchdog_descriptor()
    assert reexec.watchdog[0] == ("wdmd" if wdmd else "device")
    assert scene.daemon.parts.events.last >= emitted > 0
    scene.vm_runs_on_under_the_same_term()


@pytest.mark.parametrize("wdmd", [False, True], ids=["device", "wdmd"])
def test_stop_under_a_running_vm_leaves_its_lease_to_the_next_daemon(places: Places, wdmd: bool) -> None:
    scene = Scene(places, wdmd)
    scene.daemon.process.spawn(scene.daemon.stop())
    scene.until(lambda: not scene.first.alive)
    assert scene.vm.running
    scene.next_daemon_serves()
    assert scene.daemon.parts.inherited.reexec is None
    scene.vm_runs_on_under_the_same_term()


def test_kill_leaves_the_watchdog_in_the_store_and_the_next_daemon_goes_on_feeding_it(places: Places) -> None:
    scene = Scene(places, wdmd=False)
    assert scene.machine.watchdog.copies == {DAEMON, STORE}
    scene.machine.kill_process("killed")
    assert scene.machine.watchdog.copies == {STORE}
    assert scene.machine.watchdog.fires_at is not None
    scene.next_daemon_serves()
    assert scene.machine.watchdog.copies == {DAEMON, STORE}
    assert [name.split("-")[:2] for name, _ in scene.daemon.state.store.named] == [
        ["watchdog"],
        ["watchdog", "device"],
    ]
    scene.vm_runs_on_under_the_same_term()


def test_stop_of_an_idle_host_gives_its_id_back_and_stops_the_watchdog(places: Places) -> None:
    scene = Scene(places, wdmd=False)
    (desk,) = scene.daemon.desks
    scene.daemon.process.spawn(desk.stop())
    scene.until(lambda: desk.vm is None and not desk.busy)
    scene.daemon.process.spawn(scene.daemon.stop())
    scene.until(lambda: not scene.first.alive)
    assert scene.term is not None and scene.term.over
    assert (scene.machine.watchdog.copies, scene.machine.watchdog.fires_at) == (set(), None)


def test_seeds_of_the_whole_daemon_have_reloads_and_stops_and_terms_that_go_on_after_them() -> None:
    lines = [what for seed in range(60) for _, _, what in play(seed).lines]
    for what in ("its daemon becomes the next program", "its daemon dies: stopped", "goes on with its term"):
        assert sum(what in each for each in lines) > 5, what


def test_seeds_of_the_whole_daemon_have_configurations_that_were_edited_in_each_way() -> None:
    lines = [
        what
        for seed in range(230)
        for _, _, what in play(seed, edits=0.7, seconds_every_s=0, habits=NO_HABITS).lines
    ]
    for what in ("its backends are renamed", *(how for how, _ in TAKING)):
        assert sum(what in each for each in lines) > 2, what

"""A second daemon on a managed machine: an operator starts it with its own directories, beside the one of systemd.

    its own              the shipping graph of `build` and `lifecycle`, with state files, journal and process table
    the machine's        paths to storage, clock, name and identity, host-wide locks (`lockspace_locks`)

It serves no virtual machine: it joins every lockspace that it may, and leaves, or is killed and started again. It has no
watchdog, as the first one has the device. While it is in a lockspace, the first one must not be, and no virtual machine
may have a lease there. Choices come from a separate generator, so that a seed without it keeps its history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import msgspec

from holdfast.config import Config
from holdfast.daemon import lifecycle
from holdfast.daemon.build import build
from holdfast.daemon.kept_config import Start
from holdfast.model import LockFailureAction
from holdfast.protocol.timing import Timing
from holdfast.supervision.lockspace_news import Joined, LockspaceNews
from holdfast.supervision.lockspace_supervisor import LockspaceState
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon, configured
from holdfast_sim.cluster.space import Space
from holdfast_sim.event_loop import Process
from holdfast_sim.host.machine import Machine
from holdfast_sim.host.ports import MachineState, managed_ports
from holdfast_sim.storage.disk_names import DiskNames
from holdfast_sim.storage.files import SimulatedStorage, Volume

OFTEN_S = (0.0, 0.0, 0.0, 8.0)
"""Mean seconds between two starts in the whole cluster; 0 (never) in three quarters of the seeds."""
DIRECTORIES = ("/run/second", "/var/lib/second")
LIFE_MAX_S = 30.0
"""Seconds from its start to its stop or kill: time for several attempts to join."""
FIRST_DIES, FIRST_LEAVES = 0.4, 0.4
"""How often the first daemon was killed just before, or has left the lockspaces that are not in use."""
AWAY_MAX_S = 25.0
"""How long the first daemon stays out of them."""
LOOK_S = 0.25
"""Seconds between two checks of the checker, and of the operator who tidies up."""


class NoDomains:
    """`DomainControl`: it has no virtual machine."""

    async def suspend(self, uuid: str) -> bool:
        return False

    async def answers(self, uuid: str) -> bool:
        return False

    async def start(self, uuid: str) -> bool:
        return False

    async def mark(self, uuid: str, reason: str) -> bool:
        return False


class SecondDaemon:
    """One run of the second daemon."""

    def __init__(
        self,
        machine: Machine,
        state: MachineState,
        config: Config,
        volumes: Mapping[str, Volume],
        names: DiskNames,
    ) -> None:
        self.machine = machine
        self.process = Process(machine.world, machine.name)
        machine.beside.append(self.process)
        ports = managed_ports(
            process=self.process,
            machine=machine,
            state=state,
            storage=SimulatedStorage(self.process, machine, volumes),
            domains=NoDomains(),
            busy=lambda: False,
            fed=lambda driver: driver,
            names=names,
        )
        before = Start(config=config).before(ports.identity.boot)
        self.parts = build(config, ports, state.inherited(), before, self._observe)
        self.serving = False
        self.process.spawn(self._start())

    async def _start(self) -> None:
        await lifecycle.adopt(self.parts)
        lifecycle.begin(self.parts)
        self.serving = True
        lifecycle.account_for_left_behind(self.parts)

    def _observe(self, news: LockspaceNews) -> None:
        if isinstance(news, Joined):
            self.machine.world.record(self.machine.name, f"its second daemon has joined {news.lockspace}")

    def joined(self, lockspace: str) -> bool:
        return any(
            supervisor.name == lockspace and supervisor.state is LockspaceState.JOINED
            for supervisor in self.parts.leases.supervisors
        )

    async def stop(self) -> None:
        self.serving = False
        await lifecycle.stop(self.parts, lambda: None)
        self.end("stopped")

    def end(self, why: str) -> None:
        if self.process.alive:
            for refusal in self.parts.leases.refusals:
                self.machine.world.record(self.machine.name, f"its second daemon is kept out: {refusal}")
            self.machine.world.record(self.machine.name, f"its second daemon ends: {why}")
            self.process.end()
            for path in self.machine.paths.values():
                path.process_gone(self.process)


@dataclass(eq=False)
class _Place:
    """The state of a machine's second daemon, over its runs."""

    state: MachineState
    config: Config
    daemon: SecondDaemon | None = None
    ends_badly: bool = False
    """Whether its last run was ended by a kill: an operator starts it again."""

    @property
    def alive(self) -> bool:
        return self.daemon is not None and self.daemon.process.alive


class SecondDaemons:
    """Starts at most one per machine at a time, until `heal`; then starts each that left a record, and stops it orderly."""

    def __init__(self, cluster: Cluster, every_s: float, random: Random) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._every_s = every_s
        self._random = random
        self._stopped = False
        self._places: dict[str, _Place] = {}
        if every_s:
            for number, machine in enumerate(cluster.machines, start=1):
                state = MachineState(machine, lambda: None, DIRECTORIES)
                self._places[machine.name] = _Place(state, self._configuration(number))
            self._next()
            self._world.after(LOOK_S, self._look)

    def end(self) -> None:
        """The seed is over."""
        for place in self._places.values():
            if place.daemon is not None:
                place.daemon.process.end()

    def heal(self) -> None:
        """Start no more of them, and stop those that run."""
        self._stopped = True
        if self._places:
            self._tidy_up()

    def _configuration(self, number: int) -> Config:
        scenario = self._cluster.scenario
        config = configured(
            self._cluster.spaces,
            self._cluster.volumes,
            host_id=None if scenario.auto_ids else self._cluster.host_id(number),
            hosts_max=scenario.hosts_max,
            timing=Timing(scenario.io_timeouts_s[number - 1], scenario.fire_timeout_s),
            watchdog="none",
            on_lockfailure=LockFailureAction.PAUSE,
            names=self._cluster.names,
            by_identity=self._cluster.is_updated(number),
        )
        run_dir, state_dir = DIRECTORIES
        return msgspec.structs.replace(config, run_dir=run_dir, state_dir=state_dir)

    # --- the operator ---

    def _next(self) -> None:
        self._world.after(self._random.expovariate(1 / self._every_s), self._strike)

    def _strike(self) -> None:
        if self._stopped:
            return
        self._next()
        machine = self._random.choice(self._cluster.machines)
        rng = self._random.random()
        after_s, away_s = self._random.uniform(0, 2), self._random.uniform(1, AWAY_MAX_S)
        if machine.up and not self._places[machine.name].alive:
            if rng < FIRST_DIES:
                machine.kill_process("killed")
            elif rng < FIRST_DIES + FIRST_LEAVES:
                self._take_out(machine, away_s)
            boot = machine.boots
            self._world.after(after_s, lambda: self._start(machine, boot))

    def _take_out(self, machine: Machine, away_s: float) -> None:
        first = self._cluster.daemons.get(machine.name)
        if not isinstance(first, ManagedDaemon) or not first.serving or not first.alive:
            return
        for seat in first.seats.values():
            if seat.leave():
                self._world.record(machine.name, f"leaves {seat.space.name} to its second daemon")
                self._world.after(away_s, lambda seat=seat: setattr(seat, "stay", True))  # type: ignore[misc]

    def _start(self, machine: Machine, boot: int) -> None:
        place = self._places[machine.name]
        life_s, is_killed = self._random.uniform(1, LIFE_MAX_S), self._random.random() < 0.4
        if self._stopped or not self._begin(machine, boot):
            return
        daemon = place.daemon
        assert daemon is not None
        self._world.after(life_s, lambda: self._end(place, daemon, is_killed))

    def _begin(self, machine: Machine, boot: int) -> bool:
        """Start one, unless the power is off or the last one still has requests in the kernel."""
        place = self._places[machine.name]
        if not machine.up or machine.boots != boot or place.alive:
            return False
        if place.daemon is not None and machine.lingers(place.daemon.process):
            return False
        place.state.booted()
        self._world.record(machine.name, "a second daemon starts")
        place.ends_badly = False
        place.daemon = SecondDaemon(
            machine, place.state, place.config, self._cluster.volumes, self._cluster.names
        )
        return True

    def _end(self, place: _Place, daemon: SecondDaemon, is_killed: bool) -> None:
        if not daemon.process.alive or self._stopped:
            return
        if not is_killed:
            if daemon.serving:
                daemon.process.spawn(daemon.stop())
            return
        daemon.end("killed")
        place.state.daemon_gone()
        place.ends_badly = True
        boot = daemon.machine.boots
        # Its record may keep the first daemon out: so it is started once more, and not killed.
        self._world.after(self._random.uniform(1, 10), lambda: self._start(daemon.machine, boot))

    def _tidy_up(self) -> None:
        busy = False
        for machine in self._cluster.machines:
            place = self._places[machine.name]
            if place.alive:
                busy = True
                if place.daemon is not None and place.daemon.serving:
                    place.daemon.process.spawn(place.daemon.stop())
            elif machine.up and any(
                machine.host_table.names(space.name, DIRECTORIES[0]) for space in self._cluster.spaces
            ):
                busy = True
                self._begin(machine, machine.boots)
        if busy:
            self._world.after(LOOK_S, self._tidy_up)

    # --- the checker ---

    def _look(self) -> None:
        for name, place in self._places.items():
            first = self._cluster.daemons.get(name)
            if place.daemon is None or not place.alive or not isinstance(first, ManagedDaemon):
                continue
            for space in self._cluster.spaces:
                if place.daemon.joined(space.name):
                    self._is_alone(first, space)
        if not self._stopped or any(place.alive for place in self._places.values()):
            self._world.after(LOOK_S, self._look)

    def _is_alone(self, first: ManagedDaemon, space: Space) -> None:
        claim, machine = "one daemon of a host in a lockspace", first.machine
        if first.alive and first.seats[space.name].state is LockspaceState.JOINED:
            self._world.fail(claim, f"two daemons have joined {space.name}", machine)
        for vm in machine.vms:
            has_left = vm.migrating and vm.paused
            if vm.held and vm.running and not has_left and vm.resource in space.resources:
                self._world.fail(
                    claim, f"the second one has joined {space.name}, where {vm.name} has a lease", machine
                )

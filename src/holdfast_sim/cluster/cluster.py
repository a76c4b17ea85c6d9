"""Hosts that share lockspaces and leases, put together for one seed.

A `Scenario` is drawn from the seed: the number of hosts, their io_timeouts, the geometry, the fault rates of storage and
how often the nemesis acts. The `Cluster` formats the disks and starts the daemons.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, assert_never

from holdfast.config import Config
from holdfast.model import LockFailureAction
from holdfast.ondisk.delta import FLAG_NO_TIMEOUT
from holdfast.ondisk.geometry import GEOMETRIES, Geometry
from holdfast.protocol.timing import Timing
from holdfast_sim.check.leases import Checkers
from holdfast_sim.cluster.daemon import ManagedDaemon, configured
from holdfast_sim.cluster.protocol_daemon import Daemon
from holdfast_sim.cluster.sanlock_clients import ClientSite
from holdfast_sim.cluster.space import Space
from holdfast_sim.event_loop import Process
from holdfast_sim.host.machine import Machine
from holdfast_sim.host.ports import MachineState
from holdfast_sim.host.wdmd import SimulatedWdmd
from holdfast_sim.storage import prepared
from holdfast_sim.storage.disk import FaultProfile
from holdfast_sim.storage.disk_names import DiskNames, Naming, lease_of, resource_of
from holdfast_sim.storage.files import SharedDirectory, Volume
from holdfast_sim.world import World

EPOCH_S = 1_700_000_000
"""The date when a history begins, in seconds since 1970."""
NEVER_S = 1e9
SLOW_START_MAX_S = 7.0
"""A lease with io_timeout 1 s is good for 8 s, and a watchdog fires after less."""
IGNORING = 0.6
"""The share of starts that find on_lockfailure = "ignore", where that may be."""


class Places(enum.Enum):
    """How leases are stored."""

    FIXED = "behind their lockspace, made beforehand"
    DIRECTORY = "files in a shared directory, made on demand"
    DEVICE = "areas on one device, found by its resource index and made on demand"


class Kind(enum.Enum):
    """Which faults and which code a scenario concentrates on."""

    GENERAL = "everything, a little of each"
    STORM = "one lease, everybody wants it, requests are late: what ballots are for"
    MANAGED = "the whole daemon, killed and started again under running virtual machines"
    TWINS = "two hosts are given one host id, and lose their processors while they claim it"


@dataclass(frozen=True)
class Scenario:
    """The parameters of one seed."""

    kind: Kind
    hosts: int
    spaces: int
    resources: int
    geometry: Geometry
    io_timeouts_s: tuple[int, ...]
    fire_timeout_s: int
    duration_s: float
    manners: FaultProfile
    trouble_every_s: float
    work_every_s: float
    twin: bool
    """The last host is configured with the host id of the first one."""
    stubborn_rate: float
    """The share of virtual machines that cannot be killed, 0 to 1."""
    places: Places = Places.FIXED
    auto_ids: bool = False
    """All hosts are configured with ``host_id = "auto"``, and start at the same time."""
    hosts_max: int = prepared.FEW_HOSTS
    lease_hosts: int = prepared.FEW_HOSTS
    """The number of hosts that leases are formatted for."""
    wdmd: bool = False
    """wdmd has the watchdog device open, and daemons use it through wdmd."""
    made: tuple[int, int] = prepared.OLDEST
    """Version and flags of the lockspaces."""
    naming: Naming = Naming.ONE
    updates_at_s: tuple[float, ...] = ()
    """With LATE names: when each host gets a daemon that knows identities."""
    foreign: int = 0
    """Number of the host whose names Holdfast would never give, as if it ran sanlock; 0: none."""
    ignores: bool = False
    """Some starts find on_lockfailure = "ignore"."""
    two_backends: bool = False
    """Each lockspace is named by two backends."""
    hasty: bool = False
    """An operator calls hosts off as soon as their storage is slow for a moment."""
    full_disks: bool = False
    """The disk of RUN_DIR is full now and then, and disks are unplugged from virtual machines that run."""
    clients: bool = False
    """sanlock's clients hold leases beside virtual machines."""
    adds: bool = False
    """The last lockspace is in no configuration: clients add and remove it."""
    changed_timeouts: bool = False
    """Operators change the io_timeout of hosts while they are in their lockspaces."""
    hangs: bool = False
    """Requests of guests that are paused may hang on; elsewhere they end with the pause."""
    slow_starts: bool = False
    """A program needs a while until it adopts anything, and feeds the watchdog from its first moment on."""
    orders_every_s: float = 0.0
    """Mean seconds between orders of an operator: removing leases, breaking a lease. 0: never."""

    @property
    def adds_lockspace(self) -> bool:
        """Not where leases never expire: nobody could list those of older generations there, so nothing would end them."""
        return self.adds and not self.made[1] & FLAG_NO_TIMEOUT

    def without_other_trouble(self) -> Scenario:
        """The same hosts with storage that only takes its time."""
        manners = FaultProfile(self.manners.latency_s)
        return replace(self, manners=manners, trouble_every_s=NEVER_S, twin=False)

    @classmethod
    def drawn(cls, random: Random, hosts: int | None) -> Scenario:
        kind = random.choices((Kind.GENERAL, Kind.STORM, Kind.TWINS, Kind.MANAGED), (4, 3, 2, 4))[0]
        general = cls._general(random, hosts)
        match kind:
            case Kind.GENERAL:
                return general
            case Kind.MANAGED:
                return replace(
                    general,
                    kind=kind,
                    io_timeouts_s=(1,) * general.hosts,
                    spaces=random.choice((1, 2, 2)),
                    stubborn_rate=random.choice((0.0, 0.5, 0.9)),
                    **cls._managed(random, general),
                )
            case Kind.STORM:
                return replace(
                    general,
                    kind=kind,
                    spaces=1,
                    resources=1,
                    io_timeouts_s=(1,) * general.hosts,
                    fire_timeout_s=10,
                    duration_s=100,
                    manners=FaultProfile(
                        latency_s=random.choice((0.02, 0.2)),
                        error_rate=random.choice((0.02, 0.06)),
                        late_rate=random.choice((0.01, 0.05)),
                        late_max_s=random.choice((3.0, 6.0, 20.0)),
                        late_leader_rate=random.choice((0, 0.1, 0.3)),
                        stale_rate=0.3,
                    ),
                    trouble_every_s=random.choice((4.0, 10.0)),
                    work_every_s=random.choice((0.15, 0.4)),
                    twin=False,
                )
            case Kind.TWINS:
                return replace(
                    general,
                    kind=kind,
                    hosts=3,
                    io_timeouts_s=general.io_timeouts_s[:1] * 3,
                    twin=True,
                    duration_s=60,
                )
        assert_never(kind)

    @staticmethod
    def _managed(random: Random, general: Scenario) -> dict[str, Any]:
        auto_ids = random.random() < 0.4
        return {
            "places": random.choice((Places.DIRECTORY, Places.DEVICE)),
            "auto_ids": auto_ids,
            "twin": general.twin and not auto_ids,
            # A late claim uses up a host id, so there are a few more ids than hosts.
            "hosts_max": random.choice((general.hosts + 2, prepared.FEW_HOSTS)),
            "wdmd": random.random() < 0.35,
            "orders_every_s": random.choice((2.0, 6.0, 20.0)),
        }

    @classmethod
    def _general(cls, random: Random, hosts: int | None) -> Scenario:
        count = hosts if hosts is not None else random.choice((2, 3, 3, 4))
        rough = random.random()
        manners = FaultProfile(
            latency_s=random.choice((0.005, 0.02, 0.15)),
            error_rate=random.choice((0, 0, 0.02, 0.08)) if rough > 0.3 else 0.0,
            late_rate=random.choice((0, 0.01, 0.05)) if rough > 0.3 else 0.0,
            late_max_s=random.choice((3.0, 12.0, 25.0)),
            late_leader_rate=random.choice((0, 0.1, 0.3)) if rough > 0.5 else 0.0,
            stale_rate=random.choice((0.1, 0.5)),
        )
        mixed = random.random() < 0.3
        return cls(
            kind=Kind.GENERAL,
            hosts=count,
            spaces=random.choice((1, 1, 2)),
            resources=random.choice((1, 1, 2)),
            geometry=random.choice(GEOMETRIES[:2]),
            io_timeouts_s=tuple(random.choice((1, 2)) if mixed else 1 for _ in range(count)),
            fire_timeout_s=random.choice((6, 10)),
            duration_s=random.uniform(80, 160),
            manners=manners,
            trouble_every_s=random.choice((3.0, 8.0, 20.0)),
            work_every_s=random.choice((0.3, 1.0, 2.5)),
            twin=random.random() < 0.2 and count > 2,
            stubborn_rate=random.choice((0.0, 0.3, 0.8)),
        )


class Cluster:
    """One world with its machines, disks and checkers."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world = world
        self.scenario = scenario
        self.checkers = Checkers(world, scenario.geometry, scenario.fire_timeout_s)
        self.checkers.terms.ids_are_found = scenario.auto_ids
        self.checkers.never_by_time = bool(scenario.made[1] & FLAG_NO_TIMEOUT)
        self._ignoring = Random(f"ignoring {world.seed}")
        self.site = ClientSite(world.seed) if scenario.clients else None
        self._slow_starts = Random(f"slow starts of {world.seed}")
        self.names = DiskNames(scenario.naming)
        self.checkers.first = self._first
        self.spaces = tuple(
            Space(
                f"space{n + 1}",
                tuple(f"disk{n + 1}{'ab'[m]}" for m in range(scenario.resources)),
                scenario.adds_lockspace and n > 0,
            )
            for n in range(scenario.spaces)
        )
        self.volumes = {volume.root: volume for volume in map(self._formatted, self.spaces)}
        self.disks = tuple(volume.disk for volume in self.volumes.values())
        for disk in self.disks:
            disk.manners = scenario.manners
        self.below: dict[tuple[str, str], SharedDirectory] = {}
        """By machine and root: what is in the directory below the mount point."""
        self.machines = tuple(self._machine(f"host{n + 1}") for n in range(scenario.hosts))
        self.daemons: dict[str, Daemon | ManagedDaemon] = {}
        self.start_pauses_s: tuple[float, ...] = (0.2, 1.0, 5.0, 15.0)
        """Seconds from the end of a daemon to its next start; the longest one is longer than its leases last."""
        self.before_start: Callable[[Machine, MachineState], None] = lambda _, __: None
        self.after_kill: Callable[[Machine, MachineState], None] = lambda _, __: None
        """Hooks that damage the state which the next daemon reads."""
        self.quiet = False
        """Only that state is damaged: a lease that was renewed in time must not be lost."""
        self.states = (
            {
                machine.name: MachineState(machine, partial(self._wdmd, machine, number))
                for number, machine in enumerate(self.machines)
            }
            if scenario.kind is Kind.MANAGED
            else {}
        )
        for number, machine in enumerate(self.machines, start=1):
            machine.on_boot = lambda machine=machine, number=number: self._booted(machine, number)  # type: ignore[misc]
            machine.on_killed = lambda machine=machine, number=number: self._killed(machine, number)  # type: ignore[misc]
            machine.on_exec = lambda machine=machine, number=number: self._executed(machine, number)  # type: ignore[misc]
            machine.on_reset = lambda machine=machine: self._reset(machine)  # type: ignore[misc]
            spread_s = 0.2 if scenario.kind is Kind.TWINS or scenario.auto_ids else 3.0
            self._daemon_in(world.random.uniform(0, spread_s), machine, number)
        for machine, at_s in zip(self.machines, scenario.updates_at_s, strict=False):
            world.after(at_s, lambda machine=machine: machine.kill_process("updated"))  # type: ignore[misc]

    def hosts_know_the_date(self) -> None:
        """From now on claims count their generation from the date; before, each host's date is 1970."""
        self.checkers.terms.hosts_know_the_date = True
        for state in self.states.values():
            state.generation_min = lambda: int(self.world.now) + EPOCH_S

    def _formatted(self, space: Space) -> Volume:
        world, geometry, checkers = self.world, self.scenario.geometry, self.checkers
        hosts = self.scenario.lease_hosts
        number = self.spaces.index(space) + 1
        match Places.DIRECTORY if space.is_added else self.scenario.places:
            case Places.FIXED:
                return prepared.fixed(world, geometry, space, hosts, checkers)
            case Places.DIRECTORY:
                made = prepared.directory(
                    world, geometry, space, hosts, number, checkers, self.scenario.made, self.names
                )
                return prepared.with_leases(made, geometry, space) if space.is_added else made
            case Places.DEVICE:
                return prepared.device(
                    world, geometry, space, hosts, number, checkers, self.scenario.made, self.names
                )

    def _machine(self, name: str) -> Machine:
        local = []
        for space, volume in zip(self.spaces, self.volumes.values(), strict=True):
            if volume.directory is not None:
                number = 100 + len(self.below)
                below = prepared.below_mount_point(
                    self.world,
                    self.scenario.geometry,
                    space,
                    self.scenario.lease_hosts,
                    name,
                    number,
                    self.names,
                )
                self.below[name, volume.root] = below
                local.append(below.disk)
        return Machine(self.world, name, (*self.disks, *local))

    def host_id(self, number: int) -> int:
        return 1 if self.scenario.twin and number == self.scenario.hosts else number

    def _booted(self, machine: Machine, number: int) -> None:
        """systemd starts the daemon, unless an earlier one of the same boot still has requests in the kernel."""
        if machine.process_lingers:
            self._daemon_in(1.0, machine, number)
            return
        timing = Timing(self.scenario.io_timeouts_s[number - 1], self.scenario.fire_timeout_s)
        if self.scenario.kind is Kind.MANAGED:
            state = self.states[machine.name]
            state.booted()
            self.before_start(machine, state)
            if not state.reexec:  # the reload has compared the configuration on disk with the held locks
                state.edit()
            self.daemons[machine.name] = ManagedDaemon(
                machine=machine,
                state=state,
                config=self._configuration(number, timing),
                spaces=self.spaces,
                volumes=self.volumes,
                stubborn_rate=self.scenario.stubborn_rate,
                checkers=self.checkers,
                names=self.names,
                quiet=self.quiet,
                hangs=self.scenario.hangs,
                site=self.site,
                number=self.host_id(number),
                io_timeout_s=timing.io_timeout_s,
                start_s=self._slow_starts.uniform(0, SLOW_START_MAX_S) if self.scenario.slow_starts else None,
            )
        else:
            self.daemons[machine.name] = Daemon(
                machine=machine,
                spaces=self.spaces,
                geometry=self.scenario.geometry,
                host_id=self.host_id(number),
                timing=timing,
                stubborn_rate=self.scenario.stubborn_rate,
                checkers=self.checkers,
                lease_of=lease_of,
                foreign_name=number == self.scenario.foreign,
            )
        random = self.world.random
        if self.scenario.kind is Kind.TWINS and machine.process is not None and random.random() < 0.7:
            # A claim makes a few calls: stall it in one of them, for longer than the claim of another host takes.
            kind, calls = random.choice((("disk", 4), ("clock", 8)))
            machine.process.stall_in(random.randrange(calls), random.choice((3.0, 5.0, 10.0)), kind)

    def living_daemons(self) -> list[ManagedDaemon]:
        """Whole daemons that run and serve."""
        managed = [each for each in self.daemons.values() if isinstance(each, ManagedDaemon)]
        return [each for each in managed if each.serving and each.alive]

    def _configuration(self, number: int, timing: Timing) -> Config:
        """Restore the configuration as first written: an operator may have changed what follows the loss of a lease."""
        scenario, random = self.scenario, self.world.random
        few = scenario.lease_hosts == prepared.FEW_HOSTS
        on_lockfailure = random.choice((LockFailureAction.PAUSE, LockFailureAction.POWEROFF))
        if scenario.hangs:
            on_lockfailure = LockFailureAction.PAUSE
        if scenario.ignores and self._ignoring.random() < IGNORING:
            on_lockfailure = LockFailureAction.IGNORE
            self.world.record(f"host{number}", "its virtual machines are to be left alone after a loss")
        spaces = tuple(space for space in self.spaces if not space.is_added)
        names = {space.name for space in spaces}
        return configured(
            spaces,
            {volume.root: volume for volume in self.volumes.values() if volume.disk.name in names},
            host_id=None if scenario.auto_ids else self.host_id(number),
            hosts_max=scenario.hosts_max if few else scenario.lease_hosts,
            timing=timing,
            watchdog="wdmd" if scenario.wdmd else "device",
            on_lockfailure=on_lockfailure,
            names=self.names,
            two_backends=scenario.two_backends,
            clients=scenario.clients,
            by_identity=self.is_updated(number),
        )

    def _first(self, process: Process, resource: str) -> str:
        """Repairs of an attempt that failed are no attempt: they take a lease to release it."""
        disk = self.names.first(resource)
        daemon = next((d for d in self.daemons.values() if d.process is process), None)
        if not disk or not isinstance(daemon, ManagedDaemon):
            return ""
        under_way = daemon.manager.key_locks.on
        paths = [n for n in self.names.paths if resource_of(disk, n) in under_way]
        return disk if resource in [self.names.beside(disk, n) for n in paths] else ""

    def is_updated(self, number: int) -> bool:
        """Whether the daemon that a host starts now knows disks by what they are."""
        match self.scenario.naming:
            case Naming.ONE:
                return False
            case Naming.ALIASES:
                return True
            case Naming.LATE:
                return self.world.now >= self.scenario.updates_at_s[number - 1]

    def _killed(self, machine: Machine, number: int) -> None:
        """libvirt ends the starts that were under way; systemd starts the daemon again after some time."""
        if self.scenario.kind is not Kind.MANAGED:
            return
        self.states[machine.name].daemon_gone()
        self._starts_end(machine)
        self.after_kill(machine, self.states[machine.name])
        self._daemon_in(self.world.random.choice(self.start_pauses_s), machine, number)

    def _executed(self, machine: Machine, number: int) -> None:
        """The next program begins when the kernel has ended the threads of the one before; it inherits open descriptors."""
        self.states[machine.name].processes.daemon_gone()
        self._starts_end(machine)
        self._daemon_in(self.world.random.choice((0.3, 1.0)), machine, number)

    def _starts_end(self, machine: Machine) -> None:
        state = self.states[machine.name]
        for pid in [*(vm.pid for vm in machine.vms if not vm.held), *sorted(state.rivals)]:
            state.processes.end(pid)
        state.rivals.clear()

    def _daemon_in(self, seconds: float, machine: Machine, number: int) -> None:
        boot = machine.boots
        self.world.after(
            seconds, lambda: self._booted(machine, number) if machine.up and machine.boots == boot else None
        )

    def _wdmd(self, machine: Machine, number: int) -> SimulatedWdmd | None:
        """The machines get both generations of wdmd in turn, the newer one first."""
        if not self.scenario.wdmd:
            return None
        return SimulatedWdmd(
            machine,
            self.scenario.fire_timeout_s,
            lambda: self.checkers.terms.fed(machine),
            opens_when_asked=number % 2 == 0,
        )

    def forget_terms(self, machine: Machine) -> None:
        for file in self.states[machine.name].state_files.values():
            file.raw = b""

    def _reset(self, machine: Machine) -> None:
        self.daemons.pop(machine.name, None)
        self.checkers.terms.machine_reset(machine)

"""holdfastd in the simulator: the object graph that ships, made by `build`, through the life that ships, in `lifecycle`.

    below:   `managed_ports`: threads that are tasks; disks, clocks, processes and files of this machine
    beside:  checkers, by a wrapped watchdog driver and by callbacks of lockspaces

The daemon may be killed, stopped or reloaded under running virtual machines: the next one resumes the incarnation and
adopts their locks, or the escalation stops them. The checkers follow a virtual machine, not the daemon: its lease must be
held as long as it may run. A lockspace of the daemon is a `ManagedSeat`, a disk a `ManagedDesk`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from holdfast.config import Config, DiskRule, LimitsTable, RecoveryTable, SanlockTable
from holdfast.config_change import differences
from holdfast.daemon import kept_config, lifecycle
from holdfast.daemon.build import build
from holdfast.daemon.kept_config import Kept, Start
from holdfast.daemon.reload import held_needs
from holdfast.errors import ConfigError
from holdfast.manager.journal_replay import SavedState, replay, replay_with_extent
from holdfast.model import LockFailureAction, Protection
from holdfast.protocol.timing import Timing
from holdfast.supervision.lockspace_supervisor import LockspaceState
from holdfast.system.files.daemon_lock import DaemonLocks
from holdfast.system.files.regular_file import Unreadable
from holdfast.system.host.descriptors import Inherited, encode_state
from holdfast.system.host.predecessor import Predecessors
from holdfast.system.libvirt.virsh import ANSWER_TIMEOUT_S, SUSPEND_TIMEOUT_S
from holdfast.system.watchdog.device import DeviceWatchdog
from holdfast.system.watchdog.first_feeding import feed_until
from holdfast_sim.check.leases import Checkers
from holdfast_sim.cluster.lockspace import AddedSeat, ManagedSeat
from holdfast_sim.cluster.sanlock_clients import ClientSite, HostClients
from holdfast_sim.cluster.space import Space
from holdfast_sim.cluster.vm import ManagedDesk
from holdfast_sim.host.checked_watchdog import CheckedWatchdog
from holdfast_sim.host.machine import Machine, MachineClock
from holdfast_sim.host.ports import MachineState, StateFile, armed_device, managed_ports
from holdfast_sim.storage.disk_names import DiskNames, resource_of
from holdfast_sim.storage.files import SimulatedStorage, Volume
from holdfast_sim.world import ProcessGone

NO_LOCKS = DaemonLocks(-1, -1, Predecessors(()))
"""Locks nothing: a simulated machine runs one daemon at a time in its directories."""


SECOND = "-archive"
"""What the name of a lockspace's second backend ends with."""


HANGING_STORAGE = 0.7
"""How often requests of a guest that is paused are under way on storage that hangs."""
HANGS_MAX_S = 60.0


class Libvirt:
    """`DomainControl`: pauses a domain and releases its lock, or does not answer. Requests of the guest may end later."""

    def __init__(self, daemon: ManagedDaemon) -> None:
        self._daemon = daemon
        self._random = Random(f"{daemon.world.seed} {daemon.machine.name}")

    async def suspend(self, uuid: str) -> bool:
        random = self._daemon.world.random
        await self._daemon.clock.sleep(random.uniform(0.1, 2))
        desk = next((d for d in self._daemon.desks if d.vm is not None and d.vm.uuid == uuid), None)
        # A guest that stands loses nothing by it.
        if desk is not None and desk.vm is not None and not desk.vm.paused:
            self._daemon.checks_that_it_is_lost(desk, "is paused")
        if desk is None or desk.vm is None or desk.vm.stubborn or random.random() < 0.3:
            return False
        hangs = self._daemon.hangs and self._random.random() < HANGING_STORAGE
        hangs_s = self._random.uniform(0.1, HANGS_MAX_S) if hangs else 0.0
        await desk.paused_by_libvirt(hangs_s)
        if not hangs_s:
            return True
        waits_s = self._random.choice((0.5, SUSPEND_TIMEOUT_S))  # libvirtd may also end meanwhile
        await self._daemon.clock.sleep(min(hangs_s, waits_s))
        return hangs_s < waits_s

    async def answers(self, uuid: str) -> bool:
        vm = next((vm for vm in self._daemon.machine.vms if vm.uuid == uuid), None)
        if vm is None or not vm.running:
            return False
        if vm.draining:
            await self._daemon.clock.sleep(self._random.choice((0.5, ANSWER_TIMEOUT_S)))
        return vm.running and not vm.draining

    async def start(self, uuid: str) -> bool:
        return True

    async def mark(self, uuid: str, reason: str) -> bool:
        return True


def configured(
    spaces: tuple[Space, ...],
    volumes: Mapping[str, Volume],
    *,
    host_id: int | None,
    hosts_max: int,
    timing: Timing,
    watchdog: str,
    on_lockfailure: LockFailureAction,
    names: DiskNames,
    by_identity: bool,
    two_backends: bool = False,
    clients: bool = False,
) -> Config:
    """The configuration that an operator writes for such a host: a backend per lockspace, a rule per path. `two_backends`:
    a second one per lockspace, which the last disk there is of. `clients`: sanlock's are served.
    """

    def backend_of(space: Space, resource: str) -> str:
        return f"{space.name}{SECOND}" if two_backends and resource == space.resources[-1] else space.name

    def table(space: Space, volume: Volume) -> dict[str, Any]:
        return {
            "driver": "paxos",
            "device" if volume.directory is None else "directory": volume.root,
            "lockspace": space.name,
            "host_id": "auto" if host_id is None else host_id,
            "hosts_max": hosts_max,
            "io_timeout_s": timing.io_timeout_s,
            "fire_timeout_s": timing.fire_timeout_s,
            "watchdog": watchdog,
            "on_lockfailure": on_lockfailure.value,
            "cross_host": True,
        }

    return Config(
        run_dir="/run/holdfast",
        state_dir="/var/lib/holdfast",
        default_backend=spaces[0].name,
        limits=LimitsTable(owners_max=100),
        sanlock=SanlockTable(socket="/run/sanlock/sanlock.sock" if clients else ""),
        recovery=RecoveryTable(on_lock_lost="poweroff"),
        backend={
            **{
                f"{space.name}{which}": table(space, volume)
                for space, volume in zip(spaces, volumes.values(), strict=True)
                for which in (("", SECOND) if two_backends else ("",))
            },
            "file": {"driver": "file"},  # the backend of built-in defaults, so every configuration has it
        },
        disk=tuple(
            DiskRule(
                backend=backend_of(space, resource),
                match=resource_of(resource, path).name,
                require_protection=Protection.FENCED.value,
                identity="auto" if by_identity else "path",
            )
            for space in spaces
            for resource in space.resources
            for path in names.paths
        ),
    )


def _chosen(state: MachineState, written: Config, inherited: Inherited, boot: str) -> Start | None:
    """The configuration that a start uses, as `kept_config.choose` decides on a real host."""
    reexec = inherited.reexec
    kept: Kept | Unreadable = Unreadable("", missing=True)
    if text := reexec.configuration if reexec is not None else state.kept:
        kept = kept_config.decode(text, "the kept configuration", boot)
    journal: Callable[[Config], SavedState] = lambda _: (  # noqa: E731
        replay(reexec.journal)
        if reexec is not None
        else replay_with_extent(state.journal.read(), state.journal_extent.read())
    )
    files = (state.state_files, state.run_files)
    usable = state.edited(written)
    return kept_config.decide(
        usable,
        [] if usable is not None else [ConfigError(file="holdfast.toml", key="syntax", reason="is not TOML")],
        kept,
        file=None,
        boot=boot,
        journal=journal,
        copies=lambda _: lambda lockspace: [each.setdefault(lockspace, StateFile()) for each in files],
    )


class ManagedDaemon:
    """One life of the daemon on one machine."""

    def __init__(
        self,
        *,
        machine: Machine,
        state: MachineState,
        config: Config,
        spaces: tuple[Space, ...],
        volumes: Mapping[str, Volume],
        stubborn_rate: float,
        checkers: Checkers,
        names: DiskNames,
        quiet: bool = False,
        hangs: bool = False,
        site: ClientSite | None = None,
        number: int = 0,
        io_timeout_s: int = 1,
        start_s: float | None = None,
    ) -> None:
        """`quiet`: only its state is damaged on this host; there are no other faults. `hangs`: requests of paused guests may
        end late. `site`: sanlock's clients, if they are played; they add lockspaces with host id `number` and that
        io_timeout. `start_s`: it adopts nothing before, and feeds the watchdog meanwhile; None: it adopts at once, as a
        release that leaves and reads no bound of its feedings.
        """
        self.machine = machine
        self.state = state
        self._start_s = start_s
        self.world = machine.world
        self.process = machine.start_process()
        self.stubborn_rate = stubborn_rate
        self.checkers = checkers
        self.names = names
        self.quiet = quiet
        self.hangs = hangs
        state.processes.on_end = self._vm_ended
        state.processes.on_signal = self._signalled
        ports = managed_ports(
            process=self.process,
            machine=machine,
            state=state,
            storage=SimulatedStorage(self.process, machine, volumes),
            domains=Libvirt(self),
            busy=self._busy,
            fed=lambda driver: CheckedWatchdog(driver, lambda: checkers.terms.fed(machine)),
            names=names,
            keeps_bound=start_s is not None,
            end_first_feeding=self._end_first_feeding,
        )
        self.clock = ports.clock
        inherited = state.inherited()
        if inherited.reexec is not None:
            machine.host_table.started(self.process, inherited.reexec.space_locks.values())
        self._first_feeding: MachineClock | None = None
        if start_s is not None:
            self._feed_first(inherited)
        self._written = config
        start = _chosen(state, config, inherited, ports.identity.boot)
        if start is None or (state.takes and not start.kept_because):
            self.world.fail(
                "nothing stops guarding", f"a start is without what is held: {state.takes}", machine
            )
        assert start is not None
        if start.kept_because and not state.takes:
            self.world.fail("liveness", f"a start refuses what takes nothing: {start.kept_because}", machine)
        config, self._before = start.config, start.before(ports.identity.boot)
        state.kept = self._before.configuration
        self.parts = build(
            config,
            ports,
            inherited,
            self._before,
            lambda news: self.seats[news.lockspace].observe(news),
        )
        self.manager = self.parts.manager
        self.clients = HostClients(self, site) if site is not None else None
        supervisors = {supervisor.name: supervisor for supervisor in self.parts.leases.supervisors}
        self.seats = {
            space.name: (
                AddedSeat(self, space, volume, number, io_timeout_s)
                if space.is_added
                else ManagedSeat(self, space, volume, supervisors[space.name])
            )
            for space, volume in zip(spaces, volumes.values(), strict=True)
        }
        self.serving = self._is_reloading = False
        self.world.record(machine.name, "its daemon starts")
        self.process.spawn(self._start())

    @property
    def alive(self) -> bool:
        return self.process.alive

    @property
    def desks(self) -> list[ManagedDesk]:
        return [desk for seat in self.seats.values() for desk in seat.desks.values()]

    def desk_of(self, resource: str) -> ManagedDesk:
        return next(desk for desk in self.desks if desk.resource == resource)

    def _feed_first(self, inherited: Inherited) -> None:
        """As `system.watchdog.first_feeding` does in a real program."""
        until = self.state.bound.read()
        armed = armed_device(inherited)
        if armed is None or until is None:
            return
        machine, clock = self.machine, MachineClock(self.process, self.machine)
        driver = DeviceWatchdog(armed.path, armed.fire_timeout_s, clock.now, machine.watchdog, fd=armed.fd)
        fed = CheckedWatchdog(driver, lambda: self.checkers.terms.fed(machine))
        self._first_feeding = clock
        self.process.spawn(feed_until(fed, until, clock))

    def _end_first_feeding(self) -> None:
        if self._first_feeding is not None:
            self._first_feeding.interrupt()

    async def _start(self) -> None:
        if self._start_s is not None:
            await self.clock.sleep(self._start_s)
        await lifecycle.adopt(self.parts)
        if self.clients is not None:
            self.clients.socket.restore()
        lifecycle.begin(self.parts)
        self.serving = True
        lifecycle.account_for_left_behind(self.parts)
        if self.clients is not None:
            for seat in self.seats.values():
                if isinstance(seat, AddedSeat):
                    self.process.spawn(seat.keep_added(self.clients))
            await self.clients.connect_again()

    # --- orders of operators ---

    async def reload(self) -> None:
        """`systemctl reload`: the daemon executes the program on disk and keeps its descriptors."""
        if not self.serving:
            return
        self.world.record(self.machine.name, "its daemon is to reload")
        await lifecycle.reload(
            self.parts, why_not=self._why_not_next, execute=self._execute_next, busy=self._busy
        )
        self.serving = True

    async def _why_not_next(self) -> list[str]:
        await self.clock.sleep(self.world.random.uniform(0.2, 2))
        if self._is_reloading:
            return ["another reload is under way"]
        self.state.edit()
        wanted = self.state.edited(self._written)
        if wanted is None:
            return ["the configuration on disk is not TOML"]
        held = held_needs(self.manager, self.parts.leases)
        if reasons := differences(self.parts.config, wanted, held):
            if not self.state.takes:
                self.world.fail("liveness", f"a reload refuses what takes nothing: {reasons}", self.machine)
            return reasons
        if self.state.takes:
            self.world.fail("nothing stops guarding", f"a reload gives up: {self.state.takes}", self.machine)
        self.serving, self._is_reloading = False, True
        return []

    def _execute_next(self) -> None:
        self.state.reexec = encode_state(self.parts.handover.state({}, [], NO_LOCKS))
        self.machine.exec_process(self.parts.leases.space_locks().values())
        raise ProcessGone

    async def stop(self) -> None:
        """`systemctl restart`: an orderly stop, and a start."""
        if not self.serving:
            return
        self.world.record(self.machine.name, "its daemon is to stop")
        await lifecycle.stop(self.parts, self._close_clients)
        self.machine.kill_process("stopped")
        raise ProcessGone

    def _close_clients(self) -> None:
        self.serving = False
        if self.clients is not None:
            self.clients.close()

    def _busy(self) -> bool:
        return any(desk.busy for desk in self.desks)

    def _signalled(self, pid: int, number: int) -> None:
        for desk in self.desks:
            if desk.vm is not None and desk.vm.pid == pid:
                self.checks_that_it_is_lost(desk, f"gets signal {number}")

    def checks_that_it_is_lost(self, desk: ManagedDesk, what: str) -> None:
        """Check that a virtual machine is paused or killed only after its lease or lockspace was lost."""
        was_restored = any(
            self.checkers.is_unsettled(desk.seat.space.name, name)
            for name in self.names.leases(desk.resource).values()
        )
        is_taken = any(
            desk.resource in term.beliefs
            for term in self.checkers.terms.running
            if term.disk == desk.seat.space.name and term.machine is not self.machine
        )
        is_asked = self.clients is not None and self.clients.is_asked(desk)
        if desk.seat.state is not LockspaceState.LOST and not (was_restored or is_taken or is_asked):
            self.world.fail(
                "doubt kills nobody",
                f"{desk.vm and desk.vm.name} {what}, and {desk.seat.space.name} is {desk.seat.state.value}",
                self.machine,
            )

    def _vm_ended(self, pid: int) -> None:
        for vm in [vm for vm in self.machine.vms if vm.pid == pid]:
            vm.running = False
            self.machine.vms.remove(vm)
            if vm.is_persistent and vm.held:
                self.checkers.orphaned(vm)
            else:
                self.checkers.writes_no_more(vm)
            if self.clients is not None:
                self.clients.ended(pid)
            if self.state.status is not None:
                self.state.status.remove(vm)

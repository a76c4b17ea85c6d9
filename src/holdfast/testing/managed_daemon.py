"""holdfastd's own composition in the simulator: manager, recovery, paxos backend and lockspace keepers as they ship.

    LockManager ─ LeaseRecovery, Recovery ─ PaxosBackend ─ LockspaceKeeper ─ Lockspace, Heartbeat ─ DeviceWatchdog
    below:  threads that are tasks, disks, clocks, processes, the journal's file and the memory of terms of this machine

The daemon may be killed and started again under running virtual machines: the next one goes on with the term and adopts
their locks, or the ladder stops them. The checkers follow a virtual machine, not the daemon: what it rests on must stand
all the time. A lockspace of it is a `ManagedSeat`, a disk a `ManagedDesk`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from holdfast.backends.base import Backend
from holdfast.manager.events import Events
from holdfast.manager.journal import Journal, SavedState
from holdfast.manager.lease_breaker import LeaseBreaker
from holdfast.manager.lease_collection import LeaseCollector
from holdfast.manager.lease_recovery import LeaseRecovery
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lockspaces import Lockspaces
from holdfast.manager.recovery import Recovery
from holdfast.manager.routing import Route, Routing, Rule
from holdfast.model import LockFailureAction, Protection
from holdfast.protocol.timing import Timing
from holdfast.supervision.heartbeat import Heartbeat
from holdfast.supervision.host_terms import HostIdentity
from holdfast.system import tasks
from holdfast.system.blocking import InlineStorage
from holdfast.system.lockspace_files import LockspaceFiles
from holdfast.system.watchdog import DeviceWatchdog, Watchdog
from holdfast.system.wdmd import WdmdWatchdog
from holdfast.testing.checkers import Checkers
from holdfast.testing.machine import Machine, MachineClock
from holdfast.testing.machine_ports import MachineState
from holdfast.testing.managed_desk import ManagedDesk
from holdfast.testing.managed_seat import ManagedSeat
from holdfast.testing.shared_files import SimulatedStorage, Volume
from holdfast.testing.simulated_daemon import CheckedWatchdog, Space
from holdfast.testing.simulated_wdmd import SimulatedWdmd


class Libvirt:
    """`DomainControl`: pauses a domain and has its lock released, or does not answer."""

    def __init__(self, daemon: ManagedDaemon) -> None:
        self._daemon = daemon

    async def suspend(self, uuid: str) -> bool:
        random = self._daemon.world.random
        await self._daemon.clock.sleep(random.uniform(0.1, 2))
        desk = next((d for d in self._daemon.desks if d.vm is not None and d.vm.uuid == uuid), None)
        if desk is None or desk.vm is None or desk.vm.stubborn or random.random() < 0.3:
            return False
        await desk.paused_by_libvirt()
        return True

    async def start(self, uuid: str) -> bool:
        return True


class ManagedDaemon:
    """One life of the daemon on one machine."""

    def __init__(
        self,
        *,
        machine: Machine,
        state: MachineState,
        spaces: tuple[Space, ...],
        volumes: Mapping[str, Volume],
        host_id: int | None,
        hosts_max: int,
        timing: Timing,
        stubborn_rate: float,
        checkers: Checkers,
    ) -> None:
        state.booted()
        self.machine = machine
        self.state = state
        self.world = machine.world
        self.process = machine.start_process()
        self.timing = timing
        self.stubborn_rate = stubborn_rate
        self.checkers = checkers
        self.clock = MachineClock(self.process, machine)
        state.processes.on_end = self._vm_ended
        driver = self._driver(state.wdmd)
        self.heartbeat = Heartbeat(
            clock=MachineClock(self.process, machine),
            watchdog=CheckedWatchdog(driver, lambda: checkers.terms.fed(machine)),
        )
        self.storage = SimulatedStorage(self.process, machine, volumes)
        self.seats = {
            space.name: ManagedSeat(self, space, volume, host_id, hosts_max)
            for space, volume in zip(spaces, volumes.values(), strict=True)
        }
        action = self.world.random.choice((LockFailureAction.PAUSE, LockFailureAction.POWEROFF))
        backends: dict[str, Backend] = {name: seat.backend(action) for name, seat in self.seats.items()}
        rules = [
            Rule(f"/disks/{resource}", Route(backends[space.name], Protection.FENCED), of_lockspace=False)
            for space in spaces
            for resource in space.resources
        ]
        self._boot = f"{machine.name}-{machine.boots}"
        self.journal = Journal(
            state.journal,
            boot=self._boot,
            host=machine.name,
            snapshot=lambda: self.manager.journal_lines(),  # noqa: PLW0108 - there is no manager yet
        )
        self.manager = LockManager(
            routing=Routing(rules, rules[0].route, backends),
            lockspaces=Lockspaces(files=LockspaceFiles(), storage=InlineStorage(), journal=self.journal),
            journal=self.journal,
            processes=state.processes,
            clock=self.clock,
            events=Events(self.clock.wall),
            host=machine.name,
            owners_max=100,
        )
        self.collector = LeaseCollector(self.manager)
        self.breaker = LeaseBreaker(self.manager, clock=self.clock, record=state.broken.append)
        libvirt = Libvirt(self)
        self.lease_recovery = LeaseRecovery(
            self.manager,
            clock=self.clock,
            domains=libvirt,
            status=None,
            actions=dict.fromkeys(backends, action),
        )
        self.recovery = Recovery(
            self.manager,
            processes=state.processes,
            clock=self.clock,
            domains=libvirt,
            on_lock_lost=LockFailureAction.POWEROFF,
        )
        self.serving = False
        self.world.tell(machine.name, "its daemon starts")
        self.process.spawn(self._start())

    def _driver(self, wdmd: SimulatedWdmd | None) -> Watchdog:
        fire_timeout_s, now, device = self.timing.fire_timeout_s, self.clock.now, self.machine.watchdog
        if wdmd is not None:
            # No host is suspended here, so its two clocks are one.
            return WdmdWatchdog(
                fire_timeout_s,
                now,
                their_now=self.machine.boottime,
                connection=wdmd.connection,
                fd=wdmd.kept_fd,
            )
        fd = 3 if device.fires_at is not None else None
        return DeviceWatchdog("/dev/watchdog", fire_timeout_s, now, device, fd=fd)

    def identity(self) -> HostIdentity:
        return HostIdentity(self.machine.name, f"{self.machine.name}-{self.machine.boots}", self.machine.name)

    def lease_writes(self, lockspace: str) -> Callable[[], bool]:
        """As `DeviceWrites.in_flight` tells it: whether a write of ours to its disk that is under way now may still land."""
        path = self.machine.paths[lockspace]
        seen = [write for write in path.writes if write.process is self.process]
        return lambda: any(write.changes and write in path.writes for write in seen)

    @property
    def alive(self) -> bool:
        return self.process.alive

    @property
    def desks(self) -> list[ManagedDesk]:
        return [desk for seat in self.seats.values() for desk in seat.desks.values()]

    async def _start(self) -> None:
        """As `handover.adopt` and `daemon.run` do it."""
        state: SavedState = self.journal.load()
        if state.boot != self._boot:
            state = SavedState(boot=self._boot)
        living = self.recovery.owners(state)
        await self.recovery.locks(state, living, {}, self._start_keepers)
        self.journal.compact()
        for owner in living.values():
            if not owner.alive():
                self.manager.owner_ended(owner)
        self.serving = True
        for name, seat in self.seats.items():
            if seat.keeper.gone_on:
                self.collector.free_left_behind({name})

    async def _start_keepers(self) -> None:
        self.process.spawn(self.heartbeat.run())
        tried = []
        for seat in self.seats.values():
            done: asyncio.Future[None] = self.process.loop.create_future()
            seat.keeper.start(partial(tasks.resolve, done, None))
            if seat.keeper.resuming:
                tried.append(done)
        if tried:
            await asyncio.wait(tried, timeout=10)

    def _vm_ended(self, pid: int) -> None:
        for vm in [vm for vm in self.machine.vms if vm.pid == pid]:
            vm.running = False
            self.machine.vms.remove(vm)
            for term in [t for t in self.checkers.terms.running if t.vms.get(vm.resource) is vm]:
                self.checkers.stopped(term, vm.resource)
                self.checkers.gave_up(term, vm.resource)

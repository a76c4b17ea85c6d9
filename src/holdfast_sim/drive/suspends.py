"""An operator who suspends virtual machines while nothing is lost, on sites that pause them (`Habits.pauses`).

libvirt releases the guest's lock when QEMU reports the stop; requests of the guest may be under way for a while. In the end
the guest runs on, as after a snapshot, or its process ends, as before a start elsewhere. Choices come from a separate
generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from holdfast.protocol.paxos_release import Mode
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import HANGS_MAX_S, ManagedDaemon
from holdfast_sim.cluster.vm import ManagedDesk
from holdfast_sim.host.machine import Machine, VirtualMachine
from holdfast_sim.host.status_files import StatusFiles

EVERY_S = 6.0
"""Mean seconds between two in the whole cluster."""
RESUMED = 0.4
"""How often a guest that has its disk alone runs on."""
RESUMED_MAX_S = 8.0
ENDS_S = 5.0
"""Later its process ends if the daemon was killed while it was to run on."""


@dataclass
class Suspends:
    """Gives one order at a time, at random moments, until `stopped`."""

    cluster: Cluster
    random: Random
    stopped: bool = False

    def __post_init__(self) -> None:
        if self.cluster.scenario.hangs:
            for name, state in self.cluster.states.items():
                if state.status is None:
                    seed = self.cluster.world.seed
                    state.status = StatusFiles(Random(f"status files of {name} {seed}"))
            self._next()

    def _next(self) -> None:
        self.cluster.world.after(self.random.expovariate(1 / EVERY_S), self._give)

    def _give(self) -> None:
        if self.stopped:
            return
        self._next()
        desks = [
            desk
            for daemon in self.cluster.living_daemons()
            for desk in daemon.desks
            if (vm := desk.lease) is not None and vm.writes and not (desk.busy or _is_busy(vm))
        ]
        if not desks:
            return
        desk = self.random.choice(desks)
        vm = desk.lease
        assert vm is not None
        seconds = self.random.uniform(0.1, HANGS_MAX_S)
        if self._is_alone(vm) and self.random.random() < RESUMED:
            seconds = min(seconds, RESUMED_MAX_S)
            self.cluster.world.after(seconds, lambda: self._resume(desk.seat.daemon.machine, vm))
            seconds += ENDS_S
        desk.seat.daemon.process.spawn(desk.paused_by_libvirt(seconds))

    def _is_alone(self, vm: VirtualMachine) -> bool:
        return any(
            t.vms.get(vm.resource) is vm and t.beliefs.get(vm.resource) is Mode.EXCLUSIVE
            for t in self.cluster.checkers.terms.running
        )

    def _resume(self, machine: Machine, vm: VirtualMachine) -> None:
        daemon = self.cluster.daemons.get(machine.name)
        if (
            isinstance(daemon, ManagedDaemon)
            and daemon.alive
            and daemon.serving
            and vm.running
            and vm.draining
        ):
            daemon.process.spawn(self._runs_on(daemon.desk_of(vm.resource), vm))

    async def _runs_on(self, desk: ManagedDesk, vm: VirtualMachine) -> None:
        await desk.acquired_again(vm)
        if vm.running and not vm.paused:
            vm.draining = False
            self.cluster.world.record(vm.machine.name, f"{vm.name} runs on, after a suspend")


def _is_busy(vm: VirtualMachine) -> bool:
    """libvirt has a job for it, or knows nothing of it."""
    return vm.draining or vm.migrating or vm.is_client

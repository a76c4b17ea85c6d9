"""The nemesis injects faults: pauses, kills, loss of power, failing storage. At the end it heals everything.

It acts at random moments, and its durations are chosen with care: a pause is often as long as one of the bounds that the
protocols depend on, and a path hangs until just before or just after its host has lost its leases.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.ondisk.delta import FLAG_NO_TIMEOUT
from holdfast_sim.cluster.cluster import Cluster, Kind
from holdfast_sim.cluster.lockspace import ManagedSeat
from holdfast_sim.cluster.protocol_daemon import Seat
from holdfast_sim.host.machine import Machine
from holdfast_sim.storage.disk import FaultProfile, Path


class Nemesis:
    """Injects faults at random moments, drawn from the seed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.stopped = False
        scenario = cluster.scenario
        io_s, fire_s = max(scenario.io_timeouts_s), scenario.fire_timeout_s
        self._bounds_s: tuple[float, ...] = (
            0.3,
            1.0,
            2.0 * io_s,
            6.0 * io_s,
            8.0 * io_s,
            8.0 * io_s + fire_s,
            fire_s,
        )
        self._deeds: list[tuple[float, Callable[[Machine], None]]] = [
            (4, self._pause),
            (3, self._stall),
            (1, self._suspend),
            (1, self._kill),
            (1, self._power_off),
            (3, self._hang),
            (2, self._cut),
            (1, self._leave),
            (1, self._lose_watchdog),
        ]
        if scenario.kind is Kind.STORM:
            self._bounds_s = (0.3, 1.0, 2.0 * io_s, 4.0 * io_s)
            self._deeds = [
                (3, self._pause),
                (4, self._stall),
                (1, self._cut),
                (1, self._hang),
                (1, self._power_off),
            ]
        if scenario.kind is Kind.MANAGED:
            self._deeds += [
                (2, self._kill),
                (3, self._hang_and_kill),
                (4, self._convert_and_kill),
                (1, self._unmount),
                (0.5, self._wipe),
            ]
        if scenario.made[1] & FLAG_NO_TIMEOUT:
            # A host that has forgotten its name needs an operator who frees its old host id.
            self._deeds = [deed for deed in self._deeds if deed[1] != self._wipe]
        if scenario.wdmd:
            # wdmd's clock does not count a suspend, so the expiry that it was given last moves (ADR 0109).
            self._deeds = [deed for deed in self._deeds if deed[1] != self._suspend]
        if scenario.kind is Kind.TWINS:
            self._deeds = [
                (4, self._pause),
                (3, self._hang),
                (3, self._power_off),
                (1, self._stall),
                (1, self._kill),
            ]
        self._next()

    def heal(self) -> None:
        """End all faults, and inject no more."""
        self.stopped = True
        self.world.record("", "everything heals")
        for disk in self.cluster.disks:
            disk.manners = FaultProfile(latency_s=0.005)
        for machine in self.cluster.machines:
            if machine.process is not None:
                machine.process.heal()
            machine.watchdog.missing = False
            machine.unmounted.clear()
            for path in machine.paths.values():
                path.mend()

    def _next(self) -> None:
        self.world.after(
            self.world.random.expovariate(1 / self.cluster.scenario.trouble_every_s), self._strike
        )

    def _strike(self) -> None:
        if self.stopped:
            return
        self._next()
        random = self.world.random
        machine = random.choice(self.cluster.machines)
        if machine.up:
            (deed,) = random.choices([d for _, d in self._deeds], [w for w, _ in self._deeds])
            deed(machine)

    def _about_a_bound(self) -> float:
        random = self.world.random
        return random.choice(self._bounds_s) * random.uniform(0.7, 1.3)

    # --- the faults ---

    def _pause(self, machine: Machine) -> None:
        seconds = self._about_a_bound()
        if machine.process is not None and machine.process.alive:
            self.world.record(machine.name, f"its daemon is stopped for {seconds:.1f} s")
            machine.process.freeze(seconds)

    def _stall(self, machine: Machine) -> None:
        if machine.process is None:
            return
        random = self.world.random
        kind = random.choice(("", "", "clock", "device"))
        machine.process.stall_in(random.randrange(6 if kind == "device" else 40), self._about_a_bound(), kind)

    def _suspend(self, machine: Machine) -> None:
        seconds = self._about_a_bound()
        self.world.record(machine.name, f"is suspended for {seconds:.1f} s")
        machine.suspend(seconds)

    def _kill(self, machine: Machine) -> None:
        machine.kill_process("killed")

    def _hang_and_kill(self, machine: Machine) -> None:
        """An operator restarts the daemon because one storage hangs, for longer than the lease lasts."""
        path = machine.paths[self.world.random.choice(list(machine.paths))]
        self.world.record(machine.name, f"its path to {path.disk.name} hangs for long")
        path.hanging = True
        self.world.after(2.5 * max(self._bounds_s), path.mend)
        self.world.after(self.world.random.uniform(0, 4), lambda: machine.kill_process("restarted"))

    def _convert_and_kill(self, machine: Machine) -> None:
        """The daemon dies during a conversion, while storage, journal and virtual machine differ."""
        daemon = self.cluster.daemons.get(machine.name)
        if daemon is None or not daemon.alive:
            return
        held = [desk for desk in daemon.desks if desk.lease is not None]
        if held:
            desk = self.world.random.choice(held)
            daemon.process.spawn(desk.convert())
            self.world.after(
                self.world.random.uniform(0, 12) * self.cluster.scenario.manners.latency_s,
                lambda: machine.kill_process("killed while it converts"),
            )

    def _power_off(self, machine: Machine) -> None:
        machine.reset("power off")

    def _hang(self, machine: Machine) -> None:
        self._trouble(machine, "hangs", lambda path: setattr(path, "hanging", True))

    def _cut(self, machine: Machine) -> None:
        self._trouble(machine, "answers errors", lambda path: setattr(path, "errors", True))

    def _trouble(self, machine: Machine, what: str, make: Callable[[Path], None]) -> None:
        name = self.world.random.choice(list(machine.paths))
        path, seconds = machine.paths[name], self._about_a_bound()
        self.world.record(machine.name, f"its path to {name} {what} for {seconds:.1f} s")
        make(path)
        self.world.after(seconds, path.mend)

    def _lose_watchdog(self, machine: Machine) -> None:
        """The driver is unloaded, or another program has the device: only an open notices that."""
        machine.watchdog.missing = True
        self.world.after(self._about_a_bound(), lambda: setattr(machine.watchdog, "missing", False))

    def _unmount(self, machine: Machine) -> None:
        """A lease directory is unmounted lazily: open files stay open, its path shows what is below the mount point."""
        roots = [v.root for v in self.cluster.volumes.values() if v.directory is not None]
        if not roots:
            return
        root = self.world.random.choice(roots)
        self.world.record(machine.name, f"{root} is unmounted")
        machine.unmounted[root] = self.cluster.below[machine.name, root]

        def mounted() -> None:
            machine.unmounted.pop(root, None)

        self.world.after(self._about_a_bound(), mounted)

    def _wipe(self, machine: Machine) -> None:
        """The machine loses its record of its incarnations, as after a new installation."""
        self.world.record(machine.name, "forgets its terms")
        self.cluster.forget_terms(machine)

    def _leave(self, machine: Machine) -> None:
        """An operator takes the host out of a lockspace for a while."""
        daemon = self.cluster.daemons.get(machine.name)
        if daemon is None or not daemon.alive:
            return
        seats: list[Seat | ManagedSeat] = [*daemon.seats.values()]
        seat = self.world.random.choice(seats)
        if seat.leave():
            self.world.record(machine.name, f"leaves {seat.space.name}")
            self.world.after(self.world.random.uniform(1, 20), lambda: setattr(seat, "stay", True))

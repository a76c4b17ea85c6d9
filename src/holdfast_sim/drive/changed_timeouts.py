"""Operators who change the io_timeout of a host while it is in a lockspace, as `holdfast lockspace set` does and sanlock 5's
clients do: raised before storage is worked on, lowered afterwards. The work often begins early, or a daemon is killed in the
midst of it. Choices come from a separate generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from holdfast.supervision.lockspace_supervisor import LockspaceSupervisor
from holdfast_sim.cluster.cluster import NEVER_S, Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.host.machine import Machine
from holdfast_sim.storage.disk import Path

CHANGED_TO_S = (1, 2, 3)
EVERY_S = 8.0
"""Mean seconds between two orders in the whole cluster."""
TROUBLE = 0.7
"""The share of orders that are followed by trouble for that host, where there is any."""
SOON_S = 2.0
"""Trouble comes within that time: a change takes about two renewals."""


@dataclass
class ChangedTimeouts:
    """Gives one order at a time, at random moments, until `stopped`."""

    cluster: Cluster
    random: Random
    stopped: bool = False

    def __post_init__(self) -> None:
        if self.cluster.scenario.changed_timeouts:
            self._next()

    def _next(self) -> None:
        self.cluster.world.after(self.random.expovariate(1 / EVERY_S), self._give)

    def _give(self) -> None:
        if self.stopped:
            return
        self._next()
        daemons = self.cluster.living_daemons()
        if not daemons:
            return
        daemon = self.random.choice(daemons)
        supervisor = self.random.choice(daemon.parts.leases.supervisors)
        before_s, after_s = supervisor.timing.io_timeout_s, self.random.choice(CHANGED_TO_S)
        daemon.process.spawn(change(daemon, supervisor, after_s))
        if self.random.random() < TROUBLE and self.cluster.scenario.trouble_every_s < NEVER_S:
            about_s = self.random.choice((8 * before_s, 8 * after_s, supervisor.timing.dead_s))
            seconds, path = about_s * self.random.uniform(0.5, 1.3), daemon.machine.paths[supervisor.name]
            deed = self.random.choice(
                (
                    lambda: self._hang(daemon.machine, path, seconds),
                    lambda: daemon.machine.kill_process("killed in a change of its io_timeout"),
                )
            )
            self.cluster.world.after(self.random.uniform(0, SOON_S), deed)

    def _hang(self, machine: Machine, path: Path, seconds: float) -> None:
        if self.stopped:
            return
        self.cluster.world.record(machine.name, f"its path to {path.disk.name} hangs for {seconds:.1f} s")
        path.hanging = True
        self.cluster.world.after(seconds, path.mend)


async def change(daemon: ManagedDaemon, supervisor: LockspaceSupervisor, io_timeout_s: int) -> None:
    """Order it once."""
    term = daemon.seats[supervisor.name].term if supervisor.name in daemon.seats else None
    refused = supervisor.change_io_timeout(io_timeout_s)
    if term is not None and not refused:
        term.ordered_io_timeout_s = io_timeout_s
    daemon.world.record(
        daemon.machine.name,
        f"changes io_timeout of {supervisor.name} to {io_timeout_s} s: {refused or 'it is under way'}",
    )

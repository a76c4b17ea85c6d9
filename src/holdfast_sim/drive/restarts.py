"""Orderly restarts, by operators and package upgrades: reloads, and stops that are followed by a start.

Choices come from a separate generator, so that a seed without restarts keeps its history.
"""

from __future__ import annotations

from random import Random

from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon

OFTEN_S = (0.0, 0.0, 5.0, 15.0)
"""Mean seconds between two restarts in the whole cluster; 0 (never) in half of the seeds."""


class Restarts:
    """Restarts one daemon at a time, at random moments, until `stopped`."""

    def __init__(self, cluster: Cluster, every_s: float, random: Random) -> None:
        self._cluster = cluster
        self._every_s = every_s
        self._random = random
        self.stopped = False
        if every_s:
            self._next()

    def _next(self) -> None:
        self._cluster.world.after(self._random.expovariate(1 / self._every_s), self._restart)

    def _restart(self) -> None:
        if self.stopped:
            return
        self._next()
        daemons = [d for d in self._cluster.daemons.values() if isinstance(d, ManagedDaemon) and d.alive]
        reloads = self._random.random() < 0.7
        if daemons:
            daemon = self._random.choice(daemons)
            daemon.process.spawn(daemon.reload() if reloads else daemon.stop())

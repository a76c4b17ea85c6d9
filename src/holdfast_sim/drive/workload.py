"""Orders of users and libvirt: start, stop, share, convert, migrate, request; and virtual machines that crash."""

from __future__ import annotations

from holdfast.protocol.paxos_release import Mode
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.protocol_daemon import Desk
from holdfast_sim.cluster.vm import ManagedDesk


class Workload:
    """Gives one order at a time, at random moments, until `stopped`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.stopped = False
        self._next()

    def _next(self) -> None:
        rate = 1 / self.cluster.scenario.work_every_s
        self.world.after(self.world.random.expovariate(rate), self._act)

    def _act(self) -> None:
        if self.stopped:
            return
        self._next()
        random = self.world.random
        daemons = [d for d in self.cluster.daemons.values() if d.alive]
        if not daemons:
            return
        desks: list[Desk | ManagedDesk] = [*random.choice(daemons).desks]
        desk = random.choice(desks)
        rng = random.random()
        if desk.lease is None:
            mode = Mode.EXCLUSIVE if random.random() < 0.65 else Mode.SHARED
            if rng < 0.85:
                spawn(desk, "start", mode, wait=random.random() < 0.5)
            else:
                spawn(desk, "ask_for")
        elif rng < 0.35:
            spawn(desk, "stop")
        elif rng < 0.6:
            spawn(desk, "convert")
        elif rng < 0.75:
            self._migrate(desk)

    def _migrate(self, desk: Desk | ManagedDesk) -> None:
        """As libvirt does it: the source releases, then the destination starts."""
        others = [
            d for d in self.cluster.daemons.values() if d.alive and d.machine is not desk.seat.daemon.machine
        ]
        if not others:
            return
        there = self.world.random.choice(others).seats[desk.seat.space.name].desks[desk.resource]
        leaving = desk.seat.daemon.process.spawn(desk.stop())

        def arrive(_: object) -> None:
            if there.seat.daemon.alive:
                spawn(there, "start", Mode.EXCLUSIVE, wait=False)

        leaving.add_done_callback(arrive)


def spawn(desk: Desk | ManagedDesk, what: str, *args: object, **options: object) -> None:
    """Run it as a task of the desk's daemon."""
    desk.seat.daemon.process.spawn(getattr(desk, what)(*args, **options))

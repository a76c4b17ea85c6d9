"""Operators restore lockspaces and leases from older copies, or make a lockspace again, under running hosts (ADR 0166).

    lockspace    its area as it was minutes ago, or as `lockspace init` of sanlock makes it: records that are free, older
                 or of another host. Hosts lose their incarnations; no lease goes to two, and no generation is used twice
    lease        its area as it was minutes ago: another host may win it until its holder reads it again. By then the
                 holder has the lease once more, or its virtual machine has ended

The clocks of these machines know the date, so generations count from it, and daemons read held leases again. Nothing
else goes wrong with storage or machines, so nothing else can be to blame; daemons are restarted and orders are given.
Drawn from a generator of its own, so that a seed in which nobody restores anything plays what it played before.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from holdfast.ondisk.leader import Leader
from holdfast_sim.check.lease_names import LeasePlace
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.cluster.protocol_daemon import Daemon
from holdfast_sim.host.machine import Machine
from holdfast_sim.storage.disk import SharedDisk
from holdfast_sim.storage.disk_names import base, disk_of

OFTEN_S = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 12.0, 30.0)
"""How often something is restored, in the whole cluster; 0: never, in three of four seeds."""
COPIES_EVERY_S = 4.0
"""How often a copy is made that may be restored later."""
REREAD_S = 5.0
"""The round in which daemons read held leases again; a minute on a real host."""
NOTICED_S = 2 * REREAD_S + 6.0
"""Until a daemon that serves has read every lease that was restored: a round may have begun just before, and an attempt to
take it again, or a kill, takes its time."""
NOTICED_MAX_S = 60.0
"""Attempts that end in a time-out are repeated; by then one must have ended otherwise."""
LOOK_S = 0.5
LOCKSPACES = 0.5
"""Of what is restored, how much is a lockspace."""


@dataclass(frozen=True)
class _Copy:
    """An area as it was, and the lease that was there; None: the lockspace."""

    offset: int
    content: bytes
    """Without the zeros at its end."""
    place: LeasePlace | None


class RestoredAreas:
    """Makes copies and restores them at random moments, until `stopped`. `every_s`: how often; 0: never."""

    def __init__(self, cluster: Cluster, every_s: float, rng: Random) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._every_s = every_s
        self._rng = rng
        self._copies: dict[str, list[_Copy]] = {disk.name: [] for disk in cluster.disks}
        self._restored_at: dict[tuple[str, str], float] = {}
        """When a lease was restored, by disk and resource, until its holders have had the time to notice."""
        self._serving: dict[Machine, Daemon | ManagedDaemon | None] = {}
        self._served_since: dict[Machine, float] = {}
        self.stopped = False
        self.are_played = bool(every_s)
        if not every_s:
            return
        cluster.hosts_know_the_date()
        for state in cluster.states.values():
            state.reread_s = REREAD_S
        self._copy()
        self._look()
        self._next()

    def _copy(self) -> None:
        """Each lockspace and each lease that has a name, now. The first copy of a lockspace is what init made."""
        if self.stopped:
            return
        size = self._cluster.scenario.geometry.align_bytes
        for disk in self._cluster.disks:
            copies = self._copies[disk.name]
            copies.append(_Copy(0, bytes(disk.content[:size]).rstrip(b"\0"), None))
            for place in self._cluster.checkers.leases.named_on(disk.name):
                if place.resource:
                    content = bytes(disk.content[place.offset : place.offset + size])
                    copies.append(_Copy(place.offset, content.rstrip(b"\0"), place))
        self._world.after(COPIES_EVERY_S, self._copy)

    def _next(self) -> None:
        self._world.after(self._rng.expovariate(1 / self._every_s), self._restore)

    def _restore(self) -> None:
        if self.stopped:
            return
        self._next()
        disk = self._rng.choice(self._cluster.disks)
        if self._rng.random() < LOCKSPACES:
            self._restore_lockspace(disk)
        else:
            self._restore_lease(disk)

    def _restore_lockspace(self, disk: SharedDisk) -> None:
        copies = [copy for copy in self._copies[disk.name] if copy.place is None]
        copy = copies[0] if self._rng.random() < 0.4 else self._rng.choice(copies)
        self._world.record("", f"{disk.name} is {'made again' if copy is copies[0] else 'restored'}")
        self._put(disk, copy)
        self._cluster.checkers.lockspace_restored(disk)

    def _restore_lease(self, disk: SharedDisk) -> None:
        """One that still has its name, by a copy of the same lease: a place that another one has is not restored to it."""
        leases = self._cluster.checkers.leases
        copies = [c for c in self._copies[disk.name] if c.place is not None and leases.is_named(c.place)]
        copies = [c for c in copies if isinstance(Leader.decode(c.content[: disk.sector_bytes]), Leader)]
        if not copies:
            return
        copy = self._rng.choice(copies)
        assert copy.place is not None
        self._world.record("", f"the lease of {copy.place.resource} is restored")
        self._put(disk, copy)
        self._cluster.checkers.lease_restored(disk.name, copy.place.resource)
        self._restored_at[disk.name, copy.place.resource] = self._world.now

    def _is_lost(self, resource: str) -> bool:
        """Whether a daemon is still trying to take a lock again that a virtual machine runs on."""
        for daemon in self._cluster.daemons.values():
            assert isinstance(daemon, ManagedDaemon)
            disk = base(resource)
            locks = [lock for lock in daemon.manager.table if disk in map(disk_of, lock.names())]
            if any(lock.held is None for lock in locks) and daemon.desk_of(disk).vm is not None:
                return True
        return False

    def _put(self, disk: SharedDisk, copy: _Copy) -> None:
        disk.put(copy.offset, copy.content.ljust(self._cluster.scenario.geometry.align_bytes, b"\0"))

    def _look(self) -> None:
        """Ask whether every holder of a restored lease has had the time to notice: a daemon that is down reads nothing."""
        now = self._world.now
        for machine in self._cluster.machines:
            daemon = self._cluster.daemons.get(machine.name)
            serves = isinstance(daemon, ManagedDaemon) and daemon.alive and daemon.serving
            if not serves or self._serving.get(machine) is not daemon:
                self._served_since[machine] = now
            self._serving[machine] = daemon if serves else None
        for (disk, resource), at in list(self._restored_at.items()):
            reading_since = max(
                [
                    at,
                    *(
                        self._served_since[t.machine]
                        for t in self._cluster.checkers.terms.running
                        if base(resource) in t.vms
                    ),
                ]
            )
            if now > reading_since + NOTICED_S and (not self._is_lost(resource) or now > at + NOTICED_MAX_S):
                del self._restored_at[disk, resource]
                self._cluster.checkers.restored_lease_noticed(disk, resource)
        self._world.after(LOOK_S, self._look)

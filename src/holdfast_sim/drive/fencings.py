"""Hosts that an operator or a fencing agent confirms to be off: `holdfast host fenced`, with the mark if the format has one.

Lockspaces of sanlock's later formats carry the mark DEAD_EXT (ADR 0172), and may say that leases never expire by time
(NO_TIMEOUT, ADR 0171). A confirmation is true, as an attestation in `operator`: the host has no power, or is switched off as
soon as it is silent. It may boot again while its mark is on the way to storage.

A checker requires that leases which never expire by time are not taken by time: unless the old owner gave the lease up, the
new one needs its free record, its mark, or an operator's confirmation. Choices come from a separate generator.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from random import Random

from holdfast.errors import LockError
from holdfast.lease_admin.host_fencing import HostFencer
from holdfast.ondisk import delta
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.supervision.lockspace_supervisor import LockspaceSupervisor
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.cluster.protocol_daemon import Daemon
from holdfast_sim.drive.operator import switch_off_if_silent
from holdfast_sim.host.machine import Machine
from holdfast_sim.storage.disk import SharedDisk

CALL_S = 5.0
"""Seconds between two rounds in which hosts that are gone are confirmed to be off."""
EVERY_S = 6.0
"""Mean seconds between two fencings in the whole cluster."""


class Format(enum.Enum):
    """The format of a lockspace."""

    PLAIN = (delta.VERSION, 0)
    MARKS = (delta.VERSION_4, 0)
    NO_TIMEOUT = (delta.VERSION_4, delta.FLAG_NO_TIMEOUT)

    @classmethod
    def drawn(cls, random: Random) -> Format:
        return random.choices((cls.PLAIN, cls.MARKS, cls.NO_TIMEOUT), (3, 1, 1))[0]


@dataclass
class Fencings:
    """Fences one host at a time, at random moments, until `stopped`."""

    cluster: Cluster
    format: Format
    random: Random
    stopped: bool = False
    _called_at: float = 0.0

    def __post_init__(self) -> None:
        if self.format is Format.PLAIN:
            return
        self.cluster.hosts_know_the_date()
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
        others = [m for m in self.cluster.machines if m is not daemon.machine]
        off = [m for m in others if not m.up]
        if off or (others and self.random.random() < 0.3):
            self._fence(daemon, self.random.choice(off or others))

    def _fence(self, daemon: ManagedDaemon, named: Machine) -> None:
        name = named.name
        ids = [t.host_id for t in self.cluster.checkers.terms.running if t.machine is named]
        if ids and self.random.random() < 0.3:
            name = str(self.random.choice(ids))
        order = daemon.process.spawn(fence(daemon, name))
        for space in self.cluster.spaces:
            disk = next(v.disk.name for v in self.cluster.volumes.values() if v.disk.name == space.name)
            switch_off_if_silent(self.cluster, disk, named, name, lambda: order.done() or not daemon.alive)

    def call_off_the_gone(self, daemons: Sequence[ManagedDaemon | Daemon]) -> None:
        """At the end of a seed: confirm all hosts off that have a record and are gone."""
        now = self.cluster.world.now
        if self.format is not Format.NO_TIMEOUT or now < self._called_at + CALL_S:
            return
        self._called_at = now
        for space in self.cluster.spaces:
            seats = [d.seats[space.name] for d in daemons if isinstance(d, ManagedDaemon) and d.alive]
            members = [seat for seat in seats if seat.member is not None]
            terms = [t for t in self.cluster.checkers.terms.running if t.disk == space.name and t.vms]
            used = {seat.host_id for seat in members} | {term.host_id for term in terms}
            for seat in members[:1]:
                assert seat.supervisor is not None
                for view in seat.supervisor.hosts():
                    if view.host_id not in used:
                        seat.daemon.process.spawn(fence(seat.daemon, view.name, [seat.supervisor]))
            if not members:
                self._freed_by_hand(space.name, used)
            self._leases_freed_by_hand(space.name)

    def _freed_by_hand(self, space: str, used: Collection[int | None]) -> None:
        """The lockspace has no member that could confirm a host off: an operator writes the records of gone hosts free."""
        disk = next(volume.disk for volume in self.cluster.volumes.values() if volume.disk.name == space)
        geometry = self.cluster.scenario.geometry
        for host_id in range(1, geometry.hosts_max + 1):
            at, record = geometry.delta_offset_bytes(host_id), self._record(disk, host_id)
            if host_id in used or not isinstance(record, delta.DeltaLease) or record.is_free:
                continue
            disk.content[at : at + geometry.sector_bytes] = replace(record, timestamp=0).sector()
            self.cluster.world.record("", f"host id {host_id} of {space} is freed by hand")

    def _record(self, disk: SharedDisk, host_id: int) -> delta.DeltaLease | Malformed:
        geometry = self.cluster.scenario.geometry
        at = geometry.delta_offset_bytes(host_id)
        return delta.DeltaLease.decode(bytes(disk.content[at : at + geometry.sector_bytes]))

    def _leases_freed_by_hand(self, space: str) -> None:
        """Leases of a generation that the record of its host id has left behind, and that does not run any more: a late
        claim of another host took the id, so nothing proves to the id's next user that the first one is over (ADR 0184).
        """
        disk = next(volume.disk for volume in self.cluster.volumes.values() if volume.disk.name == space)
        geometry = self.cluster.scenario.geometry
        for place in self.cluster.checkers.leases.named_on(space):
            leader = Leader.decode(bytes(disk.content[place.offset : place.offset + geometry.sector_bytes]))
            if not isinstance(leader, Leader) or leader.is_free:
                continue
            record = self._record(disk, leader.owner_id)
            runs = any(
                (term.disk, term.host_id, term.generation)
                == (space, leader.owner_id, leader.owner_generation)
                for term in self.cluster.checkers.terms.running
            )
            if (
                isinstance(record, delta.DeltaLease)
                and record.generation > leader.owner_generation
                and not runs
            ):
                place.leader = replace(leader, timestamp=0)
                disk.content[place.offset : place.offset + geometry.sector_bytes] = (
                    place.leader.sector().ljust(geometry.sector_bytes, b"\0")
                )
                self.cluster.world.record("", f"the lease of {place.resource} in {space} is freed by hand")


async def fence(daemon: ManagedDaemon, host: str, spaces: Sequence[LockspaceSupervisor] = ()) -> None:
    """Fence the host; in all lockspaces if none are named."""
    name, world = daemon.machine.name, daemon.world
    fencer = HostFencer(daemon.manager, daemon.parts.breaker)
    daemon.checkers.called_off.update((host, host.partition(".")[0]))
    try:
        for each in await fencer.fence(spaces or daemon.parts.leases.supervisors, host, "operator"):
            freed = sum(lease.freed for lease in each.leases)
            said = each.refused or f"{freed} leases freed, {each.mark or 'no mark'}"
            world.record(name, f"fences {host} in {each.lockspace}: {said}")
    except LockError as refusal:
        world.record(name, f"does not fence {host}: {refusal}")

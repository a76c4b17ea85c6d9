"""Orders of operators to the whole daemon: removing leases, and breaking them by proof, by a true attestation, or with a
wrong name.

An attestation is about a host that is really off, as ADR 0114 requires, or names a live host and is contradicted by its
record. A false attestation about a host that hangs would cause two writers, by the operator's fault; so here such a host
is switched off as soon as it is silent, before a daemon could have read its record often enough to believe it.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.errors import LockError
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.cluster.vm import ManagedDesk
from holdfast_sim.host.machine import Machine
from holdfast_sim.storage.disk_names import resource_of

SILENT_FACTOR = 2.6
"""Times io_timeout: more than a healthy host takes to renew, less than the three that an attestation needs."""
LOOK_S = 0.05


class OperatorActions:
    """Gives one order at a time, at random moments, until `stopped`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.stopped = False
        if cluster.scenario.orders_every_s:
            self._next()

    def _next(self) -> None:
        every_s = self.cluster.scenario.orders_every_s
        self.world.after(self.world.random.expovariate(1 / every_s), self._give)

    def _give(self) -> None:
        if self.stopped:
            return
        self._next()
        random = self.world.random
        daemons = [d for d in self.cluster.daemons.values() if isinstance(d, ManagedDaemon) and d.serving]
        if not daemons:
            return
        daemon = random.choice(daemons)
        desk = random.choice(daemon.desks)
        others = [m for m in self.cluster.machines if m is not daemon.machine]
        off = [m for m in others if not m.up]
        rng = random.random()
        if rng < 0.5:
            daemon.process.spawn(collect(daemon, dry_run=random.random() < 0.1))
        elif rng < 0.65:
            daemon.process.spawn(_break(daemon, desk))
        elif off:
            daemon.process.spawn(_break(daemon, desk, attest_off=random.choice(off).name))
        elif others:
            self._break_by_wrong_name(daemon, desk, random.choice(others))

    def _break_by_wrong_name(self, daemon: ManagedDaemon, desk: ManagedDesk, named: Machine) -> None:
        disk = desk.seat.volume.disk.name
        terms = [t for t in self.cluster.checkers.terms.running if t.disk == disk and t.machine is named]
        name = self.world.random.choice((named.name, *(str(t.host_id) for t in terms)))
        order = daemon.process.spawn(_break(daemon, desk, attest_off=name))
        switch_off_if_silent(self.cluster, disk, named, name, lambda: order.done() or not daemon.alive)


def switch_off_if_silent(
    cluster: Cluster, disk: str, named: Machine, name: str, answered: Callable[[], bool]
) -> None:
    """Switch the named host off if it is silent, before a daemon could conclude from its record that it is."""
    if answered():
        return
    for term in list(cluster.checkers.terms.running):
        called = term.machine is named or str(term.host_id) == name
        silent_s = cluster.world.now - term.landed_at
        if term.disk == disk and called and silent_s > SILENT_FACTOR * term.io_timeout_s:
            term.machine.reset("switched off by the operator who has called it off")
    cluster.world.after(LOOK_S, lambda: switch_off_if_silent(cluster, disk, named, name, answered))


async def collect(daemon: ManagedDaemon, *, dry_run: bool = False) -> list[str]:
    """Remove the leases that no host holds; the reasons why the others stay."""
    try:
        found = await daemon.parts.collector.collect(dry_run=dry_run)
    except LockError as refusal:
        return [str(refusal)]
    out = sum(not lease.kept_because for lease in found)
    daemon.world.record(daemon.machine.name, f"{'would take' if dry_run else 'has taken'} {out} leases out")
    return [lease.kept_because for lease in found if lease.kept_because]


async def _break(daemon: ManagedDaemon, desk: ManagedDesk, attest_off: str = "") -> None:
    name, world = daemon.machine.name, daemon.world
    said = f" ({attest_off} is off)" if attest_off else ""
    world.record(name, f"is to break {desk.resource}{said}")
    operator = "operator" if attest_off else ""
    daemon.checkers.called_off.add(attest_off)
    try:
        proof = await daemon.parts.breaker.break_lease(
            resource_of(desk.resource, desk.seat.daemon.names.paths[-1]).name,
            attest_off=attest_off,
            operator=operator,
        )
    except LockError as refusal:
        world.record(name, f"does not break {desk.resource}: {refusal}")
    else:
        world.record(name, f"has broken {desk.resource}: {proof}")


async def settle(daemon: ManagedDaemon, lock: str) -> None:
    """An operator says that no virtual machine has a lock whose owner is not known."""
    try:
        await daemon.manager.unknown.settle(lock, "operator")
    except LockError as refusal:
        daemon.world.record(daemon.machine.name, f"does not settle lock {lock}: {refusal}")

"""Orders of operators to the whole daemon: removing leases, and breaking them by proof, by a true attestation, or with a
wrong name. A hasty operator insists: while the storage of a host is slow for a moment, it is called off again and again.

An attestation is about a host that is really off, as ADR 0114 requires, or names a live host and is contradicted by its
record. A false attestation about a host that hangs would cause two writers, by the operator's fault; so here such a host
is switched off as soon as it is silent, before a daemon could have read its record often enough to believe it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from holdfast.errors import LockError
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.cluster.vm import ManagedDesk
from holdfast_sim.host.machine import Machine
from holdfast_sim.storage.disk_names import resource_of

SILENT_FACTOR = 2.6
"""Times io_timeout: more than a healthy host takes to renew, less than the three that an attestation needs."""
LOOK_S = 0.05
HASTY_EVERY_S = 6.0
"""Mean seconds between two operators who call a host off because its storage is slow for a moment."""
SLOW_FACTOR = (0.1, 0.5)
"""For how long it is slow, times io_timeout: a host survives that without losing anything."""
INSISTS_S, AGAIN_S = 5.0, 0.1
"""For how long an operator repeats an order that is refused, and the pause before each repetition."""


class OperatorActions:
    """Gives one order at a time, at random moments, until `stopped`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.stopped = False
        if cluster.scenario.orders_every_s:
            self._next()
        self._hasty = Random(f"hasty operators {cluster.world.seed}")
        if cluster.scenario.hasty:
            self._next_hasty()

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
            daemon.process.spawn(break_lease(daemon, desk))
        elif off:
            daemon.process.spawn(break_lease(daemon, desk, attest_off=random.choice(off).name))
        elif others:
            self._break_by_wrong_name(daemon, desk, random.choice(others))

    def _next_hasty(self) -> None:
        self.world.after(self._hasty.expovariate(1 / HASTY_EVERY_S), self._call_off_in_haste)

    def _call_off_in_haste(self) -> None:
        """A host's storage is slow for a moment, and an operator of another one takes it for dead."""
        if self.stopped:
            return
        self._next_hasty()
        used = [term for term in self.cluster.checkers.terms.running if term.vms and term.machine.up]
        if not used:
            return
        term = self._hasty.choice(used)
        daemons = [d for d in self.cluster.daemons.values() if isinstance(d, ManagedDaemon) and d.serving]
        others = [d for d in daemons if d.alive and d.machine is not term.machine]
        if not others:
            return
        daemon, resource = self._hasty.choice(others), self._hasty.choice(sorted(term.vms))
        path, slow_s = term.machine.paths[term.disk], self._hasty.uniform(*SLOW_FACTOR) * term.io_timeout_s
        self.world.record(
            term.machine.name, f"its path to {term.disk} hangs for {slow_s:.1f} s, and it is called off"
        )
        path.hanging = True
        self.world.after(slow_s, path.mend)
        name = term.machine.name
        order = daemon.process.spawn(_insist(daemon, daemon.desk_of(resource), name))
        switch_off_if_silent(
            self.cluster, term.disk, term.machine, name, lambda: order.done() or not daemon.alive
        )

    def _break_by_wrong_name(self, daemon: ManagedDaemon, desk: ManagedDesk, named: Machine) -> None:
        disk = desk.seat.volume.disk.name
        terms = [t for t in self.cluster.checkers.terms.running if t.disk == disk and t.machine is named]
        name = self.world.random.choice((named.name, *(str(t.host_id) for t in terms)))
        order = daemon.process.spawn(break_lease(daemon, desk, attest_off=name))
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


async def break_lease(daemon: ManagedDaemon, desk: ManagedDesk, attest_off: str = "") -> bool:
    """Order it once; whether that was obeyed."""
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
        return False
    world.record(name, f"has broken {desk.resource}: {proof}")
    return True


async def _insist(daemon: ManagedDaemon, desk: ManagedDesk, off: str) -> None:
    """Give the same order until it has been obeyed or the operator gives up."""
    until = daemon.clock.now() + INSISTS_S
    while daemon.clock.now() < until and not await break_lease(daemon, desk, attest_off=off):
        await daemon.clock.sleep(AGAIN_S)


async def settle(daemon: ManagedDaemon, lock: str) -> None:
    """An operator says that no virtual machine has a lock whose owner is not known."""
    try:
        await daemon.manager.unknown.settle(lock, "operator")
    except LockError as refusal:
        daemon.world.record(daemon.machine.name, f"does not settle lock {lock}: {refusal}")

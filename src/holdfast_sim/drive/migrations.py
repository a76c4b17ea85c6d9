"""Guests that migrate between machines as libvirt does it, with faults at each step (ADR 0180).

    source   copies memory ─ RELEASE ─ guest paused ─┬─ hands over: `perform3_done`, or post-copy ─ ends, or acquires again
                                                     ├─ the target dies, or the job is aborted: the guest runs on
                                                     └─ its QEMU ends
    target                                           └─ `finish3`: ACQUIRE, then the guest runs, or the target ends

Until it hands over, QEMU may resume the guest at any moment without asking. So for the checkers the guest runs until
then, and its lease must stay held. Meanwhile daemons of either side are reloaded, stopped and killed, RELEASE finds no
daemon, libvirtd is restarted, and the status file can't be read. A checker requires that a lock whose guest has left is
released soon. Choices come from a separate generator, so that a seed without migrations keeps its history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from holdfast.model import Resource
from holdfast.protocol.paxos_release import Mode
from holdfast.system.libvirt.status_words import OUT
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.host.machine import Machine, VirtualMachine
from holdfast_sim.host.status_files import StatusFiles
from holdfast_sim.storage.disk_names import disk_of

OFTEN_S = (0.0, 0.0, 3.0, 10.0)
"""Mean seconds between two migrations in the whole cluster; 0 (never) in half of the seeds."""
ANSWER_S = 0.02
"""Seconds between two checks whether a daemon has answered."""
SERVES_S_MAX = 8.0
"""How long a call of libvirt waits for a daemon that is being restarted, before it fails."""
LET_GO_S_MAX = 3.0
"""How long a running daemon may take to notice that a guest has left, and to release its lock."""
LOOK_S = 0.25
HAND_OVER_S = (0.02, 0.3, 2.0, 6.0)
"""How long a guest is paused before QEMU hands over; the longer times leave room for restarts."""
STRIKES = 0.4
"""How often a daemon is disturbed at one of the critical moments."""

Steps = Iterator[float]
"""The steps of libvirt, with the seconds that it waits between them."""


class Migration:
    """One migration, from its start until `over`. ``in_peace``: there are no faults, and the guest must arrive."""

    def __init__(
        self,
        cluster: Cluster,
        random: Random,
        here: Machine,
        vm: VirtualMachine,
        there: Machine,
        *,
        in_peace: bool,
    ) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._random = random
        self._here, self._there = here, there
        self._boots = there.boots
        self._vm = vm
        self._in_peace = in_peace
        self._heard = False
        """Whether a daemon answered RELEASE."""
        self._is_asked_for_again = False
        """Whether libvirt wants the lock here again: it may be refused for storage that fails, and is kept then."""
        self.over = False
        self.arrived = False
        vm.migrating = True
        self._steps = self._all()
        self._world.record(here.name, f"{vm.name} begins to migrate to {there}")
        self._go_on()

    def _go_on(self) -> None:
        seconds = next(self._steps, None) if self._vm.running else None
        if seconds is None or not self._vm.running:
            self.over, self._vm.migrating = True, False
        else:
            self._world.after(seconds, self._go_on)

    # --- the source ---

    def _all(self) -> Steps:
        self._says("running", "booted", "begin3")
        yield self._random.uniform(0.1, 1)
        self._says("running", "booted", "perform3")
        yield self._random.uniform(0.1, 3)
        yield from self._calls(self._here, "released_for_migration")
        self._says("paused", "migration", "perform3")
        self._strikes()
        yield self._random.uniform(0.5, 1) * (0.3 if self._in_peace else self._random.choice(HAND_OVER_S))
        fates: list[tuple[float, Callable[[], Steps]]] = [
            (5, self._hands_over),
            (2, self._post_copy),
            (3, self._runs_on),
            (1, self._libvirt_restarts),
            (1, self._ends),
        ]
        (fate,) = self._random.choices([each for _, each in fates], [weight for weight, _ in fates])
        yield from (self._hands_over if self._in_peace else fate)()

    def _says(self, state: str, reason: str, phase: str = "", job: str = OUT) -> None:
        self._status.write(self._vm, state, reason=reason, job=job, phase=phase)

    @property
    def _status(self) -> StatusFiles:
        status = self._cluster.states[self._here.name].status
        assert status is not None
        return status

    def _closes_disks(self) -> None:
        self._world.record(self._here.name, f"{self._vm.name} hands over to {self._there}")
        self._vm.paused = True
        self._cluster.checkers.writes_no_more(self._vm)

    def _hands_over(self) -> Steps:
        self._closes_disks()
        yield self._random.uniform(0, 0.1)
        self._says("paused", "migration", "perform3_done")
        self._is_let_go()
        self._strikes()
        yield self._random.uniform(0.002, 0.01)
        yield from self._arrives()
        if self.arrived:
            self._says("paused", "migration", "confirm3")
            yield self._random.uniform(0.01, 3)
            yield from self._ends()
            return
        self._says("paused", "migration", "confirm3_cancelled")
        self._is_asked_for_again = True
        yield from self._calls(self._here, "acquired_again")
        if self._vm.paused:
            self._says("paused", "migration failed", job="")
            yield self._random.uniform(1, 5)
            yield from self._ends()
        else:
            self._world.record(self._here.name, f"{self._vm.name} runs on here, which it had left")
            self._says("running", "migration canceled", job="")

    def _post_copy(self) -> Steps:
        self._closes_disks()
        yield self._random.uniform(0, 0.1)
        self._says("paused", "post-copy", "postcopy")
        self._is_let_go()
        self._strikes()
        yield self._random.uniform(0.002, 0.01)
        yield from self._arrives()
        if not self.arrived:
            self._says("paused", "post-copy failed", "postcopy_failed")
        yield self._random.uniform(0.5, 5)
        yield from self._ends()

    def _runs_on(self) -> Steps:
        """The target dies, or the job is aborted: QEMU resumes the guest, and libvirt is notified later."""
        self._still_guarded()
        if self._random.random() < 0.3:
            yield from self._unreadable()
        yield self._random.uniform(0, 2)
        self._says("paused", "migration", "confirm3_cancelled")
        if self._random.random() < 0.3:
            yield from self._calls(self._here, "acquired_again")
        yield self._random.uniform(0, 1)
        self._says("running", "migration canceled", job="")
        self._still_guarded()

    def _libvirt_restarts(self) -> Steps:
        """It has forgotten the job, and QEMU continues by itself."""
        self._says("paused", "migration", job="")
        yield self._random.uniform(0.1, 4)
        yield from self._random.choice((self._runs_on_unnoticed, self._ends))()

    def _runs_on_unnoticed(self) -> Steps:
        self._still_guarded()
        yield self._random.uniform(0, 5)
        self._says("running", "migration canceled", job="")

    def _unreadable(self) -> Steps:
        self._status.hide(self._vm, hidden=True)
        yield self._random.uniform(0.1, 2)
        self._status.hide(self._vm, hidden=False)

    def _ends(self) -> Steps:
        self._cluster.states[self._here.name].processes.end(self._vm.pid)
        yield 0

    def _still_guarded(self) -> None:
        """A guest that an operator has paused is not resumed by QEMU."""
        if self._vm.paused:
            return
        self._world.record(self._here.name, f"{self._vm.name} runs on here, its migration failed")
        for term in self._cluster.checkers.terms.running:
            if term.vms.get(self._vm.resource) is self._vm and self._vm.resource in term.beliefs:
                return
        self._world.fail(
            "exclusion", f"{self._vm.name} runs on after a failed migration, without a lease", self._here
        )

    # --- the target ---

    def _arrives(self) -> Steps:
        if not self._there.up or self._there.boots != self._boots:
            return
        yield from self._calls(self._there, "arrived")
        vm = next((vm for vm in self._there.vms if vm.resource == self._vm.resource and vm.held), None)
        self.arrived = vm is not None
        if vm is not None:
            self._world.record(self._there.name, f"{self._vm.name} runs here, as {vm.name}")

    # --- calls to daemons ---

    def _daemon(self, machine: Machine) -> ManagedDaemon | None:
        daemon = self._cluster.daemons.get(machine.name)
        serves = isinstance(daemon, ManagedDaemon) and daemon.alive and daemon.serving
        return daemon if isinstance(daemon, ManagedDaemon) and serves else None

    def _calls(self, machine: Machine, what: str) -> Steps:
        """A call of libvirt: it waits for a daemon that is being started, and fails if the daemon dies."""
        until = self._world.now + SERVES_S_MAX
        while (daemon := self._daemon(machine)) is None:
            if self._world.now > until or not machine.up or self._random.random() < 0.05:
                self._world.record(machine.name, "libvirt finds no lock daemon")
                return
            yield 0.2
        desk = daemon.desk_of(self._vm.resource)
        if what == "arrived":
            call = desk.start(Mode.EXCLUSIVE, wait=False, arriving=True)
        elif what == "acquired_again":
            call = desk.acquired_again(self._vm)
        else:
            call = desk.released_for_migration(self._vm)
        task = daemon.process.spawn(call)
        while not task.done() and daemon.alive:
            yield ANSWER_S
        if what == "released_for_migration" and task.done():
            self._heard = True

    # --- faults of daemons meanwhile ---

    def _strikes(self) -> None:
        if self._in_peace or self._random.random() >= STRIKES:
            return
        machine = self._here if self._random.random() < 0.8 else self._there
        seconds = self._random.uniform(0, 0.5)
        what = self._random.choice((self._reload, self._reload, self._stop, self._kill))
        self._world.after(seconds, lambda: what(machine))

    def _reload(self, machine: Machine) -> None:
        if (daemon := self._daemon(machine)) is not None:
            daemon.process.spawn(daemon.reload())

    def _stop(self, machine: Machine) -> None:
        if (daemon := self._daemon(machine)) is not None:
            daemon.process.spawn(daemon.stop())

    def _kill(self, machine: Machine) -> None:
        machine.kill_process("killed during a migration")

    # --- the checker ---

    def _is_let_go(self) -> None:
        """Check that a lock that libvirt has released is not held until QEMU ends, once its guest has left."""
        if self._heard:
            self._world.after(LOOK_S, lambda: self._look(None, 0.0))

    def _look(self, before: ManagedDaemon | None, since_s: float) -> None:
        vm = self._vm
        if not vm.running or not vm.paused or self.over or self._is_asked_for_again:
            return
        daemon = self._daemon(self._here)
        claimed = False
        if daemon is not None and not daemon.process.stopped:
            manager = daemon.manager
            owner = manager.owners.with_pid(vm.pid)
            claimed = (
                owner is not None
                and owner.unknown is None
                # What the disk is goes with its path, and that waits for storage.
                and not any(
                    isinstance(on, Resource) and disk_of(on) == vm.resource for on in manager.key_locks.on
                )
                and any(
                    vm.resource in map(disk_of, lock.claims[owner.id])
                    and not manager.key_locks.is_locked(lock)
                    for lock in manager.table.of_owner(owner.id)
                )
            )
        since_s = since_s + LOOK_S if claimed and daemon is before else 0.0
        if since_s > LET_GO_S_MAX:
            self._world.fail("liveness", f"{vm.name} has left, and {vm.resource} is not let go", self._here)
        self._world.after(LOOK_S, lambda: self._look(daemon, since_s))


class Migrations:
    """Starts migrations at random moments, until `stopped`."""

    def __init__(self, cluster: Cluster, every_s: float, random: Random) -> None:
        self._cluster = cluster
        self._every_s = every_s
        self._random = random
        self.stopped = False
        if every_s:
            for name, state in cluster.states.items():
                state.status = StatusFiles(Random(f"status files of {name} {cluster.world.seed}"))
            self._next()

    @property
    def are_played(self) -> bool:
        return self._every_s > 0

    def _next(self) -> None:
        self._cluster.world.after(self._random.expovariate(1 / self._every_s), self._begin)

    def _begin(self) -> None:
        if self.stopped:
            return
        self._next()
        machines = [machine for machine in self._cluster.machines if machine.up]
        guests = [(m, vm) for m in machines for vm in m.vms if self._may_migrate(m, vm)]
        if guests and len(machines) > 1:
            here, vm = self._random.choice(guests)
            there = self._random.choice([machine for machine in machines if machine is not here])
            Migration(self._cluster, self._random, here, vm, there, in_peace=False)

    def _may_migrate(self, machine: Machine, vm: VirtualMachine) -> bool:
        """Whether it may migrate: it runs, libvirt has no other job for it, and its disk is not shared."""
        daemon = self._cluster.daemons.get(machine.name)
        if not isinstance(daemon, ManagedDaemon) or daemon.desk_of(vm.resource).busy:
            return False
        exclusive = any(
            t.vms.get(vm.resource) is vm and t.beliefs.get(vm.resource) is Mode.EXCLUSIVE
            for t in self._cluster.checkers.terms.running
        )
        return exclusive and vm.held and vm.writes and not (vm.draining or vm.migrating or vm.is_client)

    def in_peace(self, here: Machine, vm: VirtualMachine, there: Machine) -> Migration:
        return Migration(self._cluster, self._random, here, vm, there, in_peace=True)

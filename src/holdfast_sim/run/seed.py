"""One seed from start to verdict: a phase with faults, then everything heals and must work.

In the safety phase only the checkers judge. In the liveness phase virtual machines are stopped, faults end, and hosts that
are down start; then each host in turn must acquire every lease: at first within the dead bound of a host that may have died
with it, and afterwards without delay. A holder that gets a request for a lease must give it up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.unknown_locks import SETTLE_S_MAX
from holdfast.model import IDENTITY_LOCKSPACE, Resource
from holdfast.protocol.paxos_release import Mode
from holdfast.protocol.timing import FIRE_TIMEOUT_DEFAULT_S
from holdfast.system import eager_tasks
from holdfast_sim.cluster.cluster import Cluster, Kind, Scenario
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.cluster.protocol_daemon import Daemon, Desk
from holdfast_sim.cluster.vm import ManagedDesk
from holdfast_sim.drive.changed_timeouts import CHANGED_TO_S, ChangedTimeouts
from holdfast_sim.drive.config_edits import RATES, ConfigEdits
from holdfast_sim.drive.fencings import Fencings, Format
from holdfast_sim.drive.habits import Habits
from holdfast_sim.drive.migrations import OFTEN_S as MIGRATIONS_OFTEN_S
from holdfast_sim.drive.migrations import Migrations
from holdfast_sim.drive.nemesis import Nemesis
from holdfast_sim.drive.operator import OperatorActions, collect, settle
from holdfast_sim.drive.restarts import OFTEN_S, Restarts
from holdfast_sim.drive.restored_areas import OFTEN_S as RESTORED_OFTEN_S
from holdfast_sim.drive.restored_areas import RestoredAreas
from holdfast_sim.drive.second_daemons import OFTEN_S as SECONDS_OFTEN_S
from holdfast_sim.drive.second_daemons import SecondDaemons
from holdfast_sim.drive.state_damage import NO_PLAGUES, Plagues, StateDamage
from holdfast_sim.drive.suspends import Suspends
from holdfast_sim.drive.workload import Workload, spawn
from holdfast_sim.host.unread_log import UnreadLog
from holdfast_sim.storage.disk_names import Naming, disk_of, strong_of
from holdfast_sim.storage.prepared import FEW_HOSTS, many_hosts
from holdfast_sim.world import ProcessGone, Violation, World

UNKNOWN_MAX_S = 3 * SETTLE_S_MAX
"""Seconds until every unknown lock of an ended virtual machine is settled: two attempts, and time to begin."""
FOREIGN = 0.25
"""The share of seeds in which the other hosts may take one host for a host of sanlock's."""
MIGRATED_S_MAX = 20.0
"""Seconds: a migration without faults takes a few, and a target may wait for ten."""
NAMINGS = {Naming.ONE: 0.6, Naming.ALIASES: 0.25, Naming.LATE: 0.15}
"""The shares of seeds of the whole daemon, by the names of disks."""
GUARDED_S_MAX = 120.0
"""Seconds until every virtual machine that runs has the lease of what its disk is: attempts come every 30."""
BOOT_MAX_S = 40.0
"""Seconds from a reset until a daemon runs."""
_TIMED_OUT = "Connection timed out"
_UNSEEN_THERE = "its leases can be taken over in"
"""In a refusal: by a host that is not seen to live, and not watched for long enough."""
_GC_THERE = "'holdfast lease gc' on that host"
"""What a refusal says where an operator has to give the order on the other host."""


@dataclass(frozen=True)
class Verdict:
    """The result of one seed."""

    seed: int
    violation: str
    parties: tuple[str, ...]
    lines: tuple[tuple[float, str, str], ...]
    events: int
    acquired: int
    virtual_s: float
    real_s: float

    @property
    def sound(self) -> bool:
        return not self.violation

    def without_history(self) -> Verdict:
        return replace(self, lines=())


def play(
    seed: int,
    hosts: int | None = None,
    lease_hosts: int | None = None,
    restarts_every_s: float | None = None,
    plagues: Plagues | None = None,
    edits: float | None = None,
    seconds_every_s: float | None = None,
    migrations_every_s: float | None = None,
    foreign_names: bool | None = None,
    made: Format | None = None,
    restored_every_s: float | None = None,
    naming: Naming | None = None,
    habits: Habits | None = None,
) -> Verdict:
    """Play one seed. Deterministic but for `real_s`; arguments that are None are drawn from the seed.
    `lease_hosts`: how many hosts leases are formatted for. `plagues`: rates of damage to daemons' state.
    `edits`: the share of starts and reloads that find an edited configuration, 0 to 1. `restarts_every_s`,
    `seconds_every_s`, `migrations_every_s`: mean seconds between orderly restarts, starts of a second daemon, and
    migrations; 0: never. `foreign_names`: whether a host has a name that Holdfast would never give, where the
    stand-in of the daemon runs. `made`: the format of lockspaces, where the whole daemon runs.
    `restored_every_s`: mean seconds between restores of a lockspace or lease from an older copy, where the whole daemon
    runs and leases expire by time; 0: never. `naming`: how hosts name disks, there too. `habits`: of the site.
    """
    begun = time.perf_counter()
    world = World(seed)
    scenario = Scenario.drawn(world.random, hosts)
    scenario = (Habits.drawn(seed, scenario.kind) if habits is None else habits).at(seed, scenario)
    if lease_hosts is None:
        # From a separate generator, so that passing the number changes nothing else in the history.
        lease_hosts = Random(f"lease hosts {seed}").choice((FEW_HOSTS, many_hosts(scenario.geometry)))
    foreign = _foreign(seed, scenario.hosts, foreign_names)
    format_chance = Random(f"formats {seed}")
    drawn_format = Format.drawn(format_chance)
    made = Format.PLAIN if scenario.kind is not Kind.MANAGED else (made or drawn_format)
    scenario = _named(seed, replace(scenario, foreign=foreign, made=made.value), naming)
    damage_chance = Random(f"damage {seed}")
    if (plagues, seconds_every_s, migrations_every_s) != (None, None, None):
        restored_every_s = restored_every_s or 0.0  # the caller wants what is not played beside it
    plagues = _plagues(damage_chance, scenario.kind, made, plagues)
    restored_s, restored_chance = _restored(seed, scenario, made, restored_every_s)
    if restored_s:
        # Every virtual machine can be killed.
        plagues, scenario = NO_PLAGUES, replace(scenario.without_other_trouble(), stubborn_rate=0.0)
        migrations_every_s = seconds_every_s = 0.0
    if plagues.quiet:
        scenario = scenario.without_other_trouble()
    cluster = Cluster(world, replace(scenario, lease_hosts=lease_hosts))
    cluster.quiet = plagues.quiet
    damage = StateDamage(cluster, plagues, damage_chance)

    def often(what: str, choices: Sequence[float], wanted: float | None) -> tuple[float, Random]:
        """Mean seconds between two faults of a kind, for the whole daemon; and the separate generator for them."""
        rng = Random(f"{what} {seed}")
        drawn = rng.choice(choices)
        if scenario.kind is not Kind.MANAGED:
            return 0.0, rng
        return drawn if wanted is None else wanted, rng

    edits = (
        0.0 if scenario.two_backends or scenario.clients else edits
    )  # an edit changes one backend of a lockspace
    edits_made = ConfigEdits(cluster, *often("edited configurations", RATES, edits))
    restarts = Restarts(cluster, *often("reloads and stops", OFTEN_S, restarts_every_s))
    seconds = SecondDaemons(cluster, *often("second daemons", SECONDS_OFTEN_S, seconds_every_s))
    migrations = Migrations(cluster, *often("migrations", MIGRATIONS_OFTEN_S, migrations_every_s))
    fencings = Fencings(cluster, made, format_chance)
    restored = RestoredAreas(cluster, restored_s, restored_chance)
    violation: Violation | None = None
    unread = UnreadLog(world, Random(f"unread log {seed}"))
    with _listening(world, unread):
        try:
            _Play(
                cluster,
                restarts,
                damage,
                edits_made,
                seconds,
                migrations,
                fencings,
                restored,
                ChangedTimeouts(cluster, Random(f"changed timeouts of {seed}")),
                Suspends(cluster, Random(f"suspends of {seed}")),
            ).all()
            unread.close()
        except Violation as found:
            violation = found
        finally:
            for daemon in cluster.daemons.values():
                daemon.process.end()
            seconds.end()
            eager_tasks._running.clear()
    return Verdict(
        seed=seed,
        violation=str(violation) if violation is not None else "",
        parties=violation.parties if violation is not None else (),
        lines=tuple(world.lines),
        events=world.events,
        acquired=cluster.checkers.acquired,
        virtual_s=world.now,
        real_s=time.perf_counter() - begun,
    )


def _foreign(seed: int, hosts: int, wanted: bool | None) -> int:
    """The number of the host with a foreign name; 0: none."""
    rng = Random(f"foreign names {seed}")
    is_foreign = rng.random() < FOREIGN if wanted is None else wanted
    return rng.randint(1, hosts) if is_foreign else 0


def _named(seed: int, scenario: Scenario, wanted: Naming | None) -> Scenario:
    """The scenario with its names of disks, and the moment of each host's update, from a generator of their own."""
    rng = Random(f"names of disks {seed}")
    (drawn,) = rng.choices(*zip(*NAMINGS.items(), strict=True))
    if scenario.kind is not Kind.MANAGED:
        return scenario
    times_s = tuple(rng.uniform(0.3, 0.95) * scenario.duration_s for _ in range(scenario.hosts))
    naming = drawn if wanted is None else wanted
    if scenario.clients:
        naming = Naming.ONE  # a client names a lease, and no disk
    return replace(scenario, naming=naming, updates_at_s=times_s if naming is Naming.LATE else ())


def _plagues(rng: Random, kind: Kind, made: Format, wanted: Plagues | None) -> Plagues:
    plagues = Plagues.drawn(rng) if wanted is None else wanted
    # A host that forgets its name where leases never expire by time needs a person.
    return plagues if kind is Kind.MANAGED and made is not Format.NO_TIMEOUT else NO_PLAGUES


def _restored(seed: int, scenario: Scenario, made: Format, wanted: float | None) -> tuple[float, Random]:
    """How often an area is restored, and the generator of its own that it is drawn from."""
    rng = Random(f"restored areas {seed}")
    drawn = rng.choice(RESTORED_OFTEN_S)
    if scenario.kind is not Kind.MANAGED or scenario.clients or made is Format.NO_TIMEOUT:
        return 0.0, rng  # without time nobody gets the leases of hosts that a lockspace has forgotten
    return drawn if wanted is None else wanted, rng


class _Listener(logging.Handler):
    """Passes log records of shipping code to a log that is not always read; unexpected exceptions are bugs."""

    def __init__(self, world: World, unread: UnreadLog) -> None:
        super().__init__()
        self._world = world
        self._unread = unread

    def emit(self, record: logging.LogRecord) -> None:
        self._unread.offer(record)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, ProcessGone | Violation):
            self._world.bug("", f"{record.getMessage()}: {error!r}")


@contextmanager
def _listening(world: World, unread: UnreadLog) -> Iterator[None]:
    logger = logging.getLogger("holdfast")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Listener(world, unread)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _Play:
    def __init__(
        self,
        cluster: Cluster,
        restarts: Restarts,
        damage: StateDamage,
        edits: ConfigEdits,
        seconds: SecondDaemons,
        migrations: Migrations,
        fencings: Fencings,
        restored: RestoredAreas,
        timeouts: ChangedTimeouts,
        suspends: Suspends,
    ) -> None:
        self.cluster = cluster
        self.seconds = seconds
        self.migrations = migrations
        self.fencings = fencings
        self.restored = restored
        self.timeouts = timeouts
        self.suspends = suspends
        self.damage = damage
        self.edits = edits
        self.restarts = restarts
        self.world = cluster.world
        scenario = cluster.scenario
        io_s = max(scenario.io_timeouts_s + (CHANGED_TO_S if scenario.changed_timeouts else ()))
        fire_s = scenario.fire_timeout_s
        if scenario.foreign:
            fire_s = max(fire_s, FIRE_TIMEOUT_DEFAULT_S)  # the others assume it for the host of that name
        self.dead_s = 8 * io_s + fire_s
        self.renewal_s = 2 * io_s

    def all(self) -> None:
        workload, nemesis, orders = (
            Workload(self.cluster),
            Nemesis(self.cluster),
            OperatorActions(self.cluster),
        )
        self.world.run(self.cluster.scenario.duration_s)
        workload.stopped = orders.stopped = self.restarts.stopped = True
        self.migrations.stopped = self.fencings.stopped = self.restored.stopped = True
        self.timeouts.stopped = self.suspends.stopped = True
        if self.cluster.site is not None:
            self.cluster.site.stopped = True
        nemesis.heal()
        self.damage.heal()
        self.edits.heal()
        self.seconds.heal()
        # Requests that are already delayed end in their time, and their host may lose its lease by them.
        self.world.run(self.world.now + self.cluster.scenario.manners.late_max_s + self.dead_s)
        self._everybody_comes_back()
        if self.cluster.scenario.naming is Naming.LATE:
            self._within(
                GUARDED_S_MAX, self._all_have_identities, "every running guest has its disk's identity"
            )
        self._nobody_holds_on()
        self._added_are_added_again()
        for space in self.cluster.spaces:
            for resource in space.resources:
                self._each_in_turn(space.name, resource)
                if self.migrations.are_played and not space.is_added:
                    self._migrates(space.name, resource)
        if self.cluster.scenario.orders_every_s:
            self._all_are_taken_out()

    def _daemons(self) -> list[Daemon | ManagedDaemon]:
        return [self.cluster.daemons[m.name] for m in self.cluster.machines if m.name in self.cluster.daemons]

    def _everybody_comes_back(self) -> None:
        for machine in self.cluster.machines:
            if machine.up and (machine.process is None or not machine.process.alive):
                machine.reset("its daemon is dead")
        bound_s = BOOT_MAX_S + 3 * self.dead_s + 8 * self.renewal_s
        self._within(
            2 * bound_s if self.cluster.site is not None else bound_s,
            self._with_an_operator(bound_s, self._all_joined),
            "every host is in its lockspaces again",
        )

    def _with_an_operator(self, after_s: float, condition: Callable[[], bool]) -> Callable[[], bool]:
        """Leases that clients and virtual machines share may need an operator's word without the journal."""
        late = self.world.now + after_s

        def met() -> bool:
            if self.cluster.site is not None and self.world.now > late:
                self._settled_by_hand()
            return condition()

        return met

    def _all_joined(self) -> bool:
        """All daemons but those that are configured with another's host id."""
        daemons = self._daemons()
        for daemon in daemons:
            for seat in daemon.seats.values():
                seat.stay = True
        ids = {self.cluster.host_id(n) for n in range(1, self.cluster.scenario.hosts + 1)}
        for space in self.cluster.spaces:
            joined = {s.host_id for s in (d.seats[space.name] for d in daemons) if s.member is not None}
            # The checkers judge which ids the hosts choose; here each host must get one.
            if len(joined) != len(ids) or (joined != ids and not self.cluster.scenario.auto_ids):
                self.fencings.call_off_the_gone(daemons)
                return False
        return True

    def _added_are_added_again(self) -> None:
        """Where a host has lost its journal, nobody there knows which leases it has in a lockspace that clients added, and
        they stay this host's until the lockspace is left.
        """
        names = [space.name for space in self.cluster.spaces if space.is_added]
        seats = [daemon.seats[name] for daemon in self._daemons() for name in names]

        def left() -> bool:
            self._releases_orphans()  # a lease that an operator has settled may be one
            for seat in seats:
                if seat.stay and not seat.leave() and seat.member is None:
                    seat.stay = False
            return all(seat.member is None for seat in seats)

        if names:
            self._within(4 * self.dead_s, left, "programs remove their lockspaces")
            self._within(3 * self.dead_s + 8 * self.renewal_s, self._all_joined, "lockspaces are added again")

    def _all_have_identities(self) -> bool:
        """Of all virtual machines that run with the lease of their path: or the daemon names what is in the way."""
        for daemon in self._daemons():
            assert isinstance(daemon, ManagedDaemon)
            refused = " ".join(daemon.parts.identities.problems())
            for desk in daemon.desks:
                vm = desk.lease
                owner = daemon.manager.owners.with_pid(vm.pid) if vm is not None else None
                if vm is None or desk.busy or owner is None or vm.disk in refused:
                    continue
                if not daemon.manager.routing.route(Resource("", vm.disk)).by_identity:
                    continue  # its configuration could not be read, and it uses the one before the update
                names = [n for lock in daemon.manager.table for n in lock.claims.get(owner.id, ())]
                if (
                    Resource("", vm.disk) in names
                    and Resource(IDENTITY_LOCKSPACE, strong_of(vm.disk)) not in names
                ):
                    return False
        return True

    def _nobody_holds_on(self) -> None:
        bound_s = 4 * self.dead_s

        def idle() -> bool:
            desks = [desk for daemon in self._daemons() for desk in daemon.desks]
            for desk in desks:
                if desk.lease is not None and not desk.busy:
                    spawn(desk, "stop")
            return not self._releases_orphans() and all(
                desk.lease is None and not desk.busy for desk in desks
            )

        self._within(bound_s, self._with_an_operator(bound_s / 2, idle), "every host has let go")
        self._within(UNKNOWN_MAX_S, self._nothing_is_unknown, "no lock is held for an unknown owner")

    def _releases_orphans(self) -> bool:
        """Have clients release every orphan; whether there is one."""
        desks = [desk for daemon in self._daemons() for desk in daemon.desks]
        orphans = [desk for desk in desks if isinstance(desk, ManagedDesk) and desk.has_orphan]
        for desk in orphans:
            spawn(desk, "release_orphan")
        return bool(orphans)

    def _nothing_is_unknown(self) -> bool:
        if self.restored.are_played or self.cluster.site is not None:
            self._settled_by_hand()
        managers = [d.manager for d in self._daemons() if isinstance(d, ManagedDaemon)]
        return not any(len(manager.unknown) or _orphans_of_disks(manager) for manager in managers)

    def _settled_by_hand(self) -> None:
        """A lease may be restored without the note of its holder, and those of sanlock's clients may be anywhere: nothing
        but an operator's word ends what is held then.
        """
        for daemon in self._daemons():
            assert isinstance(daemon, ManagedDaemon)
            for lock in (*daemon.manager.unknown.locks, *_orphans_of_disks(daemon.manager)):
                if self.cluster.site is not None or not any(disk_of(name) for name in lock.names()):
                    for desk in daemon.desks:
                        desk.orphan_settled()
                    daemon.process.spawn(settle(daemon, str(lock.id)))

    def _each_in_turn(self, space: str, resource: str) -> None:
        desks = [d.seats[space].desks[resource] for d in self._daemons() if d.seats[space].member is not None]
        for number, desk in enumerate(desks):
            # Owners and sharers that were never seen alive must be watched for their dead bound, each. A host that has just
            # joined did not see the end of the others' earlier incarnations: these count for the dead bound.
            unseen_s = 4 * self.dead_s if number == 0 else self.dead_s + 6 * self.renewal_s
            self._gets(desk, unseen_s, wait=number == 0)
            if number + 1 < len(desks) and isinstance(desk, Desk):
                spawn(desks[number + 1], "ask_for")
                self._is_given_up(desk, 4 * self.renewal_s, "on request")
            else:
                spawn(desk, "stop")
                self._is_given_up(desk, self.renewal_s, "at once")

    def _arrives(self, here: ManagedDesk, there: ManagedDesk) -> bool:
        self._gets(here, self.dead_s + 6 * self.renewal_s, wait=False)
        assert here.vm is not None
        migration = self.migrations.in_peace(here.seat.daemon.machine, here.vm, there.seat.daemon.machine)
        self._within(MIGRATED_S_MAX, lambda: migration.over, f"{here} has migrated")
        return migration.arrived

    def _migrates(self, space: str, resource: str) -> None:
        """Check that without faults a guest arrives, and its lock with it."""
        members = [d for d in self._daemons() if d.seats[space].member is not None]
        desks = [desk for d in members if isinstance(desk := d.seats[space].desks[resource], ManagedDesk)]
        if len(desks) < 2:
            return
        here, there = desks[:2]
        arrived = self._arrives(here, there)
        if not arrived and _GC_THERE in there.last_refusal:
            # Under the name that the guest has there, a host has a lease of an older generation, which never expires.
            self._collected_if(_GC_THERE, there.last_refusal)
            self.world.run(self.world.now + self.dead_s)
            arrived = self._arrives(here, there)
        if not arrived and any(words in there.last_refusal for words in (_UNSEEN_THERE, _TIMED_OUT)):
            # Under that name a host that was reset has a lease, or it has that of the index, and this one has not watched it
            # for its dead bound yet; callers of jobs that wait for the index time out at random here (`SimulatedErrands`).
            self.world.run(self.world.now + self.dead_s)
            arrived = self._arrives(here, there)
        if not arrived:
            self.world.fail(
                "liveness", f"{here} does not arrive: {there.last_refusal}", there.seat.daemon.machine
            )
        spawn(there, "stop")
        self._is_given_up(there, self.renewal_s, "at once")

    def _all_are_taken_out(self) -> None:
        """With no lease held, each host in turn must be able to remove the leases, which are then created again."""
        for daemon in self._daemons():
            assert isinstance(daemon, ManagedDaemon)
            if any(seat.member is None for seat in daemon.seats.values()):
                continue  # another host has its host id
            self._takes_all_out(daemon)
            desk = daemon.desks[0]
            self._gets(desk, self.dead_s + 6 * self.renewal_s, wait=False)
            spawn(desk, "stop")
            self._is_given_up(desk, self.renewal_s, "at once")

    def _takes_all_out(self, daemon: ManagedDaemon) -> None:
        kept: list[str] = []
        order = daemon.process.spawn(collect(daemon))

        def all_out() -> bool:
            nonlocal order, kept
            if order.done():
                kept = order.result()
                if not kept:
                    return True
                self._collected_if(_GC_THERE, *kept)
                order = daemon.process.spawn(collect(daemon))
            return False

        self._within(
            4 * self.dead_s, all_out, f"{daemon.machine} takes all leases out", lambda: f"kept: {kept}"
        )

    def _collected_if(self, said: str, *refusals: str) -> None:
        """An operator does what a refusal demands, on every host."""
        if any(said in refusal for refusal in refusals):
            for daemon in self._daemons():
                assert isinstance(daemon, ManagedDaemon)
                daemon.process.spawn(collect(daemon))

    def _gets(self, desk: Desk | ManagedDesk, bound_s: float, *, wait: bool) -> None:
        def got() -> bool:
            if desk.lease is None and not desk.busy:
                self._collected_if("'holdfast lease gc' frees some", desk.last_refusal)
                self._collected_if(_GC_THERE, desk.last_refusal)
                if self.cluster.site is not None:
                    self._settled_by_hand()
                    self._releases_orphans()
                if self.restored.are_played:  # a copy may name a host that does not have it: docs/backends.md
                    self._collected_if("is locked by", desk.last_refusal)
                if "host fenced" in desk.last_refusal:
                    self.fencings.call_off_the_gone(self._daemons())
                spawn(desk, "start", Mode.EXCLUSIVE, wait=wait)
            return desk.lease is not None

        self._within(bound_s, got, f"{desk} is acquired", lambda: f"last refusal: {desk.last_refusal}")

    def _is_given_up(self, holder: Desk | ManagedDesk, bound_s: float, how: str) -> None:
        self._within(bound_s, lambda: holder.lease is None and not holder.busy, f"{holder} is given up {how}")

    def _within(
        self, bound_s: float, reached: Callable[[], bool], what: str, why: Callable[[], str] = lambda: ""
    ) -> None:
        end = self.world.now + bound_s
        while not reached():
            if self.world.now >= end:
                self.world.fail("liveness", f"not within {bound_s:.0f} s: {what}. {why()}")
            self.world.run(self.world.now + 0.5)


def _orphans_of_disks(manager: LockManager) -> list[HostLock]:
    """Orphans that no client can release by their lease's name: an old journal has named the disk instead."""
    return [lock for lock in manager.unknown.orphans if any(map(disk_of, lock.names()))]

"""One seed of a cluster with shared volumes: faults and migrations, then everything heals and must work.

Two or three hosts, one volume, two VMs that both have it as their disk, so that each is the other's rival. The claims:

    exclusion                       at most one QEMU of all hosts may write to the volume
    who writes has a lock           its host holds the volume, and has it active
    an active volume has a lock     on every host, at every change
    a prepared volume stays         from `prepare` until libvirt says that nothing runs
    no VM is stopped by us          `on_lockfailure` is never called: no fault here takes a host's lock away
    what is left is right           after healing the host of the running VM holds it exclusively, and no other host anything
    liveness                        then the VM migrates, or one can be started
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from holdfast.backends.lvm.host_volumes import ANNOUNCED_S
from holdfast.backends.lvm.ports import Problem
from holdfast.backends.lvm.write_rules import Vm
from holdfast.model import Mode
from holdfast_sim.volumes.guards import GuardLeases
from holdfast_sim.volumes.migrating_guests import Guests
from holdfast_sim.volumes.shared_locks import SharedLocks, volume_named
from holdfast_sim.volumes.site import Qemu, Site, State
from holdfast_sim.world import Violation, World

FAULTS_S = 60.0
"""Seconds with faults."""
DEAD_S = (8.0, 40.0)
"""Seconds until a host without power is called dead; sanlock's is 80 s at its shortest io_timeout."""
HEALED_S = 80.0
"""Seconds until all is right: every request is tried again within 2 s, and a `prepare` ends within 31."""
NAMES = ("v1", "v2")
SHARES = 0.6
"""How often a daemon starts with activation = "shared", where there are guards."""
EVERY_S = {"calm": 6.0, "rough": 2.0}
"""Mean seconds between two faults, and between two wishes of the admin."""


@dataclass(frozen=True)
class Outcome:
    """The result of one seed."""

    seed: int
    violation: str
    lines: tuple[tuple[float, str, str], ...]
    arrived: int


class History:
    """One seed."""

    def __init__(self, seed: int, *, guarded: bool = False) -> None:
        self.world = World(seed)
        self.guarded = guarded
        random: Random = self.world.random
        self.volume = volume_named("lv1")
        names = [f"h{number}" for number in range(1, random.choice((3, 4)))]
        self.locks = SharedLocks(names, self._violated)
        self.sites = [Site(name, self.world, self.locks, (self.volume,), self.check) for name in names]
        self.guests = Guests(self.world, self.sites)
        self.every_s = EVERY_S[random.choice(sorted(EVERY_S))]
        self.dead_s = random.choice(DEAD_S)

    def _violated(self, what: str) -> None:
        self.world.fail("an active volume has a lock", what)

    def check(self) -> None:
        """The claims that hold at every moment."""
        writers = [(site, qemu) for site in self.sites if site.up for qemu in site.qemus if qemu.state.writes]
        if len(writers) > 1:
            who = " and ".join(f"{qemu.name} ({qemu.pid}) on {site.name}" for site, qemu in writers)
            self.world.fail("exclusion", f"{who} may write to {self.volume}", *(s.name for s, _ in writers))
        holders = self.locks.holders(self.volume)
        for site, qemu in writers:
            if site.name not in holders or self.volume.id not in self.locks.hosts[site.name].devices:
                self.world.fail("who writes has a lock", f"{qemu.name} on {site.name} has none", site.name)

    # --- what happens ---

    def running(self) -> list[tuple[Site, Qemu]]:
        return [
            (site, qemu) for site in self.sites for qemu in site.qemus if qemu.state is State.RUNS and site.up
        ]

    def wish(self) -> None:
        """The admin wants something."""
        random, guests = self.world.random, self.guests
        running = self.running()
        name = random.choice(NAMES)
        if not running or random.random() < 0.3:
            guests.begin(name, guests.start(random.choice(self.sites), name, self.volume))
            return
        site, qemu = random.choice(running)
        others = [each for each in self.sites if each is not site]
        what = random.random()
        if what < 0.75:
            guests.begin(qemu.name, guests.migrate(site, qemu, random.choice(others)))
        elif what < 0.85:
            guests.begin(qemu.name, guests.suspend(site, qemu, random.uniform(0.0, 3.0)))
        else:
            guests.begin(qemu.name, guests.stop(site, qemu))

    def strike(self) -> None:
        """Something fails, for a while."""
        random, world = self.world.random, self.world
        site = random.choice(self.sites)
        back_s = random.choice((0.3, 2.0, random.uniform(0.0, 20.0)))
        what = random.random()
        if what < 0.45:
            site.kill_daemon()
            world.after(back_s, lambda: self._starts(site))
        elif what < 0.6:
            self.guests.kill_libvirtd(site)
            world.after(back_s, lambda: self.guests.restart_libvirtd(site))
        elif what < 0.65:
            site.unreadable = True
            world.record(site.name, f"status files can't be read, for {back_s:.1f} s")
            world.after(back_s, lambda: self._mended(site))
        elif what < 0.85:
            problem = random.choice((Problem.NO_ANSWER, Problem.LOCKSPACE_INACTIVE, Problem.STORAGE_FAILED))
            self.locks.hosts[site.name].failing = problem
            world.record(site.name, f"lvmlockd: {problem.value}, for {back_s:.1f} s")
            world.after(back_s, lambda: self._mended(site))
        elif what < 0.92 and site.qemus:
            qemu = random.choice(site.qemus)
            site.ends(qemu)
            self._notices(site, qemu)
        elif site.up:
            boots = site.boots + 1
            site.loses_power()
            world.after(self.dead_s, lambda: self._dead(site, boots))
            world.after(self.dead_s + random.uniform(1.0, 20.0), lambda: self._boots(site))

    def _mended(self, site: Site) -> None:
        self.locks.hosts[site.name].failing = None
        site.unreadable = False

    def _dead(self, site: Site, boots: int) -> None:
        if not site.up and site.boots == boots:
            self.world.record(site.name, "is called dead")
            self.locks.called_dead(site.name)
            if site.leases is not None:
                site.leases.called_dead(site.name)

    def _starts(self, site: Site) -> None:
        """The next daemon, which may have another configuration."""
        if self.guarded:
            site.shares = self.world.random.random() < SHARES
        site.start_daemon()

    def _all_have_guards(self) -> None:
        """By a reload on every host, while a VM runs; only then one may have activation = "shared"."""
        leases = GuardLeases()
        for site in self.sites:
            site.kill_daemon()
            site.leases = leases
            site.start_daemon()
        for site in self.sites:
            self.world.after(self.world.random.uniform(0.5, 5.0), lambda site=site: self._reloads(site))  # type: ignore[misc]

    def _reloads(self, site: Site) -> None:
        site.kill_daemon()
        self._starts(site)

    def _boots(self, site: Site) -> None:
        if not site.up:
            site.boots_again()

    def _notices(self, site: Site, qemu: Qemu) -> None:
        """libvirtd notices that a QEMU has ended."""
        if site.libvirtd_runs and qemu.name not in self.guests.busy:
            self.guests.begin(qemu.name, self.guests.destroys(site, qemu))
        elif site.up and qemu in site.qemus:
            self.world.after(0.3, lambda: self._notices(site, qemu))

    def _again(self, what: str) -> None:
        if self.world.now >= FAULTS_S:
            return
        self.wish() if what == "wish" else self.strike()
        self.world.after(self.world.random.expovariate(1 / self.every_s), lambda: self._again(what))

    # --- the two phases ---

    def play(self) -> None:
        for site in self.sites:
            site.start_daemon()
        self.guests.begin("v1", self.guests.start(self.sites[0], "v1", self.volume))
        self.world.run(3.0)
        if self.guarded:
            self._all_have_guards()
        self._again("wish")
        self.world.after(self.world.random.uniform(0.0, 10.0), lambda: self._again("strike"))
        self.world.run(FAULTS_S)
        self.heal()

    def play_killed(self, number: int, after_s: float, away_s: float) -> None:
        """A migration from the first host to the second, with one fault: a host's daemon ends after so many seconds,
        and is away for a while.
        """
        world, source, target = self.world, self.sites[0], self.sites[1]
        self.guests.quiet = True
        for site in self.sites:
            site.start_daemon()
        self.guests.begin("v1", self.guests.start(source, "v1", self.volume))
        world.run(8.0)
        ((_, qemu),) = self.running()
        self.guests.begin("v1", self.guests.migrate(source, qemu, target))
        world.after(after_s, self.sites[number].kill_daemon)
        world.after(after_s + away_s, self.sites[number].start_daemon)
        world.run(FAULTS_S)
        self.heal()

    def heal(self) -> None:
        """Faults end; what stands is destroyed by the admin; then all must be right, and work."""
        world, guests = self.world, self.guests
        world.record("", "everything heals")
        guests.quiet = True
        world.run(world.now + self.dead_s + 41.0)
        for site in self.sites:
            self._mended(site)
            self._boots(site)
            guests.restart_libvirtd(site)
            if self.guarded:  # all are alike in the end
                site.kill_daemon()
                site.shares = True
            site.start_daemon()
        world.run(world.now + ANNOUNCED_S)
        for site in self.sites:
            for qemu in [each for each in site.qemus if each.state is not State.RUNS]:
                guests.begin(qemu.name, guests.stop(site, qemu))
                world.run_while(lambda name=qemu.name: name in guests.busy, world.now + HEALED_S)  # type: ignore[misc]
        world.run(world.now + HEALED_S)
        self._all_is_right("healed")
        if running := self.running():
            site, qemu = running[0]
            other = next(each for each in self.sites if each is not site)
            before = guests.arrived
            guests.begin(qemu.name, guests.migrate(site, qemu, other))
            world.run(world.now + HEALED_S)
            if guests.arrived != before + 1:
                world.fail("liveness", f"{qemu.name} does not migrate from {site.name} to {other.name}")
        else:
            guests.begin("v1", guests.start(self.sites[-1], "v1", self.volume))
            world.run(world.now + HEALED_S)
            if not self.running():
                world.fail("liveness", f"v1 can't be started on {self.sites[-1].name}")
        self._all_is_right("at the end")

    def _all_is_right(self, when: str) -> None:
        hosts = {site.name: Mode.EXCLUSIVE for site, _ in self.running()}
        holders = self.locks.holders(self.volume)
        if self.guarded:
            self._all_share(when, holders, [(site.name, qemu.vm) for site, qemu in self.running()])
            return
        if holders != hosts:
            wrong = f"{when}: {self.volume} is held by {_text(holders)}, and VMs run on {_text(hosts)}"
            self.world.fail("what is left is right", wrong)
        for site in self.sites:
            if (self.volume.id in self.locks.hosts[site.name].devices) != (site.name in hosts):
                self.world.fail("what is left is right", f"{when}: it is active on {site.name}", site.name)
            if len(site.grants.of(self.volume)) != (site.name in hosts):
                self.world.fail(
                    "what is left is right", f"{when}: grants {site.grants.of(self.volume)}", site.name
                )

    def _all_share(self, when: str, holders: dict[str, Mode], running: list[tuple[str, Vm]]) -> None:
        """With activation = "shared" everywhere: nobody has it exclusively, and the VM that runs has lease and grant."""
        leases = self.sites[0].leases
        assert leases is not None
        lease = leases.held.get(self.volume.id)
        if Mode.EXCLUSIVE in holders.values() or not {name for name, _ in running} <= holders.keys():
            self.world.fail("what is left is right", f"{when}: {self.volume} is held by {_text(holders)}")
        if ([(lease.host, lease.vm)] if lease is not None else []) != running:
            self.world.fail(
                "what is left is right", f"{when}: the guard lease is {lease}, and {running} runs"
            )
        for site in self.sites:
            grants = [(site.name, each.vm) for each in site.grants.of(self.volume)]
            if grants != [each for each in running if each[0] == site.name]:
                self.world.fail("what is left is right", f"{when}: grants {grants}", site.name)


def _text(holders: dict[str, Mode]) -> str:
    return ", ".join(f"{name} {mode.word}" for name, mode in sorted(holders.items())) or "nobody"


def play(seed: int, *, guarded: bool = False) -> Outcome:
    """The history of one seed; `violation` is empty if it is sound. `guarded`: guards come while a VM runs, and then each
    start of a daemon may change its activation.
    """
    history = History(seed, guarded=guarded)
    return _outcome(history, history.play)


def play_killed(seed: int, number: int, after_s: float, away_s: float = 1.0) -> Outcome:
    """The same for one migration, in which the daemon of one host is killed (`History.play_killed`)."""
    history = History(seed)
    return _outcome(history, lambda: history.play_killed(number, after_s, away_s))


def _outcome(history: History, plays: Callable[[], None]) -> Outcome:
    violation = ""
    try:
        plays()
    except Violation as e:
        violation = str(e)
    for site in history.sites:
        site.kill_daemon()
    return Outcome(history.world.seed, violation, tuple(history.world.lines), history.guests.arrived)

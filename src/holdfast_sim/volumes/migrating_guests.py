"""libvirt over shared volumes: starts, ends, suspends and migrates VMs, step by step, with a fault at any step.

Order and words are those of traced runs (libvirt-hooks-lvm.md 1.2, 1.3): the status file says `migration out` before the
target's hook runs, RELEASE is answered before QEMU hands over, and the target asks only when the source says
`perform3_done`. A libvirtd that is killed leaves QEMU and file as they are; its next run ends or resumes what it finds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from holdfast.backends.lvm.ports import Volume
from holdfast.model import Mode
from holdfast.system.libvirt.status_words import IN, OUT
from holdfast_sim.volumes.site import Qemu, Site, State
from holdfast_sim.world import World

POLL_S = 0.01
BROKEN_S = 0.2
"""So long after its source's libvirtd a target's libvirtd destroys what arrives."""

Steps = Generator[float, None, None]
"""Seconds that libvirt waits between its steps."""
Answer = Generator[float, None, object]
"""The same, with the daemon's answer at the end; None if there was no daemon."""
GRANTED = ""
FAULTS = (
    "",
    "",
    "",
    "abort",
    "target dies in live phase",
    "target dies at the switch-over",
    "answer lost",
)


@dataclass(slots=True)
class Ends:
    """Both ends of a migration, with the numbers of the libvirtds that carry it out."""

    source: Site
    source_run: int
    qemu: Qemu
    target: Site
    target_run: int
    arriving: Qemu | None = None

    def source_is_gone(self) -> bool:
        """The guest has ended there, or nobody speaks for it."""
        return self.qemu.has_ended or not lives(self.source, self.source_run)

    def target_is_gone(self) -> bool:
        """The same for what arrives."""
        return not lives(self.target, self.target_run) or (
            self.arriving is not None and self.arriving.has_ended
        )


def lives(site: Site, libvirtd: int) -> bool:
    """Whether that very run of libvirtd goes on."""
    return site.up and site.libvirtd_runs and site.libvirtd == libvirtd


class Guests:
    """All VMs. `busy` are names with a procedure under way."""

    def __init__(self, world: World, sites: list[Site]) -> None:
        self.world = world
        self.sites = sites
        self._pids = itertools.count(1000)
        self.busy: set[str] = set()
        self.arrived = 0
        self.quiet = False
        """No fault is drawn any more."""

    # --- running steps ---

    def begin(self, name: str, steps: Steps) -> None:
        """Run a procedure for one VM, unless one is under way."""
        if name in self.busy:
            return
        self.busy.add(name)
        self._go_on(name, steps)

    def _go_on(self, name: str, steps: Steps) -> None:
        seconds = next(steps, None)
        if seconds is None:
            self.busy.discard(name)
        else:
            self.world.after(seconds, lambda: self._go_on(name, steps))

    def _short(self) -> float:
        return self.world.random.choice((0.002, 0.01, 0.1, self.world.random.uniform(0.0, 1.0)))

    def _asks(self, site: Site, coroutine: Callable[[], Coroutine[Any, Any, object]]) -> Answer:
        call = site.ask(coroutine)
        while not call.done:
            yield POLL_S
        return call.answer if call.is_answered else None

    def acquires(self, site: Site, qemu: Qemu) -> Answer:
        """Whether the daemon grants it: None without a daemon."""

        async def call() -> object:
            if site.guard is not None:
                return await site.guard.acquire(qemu.vm, qemu.name, qemu.volume) or GRANTED
            return str(await site.grants.acquire(qemu.vm, qemu.name, qemu.volume, Mode.EXCLUSIVE) or GRANTED)

        answer = yield from self._asks(site, call)
        said = "no daemon" if answer is None else answer or "granted"
        self.world.record(site.name, f"ACQUIRE for {qemu.name} ({qemu.pid}): {said}")
        return answer

    def releases(self, site: Site, qemu: Qemu) -> Steps:
        async def call() -> object:
            if site.guard is not None:
                return site.guard.release(qemu.vm, qemu.volume)
            return site.grants.let_go(qemu.vm, qemu.volume)

        answer = yield from self._asks(site, call)
        self.world.record(site.name, f"RELEASE for {qemu.name} ({qemu.pid}): {answer}")

    def _hook_release(self, site: Site, name: str) -> Steps:
        yield from self._asks(site, lambda: site.hook.release(f"uuid-{name}"))

    def destroys(self, site: Site, qemu: Qemu) -> Steps:
        """libvirtd ends a QEMU, and cleans up."""
        boots, libvirtd = site.boots, site.libvirtd
        site.ends(qemu)
        yield 0.02
        if (boots, libvirtd) == (site.boots, site.libvirtd) and site.libvirtd_runs:
            site.removes(qemu.name)
            yield 0.02
            yield from self._hook_release(site, qemu.name)
            if qemu in site.qemus:
                site.qemus.remove(qemu)

    # --- one host ---

    def start(self, site: Site, name: str, volume: Volume) -> Steps:
        libvirtd = site.libvirtd
        if not lives(site, libvirtd) or name in site.files:
            return
        if any(qemu.name == name and not qemu.has_ended for each in self.sites for qemu in each.qemus):
            return  # an admin starts no VM twice; another VM of the same disk is a rival
        uuid = f"uuid-{name}"
        starter = site.starter
        why = yield from self._asks(site, lambda: site.hook.prepare(uuid, starter, {volume: Mode.EXCLUSIVE}))
        if not lives(site, libvirtd):
            return
        if why != GRANTED:
            self.world.record(site.name, f"start of {name} is refused: {why}")
            yield from self._hook_release(site, name)
            return
        yield self._short()
        if not lives(site, libvirtd):
            return
        qemu = Qemu(name, next(self._pids), volume)
        site.writes(qemu, "paused", "starting up", "start", pid=0)
        yield self._short()
        if not lives(site, libvirtd):
            return
        site.opens(qemu)
        site.writes(qemu, "paused", "starting up", "start")
        yield self._short()
        if not lives(site, libvirtd):
            return
        granted = yield from self.acquires(site, qemu)
        if not lives(site, libvirtd) or qemu.has_ended:
            return
        if granted != GRANTED:
            yield from self.destroys(site, qemu)
            return
        site.becomes(qemu, State.RUNS)
        site.writes(qemu, "running", "booted", "start")
        yield self._short()
        if lives(site, libvirtd) and not qemu.has_ended:
            site.writes(qemu, "running", "booted")

    def stop(self, site: Site, qemu: Qemu) -> Steps:
        if site.libvirtd_runs and not qemu.has_ended:
            yield from self.destroys(site, qemu)

    def suspend(self, site: Site, qemu: Qemu, seconds: float) -> Steps:
        libvirtd = site.libvirtd
        if not lives(site, libvirtd) or qemu.state is not State.RUNS:
            return
        site.becomes(qemu, State.STANDS)
        site.writes(qemu, "paused", "user")
        yield from self.releases(site, qemu)
        yield seconds
        yield from self.resume(site, qemu)

    def resume(self, site: Site, qemu: Qemu) -> Steps:
        libvirtd = site.libvirtd
        if not lives(site, libvirtd) or qemu.has_ended or qemu.state.writes:
            return
        granted = yield from self.acquires(site, qemu)
        if granted == GRANTED and lives(site, libvirtd) and not qemu.has_ended:
            site.becomes(qemu, State.RUNS)
            site.writes(qemu, "running", "unpaused")

    # --- a migration ---

    def migrate(self, source: Site, qemu: Qemu, target: Site) -> Steps:
        ends = Ends(source, source.libvirtd, qemu, target, target.libvirtd)
        if ends.source_is_gone() or ends.target_is_gone() or qemu.state is not State.RUNS:
            return
        fault = "" if self.quiet else self.world.random.choice(FAULTS)
        self.world.record(source.name, f"{qemu.name} migrates to {target.name}{fault and f' ({fault})'}")
        source.writes(qemu, "running", "booted", OUT)
        yield 0.005
        source.writes(qemu, "running", "booted", OUT, "begin3")
        yield self._short()
        if not ends.source_is_gone() and not ends.target_is_gone():
            ends.arriving = yield from self._arrives(qemu, target, ends.target_run)
        if ends.source_is_gone():
            yield from self._abandoned(ends)
            return
        if ends.arriving is None or fault == "abort":
            yield from self._cancelled(ends)
            return
        source.writes(qemu, "running", "booted", OUT, "perform3")
        yield self.world.random.choice((0.05, self.world.random.uniform(0.1, 3.0)))
        if ends.source_is_gone():
            yield from self._abandoned(ends)
        elif fault == "target dies in live phase" or ends.target_is_gone():
            yield from self._cancelled(ends)
        else:
            yield from self._switches_over(ends, fault)

    def _switches_over(self, ends: Ends, fault: str) -> Steps:
        """The guest has stopped, and QEMU may still resume it; then it hands over."""
        source, qemu = ends.source, ends.qemu
        source.becomes(qemu, State.HANDS_OVER)
        source.writes(qemu, "paused", "migration", OUT, "perform3")
        yield from self.releases(source, qemu)
        yield self._short()
        if ends.source_is_gone():
            yield from self._abandoned(ends)
            return
        if fault == "target dies at the switch-over" or ends.target_is_gone():
            source.becomes(qemu, State.RUNS)
            source.writes(qemu, "running", "unpaused", OUT, "perform3")
            yield self._short()
            yield from self._cancelled(ends)
            return
        source.becomes(qemu, State.HANDED_OVER)
        source.writes(qemu, "paused", "migration", OUT, "perform3_done")
        yield self._short()
        has_arrived = False
        if not ends.target_is_gone() and not ends.source_is_gone():
            has_arrived = yield from self._finishes(ends)
        if ends.source_is_gone():
            return
        if has_arrived and fault != "answer lost":
            source.writes(qemu, "paused", "migration", OUT, "confirm3")
            yield self._short()
            if not ends.source_is_gone():
                yield from self.destroys(source, qemu)
                self.arrived += 1
        else:
            yield from self._comes_back(ends)

    def _finishes(self, ends: Ends) -> Generator[float, None, bool]:
        """The target asks, and runs the guest."""
        target, arriving = ends.target, ends.arriving
        assert arriving is not None
        target.writes(arriving, "paused", "migration", IN, "finish3")
        yield self._short()
        granted = yield from self.acquires(target, arriving)
        if ends.target_is_gone():
            return False
        if granted != GRANTED:
            yield from self.destroys(target, arriving)
            return False
        target.becomes(arriving, State.RUNS)
        target.writes(arriving, "running", "migrated", IN, "finish3")
        yield self._short()
        if not ends.target_is_gone():
            target.writes(arriving, "running", "migrated")
        return True

    def _comes_back(self, ends: Ends) -> Steps:
        """The guest has been handed over, and its target did not run it, or did not say so."""
        source, qemu = ends.source, ends.qemu
        source.writes(qemu, "paused", "migration", OUT, "confirm3_cancelled")
        yield self._short()
        if ends.source_is_gone():
            return
        granted = yield from self.acquires(source, qemu)
        if ends.source_is_gone():
            return
        if granted == GRANTED:
            source.becomes(qemu, State.RUNS)
            source.writes(qemu, "running", "migration canceled")
        else:
            qemu.state = State.STANDS
            source.writes(qemu, "paused", "migration failed")

    def _arrives(self, qemu: Qemu, target: Site, libvirtd: int) -> Generator[float, None, Qemu | None]:
        uuid, starter, volumes = qemu.vm.uuid, target.starter, {qemu.volume: Mode.EXCLUSIVE}

        async def announce() -> object:
            return target.hook.migrate(uuid, starter, volumes)

        if qemu.name in target.files:
            return None  # it is there already, as the rest of an earlier migration
        why = yield from self._asks(target, announce)
        if why != GRANTED or not lives(target, libvirtd):
            return None
        yield self._short()
        why = yield from self._asks(target, lambda: target.hook.prepare(uuid, starter, volumes))
        if not lives(target, libvirtd):
            return None
        if why != GRANTED:
            self.world.record(target.name, f"arrival of {qemu.name} is refused: {why}")
            yield from self._hook_release(target, qemu.name)
            return None
        yield self._short()
        if not lives(target, libvirtd):
            return None
        arriving = Qemu(qemu.name, next(self._pids), qemu.volume)
        target.writes(arriving, "paused", "starting up", IN, "prepare", pid=0)
        yield self._short()
        if not lives(target, libvirtd):
            return None
        target.opens(arriving)
        target.writes(arriving, "paused", "starting up", IN, "prepare")
        yield self._short()
        return arriving

    def _cancelled(self, ends: Ends) -> Steps:
        """The guest runs on at its source, and libvirt asks for nothing."""
        if not ends.source_is_gone():
            ends.source.writes(ends.qemu, "running", "unpaused", OUT, "confirm3_cancelled")
        yield from self._abandoned(ends)
        if not ends.source_is_gone():
            ends.source.writes(ends.qemu, "running", "unpaused")

    def _abandoned(self, ends: Ends) -> Steps:
        """The target's libvirtd destroys what arrives; without one, QEMU stands there with the disk open."""
        yield BROKEN_S
        if ends.arriving is not None and not ends.target_is_gone():
            yield from self.destroys(ends.target, ends.arriving)

    # --- libvirtd ---

    def kill_libvirtd(self, site: Site) -> None:
        if site.libvirtd_runs:
            self.world.record(site.name, "libvirtd is killed")
            site.libvirtd_runs = False

    def restart_libvirtd(self, site: Site) -> None:
        """A new libvirtd ends or resumes what it finds."""
        if site.up and not site.libvirtd_runs:
            self.world.record(site.name, "libvirtd starts")
            site.libvirtd += 1
            site.libvirtd_runs = True
            for name in list(site.files):
                self.world.after(0.1, lambda name=name: self._when_free(name, site))  # type: ignore[misc]

    def _when_free(self, name: str, site: Site) -> None:
        if name in self.busy:
            self.world.after(0.1, lambda: self._when_free(name, site))
        else:
            self.begin(name, self._found(site, name))

    def _found(self, site: Site, name: str) -> Steps:
        status = site.files.get(name)
        if status is None or not site.libvirtd_runs:
            return
        qemu = next((each for each in site.qemus if each.pid == status.pid), None)
        if qemu is None or qemu.has_ended:
            site.removes(name)
            yield from self._hook_release(site, name)
        elif status.async_job == "start" or (status.async_job == IN and qemu.state is not State.RUNS):
            yield from self.destroys(site, qemu)
        elif status.async_job != OUT:
            if qemu.state is State.RUNS:
                site.writes(qemu, "running", status.reason)
        elif qemu.state is State.RUNS:
            site.writes(qemu, "running", "unpaused")
        elif qemu.state is State.HANDS_OVER:
            site.becomes(qemu, State.RUNS)  # QEMU does that by itself when the migration is cancelled
            site.writes(qemu, "running", "unpaused")
            yield 0.05
            yield from self.acquires(site, qemu)
        elif status.phase == "confirm3":
            yield from self.destroys(site, qemu)
        else:
            site.writes(qemu, "paused", "migration")

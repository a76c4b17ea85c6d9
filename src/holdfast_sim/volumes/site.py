"""One host of a cluster with shared volumes: power, libvirt's status files, QEMU processes, and our daemon.

The daemon is a process of the simulator and runs what ships: `HostVolumes`, `Reconciler`, `HookCalls`, `WriteGrants`. It
can be killed at any moment; its record and the status files outlive it. News of a status file comes late, twice or never.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from holdfast.backends.lvm.hook_calls import HookCalls
from holdfast.backends.lvm.host_volumes import HostVolumes
from holdfast.backends.lvm.ports import Refused, Volume
from holdfast.backends.lvm.reconciler import Reconciler
from holdfast.backends.lvm.volumes import Volumes
from holdfast.backends.lvm.write_grants import WriteGrants
from holdfast.backends.lvm.write_rules import Holding, Vm
from holdfast.model import Instant, ProcessId
from holdfast.system import eager_tasks
from holdfast.system.files.mapped_device import NotMapped
from holdfast.system.libvirt.domains import Disk, Domain, Survey
from holdfast_sim.event_loop import Process
from holdfast_sim.volumes.guards import GuardLeases, HostGuard
from holdfast_sim.volumes.shared_locks import HostLocks, SharedLocks
from holdfast_sim.world import World

NEWS_LOST, NEWS_TWICE = 0.2, 0.2
NEWS_LATE_S = 1.5
LOCK_S, COMMAND_S = 0.09, 1.5
"""The longest request of lvmlockd, and the longest command of LVM, in quiet times (libvirt-hooks-lvm.md 3.1, 3.4)."""


class State(enum.Enum):
    """What a QEMU may do to its disk."""

    STANDS = "stands"
    RUNS = "runs"
    HANDS_OVER = "stands, may write, and may run again by itself"
    HANDED_OVER = "stands, and has its disk open to read alone"

    @property
    def writes(self) -> bool:
        return self in (State.RUNS, State.HANDS_OVER)


@dataclass(eq=False, slots=True)
class Qemu:
    """One QEMU process, and what libvirt's status file says of it."""

    name: str
    pid: int
    volume: Volume
    state: State = State.STANDS
    has_ended: bool = False

    @property
    def vm(self) -> Vm:
        return Vm(f"uuid-{self.name}", self.pid)


class ProcessClock:
    """The `Clock` port of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def now(self) -> Instant:
        return Instant(self._process.world.now)

    def wall(self) -> float:
        return self._process.world.now

    async def sleep(self, seconds: float) -> None:
        woken = self._process.loop.create_future()
        self._process.loop.call_later(seconds, eager_tasks.resolve, woken, None)
        await woken


class NoDevices:
    """No device is asked: volumes are known by their paths."""

    def uuid(self, path: str) -> str | NotMapped:
        return NotMapped("is not there", missing=True)


class NoReports:
    """LVM is never asked."""

    async def report(self, path: str) -> str | Refused:
        raise AssertionError(f"{path} is known")


@dataclass(slots=True)
class Call:
    """One call of the daemon by libvirt or its hook; `done` and without an answer if the daemon has ended."""

    daemon: Process | None
    is_answered: bool = False
    answer: object = None

    @property
    def done(self) -> bool:
        return self.is_answered or self.daemon is None or not self.daemon.alive


@dataclass(slots=True)
class _Record:
    raw: bytes = b""

    def read(self) -> bytes:
        return self.raw

    def replace(self, raw: bytes) -> None:
        self.raw = raw


@dataclass(eq=False)
class Site:
    """A host. `boots` and `libvirtd` count: a procedure that began under another number is over."""

    name: str
    world: World
    cluster: SharedLocks
    volumes: tuple[Volume, ...]
    check: Callable[[], None]
    up: bool = True
    boots: int = 0
    libvirtd: int = 1
    libvirtd_runs: bool = True
    qemus: list[Qemu] = field(default_factory=list)
    files: dict[str, Domain] = field(default_factory=dict)
    unreadable: bool = False
    """Whether the folder of status files can't be listed."""
    daemon: Process | None = None
    leases: GuardLeases | None = None
    """Those of the guard; None: there is no guard."""
    shares: bool = False
    """Whether this host's next daemon has activation = "shared"."""
    guard: HostGuard | None = None
    _record: _Record = field(default_factory=_Record)

    # --- our daemon ---

    def start_daemon(self) -> None:
        if not self.up or (self.daemon is not None and self.daemon.alive):
            return
        process = self.daemon = Process(self.world, self.name)
        clock = ProcessClock(process)

        async def passes(what: str) -> None:
            longest_s = COMMAND_S if what.startswith(("activate", "deactivate")) else LOCK_S
            await clock.sleep(self.world.random.uniform(0.001, longest_s) / 2)

        volumes = Volumes(NoDevices(), NoReports())
        for volume in self.volumes:
            volumes.remember(volume)
        self.host = HostVolumes(
            status=self,
            volumes=volumes,
            locks=HostLocks(self.cluster, self.name, passes),
            record=self._record,
            clock=clock,
            lives=lambda libvirtd: self.libvirtd_runs and libvirtd.start_ticks == self.libvirtd,
        )
        self.reconciler = Reconciler(self.host, on_lockfailure=self._lock_failed)
        self.hook = HookCalls(self.host, self.reconciler)
        self.grants = WriteGrants(self.host)
        self.world.record(self.name, f"holdfastd starts{', activation shared' if self.shares else ''}")
        self.guard = None
        if self.leases is not None:
            self.guard = HostGuard(self, self.leases)
            self.host.guard, self.host.shares_all = self.guard.mode, self.shares
            process.spawn(self.guard.run())
        process.spawn(self.reconciler.run())

    def kill_daemon(self) -> None:
        if self.daemon is not None and self.daemon.alive:
            self.world.record(self.name, "holdfastd is killed")
            self.daemon.end()

    async def _lock_failed(self, holding: Holding, why: str) -> None:
        self.world.fail("no VM is stopped by us", f"{holding.name} on {self.name}: {why}", self.name)

    def ask(self, coroutine: Callable[[], Coroutine[Any, Any, object]]) -> Call:
        """Call the daemon, which may end meanwhile."""
        daemon = self.daemon if self.daemon is not None and self.daemon.alive else None
        call = Call(daemon)

        async def run() -> None:
            call.answer = await coroutine()
            call.is_answered = True

        if daemon is not None:
            daemon.spawn(run())
        return call

    @property
    def starter(self) -> ProcessId:
        return ProcessId(100, self.libvirtd)

    # --- libvirt's status files ---

    def survey(self) -> Survey:
        """See `SurveyedStatus`. A file whose QEMU has ended is none."""
        if self.unreadable:
            return Survey(unread=("/run/libvirt/qemu",))
        dead = {qemu.pid for qemu in self.qemus if qemu.has_ended}
        return Survey(tuple(each for each in self.files.values() if each.pid not in dead))

    def writes(
        self,
        qemu: Qemu,
        state: str,
        reason: str = "",
        job: str = "",
        phase: str = "",
        *,
        pid: int | None = None,
    ) -> None:
        """libvirt writes the status of a VM, unless the host has lost its power since."""
        if qemu.has_ended or not self.up:
            return
        self.files[qemu.name] = Domain(
            qemu.name,
            qemu.vm.uuid,
            (Disk(str(qemu.volume), shareable=False),),
            frozenset(),
            qemu.pid if pid is None else pid,
            state,
            job,
            phase,
            reason,
        )
        words = " ".join(word for word in (state, reason, job, phase) if word)
        self.world.record(self.name, f"status of {qemu.name} ({qemu.pid}): {words}")
        self._changed()

    def removes(self, name: str) -> None:
        if self.files.pop(name, None) is not None:
            self.world.record(self.name, f"status of {name}: deleted")
            self._changed()

    def _changed(self) -> None:
        random = self.world.random
        if random.random() < NEWS_LOST:
            return
        for _ in range(2 if random.random() < NEWS_TWICE else 1):
            late_s = random.choice((0.0, 0.0, random.uniform(0, NEWS_LATE_S)))
            if (daemon := self.daemon) is not None and daemon.alive:
                daemon.loop.call_later(late_s, self.reconciler.changed)

    # --- QEMU ---

    def opens(self, qemu: Qemu) -> None:
        """A new QEMU opens its disk."""
        host = self.cluster.hosts[self.name]
        if qemu.volume.id not in host.devices:
            self.world.fail(
                "a prepared volume stays", f"{qemu.volume} is not active on {self.name}", self.name
            )
        host.open[qemu.volume.id] = host.open.get(qemu.volume.id, 0) + 1
        self.qemus.append(qemu)

    def becomes(self, qemu: Qemu, state: State) -> None:
        if qemu.has_ended:
            return
        qemu.state = state
        self.world.record(self.name, f"{qemu.name} ({qemu.pid}) {state.value}")
        self.check()

    def ends(self, qemu: Qemu) -> None:
        """A QEMU ends, whatever libvirt knows of it."""
        if not qemu.has_ended:
            qemu.has_ended = True
            qemu.state = State.STANDS
            self.cluster.hosts[self.name].open[qemu.volume.id] -= 1
            self.world.record(self.name, f"{qemu.name} ({qemu.pid}) ends")

    # --- power ---

    def loses_power(self) -> None:
        self.kill_daemon()
        self.up = self.libvirtd_runs = False
        self.boots += 1
        self.cluster.died(self.name)
        for qemu in self.qemus:
            qemu.has_ended, qemu.state = True, State.STANDS
        self.qemus.clear()
        self.files.clear()
        self._record.raw = b""
        self.world.record(self.name, "loses power")

    def boots_again(self) -> None:
        self.up = True
        self.cluster.called_dead(self.name)  # its lockspace is joined as a new generation
        if self.leases is not None:
            self.leases.called_dead(self.name)
        self.world.record(self.name, "runs again")
        self.libvirtd += 1
        self.libvirtd_runs = True
        self.start_daemon()

"""holdfastd's own composition in the simulator: manager, recovery, paxos backend and lockspace keepers as they ship.

    LockManager ─ LeaseRecovery, Recovery ─ PaxosBackend ─ LockspaceKeeper ─ Lockspace, Heartbeat ─ DeviceWatchdog
    below:  threads that are tasks, disks, clocks, processes, the journal's file and the memory of terms of this machine

A virtual machine is a process that registers, acquires, and only then runs; it ends when it is stopped, killed by the
ladder, or its machine is reset. The daemon may be killed and started again under running virtual machines: the next one
goes on with the term and adopts their locks, or the ladder stops them. The checkers follow a virtual machine, not the
daemon: what it rests on must stand all the time.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from holdfast.backends.base import Backend
from holdfast.backends.lease_holding import HoldingPorts
from holdfast.backends.lease_places import Found, StorageFailed, Unusable, Vanished, opened
from holdfast.backends.lock_names import NameBy, lease_name
from holdfast.backends.paxos import PaxosBackend
from holdfast.errors import LockError
from holdfast.manager.events import Events
from holdfast.manager.journal import Journal, SavedState
from holdfast.manager.lease_collection import LeaseCollector
from holdfast.manager.lease_recovery import LeaseRecovery, Loss
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lockspaces import Lockspaces
from holdfast.manager.owners import Owner
from holdfast.manager.recovery import Recovery
from holdfast.manager.routing import Route, Routing, Rule
from holdfast.model import Instant, LockFailureAction, Mode, OwnerName, Protection, Resource, Want
from holdfast.ondisk.leader import Leader
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_release import Mode as LeaseMode
from holdfast.protocol.timing import Timing
from holdfast.supervision.heartbeat import Heartbeat
from holdfast.supervision.host_terms import HostIdentity
from holdfast.supervision.keeper import KeeperNews, KeeperState, LockspaceKeeper, LockspaceSpec
from holdfast.system import tasks
from holdfast.system.blocking import InlineStorage
from holdfast.system.disk_file import DiskFacts
from holdfast.system.disk_identity import DiskIdentity
from holdfast.system.lease_threads import Life
from holdfast.system.lockspace_files import LockspaceFiles
from holdfast.system.watchdog import DeviceWatchdog
from holdfast.testing.checkers import Checkers, Term
from holdfast.testing.machine import Machine, MachineClock, VirtualMachine
from holdfast.testing.process_loop import Process
from holdfast.testing.shared_disk import Path, PathDisk
from holdfast.testing.simulated import SimulatedAppendFile, SimulatedProcesses
from holdfast.testing.simulated_daemon import CheckedWatchdog, Space
from holdfast.testing.simulated_errands import SimulatedErrands
from holdfast.testing.world import ProcessGone, Violation

UNKILLABLE = frozenset((signal.SIGTERM, signal.SIGKILL))


def resource_of(name: str) -> Resource:
    return Resource("", f"/disks/{name}")


def lease_of(name: str) -> str:
    """The lease that the backend looks for: named by the disk's path."""
    return lease_name(resource_of(name), NameBy.PATH_MD5, DiskIdentity())


class MachineProcesses(SimulatedProcesses):
    """The process table of one machine; it outlives a daemon, and what a dead daemon watched concerns nobody."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self.on_end: Callable[[int], None] = lambda _: None
        self.pids = iter(range(1000, 1_000_000))

    def end(self, pid: int) -> None:
        self.on_end(pid)
        super().end(pid)

    def call_soon(self, callback: Callable[[], None]) -> None:  # type: ignore[override]
        process = self._machine.process
        if process is not None and process.alive:
            process.loop.call_soon(callback)

    def daemon_gone(self) -> None:
        self._pinned.clear()


class Memory:
    """The memory of terms: a small file on a disk of the machine's own, which survives a reset."""

    def __init__(self) -> None:
        self._raw = b""

    def read(self) -> bytes:
        return self._raw

    def replace(self, raw: bytes) -> None:
        self._raw = raw


class MachineState:
    """What a machine keeps beside its daemon: until the next boot, or for ever."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.memories: dict[str, Memory] = {}
        self._boot = -1
        self.processes = MachineProcesses(machine)
        self.journal = SimulatedAppendFile()

    def booted(self) -> None:
        if self._boot != self.machine.boots:
            self._boot = self.machine.boots
            self.processes = MachineProcesses(self.machine)
            self.journal = SimulatedAppendFile()


class LeaseFile(PathDisk):
    """A path as a backend opens it."""

    @property
    def facts(self) -> DiskFacts:
        raise NotImplementedError("a simulated disk is no file")

    async def is_named(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to close: requests belong to the kernel."""


class Places:
    """Leases lie behind their lockspace, at offsets known beforehand."""

    def __init__(self, process: Process, path: Path, offsets: Mapping[str, int]) -> None:
        self._process = process
        self._path = path
        self._offsets = offsets

    def place(self, name: str) -> str:
        return f"{self._path.disk.name}:{self._offsets[name]}"

    async def find(self, member: Membership, name: str) -> Found | Unusable | Vanished | StorageFailed:
        disk = LeaseFile(self._process, self._path)
        return await opened(disk, self._offsets[name], member, name, self.place(name))

    async def names(self, member: Membership) -> list[str] | Unusable | StorageFailed:
        return list(self._offsets)

    async def free_own(self, member: Membership) -> None:
        return None

    async def remove(
        self, member: Membership, found: Found, name: str, leader: Leader
    ) -> Unusable | StorageFailed | None:
        return Unusable(self.place(name), "leases are not removed here")


class Identities:
    def look(self, path: str) -> DiskIdentity:
        return DiskIdentity()


class Threads:
    """`LeaseThreads`: each thread is a task with a disk and a clock of its own."""

    def __init__(self, process: Process, machine: Machine) -> None:
        self._process = process
        self._machine = machine

    def start_on_disk(self, name: str, path: str, life: Life, on_end: Callable[[object], None]) -> None:
        clock = MachineClock(self._process, self._machine)

        async def whole() -> None:
            try:
                result: object = await life(
                    self._machine.disk_of(self._process, path), clock, clock.interrupt
                )
            except (ProcessGone, Violation):
                raise
            except BaseException as e:  # carried, as a real thread's end is
                result = e
            self.tell(lambda: on_end(result))

        self._process.spawn(whole())

    def tell(self, callback: Callable[[], None]) -> None:
        self._process.loop.call_soon(callback)


class Libvirt:
    """`DomainControl`: pauses a domain and has its lock released, or does not answer."""

    def __init__(self, daemon: ManagedDaemon) -> None:
        self._daemon = daemon

    async def suspend(self, uuid: str) -> bool:
        random = self._daemon.world.random
        await self._daemon.clock.sleep(random.uniform(0.1, 2))
        desk = next((d for d in self._daemon.desks if d.vm is not None and d.vm.uuid == uuid), None)
        if desk is None or desk.vm is None or desk.vm.stubborn or random.random() < 0.3:
            return False
        await desk.paused_by_libvirt()
        return True

    async def start(self, uuid: str) -> bool:
        return True


class ManagedDaemon:
    """One life of the daemon on one machine."""

    def __init__(
        self,
        *,
        machine: Machine,
        state: MachineState,
        spaces: tuple[Space, ...],
        align_bytes: int,
        host_id: int,
        timing: Timing,
        stubborn_rate: float,
        checkers: Checkers,
    ) -> None:
        state.booted()
        self.machine = machine
        self.state = state
        self.world = machine.world
        self.process = machine.start_process()
        self.host_id = host_id
        self.timing = timing
        self.stubborn_rate = stubborn_rate
        self.checkers = checkers
        self.clock = MachineClock(self.process, machine)
        state.processes.on_end = self._vm_ended
        fd = 3 if machine.watchdog.fires_at is not None else None
        driver = DeviceWatchdog(
            "/dev/watchdog", timing.fire_timeout_s, self.clock.now, machine.watchdog, fd=fd
        )
        self.heartbeat = Heartbeat(
            clock=MachineClock(self.process, machine),
            watchdog=CheckedWatchdog(driver, lambda: checkers.fed(machine)),
        )
        self.seats = {space.name: ManagedSeat(self, space, align_bytes) for space in spaces}
        action = self.world.random.choice((LockFailureAction.PAUSE, LockFailureAction.POWEROFF))
        backends: dict[str, Backend] = {name: seat.backend(action) for name, seat in self.seats.items()}
        rules = [
            Rule(f"/disks/{resource}", Route(backends[space.name], Protection.FENCED), of_lockspace=False)
            for space in spaces
            for resource in space.resources
        ]
        self._boot = f"{machine.name}-{machine.boots}"
        self.journal = Journal(
            state.journal,
            boot=self._boot,
            host=machine.name,
            snapshot=lambda: self.manager.journal_lines(),  # noqa: PLW0108 - there is no manager yet
        )
        self.manager = LockManager(
            routing=Routing(rules, rules[0].route, backends),
            lockspaces=Lockspaces(files=LockspaceFiles(), storage=InlineStorage(), journal=self.journal),
            journal=self.journal,
            processes=state.processes,
            clock=self.clock,
            events=Events(self.clock.wall),
            host=machine.name,
            owners_max=100,
        )
        self.collector = LeaseCollector(self.manager)
        libvirt = Libvirt(self)
        self.lease_recovery = LeaseRecovery(
            self.manager,
            clock=self.clock,
            domains=libvirt,
            status=None,
            actions=dict.fromkeys(backends, action),
        )
        self.recovery = Recovery(
            self.manager,
            processes=state.processes,
            clock=self.clock,
            domains=libvirt,
            on_lock_lost=LockFailureAction.POWEROFF,
        )
        self.serving = False
        self.world.tell(machine.name, "its daemon starts")
        self.process.spawn(self._start())

    def identity(self) -> HostIdentity:
        return HostIdentity(self.machine.name, f"{self.machine.name}-{self.machine.boots}", self.machine.name)

    @property
    def alive(self) -> bool:
        return self.process.alive

    @property
    def desks(self) -> list[ManagedDesk]:
        return [desk for seat in self.seats.values() for desk in seat.desks.values()]

    async def _start(self) -> None:
        """As `handover.adopt` and `daemon.run` do it."""
        state: SavedState = self.journal.load()
        if state.boot != self._boot:
            state = SavedState(boot=self._boot)
        living = self.recovery.owners(state)
        await self.recovery.locks(state, living, {}, self._start_keepers)
        self.journal.compact()
        for owner in living.values():
            if not owner.alive():
                self.manager.owner_ended(owner)
        self.serving = True
        for name, seat in self.seats.items():
            if seat.keeper.gone_on:
                tasks.start(self.collector.free_left_behind({name}))

    async def _start_keepers(self) -> None:
        self.process.spawn(self.heartbeat.run())
        tried = []
        for seat in self.seats.values():
            done: asyncio.Future[None] = self.process.loop.create_future()
            seat.keeper.start(partial(_resolve, done))
            if seat.keeper.resuming:
                tried.append(done)
        if tried:
            await asyncio.wait(tried, timeout=10)

    def _vm_ended(self, pid: int) -> None:
        for vm in [vm for vm in self.machine.vms if vm.pid == pid]:
            vm.running = False
            self.machine.vms.remove(vm)
            for term in [t for t in self.checkers.terms if t.vms.get(vm.resource) is vm]:
                self.checkers.stopped(term, vm.resource)
                self.checkers.gave_up(term, vm.resource)


class ManagedSeat:
    """One lockspace of one daemon, and the checkers' view of its term."""

    def __init__(self, daemon: ManagedDaemon, space: Space, align_bytes: int) -> None:
        self.daemon = daemon
        self.space = space
        self._offsets = {lease_of(r): n * align_bytes for n, r in enumerate(space.resources, start=1)}
        self.keeper = LockspaceKeeper(
            LockspaceSpec(
                name=space.name, path=space.name, host_id=daemon.host_id, hosts_max=None, timing=daemon.timing
            ),
            heartbeat=daemon.heartbeat,
            threads=Threads(daemon.process, daemon.machine),
            clock=MachineClock(daemon.process, daemon.machine),
            memory=daemon.state.memories.setdefault(space.name, Memory()),
            identity=daemon.identity(),
            token=lambda: f"{daemon.world.random.getrandbits(48):012x}",
            in_use=lambda: daemon.lease_recovery.in_use({space.name}),
            lease_writes=lambda: False,  # leases lie behind their lockspace here
            spawn=tasks.start,
            news=KeeperNews(on_joined=self._joined, on_lost=self._lost),
        )
        self.desks = {resource: ManagedDesk(self, resource) for resource in space.resources}

    def backend(self, action: LockFailureAction) -> PaxosBackend:
        daemon = self.daemon
        path = daemon.machine.paths[self.space.name]
        return PaxosBackend(
            self.space.name,
            presence=self.keeper,
            places=Places(daemon.process, path, self._offsets),
            name_by=NameBy.PATH_MD5,
            on_lockfailure=action,
            reach=Protection.CROSS_HOST,
            reach_note="",
            ports=HoldingPorts(
                errands=SimulatedErrands(lambda: daemon.world.random.uniform(0.5, 4)),
                clock=MachineClock(daemon.process, daemon.machine),
                chance=daemon.world.random,
                spawn=tasks.start,
            ),
            storage=InlineStorage(),
            identities=Identities(),
        )

    @property
    def member(self) -> Membership | None:
        member = self.keeper.membership() if self.keeper.state is KeeperState.JOINED else None
        return member if isinstance(member, Membership) else None

    @property
    def term(self) -> Term | None:
        daemon = self.daemon
        ours = [t for t in daemon.checkers.terms if t.machine is daemon.machine and t.disk == self.space.name]
        return ours[-1] if ours else None

    @property
    def stay(self) -> bool:
        return self.keeper.state is not KeeperState.LEFT

    @stay.setter
    def stay(self, wanted: bool) -> None:
        if wanted and self.keeper.state is KeeperState.LEFT and self.daemon.alive:
            with self.daemon.process.loop.entered():
                self.keeper.join()

    def leave(self) -> bool:
        if any(desk.vm is not None or desk.busy for desk in self.desks.values()) or self.member is None:
            return False
        if self.daemon.lease_recovery.in_use({self.space.name}):
            return False
        if self.term is not None:
            self.term.dismissed = self._settled
        with self.daemon.process.loop.entered():
            self.keeper.leave()
        return True

    def _settled(self) -> bool:
        return not self.daemon.machine.paths[self.space.name].busy_for(self.daemon.process)

    def _joined(self, keeper: LockspaceKeeper) -> None:
        member = self.member
        if member is None:
            return
        daemon = self.daemon
        daemon.checkers.joined(
            Term(
                daemon.machine,
                daemon.process,
                self.space.name,
                member.host_id,
                member.generation,
                member.timing.io_timeout_s,
            )
        )
        daemon.lease_recovery.joined(keeper.name)

    def _lost(self, keeper: LockspaceKeeper, reason: str) -> None:
        daemon = self.daemon
        daemon.world.tell(daemon.machine.name, f"has lost {self.space.name}: {reason}")
        daemon.lease_recovery.lost(
            Loss(
                lockspace=keeper.name,
                reason=reason,
                backends={keeper.name},
                timing=keeper.timing,
                lost_at=Instant(keeper.lost_at or 0.0),
                renewed_at=None if keeper.renewed_at is None else Instant(keeper.renewed_at),
                on_all_gone=self._all_gone,
            )
        )

    def _all_gone(self) -> None:
        daemon, term = self.daemon, self.term
        if term is not None:
            if term.vms:
                running = ", ".join(vm.name for vm in term.vms.values())
                daemon.checkers.fail(
                    "nothing lost", f"{term}: all users are gone, but {running}", daemon.machine
                )
            term.beliefs.clear()
            term.dismissed = self._settled
            daemon.process.spawn(self._over(term))
        self.keeper.users_are_gone()

    async def _over(self, term: Term) -> None:
        while not self._settled():
            await self.daemon.clock.sleep(0.2)
        self.daemon.checkers.is_over(term, "its owners are gone")


class ManagedDesk:
    """One disk on one host: the virtual machine that has it, and what libvirt does about it."""

    def __init__(self, seat: ManagedSeat, resource: str) -> None:
        self.seat = seat
        self.resource = resource
        self.busy = False
        self.last_refusal = ""

    def __str__(self) -> str:
        return f"{self.seat.daemon.machine}:{self.resource}"

    @property
    def vm(self) -> VirtualMachine | None:
        return next((vm for vm in self.seat.daemon.machine.vms if vm.resource == self.resource), None)

    @property
    def lease(self) -> VirtualMachine | None:
        """What counts as held: a virtual machine that was let run."""
        vm = self.vm
        return vm if vm is not None and vm.held else None

    async def start(self, mode: LeaseMode, *, wait: bool) -> None:
        del wait  # the backend never waits for a death
        if self.busy or self.vm is not None or not self.seat.daemon.serving:
            return
        self.busy = True
        try:
            await self._start(Mode.EXCLUSIVE if mode is LeaseMode.EXCLUSIVE else Mode.SHARED)
        finally:
            self.busy = False

    async def _start(self, mode: Mode) -> None:
        daemon = self.seat.daemon
        stubborn = daemon.world.random.random() < daemon.stubborn_rate
        pid = next(daemon.state.processes.pids)
        vm = VirtualMachine(f"vm{pid}", daemon.machine, stubborn, pid=pid, resource=self.resource)
        daemon.state.processes.start(pid, ignoring=UNKILLABLE if stubborn else frozenset())
        daemon.machine.vms.append(vm)
        owner = daemon.manager.register(pid, OwnerName(vm.name, vm.uuid, pid))
        try:
            await daemon.manager.acquire(owner, Want(resource_of(self.resource), mode))
        except LockError as refusal:
            self.last_refusal = f"{type(refusal).__name__}: {refusal}"
            daemon.world.tell(daemon.machine.name, f"refuses {self.resource}: {self.last_refusal}")
            if vm.running:
                daemon.state.processes.end(pid)
            return
        term = self.seat.term
        if vm.running and term is not None:
            # libvirt lets the guest's processors go only now.
            vm.held = True
            daemon.checkers.believes(term, self.resource, _lease_mode(mode))
            daemon.checkers.runs(term, self.resource, vm)

    async def stop(self) -> None:
        vm = self.lease
        if vm is None or self.busy or not self.seat.daemon.serving:
            return
        self.busy = True
        try:
            if self.seat.daemon.world.random.random() < 0.5:
                await self._release(vm)
            if vm.running:
                self.seat.daemon.state.processes.end(vm.pid)
            while self._in_table():
                await self.seat.daemon.clock.sleep(0.2)
        finally:
            self.busy = False

    async def paused_by_libvirt(self) -> None:
        vm = self.lease
        if vm is not None:
            await self._release(vm)
            if vm.running:
                self.seat.daemon.state.processes.end(vm.pid)

    async def _release(self, vm: VirtualMachine) -> None:
        """The guest stands still; libvirt has its lock released over the connection that registered it."""
        daemon = self.seat.daemon
        owner = self._owner(vm.pid)
        if owner is None:
            return
        vm.paused = True
        for term in [t for t in daemon.checkers.terms if t.vms.get(self.resource) is vm]:
            daemon.checkers.stopped(term, self.resource)
            daemon.checkers.gave_up(term, self.resource)
        try:
            await daemon.manager.release(owner, resource_of(self.resource))
        except LockError as refusal:
            daemon.world.tell(daemon.machine.name, f"release of {self.resource}: {refusal}")

    def _owner(self, pid: int) -> Owner | None:
        return self.seat.daemon.manager.owners.with_pid(pid)

    def _in_table(self) -> bool:
        return any(resource_of(self.resource) in names for names in self._claims())

    def _claims(self) -> Iterator[Mapping[Resource, Mode]]:
        for lock in self.seat.daemon.manager.table:
            yield from lock.claims.values()

    async def convert(self) -> None:
        """Nobody asks a manager to convert: libvirt has no call for it."""

    async def ask_for(self) -> None:
        """Requests come from sanlock's clients, which are not served yet."""


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _lease_mode(mode: Mode) -> LeaseMode:
    return LeaseMode.EXCLUSIVE if mode is Mode.EXCLUSIVE else LeaseMode.SHARED

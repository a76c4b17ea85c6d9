"""The ports of `system` that a whole daemon uses on a simulated machine: processes, files, threads, names of disks.

    MachineState    state of the machine beside its daemon: journal, state files, process table, configuration. It
                    outlives a daemon, and parts of it a reset; faults damage it here
    managed_ports   the `SystemPorts` of one run of the daemon over that state

Parts that a simulated machine does not have raise when they are used: connections, lock files, mounts but the root.
"""

from __future__ import annotations

import asyncio
import errno
import zlib
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from holdfast.config import Config
from holdfast.daemon.build import SystemPorts
from holdfast.daemon.lockspaces import LeaseHostPorts
from holdfast.model import DIRECT_LOCKSPACE, ProcessId, Resource
from holdfast.protocol.timing import NAME_TOKEN_DIGITS
from holdfast.protocol.types import Instant, IoFailed
from holdfast.supervision.host_identity import HostIdentity
from holdfast.supervision.lockspace_port import WatchdogSpec
from holdfast.system import eager_tasks
from holdfast.system.block_io.renewal_threads import Life
from holdfast.system.block_io.request_gate import Inside
from holdfast.system.epoll import READ, Readiness
from holdfast.system.files.disk_identity import DiskIdentity
from holdfast.system.files.lockspace_files import LockspaceFiles
from holdfast.system.files.mounts import Mount, MountTable
from holdfast.system.files.ofd_lock import FileKey, OpenedFile, SystemLockFiles
from holdfast.system.files.ofd_lock import IoFailed as CallFailed
from holdfast.system.files.open_files import Users
from holdfast.system.files.storage_executor import InlineStorage
from holdfast.system.host.descriptors import Inherited, decode_state
from holdfast.system.host.predecessor import Predecessors
from holdfast.system.libvirt.virsh import DomainControl
from holdfast.system.watchdog.device import DeviceWatchdog, NoWatchdog, Watchdog
from holdfast.system.watchdog.fed_until import NotKept
from holdfast.system.watchdog.passed import WATCHDOG_FD_NAME, PassedWatchdog
from holdfast.system.watchdog.wdmd import WdmdWatchdog
from holdfast.testing.fakes import SimulatedAppendFile, SimulatedProcesses, SimulatedRecord
from holdfast_sim.event_loop import Process
from holdfast_sim.host.lockspace_locks import TableLocks
from holdfast_sim.host.machine import DAEMON, STORE, Machine, MachineClock
from holdfast_sim.host.status_files import StatusFiles, StatusPort
from holdfast_sim.host.wdmd import SimulatedWdmd
from holdfast_sim.storage.disk_names import DiskNames, Naming, disk_of, resource_of, strong_of
from holdfast_sim.storage.files import SimulatedStorage
from holdfast_sim.world import ProcessGone, Violation


class MachineProcesses(SimulatedProcesses):
    """The process table of one machine; it outlives a daemon, and drops the watches of a dead one."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self.on_end: Callable[[int], None] = lambda _: None
        self.on_signal: Callable[[int, int], None] = lambda _, __: None
        """Called with (pid, signal) before the signal is delivered."""
        self.pids = iter(range(1000, 1_000_000))

    def end(self, pid: int) -> None:
        self.on_end(pid)
        super().end(pid)

    def signalled(self, process_id: ProcessId, number: int) -> None:
        if self.is_alive(process_id):
            self.on_signal(process_id.pid, number)
        super().signalled(process_id, number)

    def call_soon(self, callback: Callable[[], None]) -> None:  # type: ignore[override]
        process = self._machine.process
        if process is not None and process.alive:
            process.loop.call_soon(callback)

    def daemon_gone(self) -> None:
        self._pinned.clear()


class StateFile:
    """A small file that is replaced as a whole, on a local disk: it survives a reset."""

    def __init__(self) -> None:
        self.raw = b""
        self.written = b""
        """What a daemon wrote or read last, without later changes by an operator."""
        self.earlier: list[bytes] = []
        """Older contents, for a backup that is restored."""
        self.full = False
        """Whether its disk is full."""

    def read(self) -> bytes:
        return self.raw

    def replace(self, raw: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.raw and self.raw != raw:
            self.earlier.append(self.raw)
        self.raw = self.written = raw


Edited = Callable[[Config], Config | None]
"""An operator's edit of a configuration; None: the file can't be read any more."""


class MachineState:
    """The state of a machine beside its daemon, kept until the next boot or for ever."""

    def __init__(
        self,
        machine: Machine,
        new_wdmd: Callable[[], SimulatedWdmd | None],
        directories: tuple[str, str] = ("/run/holdfast", "/var/lib/holdfast"),
    ) -> None:
        """`directories`: (run_dir, state_dir) of the daemon that uses this state."""
        self.machine = machine
        self.directories = directories
        self._new_wdmd = new_wdmd
        self.wdmd: SimulatedWdmd | None = None
        self.state_files: dict[str, StateFile] = {}
        self.run_files: dict[str, StateFile] = {}
        """State files in RUN_DIR, lost at a reset."""
        self._boot = -1
        machine.watchdog.lent = False
        self.store = Store(self)
        self.reexec = b""
        """The state that a daemon leaves to the program that it executes."""
        self.processes = MachineProcesses(machine)
        self.bound = KeptBound()
        """That of the last feeding, where daemons keep it; for the next one, by the store or by an exec."""
        self.journal = SimulatedAppendFile()
        self.journal_extent = SimulatedRecord()
        self.rivals: set[int] = set()
        """Processes that want a disk which another virtual machine of this host holds."""
        self.edit: Callable[[], None] = lambda: None
        """Called before a start and before a reload: an operator may edit the configuration files."""
        self.edited: Edited = lambda config: config
        """The edit of the configuration files since the machine was set up."""
        self.takes = ""
        """What this edit takes from a virtual machine that runs; empty for nothing."""
        self.kept = ""
        """The configuration in force, in RUN_DIR."""
        self.generation_min: Callable[[], int] = lambda: 1
        """Its date; 1: unknown, so that generations count from the records on storage."""
        self.reread_s = 0.0
        """Seconds between two reads of held leases; 0: never, as no area is restored from a backup."""
        self.status: StatusFiles | None = None
        """libvirt's status files; None where there are no migrations, so that they are not read."""
        self.records: dict[str, list[str]] = {}
        """Lines of files that are only appended to: the record of broken leases."""

    def booted(self) -> None:
        if self._boot != self.machine.boots:
            self._boot = self.machine.boots
            self.processes = MachineProcesses(self.machine)
            self.journal = SimulatedAppendFile()
            self.journal_extent = SimulatedRecord()
            self.run_files = {}
            self.kept = ""
            self.rivals = set()
            if self.status is not None:
                self.status.reset()
            self.wdmd = self._new_wdmd()
            self.store = Store(self)
            self.reexec = b""
            self.bound = KeptBound()

    def inherited(self) -> Inherited:
        """The state that the next daemon inherits: from the daemon that executed it, or from the descriptor store."""
        if self.reexec:
            raw, self.reexec = self.reexec, b""
            return Inherited(reexec=decode_state(raw))
        for _, fd in self.store.named:
            self.copied(fd, DAEMON)
        return Inherited(list(self.store.named), close=lambda fd: self.close_copy(fd, DAEMON))

    @property
    def boot(self) -> str:
        return f"{self.machine.name}-{self.machine.boots}"

    def copies(self) -> list[StateFile]:
        """Every copy of an incarnation."""
        return [*self.state_files.values(), *self.run_files.values()]

    def daemon_gone(self) -> None:
        """The daemon has ended: the kernel closes its descriptors."""
        self.processes.daemon_gone()
        if self.wdmd is not None:
            self.wdmd.close_copies(DAEMON)

    def copied(self, fd: int, whose: str) -> None:
        """Record one more copy of the watchdog's descriptor."""
        if fd in (MARK, BOUND_FD):
            return
        if self.wdmd is not None:
            self.wdmd.copied(fd, whose)
        elif self.machine.watchdog.copies:
            self.machine.watchdog.copies.add(whose)

    def close_copy(self, fd: int, whose: str) -> None:
        if fd in (MARK, BOUND_FD):
            return
        if self.wdmd is not None:
            self.wdmd.close_copies(whose, fd)
        else:
            self.machine.watchdog.close_copy(whose)


MARK = -1
"""The descriptor of an empty file, of which only the name matters."""
BOUND_FD = 1_000_001
"""That of the memory with the bound of the last feeding."""


class KeptBound:
    """`FedUntil`: memory of a machine that outlives its daemons."""

    def __init__(self) -> None:
        self._until: Instant | None = None

    def read(self) -> Instant | None:
        return self._until

    def write(self, until: Instant | None) -> None:
        self._until = until

    def descriptor(self) -> int:
        return BOUND_FD


def armed_device(inherited: Inherited) -> PassedWatchdog | None:
    """The watchdog device that a start inherits armed, and knows how; it stays in `inherited`."""
    named = list(inherited.named)
    found = Inherited(named, inherited.reexec, close=lambda _: None).take_watchdog(WATCHDOG_FD_NAME)
    return found if found is not None and found.driver == "device" and found.fire_timeout_s else None


class Threads:
    """`LeaseThreads`: each thread is a task with a disk and a clock of its own."""

    def __init__(self, process: Process, machine: Machine, storage: SimulatedStorage) -> None:
        self._process = process
        self._machine = machine
        self._storage = storage

    def start_on_disk(self, name: str, path: str, life: Life, on_end: Callable[[object], None]) -> None:
        clock = MachineClock(self._process, self._machine)

        async def whole() -> None:
            disk = await self._storage.open(path)
            try:
                result: object = disk
                if not isinstance(disk, IoFailed):
                    result = await life(disk, clock, clock.interrupt)
            except (ProcessGone, Violation):
                raise
            except BaseException as e:  # carried, as a real thread's end is
                result = e
            self.call_soon(lambda: on_end(result))

        self._process.spawn(whole())

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._process.loop.call_soon(callback)


class NoConnections(Readiness):
    """The simulator has no sockets."""

    def __init__(self) -> None:
        """Creates no epoll."""

    def add(self, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        raise NotImplementedError(f"descriptor {fd}: sockets are not simulated")


class NoLockFiles(SystemLockFiles):
    """The simulator has no file locks."""

    def open(
        self, path: str, *, create: bool, disk: str = "", follow: bool = True
    ) -> OpenedFile | CallFailed:
        return CallFailed("Unable to open resource", path, errno.ENOSYS)


class NoGate:
    """Always open: requests of a simulated process end with it, so an exec waits for none."""

    def inside(self, *, at_least_s: float = 0.0) -> list[Inside]:
        return []

    def close(self) -> None:
        """Does nothing: there are no requests to stop."""

    def open(self) -> None:
        """Does nothing: it is never closed."""


class DiskFiles(LockspaceFiles):
    """Every disk exists, each as a different file, under all its paths."""

    def key(self, path: str) -> FileKey | None:
        disk = disk_of(Resource(DIRECT_LOCKSPACE, path))
        return FileKey(1, zlib.crc32((resource_of(disk).name if disk else path).encode()))


class Identities:
    """`DiskIdentities`: every disk has a name that is the same on all hosts. Where each has one path, that is all that is
    known of it.
    """

    def __init__(self, names: DiskNames) -> None:
        self._names = names

    def look(self, path: str) -> DiskIdentity:
        return DiskIdentity(None if self._names.naming is Naming.ONE else DiskFiles().key(path))

    def strong(self, path: str) -> str:
        return strong_of(path)


class OpenDisks:
    """`OpenFiles`: a virtual machine has its disk open from the moment it may run until its process ends."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def users(self, keys: Collection[FileKey]) -> Users:
        files = DiskFiles()
        pids = [vm.pid for vm in self._machine.vms if vm.held and files.key(vm.disk) in keys]
        return Users(tuple(sorted(pids)), complete=True)


class OnlyRoot(MountTable):
    """One local file system."""

    def __init__(self) -> None:
        self._by_point = {"/": Mount("/", "ext4", "/dev/root", frozenset())}
        self.changes = 1

    def refresh(self) -> None:
        """Does nothing: the table never changes."""

    def close(self) -> None:
        """Does nothing: it has no descriptors."""


class Store:
    """`DescriptorStore`: systemd's. It keeps the descriptors of a daemon for the next one, until the machine is reset.

    Locks are leases here, which have no descriptors: it stores the watchdog's, and the state that belongs to it.
    """

    stores = True

    def __init__(self, state: MachineState) -> None:
        self._state = state
        self.named: list[tuple[str, int]] = []

    def store(self, name: str, fd: int | None, *, until_removed: bool = False) -> None:
        if fd is not None:
            if (name, fd) not in self.named:
                self.named.append((name, fd))
                self._state.copied(fd, STORE)
            return
        gone = [each for each in self.named if each[0] == name]
        self.named = [each for each in self.named if each[0] != name]
        for _, each in gone:
            self._state.close_copy(each, STORE)

    def mark(self, name: str) -> None:
        self.store(name, None)
        self.store(name, MARK)


def managed_ports(
    *,
    process: Process,
    machine: Machine,
    state: MachineState,
    storage: SimulatedStorage,
    domains: DomainControl,
    busy: Callable[[], bool],
    fed: Callable[[Watchdog], Watchdog],
    names: DiskNames,
    keeps_bound: bool = False,
    end_first_feeding: Callable[[], None] = lambda: None,
) -> SystemPorts:
    """The ports of one run of the daemon. `busy`: a request of a client is under way. `fed` wraps the shipping watchdog
    driver for the checkers. `keeps_bound`: that of the last feeding outlives it.
    """
    clock = MachineClock(process, machine)
    random = machine.world.random

    def writes_in_flight(lockspace: str) -> Callable[[], bool]:
        path = machine.paths[lockspace]
        seen = [write for write in path.writes if write.process is process]
        return lambda: any(write.changes and write in path.writes for write in seen)

    def start_heart(life: Coroutine[Any, Any, None], on_end: Callable[[object], None]) -> None:
        process.spawn(life)  # the world reports its failure: nothing may raise here

    def watchdog(choice: WatchdogSpec, fd: int | None) -> Watchdog:
        now = MachineClock(process, machine).now
        if choice.driver == "none":
            return NoWatchdog()
        if choice.driver == "device":
            return fed(DeviceWatchdog(choice.path, choice.fire_timeout_s, now, machine.watchdog, fd=fd))
        assert state.wdmd is not None
        # Suspended time is not simulated here, so both clocks are the same.
        return fed(
            WdmdWatchdog(
                choice.fire_timeout_s,
                now,
                path=choice.path,
                their_now=machine.boottime,
                connection=state.wdmd.connection,
                fd=fd,
            )
        )

    async def all_ended(timeout_s: float) -> bool:
        until = process.loop.time() + timeout_s
        while ours := {task for task in eager_tasks._running if task.get_loop() is process.loop}:
            left_s = until - process.loop.time()
            if left_s <= 0:
                return False
            await asyncio.wait(ours, timeout=left_s)
        while busy() and process.loop.time() < until:
            await clock.sleep(0.01)
        return not busy()

    return SystemPorts(
        pid=1,
        uid=0,
        identity=HostIdentity(machine.name, state.boot, machine.name),
        clock=clock,
        processes=state.processes,
        domains=domains,
        status=StatusPort(state.status, process) if state.status is not None else None,
        files=NoLockFiles(),
        open_files=OpenDisks(machine),
        lockspace_files=DiskFiles(),
        storage=InlineStorage(),
        mounts=OnlyRoot(),
        readiness=NoConnections(),
        store=state.store,
        journal=state.journal,
        journal_extent=state.journal_extent,
        append_for_good=lambda name, line: state.records.setdefault(name, []).append(line),
        all_ended=all_ended,
        gate=NoGate(),
        predecessors=Predecessors(),
        leases=LeaseHostPorts(
            threads=Threads(process, machine, storage),
            start_heart=start_heart,
            heart_clock=MachineClock(process, machine),
            watchdog=watchdog,
            storage=lambda _: storage,
            writes_in_flight=writes_in_flight,
            incarnation_files=lambda lockspace: [
                files.setdefault(lockspace, StateFile()) for files in (state.state_files, state.run_files)
            ],
            copied_lockspaces=lambda: {*state.state_files, *state.run_files},
            space_locks=TableLocks(machine.host_table, process, machine.lingers),
            directories=state.directories,
            identities=Identities(names),
            rng=random,
            token=lambda: f"{random.getrandbits(4 * NAME_TOKEN_DIGITS):0{NAME_TOKEN_DIGITS}x}",
            generation_min=state.generation_min,
            reread_s=state.reread_s,
            fed_until=lambda _: state.bound if keeps_bound else NotKept(),
            end_first_feeding=end_first_feeding,
        ),
    )

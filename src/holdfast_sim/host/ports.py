"""What a whole daemon meets of `system` on a simulated machine: processes, files, threads, names of disks.

    MachineState    what the machine keeps beside its daemon: journal, state files, process table, configuration.
                    They outlive a daemon, and some a reset; a nemesis damages them here
    managed_ports   the `SystemPorts` of one life of the daemon over all that

What a simulated machine does not have refuses to be used: connections, lock files, mounts but the root.
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
from holdfast.model import ProcessId
from holdfast.protocol.timing import NAME_TOKEN_DIGITS
from holdfast.protocol.types import IoFailed
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
from holdfast.system.watchdog.wdmd import WdmdWatchdog
from holdfast.testing.fakes import SimulatedAppendFile, SimulatedProcesses, SimulatedRecord
from holdfast_sim.event_loop import Process
from holdfast_sim.host.lockspace_locks import TableLocks
from holdfast_sim.host.machine import DAEMON, STORE, Machine, MachineClock
from holdfast_sim.host.status_files import StatusFiles, StatusPort
from holdfast_sim.host.wdmd import SimulatedWdmd
from holdfast_sim.storage.files import SimulatedStorage
from holdfast_sim.world import ProcessGone, Violation


class MachineProcesses(SimulatedProcesses):
    """The process table of one machine; it outlives a daemon, and what a dead daemon watched concerns nobody."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self.on_end: Callable[[int], None] = lambda _: None
        self.on_signal: Callable[[int, int], None] = lambda _, __: None
        """(pid, signal), before it arrives."""
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
    """A small file that is replaced whole, on a disk of the machine's own: it survives a reset."""

    def __init__(self) -> None:
        self.raw = b""
        self.written = b""
        """What a daemon wrote last, or found after a restart; what an operator does to it later is not in it."""
        self.earlier: list[bytes] = []
        """Older contents: what a backup that is restored brings back."""
        self.full = False
        """Whether its disk has no room."""

    def read(self) -> bytes:
        return self.raw

    def replace(self, raw: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.raw and self.raw != raw:
            self.earlier.append(self.raw)
        self.raw = self.written = raw


Edited = Callable[[Config], Config | None]
"""What an operator makes of a configuration; None: nothing that can be read."""


class MachineState:
    """What a machine keeps beside its daemon: until the next boot, or for ever."""

    def __init__(
        self,
        machine: Machine,
        new_wdmd: Callable[[], SimulatedWdmd | None],
        directories: tuple[str, str] = ("/run/holdfast", "/var/lib/holdfast"),
    ) -> None:
        """`directories`: (run_dir, state_dir) of the daemon that finds this."""
        self.machine = machine
        self.directories = directories
        self._new_wdmd = new_wdmd
        self.wdmd: SimulatedWdmd | None = None
        self.state_files: dict[str, StateFile] = {}
        self.run_files: dict[str, StateFile] = {}
        """Those of RUN_DIR: gone after a reset."""
        self._boot = -1
        machine.watchdog.lent = False
        self.store = Store(self)
        self.reexec = b""
        """The state that a daemon leaves to the program that it executes."""
        self.processes = MachineProcesses(machine)
        self.journal = SimulatedAppendFile()
        self.journal_extent = SimulatedRecord()
        self.rivals: set[int] = set()
        """Processes that want a disk which another virtual machine of this host has."""
        self.edit: Callable[[], None] = lambda: None
        """Before a start and before a reload: an operator may edit the configuration files."""
        self.edited: Edited = lambda config: config
        """What has been done to the configuration files since the machine was set up."""
        self.takes = ""
        """What of that a virtual machine that runs needs; empty if nothing."""
        self.kept = ""
        """The configuration in force, in RUN_DIR."""
        self.generation_min: Callable[[], int] = lambda: 1
        """What its clock says of the date; 1: that it has none, so that generations count from what storage says."""
        self.reread_s = 0.0
        """How often held leases are read again; 0: never, as nobody restores them."""
        self.status: StatusFiles | None = None
        """libvirt's status files; None where nothing migrates, and nobody reads them."""
        self.records: dict[str, list[str]] = {}
        """Lines of files that only grow: the record of leases that were broken."""

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

    def inherited(self) -> Inherited:
        """What the next daemon finds: the state of the one that it was executed by, or the descriptor store."""
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
        """The kernel closes what it had open."""
        self.processes.daemon_gone()
        if self.wdmd is not None:
            self.wdmd.close_copies(DAEMON)

    def copied(self, fd: int, whose: str) -> None:
        """The watchdog's descriptor has one more copy."""
        if fd == MARK:
            return
        if self.wdmd is not None:
            self.wdmd.copied(fd, whose)
        elif self.machine.watchdog.copies:
            self.machine.watchdog.copies.add(whose)

    def close_copy(self, fd: int, whose: str) -> None:
        if fd == MARK:
            return
        if self.wdmd is not None:
            self.wdmd.close_copies(whose, fd)
        else:
            self.machine.watchdog.close_copy(whose)


MARK = -1
"""The descriptor of an empty file, of which nothing but the name matters."""


class Identities:
    def look(self, path: str) -> DiskIdentity:
        return DiskIdentity()


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
            self.tell(lambda: on_end(result))

        self._process.spawn(whole())

    def tell(self, callback: Callable[[], None]) -> None:
        self._process.loop.call_soon(callback)


class NoConnections(Readiness):
    """There are no sockets here."""

    def __init__(self) -> None:
        """Without an epoll."""

    def add(self, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        raise NotImplementedError(f"descriptor {fd}: sockets are not simulated")


class NoLockFiles(SystemLockFiles):
    """File locks are the kernel's, and not simulated."""

    def open(
        self, path: str, *, create: bool, disk: str = "", follow: bool = True
    ) -> OpenedFile | CallFailed:
        return CallFailed("Unable to open resource", path, errno.ENOSYS)


class NoGate:
    """Requests of a simulated process end with it: its exec waits for none."""

    def inside(self, *, at_least_s: float = 0.0) -> list[Inside]:
        return []

    def close(self) -> None:
        """There is nobody to hold up."""

    def open(self) -> None:
        """It is never closed."""


class DiskFiles(LockspaceFiles):
    """Disks exist, each as a file of its own."""

    def key(self, path: str) -> FileKey | None:
        return FileKey(1, zlib.crc32(path.encode()))


class OpenDisks:
    """`OpenFiles`: a virtual machine has its disk open from when libvirt lets it run, and as long as its process lives."""

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
        """It never changes."""

    def close(self) -> None:
        """It has nothing open."""


class Store:
    """`DescriptorStore`: systemd's. What a daemon puts there is there for the next one, until the machine is reset.

    Locks are leases here, which have no descriptors: what is stored is the watchdog's, and what armed it.
    """

    stores = True

    def __init__(self, state: MachineState) -> None:
        self._state = state
        self.named: list[tuple[str, int]] = []

    def store(self, name: str, fd: int | None) -> None:
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
) -> SystemPorts:
    """The ports of one life of the daemon. `busy`: a request of a client is under way. `fed` wraps the shipping watchdog
    driver for the checkers.
    """
    clock = MachineClock(process, machine)
    random = machine.world.random

    def writes_in_flight(lockspace: str) -> Callable[[], bool]:
        path = machine.paths[lockspace]
        seen = [write for write in path.writes if write.process is process]
        return lambda: any(write.changes and write in path.writes for write in seen)

    def start_heart(life: Coroutine[Any, Any, None], on_end: Callable[[object], None]) -> None:
        process.spawn(life)  # how it fails is found by the world: nothing here may make it fail

    def watchdog(choice: WatchdogSpec, fd: int | None) -> Watchdog:
        now = MachineClock(process, machine).now
        if choice.driver == "none":
            return NoWatchdog()
        if choice.driver == "device":
            return fed(DeviceWatchdog(choice.path, choice.fire_timeout_s, now, machine.watchdog, fd=fd))
        assert state.wdmd is not None
        # No host is suspended here, so its two clocks are one.
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
            space_locks=TableLocks(machine.host_table, process, machine.lingers),
            directories=state.directories,
            identities=Identities(),
            rng=random,
            token=lambda: f"{random.getrandbits(4 * NAME_TOKEN_DIGITS):0{NAME_TOKEN_DIGITS}x}",
            generation_min=state.generation_min,
            reread_s=state.reread_s,
        ),
    )

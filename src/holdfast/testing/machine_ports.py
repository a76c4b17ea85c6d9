"""What a whole daemon meets of `system` on a simulated machine: processes, memory, threads, names of disks.

Its journal, its memory of terms and the process table are the machine's: they outlive a daemon, and some a reset.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.protocol.words import IoFailed
from holdfast.system.disk_identity import DiskIdentity
from holdfast.system.lease_threads import Life
from holdfast.testing.machine import Machine, MachineClock
from holdfast.testing.process_loop import Process
from holdfast.testing.shared_files import SimulatedStorage
from holdfast.testing.simulated import SimulatedAppendFile, SimulatedProcesses
from holdfast.testing.simulated_wdmd import SimulatedWdmd
from holdfast.testing.world import ProcessGone, Violation


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

    def __init__(self, machine: Machine, new_wdmd: Callable[[], SimulatedWdmd | None]) -> None:
        self.machine = machine
        self._new_wdmd = new_wdmd
        self.wdmd: SimulatedWdmd | None = None
        self.memories: dict[str, Memory] = {}
        self._boot = -1
        self.processes = MachineProcesses(machine)
        self.journal = SimulatedAppendFile()
        self.broken: list[str] = []
        """Lines of the record of leases that were broken."""

    def booted(self) -> None:
        if self._boot != self.machine.boots:
            self._boot = self.machine.boots
            self.processes = MachineProcesses(self.machine)
            self.journal = SimulatedAppendFile()
            self.wdmd = self._new_wdmd()


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

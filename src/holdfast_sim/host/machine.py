"""A simulated host below the daemon: power, clock, watchdog, virtual machines, paths to storage.

    Machine          everything that runs while the power is on; a reset ends all of it and boots again
    MachineClock     CLOCK_BOOTTIME of a machine for one thread of one process: has a rate of its own, counts suspended time
    WatchdogDevice   /dev/watchdog as Linux has it: a hardware countdown that continues in every state of the software
    VirtualMachine   runs, and so writes to its disk, until it is stopped, killed, or its machine is reset

The drift of a clock stays within the assumption of the safety argument: over one dead bound, the clocks of two hosts drift
apart by less than storage's least latency. The watchdog counts in true time, also while the machine is suspended.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.protocol.types import Instant
from holdfast.system.block_io.blocking_ports import Interrupted
from holdfast.system.watchdog.device import (
    INT,
    MAGIC_CLOSE,
    SUPPORT,
    WDIOC_GETSUPPORT,
    WDIOC_GETTIMEOUT,
    WDIOC_KEEPALIVE,
    WDIOC_SETTIMEOUT,
    WDIOF_KEEPALIVEPING,
    WDIOF_MAGICCLOSE,
    WDIOF_SETTIMEOUT,
)
from holdfast_sim.event_loop import Process
from holdfast_sim.host.lockspace_locks import HostTable
from holdfast_sim.storage.disk import Path, PathDisk, SharedDisk
from holdfast_sim.world import World

if TYPE_CHECKING:
    from holdfast_sim.storage.files import SharedDirectory

DRIFT_MAX = 20e-6
"""Greatest drift of a host's clock from true time. Twice this in 30 s is 1.2 ms, below the least latency."""
DAEMON, STORE = "daemon", "store"
"""Holders of a copy of a descriptor: the daemon, and systemd, which keeps it for the next daemon."""
DEVICE_FD = 3
"""The number of the watchdog device's descriptor, in every process that has it open."""
SLEEP_LATE_S = 0.03
"""How many seconds late a sleeping thread usually wakes."""


@dataclass(eq=False)
class VirtualMachine:
    """An owner. `stubborn`: like a process that hangs in the kernel it cannot be killed; only a reset ends it."""

    name: str
    machine: Machine
    stubborn: bool = False
    running: bool = True
    paused: bool = False
    draining: bool = False
    """Its CPUs are stopped, and its QEMU waits for requests on storage that hangs."""
    held: bool = False
    pid: int = 0
    resource: str = ""
    disk: str = ""
    """The path by which its definition names the disk."""
    beside: str = ""
    """The checkers' name of the lease that it has beside the disk's own; empty for none."""
    migrating: bool = False
    """libvirt migrates it, and starts no other job with it meanwhile."""
    is_client: bool = False
    """A process that is registered by sanlock's protocol, and no virtual machine of libvirt's."""
    is_persistent: bool = False
    """Its lease becomes an orphan when it ends."""
    has_value_block: bool = False
    held_since: float = 0.0
    """When it asked for its lease, or asked for it exclusively, in true time."""

    @property
    def uuid(self) -> str:
        return f"uuid-{self.pid}"

    @property
    def writes(self) -> bool:
        return self.running and (not self.paused or self.draining)


class WatchdogDevice:
    """The `DeviceKernel` of system.watchdog over a countdown that resets the machine.

    Only one open is possible at a time. Its descriptor may have copies: the daemon's and the one in systemd's descriptor
    store. The kernel sees a close only when the last copy is closed, and stops the countdown only then.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._timeout_s = 60
        self._armed = 0
        self._magic = False
        self.fires_at: float | None = None
        self.copies: set[str] = set()
        """The holders of a copy of the descriptor: DAEMON, STORE."""
        self.lent = True
        """True where the stand-in of a daemon runs, which has no store: the device stays open over its death."""
        self.missing = False

    def off(self) -> None:
        self.fires_at = None
        self._armed += 1

    def reset(self) -> None:
        """The machine loses its power."""
        self.off()
        self.copies.clear()

    def _ping(self) -> None:
        world = self._machine.world
        self._armed += 1
        armed, self.fires_at = self._armed, world.now + self._timeout_s
        world.at(self.fires_at, lambda: self._fire() if armed == self._armed else None)

    def _fire(self) -> None:
        self.off()
        machine = self._machine
        awake = machine.process is not None and machine.process.alive and not machine.process.stopped
        if self.copies == {STORE} and awake:
            machine.world.fail(
                "no host is reset in vain",
                f"{machine}'s daemon has let go of its watchdog, and the descriptor store still has it open",
                machine,
            )
        machine.reset("its watchdog fires")

    def close_copy(self, whose: str) -> None:
        """After the last close the countdown stops if the magic character was written last; else the close pings it."""
        if whose in self.copies:
            self.copies.remove(whose)
            if self.copies:
                return
            if self._magic:
                self.off()
            else:
                self._ping()

    @property
    def timeout_s(self) -> int:
        """The timeout that counts from the next ping on."""
        return self._timeout_s

    def set_timeout(self, timeout_s: int) -> None:
        """Set the timeout, as another program may; it counts from the next ping on."""
        self._timeout_s = timeout_s

    def pet(self, timeout_s: int) -> None:
        """A ping by wdmd, which has the device open and outlives our daemon."""
        self._timeout_s = timeout_s
        self._ping()

    # --- the file ---

    def open(self, path: str) -> int:
        self._machine.port()
        if self.missing:
            raise OSError(errno.ENODEV, "No such device")
        if self.copies and not self.lent:
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.copies.add(DAEMON)
        self._magic = False
        self._ping()
        return DEVICE_FD

    def ioctl(self, fd: int, request: int, argument: bytes) -> bytes:
        self._machine.port()
        match request:
            case _ if request == WDIOC_GETSUPPORT:
                return SUPPORT.pack(
                    WDIOF_SETTIMEOUT | WDIOF_MAGICCLOSE | WDIOF_KEEPALIVEPING, 0, b"simulated"
                )
            case _ if request == WDIOC_SETTIMEOUT:
                (self._timeout_s,) = INT.unpack(argument)
                self._ping()
            case _ if request == WDIOC_GETTIMEOUT:
                return INT.pack(self._timeout_s)
            case _ if request == WDIOC_KEEPALIVE:
                self._ping()
        return argument

    def write(self, fd: int, content: bytes) -> None:
        self._machine.port()
        self._magic = content.endswith(MAGIC_CLOSE)
        self._ping()

    def close(self, fd: int) -> None:
        self._machine.port()
        self.close_copy(DAEMON)

    def nowayout(self, path: str) -> bool:
        return False


class MachineClock:
    """The `Clock` port of one thread."""

    def __init__(self, process: Process, machine: Machine) -> None:
        self._process = process
        self._machine = machine
        self._interrupted = False
        self._sleepers: list[asyncio.Future[None]] = []

    def now(self) -> Instant:
        now = self._machine.boottime()
        if self._process not in self._machine.beside:
            self._machine.last_look = now
        # A process that loses its CPU here acts on an old time.
        self._process.port("clock")
        return now

    def wall(self) -> float:
        return self._process.world.now + 1.7e9

    async def sleep(self, seconds: float) -> None:
        self._process.port("clock")
        if self._interrupted:
            raise Interrupted
        world = self._process.world
        woken: asyncio.Future[None] = self._process.loop.create_future()
        late_s = world.random.expovariate(1 / SLEEP_LATE_S)
        world.after(max(0.0, seconds) / self._machine.rate + late_s, lambda: _wake(woken))
        self._sleepers.append(woken)
        try:
            await woken
        finally:
            self._sleepers.remove(woken)

    def interrupt(self) -> None:
        self._interrupted = True
        for woken in list(self._sleepers):
            if not woken.done():
                woken.set_exception(Interrupted())


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


class Machine:
    """One host. `on_boot` is called at each boot."""

    def __init__(self, world: World, name: str, disks: tuple[SharedDisk, ...]) -> None:
        self.world = world
        self.name = name
        self.up = True
        self.boots = 0
        self.watchdog = WatchdogDevice(self)
        self.paths = {disk.name: Path(disk) for disk in disks}
        self.unmounted: dict[str, SharedDirectory] = {}
        """For each directory that is not mounted at present: the directory below the mount point."""
        self.process: Process | None = None
        self.beside: list[Process] = []
        """Second daemons that an operator has started beside `process`."""
        self.host_table = HostTable()
        self.vms: list[VirtualMachine] = []
        self.last_look = Instant(0.0)
        self.on_boot: Callable[[], None] = lambda: None
        self.on_reset: Callable[[], None] = lambda: None
        self.on_killed: Callable[[], None] = lambda: None
        self.on_exec: Callable[[], None] = lambda: None
        self._start_clock()

    def __str__(self) -> str:
        return self.name

    def _start_clock(self) -> None:
        random = self.world.random
        self.rate = 1 + random.uniform(-DRIFT_MAX, DRIFT_MAX)
        self._booted_at = self.world.now - random.uniform(1, 50)

    def boottime(self) -> Instant:
        return Instant((self.world.now - self._booted_at) * self.rate)

    def true_time_of(self, instant: float) -> float:
        return instant / self.rate + self._booted_at

    def port(self) -> None:
        """Lose the CPU here, if a stall is due: only the daemon uses the machine's devices."""
        if self.process is not None:
            self.process.port("device")

    def disk_of(self, process: Process, name: str) -> PathDisk:
        return PathDisk(process, self.paths[name])

    # --- faults ---

    def start_process(self) -> Process:
        self.process = Process(self.world, self.name)
        return self.process

    def kill_process(self, why: str) -> None:
        """The daemon dies; virtual machines, the watchdog and the kernel continue."""
        process = self.process
        if process is None or not process.alive:
            return
        self.world.record(self.name, f"its daemon dies: {why}")
        process.end()
        for path in self.paths.values():
            path.process_gone(process)
        if not self.watchdog.lent:
            self.watchdog.close_copy(DAEMON)
        self.on_killed()

    def exec_process(self, space_locks: Collection[int]) -> None:
        """The daemon executes its next program: threads and memory are lost, descriptors that it passes on stay open, among
        them these locks of lockspaces.
        """
        process = self.process
        assert process is not None
        self.world.record(self.name, "its daemon becomes the next program")
        self.host_table.executed(process, space_locks)
        process.end()
        for path in self.paths.values():
            path.process_gone(process)
        self.on_exec()

    @property
    def process_lingers(self) -> bool:
        """Whether the kernel still has requests of the daemon: a killed process ends only when those have."""
        return self.process is not None and self.lingers(self.process)

    def lingers(self, process: Process) -> bool:
        return any(path.busy_for(process) for path in self.paths.values())

    def suspend(self, seconds: float) -> None:
        """Everything but the watchdog stops for a while; the clock counts that time."""
        for process in (self.process, *self.beside):
            if process is not None:
                process.freeze(seconds)

    def reset(self, why: str) -> None:
        """Power off, and a new boot."""
        if not self.up:
            return
        self.up = False
        self.world.record(self.name, f"is reset: {why}")
        if self.process is not None and self.process.alive:
            self.process.end()
        for process in self.beside:
            process.end()
        self.beside.clear()
        for path in self.paths.values():
            path.reset()
        self.watchdog.reset()
        self.unmounted.clear()
        for vm in self.vms:
            vm.running = False
        self.vms.clear()
        self.on_reset()
        self.world.after(self.world.random.uniform(2, 30), self._boot)

    def _boot(self) -> None:
        self.up = True
        self.boots += 1
        self.process = None
        self.host_table = HostTable()
        self._start_clock()
        self.world.record(self.name, "boots")
        self.on_boot()

"""Hosts with supervision in the simulated world: shipping code above, simulated disk, clock and watchdog below."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from tests.unit.protocol.simulated import Faults, Host, SimulatedDisk, Task, World

from holdfast.ondisk import areas, delta
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.protocol.host_status import Notified, StateChanged
from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId, Instant
from holdfast.supervision.lease_monitor import LeaseMonitor
from holdfast.supervision.renewal import (
    Ended,
    Expired,
    Expiring,
    IoTimeoutChanged,
    Joined,
    Lost,
    RenewalLoop,
    RenewalNews,
)
from holdfast.system.watchdog.device import WatchdogRefused

TIMING = Timing(10, 60)
SPACES = ("A", "B")


class RecordedWatchdog:
    """Resets its host like a real one would: `fire_timeout_s` after the last feeding."""

    fences = True

    def __init__(self, host: Host, fire_timeout_s: int = 60) -> None:
        self._host = host
        self.fire_timeout_s = fire_timeout_s
        self.feedings: list[tuple[float, float]] = []  # world time, until when by the world's time
        self.disarmed_at: float | None = None
        self.refusal = ""
        self.dumb = False
        self.left_fd: int | None = None
        """Of the device, which an earlier program has left armed."""

    def prove(self) -> None:
        if self.refusal:
            raise WatchdogRefused(self.refusal)

    def feed(self, until: Instant) -> bool:
        if self.dumb:
            return False
        now = self._host.world.now
        self.feedings.append((now, now + until - self._host.clock.now()))
        self.disarmed_at = None
        return True

    def disarm(self) -> None:
        self.disarmed_at = self._host.world.now
        self.left_fd = None

    def descriptor(self) -> int | None:
        return self.left_fd

    @property
    def last_fed_at(self) -> float:
        return self.feedings[-1][0]

    @property
    def fires_at(self) -> float:
        return self.last_fed_at + self.fire_timeout_s


@dataclass
class Told:
    """What one lockspace told the layers above, with the world's time."""

    world: World
    joined: list[tuple[float, Membership]] = field(default_factory=list)
    expiring: list[float] = field(default_factory=list)
    lost: list[tuple[float, str]] = field(default_factory=list)
    expired: list[float] = field(default_factory=list)
    hosts: list[StateChanged] = field(default_factory=list)
    notified: list[Notified] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    io_timeouts: list[tuple[float, int]] = field(default_factory=list)

    def read(self, news: RenewalNews) -> None:
        now = self.world.now
        match news:
            case Joined(member):
                self.joined.append((now, member))
            case Expiring():
                self.expiring.append(now)
            case Lost(reason):
                self.lost.append((now, reason))
            case IoTimeoutChanged(timing):
                self.io_timeouts.append((now, timing.io_timeout_s))
            case Expired():
                self.expired.append(now)
            case StateChanged():
                self.hosts.append(news)
            case Notified():
                self.notified.append(news)
            case _:
                assert_never(news)


@dataclass
class Member:
    lockspace: RenewalLoop
    told: Told
    task: Task[Ended]
    disk: SimulatedDisk


class Supervised:
    """A host with its heartbeat running."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.host = world.host(name)
        self.watchdog = RecordedWatchdog(self.host)
        self.lease_monitor = LeaseMonitor(clock=self.host.clock, watchdog=self.watchdog)
        self.host.spawn(self.lease_monitor.run())
        world.run(until=world.now)

    def join(
        self,
        host_id: int,
        *,
        space: str = "A",
        host_name: str = "",
        timing: Timing = TIMING,
        lease_writes: Callable[[], Callable[[], bool]] = lambda: lambda: False,
    ) -> Member:
        reports = Told(self.world)
        disk = SimulatedDisk(self.host)
        lockspace = RenewalLoop(
            name=space,
            disk=disk,
            offset_bytes=SPACES.index(space) * MIB,
            host_id=HostId(host_id),
            host_name=host_name or self.host.name,
            timing=timing,
            clock=self.host.clock,
            lease_monitor=self.lease_monitor,
            report=reports.read,
            on_wait=lambda waiting: reports.waits.append(waiting.reason),
            lease_writes=lease_writes,
        )
        return Member(lockspace, reports, self.host.spawn(lockspace.run()), disk)

    def joined(self, host_id: int, **options: object) -> Member:
        member = self.join(host_id, **options)  # type: ignore[arg-type]
        while not member.told.joined:
            assert not member.task.done, member.task.result
            self.world.run(until=self.world.now + 1)
        return member


def world_with_lockspaces(
    seed: int = 1, faults: Faults | None = None, *, version: int = delta.VERSION
) -> World:
    """Two lockspaces, A and B, side by side on the shared disk."""
    world = World(seed, size_bytes=len(SPACES) * MIB, faults=faults)
    for index, space in enumerate(SPACES):
        area, first = areas.lockspace_area(DEFAULT, space, version=version)
        world.content[index * MIB : (index + 1) * MIB] = area
        world.content[index * MIB : index * MIB + len(first)] = first
    return world


def record_of(world: World, host_id: int, space: str = "A") -> DeltaLease:
    at = SPACES.index(space) * MIB + DEFAULT.delta_offset_bytes(host_id)
    record = DeltaLease.decode(bytes(world.content[at : at + DeltaLease.BYTES]))
    assert isinstance(record, DeltaLease), record
    return record


def put_record(world: World, host_id: int, record: DeltaLease) -> None:
    """Somebody writes a host's record in lockspace A."""
    at = DEFAULT.delta_offset_bytes(host_id)
    world.content[at : at + DEFAULT.sector_bytes] = record.sector()

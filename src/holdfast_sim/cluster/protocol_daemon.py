"""A stand-in of the daemon: shipping supervision and protocols, composed as the real daemon composes them.

    Daemon   one process: a lease monitor with its watchdog, and a seat in every lockspace
    Seat     one lockspace: joins and renews; after a loss it stops the owners and joins again when they have ended
    Desk     one resource on one host: acquires, converts and releases for the virtual machines that want it

It decides only what the layers above would decide: which virtual machine is started, stopped or killed, and when. It
reports to the checkers which leases it holds, at the moments when a user of the protocols may rely on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import assert_never

from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.request import Request
from holdfast.protocol import paxos_lease, paxos_release, paxos_request
from holdfast.protocol.ballot import PreparedBallot
from holdfast.protocol.host_status import HostState, Notified, StateChanged
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_lease import AcquireOutcome
from holdfast.protocol.paxos_outcomes import InDoubt, LockspaceLost
from holdfast.protocol.paxos_release import DowngradeFailed, Lease, Mode, NotHeld, Released, Withdrawn
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId
from holdfast.supervision.join_errors import NotJoined
from holdfast.supervision.lease_monitor import LeaseMonitor
from holdfast.supervision.renewal import (
    Expired,
    Expiring,
    IoTimeoutChanged,
    Joined,
    Left,
    Lost,
    RenewalLoop,
    RenewalNews,
)
from holdfast.system.watchdog.device import DeviceWatchdog
from holdfast_sim.check.host_ids import Incarnation
from holdfast_sim.check.leases import Checkers
from holdfast_sim.cluster.space import Space
from holdfast_sim.host.checked_watchdog import CheckedWatchdog
from holdfast_sim.host.machine import Machine, MachineClock, VirtualMachine

KILL_MAX_S = 3.0
"""Seconds from the kill of a virtual machine to its end, at most; stubborn ones do not end."""


class Daemon:
    """One life of the daemon on one machine."""

    def __init__(
        self,
        *,
        machine: Machine,
        spaces: tuple[Space, ...],
        geometry: Geometry,
        host_id: int,
        timing: Timing,
        stubborn_rate: float,
        checkers: Checkers,
        lease_of: Callable[[str], str],
        foreign_name: bool,
    ) -> None:
        """`foreign_name`: a name that Holdfast would never give, so that other hosts take it for a host of sanlock's."""
        self.lease_of = lease_of
        self.machine = machine
        self.world = machine.world
        self.process = machine.start_process()
        self.geometry = geometry
        self.host_id = host_id
        self.timing = timing
        self.stubborn_rate = stubborn_rate
        self.foreign_name = foreign_name
        self.checkers = checkers
        clock = MachineClock(self.process, machine)
        driver = DeviceWatchdog("/dev/watchdog", timing.fire_timeout_s, clock.now, machine.watchdog)
        self.lease_monitor = LeaseMonitor(
            clock=clock, watchdog=CheckedWatchdog(driver, lambda: checkers.terms.fed(machine))
        )
        self.process.spawn(self.lease_monitor.run())
        self.seats = {space.name: Seat(self, space) for space in spaces}
        self.world.record(machine.name, "its daemon starts")

    @property
    def alive(self) -> bool:
        return self.process.alive

    @property
    def desks(self) -> list[Desk]:
        return [desk for seat in self.seats.values() for desk in seat.desks.values()]


class Seat:
    """One lockspace of one daemon."""

    def __init__(self, daemon: Daemon, space: Space) -> None:
        self.daemon = daemon
        self.space = space
        self.clock = MachineClock(daemon.process, daemon.machine)
        self.disk = daemon.machine.disk_of(daemon.process, space.name)
        self.member: Membership | None = None
        self.term: Incarnation | None = None
        self.lockspace: RenewalLoop | None = None
        self.stay = True
        self.desks = {
            resource: Desk(self, resource, number * daemon.geometry.align_bytes)
            for number, resource in enumerate(space.resources, start=1)
        }
        daemon.process.spawn(self._run())

    @property
    def host_id(self) -> int:
        return self.daemon.host_id

    async def _run(self) -> None:
        daemon, random = self.daemon, self.daemon.world.random
        while True:
            if not self.stay:
                await self.clock.sleep(1)
                continue
            # No other host and no earlier life may have used the name: the claim of a host id depends on that.
            name = f"{daemon.machine.name}.{random.getrandbits(48):012x}"
            if daemon.foreign_name:
                name += ".lan"
            clock = MachineClock(daemon.process, daemon.machine)
            self.lockspace = RenewalLoop(
                name=self.space.name,
                disk=self.disk,
                offset_bytes=0,
                host_id=HostId(daemon.host_id),
                host_name=name,
                timing=daemon.timing,
                clock=clock,
                lease_monitor=daemon.lease_monitor,
                report=self._read,
                interrupt=clock.interrupt,
            )
            ended = await self.lockspace.run()
            self.member = None
            match ended:
                case NotJoined():
                    pass
                case Lost():
                    while self.term is not None:
                        await self.clock.sleep(0.5)
                case Left():
                    while self.disk.in_flight(0, 2**63):
                        await self.clock.sleep(0.5)
                    if self.term is not None:
                        daemon.checkers.terms.is_over(self.term, "left")
                        self.term = None
            await self.clock.sleep(random.uniform(0.5, 4))

    def _read(self, news: RenewalNews) -> None:
        match news:
            case Joined(member):
                self._joined(member)
            case Lost(reason):
                self._lost(reason)
            case StateChanged():
                self._host_changed(news)
            case Notified():
                self._notified()
            case Expiring() | Expired() | IoTimeoutChanged():
                pass
            case _:
                assert_never(news)

    def _joined(self, member: Membership) -> None:
        self.member = member
        self.term = Incarnation(
            self.daemon.machine,
            self.daemon.process,
            self.space.name,
            member.host_id,
            member.generation,
            member.timing.io_timeout_s,
        )
        self.daemon.checkers.terms.joined(self.term)

    def _lost(self, reason: str) -> None:
        self.daemon.world.record(self.daemon.machine.name, f"has lost {self.space.name}: {reason}")
        self.daemon.process.spawn(self._stop_owners())

    async def _stop_owners(self) -> None:
        """Kill the owners that can be killed; the lockspace is given up only when all have ended."""
        term, lockspace = self.term, self.lockspace
        assert term is not None and lockspace is not None
        random = self.daemon.world.random
        while any(vm.running for vm in term.vms.values()):
            await self.clock.sleep(random.uniform(0.2, KILL_MAX_S))
            for vm in term.vms.values():
                vm.running = vm.running and vm.stubborn
        for resource in [*term.vms, *term.beliefs]:
            self.daemon.checkers.stopped(term, resource)
            self.daemon.checkers.gave_up(term, resource)
        for desk in self.desks.values():
            desk.lost()
        # The lease monitor waits for the same, and only then drops the lease.
        term.dismissed = lambda: not self.disk.in_flight(0, 2**63)
        lockspace.users_gone()
        while self.disk.in_flight(0, 2**63):
            await self.clock.sleep(0.5)
        self.daemon.checkers.terms.is_over(term, "its owners are gone")
        self.term = None

    def _host_changed(self, change: StateChanged) -> None:
        if change.after is HostState.DEAD and self.term is not None and self.lockspace is not None:
            (view,) = [view for view in self.lockspace.hosts() if view.host_id == change.host_id]
            self.daemon.checkers.terms.seen_dead(self.term, change.host_id, view.generation or 0)

    def _notified(self) -> None:
        for desk in self.desks.values():
            self.daemon.process.spawn(desk.answer_request())

    def leave(self) -> bool:
        """Leave the lockspace if nothing uses it; whether it did."""
        idle = all(desk.lease is None and not desk.busy for desk in self.desks.values())
        if idle and self.member is not None and self.lockspace is not None:
            self.stay = False
            self.member = None
            if self.term is not None:
                self.term.dismissed = lambda: not self.disk.in_flight(0, 2**63)
            self.lockspace.leave()
            return True
        return False


class Desk:
    """One resource, as one host uses it: one operation at a time."""

    def __init__(self, seat: Seat, resource: str, offset_bytes: int) -> None:
        daemon = seat.daemon
        self.seat = seat
        self.resource = resource
        self.area = LeaseArea(
            seat.disk, offset_bytes, daemon.geometry, seat.space.name, daemon.lease_of(resource)
        )
        self.lease: Lease | None = None
        self.promise: PreparedBallot | None = None
        self.busy = False
        self.vm: VirtualMachine | None = None
        self.last_refusal = ""

    def __str__(self) -> str:
        return f"{self.seat.daemon.machine}:{self.resource}"

    def lost(self) -> None:
        self.lease = self.vm = self.promise = None

    async def exclusively(self, work: Callable[[Membership], Awaitable[None]]) -> None:
        member = self.seat.member
        if self.busy or member is None:
            return
        self.busy = True
        try:
            await work(member)
        finally:
            self.busy = False

    # --- orders for virtual machines ---

    async def start(self, mode: Mode, *, wait: bool) -> None:
        await self.exclusively(lambda member: self._start(member, mode, wait))

    async def _start(self, member: Membership, mode: Mode, wait: bool) -> None:
        if self.lease is not None:
            return
        clock, rng = self.seat.clock, self.seat.daemon.world.random
        promise, self.promise = self.promise, None
        acquire = paxos_lease.acquire_exclusive if mode is Mode.EXCLUSIVE else paxos_lease.acquire_shared
        outcome = await acquire(self.area, member, clock, rng, wait=wait, promise=promise)
        await self._take(member, outcome)

    async def _take(self, member: Membership, outcome: AcquireOutcome) -> None:
        if isinstance(outcome, InDoubt):
            self._record(f"is in doubt about {self.resource}: {type(outcome.refusal).__name__}")
            await self._withdrawn(member, outcome)
            return
        if not isinstance(outcome, Lease):
            self.last_refusal = repr(outcome)
            self._record(f"does not get {self.resource}: {type(outcome).__name__}")
            return
        if self._stands(member):
            self.lease = outcome
            self._let_run(outcome)

    def _stands(self, member: Membership) -> bool:
        """Whether the lockspace of the answer is still joined: it may have been lost since."""
        return self.seat.member is member and member.may_write()

    def _let_run(self, lease: Lease) -> None:
        seat, daemon = self.seat, self.seat.daemon
        assert seat.term is not None
        daemon.checkers.believes(seat.term, self.resource, lease.mode)
        if self.vm is None:
            stubborn = daemon.world.random.random() < daemon.stubborn_rate
            self.vm = VirtualMachine(f"vm-{self.resource}-{daemon.machine}", daemon.machine, stubborn)
            daemon.machine.vms.append(self.vm)
            daemon.checkers.runs(seat.term, self.resource, self.vm)

    async def stop(self) -> None:
        await self.exclusively(self._stop)

    async def _stop(self, member: Membership) -> None:
        lease, vm, term = self.lease, self.vm, self.seat.term
        if lease is None or term is None:
            return
        if vm is not None:
            vm.running = False
            term.machine.vms.remove(vm)
            self.seat.daemon.checkers.stopped(term, self.resource)
        self.seat.daemon.checkers.gave_up(term, self.resource)
        self.lease = self.vm = None
        while True:
            outcome = await paxos_release.release(self.area, member, self.seat.clock, lease)
            if isinstance(outcome, Released | NotHeld | LockspaceLost):
                self.promise = outcome.promise if isinstance(outcome, Released) else None
                self._record(f"has released {self.resource}: {type(outcome).__name__}")
                return
            await self.seat.clock.sleep(member.io_timeout_s)

    async def convert(self) -> None:
        await self.exclusively(self._convert)

    async def _convert(self, member: Membership) -> None:
        if self.lease is not None and self.seat.term is not None:
            if self.lease.mode is Mode.EXCLUSIVE:
                await self._lower(member, self.lease)
            else:
                await self._raise(member, self.lease)

    async def _lower(self, member: Membership, lease: Lease) -> None:
        term = self.seat.term
        assert term is not None
        self.seat.daemon.checkers.gave_up(term, self.resource)
        lowered = await paxos_release.downgrade(self.area, member, self.seat.clock, lease)
        while isinstance(lowered, DowngradeFailed):
            if isinstance(lowered.why, LockspaceLost):
                return
            await self.seat.clock.sleep(member.io_timeout_s)
            lowered = await paxos_release.downgrade(self.area, member, self.seat.clock, lowered.lease)
        if self._stands(member):
            self.lease = lowered
            self._let_run(lowered)

    async def _raise(self, member: Membership, lease: Lease) -> None:
        raised = await paxos_lease.upgrade(
            self.area, member, self.seat.clock, self.seat.daemon.world.random, lease
        )
        if isinstance(raised, InDoubt):
            await self._withdrawn(member, raised)
        elif isinstance(raised, Lease) and self._stands(member):
            self.lease = raised
            self._let_run(raised)

    async def _withdrawn(self, member: Membership, doubt: InDoubt) -> None:
        while True:
            outcome = await paxos_release.withdraw(self.area, member, self.seat.clock, doubt)
            if isinstance(outcome, Withdrawn | LockspaceLost):
                return
            await self.seat.clock.sleep(member.io_timeout_s)

    # --- requests ---

    async def ask_for(self) -> None:
        """Request the lease from its holder."""
        member, lockspace = self.seat.member, self.seat.lockspace
        if member is None or lockspace is None:
            return
        outcome = await paxos_request.request(self.area, member, paxos_request.Force.GRACEFUL)
        if isinstance(outcome, paxos_request.Requested):
            self._record(f"requests {self.resource} lver {outcome.lver} of host_id {outcome.notify}")
            lockspace.notify(outcome.notify)

    async def answer_request(self) -> None:
        lease, member = self.lease, self.seat.member
        if lease is None or member is None or self.busy:
            return
        found = await self.area.read_request(member.io_timeout_s)
        if not isinstance(found, Request) or self.lease is not lease:
            return
        if paxos_request.asked_of_holder(found, lease) is not None:
            self.seat.daemon.checkers.answers(self.seat.daemon.machine, self.resource, found.lver, lease.lver)
            self._record(f"gives {self.resource} up on request")
            await self.stop()

    def _record(self, what: str) -> None:
        self.seat.daemon.world.record(self.seat.daemon.machine.name, what)

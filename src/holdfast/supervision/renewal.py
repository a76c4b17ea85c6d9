"""One lockspace that this host is in, from joining to leaving or losing it.

`run` is the renewal thread's whole life (ports that block), or a task's in the simulator. It joins by claiming a host
id, then renews until it is asked to leave or the lease is over:

    open area ─► prove watchdog ─► claim host id ─► arm watchdog ─► JOINED ─┬─ renew every 2 io
                                                                           ├─ leave(): disarm, free the id
    not joined: `NotJoined` names the reason, the other host by name       └─ lost: stop renewing, starve, call back

It only renews; the lease monitor measures. A renewal that fails is tried again at once, up to the bound, by which the
lease monitor has reported the loss. A read that shows that the record is not ours any more ends the lease now.

A lost lease starves the watchdog until `users_gone` is called: only the layer above can know that.

The io_timeout changes while it is joined (`change_io_timeout`), and this host never counts for longer than others do:

    raised    a renewal shows the greater one ─► it is counted by it from that renewal on
    lowered   a renewal as before ─► the lease monitor counts by the smaller one ─► the next renewal shows it
"""

from __future__ import annotations

import enum
import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from holdfast.ondisk.delta import NO_EVENT, Event
from holdfast.protocol import delta_lease as delta
from holdfast.protocol.expiry import Phase
from holdfast.protocol.host_status import Action, HostView, Notified, StateChanged
from holdfast.protocol.lockspace_area import Corrupt, LockspaceArea, open_area
from holdfast.protocol.membership import Membership
from holdfast.protocol.ports import Clock, Disk
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, Instant, IoFailed, OnWait, ignore_wait
from holdfast.supervision.join_errors import Hindrance, NotJoined, refused
from holdfast.supervision.lease_monitor import LeaseMonitor, MonitoredLease
from holdfast.supervision.peer_monitor import PeerMonitor
from holdfast.system.block_io.blocking_ports import Interrupted
from holdfast.system.histogram import Histogram
from holdfast.system.watchdog.device import WatchdogRefused

RETRY_PAUSE_S = 0.5
"""Between a renewal that failed at once and the next try: storage that says no must not be asked in a busy loop."""
DISK_BYTES_MAX = 2**63
"""No offset is greater."""


class Standing(enum.Enum):
    """How this host stands in the lockspace."""

    JOINING = "joining"
    JOINED = "joined"
    LOST = "lost"
    LEFT = "left"
    NOT_JOINED = "not joined"


@dataclass(frozen=True, slots=True)
class Left:
    """Left on purpose. `released` is False where the id could not be freed: others will see this host die."""

    released: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """The lease is over; nothing is written to this lockspace any more."""

    reason: str


Ended = NotJoined | Left | Lost


@dataclass(frozen=True, slots=True)
class Joined:
    """The lease is held, and renewed from now on."""

    member: Membership


@dataclass(frozen=True, slots=True)
class Expiring:
    """Renewals are late; the lease is this old."""

    age_s: float


@dataclass(frozen=True, slots=True)
class Expired:
    """The dead bound of a lost lease has passed."""

    reason: str


@dataclass(frozen=True, slots=True)
class IoTimeoutChanged:
    """A renewal shows the new io_timeout, and this host counts by it."""

    timing: Timing


RenewalNews = Joined | Expiring | Lost | Expired | StateChanged | Notified | IoTimeoutChanged
"""What happens to a membership while it lasts. A loss is reported by the lease monitor, and ends `run` as well: either may
be first, with the same value."""


class RenewalTimes(NamedTuple):
    """One renewal, or the join, of 0 ms: the timestamp that it wrote (seconds of our clock), how long its read and write
    took. `next_`: those that failed between it and the next one that succeeded.
    """

    timestamp: int
    read_ms: int = 0
    write_ms: int = 0
    next_timeouts: int = 0
    next_errors: int = 0


HISTORY_MAX = 180
"""Renewals that are remembered: as sanlock, an hour with its io_timeout of 10 s."""


LATENCY_BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""From fast flash to the longest renewal that an io_timeout of 10 s leaves unfinished."""


class RenewalCounts:
    """What all renewals of a lockspace took since the daemon's start, over every time that it was joined."""

    def __init__(self) -> None:
        self.latency = Histogram(LATENCY_BOUNDS_S)
        """Of those that succeeded: their read and their write."""
        self.failures = 0


class RenewalLoop:
    """This host's membership in one lockspace. It needs a disk and a clock of its own, and runs once."""

    def __init__(
        self,
        *,
        name: str,
        disk: Disk,
        offset_bytes: int,
        host_id: HostId,
        host_name: str,
        timing: Timing,
        clock: Clock,
        lease_monitor: LeaseMonitor,
        report: Callable[[RenewalNews], None],
        on_wait: OnWait = ignore_wait,
        interrupt: Callable[[], None] = lambda: None,
        resumed: Generation | None = None,
        ended_generation: int = 0,
        next_io_timeout_s: int = 0,
        only_if_free: bool = False,
        only_of: str = "",
        is_found: bool = False,
        generation_min: int = 1,
        lease_writes: Callable[[], Callable[[], bool]] = lambda: lambda: False,
        counts: RenewalCounts | None = None,
    ) -> None:
        """`resumed`: the generation that an earlier process of this boot held, to be resumed instead of claiming.

        `ended_generation`, `next_io_timeout_s`, `only_if_free`, `only_of`, `generation_min`: see `delta_lease.Claim`.
        `is_found`: the host id was found, not configured. `lease_writes` takes stock of our writes to leases, elsewhere than
        on `disk`, that are under way; it returns a function that reports whether one of these may still land. Both are
        called from any thread.

        `report` gets the news on the renewal or the lease monitor's thread, and must not block; `on_wait` is called on the
        renewal thread while a claim waits.
        """
        self.name = name
        self.standing = Standing.JOINING
        self.trouble = ""
        """Why the last renewal failed; empty if it did not."""
        self.taken = False
        """Whether it was lost because another host has this host's id."""
        self._disk = disk
        self._offset_bytes = offset_bytes
        self._claim = delta.Claim(
            host_id,
            host_name,
            timing,
            only_if_free,
            generation_min,
            only_of,
            ended_generation,
            next_io_timeout_s,
        )
        self._next_io_timeout_s = next_io_timeout_s
        self._resumed = resumed
        self._is_found = is_found
        self._lease_writes = lease_writes
        self._clock = clock
        self._lease_monitor = lease_monitor
        self._report = report
        self._on_wait = on_wait
        self._interrupt = interrupt
        self._leaving = False
        self._watched: MonitoredLease | None = None
        self._hosts: PeerMonitor | None = None
        self._notify_lock = threading.Lock()
        self._notified_until: dict[HostId, float] = {}
        self._event = NO_EVENT
        self.history: deque[RenewalTimes] = deque(maxlen=HISTORY_MAX)
        """Of the last renewals that succeeded, oldest first."""
        self.counts = counts if counts is not None else RenewalCounts()
        self._failures = RenewalTimes(0)
        """Failed renewals since the last one that succeeded, to be counted at that one."""

    # --- called from any thread ---

    def retire(self) -> None:
        """It has no users, and may get none from now on; it is renewed until it is left."""
        if self._watched is not None:
            self._watched.retire()

    def leave(self) -> None:
        """After the last user is gone: free the host id. Joining is broken off.

        Not while a write to a lease may land: the next host that claims the id has the same blocks.
        """
        self._leaving = True
        self._interrupt()

    def users_gone(self) -> None:
        """After the lease was lost: it provably has no users, so the host need not be reset."""
        if self._watched is not None:
            self._watched.dismiss(self._in_flight())
        self._interrupt()  # its thread ends now and not at the next renewal

    def _in_flight(self) -> Callable[[], bool]:
        """Returns a function that reports whether a write of ours may still land: of our record, or one to a lease that is
        under way now.
        """
        lease_write = self._lease_writes()
        return lambda: self._disk.in_flight(0, DISK_BYTES_MAX) or lease_write()

    @property
    def timing(self) -> Timing:
        """The bounds by which this host counts now."""
        return self._claim.timing

    @property
    def next_io_timeout_s(self) -> int:
        """To which it is being changed; 0: it is not."""
        return self._next_io_timeout_s

    def change_io_timeout(self, io_timeout_s: int) -> None:
        """Another one from the next renewals on; `IoTimeoutChanged` follows. Whatever resumes this incarnation has to know
        by now that its record may have either (`Claim.next_io_timeout_s`). One change at a time.
        """
        if self._next_io_timeout_s:
            raise ValueError(f"it is being changed to {self._next_io_timeout_s} s")
        self._next_io_timeout_s = io_timeout_s

    @property
    def renewed_at(self) -> Instant | None:
        """When the lease was last renewed, according to the lease monitor; None before it was joined."""
        return self._watched.expiry.renewed_at if self._watched is not None else None

    @property
    def phase(self) -> Phase | None:
        return self._watched.phase if self._watched is not None else None

    def hosts(self) -> tuple[HostView, ...]:
        return self._hosts.views(self._clock.now()) if self._hosts is not None else ()

    def notify(self, host_id: HostId) -> None:
        """Make a host read its requests: its bit is set in our renewals for a while, by the slower one's io_timeout."""
        now, timing = self._clock.now(), self._claim.timing
        theirs_s = self._hosts.view(host_id, now).io_timeout_s if self._hosts is not None else 0
        with self._notify_lock:
            self._notified_until[host_id] = now + timing.of_host(max(theirs_s, timing.io_timeout_s)).notify_s

    def notify_no_more(self, host_id: HostId) -> None:
        with self._notify_lock:
            self._notified_until.pop(host_id, None)

    def post_event(self, event: Event) -> None:
        """Our renewals carry it from now on; `NO_EVENT` takes it back."""
        self._event = event

    # --- the renewal thread ---

    async def run(self) -> Ended:
        try:
            ended = await self._run()
        except Interrupted:
            ended = NotJoined("joining was broken off", cause=Hindrance.BROKEN_OFF)
        self.standing = {NotJoined: Standing.NOT_JOINED, Left: Standing.LEFT, Lost: Standing.LOST}[
            type(ended)
        ]
        return ended

    async def _run(self) -> Ended:
        joined = await (self._join() if self._resumed is None else self._go_on(self._resumed))
        if isinstance(joined, NotJoined):
            return joined
        area, held, watched, hosts = joined
        self._watched, self._hosts = watched, hosts
        if self._next_io_timeout_s == held.record.io_timeout_s:
            self._next_io_timeout_s = 0
        self.standing = Standing.JOINED
        self.history.append(RenewalTimes(held.record.timestamp))
        self._report(Joined(self._membership(area, held, watched, hosts)))
        return await self._keep(area, held, watched, hosts)

    async def _join(self) -> tuple[LockspaceArea, delta.Held, MonitoredLease, PeerMonitor] | NotJoined:
        claim = self._claim
        if broken := claim.timing.broken():
            return NotJoined("; ".join(map(str, broken)))
        area = await open_area(self._disk, self._offset_bytes, self.name, claim.timing.io_timeout_s)
        if isinstance(area, Corrupt | IoFailed):
            return refused(self.name, claim, area)
        if not 1 <= claim.host_id <= area.geometry.hosts_max:
            return NotJoined(
                f"host id {claim.host_id} is not within 1..{area.geometry.hosts_max} of lockspace {self.name}",
                cause=Hindrance.HOST_ID,
            )
        try:
            self._lease_monitor.prove()
        except WatchdogRefused as e:
            return NotJoined(f"watchdog: {e}", cause=Hindrance.WATCHDOG)
        held = await delta.acquire(area, self._clock, claim, self._on_wait)
        if not isinstance(held, delta.Held):
            return refused(self.name, claim, held, is_found=self._is_found)
        watched = self._watch(held)
        if watched is None:
            await delta.release(area, self._clock, held)
            return NotJoined(
                "the watchdog is not fed: it failed, or another lockspace of this host is lost",
                cause=Hindrance.WATCHDOG,
            )
        return area, held, watched, PeerMonitor(self.name, claim.host_id, area.geometry, claim.timing)

    async def _go_on(
        self, generation: Generation
    ) -> tuple[LockspaceArea, delta.Held, MonitoredLease, PeerMonitor] | NotJoined:
        """Resume. The earlier process has proven the watchdog and may have left it armed, so it must not be stopped now."""
        claim = self._claim
        # Only storage knows how old the lease is. While storage does not answer we don't know, so don't wait for long:
        # the last renewal may have been as old as a lease may be when the earlier process ended.
        until = self._clock.now() + min(claim.timing.renewal_s, claim.timing.fire_timeout_s / 2)
        area, held = await self._look_at_term(generation)
        while isinstance(area, IoFailed) or isinstance(held, IoFailed):
            if self._clock.now() >= until:
                return refused(self.name, claim, area if isinstance(area, IoFailed) else held)  # type: ignore[arg-type]
            await self._clock.sleep(RETRY_PAUSE_S)
            area, held = await self._look_at_term(generation)
        if isinstance(area, Corrupt):
            return refused(self.name, claim, area)
        if isinstance(held, delta.NotResumed):
            return NotJoined(held.reason, is_over=self._is_over(held))
        if not isinstance(held, delta.Held):
            return refused(self.name, claim, held)
        self._claim = held.claim
        watched = self._watch(held)
        if watched is None:
            # Owners may depend on this lease, so it is not given back: others will see this host die.
            return NotJoined("the watchdog can't be fed")
        return area, held, watched, PeerMonitor(self.name, claim.host_id, area.geometry, self.timing)

    def _is_over(self, found: delta.NotResumed) -> bool:
        """Whether no VM depends on the incarnation: it was given back in good order, which is done when it has no users. Or
        its dead bound has passed, and the watchdog has not reset this host, as it does unless its users have ended.
        """
        outlived = self._lease_monitor.fences and found.age_s > self._claim.timing.dead_s
        return found.given_back or outlived

    async def _look_at_term(
        self, generation: Generation
    ) -> tuple[LockspaceArea | Corrupt | IoFailed, delta.Held | delta.NotResumed | Corrupt | IoFailed]:
        area = await open_area(self._disk, self._offset_bytes, self.name, self._claim.timing.io_timeout_s)
        if not isinstance(area, LockspaceArea):
            return area, area
        return area, await delta.resume(area, self._clock, self._claim, generation)

    def _watch(self, held: delta.Held) -> MonitoredLease | None:
        return self._lease_monitor.watch(
            self.name,
            self._claim.timing,
            held.renewed_at,
            on_expiring=lambda age_s: self._report(Expiring(age_s)),
            on_lost=lambda reason: self._report(Lost(reason)),
            on_expired=lambda reason: self._report(Expired(reason)),
        )

    def _membership(
        self, area: LockspaceArea, held: delta.Held, watched: MonitoredLease, hosts: PeerMonitor
    ) -> Membership:
        return Membership(
            lockspace=area,
            host_id=self._claim.host_id,
            generation=held.generation,
            ended_generation=held.ended_generation,
            bounds=lambda: self.timing,
            may_write=watched.may_write,
            view=lambda host_id: hosts.view(host_id, self._clock.now()),
            beside_others=lambda: hosts.beside_others(self._clock.now()),
        )

    async def _keep(
        self, area: LockspaceArea, held: delta.Held, watched: MonitoredLease, hosts: PeerMonitor
    ) -> Left | Lost:
        # Sample the other hosts at once: until then all of them are UNKNOWN.
        due: float = self._clock.now()
        while True:
            try:
                if not self._leaving:
                    await self._clock.sleep(max(0.0, due - self._clock.now()))
            except Interrupted:
                pass
            if self._leaving:
                return await self._leave(area, held, watched)
            if watched.is_over():
                # A late write would make others believe in a host that has stopped renewing.
                return self._lost(watched, "not renewed in time")
            held = self._lowered(held, watched)
            outcome = await delta.renew(
                area,
                self._clock,
                held,
                event=self._event,
                notified=self._to_notify(),
                hosts_watched=hosts.hosts_to_read(),
                is_over=watched.is_over,
                raised_io_timeout_s=self._next_io_timeout_s if self._is_raised else 0,
            )
            match outcome:
                case delta.Renewed(held, sectors, read_at):
                    self.trouble = ""
                    self._counted(held, watched, hosts)
                    due = held.renewed_at + self._pace.renewal_s
                    now = self._clock.now()
                    self._remember(held, read_at, now)
                    self._report_all(hosts.looked(now, read_at, sectors))
                case delta.RenewalFailed(held, failed, sectors, read_at):
                    self.trouble = _failure_text(failed)
                    late = failed.errno == errno.ETIMEDOUT
                    self.counts.failures += 1
                    self._failures = self._failures._replace(
                        next_timeouts=self._failures.next_timeouts + late,
                        next_errors=self._failures.next_errors + (not late),
                    )
                    due = self._clock.now() + RETRY_PAUSE_S
                    changes = hosts.ticked(self._clock.now())
                    if sectors is not None:
                        changes += hosts.looked(self._clock.now(), read_at, sectors)
                    self._report_all(changes)
                case delta.NotOurs(found):
                    self.taken = not found.is_free
                    return self._lost(watched, f"{found.host_name} has taken host id {self._claim.host_id}")
                case delta.Diverged():
                    return self._lost(watched, "somebody else has written this host's record")
                case delta.MarkedDead():
                    return self._lost(watched, str(outcome))
                case Corrupt(fault):
                    state = "can't be read" if fault.is_newer else "is damaged"
                    return self._lost(watched, f"this host's record {state}: {fault}")
                case delta.TooLate():
                    return self._lost(watched, "not renewed in time")
                case _:
                    assert_never(outcome)

    @property
    def _is_raised(self) -> bool:
        return self._next_io_timeout_s > self.timing.io_timeout_s

    @property
    def _is_lowered(self) -> bool:
        return 0 < self._next_io_timeout_s < self.timing.io_timeout_s

    @property
    def _pace(self) -> Timing:
        """A smaller io_timeout is shown as soon as a renewal by it is due."""
        return replace(self.timing, io_timeout_s=self._next_io_timeout_s) if self._is_lowered else self.timing

    def _counted(self, held: delta.Held, watched: MonitoredLease, hosts: PeerMonitor) -> None:
        """Count the lease from a renewal that is on disk, by other bounds if its io_timeout is being changed."""
        raised = held.claim.timing if held.claim.timing != self.timing else None
        watched.renewed(held.renewed_at, raised)
        if raised is not None:
            hosts.count_by(raised)
            self._claim = held.claim
        if self._is_lowered:
            watched.lower(self._pace)
        if self._next_io_timeout_s == held.record.io_timeout_s == self.timing.io_timeout_s:
            self._next_io_timeout_s = 0
            self._report(IoTimeoutChanged(self.timing))

    def _lowered(self, held: delta.Held, watched: MonitoredLease) -> delta.Held:
        """What is to be renewed: with the smaller io_timeout as soon as the lease monitor counts by it."""
        if self._is_lowered and watched.expiry.timing == self._pace:
            self._claim = held.claim.with_io_timeout(self._next_io_timeout_s)
            held = replace(held, claim=self._claim)
        return held

    def _remember(self, held: delta.Held, read_at: Instant, now: Instant) -> None:
        began, failures, self._failures = held.renewed_at, self._failures, RenewalTimes(0)
        self.counts.latency.add(now - read_at)
        if self.history and (failures.next_timeouts or failures.next_errors):
            self.history[-1] = self.history[-1]._replace(
                next_timeouts=failures.next_timeouts, next_errors=failures.next_errors
            )
        self.history.append(
            RenewalTimes(
                held.record.timestamp,
                round((began - read_at) * 1000),
                round((now - began) * 1000),
            )
        )

    def _lost(self, watched: MonitoredLease, reason: str) -> Lost:
        watched.corrupted(reason)
        return Lost(reason)

    async def _leave(self, area: LockspaceArea, held: delta.Held, watched: MonitoredLease) -> Left:
        watched.retire()
        released = await delta.release(area, self._clock, held)
        # The watchdog last: if freeing the id hangs, the write could land when another host has the id.
        watched.dismiss(self._in_flight())
        match released:
            case delta.Released():
                return Left(released=True)
            case delta.NotReleased(reason):
                return Left(released=False, reason=reason)

    def _to_notify(self) -> tuple[HostId, ...]:
        now = self._clock.now()
        with self._notify_lock:
            self._notified_until = {h: until for h, until in self._notified_until.items() if until > now}
            return tuple(self._notified_until)

    def _report_all(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            self._report(action)


def _failure_text(failed: IoFailed) -> str:
    if failed.errno in (errno.ENOENT, errno.ESTALE):
        return (
            "the path of the lockspace does not name its file any more: it was deleted, replaced or unmounted"
        )
    return f"storage: {os.strerror(failed.errno)}"

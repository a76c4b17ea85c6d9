"""The lease monitor measures the age of every lease of this host, and feeds the watchdog only while all are good.

The renewal thread waits for storage, so it cannot measure: it hangs just when measuring matters. The lease monitor waits
only for the clock. Renewal threads queue their results for it; once a second it takes these, reads the clock, and acts:

    renewal thread          t0 ── write …… hangs ………………………………………………………
    lease monitor           |  fed   fed   fed   fed |  starved: on_lost  ……………………… reset
    age of the lease        0                        8 io                          8 io + fire

A host has one watchdog, so it is fed only while *every* lease may feed it, and never beyond the earliest bound. A
lease that is lost starves it until its supervisor has proof that it has no users any more (`dismiss`) and its last write
has ended; then the other leases feed it again. Everything else is separate per lease: age, bounds, callbacks.

Callbacks run on the lease monitor's thread, outside of its lock; they must not block, and what they raise is logged.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from holdfast.protocol import expiry
from holdfast.protocol.expiry import Corrupted, Expiry, Lowered, Phase, Renewed, Ticked
from holdfast.protocol.ports import Clock
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant
from holdfast.system.block_io.blocking_ports import Interrupted
from holdfast.system.logs.log_lines import facts
from holdfast.system.watchdog.device import Watchdog, WatchdogRefused
from holdfast.system.watchdog.fed_until import FedUntil, NotKept

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""How often ages are measured: a part of the shortest bound (8 s with io_timeout 1)."""
ARM_PAUSE_S = 10.0
"""Between two tries to arm a watchdog for leases on which owners may depend already."""

News = Renewed | Lowered | Corrupted
"""Of a lease, from its renewal."""
OnExpiring = Callable[[float], None]
"""Renewals are late; the lease is this old (seconds)."""
OnLost = Callable[[str], None]
"""The lease is lost, because of this. Said once."""


def _nobody(_: object) -> None:
    return None


class MonitoredLease:
    """One lease that the monitor measures. The renewal side reports here, from any thread."""

    def __init__(
        self,
        lease_monitor: LeaseMonitor,
        name: str,
        timing: Timing,
        renewed_at: Instant,
        on_expiring: OnExpiring,
        on_lost: OnLost,
        on_expired: OnLost,
    ) -> None:
        self.name = name
        self.expiry = Expiry(timing, renewed_at)
        self.on_expiring, self.on_lost, self.on_expired = on_expiring, on_lost, on_expired
        self._lease_monitor = lease_monitor
        self._inbox: deque[News] = deque()
        self._corrupt = False
        self._retired = False
        self._dismissed = False

    def renewed(self, begun_at: Instant, raised: Timing | None = None) -> None:
        """Report a renewal that is on disk; `begun_at` was read from the clock before its write. `raised`: the greater
        bounds that it shows to others.
        """
        self._inbox.append(Renewed(begun_at, raised))

    def lower(self, timing: Timing) -> None:
        """Count by smaller bounds from the next beat on, if the lease is young by them; when `expiry.timing` says that it is
        so, a record may show them.
        """
        self._inbox.append(Lowered(timing))

    def corrupted(self, reason: str) -> None:
        """Report that the record is not ours any more: the lease is over now, not at the next beat."""
        self._corrupt = True
        self._inbox.append(Corrupted(reason))

    def may_write(self) -> bool:
        """Whether lease writes may be issued now."""
        over = self._corrupt or self._retired
        return not over and self.expiry.may_write(self._lease_monitor.now())

    @property
    def phase(self) -> Phase:
        return self.expiry.phase

    def is_over(self) -> bool:
        """Whether the lease is lost or dismissed, so that it may not be renewed any more."""
        return self._corrupt or self._dismissed or self.phase >= Phase.FAIL

    def fails_in_s(self) -> float:
        return max(0.0, self.expiry.fails_at - self._lease_monitor.now())

    def retire(self) -> None:
        """This lease provably has no users and may get none. It is renewed until it is dismissed (ADR 0129)."""
        self._retired = True

    def dismiss(self, in_flight: Callable[[], bool]) -> None:
        """Retire the lease and stop it from starving the watchdog.

        Only a reset stops a write of ours that is still in flight and may land when another host has our host id: while
        `in_flight` returns True, nothing changes.
        """
        self.retire()
        self._dismissed = True
        self._lease_monitor.forget(self, in_flight)

    def may_feed(self, now: Instant) -> bool:
        return not self._corrupt and self.expiry.may_feed(now)

    def take_news(self) -> list[News]:
        return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def step(self, now: Instant, news: list[News]) -> tuple[expiry.Action, ...]:
        actions = self.expiry.step(now, Ticked())
        for each in news:
            actions += self.expiry.step(now, each)
        return actions


class LeaseMonitor:
    """All leases of this host and its watchdog. `run` is a thread's whole life, or a task's in the simulator."""

    def __init__(
        self,
        *,
        clock: Clock,
        watchdog: Watchdog,
        fed_until: FedUntil | None = None,
        on_armed_late: Callable[[], None] = lambda: None,
    ) -> None:
        """`fed_until`: the bound of the last feeding, of an earlier program at first, and for the next one. `on_armed_late`
        is called, on any thread, when the watchdog was armed for leases that are guarded already.
        """
        self._on_armed_late = on_armed_late
        self._clock = clock
        self._watchdog = watchdog
        self._fed_until = fed_until if fed_until is not None else NotKept()
        # Only an armed watchdog is fed by it: a feeding would arm one.
        self._left_until = self._fed_until.read() if watchdog.descriptor() is not None else None
        self._lock = threading.Lock()
        self._watched: list[MonitoredLease] = []
        self._dismissed: dict[MonitoredLease, Callable[[], bool]] = {}
        self._owed: set[str] = set()
        self.starving = False
        self._refused = ""
        """Why it could not be armed last."""
        self._arm_at: Instant | None = None
        """When that is tried again."""
        self.feeds = 0
        """How often the watchdog was fed, since this monitor was made."""
        self._fed_at: Instant | None = None

    def now(self) -> Instant:
        return self._clock.now()

    @property
    def fences(self) -> bool:
        """Whether a host whose leases fail will be reset."""
        return self._watchdog.fences

    @property
    def fed_s_ago(self) -> float | None:
        """Seconds since the last feed; None before the first one."""
        fed_at = self._fed_at
        return max(0.0, self.now() - fed_at) if fed_at is not None else None

    def watchdog_descriptor(self) -> int | None:
        with self._lock:
            return self._watchdog.descriptor()

    def prove(self) -> None:
        """Check, before a lease is claimed, that the watchdog will work. Raises `WatchdogRefused`."""
        with self._lock:
            if self._owed:
                # To prove it is to stop it, and it may count for owners of whom nobody knows yet.
                raise WatchdogRefused(f"lockspace {min(self._owed)} has owners, and is not guarded yet")
            self._watchdog.prove()

    def watch(
        self,
        name: str,
        timing: Timing,
        renewed_at: Instant,
        *,
        on_expiring: OnExpiring = _nobody,
        on_lost: OnLost = _nobody,
        on_expired: OnLost = _nobody,
    ) -> MonitoredLease | None:
        """Guard a lease from now on. None: the watchdog is not fed, so nothing may depend on this lease. A lease on which
        owners depend already (`block_feeding`) is guarded all the same.
        """
        watched = MonitoredLease(self, name, timing, renewed_at, on_expiring, on_lost, on_expired)
        with self._lock:
            self._watched.append(watched)
            was_owed = name in self._owed
            self._owed.discard(name)
            if self._feed() or was_owed:
                return watched
            self._watched.remove(watched)
            self._disarm_if_idle()
        return None

    def why_unarmed(self) -> str:
        """Why no new lock may depend on the leases: nothing would reset this host. Empty if it would, or none is wanted."""
        if not (self.starving and self._watchdog.fences) or self.watchdog_descriptor() is not None:
            return ""
        return f"the watchdog is not armed, so nothing would reset this host: {self._refused or 'it can not be fed yet'}"

    def guards(self, name: str) -> bool:
        """Whether a lease of this name still counts for the watchdog."""
        with self._lock:
            return name in self._owed or any(watched.name == name for watched in self._watched)

    def block_feeding(self, name: str) -> None:
        """Owners of an earlier program may depend on a lease that is not guarded yet: the watchdog is not fed before it is,
        or before they are gone (`settle`). Its age is not known, however young the other leases are.
        """
        with self._lock:
            self._owed.add(name)

    def forget_earlier(self) -> None:
        """The bound that an earlier program has left counts no more: one of its leases is lost, whatever its age is."""
        with self._lock:
            self._left_until = None
            self._fed_until.write(None)

    def settle(self, name: str) -> None:
        """End `block_feeding`: no owner depends on that lease."""
        with self._lock:
            if name in self._owed:
                self._owed.discard(name)
                self._disarm_if_idle()
                self._feed()  # leases that are guarded already have waited for it

    @property
    def is_left_armed(self) -> bool:
        """Whether an earlier program has left an armed watchdog, and no lease feeds it: none is guarded, none has owners."""
        with self._lock:
            return not self._watched and not self._owed and self._watchdog.descriptor() is not None

    def stop_if_idle(self) -> None:
        """Stop the watchdog, unless a lease is guarded or has owners."""
        with self._lock:
            self._disarm_if_idle()

    def forget(self, watched: MonitoredLease, in_flight: Callable[[], bool]) -> None:
        with self._lock:
            if watched in self._watched:
                self._dismissed[watched] = in_flight
                self._let_go()

    def _let_go(self) -> None:
        for watched, in_flight in list(self._dismissed.items()):
            if not in_flight():
                del self._dismissed[watched]
                self._watched.remove(watched)
                self._disarm_if_idle()

    def _disarm_if_idle(self) -> None:
        # Also after a feeding that failed: it may have armed the device before it noticed that it was late.
        if not self._watched and not self._owed:
            self._left_until = None
            self._fed_until.write(None)
            self._watchdog.disarm()
            self._starves(False)

    async def run(self) -> None:
        try:
            while True:
                self.beat()
                await self._clock.sleep(BEAT_S)
        except Interrupted:
            return

    def beat(self) -> None:
        """Take the queued results, measure, feed if all is well, and call back."""
        with self._lock:
            self._let_go()
            # First the queue, then the clock: the other way round, a result could be later than the clock's value.
            news = [(watched, watched.take_news()) for watched in self._watched]
            now = self._clock.now()
            if any(isinstance(each, Lowered) for _, queued in news for each in queued):
                # The bound may come down, and a record may show it before the feeding.
                self._fed_until.write(None)
            happened = [(watched, watched.step(now, queued)) for watched, queued in news]
            self._feed()
        for watched, actions in happened:
            for action in actions:
                try:
                    _call_back(watched, action)
                except Exception:
                    log.exception("lockspace %s: a callback failed", watched.name)

    def _feed(self) -> bool:
        """Feed right now or not at all; reads the clock again, as taking the results takes time."""
        if not self._watched and self._left_until is None:
            return False
        now = self._clock.now()
        if self._left_until is not None and self._fed_as_before(now):
            return False
        if not self._watched:
            return False
        over = [*self._owed, *(watched.name for watched in self._watched if not watched.may_feed(now))]
        fed = not over and self._fed(min(watched.expiry.fails_at for watched in self._watched), now)
        self._fed_until.write(min(watched.expiry.fails_at for watched in self._watched) if fed else None)
        if fed:
            self.feeds += 1
            self._fed_at = now
        self._starves(not fed, over)
        return fed

    def _fed(self, until: Instant, now: Instant) -> bool:
        """Owners may depend on leases here although no earlier program has left an armed watchdog: then it is armed now, as
        for a claim. Meanwhile there is nothing to feed, so that may take a moment.
        """
        if self._watchdog.feed(until):
            return True
        if self._watchdog.descriptor() is not None or (self._arm_at is not None and now < self._arm_at):
            return False
        self._arm_at = Instant(now + ARM_PAUSE_S)
        try:
            self._watchdog.prove()
        except WatchdogRefused as e:
            self._refused = str(e)
            return False
        self._refused = ""
        if not self._watchdog.feed(until):
            return False
        self._on_armed_late()
        return True

    def _fed_as_before(self, now: Instant) -> bool:
        """Feed by the bound that an earlier program has left, while its leases are not all guarded: they are good until
        then (ADR 0242). No new lease may depend on that.
        """
        good = [watched.expiry.fails_at for watched in self._watched if watched.may_feed(now)]
        waits = bool(self._owed) or not self._watched
        if self._left_until is None or not waits or len(good) < len(self._watched):
            self._left_until = None
            return False
        until = min((self._left_until, *good))
        if not self._watchdog.feed(until):
            self._left_until = None
            return False
        self.feeds += 1
        self._fed_at = now
        return True

    def _starves(self, starving: bool, over: Sequence[str] = ()) -> None:
        """Note whether the watchdog is left unfed, and log each change: it may be this host's last word."""
        if starving == self.starving:
            return
        self.starving = starving
        if not self._watchdog.fences:
            return
        if starving:
            why = (
                f"lockspace {', '.join(over)} may not be relied on" if over else self._refused or "it refused"
            )
            if self._watchdog.descriptor() is None and not over:
                log.critical(
                    "the watchdog can't be armed: %s; nothing resets this host if it loses its leases, so no new lock "
                    "depends on them; it is tried again every %d s",
                    why,
                    ARM_PAUSE_S,
                    extra=facts(event="watchdog-unfed"),
                )
                return
            log.error(
                "the watchdog is not fed any more: %s; it resets this host unless that changes in time",
                why,
                extra=facts(event="watchdog-unfed"),
            )
        else:
            log.warning("the watchdog is fed again, or is not needed", extra=facts(event="watchdog-fed"))


def _call_back(watched: MonitoredLease, action: expiry.Action) -> None:
    match action:
        case expiry.Warn(age_s):
            watched.on_expiring(age_s)
        case expiry.Fail(age_s, reason):
            watched.on_lost(f"{reason} ({age_s:.0f} s old)")
        case expiry.Expire(age_s):
            watched.on_expired(f"{age_s:.0f} s old: another host may take over")
        case expiry.Feed() | expiry.Calm():
            pass

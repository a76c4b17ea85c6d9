"""The age of our own lease: a state machine that cannot block. It is stepped with events and returns actions.

The renewal writes to storage and may hang there; this machine measures. It is stepped by something that
never waits for storage, at least once a second, with our clock and the latest news.

    OK ----- age >= warn ----> WARN ----- age >= fail ----> FAIL ----- age >= dead ----> DEAD
     ^                          |                            ^
     +-------- renewed ---------+     corrupt record --------+        FAIL and DEAD are never left

The age of a lease counts from the moment *before* its renewal was written, because that is the timestamp
others see:

    our host      t0 sample clock    t1 write issued  ..... storage hangs .....  t2 the write returns
    another host                                                       t1.5 sees the new timestamp

    The other host may count from t1.5, never from before t0. Counting from t2 we would believe ourselves
    younger than the other host does, by the time for which storage hung.

FAIL is final: when our owners are being stopped, a renewal that arrives after all must not turn them loose
again, and the watchdog that was left unfed must fire unless every owner is provably gone. The watchdog may
be fed only while `may_feed(now)` holds, asked right before each feeding.
"""

from dataclasses import dataclass
from enum import IntEnum

from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant


class Phase(IntEnum):
    """How the lease stands; only the first two are a lease."""

    OK = 0
    WARN = 1
    FAIL = 2
    DEAD = 3


@dataclass(frozen=True, slots=True)
class Renewed:
    """A renewal is on disk; `begun_at` is the clock reading from before its write. `raised`: the greater bounds by which
    others count from this renewal on, as it shows them.
    """

    begun_at: Instant
    raised: Timing | None = None


@dataclass(frozen=True, slots=True)
class Lowered:
    """Count by these smaller bounds, before any record shows them; unless the lease is an old one by them."""

    timing: Timing


@dataclass(frozen=True, slots=True)
class Corrupted:
    """The record on disk is not ours any more, or no record at all: this lease is over now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Nothing happened but time."""


Event = Renewed | Lowered | Corrupted | Ticked


@dataclass(frozen=True, slots=True)
class Feed:
    """Feed the watchdog: this lease is good until then, and not a moment longer."""

    until: Instant


@dataclass(frozen=True, slots=True)
class Warn:
    """Renewals are late."""

    age_s: float


@dataclass(frozen=True, slots=True)
class Calm:
    """Renewals are in time again."""

    age_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    """The lease is lost: stop feeding, start no more lease writes, stop the owners."""

    age_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Expire:
    """Others may take over from now on; an owner that still runs here runs unprotected."""

    age_s: float


Action = Feed | Warn | Calm | Fail | Expire

_TOO_OLD = "not renewed in time"


class Expiry:
    """The machine for one lease, from a first good renewal on."""

    __slots__ = ("_last_now", "_phase", "_renewed_at", "_timing")

    def __init__(self, timing: Timing, renewed_at: Instant) -> None:
        self._timing = timing
        self._renewed_at = renewed_at
        self._last_now = renewed_at
        self._phase = Phase.OK

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def timing(self) -> Timing:
        """The bounds that count now."""
        return self._timing

    @property
    def renewed_at(self) -> Instant:
        return self._renewed_at

    @property
    def fails_at(self) -> Instant:
        return Instant(self._renewed_at + self._timing.fail_s)

    def may_feed(self, now: Instant) -> bool:
        """Whether a watchdog may be fed at this very moment."""
        return self._phase < Phase.FAIL and now < self.fails_at

    def may_write(self, now: Instant) -> bool:
        """Whether lease writes may be issued: a host whose lease has failed issues none."""
        return self.may_feed(now)

    def step(self, now: Instant, event: Event) -> tuple[Action, ...]:
        """Take in the time first, and only then the news: a renewal that comes too late does not count."""
        if now < self._last_now:
            raise ValueError(f"the clock went from {self._last_now} back to {now}")
        self._last_now = now
        actions = self._age(now)
        match event:
            case Renewed(begun_at, raised):
                actions += self._renewed(now, begun_at, raised)
            case Lowered(timing):
                self._lower(now, timing)
            case Corrupted(reason):
                actions += self._fail(now, reason)
            case Ticked():
                pass
        return actions

    def _age(self, now: Instant) -> tuple[Action, ...]:
        age_s = now - self._renewed_at
        actions: tuple[Action, ...] = ()
        if self._phase is Phase.OK and self._timing.warn_s <= age_s < self._timing.fail_s:
            self._phase = Phase.WARN
            actions += (Warn(age_s),)
        if age_s >= self._timing.fail_s:
            actions += self._fail(now, _TOO_OLD)
        if self._phase is Phase.FAIL and age_s >= self._timing.dead_s:
            self._phase = Phase.DEAD
            actions += (Expire(age_s),)
        return actions

    def _fail(self, now: Instant, reason: str) -> tuple[Action, ...]:
        if self._phase >= Phase.FAIL:
            return ()
        self._phase = Phase.FAIL
        return (Fail(now - self._renewed_at, reason),)

    def _lower(self, now: Instant, timing: Timing) -> None:
        if timing.fail_s > self._timing.fail_s or timing.fire_timeout_s != self._timing.fire_timeout_s:
            raise ValueError(f"{timing} is not below {self._timing}")
        if now - self._renewed_at < timing.warn_s:
            self._timing = timing

    def _renewed(self, now: Instant, begun_at: Instant, raised: Timing | None) -> tuple[Action, ...]:
        if begun_at > now:
            raise ValueError(f"a renewal begun at {begun_at} cannot be reported at {now}")
        # News may overtake each other between two threads; an older renewal never makes a lease older.
        if self._phase >= Phase.FAIL or begun_at <= self._renewed_at:
            return ()
        if now - begun_at >= self._timing.fail_s:
            # Possible only after _age found the previous one younger than this one: it was not.
            return ()
        self._renewed_at = begun_at
        if raised is not None:
            self._timing = raised
        calmed: tuple[Action, ...] = ()
        if self._phase is Phase.WARN and now - begun_at < self._timing.warn_s:
            self._phase = Phase.OK
            calmed = (Calm(now - begun_at),)
        return (*calmed, Feed(self.fails_at))

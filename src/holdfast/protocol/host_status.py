"""Liveness of the other hosts of a lockspace: a table made of nothing but samples of their delta leases.

A host is alive as long as its record changes. Its timestamps come from a clock that we do not know, so the
only question asked of one is whether it equals the previous sample; how long it has been equal is measured
by our clock.

    state     the record of the host, as we have seen it
    UNKNOWN   not sampled yet, unreadable, or not yet seen to change, for at most its fail bound
    FREE      timestamp 0: nobody holds this id
    LIVE      seen to change within its fail bound (and our own id)
    FAIL      unchanged for longer than its fail bound
    DEAD      unchanged for longer than its dead bound, by a look that began after that bound

In a lockspace that was made with NO_TIMEOUT (sanlock 4 and later) leases never expire by time: there is no bound, and such
a host stays FAIL. A term that an outside authority has marked as dead (DEAD_EXT, `dead_mark`) is DEAD as soon as a look
shows the mark, and only as long as looks show it.

DEAD is a permission to take over, so it is given by looks, not by the passing of time. sanlock compares
with the present time, and then this can happen:

    host A (observer)                               host B
    looks, B's record changed
    ---- paused for an hour ----                    renews, renews, renews, ...
    wakes: "unchanged since an hour": B is dead     renews

Here the unchanged time ends at the *begin* of the latest look that still showed the same record, not now:
after the pause that time is as short as before it. The bound is compared strictly, and with the greatest
io_timeout that this term of the host has shown, because that field is under no checksum.

The table also keeps how the terms of a host followed each other, for a lease may name a term that another one has
succeeded. A newer term alone proves nothing about the older one: sanlock of 3.9 and later, with its default name, takes
its own host id again at once, and its virtual machines run on until its watchdog fires:

    host B (sanlock 3.9)                                        host A (observer)
    generation 3: renews at R, and again at R' (A does not see that one)
    its daemon is killed and started again: generation 4        sees generation 4 at S, after R'
    the watchdog entry of generation 3 fires by R' + dead       waits until S + dead

Two hosts may show one term: both claim an id with the same generation, the write of one hangs, and lands on the record of
the other when that is a member already. That one notices at its next renewal, and is over at its dead bound at the latest;
until then a free record, a mark or a person's word about the name in the record says nothing about it (`HostView.disputed`).

So an older term is over if its own free record was seen, or DEAD was, before the newer one; or if the newer one has been
seen for the dead bound. Counting from the last renewal *seen* of the older term would be too early, by one that was not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from holdfast.ondisk.delta import DeltaLease, Event, decode_bitmap
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, HostTimestamp, Instant


class HostState(Enum):
    """The values are sanlock's numbers for its clients."""

    UNKNOWN = 1
    FREE = 2
    LIVE = 3
    FAIL = 4
    DEAD = 5


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completed look: the sectors read, by host id, and our clock from before the read was issued."""

    begun_at: Instant
    sectors: Mapping[HostId, bytes]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Nothing happened but time."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A host is seen in another state than before."""

    host_id: HostId
    before: HostState
    after: HostState


@dataclass(frozen=True, slots=True)
class Notified:
    """A host has set our bit: it left an event for us, or a request for a lease that we hold.

    Said at each of the sender's renewals while the bit is set, so it must be taken as often as it comes.
    """

    sender_id: HostId
    sender_generation: Generation
    event: Event


Action = StateChanged | Notified


@dataclass(frozen=True, slots=True)
class SeenTerm:
    """A term of a host, as looks have shown it."""

    generation: Generation
    since: Instant
    """When we first saw it; by then no older term renewed any more."""
    io_timeout_s: int
    """The greatest that it has shown."""
    seen_to_end: bool = False
    """Whether the latest look that showed it showed it free, or DEAD by time or by a mark. Only of terms that a newer one
    has succeeded.
    """
    no_timeout: bool = False
    """Whether it has ever shown that its leases never expire by time."""
    names: tuple[str, ...] = ()
    """The hosts that have shown it, the first two: more than one make it a disputed term."""


# How many terms of one host are kept. A host that joins more often within one term of ours forgets how the oldest ended, and
# then those count from when the oldest one that is kept was seen.
TERMS_KEPT_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """What we know about one host, at one moment."""

    host_id: HostId
    state: HostState
    name: str = ""
    generation: Generation | None = None
    timestamp: HostTimestamp | None = None
    io_timeout_s: int = 0
    changed_at: Instant | None = None  # when we saw the record change, if we ever did
    unchanged_since: Instant | None = None  # when we first saw it as it is now
    # True if the very latest look showed a change.
    changed_at_latest_look: bool = False
    unchanged_s: float = 0.0  # proven by looks
    # When we first saw this generation; every look since has shown it.
    generation_since: Instant | None = None
    # Until DEAD at the earliest; None where that question does not arise, as where time proves nothing.
    dead_in_s: float | None = None
    no_timeout: bool = False  # its leases never expire by time
    marked_by: tuple[int, int] | None = None  # who has marked this generation as dead, if anybody has
    terms: tuple[SeenTerm, ...] = ()  # ascending; the last one is the present one
    # Which other host has shown this very term. Empty if none has, or if the record has stood for the dead bound since.
    disputed: str = ""
    fault: str = ""

    @property
    def note(self) -> str:
        """What a person should know beside the state; usually empty."""
        if self.fault:
            return self.fault
        if self.disputed:
            return f"host {self.disputed} has shown the same generation"
        if self.marked_by is not None:
            return f"marked dead (DEAD_EXT) by host_id {self.marked_by[0]}"
        return "its leases never expire by time (NO_TIMEOUT)" if self.no_timeout else ""


@dataclass(frozen=True, slots=True)
class _Observation:
    record: DeltaLease | Malformed
    sector: bytes
    generation_since: Instant
    unchanged_since: Instant
    confirmed_at: Instant
    changed_at: Instant | None
    io_timeout_s: int
    no_timeout: bool
    """Whether this term has ever shown it."""
    names: tuple[str, ...]
    """The hosts that have shown this term (`SeenTerm.names`); of a record that can't be read, those of the one before."""


class HostTable:
    """The machine: `step` takes looks in, `view` answers for one host."""

    __slots__ = ("_observations", "_own_id", "_space_name", "_states", "_terms", "_timing")

    def __init__(self, space_name: str, own_id: HostId, timing: Timing) -> None:
        self._space_name = space_name
        self._own_id = own_id
        self._timing = timing
        self._observations: dict[HostId, _Observation] = {}
        self._states: dict[HostId, HostState] = {}
        self._terms: dict[HostId, tuple[SeenTerm, ...]] = {}

    def count_by(self, timing: Timing) -> None:
        """Our own bounds are these by now; the greatest that they ever were stand for hosts that record none."""
        if timing.io_timeout_s > self._timing.io_timeout_s:
            self._timing = timing

    def step(self, now: Instant, event: Sampled | Ticked) -> tuple[Action, ...]:
        actions: list[Action] = []
        if isinstance(event, Sampled):
            for host_id, sector in event.sectors.items():
                actions += self._look(now, event.begun_at, host_id, sector)
        for host_id, seen in self._observations.items():
            before, after = self._states.get(host_id, HostState.UNKNOWN), self._state(host_id, seen, now)
            if before is not after:
                self._states[host_id] = after
                actions.append(StateChanged(host_id, before, after))
        return tuple(actions)

    def view(self, host_id: HostId, now: Instant) -> HostView:
        """What is known about `host_id`; a host that was never looked at is UNKNOWN."""
        seen = self._observations.get(host_id)
        if seen is None:
            return HostView(host_id=host_id, state=HostState.UNKNOWN)
        terms = self._terms.get(host_id, ())
        if isinstance(seen.record, Malformed):
            return HostView(host_id=host_id, state=HostState.UNKNOWN, terms=terms, fault=str(seen.record))
        dead_s = self._bounds(seen).dead_s
        unchanged_s = seen.confirmed_at - seen.unchanged_since
        state = self._state(host_id, seen, now)
        dying = state in (HostState.LIVE, HostState.FAIL, HostState.UNKNOWN) and host_id != self._own_id
        return HostView(
            host_id=host_id,
            state=state,
            name=seen.record.host_name.text,
            generation=Generation(seen.record.generation),
            timestamp=HostTimestamp(seen.record.timestamp),
            io_timeout_s=seen.io_timeout_s,
            changed_at=seen.changed_at,
            unchanged_since=seen.unchanged_since,
            changed_at_latest_look=seen.changed_at is not None and seen.confirmed_at <= seen.changed_at,
            unchanged_s=max(0.0, unchanged_s),
            generation_since=seen.generation_since,
            dead_in_s=max(0.0, seen.unchanged_since + dead_s - now)
            if dying and not seen.no_timeout
            else None,
            no_timeout=seen.no_timeout,
            marked_by=seen.record.marked_by if seen.record.is_marked_dead else None,
            terms=terms,
            disputed=self._disputed(seen, seen.record),
        )

    def _disputed(self, seen: _Observation, record: DeltaLease) -> str:
        if len(seen.names) < 2 or self._has_stood_for_dead_bound(seen):
            return ""
        return next(name for name in reversed(seen.names) if name != record.host_name.text)

    def _state(self, host_id: HostId, seen: _Observation, now: Instant) -> HostState:
        record = seen.record
        if isinstance(record, Malformed):
            return HostState.UNKNOWN
        if record.is_free:
            return HostState.FREE
        if host_id == self._own_id:
            return HostState.LIVE
        bounds = self._bounds(seen)
        if record.is_marked_dead or self._is_dead(host_id, seen):
            return HostState.DEAD
        if now - seen.unchanged_since > bounds.fail_s:
            return HostState.FAIL
        return HostState.LIVE if seen.changed_at is not None else HostState.UNKNOWN

    def _look(self, now: Instant, begun_at: Instant, host_id: HostId, sector: bytes) -> list[Action]:
        before = self._observations.get(host_id)
        if before is not None and begun_at < before.confirmed_at:
            return []  # An older look that was reported late says nothing new.
        if before is not None and sector == before.sector:
            # Nothing is new but the time. Most records of a great lockspace are like this, and decoding takes longest.
            self._observations[host_id] = replace(before, confirmed_at=begun_at)
            return []
        record = DeltaLease.decode(sector)
        if isinstance(record, DeltaLease):
            record = record.verify(self._space_name, host_id) or record
        if before is not None and _same_proof_of_life(before, record, sector):
            # A mark changes nothing that says how long the host has been silent.
            self._observations[host_id] = replace(before, record=record, confirmed_at=begun_at, sector=sector)
            return []
        io_timeout_s = _io_timeout_shown(before, record)
        no_timeout = _no_timeout_shown(before, record)
        if isinstance(record, DeltaLease):
            self._terms[host_id] = self._terms_with(host_id, before, record, io_timeout_s, no_timeout, now)
        self._observations[host_id] = _Observation(
            record=record,
            sector=sector,
            generation_since=before.generation_since if before and _same_generation(before, record) else now,
            # The change happened before we saw it; counting from now can only make us wait longer.
            unchanged_since=now,
            confirmed_at=begun_at,
            changed_at=now if before is not None else None,
            io_timeout_s=io_timeout_s,
            no_timeout=no_timeout,
            names=self._terms[host_id][-1].names if host_id in self._terms else (),
        )
        return self._notifications(host_id, record, sector) if before is not None else []

    def _terms_with(
        self,
        host_id: HostId,
        before: _Observation | None,
        record: DeltaLease,
        io_timeout_s: int,
        no_timeout: bool,
        now: Instant,
    ) -> tuple[SeenTerm, ...]:
        """The terms of a host, now that a look shows this record."""
        present = Generation(record.generation)
        # A generation that goes back takes back what the newer ones proved: that one renews again, or may.
        older = [term for term in self._terms.get(host_id, ()) if term.generation < present]
        same = next((t for t in self._terms.get(host_id, ()) if t.generation == present), None)
        if before is not None and isinstance(before.record, DeltaLease) and older:
            was_of = Generation(before.record.generation)
            given_back = before.record.is_free or before.record.is_marked_dead
            ended = given_back and not self._disputed(before, before.record)
            ended = ended or self._is_dead(host_id, before)
            older = [replace(t, seen_to_end=ended) if t.generation == was_of else t for t in older]
        seen = SeenTerm(
            present,
            same.since if same is not None else now,
            max(io_timeout_s, same.io_timeout_s if same is not None else 0),
            no_timeout=no_timeout or (same is not None and same.no_timeout),
            names=_names_shown(same, record),
        )
        return (*older, seen)[-TERMS_KEPT_MAX:]

    def _is_dead(self, host_id: HostId, seen: _Observation) -> bool:
        return host_id != self._own_id and self._has_stood_for_dead_bound(seen)

    def _bounds(self, seen: _Observation) -> Timing:
        return self._timing.of_host(seen.io_timeout_s, *seen.names)

    def _has_stood_for_dead_bound(self, seen: _Observation) -> bool:
        """Whether looks prove that; never in a lockspace where time proves nothing."""
        dead_s = self._bounds(seen).dead_s
        return not seen.no_timeout and seen.confirmed_at - seen.unchanged_since > dead_s

    def _notifications(self, host_id: HostId, record: DeltaLease | Malformed, sector: bytes) -> list[Action]:
        if isinstance(record, Malformed) or host_id == self._own_id:
            return []
        notified = decode_bitmap(sector)
        if isinstance(notified, Malformed) or self._own_id not in notified:
            return []
        return [Notified(host_id, Generation(record.generation), record.event)]


def proven_gone(term: Generation, fresh: DeltaLease, view: HostView) -> bool:
    """Whether the term `term` of a host is over: its owners are dead, or the host was reset.

    `fresh` is that host's record, read after the claim of that term was; `view` is what the table says. A mark counts only
    while it stands. A record of another term is no proof by itself, free, marked as dead or neither. An older one: somebody
    initialised the lockspace again under a host that may still run, or a claim that had hung landed on top of its record, or
    the view is older than the claim. A newer one: see the module. Such a term has to be watched for its dead bound like any
    other (`takeover`).
    """
    if fresh.generation > term:
        return any(seen.generation == term and seen.seen_to_end for seen in view.terms)
    given_back = (fresh.is_free or fresh.is_marked_dead) and fresh.generation == term
    if given_back and not view.disputed and not _is_of_another_host(fresh, view):
        return True
    return (
        view.state is HostState.DEAD
        and view.marked_by is None  # by time, not by a mark that does not stand any more
        and not fresh.is_no_timeout
        and view.generation == fresh.generation == term
        and view.timestamp == HostTimestamp(fresh.timestamp)
    )


def _is_of_another_host(fresh: DeltaLease, view: HostView) -> bool:
    """Whether a record shows another name than the table has seen for its generation: what disputes it landed just now."""
    return view.generation == fresh.generation and view.name not in ("", fresh.host_name.text)


def succeeded_left_s(
    term: Generation, fresh: DeltaLease, view: HostView, looked_at: Instant, timing: Timing
) -> float:
    """How long a term that a newer one has succeeded has to be waited for still; below 0: it is over; infinite: time will
    never prove it.

    `fresh` was read from `looked_at` on and is of a newer term; `timing` is our own. A newer term that only that read
    has shown counts from the table's next look.
    """
    newer = [seen for seen in view.terms if seen.generation > term]
    own = [seen for seen in view.terms if seen.generation == term]
    if fresh.is_no_timeout or view.no_timeout or any(seen.no_timeout for seen in own):
        return math.inf
    shown_s = max(fresh.io_timeout_s, *(seen.io_timeout_s for seen in (*newer[:1], *own)), 0)
    names = [name for seen in (*newer[:1], *own) for name in seen.names]
    dead_s = timing.of_host(shown_s, fresh.host_name.text, *names).dead_s
    if not newer or view.generation is None or view.generation <= term:
        return dead_s
    return dead_s - (looked_at - newer[0].since)


def _same_proof_of_life(before: _Observation, record: DeltaLease | Malformed, sector: bytes) -> bool:
    if isinstance(record, Malformed) or isinstance(before.record, Malformed):
        # Somebody writes there; whatever it means, it does not mean that this host is dead.
        return before.sector == sector
    old = before.record
    same = (old.owner_id, old.generation, old.timestamp, old.host_name.text) == (
        record.owner_id,
        record.generation,
        record.timestamp,
        record.host_name.text,
    )
    return (
        same
        and record.io_timeout_s <= before.io_timeout_s
        and (before.no_timeout or not record.is_no_timeout)
    )


def _same_generation(before: _Observation, record: DeltaLease | Malformed) -> bool:
    old = before.record
    return (
        isinstance(old, DeltaLease) and isinstance(record, DeltaLease) and old.generation == record.generation
    )


def _names_shown(same: SeenTerm | None, record: DeltaLease) -> tuple[str, ...]:
    names = same.names if same is not None else ()
    return names if record.host_name.text in names else (*names, record.host_name.text)[:2]


def _no_timeout_shown(before: _Observation | None, record: DeltaLease | Malformed) -> bool:
    """Of the term that the record is of; one that can't be read does not take back what the latest one has shown."""
    if isinstance(record, Malformed):
        return before is not None and before.no_timeout
    same_term = before is not None and (
        _same_generation(before, record) or not isinstance(before.record, DeltaLease)
    )
    return record.is_no_timeout or (same_term and before is not None and before.no_timeout)


def _io_timeout_shown(before: _Observation | None, record: DeltaLease | Malformed) -> int:
    if before is None:
        return 0 if isinstance(record, Malformed) else record.io_timeout_s
    if isinstance(record, Malformed):
        return before.io_timeout_s
    newer = not isinstance(before.record, DeltaLease) or record.generation > before.record.generation
    return record.io_timeout_s if newer else max(before.io_timeout_s, record.io_timeout_s)

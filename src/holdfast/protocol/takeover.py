"""May a lease be taken from the owner that its leader names?

Yes at once if it is free, if it is ours, or if a term of our own host id owned it that was over when we claimed the id.
Otherwise the owner's delta lease, read afresh, has to prove that the owner's term is over; if it proves neither life nor
death, the proof is the unchanged record over the owner's dead bound, ended by a look that began after it.

Whether anybody owns the leader at all is decided by `holders`, before anything else. When the leader was written by
another host than the owner (a ballot finished on its behalf), the owner cannot free the leader without racing with that
write, so it says in its own block that it gave the lease up:

    host 1 (owner)                              host 2
    phase 2 with itself as the value            adopts that value, writes the leader: owner 1, write_id 2
    sees the leader: it owns the lease
    releases: RELEASED in its block,
    leader left alone                           leader says "host 1", host 1 is alive, yet the lease is free

The flag counts only if the block is about this version: an old flag says nothing about a new lease. A block
about a newer version says by itself that its host has given this one up, for no host begins a ballot for the next
version of a lease that it holds; it has to say so, because that ballot takes the flag away:

    host 3 (for host 1)                         host 1                    host 2
    its write of leader 5, owner 1, hangs       released 5
                                                begins a ballot for 6     decides itself for 6, writes leader 6
    leader 5, owner 1, lands                    gives up

An owner's generation may be newer than its host's record: the lockspace was made again, or another host's claim that had
hung landed on top of it. The host of that generation finds its record gone and stops, so it is over when it was missed for
the dead bound: since this host first knew of it, all reads have shown one and the same older generation.

None of these bounds is a proof where leases never expire by time (NO_TIMEOUT, sanlock 4 and later): there an owner is
over only if its record was seen free, or a person vouches that it is off. There is nothing else to wait for.
"""

import math
from dataclasses import dataclass

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.holders import Exclusive, Free, OwnerUnclear, Released, needs_owner_block, owner_by
from holdfast.protocol.host_status import HostState, HostView, proven_gone, succeeded_left_s
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.ports import Clock
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, HostTimestamp, Instant, IoFailed, OnWait, Waiting

# How often a waiting acquirer looks at the owner's record.
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class MayTakeOver:
    """Nobody holds the lease. `waited`: time has passed since the leader was read."""

    waited: bool


@dataclass(frozen=True, slots=True)
class Busy:
    """The owner is alive: its record changed `seen_s` seconds ago, by our clock."""

    leader: Leader
    host_name: str
    seen_s: float


@dataclass(frozen=True, slots=True)
class HostUnknown:
    """The owner is neither known to live nor to be dead yet, and waiting was not asked for."""

    leader: Leader
    host_name: str
    dead_in_s: float


@dataclass(frozen=True, slots=True)
class NeverByTime:
    """The owner is not known to live, and no time will prove its end (`DeltaLease.is_no_timeout`). Its record has not
    changed for `silent_s` seconds as far as looks have shown; of a newer term: `generation` is that one.
    """

    leader: Leader
    host_name: str
    generation: Generation
    silent_s: float

    def __str__(self) -> str:
        host = f"host {self.host_name} (host_id {self.leader.owner_id})"
        if self.generation != self.leader.owner_generation:
            return older_term_stays(host, self.generation, self.leader.owner_generation)
        return f"{host} is not known to be alive; {NEVER_BY_TIME}"


NEVER_BY_TIME = (
    "leases of this lockspace never expire by time (NO_TIMEOUT): they are free when that host gives them up, or when a "
    "person vouches that it is off (holdfast host fenced)"
)


def older_term_stays(host: str, generation: int, older: int) -> str:
    """Why something is not free that an older term of a host has, and the way out."""
    return (
        f"{host} stands in the lockspace as generation {generation}, and the end of its generation {older} is not proven; "
        f"'holdfast lease gc' on that host gives up what its older generations had; {NEVER_BY_TIME}"
    )


@dataclass(frozen=True, slots=True)
class FormerUser:
    """An older generation of our own host id has it, and may be another host that still runs; infinite: no time will prove
    its end.
    """

    generation: Generation
    dead_in_s: float

    def __str__(self) -> str:
        host = f"generation {self.generation} of this host's id may be another host, if the lockspace was made again"
        if self.dead_in_s == math.inf:
            return f"{host}; {NEVER_BY_TIME}"
        return f"{host}; if it is over, its leases can be taken over in {self.dead_in_s:.0f} s"


@dataclass(frozen=True, slots=True)
class LeaderChanged:
    """While we waited, the lease has moved on."""


Attested = frozenset[tuple[HostId, Generation]]
"""Terms of hosts that a person vouches to be off."""
NOBODY_ATTESTED: Attested = frozenset()


def attested_off(
    attested: Attested, host_id: HostId, term: Generation, record: DeltaLease, view: HostView, timing: Timing
) -> bool:
    """Whether a person's word may stand for the dead bound: only of a host that has in fact stopped renewing.

    A host that is off does not renew. A word about the wrong host, or one that came back, is contradicted by its
    record, for a healthy host changes it within two io_timeouts; looks have to have shown it unchanged for three.

    The word is about the term that stands in the lockspace. Where leases never expire by time it may also be about an
    older one of that host: no other machine can have taken the id since, unless the older term's end was proven.
    """
    if (host_id, term) not in attested or view.generation != record.generation:
        return False
    if not word_covers(record, term):
        return False
    bound_s = silence_s(_bounds(timing, max(record.io_timeout_s, view.io_timeout_s), record, view), view)
    unchanged = view.timestamp == HostTimestamp(record.timestamp) and not view.changed_at_latest_look
    return unchanged and view.unchanged_s > bound_s


def _bounds(timing: Timing, io_timeout_s: int, record: DeltaLease, view: HostView) -> Timing:
    return timing.of_host(io_timeout_s, record.host_name.text, view.name, view.disputed)


def word_covers(record: DeltaLease, term: Generation) -> bool:
    """Whether a person's word about the term that stands in the lockspace is about `term`: see `attested_off`."""
    return record.generation == term or (record.is_no_timeout and record.generation > term)


def silence_s(timing: Timing, view: HostView) -> int:
    """How long a host of that timing must have been silent for a person's word about it to count: 3 io_timeouts.

    The word names one host. If another one has shown the same term, and may hold leases with it, that one is over only
    at its dead bound.
    """
    if view.disputed:
        return timing.dead_s
    return timing.renewal_s + timing.io_timeout_s


OwnerVerdict = (
    MayTakeOver | Busy | HostUnknown | NeverByTime | FormerUser | LeaderChanged | Malformed | IoFailed
)


@dataclass(frozen=True, slots=True)
class _Watch:
    """What the owner's record looked like, and since when by our clock."""

    timestamp: HostTimestamp
    since: Instant
    io_timeout_s: int


async def may_take_over(
    area: LeaseArea,
    member: Membership,
    clock: Clock,
    leader: Leader,
    *,
    wait: bool,
    on_wait: OnWait,
    attested: Attested = NOBODY_ATTESTED,
) -> OwnerVerdict:
    """Judge the owner that `leader` names; wait for its dead bound if `wait` says so."""
    if leader.is_free or member.owns(leader):
        return MayTakeOver(waited=False)
    owner = HostId(leader.owner_id), Generation(leader.owner_generation)
    if member.has_ended(owner):
        return MayTakeOver(waited=False)
    block: HostBlock | Malformed | None = None
    if needs_owner_block(leader):
        read = await area.read_block(HostId(leader.owner_id), member.io_timeout_s)
        if isinstance(read, IoFailed):
            return read
        block = read
    match owner_by(leader, block):
        case Free() | Released():
            return MayTakeOver(waited=False)
        case OwnerUnclear(_, fault):
            return fault
        case Exclusive() if leader.owner_id == member.host_id and leader.owner_generation < member.generation:
            return await former_user(member, clock, Generation(leader.owner_generation))
        case Exclusive():
            return await _watch_owner(
                area, member, clock, leader, wait=wait, on_wait=on_wait, attested=attested
            )


async def former_user(
    member: Membership, clock: Clock, term: Generation
) -> MayTakeOver | FormerUser | Malformed | IoFailed:
    """Judge an older generation of our own host id that was not proven over when we claimed the id.

    The lockspace was restored from an older copy or made again, so we found the id free under another host. That one
    finds our record at its next renewal, and is over when ours has stood for the dead bound, like any other generation
    that a newer one has succeeded.
    """
    looked_at = clock.now()
    record = await member.lockspace.read_record(member.host_id, member.io_timeout_s)
    if not isinstance(record, DeltaLease):
        return record
    left_s = math.inf
    if record.generation == member.generation:
        left_s = succeeded_left_s(term, record, member.view(member.host_id), looked_at, member.timing)
    return MayTakeOver(waited=False) if left_s < 0 else FormerUser(term, left_s)


async def _watch_owner(
    area: LeaseArea,
    member: Membership,
    clock: Clock,
    leader: Leader,
    *,
    wait: bool,
    on_wait: OnWait,
    attested: Attested,
) -> OwnerVerdict:
    owner, term = HostId(leader.owner_id), Generation(leader.owner_generation)
    view = member.view(owner)
    watch: _Watch | None = None
    waited = False
    while True:
        looked_at = clock.now()
        record = await member.lockspace.read_record(owner, member.io_timeout_s)
        if not isinstance(record, DeltaLease):
            return record
        if record.generation > term:
            view = member.view(owner)  # how the older one ended, a look may have shown meanwhile
        if proven_gone(term, record, view) or attested_off(
            attested, owner, term, record, view, member.timing
        ):
            return MayTakeOver(waited)
        if record.generation != term:
            left_s = other_term_left_s(member, owner, term, record, looked_at)
        else:
            watch = watch or _begin_watch(view, record, term, clock.now())
            if HostTimestamp(record.timestamp) != watch.timestamp:
                return Busy(leader, record.host_name.text, 0.0)
            # A caller that waits may learn more; one that does not wait learns only that the host was alive recently.
            never = record.is_no_timeout or view.no_timeout
            if view.changed_at_latest_look or ((not wait or never) and view.state is HostState.LIVE):
                return Busy(leader, record.host_name.text, clock.now() - watch.since)
            shown_s = max(record.io_timeout_s, watch.io_timeout_s)
            dead_s = _bounds(member.timing, shown_s, record, view).dead_s
            left_s = dead_s - (looked_at - watch.since)
            if never:
                left_s = math.inf
        if left_s == math.inf:
            return NeverByTime(leader, record.host_name.text, Generation(record.generation), view.unchanged_s)
        # Strictly beyond the bound, by a look that began after it.
        if left_s < 0:
            return MayTakeOver(waited)
        # What ends the wait for another term is looks, and those of a term of ours that is lost have ended.
        if not wait or (record.generation != term and not member.may_write()):
            return HostUnknown(leader, record.host_name.text, left_s)
        on_wait(Waiting(f"owner {record.host_name} (host_id {owner}) is not known to be dead", left_s))
        await clock.sleep(_POLL_S)
        waited = True
        again = await area.read_leader(member.host_id, member.io_timeout_s)
        if not isinstance(again, Leader):
            return again
        if again != leader:
            return LeaderChanged()


def other_term_left_s(
    member: Membership, host_id: HostId, term: Generation, record: DeltaLease, looked_at: Instant
) -> float:
    """How long a term has to be waited for still, if the host's record, read from `looked_at` on, is of another one; below
    0: it is over; infinite: time will never prove it.
    """
    if record.generation > term:
        return succeeded_left_s(term, record, member.view(host_id), looked_at, member.timing)
    return missed_left_s(member, host_id, term, record, looked_at)


def missed_left_s(
    member: Membership, host_id: HostId, term: Generation, record: DeltaLease, looked_at: Instant
) -> float:
    """How long a term has to be missed still, if the host's record, read from `looked_at` on, is of an older one; below 0:
    it is over; infinite: time will never prove it.
    """
    missed_since = member.missed.since(host_id, term, looked_at)
    view = member.view(host_id)
    if record.is_no_timeout or view.no_timeout:
        return math.inf
    dead_s = _bounds(member.timing, max(record.io_timeout_s, view.io_timeout_s), record, view).dead_s
    if view.generation != record.generation or view.generation_since is None:
        return dead_s
    return dead_s - (looked_at - max(missed_since, view.generation_since))


def _begin_watch(view: HostView, record: DeltaLease, term: Generation, now: Instant) -> _Watch:
    """Count from when our table saw this term's record as it is, or else from now."""
    known = view.generation == term and view.timestamp is not None and view.unchanged_since is not None
    if known and view.timestamp is not None and view.unchanged_since is not None:
        return _Watch(view.timestamp, view.unchanged_since, view.io_timeout_s)
    return _Watch(HostTimestamp(record.timestamp), now, record.io_timeout_s)

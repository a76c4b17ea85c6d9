"""Claiming, renewing and releasing a host id: the delta lease.

After "Light-Weight Leases for Storage-Centric Coordination" (Chockler, Malkhi): one sector per host id, no
ballot, but a wait. A claimant writes its name, waits until every rival that read before that write must
have finished its own write, and reads again. If its own record is still there, all later claimants will see
it.

    claim   read -> [held by another: watch it for its dead bound] -> write -> settle -> read again -> renew
    renew   read -> is it still what we wrote? -> sample the clock -> write
    release write timestamp 0

The generation grows with every claim, and is at least the seconds since 1970: an area that was restored from a snapshot or
made again counts from an older value, and a host id and generation that two hosts have had would name two incarnations
(safety.md A3). A free record proves to everybody that no owner of its term lives. A newer
generation does not: our own claims wait for that proof, but sanlock takes an id of its own name again at once
(`host_status`).

What justifies a write must be fresh. Between reading "this host is dead" and writing our name anything may
happen:

    host A                                       host B
    reads the id unchanged for the dead bound
    ---- paused ----                             claims the id, settles, holds it (generation 5)
    writes its own claim (generation 5 too!)     believes itself the holder until its next renewal

So a claim is written only if the read that justifies it began at most one io_timeout ago, and the settling
time, twice the io_timeout, covers exactly such a read and the write after it.

That a pause came between the look at the clock and the write can be seen only afterwards. So a claim whose
write was not through within the settling time of that read is none, whatever stands on disk: its record may
lie over that of a host that holds the id and has not noticed yet. A host that wants the id then has to watch it
for its dead bound, under another name.

Where leases never expire by time (NO_TIMEOUT, sanlock 4 and later) no time is such a proof: an id that another host has
not given back can't be had.

A record may be marked as dead by an outside authority (DEAD_EXT, `dead_mark`). Its own host ends its term as soon as it
reads that, and writes there no more. The next claim of the id, under whatever name, waits for the dead bound: what still
runs of that term has no other bound than its watchdog.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from holdfast.ondisk.delta import NO_EVENT, DeltaLease, Event
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX, PaddedName
from holdfast.protocol.lockspace_area import Corrupt, LockspaceArea
from holdfast.protocol.ports import Clock
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import (
    Generation,
    HostId,
    Instant,
    IoFailed,
    OnWait,
    Waiting,
    ignore_wait,
    timestamp_of,
)

# A claim that settled longer than our own lease would last (the former holder had a greater io_timeout) is
# made once more: then the former io_timeout is our own. A third time means that storage is too slow to hold
# an id at all.
CLAIMS_MAX = 3
# Reads that came back too late to rest a write on, before the storage is called too slow.
FRESH_READS_MAX = 3


@dataclass(frozen=True, slots=True)
class Claim:
    """A host's wish for a host id. No other host, and no earlier incarnation of this one, may have used the name."""

    host_id: HostId
    host_name: str
    timing: Timing
    only_if_free: bool = False
    """The id was chosen because it was free: a host that has it meanwhile keeps it, dead or alive, as there are others."""
    generation_min: int = 1
    """Seconds since 1970, by this host's clock: no earlier claim on any copy of this area had as much."""
    only_of: str = ""
    """The host name of the record for which the id was chosen: a record of any other host is left to that one, dead or
    alive; empty: every host that has the id is waited for.
    """
    ended_generation: int = 0
    """For an incarnation that is resumed: what `Held.ended_generation` was when it was claimed; 0 if that is not known."""
    next_io_timeout_s: int = 0
    """For an incarnation that is resumed: the io_timeout to which it was being changed, as its record may say. 0: none."""

    def with_io_timeout(self, io_timeout_s: int) -> "Claim":
        return replace(self, timing=replace(self.timing, io_timeout_s=io_timeout_s))


@dataclass(frozen=True, slots=True)
class Held:
    """A host id of ours, as last written. `certain` is False while the last write may or may not be on
    disk. `claim.timing` has the bounds by which this host counts now.
    """

    claim: Claim
    record: DeltaLease
    renewed_at: Instant
    certain: bool = True
    tried_io_timeout_s: int = 0
    """That of a write which may or may not be on disk, if it is another one than the record's; 0: none."""
    tried_timestamp: int = 0
    """The latest of such writes."""
    ended_generation: int = 0
    """Of this host id: the record that was claimed proved every generation up to this one over. One that was never used
    proves nothing, for a lockspace may be made again under running hosts.
    """

    @property
    def generation(self) -> Generation:
        return Generation(self.record.generation)


@dataclass(frozen=True, slots=True)
class HostIdBusy:
    """Another host holds the id, or took it while we waited: `by` is its record."""

    by: DeltaLease


@dataclass(frozen=True, slots=True)
class TooSlow:
    """Storage answers too slowly to hold a lease of this io_timeout."""

    waited_s: float


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease is renewed; `sectors` are those of hosts 1..n as read before, `read_at` our clock before
    that.
    """

    held: Held
    sectors: bytes
    read_at: Instant


@dataclass(frozen=True, slots=True)
class RenewalFailed:
    """Storage failed; try again until the lease fails. `sectors` if at least the read succeeded."""

    held: Held
    failed: IoFailed
    sectors: bytes | None
    read_at: Instant


@dataclass(frozen=True, slots=True)
class NotOurs:
    """Another host has our id. The lease is over."""

    by: DeltaLease


@dataclass(frozen=True, slots=True)
class Diverged:
    """The record is ours, but not what we wrote last: somebody interferes. The lease is over."""

    found: DeltaLease


@dataclass(frozen=True, slots=True)
class MarkedDead:
    """An outside authority has marked our term as dead: others may have taken our leases already. The lease is over, and
    nothing is written that would take the mark away.
    """

    found: DeltaLease

    def __str__(self) -> str:
        host_id, _ = self.found.marked_by
        return (
            f"host_id {host_id} has marked generation {self.found.generation} of this host as dead (DEAD_EXT)"
        )


@dataclass(frozen=True, slots=True)
class TooLate:
    """Our lease had failed before the renewal could be written, so nothing was written. The lease is over."""

    age_s: float


@dataclass(frozen=True, slots=True)
class Released:
    """The id is free."""


@dataclass(frozen=True, slots=True)
class NotReleased:
    """The record stays as it is; others will see this host die. That is always safe."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Read:
    """A record, and our clock from before it was read."""

    record: DeltaLease
    read_at: Instant


@dataclass(frozen=True, slots=True)
class NotResumed:
    """The incarnation that should be resumed is over, or can't be proven to stand."""

    reason: str
    given_back: bool = False
    """This host has freed it in good order: nothing depends on it."""
    age_s: float = 0.0
    """Since its last renewal, if that is why."""


AcquireOutcome = Held | HostIdBusy | Corrupt | TooSlow | IoFailed
RenewOutcome = Renewed | RenewalFailed | NotOurs | Diverged | MarkedDead | Corrupt | TooLate
ReleaseOutcome = Released | NotReleased


async def acquire(
    area: LockspaceArea, clock: Clock, claim: Claim, on_wait: OnWait = ignore_wait
) -> AcquireOutcome:
    """Claim a host id. Takes twice the former holder's io_timeout if it is free, its dead bound if it is
    held.
    """
    begun = clock.now()
    ended: int | None = None
    if busy := area.busy(claim.host_id):
        return busy
    for _ in range(CLAIMS_MAX):
        justified = await _read_claimable(area, clock, claim, on_wait)
        if not isinstance(justified, _Read):
            return justified
        if ended is None:  # the next record that is read is our own
            ended = 0 if justified.record.is_never_used else justified.record.generation
        outcome = await _write_and_settle(area, clock, claim, justified, on_wait)
        if not isinstance(outcome, Held):
            return outcome
        outcome = replace(outcome, ended_generation=ended)
        if clock.now() - outcome.renewed_at >= claim.timing.fail_s:
            # Held, but already too old to be worn: claim again, now that our own io_timeout is on disk.
            continue
        renewed = await renew(area, clock, outcome)
        match renewed:
            case Renewed(held) | RenewalFailed(held):
                return held
            case NotOurs(found) | Diverged(found) | MarkedDead(found):
                return HostIdBusy(found)
            case Corrupt():
                return renewed
            case TooLate():
                continue
    return TooSlow(clock.now() - begun)


async def resume(
    area: LockspaceArea, clock: Clock, claim: Claim, generation: Generation
) -> Held | NotResumed | Corrupt | IoFailed:
    """Go on with a term that an earlier process of this very boot of ours held, and renew it at once.

    Only within one boot: then the timestamp on disk is a reading of our own clock, from before its write, and says
    how old the lease is. The caller knows that the earlier process has ended, with all of its writes.
    """
    if busy := area.busy(claim.host_id):
        return busy
    record = await area.read_record(claim.host_id, claim.timing.io_timeout_s)
    if isinstance(record, IoFailed):
        return record
    if isinstance(record, Malformed):
        return Corrupt(record)
    held = Held(
        claim,
        replace(record, event=NO_EVENT),
        Instant(float(record.timestamp)),
        certain=False,
        ended_generation=claim.ended_generation,
    )
    age_s = clock.now() - held.renewed_at
    if record.generation != generation or not _is_ours(record, held):
        return NotResumed(_whose(record, claim, generation))
    if record.is_free:
        return NotResumed(f"host id {claim.host_id} has been given back", given_back=True)
    if record.io_timeout_s not in (claim.timing.io_timeout_s, claim.next_io_timeout_s or None):
        return NotResumed(f"its record says io_timeout {record.io_timeout_s} s")
    # Others count by the record.
    claim = claim.with_io_timeout(record.io_timeout_s)
    held = replace(held, claim=claim)
    if not 0 <= age_s < claim.timing.fail_s:
        return NotResumed(f"its last renewal is {age_s:.0f} s old", age_s=age_s)
    match await renew(area, clock, held):
        case Renewed(renewed) | RenewalFailed(renewed):
            return renewed
        case MarkedDead() as marked:
            return NotResumed(str(marked))
        case NotOurs(found) | Diverged(found):
            return NotResumed(_whose(found, claim, generation))
        case TooLate(age_s):
            return NotResumed(f"its last renewal is {age_s:.0f} s old")
        case Corrupt() as corrupt:
            return corrupt


async def _read_claimable(
    area: LockspaceArea, clock: Clock, claim: Claim, on_wait: OnWait
) -> _Read | HostIdBusy | Corrupt | TooSlow | IoFailed:
    """Return a fresh record that permits a claim: free, our own name's, or of a host proven dead, or marked as dead for
    as long as it takes to prove that.
    """
    read = await _read_fresh(area, clock, claim)
    if not isinstance(read, _Read) or _may_take_at_once(read.record, claim):
        return read
    first = read.record
    if claim.only_if_free or (first.is_no_timeout and not first.is_marked_dead):
        # Where leases never expire by time, a host id does not either.
        return HostIdBusy(first)
    if claim.only_of and not first.host_name.says(claim.only_of):
        return HostIdBusy(first)  # the lockspace was restored since the id was chosen
    seen_at = clock.now()
    dead_s = claim.timing.of_host(first.io_timeout_s, first.host_name.text).dead_s
    poll_s = claim.timing.renewal_s
    reason = f"host id {claim.host_id} is held by {first.host_name}"
    if first.is_marked_dead:
        reason = (
            f"host id {claim.host_id}: {first.host_name} was marked as dead by host_id {first.marked_by[0]}"
        )
    while True:
        left_s = seen_at + dead_s - clock.now()
        on_wait(Waiting(reason, max(0.0, left_s)))
        await clock.sleep(min(poll_s, left_s) if left_s > 0 else 1)
        looked_at = clock.now()
        read = await _read_fresh(area, clock, claim)
        if not isinstance(read, _Read) or read.record.is_free:
            return read
        if read.record != first:
            return HostIdBusy(read.record)
        # Strictly beyond the bound, by a look that began after it.
        if looked_at - seen_at > dead_s:
            return read


def _may_take_at_once(record: DeltaLease, claim: Claim) -> bool:
    return record.is_free or (record.host_name.says(claim.host_name) and not record.is_marked_dead)


async def _read_fresh(
    area: LockspaceArea, clock: Clock, claim: Claim
) -> _Read | Corrupt | TooSlow | IoFailed:
    """Read the record so quickly that a write may rest upon it."""
    io_timeout_s = claim.timing.io_timeout_s
    begun = clock.now()
    for _ in range(FRESH_READS_MAX):
        read_at = clock.now()
        record = await area.read_record(claim.host_id, io_timeout_s)
        if isinstance(record, Malformed):
            return Corrupt(record)
        if isinstance(record, IoFailed):
            return record
        if fault := record.write_fault():
            return Corrupt(fault)
        if clock.now() - read_at <= io_timeout_s:
            return _Read(record, read_at)
    return TooSlow(clock.now() - begun)


async def _write_and_settle(
    area: LockspaceArea, clock: Clock, claim: Claim, read: _Read, on_wait: OnWait
) -> Held | HostIdBusy | Corrupt | TooSlow | IoFailed:
    """Write our claim over what was read and see whether it stands. The bitmap of the former holder goes."""
    justified = read.record
    written_at = clock.now()
    ours = replace(
        justified.without_mark(),
        owner_id=claim.host_id,
        generation=max(justified.generation + 1, claim.generation_min),
        host_name=PaddedName.of(claim.host_name, HOST_NAME_BYTES_MAX),
        timestamp=timestamp_of(written_at),
        io_timeout_s=claim.timing.io_timeout_s,
    )
    failed = await area.write_sector(claim.host_id, ours.sector(), claim.timing.io_timeout_s)
    if failed is not None:
        return failed
    # A rival settles for twice the former holder's io_timeout at least; only that far may our write be from
    # the read.
    former_settle_s = claim.timing.of_host(justified.io_timeout_s).settle_s
    if (took_s := clock.now() - read.read_at) > former_settle_s:
        return TooSlow(took_s)
    settle_s = max(former_settle_s, claim.timing.settle_s)
    on_wait(Waiting(f"claim on host id {claim.host_id} settles", settle_s, justified.io_timeout_s))
    await clock.sleep(settle_s)
    found = await area.read_record(claim.host_id, claim.timing.io_timeout_s)
    if isinstance(found, Malformed):
        return Corrupt(found)
    if isinstance(found, IoFailed):
        return found
    return Held(claim, ours, written_at) if found == ours else HostIdBusy(found)


async def renew(
    area: LockspaceArea,
    clock: Clock,
    held: Held,
    *,
    event: Event = NO_EVENT,
    notified: Collection[int] = (),
    hosts_watched: int = 0,
    is_over: Callable[[], bool] = lambda: False,
    raised_io_timeout_s: int = 0,
) -> RenewOutcome:
    """Renew once. The one read serves the renewal and, for hosts 1..hosts_watched, the table of hosts.

    `is_over`: asked right before the write, whether this lease has been given up by now, however young it may be.
    `raised_io_timeout_s`: write this greater io_timeout, and count by it from `Renewed` on, unless the timestamp is that of
    the record before, as others may read a record again only when it has changed; 0: the claim's is written.
    """
    claim, timing = held.claim, held.claim.timing
    read_at = clock.now()
    sectors = await area.read_sectors(max(hosts_watched, claim.host_id), timing.io_timeout_s)
    if isinstance(sectors, IoFailed):
        return RenewalFailed(held, sectors, None, read_at)
    found = area.decode(claim.host_id, sectors[area.geometry.delta_offset_bytes(claim.host_id) :])
    if isinstance(found, Malformed):
        return Corrupt(found)
    if found.is_marked_dead and _is_about(found, held):
        return MarkedDead(found)
    if not _is_ours(found, held):
        return NotOurs(found)
    if found != _as_expected(held, found):
        return Diverged(found)
    begun_at = clock.now()
    if begun_at - held.renewed_at >= timing.fail_s or is_over():
        return TooLate(begun_at - held.renewed_at)
    timestamp, io_timeout_s = timestamp_of(begun_at), timing.io_timeout_s
    if raised_io_timeout_s and timestamp > max(held.record.timestamp, held.tried_timestamp):
        io_timeout_s = raised_io_timeout_s
    record = replace(held.record, timestamp=timestamp, event=event, io_timeout_s=io_timeout_s)
    others = [host_id for host_id in notified if host_id != claim.host_id]
    failed = await area.write_sector(claim.host_id, record.sector(others), timing.renewal_write_timeout_s)
    if failed is not None:
        tried_s = io_timeout_s if io_timeout_s != held.record.io_timeout_s else held.tried_io_timeout_s
        uncertain = replace(held, certain=False, tried_io_timeout_s=tried_s, tried_timestamp=timestamp)
        return RenewalFailed(uncertain, failed, sectors, read_at)
    counted_by = claim.with_io_timeout(io_timeout_s)
    renewed = Held(counted_by, record, begun_at, ended_generation=held.ended_generation)
    return Renewed(renewed, sectors, read_at)


def _is_about(mark: DeltaLease, held: Held) -> bool:
    """Whether the mark is about our term: sanlock also lets a greater generation be named, and writes that."""
    return mark.generation >= held.record.generation and mark.host_name.says(held.claim.host_name)


def _as_expected(held: Held, found: DeltaLease) -> DeltaLease:
    """What our record has to be, or one like it while our last write may or may not be on disk: then it may differ in what
    a renewal changes, and in nothing else.
    """
    if held.certain:
        return held.record
    io_timeout_s = held.record.io_timeout_s
    if held.tried_io_timeout_s and found.io_timeout_s == held.tried_io_timeout_s:
        io_timeout_s = found.io_timeout_s
    return replace(held.record, timestamp=found.timestamp, event=found.event, io_timeout_s=io_timeout_s)


def _is_ours(found: DeltaLease, held: Held) -> bool:
    ours = held.record
    return (found.owner_id, found.generation) == (ours.owner_id, ours.generation) and found.host_name.says(
        held.claim.host_name
    )


def _whose(found: DeltaLease, claim: Claim, generation: Generation) -> str:
    """Whose the host id is by now, as a log says it, if it is no longer that generation of the claim's host."""
    if found.is_never_used:
        return f"no host has had host id {claim.host_id} in this lockspace: it was initialized again, or restored"
    if not found.host_name.says(claim.host_name):
        whose = f"host {found.host_name}'s" if found.host_name.text else "that of a host without a name"
        return f"host id {claim.host_id} is {whose} by now"
    return (
        f"the record of host id {claim.host_id} is of generation {found.generation} by now, not {generation}"
    )


async def release(area: LockspaceArea, clock: Clock, held: Held) -> ReleaseOutcome:
    """Free the id, after the last user of the lockspace is gone. Writes only over what is certainly ours."""
    timing = held.claim.timing
    if not held.certain:
        return NotReleased("the last renewal may or may not be on disk")
    found = await area.read_record(held.claim.host_id, timing.io_timeout_s)
    if isinstance(found, IoFailed):
        return NotReleased(f"reading failed with errno {found.errno}")
    if isinstance(found, Malformed):
        return NotReleased(str(found))
    if found != held.record:
        return NotReleased("the record is not what was written last")
    if clock.now() - held.renewed_at >= timing.fail_s:
        return NotReleased("the lease has failed; a failed host writes no more")
    sector = replace(held.record, timestamp=0).sector()
    failed = await area.write_sector(held.claim.host_id, sector, timing.io_timeout_s)
    return NotReleased(f"writing failed with errno {failed.errno}") if failed else Released()

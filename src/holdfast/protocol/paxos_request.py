"""Asking the holder of a lease to give it up, and what a holder makes of such a request.

A requester writes the version it wants, which must be newer than the present one, into the lease's request
record and sets the holder's bit in its own delta lease; the holder reads the record when it sees the bit.
Nothing is acknowledged, and no host clears the record: the version distinguishes a request from an old one.

    requester                                   holder (lver 7)
    request lver 8, sets the holder's bit
                                                sees the bit: request for 8 > 7: acts, releases
    acquires: lver 8 ... releases
                                                acquires again: lver 9
                                                sees some bit: request for 8 <= 9: stale, ignored

A shared hold has no version of its own (others move the leader on while it stands), so a record can't be
distinguished from a stale one: requests to sharers are ignored.
"""

from dataclasses import dataclass
from enum import Enum

from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.record_layout import U64_MAX
from holdfast.ondisk.request import FORCE_MODE_FORCE, FORCE_MODE_GRACEFUL, NO_REQUEST, Request
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_outcomes import LockspaceLost
from holdfast.protocol.paxos_release import Lease, Mode
from holdfast.protocol.types import HostId, IoFailed


class Force(Enum):
    """How hard the holder shall be asked."""

    GRACEFUL = FORCE_MODE_GRACEFUL
    FORCE = FORCE_MODE_FORCE


@dataclass(frozen=True, slots=True)
class Requested:
    """Written. Now the bit of `notify` has to be set in our delta lease, for a while."""

    lver: int
    notify: HostId


@dataclass(frozen=True, slots=True)
class NobodyHolds:
    """The lease is free: nothing was written, and no host needs a message."""


@dataclass(frozen=True, slots=True)
class NotNewer:
    """The version asked for is not newer than the present one."""

    lver: int


@dataclass(frozen=True, slots=True)
class NewerRequested:
    """Somebody else has requested a newer version still."""

    lver: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """No request stands any more."""


RequestOutcome = Requested | NobodyHolds | NotNewer | NewerRequested | LockspaceLost | Malformed | IoFailed


async def request(
    area: LeaseArea, member: Membership, force: Force, lver: int | None = None
) -> RequestOutcome:
    """Request version `lver`, the next one when not given."""
    leader = await area.read_leader(member.host_id, member.io_timeout_s)
    if not isinstance(leader, Leader):
        return leader
    if leader.is_free:
        return NobodyHolds()
    wanted = leader.lver + 1 if lver is None else lver
    if not leader.lver < wanted <= U64_MAX:
        return NotNewer(leader.lver)
    present = await area.read_request(member.io_timeout_s)
    if not isinstance(present, Request):
        return present
    # The same version may be requested by several hosts.
    if present.lver > wanted:
        return NewerRequested(present.lver)
    if not member.may_write():
        return LockspaceLost()
    written = Request(lver=wanted, force_mode=force.value)
    failed = await area.write_request(written, member.io_timeout_s)
    return failed or Requested(wanted, HostId(leader.owner_id))


async def clear(area: LeaseArea, member: Membership) -> Cleared | LockspaceLost | IoFailed:
    """Take any request back."""
    if not member.may_write():
        return LockspaceLost()
    return await area.write_request(NO_REQUEST, member.io_timeout_s) or Cleared()


def asked_of_holder(found: Request, held: Lease) -> Force | None:
    """What a request record asks of a host that holds the lease; None if nothing, or nothing valid any
    more.
    """
    if held.mode is Mode.SHARED or found.lver <= held.lver:
        return None
    try:
        return Force(found.force_mode)
    except ValueError:
        return None

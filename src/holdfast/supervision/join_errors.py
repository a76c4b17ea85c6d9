"""Messages for why this host is not in a lockspace and what to do about it: names first, then numbers."""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import dataclass
from typing import assert_never

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.delta_lease import Claim, HostIdBusy, TooSlow
from holdfast.protocol.lockspace_area import Corrupt
from holdfast.protocol.types import IoFailed
from holdfast.supervision.host_names import node_of


class Hindrance(enum.Enum):
    """What kept this host out that is neither a record nor a failed request."""

    WATCHDOG = "the watchdog does not work"
    HOST_ID = "the host id is out of the lockspace's range"
    BROKEN_OFF = "it was left before it was joined"


@dataclass(frozen=True, slots=True)
class NotOpened:
    """Its storage can't be opened."""

    errno: int


@dataclass(frozen=True, slots=True)
class NotJoined:
    """The lockspace was not joined. `holder` is the record of the host that has our id, if that is why. `is_over`: no VM of
    this host depends on the incarnation that was to be resumed. `cause`: for callers that make a code of it; None if only
    words say it, or `holder` does.
    """

    reason: str
    holder: DeltaLease | None = None
    is_over: bool = False
    cause: Malformed | IoFailed | NotOpened | Hindrance | None = None


def _sectors(number: int) -> str:
    """Explains a refused request of too small a size: the lockspace was copied to a device with larger sectors."""
    if number != errno.EINVAL:
        return ""
    return (
        ". Its sectors may be larger than the lockspace's: a device with 4096-byte sectors ('blockdev --getss DEVICE') takes"
        " no lockspace of 512-byte ones; make one there with 'holdfast lockspace init --sector 4096', when no host uses it"
    )


def through_page_cache(path: str) -> str:
    """Message for storage on which reads may come from this host's page cache, so that others' renewals seem to stop."""
    return (
        f"storage of {path} refuses O_DIRECT, so what other hosts write there may be read from this host's page cache: put "
        "leases on storage that takes O_DIRECT, or say page_cache = true in the [backend] table if no other host uses it"
    )


def refused(
    lockspace: str,
    claim: Claim,
    outcome: HostIdBusy | Corrupt | TooSlow | IoFailed,
    *,
    is_found: bool = False,
) -> NotJoined:
    """The refusal for a claim that failed. `is_found`: host_id is "auto", so another id can be found."""
    match outcome:
        case HostIdBusy(by) if by.is_marked_dead:
            return NotJoined(
                f"host id {claim.host_id} of lockspace {lockspace} was marked as dead (DEAD_EXT) by host_id "
                f"{by.marked_by[0]}: its claim begins again",
                by,
            )
        case HostIdBusy(by) if by.is_no_timeout:
            return NotJoined(
                f"host id {claim.host_id} of lockspace {lockspace} is host {by.host_name}'s (generation {by.generation}), "
                "and host ids of this lockspace never expire by time (NO_TIMEOUT): give this host "
                f"({claim.host_name}) another host id (host_id = N in its [backend] table), or say on a host that is in it "
                "that this one is off (holdfast host fenced)",
                by,
            )
        case HostIdBusy(by):
            return NotJoined(
                f"host id {claim.host_id} of lockspace {lockspace} is held by host {by.host_name} (generation "
                f"{by.generation}): {_way_out(claim, by, is_found)}",
                by,
            )
        case Corrupt(found):
            fix = f"; {found.fix}" if found.fix else ""
            return NotJoined(f"lockspace {lockspace} cannot be used: {found}{fix}", cause=found)
        case TooSlow(waited_s):
            return NotJoined(
                f"storage of lockspace {lockspace} is too slow for io_timeout {claim.timing.io_timeout_s} s "
                f"(tried for {waited_s:.0f} s): use a greater io_timeout on all hosts"
            )
        case IoFailed(number, in_flight):
            late = ", and a write is still in flight" if in_flight else ""
            return NotJoined(
                f"storage of lockspace {lockspace} failed: {os.strerror(number)}{late}{_sectors(number)}",
                cause=outcome,
            )
        case _:
            assert_never(outcome)


def _way_out(claim: Claim, by: DeltaLease, is_found: bool) -> str:
    """What the daemon or the operator does when another host has the wanted id."""
    namesake = node_of(by.host_name.text) == node_of(claim.host_name) != ""
    if not is_found:
        twin = ", and each host a name of its own: both are called the same" if namesake else ""
        return f'give this host ({claim.host_name}) another host id (host_id = N, or "auto"){twin}'
    if claim.only_if_free:
        return "it was quicker; this host finds another one"
    cause = (
        "it has the same name as this host, or is its clone: give each host a name of its own (hostnamectl)"
        if namesake
        else "it has this host's former id: it may be its clone, with a copy of its state_dir"
    )
    return f"this host ({claim.host_name}) finds another one if that host goes on renewing it; {cause}"

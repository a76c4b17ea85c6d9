"""Which of sanlock's codes a refusal of a lease is (sanlock-socket.md 2.1, sanlock-disk.md 4): one table, no decisions."""

from __future__ import annotations

import errno
import math

from holdfast.errors import (
    HoldfastError,
    LeaseUnusable,
    LockspaceAbsent,
    OwnerGone,
    ResourceBusy,
    ResourceNotLocked,
    StorageFailed,
)
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.paxos_lease import SharedBy
from holdfast.protocol.paxos_outcomes import (
    AlreadyShared,
    ClearedByAnother,
    Contended,
    LeaderBehind,
    LockspaceLost,
    Refusal,
    WrongVersion,
)
from holdfast.protocol.paxos_request import (
    Cleared,
    NewerRequested,
    NobodyHolds,
    NotNewer,
    Requested,
    RequestOutcome,
)
from holdfast.protocol.takeover import Busy, FormerUser, HostUnknown, NeverByTime
from holdfast.protocol.types import IoFailed
from holdfast.wire.sanlock.result import Result

_OF_LEADER = {
    Reason.LENGTH: Result.EMSGSIZE,
    Reason.MAGIC: Result.LEADER_MAGIC,
    Reason.CLEARED: Result.LEADER_MAGIC,
    Reason.VERSION: Result.LEADER_VERSION,
    Reason.NEWER: Result.LEADER_VERSION,
    Reason.CAW: Result.WRONG_CAW,
    Reason.SECTOR_SIZE: Result.LEADER_SECTORSIZE,
    Reason.GEOMETRY: Result.LEADER_SECTORSIZE,
    Reason.LOCKSPACE_NAME: Result.LEADER_LOCKSPACE,
    Reason.RESOURCE_NAME: Result.LEADER_RESOURCE,
    Reason.HOST_ID: Result.LEADER_NUMHOSTS,
    Reason.CHECKSUM: Result.LEADER_CHECKSUM,
    Reason.RANGE: Result.LEADER_CHECKSUM,
}
_OF_REQUEST = {
    Reason.MAGIC: Result.REQUEST_MAGIC,
    Reason.VERSION: Result.REQUEST_VERSION,
    Reason.NEWER: Result.REQUEST_VERSION,
}
_OF_OTHERS = {"leader": _OF_LEADER, "request record": _OF_REQUEST}
_OF_HOST_BLOCK = {Reason.CHECKSUM: Result.DBLOCK_CHECKSUM}
_OF_ERRNO = {
    errno.ENOENT: Result.ENOENT,
    errno.EINVAL: Result.EINVAL,
    errno.EMSGSIZE: Result.EMSGSIZE,
    errno.ENOSPC: Result.ENOSPC,
    errno.ETIMEDOUT: Result.AIO_TIMEOUT,
    errno.EAGAIN: Result.EAGAIN,
    errno.EBUSY: Result.EAGAIN,
    errno.ESTALE: Result.ENOSPC,
}


def of_errno(number: int) -> Result:
    """A failed request to storage."""
    return _OF_ERRNO.get(number, Result.EIO)


def of_malformed(fault: Malformed) -> Result:
    """What stands where a record should be."""
    return _OF_OTHERS.get(fault.record, _OF_HOST_BLOCK).get(fault.reason, Result.ERROR)


def of_refusal(refusal: Refusal | SharedBy, *, shared: bool = False) -> Result:
    """What the protocol has found; `shared`: it was asked for a shared lease."""
    match refusal:
        case Busy(leader):
            moment = shared and leader.short_hold
            return Result.ACQUIRE_SHRETRY if moment else Result.ACQUIRE_IDLIVE
        case HostUnknown():
            return Result.ACQUIRE_OWNED_RETRY
        case FormerUser(_, dead_in_s):
            return Result.ACQUIRE_OWNED_NO_TIMEOUT if dead_in_s == math.inf else Result.ACQUIRE_OWNED_RETRY
        case NeverByTime():
            return Result.ACQUIRE_OWNED_NO_TIMEOUT
        case SharedBy():
            return Result.EAGAIN
        case WrongVersion():
            return Result.ACQUIRE_LVER
        case Contended() | ClearedByAnother():
            return Result.ACQUIRE_OTHER
        case LeaderBehind():
            return Result.DBLOCK_LVER
        case LockspaceLost():
            return Result.ENOSPC
        case AlreadyShared():
            return Result.EEXIST
        case Malformed():
            return of_malformed(refusal)
        case IoFailed(number):
            return of_errno(number)


def of_error(error: HoldfastError, *, shared: bool = False) -> Result:
    """What the manager has raised for an ACQUIRE, a CONVERT or a REQUEST."""
    match error:
        case ResourceBusy(cause=None):
            return Result.EEXIST  # on this host, whatever holds it
        case ResourceBusy(cause=cause):
            return _of_cause(cause, shared)
        case LeaseUnusable(facts={"cause": cause}) if cause is not None:
            return _of_cause(cause, shared)
        case LeaseUnusable():
            return Result.EAGAIN  # this host is still giving it up
        case StorageFailed(errno=number):
            return of_errno(number)
        case LockspaceAbsent():
            return Result.ENOSPC
        case OwnerGone():
            return Result.ENOTTY
        case ResourceNotLocked():
            return Result.ENOENT
        case _:
            return Result.ERROR


def _of_cause(cause: object, shared: bool) -> Result:
    return of_refusal(cause, shared=shared) if isinstance(cause, Refusal | SharedBy) else Result.ERROR


def of_release(lver: int, found_instead: Leader | None, *, has_codes_of_5: bool) -> Result:
    """What has become of a RELEASE; `found_instead`: the leader that others have written meanwhile. `has_codes_of_5`:
    sanlock 5 has other numbers for these two codes (newer-sanlock.md 2).
    """
    if found_instead is None:
        return Result.OK
    if found_instead.lver != lver:
        return Result.RELEASE_LVER if has_codes_of_5 else Result.RELEASE_LVER_3
    return Result.RELEASE_OWNER if has_codes_of_5 else Result.RELEASE_OWNER_3


def of_request(outcome: RequestOutcome | Cleared) -> Result:
    """What has become of a REQUEST."""
    match outcome:
        case Requested() | NobodyHolds() | Cleared():
            return Result.OK
        case NotNewer():
            return Result.REQUEST_OLD
        case NewerRequested():
            return Result.REQUEST_LVER
        case LockspaceLost():
            return Result.ENOSPC
        case Malformed():
            return of_malformed(outcome)
        case IoFailed(number):
            return of_errno(number)


def may_end_by_time(cause: object) -> float | None:
    """How long the owner that stands in the way has to be waited for, if it is dead; None if waiting proves nothing."""
    match cause:
        case HostUnknown(dead_in_s=left_s):
            return left_s
        case FormerUser(dead_in_s=left_s) if left_s < math.inf:
            return left_s
        case _:
            return None

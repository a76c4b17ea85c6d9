"""Which of sanlock's codes a lockspace has that was not joined or left (sanlock-socket.md 2.1, 2.6): tables only."""

from __future__ import annotations

import errno

from holdfast.frontends.sanlock.lease_results import of_errno
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.types import IoFailed
from holdfast.supervision.join_errors import Hindrance, NotJoined, NotOpened
from holdfast.supervision.named_lockspace import Removal, Standing
from holdfast.wire.sanlock.result import Result

_OF_RECORD = {
    Reason.LENGTH: Result.EMSGSIZE,
    Reason.MAGIC: Result.LEADER_MAGIC,
    Reason.CLEARED: Result.LEADER_MAGIC,
    Reason.VERSION: Result.LEADER_VERSION,
    Reason.NEWER: Result.LEADER_VERSION,
    Reason.CAW: Result.WRONG_CAW,
    Reason.SECTOR_SIZE: Result.LEADER_SECTORSIZE,
    Reason.GEOMETRY: Result.ADDLS_SIZES,
    Reason.LOCKSPACE_NAME: Result.LEADER_LOCKSPACE,
    Reason.HOST_ID: Result.ADDLS_INVALID_HOSTID,
    Reason.CHECKSUM: Result.LEADER_CHECKSUM,
    Reason.RANGE: Result.LEADER_CHECKSUM,
}
_OF_HINDRANCE = {
    Hindrance.WATCHDOG: Result.WD_ERROR,
    Hindrance.HOST_ID: Result.ADDLS_INVALID_HOSTID,
    Hindrance.BROKEN_OFF: Result.FAILED,
}
_OF_ADD = {
    Standing.JOINED: Result.EEXIST,
    Standing.ADDING: Result.EINPROGRESS,
    Standing.REMOVING: Result.EAGAIN,
    Standing.OTHER: Result.EINVAL,
}
_OF_INQUIRY = {
    Standing.JOINED: Result.OK,
    Standing.ADDING: Result.EINPROGRESS,
    Standing.REMOVING: Result.EINPROGRESS,
}
_OF_REMOVAL = {
    Removal.DONE: Result.OK,
    Removal.ABSENT: Result.ENOENT,
    Removal.REMOVING: Result.EINPROGRESS,
    Removal.BUSY: Result.EBUSY,
}


def of_record(fault: Malformed) -> Result:
    """What stands where a host's record of a lockspace should be."""
    return _OF_RECORD.get(fault.reason, Result.ERROR)


def of_not_joined(failure: NotJoined) -> Result:
    """Why an ADD_LOCKSPACE failed."""
    if failure.holder is not None:
        return Result.HOSTID_BUSY
    match failure.cause:
        case Malformed() as fault:
            return of_record(fault)
        case NotOpened() | IoFailed(errno.EMSGSIZE):
            return Result.ENODEV  # can't be opened, or is empty
        case IoFailed(number):
            return of_errno(number)
        case Hindrance() as hindrance:
            return _OF_HINDRANCE[hindrance]
        case None:
            return Result.ERROR


def of_add(standing: Standing) -> Result:
    """What was there before an ADD_LOCKSPACE, so that nothing was tried; never ABSENT."""
    return _OF_ADD[standing]


def of_inquiry(standing: Standing) -> Result:
    """INQ_LOCKSPACE's."""
    return _OF_INQUIRY.get(standing, Result.ENOENT)


def of_removal(removal: Removal) -> Result:
    """REM_LOCKSPACE's."""
    return _OF_REMOVAL[removal]

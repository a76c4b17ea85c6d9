"""Result codes: a reply's `data` (sanlock-socket.md 2.1, newer-sanlock.md 2).

0 is success, -1 to -199 are negative errno values, -200 and below are sanlock's own. A few commands answer with a
positive number.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class Result(IntEnum):
    """A code and what it means to a client."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        result = int.__new__(cls, code)
        result._value_ = code
        result.meaning = meaning
        return result

    OK = 0, "success"
    FAILED = -1, "not held; or a lockspace's join was aborted"
    ENOENT = -2, "no such lockspace, resource, path or index entry"
    ESRCH = -3, "no registered client has this pid"
    EIO = -5, "the storage failed"
    E2BIG = -7, "more resources than one call may have, or a value block of more bytes than a sector"
    EAGAIN = -11, "the lockspace or resource is on its way out, held shared by living hosts, or not read yet"
    ENOMEM = -12, "SET_LVB with a length below that of its resource"
    EBUSY = -16, "the client is busy, dying or not registered; or what should be removed is in use"
    EEXIST = -17, "the lockspace is joined already, or this host holds the resource"
    ENODEV = -19, "the lockspace's path can't be opened"
    EINVAL = -22, "an argument is wrong, or contradicts what is there"
    ENOTTY = -25, "acquired, but the client ended meanwhile"
    ENOSPC = -28, "the lockspace is not joined, or is failing; or a write went beyond the end of a device"
    ERANGE = -34, "a resource has no disks, or more than 4"
    ENOCSI = -50, "no event channel is left"
    ELIBSCN = -81, "a lease in the state string has a space in its path"
    EMSGSIZE = -90, "a read reached the end of a file or device"
    ENOTCONN = -107, "the body is shorter than its command needs"
    EALREADY = -114, "the lease has this mode already"
    EINPROGRESS = -115, "the lockspace is being added or removed"
    ESTALE = -116, "the client ended while its command waited"
    EUCLEAN = -117, "an orphan has this lease, and was not asked for or has the other mode"
    ERROR = -201, "error"
    AIO_TIMEOUT = -202, "I/O timeout"
    WD_ERROR = -203, "the watchdog daemon can't be reached"
    VERSION_INCOMPAT = -204, "the version of the record does not have this"
    DBLOCK_READ = -210, "a host's block can't be read"
    DBLOCK_WRITE = -211, "a host's block can't be written"
    DBLOCK_LVER = -212, "a host's block is of a later version of the lease"
    DBLOCK_MBAL = -213, "another host's ballot is higher"
    DBLOCK_CHECKSUM = -214, "the checksum of a host's block does not match"
    LEADER_READ = -220, "the leader record can't be read"
    LEADER_WRITE = -221, "the leader record can't be written"
    LEADER_DIFF = -222, "the leader records of several disks differ"
    LEADER_MAGIC = -223, "there is no lease: another magic number"
    LEADER_VERSION = -224, "the lease has another version"
    LEADER_SECTORSIZE = -225, "the lease has another sector size"
    LEADER_LOCKSPACE = -226, "the lease has another lockspace's name"
    LEADER_RESOURCE = -227, "the lease has another resource's name"
    LEADER_NUMHOSTS = -228, "the lease has no room for this host id"
    LEADER_CHECKSUM = -229, "the checksum of the leader record does not match"
    ADDLS_SIZES = -230, "the lockspace's sizes are not possible"
    ADDLS_INVALID_HOSTID = -231, "the host id is out of range"
    ACQUIRE_LVER = -240, "the lease has another version number than was asked for"
    ACQUIRE_LOCKSPACE = -241, "another lockspace than the joined one"
    ACQUIRE_IDDISK = -242, "another disk than the joined lockspace's"
    ACQUIRE_IDLIVE = -243, "a living host holds the lease"
    ACQUIRE_OWNED = -244, "another host holds the lease"
    ACQUIRE_OTHER = -245, "another host won the ballot"
    ACQUIRE_SHRETRY = -246, "shared holders kept the lease busy until the last attempt"
    ACQUIRE_OWNED_RETRY = -247, "the owner may be dead, and the call was not to wait"
    ACQUIRE_OWNER_GEN_REVERTED = -248, "the owner's generation went back"
    ACQUIRE_OWNED_NO_TIMEOUT = -249, "the owner is silent, and its lease never expires by time"
    RELEASE_LVER_3 = -250, "sanlock 3: the lease had another version number at its release"
    RELEASE_OWNER_3 = -251, "sanlock 3: the lease had another owner at its release"
    RELEASE_LVER = -252, "sanlock 5: the lease had another version number at its release"
    RELEASE_OWNER = -253, "sanlock 5: the lease had another owner at its release"
    RENEW_OWNER = -260, "another host has the host id"
    RENEW_DIFF = -261, "the host id's record was changed"
    HOSTID_BUSY = -262, "another host uses the host id"
    RENEW_DEAD_EXT = -263, "this host was marked as dead"
    REQUEST_MAGIC = -270, "there is no request record: another magic number"
    REQUEST_VERSION = -271, "the request record has another version"
    REQUEST_OLD = -272, "the lease has reached the version number that the request wants"
    REQUEST_LVER = -273, "a later version number is requested already"
    RINDEX_MAGIC = -274, "there is no index: another magic number"
    RINDEX_VERSION = -275, "the index has another version"
    RINDEX_LOCKSPACE = -276, "the index is another lockspace's"
    RINDEX_OFFSET = -277, "the index has another offset"
    RINDEX_DIFF = -278, "name and offset are of two entries"
    WRONG_GENERATION = -280, "the host has a later generation"
    WRONG_CAW = -281, "the record and the request differ on COMPARE AND WRITE"
    CAW_CONFIG = -282, "COMPARE AND WRITE is not allowed here"
    CAW_OPEN = -283, "the device for COMPARE AND WRITE can't be opened"
    CAW_IOCTL = -284, "COMPARE AND WRITE can't be sent"
    CAW_MISCOMPARE = -285, "another host's COMPARE AND WRITE was first"
    CAW_ERROR = -286, "COMPARE AND WRITE failed"
    CAW_IOTYPE = -287, "COMPARE AND WRITE answered with another status"
    CAW_ILLEGAL = -288, "the device has no COMPARE AND WRITE"


_BY_CODE = {result.value: result for result in Result}


def described(code: int) -> str:
    """A code for a log or a test's failure: number, name and meaning."""
    result = _BY_CODE.get(code)
    return str(code) if result is None else f"{code} {result.name}: {result.meaning}"

"""Storage of leases that fails or is unusable, as the manager's refusals."""

from __future__ import annotations

import errno
import os

from holdfast.backends.paxos.lease_store import Found, StorageFailed, Unusable
from holdfast.errors import LeaseUnusable
from holdfast.model import Resource
from holdfast.protocol import types
from holdfast.system.files.ofd_lock import IoFailed

_MAKE_ROOM = "make room for a new lease, or have 'holdfast lease gc' take out leases that nobody holds"


def io_failed(what: str, place: str, failed: types.IoFailed) -> IoFailed:
    return IoFailed(what, place, failed.errno)


def found_or_refused(resource: Resource, found: Found | Unusable | StorageFailed) -> Found | IoFailed:
    """Converts the result of finding a lease; raises `LeaseUnusable`."""
    match found:
        case Found():
            return found
        case Unusable(place, reason, cause):
            raise LeaseUnusable(name=resource.name, place=place, reason=reason, cause=cause)
        case StorageFailed(place, failed) if failed.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LeaseUnusable(
                name=resource.name, place=place, reason=f"{os.strerror(failed.errno)}: {_MAKE_ROOM}"
            )
        case StorageFailed(place, failed):
            return io_failed("Unable to open lease", place, failed)

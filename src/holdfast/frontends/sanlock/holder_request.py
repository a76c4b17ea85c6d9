"""REQUEST: another host asks the holder of a lease to give it up (sanlock-socket.md 2.7, sanlock-disk.md 4.9)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.backends.paxos.area_store import Area
from holdfast.errors import HoldfastError
from holdfast.frontends.sanlock.lease_results import of_error, of_request
from holdfast.protocol.paxos_request import Force, Requested
from holdfast.protocol.types import HostId
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import ForceMode, RequestFlag
from holdfast.wire.sanlock.result import Result

log = logging.getLogger(__name__)


async def ask_holder(
    backend: AreaBackend, request: r.Request, notify: Callable[[str, HostId], None]
) -> Result:
    """Write the request record of a lease on one disk; `notify` sets the bit of the host that is to read it."""
    resource = request.resource
    force = None
    if request.force_mode != ForceMode.NONE or resource.lver:
        if request.force_mode not in (ForceMode.FORCE, ForceMode.GRACEFUL):
            return Result.EINVAL
        force = Force.FORCE if request.force_mode == ForceMode.FORCE else Force.GRACEFUL
    disk = resource.disks[0]
    lver = None if request.flags & RequestFlag.NEXT_LVER else resource.lver
    try:
        outcome = await backend.ask_holder(
            resource.name.text, Area(disk.path, disk.offset_bytes), force, lver
        )
    except HoldfastError as error:
        log.warning("refused REQUEST for %s: %s", resource.name, error)
        return of_error(error)
    if isinstance(outcome, Requested):
        notify(resource.lockspace.text, outcome.notify)
    return of_request(outcome)

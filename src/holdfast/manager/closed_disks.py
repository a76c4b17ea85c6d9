"""Waits until the lock of an ended owner may be released: no descendant lives, and no process has its disk open.

An unreadable process is no proof.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Owner
from holdfast.system.clock import Clock
from holdfast.system.files.ofd_lock import FileKey
from holdfast.system.files.open_files import OpenFiles

log = logging.getLogger(__name__)

CLOSED_CHECK_S = 1.0
"""How often the disks of such an owner are searched among open files: a scan takes some milliseconds per hundred
processes.
"""
CLOSED_CHECK_PAUSE = 20
"""Ratio of the pause after a scan to the scan, which limits the load on a host with many processes."""

CLOSED_CHECK_S_MAX = 15.0
"""The longest pause: a scan on a loaded host takes seconds, and the disk may be closed right after it."""


async def closed(
    owner: Owner, lock: HostLock, *, open_files: OpenFiles, clock: Clock, is_closing: Callable[[], bool]
) -> None:
    """Return when none of its family lives and no process has the lock's disk open, or when the daemon ends."""
    said, keys = "", [FileKey(*key) for key in lock.keys]
    while not is_closing():
        family = owner.family.members() if owner.family is not None else ()
        took_s = 0.0
        if family == ():
            begun = clock.now()
            users = await open_files.users(keys)
            if users.none:
                return
            took_s, why = clock.now() - begun, str(users)
        else:  # a check without a scan
            why = f"what it started, pid {', '.join(map(str, family or ('unknown',)))}"
        if why != said:
            said = why
            log.warning("%s ended, but %s is in use by %s: its lock stays", owner, lock.path, said)
        await clock.sleep(min(max(CLOSED_CHECK_S, CLOSED_CHECK_PAUSE * took_s), CLOSED_CHECK_S_MAX))

"""When a lock may end whose owner ended before its descendants: none of them lives, and no process has its disk open.

What can't be read is no proof.
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
"""How often the disks of such an owner are looked for among open files: a scan takes some milliseconds per hundred
processes.
"""
CLOSED_CHECK_PAUSE = 20
"""A scan is followed by a pause so many times as long: a host with many processes has better things to do."""

CLOSED_CHECK_S_MAX = 15.0
"""Longer no pause is: a scan on a loaded host takes seconds, and the disk may be closed right behind it."""


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
        else:  # which is asked without a scan
            why = f"what it started, pid {', '.join(map(str, family or ('unknown',)))}"
        if why != said:
            said = why
            log.warning("%s ended, but %s is in use by %s: its lock stays", owner, lock.path, said)
        await clock.sleep(min(max(CLOSED_CHECK_S, CLOSED_CHECK_PAUSE * took_s), CLOSED_CHECK_S_MAX))

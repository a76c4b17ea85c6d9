"""Best effort of a program that must act in time: locked memory, and priority for the threads that renew leases.

Renewing late is safe and costly (VMs are stopped), so these are no conditions: what the kernel does not
permit is logged once, and the daemon runs without it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource

log = logging.getLogger(__name__)

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
PRIORITY = 1
"""The least real-time priority: before every ordinary thread, behind whatever an admin made urgent."""

_logged: set[str] = set()


def lock_memory() -> bool:
    """Keep every page that is touched in memory: a renewal must not wait for a page on storage that hangs."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Only what is touched: all of it would be hundreds of megabytes of libraries that nobody calls.
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        return True
    why = os.strerror(ctypes.get_errno())
    _log_once(
        f"memory can't be locked: {why} ({limit_words(resource.RLIMIT_MEMLOCK, 'LimitMEMLOCK=infinity')})"
    )
    return False


def prepare_thread() -> None:
    """Called on a thread that renews or measures: it goes before others when two want the processor."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except OSError as e:
        limit = limit_words(resource.RLIMIT_RTPRIO, f"LimitRTPRIO={PRIORITY}")
        _log_once(f"no real-time priority for the threads that keep leases: {e.strerror} ({limit})")


def limit_words(number: int, wanted: str) -> str:
    """The limit in force, and what the unit has to say: a container or sandbox around it may allow less."""
    soft, _ = resource.getrlimit(number)
    in_force = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    return f"the limit in force is {in_force}; the unit needs {wanted}, and so does what it runs in"


def _log_once(text: str) -> None:
    if text not in _logged:
        _logged.add(text)
        log.warning("%s", text)

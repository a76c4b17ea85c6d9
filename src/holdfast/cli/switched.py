"""After a live switch: whether holdfastd has what virtlockd had."""

from __future__ import annotations

import time
from collections.abc import Callable

from holdfast.control.api import HolderInfo
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.switch.place import Result

SERVES_S = 60.0
PAUSE_S = 0.05


def lacking(socket: str, result: Result, has_ended: Callable[[], bool] = lambda: False) -> list[str]:
    """What holdfastd does not have as virtlockd had it, a line for each lock; waits until it serves, or has ended. Raises
    `DaemonUnreachable`.
    """
    held = {each.path: each for each in _locks(socket, has_ended)}
    found = []
    for lock in result.locks:
        known = held.get(lock.resource)
        if lock.mode != lock.wanted:
            found.append(str(lock))
        elif known is None:
            found.append(f"{lock.users}: {lock.resource} is not known to holdfastd; it was released, or lost")
        elif not known.held:
            found.append(f"{lock.users}: {lock.resource}: {known.lost_reason}")
    return found


def _locks(socket: str, has_ended: Callable[[], bool]) -> list[HolderInfo]:
    deadline = time.monotonic() + SERVES_S
    while True:
        try:
            with ControlClient(socket) as client:
                return client.locks()
        except (DaemonUnreachable, CallRefused):
            if time.monotonic() > deadline or has_ended():
                raise
        time.sleep(PAUSE_S)

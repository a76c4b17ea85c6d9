"""`holdfast reload`: the running daemon becomes the program on disk with the configuration on disk, or says why not.

The daemon answers only a refusal: when it takes over, the new program has the listening sockets and no client's
connection. So the answer to "does it serve?" is a status of a daemon that started later than the one that was asked.
"""

from __future__ import annotations

import os
import signal
import time

from holdfast.control.api import CONFIGURATION_PROBLEM, StatusInfo
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable

SERVES_TIMEOUT_S = 80.0
"""For all of it: the check of the program on disk may take a minute, locks on slow storage ten seconds more. systemd ends a
reload after 90 s, and then nobody reads the reason."""
PAUSE_S = 0.05
METHOD_NOT_FOUND = "org.varlink.service.MethodNotFound"


class NotReloaded(Exception):
    """The daemon goes on as it was, or does not serve; `reasons` says why."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def reload(socket: str) -> str:
    """The version that serves now; raises `NotReloaded`, and `DaemonUnreachable` if there is no daemon to begin with."""
    deadline = time.monotonic() + SERVES_TIMEOUT_S
    with ControlClient(socket, timeout_s=SERVES_TIMEOUT_S) as client:
        before = client.status()
        try:
            client.reload()
        except CallRefused as e:
            if e.kind != METHOD_NOT_FOUND:
                raise NotReloaded(*str(e).split("\n")) from None
            # An older release knows the signal alone, and logs its reasons.
            try:
                os.kill(before.pid, signal.SIGUSR1)
            except OSError as error:
                raise NotReloaded(f"holdfastd {before.version}, pid {before.pid}: {error.strerror}") from None
        except DaemonUnreachable:
            pass  # it is becoming the new program
    return _wait_until_it_serves(socket, before.started, deadline)


def _wait_until_it_serves(socket: str, started_before: float, deadline: float) -> str:
    reason = f"the new program does not serve after {SERVES_TIMEOUT_S:.0f} s; see the log of holdfastd"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with ControlClient(socket, timeout_s=left) as client:
                status = client.status()
        except (DaemonUnreachable, CallRefused) as e:
            reason = f"the new program does not serve: {e}; see its log"
        else:
            if status.started != started_before:
                return _in_force(status)
            reason = "holdfastd goes on as before: its log says why"
        time.sleep(PAUSE_S)
    raise NotReloaded(reason)


def _in_force(status: StatusInfo) -> str:
    """The version of a new program that works with the configuration on disk.

    It may go on with the kept one: a VM was started between the check and the exec, or a file was edited.
    """
    ignored = [each for each in status.problems if each.startswith(CONFIGURATION_PROBLEM)]
    if ignored:
        raise NotReloaded(*ignored)
    return status.version

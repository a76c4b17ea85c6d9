"""Whether a real virtlockd runs on this host, whose place holdfastd would take.

virtlockd kills every VM that holds a lock in it when it is stopped, so nobody takes its place while it runs: not by
systemd's Conflicts=, and not by binding its socket. Only one that sees the same files counts: another mount namespace is
another host.
"""

from __future__ import annotations

import os

from holdfast.system.host.process import lives, program_name

PROGRAM = "virtlockd"


def virtlockd_beside() -> int | None:
    """The pid of root's virtlockd; None if none runs."""
    here = _namespace("self")
    for name in sorted((each for each in os.listdir("/proc") if each.isdigit()), key=int):
        if program_name(int(name)) != PROGRAM:
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid != 0:
                continue  # of a user's session
        except OSError:
            continue  # it has ended
        there = _namespace(name)
        if (not there or not here or there == here) and lives(int(name)):  # a zombie has no lock
            return int(name)
    return None


def _namespace(pid: str) -> str:
    """Empty if it can't be read."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""

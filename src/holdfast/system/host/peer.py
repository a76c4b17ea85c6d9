"""What the kernel says of the process at the other end of a Unix socket, as it was when that connected.

/proc/PID answers for the process that has the pid by now: the client may have ended, and its number be another's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import stat
import struct

from holdfast.model import ProcessId
from holdfast.system.host.process import parent_pid, start_ticks

_SO_PEERGROUPS = 59  # <asm-generic/socket.h>, Linux 4.13
_GROUPS_MAX = 65536
"""NGROUPS_MAX of the kernel."""

_libc = ctypes.CDLL(None, use_errno=True)


def peer_groups(fd: int) -> tuple[int, ...]:
    """The supplementary groups of the peer (unix(7)); none where the kernel doesn't say."""
    room = 64
    while True:
        raw = ctypes.create_string_buffer(4 * room)
        length = ctypes.c_uint32(len(raw))
        if _libc.getsockopt(fd, socket.SOL_SOCKET, _SO_PEERGROUPS, raw, ctypes.byref(length)) == 0:
            return struct.unpack(f"={length.value // 4}I", raw.raw[: length.value])
        if ctypes.get_errno() != errno.ERANGE or room >= _GROUPS_MAX:
            return ()
        room = _GROUPS_MAX


def process_of(pid: int, uid: int) -> ProcessId | None:
    """The process that has this pid now, if it is that user's; else None. A later one with its number is another."""
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):  # no such process, a thread id, no pid at all
        return None
    try:
        owner, started = os.stat(f"/proc/{pid}").st_uid, start_ticks(pid)
        # It is pinned: if it lives *after* this was read, it was read of this process, and not of a later one.
        signal.pidfd_send_signal(pidfd, 0)
    except OSError:
        return None
    finally:
        os.close(pidfd)
    return ProcessId(pid, started) if owner == uid and started else None


def parent_of(pid: int) -> ProcessId | None:
    """The process that started this one and still lives, as it is now; None if that can't be said."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    try:
        parent = parent_pid(pid)
        started = start_ticks(parent)
        # A child whose parent has ended gets another one: the same number twice is the same process in between.
        same = parent_pid(pid) == parent
        signal.pidfd_send_signal(pidfd, 0)
    except OSError:
        return None
    finally:
        os.close(pidfd)
    return ProcessId(parent, started) if same and parent > 0 and started else None


def is_directory_of(path: str, uid: int) -> bool:
    """Whether a directory belongs to that user."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid

"""What the kernel says of the process at the other end of a Unix socket, as it was when that connected.

/proc/PID answers for whoever has the pid by now: the client may have ended, and its number be another's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

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


def user_of(pid: int) -> int | None:
    """The user of the process that has this pid now; None if there is none. /proc never blocks."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None

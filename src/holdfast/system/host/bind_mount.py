"""A file that stands at another file's path, by a bind mount: nothing on disk changes, and a reboot ends it (mount(2))."""

from __future__ import annotations

import ctypes
import os

MS_BIND = 4096  # <linux/mount.h>
MNT_DETACH = 2  # <sys/mount.h>

_libc = ctypes.CDLL(None, use_errno=True)


def bind(source: str, target: str) -> None:
    """Raises OSError."""
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def unbind(target: str) -> None:
    """What is in use stays for its users, without a name; raises OSError."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)

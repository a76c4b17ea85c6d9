"""News of one folder: which of its files was replaced, written or removed, by inotify(7).

libvirt replaces a status file as a whole (libvirt-hooks-lvm.md 2.2), so a file that is named here can be read at once.
News may be lost: the kernel's queue has an end, and a folder may be removed and made again.  A caller that needs a
change for certain reads the file from time to time as well.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.system.epoll import Readiness

log = logging.getLogger(__name__)

_CLOSE_WRITE, _MOVED_TO, _DELETE, _ONLYDIR = 0x8, 0x80, 0x200, 0x01000000
"""<sys/inotify.h>"""
_EVENT = struct.Struct("iIII")
"""struct inotify_event: watch, mask, cookie, and the length of the name that follows."""
READ_BYTES = 16384


def watch_folder(folder: str, readiness: Readiness, on_change: Callable[[str], None]) -> Callable[[], None]:
    """Call `on_change` with the name of each file of the folder that changed; returns the way to stop that.

    A folder that can't be watched (it is missing, or the kernel's limit is reached) is logged, and sends no news.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if (
        fd < 0
        or libc.inotify_add_watch(fd, os.fsencode(folder), _CLOSE_WRITE | _MOVED_TO | _DELETE | _ONLYDIR) < 0
    ):
        log.warning("%s can't be watched: %s", folder, os.strerror(ctypes.get_errno()))
        if fd >= 0:
            os.close(fd)
        return lambda: None

    def changed() -> None:
        try:
            raw = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        for name in dict.fromkeys(names(raw)):
            on_change(name)

    readiness.add(fd, changed)
    is_watching = True

    def stop() -> None:
        nonlocal is_watching
        if is_watching:
            is_watching = False
            readiness.remove(fd)
            os.close(fd)

    return stop


def names(raw: bytes) -> list[str]:
    """The file names in what inotify's descriptor returns."""
    found, offset = [], 0
    while offset + _EVENT.size <= len(raw):
        _, _, _, length = _EVENT.unpack_from(raw, offset)
        offset += _EVENT.size
        found.append(os.fsdecode(raw[offset : offset + length].rstrip(b"\0")))
        offset += length
    return found

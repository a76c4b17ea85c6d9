"""News of one folder: which of its files was replaced, written or removed, by inotify(7).

libvirt replaces a status file as a whole (libvirt-hooks-lvm.md 2.2), so a file that is named here can be read at once.
News may be lost: the kernel's queue has an end, and a folder may be removed and made again.  A caller that needs a
change for certain reads the file from time to time as well.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.system.epoll import Readiness

log = logging.getLogger(__name__)

_CLOSE_WRITE, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF = 0x8, 0x80, 0x100, 0x200, 0x400
_IGNORED, _ONLYDIR = 0x8000, 0x01000000
"""<sys/inotify.h>"""
_EVENT = struct.Struct("iIII")
"""struct inotify_event: watch, mask, cookie, and the length of the name that follows."""
READ_BYTES = 16384
TRIES = 5
"""Of a folder that comes and goes just now."""


def watch_folder(folder: str, readiness: Readiness, on_change: Callable[[str], None]) -> Callable[[], None]:
    """Call `on_change` with the name of each file of the folder that changed; returns the way to stop that.

    A folder that is not there yet is watched from the moment it is made, with the files that are in it by then: after a boot
    holdfastd starts before libvirt has made its own. One that can't be watched otherwise (the kernel's limit is reached) is
    logged, and sends no news.
    """
    watch = _Watch(folder, readiness, on_change)
    watch.begin()
    return watch.stop


class _Watch:
    """Of the folder, or of the nearest one above it that is there."""

    def __init__(self, folder: str, readiness: Readiness, on_change: Callable[[str], None]) -> None:
        self._folder = os.path.abspath(folder)
        self._readiness = readiness
        self._on_change = on_change
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1

    def begin(self) -> None:
        """The folder may be made, or go again, between any two of these steps."""
        code = 0
        for _ in range(TRIES):
            self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._fd < 0:
                return self._failed(ctypes.get_errno())
            code = self._watch(self._folder, _CLOSE_WRITE | _MOVED_TO | _DELETE)
            if not code:
                return self._readiness.add(self._fd, self._changed)
            if code == errno.ENOENT and self._watch_above():
                return self._readiness.add(self._fd, self._may_be_there)
            self._close()
            if code != errno.ENOENT:
                break
        return self._failed(code)

    def _watch(self, folder: str, mask: int) -> int:
        """0, or the error."""
        if self._libc.inotify_add_watch(self._fd, os.fsencode(folder), mask | _ONLYDIR) < 0:
            return ctypes.get_errno()
        return 0

    def _watch_above(self) -> bool:
        """Whether the nearest folder above is watched, in which the next one is still missing."""
        missing, above = self._folder, os.path.dirname(self._folder)
        while (
            code := self._watch(above, _CREATE | _MOVED_TO | _DELETE_SELF)
        ) == errno.ENOENT and above != "/":
            missing, above = above, os.path.dirname(above)
        return not code and not os.path.exists(missing)

    def _may_be_there(self) -> None:
        """Something was made above the folder, or went."""
        self.stop()
        self.begin()
        try:
            there = os.listdir(self._folder)
        except OSError:
            return
        for name in there:
            self._on_change(name)

    def _changed(self) -> None:
        try:
            raw = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        for name in dict.fromkeys(names(raw)):
            self._on_change(name)
        if _went(raw):
            self._may_be_there()

    def _failed(self, code: int) -> None:
        log.warning("%s can't be watched: %s", self._folder, os.strerror(code))

    def stop(self) -> None:
        if self._fd >= 0:
            self._readiness.remove(self._fd)
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _went(raw: bytes) -> bool:
    """Whether the folder is watched no more: its watch ends with it, as the last news of it."""
    return len(raw) >= _EVENT.size and bool(_EVENT.unpack_from(raw, len(raw) - _EVENT.size)[1] & _IGNORED)


def names(raw: bytes) -> list[str]:
    """The file names in what inotify's descriptor returns."""
    found, offset = [], 0
    while offset + _EVENT.size <= len(raw):
        _, _, _, length = _EVENT.unpack_from(raw, offset)
        offset += _EVENT.size
        found.append(os.fsdecode(raw[offset : offset + length].rstrip(b"\0")))
        offset += length
    return found

"""Opens a file whose path this program names itself: a regular file, or a reason at once.

A FIFO in its place would hang the start for ever, a device might do something by being opened, and a symbolic link leads
to a file that the program did not name.
"""

from __future__ import annotations

import errno
import os
import stat


class NotAFile(OSError):
    """Something else has the path of a file; the text names the path, what is there, and what to do."""

    def __str__(self) -> str:
        return self.strerror or ""  # the number of the error tells nothing more


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


def require_regular(path: str) -> None:
    """Raises `NotAFile` if there is something at the path that is no regular file; quiet if there is nothing."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    _refuse(path, found.st_mode)


def open_regular(path: str, flags: int, mode: int = 0o600) -> int:
    """As os.open, never waiting and never following a link at the end; raises OSError, `NotAFile` among them."""
    require_regular(path)
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY, mode)
    try:
        _refuse(path, os.fstat(fd).st_mode)
    except NotAFile:
        os.close(fd)
        raise
    return fd


def _refuse(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise NotAFile(errno.EINVAL, f"{path} is {kind}, not a file; move it out of the way")

"""Files whose paths this program names itself: a regular file, or a reason at once.

A FIFO in its place would hang the start for ever, a device might do something by being opened, and a symbolic link leads
to a file that the program did not name. What is no regular file is neither read nor written.

`replace_regular` moves a new file to its path: it follows no link, and a FIFO or a link that was there is gone after it. A
caller that must leave such a thing alone, because an admin may have moved the file, calls `require_regular` first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass


class NotAFile(OSError):
    """Something else has the path of a file; the text names the path, what is there, and what to do."""

    def __str__(self) -> str:
        return self.strerror or ""  # the number of the error adds nothing


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why there is no content; ``missing``: because nothing is there."""

    reason: str
    missing: bool = False


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


def read_regular(path: str, bytes_max: int) -> bytes | Unreadable:
    """The whole content. Never waits and never raises."""
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as f:
            raw = f.read(bytes_max + 1)
    except FileNotFoundError:
        return Unreadable("it is not there", missing=True)
    except OSError as e:
        return Unreadable(e.strerror or str(e))
    return raw if len(raw) <= bytes_max else Unreadable(f"it is larger than {bytes_max} bytes")


def replace_regular(
    path: str,
    raw: bytes,
    *,
    durable: bool = False,
    like: os.stat_result | None = None,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
) -> None:
    """Make `raw` the whole content, all of it or nothing; raises OSError and leaves what was there. With `mode`, and `owner`
    (uid, gid) if given; or with the owner and the permissions to read and write of `like`.

    `durable`: it has reached stable storage when this returns.
    """
    temporary = f"{path}.new"
    fd = create_beside(temporary)
    try:
        try:
            write_all(fd, raw)
            if like is not None:
                os.fchown(fd, like.st_uid, like.st_gid)
                os.fchmod(fd, like.st_mode & 0o666)
            else:
                if owner is not None:
                    os.fchown(fd, *owner)
                os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def create_beside(temporary: str, flags: int = os.O_WRONLY) -> int:
    """An empty file, to be moved to a path beside it; what lies at that name is removed. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    return open_regular(temporary, flags | os.O_CREAT | os.O_EXCL)


def write_all(fd: int, raw: bytes) -> None:
    """All of it; raises OSError. One write may be short, on a disk that is nearly full."""
    view = memoryview(raw)
    while view:
        view = view[os.write(fd, view) :]


def kind_of(mode: int) -> str:
    """What has that mode, if it is no regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _refuse(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFile(errno.EINVAL, f"{path} is {kind_of(mode)}, not a file; move it out of the way")

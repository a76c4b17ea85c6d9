"""Opening a disk with the rights of the user who asks for its lock: the daemon is root, and may open everything.

On Linux the user, group and supplementary groups that the kernel checks for file access belong to a thread, not to a process
(setfsuid(2)). So a thread is started for it, takes the user's rights on, opens, and ends: it never does anything else, and
there is nothing to be taken back. A fork would cost more and copy the locks' descriptors.

libc has no wrappers that change one thread's groups (its setgroups() changes all threads), hence the system call itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import threading
from dataclasses import dataclass

from holdfast.system.files.checked_open import NotLockable, open_lockable
from holdfast.system.files.ofd_lock import FileKey, IoFailed, OpenedFile, key_of

_SYS_SETGROUPS = {
    "x86_64": 116,
    "aarch64": 159,
    "riscv64": 159,
    "loongarch64": 159,
    "ppc64le": 81,
    "s390x": 206,
}
"""<asm/unistd.h>"""
_UNCHANGED = 0xFFFFFFFF
"""No valid id: setfsuid(2) changes nothing and returns the present one."""
_WHAT = "Unable to open resource"

_libc = ctypes.CDLL(None, use_errno=True)


class NoSuchRights(OSError):
    """This process can't take on another user's rights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the kernel checks for access to files."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def open_as(rights: Rights, path: str, *, write: bool) -> OpenedFile | IoFailed:
    """Open a disk for reading, or for both, if that user may; the descriptor pins which disk it is. May block."""
    outcome: list[OpenedFile | IoFailed] = []

    def run() -> None:
        outcome.append(_open_as(rights, path, os.O_RDWR if write else os.O_RDONLY))

    thread = threading.Thread(target=run, name="as a user", daemon=True)
    thread.start()
    thread.join()
    return outcome[0] if outcome else IoFailed(_WHAT, path, errno.EIO)


def _open_as(rights: Rights, path: str, access: int) -> OpenedFile | IoFailed:
    """In a thread of its own."""
    try:
        _take_on(rights)
        fd, status = open_lockable(path, access=access)
    except (NoSuchRights, NotLockable) as e:
        return IoFailed(_WHAT, path, e.errno or errno.EIO, str(e.strerror))
    except PermissionError as e:
        need = "read and write" if access == os.O_RDWR else "read"
        return IoFailed(_WHAT, path, e.errno or errno.EACCES, f"user {rights.uid} may not {need} it")
    except OSError as e:
        return IoFailed(_WHAT, path, e.errno or errno.EIO)
    except ValueError:  # a NUL in the path
        return IoFailed(_WHAT, path, errno.EINVAL)
    return OpenedFile(fd, FileKey(*key_of(status)), None, "")


def _take_on(rights: Rights) -> None:
    number = _SYS_SETGROUPS.get(platform.machine())
    if number is None:
        raise NoSuchRights(
            errno.EOPNOTSUPP, f"not possible for other users than root on {platform.machine()}"
        )
    groups = (ctypes.c_uint32 * len(rights.groups))(*rights.groups)
    if _libc.syscall(number, len(groups), groups) != 0:
        raise NoSuchRights(errno.EPERM, _missing("CAP_SETGID"))
    _libc.setfsgid(rights.gid)
    _libc.setfsuid(rights.uid)
    now = _libc.setfsgid(_UNCHANGED) & 0xFFFFFFFF, _libc.setfsuid(_UNCHANGED) & 0xFFFFFFFF
    if now != (rights.gid, rights.uid):
        raise NoSuchRights(errno.EPERM, _missing("CAP_SETUID"))


def _missing(capability: str) -> str:
    return (
        f"holdfastd can't open it with the asking user's rights: it lacks {capability}; "
        "add it to CapabilityBoundingSet= of holdfastd.service"
    )

"""Directories and files of lockspaces: the few calls that lockspace management needs."""

from __future__ import annotations

import enum
import errno
import os
import stat
from typing import ClassVar

from holdfast.model import Mode
from holdfast.system.files.checked_open import open_lockable
from holdfast.system.files.ofd_lock import (
    LOCK_FILE_MODE,
    LOCKSPACE_DIRECTORY_MODE,
    FileKey,
    ForeignLock,
    IoFailed,
    SystemLockFiles,
    key_of,
)


class PathKind(enum.Enum):
    MISSING = "missing"
    DIRECTORY = "directory"
    OTHER = "other"


class LockspaceFiles:
    """The kernel's own; every call may block on the file system of its path."""

    HELD: ClassVar[str] = "held"

    def kind(self, path: str) -> PathKind:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return PathKind.MISSING
        return PathKind.DIRECTORY if stat.S_ISDIR(status.st_mode) else PathKind.OTHER

    def key(self, path: str) -> FileKey | None:
        try:
            return key_of(os.stat(path))
        except (OSError, ValueError):
            return None

    def make_directories(self, path: str) -> IoFailed | None:
        try:
            os.makedirs(path, mode=LOCKSPACE_DIRECTORY_MODE, exist_ok=True)
        except (OSError, ValueError) as e:
            return IoFailed("Unable to create lockspace", path, getattr(e, "errno", None) or errno.EINVAL)
        return None

    def create(self, path: str) -> IoFailed | None:
        try:
            os.close(open_lockable(path, create_mode=LOCK_FILE_MODE)[0])
        except (OSError, ValueError) as e:
            return IoFailed("cannot create file", path, getattr(e, "errno", None) or errno.EINVAL)
        return None

    def remove(self, path: str) -> IoFailed | None:
        """Unlink, unless anybody anywhere holds a lock on it: the lock would go on without a name."""
        files = SystemLockFiles()
        opened = files.open(path, create=False)
        if isinstance(opened, IoFailed):
            if opened.errno == errno.ENOENT:
                return None
            return files.remove(path)
        try:
            if isinstance(files.lock(opened.fd, Mode.EXCLUSIVE, path), ForeignLock):
                return IoFailed(self.HELD, path, errno.EBUSY)
            return files.remove(path)
        finally:
            files.close(opened.fd)

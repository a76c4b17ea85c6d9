"""The file system that a path is on, found out without touching that file system.

Anything on a network file system may block for ever when the server is away: even stat().  So the question
"may I do this on the event loop?" is answered from the mount table and from symbolic links that lie on
local mounts alone; the walk stops at the first component on a mount that may block.
The same table says what a lock there is worth (does it reach other hosts?) and whether it works at all.
"""

from __future__ import annotations

import os
import re
import select
import stat
from dataclasses import dataclass

from holdfast.model import Protection

LOCAL_TYPES = frozenset(
    [
        "bcachefs",
        "btrfs",
        "cramfs",
        "devpts",
        "devtmpfs",
        "erofs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "hugetlbfs",
        "iso9660",
        "jfs",
        "minix",
        "mqueue",
        "nilfs2",
        "ntfs3",
        "overlay",
        "proc",
        "ramfs",
        "reiserfs",
        "rootfs",
        "squashfs",
        "sysfs",
        "tmpfs",
        "udf",
        "vfat",
        "xfs",
        "zfs",
    ]
)
"""File systems whose calls end in bounded time on a healthy host; everything unknown counts as blocking."""

CLUSTER_TYPES = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph-fuse",
        "fuse.glusterfs",
        "fuse.cephfs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "smb3",
        "smbfs",
        "virtiofs",
    ]
)
"""File systems that several hosts mount at once."""

LOCKING_CLUSTER_TYPES = CLUSTER_TYPES - {"9p", "fuse.sshfs", "virtiofs", "smbfs"}
"""Of these, the ones that carry byte-range locks to the other hosts in their default setting."""

_FOR_ONE_HOST = "lockproto=lock_nolock"
"""Option of gfs2(5): mounted without cluster, by one host alone."""

_ON_BLOCK_DEVICES = frozenset(["gfs2", "ocfs2"])
"""Cluster file systems of which each host writes to the device itself, and not to a server."""

LINKS_MAX = 40
"""Symbolic links followed in one path, as the kernel's own limit (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo (proc(5)), as far as it matters here."""

    point: str
    type: str
    source: str
    options: frozenset[str]

    @property
    def may_block(self) -> bool:
        return self.type not in LOCAL_TYPES

    @property
    def lock_warning(self) -> str:
        """Why locks on this mount don't reach other hosts although the file system does; empty if they do."""
        if self.type not in CLUSTER_TYPES:
            return ""
        if "nolock" in self.options:
            return "mounted with 'nolock': locks stay on this host"
        for option in self.options:
            if option in ("local_lock=all", "local_lock=posix"):
                return f"mounted with '{option}': locks stay on this host"
        if self.type in _ON_BLOCK_DEVICES and self.options & {"localflocks", _FOR_ONE_HOST}:
            return "mounted with host-local locks"
        if self.type in ("cifs", "smb3") and "nobrl" in self.options:
            return "mounted with 'nobrl': locks stay on this host"
        if self.type not in LOCKING_CLUSTER_TYPES:
            return f"file system type {self.type} does not carry locks to other hosts"
        return ""

    @property
    def protection(self) -> Protection:
        """What a byte-range lock on a file here is worth."""
        if self.type in CLUSTER_TYPES and not self.lock_warning:
            return Protection.CROSS_HOST
        return Protection.SAME_HOST

    @property
    def is_shared(self) -> bool:
        """Whether other hosts may have these files too, with whatever locks and caches."""
        return self.type in CLUSTER_TYPES and _FOR_ONE_HOST not in self.options

    @property
    def outlives_its_writers(self) -> bool:
        """Whether requests of a process that was killed may still be on their way to a server: a client of a network file
        system lets the process end and sends them again. A process with requests at a block device ends after those.
        """
        return self.is_shared and self.type not in _ON_BLOCK_DEVICES

    @property
    def not_shared(self) -> str:
        """Why what is written here (O_DIRECT) does not count as seen by other hosts at once; empty if it does.

        That is less than `protection` asks for: leases need no lock, and an NFS mount with `nolock` serves them.
        """
        if self.type not in CLUSTER_TYPES:
            return f"{self.point} ({self.type}) is local to this host, as far as its type says"
        if self.type not in LOCKING_CLUSTER_TYPES:
            return f"{self.point} ({self.type}) is not known to show other hosts at once what this one writes"
        if _FOR_ONE_HOST in self.options:
            return f"{self.point} ({self.type}) is mounted with lockproto=lock_nolock, for this host alone"
        return ""


_OCTAL = re.compile(r"\\([0-7]{3})")


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda m: chr(int(m[1], 8)), field) if "\\" in field else field


def parse_mountinfo(text: str) -> list[Mount]:
    """Every mount, in mount order (a later one hides an earlier one at the same point)."""
    found = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not dash or len(before) < 6 or len(after) < 3:
            continue
        options = frozenset(before[5].split(",")) | frozenset(after[2].split(","))
        found.append(Mount(_unescape(before[4]), after[0], _unescape(after[1]), options))
    return found


class MountTable:
    """The mounts of this mount namespace, read again whenever the kernel says that they changed."""

    def __init__(self, path: str = "/proc/self/mountinfo") -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI | select.POLLERR)
        self._by_point: dict[str, Mount] = {}
        self.changes = 0
        """Counts re-reads; callers drop what they derived when it moves."""
        self._read()

    def _read(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._fd, 1 << 16):
            parts.append(part)
        self._by_point = {
            m.point: m for m in parse_mountinfo(b"".join(parts).decode("utf-8", "surrogateescape"))
        }
        self.changes += 1

    def refresh(self) -> None:
        """Take note of a change, if there was one; about a microsecond if not."""
        if self._poll.poll(0):
            self._read()

    def all(self) -> list[Mount]:
        self.refresh()
        return list(self._by_point.values())

    def mount_of(self, path: str) -> Mount:
        """The mount of an absolute path, by its text alone (no symbolic links followed)."""
        by_point = self._by_point
        while True:
            if (mount := by_point.get(path)) is not None:
                return mount
            if path in ("/", ""):
                return by_point.get("/", _UNKNOWN_ROOT)
            path = os.path.dirname(path)

    def locate(self, path: str) -> tuple[Mount, str]:
        """The mount where `path` ends up, and the path as resolved so far.

        Follows symbolic links as long as they lie on mounts that cannot block.
        Missing components count as being on their parent's mount.
        """
        self.refresh()
        rest = [part for part in path.split("/") if part not in ("", ".")][::-1]
        here = "/"
        links = 0
        while rest:
            part = rest.pop()
            if part == "..":
                here = os.path.dirname(here)
                continue
            step = here.rstrip("/") + "/" + part
            mount = self.mount_of(step)
            if mount.may_block:
                return mount, "/".join([step, *rest[::-1]])
            try:
                target = os.readlink(step)
            except OSError:  # no link, or nothing there
                here = step
                continue
            links += 1
            if links > LINKS_MAX:
                return mount, step
            if target.startswith("/"):
                here = "/"
            rest.extend([p for p in target.split("/") if p not in ("", ".")][::-1])
        return self.mount_of(here), here

    def mounted_at(self, path: str) -> Mount | None:
        """The mount whose mount point is exactly this path: a file can be one."""
        return self._by_point.get(path)

    def close(self) -> None:
        os.close(self._fd)


_UNKNOWN_ROOT = Mount("/", "unknown", "", frozenset())


def is_block_device(path: str) -> bool:
    """Whether a path is a block device node; False if it is not there."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False

"""Types that all layers share (docs/glossary.md).

A *resource* is a name in a lockspace; a *lock* is what a VM acquires; an *owner* is the process (normally a QEMU) that
holds; a *holder* describes an owner, on this host or another, to others. Times: an `Instant` is CLOCK_BOOTTIME in seconds;
wall-clock times are only shown to people and are plain floats named `*_wall_s`.
"""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass
from typing import NamedTuple, NewType

Instant = NewType("Instant", float)
"""Seconds of CLOCK_BOOTTIME on this host: runs during suspend, is never set back."""

SANLOCK = "sanlock"
"""The program of a holder whose host has a name that only sanlock gives: a lease names hosts, and no VM."""

LVMLOCKD = "lvmlockd"
"""The program of a holder of a logical volume's lock: its lease names hosts, and no VM."""

DIRECT_LOCKSPACE = ""
"""The lockspace whose resource names are the paths of the disks themselves (virtlockd-rpc.md 3.3)."""


IDENTITY_LOCKSPACE = "holdfast:identity"
"""The lockspace of disks by what they are (`manager/identity_locks`): no path, so no client can name it."""

SANLOCK_PREFIX = "sanlock:"
"""Before a lockspace's name: its leases by the names that sanlock's clients give them. No path, either."""


HOST_LOCKSPACE = "holdfast:host"
"""The lockspace of a VM's own files that no other host has (NVRAM, TPM state), by their paths (`unasked_disks`)."""


class Mode(enum.IntEnum):
    """How strongly a lock excludes; the larger value includes the smaller one."""

    SHARED = 1
    EXCLUSIVE = 2

    @property
    def word(self) -> str:
        return "shared" if self is Mode.SHARED else "exclusive"


class Protection(enum.IntEnum):
    """The worth of a held lock: which other owners are excluded, and whether a dead host is made harmless first."""

    NONE = 0
    SAME_HOST = 1
    CROSS_HOST = 2
    FENCED = 3

    @property
    def word(self) -> str:
        return ("none", "same host", "across hosts", "across hosts, fenced")[self]


class LockFailureAction(enum.Enum):
    """What happens to an owner whose lock is lost (libvirt's on_lockfailure)."""

    IGNORE = "ignore"
    PAUSE = "pause"
    POWEROFF = "poweroff"
    RESTART = "restart"
    """Stopped now, started again when its locks can be had again."""


class Resource(NamedTuple):
    """A named thing that can be leased: a disk path in the direct lockspace, or a file in a directory."""

    lockspace: str
    name: str

    def __str__(self) -> str:
        return self.name if self.lockspace in ("", HOST_LOCKSPACE) else f"{self.lockspace}/{self.name}"


def resource_of(text: str) -> Resource:
    """The disk or identity whose `str` that is."""
    identity = text.removeprefix(f"{IDENTITY_LOCKSPACE}/")
    return Resource(DIRECT_LOCKSPACE, text) if identity == text else Resource(IDENTITY_LOCKSPACE, identity)


class AcquireRequest(NamedTuple):
    """One request of an acquire: the resource, the mode, and whether its lock file may be made."""

    resource: Resource
    mode: Mode
    create: bool = False
    only: tuple[int, int] | None = None
    """The file (device and inode, as in `FileKey`) that the resource must be: the one that the asking user may open."""
    path: str = ""
    """Of the disk, if the resource is a name that stands for it and the path is known: [[disk]] rules go by it."""
    hashed: Resource | None = None
    """As what libvirt asked for it, if the resource has been found by that."""


class ProcessId(NamedTuple):
    """A unique process: pids are reused, a pid with its start time is not.

    `start_ticks` is field 22 of /proc/PID/stat (clock ticks since boot); 0: no such process is visible.
    """

    pid: int
    start_ticks: int


class OwnerName(NamedTuple):
    """An owner's name from its REGISTER: for people, never for decisions."""

    name: str
    uuid: str = ""
    domain_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A holder of a resource, as far as known. Unknown facts are empty or None.

    `source` of the facts: `table` (this daemon), `record` (owner record in a lock file), `lease` (a lease on shared
    storage), `kernel` (fcntl F_GETLK, /proc/locks), `journal` (a daemon that no longer runs), `qemu`. Only a lease has
    `host_id` and `alive_s_ago` (the age of its host's last renewal as seen from here).
    """

    name: str = ""
    uuid: str = ""
    pid: int | None = None
    host: str = ""
    mode: Mode | None = None
    since_wall_s: float | None = None
    source: str = "table"
    program: str = ""
    host_id: int | None = None
    alive_s_ago: float | None = None
    remark: str = ""
    start_ticks: int = 0
    """Start time of the process, for the host that it runs on (`ProcessId`); 0 if not known."""
    disk: str = ""
    """What it calls the disk, for its own host; empty if not known."""
    libvirtd: int = 0
    """Of a VM that had no process yet when this was noted: the pid of the libvirtd that has started it; 0 if not known."""

    def __str__(self) -> str:
        if self.name:
            who = f"VM {self.name}" if self.uuid else self.name
        elif self.program in (SANLOCK, LVMLOCKD):
            who = self.program
        elif self.program:
            who = f"process {self.program}"
        elif self.pid is not None:
            who = "a process"
        elif self.host or self.host_id is not None:
            who = "a VM or process that left no owner record"
        else:
            who = "another host or process that left no owner record"
        inside = [f"uuid {self.uuid}"] if self.uuid else []
        if self.pid is not None:
            inside.append(f"pid {self.pid}")
        elif self.libvirtd:
            inside.append(f"started by libvirtd, pid {self.libvirtd}")
        text = f"{who} ({', '.join(inside)})" if inside else who
        if self.host:
            text += f" on host {self.host}"
            if self.host_id is not None:
                text += f" (host_id {self.host_id})"
        elif self.host_id is not None:
            text += f" on a host whose record can't be read (host_id {self.host_id})"
        if self.program in (SANLOCK, LVMLOCKD):
            text += ", which writes no VM name"
        if self.since_wall_s is not None:
            text += f" since {wall_text(self.since_wall_s)}"
        if self.mode is Mode.SHARED:
            text += ", shared"
        if self.alive_s_ago is not None:
            text += f", alive {self.alive_s_ago:.0f} s ago"
        return printable(f"{text}, {self.remark}" if self.remark else text)


def printable(text: str) -> str:
    """A text from storage that others write, for terminals and logs: control characters are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut_utf8(text: str, bytes_max: int) -> str:
    """The beginning of a text that has at most so many bytes in UTF-8, and no part of a character."""
    return text.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")


def wall_text(wall_s: float) -> str:
    """A wall-clock time for people on any host: UTC, to the second."""
    try:
        return datetime.datetime.fromtimestamp(wall_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"an impossible time ({wall_s})"

"""What the `lvm` driver needs of LVM and lvmlockd: volumes as values, and the port `LvLocks`.

Failures are answers (`Refused`), never exceptions. An answer that did not come, or that does not say what was done, is
`NO_ANSWER`: the request may have been carried out. Facts: libvirt-hooks-lvm.md 3.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from holdfast.model import Mode


class LvId(NamedTuple):
    """Which logical volume, on every host: the UUIDs of volume group and volume, as `lvs -o uuid` prints them."""

    vg_uuid: str
    lv_uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One logical volume of a shared volume group, with what lvmlockd's requests name."""

    id: LvId
    vg_name: str
    lv_name: str
    lock_type: str
    """`sanlock` or `dlm`."""
    vg_lock_args: str = ""
    lv_lock_args: str = ""
    lock_lv: tuple[str, str] = ("", "")
    """Name and UUID of the volume whose lock that is: its pool, for a thin volume; empty: its own."""
    why_not_shared: str = ""
    """Why it can't be active on two hosts, so that its VM can't be migrated live; empty if it can."""

    def __str__(self) -> str:
        return f"/dev/{self.vg_name}/{self.lv_name}"

    @property
    def has_own_lock(self) -> bool:
        """Whether nothing else is locked by its lock."""
        return self.lock_lv[1] in ("", self.id.lv_uuid)


class Problem(enum.Enum):
    """Why a request was not carried out."""

    HELD_ELSEWHERE = "another host holds it"
    LOCKSPACE_INACTIVE = "the volume group's lockspace is not started"
    STORAGE_FAILED = "the storage of its leases fails"
    GROUP_BUSY = "another host is changing the volume group; try again"
    NO_ANSWER = "lvmlockd or LVM did not answer"
    IN_USE = "a process has the device open"
    FAILED = "LVM failed"


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that was not carried out, or (`NO_ANSWER`) that may have been."""

    problem: Problem
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.problem.value}: {self.detail}" if self.detail else self.problem.value


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """Who holds a volume, by its lease on storage."""

    mode: Mode | None
    """None: nobody does."""
    others: tuple[str, ...] = ()
    """The other hosts that do, by name."""
    held_s: float | None = None
    """How long, at its last renewal, another host had held it exclusively; None: no other host does, or it is not known."""

    @property
    def whose(self) -> str:
        """The other hosts, in a sentence's words."""
        since = f", exclusively for {self.held_s:.0f} s or longer" if self.held_s is not None else ""
        return f"held by host {', '.join(self.others)}{since}"


class LvLocks(Protocol):
    """Locks and activation of volumes on this host. Each request ends by itself, with `NO_ANSWER` at the latest.

    The lock of an active volume is converted by `lock`, and never given up by it: that is `deactivate`, LVM's command,
    which refuses (`IN_USE`) while a process has the device open.
    """

    async def query(self, volume: Volume) -> Mode | Refused | None:
        """The mode in which this host holds the lock, by lvmlockd; None: it does not."""

    async def lock(self, volume: Volume, mode: Mode) -> Refused | None:
        """Have the lock of an active volume in that mode; None when done, or when it was so already."""

    async def activate(self, volume: Volume, mode: Mode) -> Refused | None:
        """Make the device and take its lock, by `lvchange -aey` or `-asy`."""

    async def deactivate(self, volume: Volume) -> Refused | None:
        """Remove the device and give up its lock, by `lvchange -an`. Only if lvmlockd answers: without it, LVM would remove
        the device and leave the lease (section 3.5).
        """

    async def lease(self, volume: Volume) -> LeaseSeen | Refused:
        """Who holds it, read from storage without any lock (section 3.3)."""

    def is_active(self, volume: Volume) -> bool:
        """Whether the device is there on this host."""

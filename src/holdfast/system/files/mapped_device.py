"""Which device of the device mapper is at a path, by sysfs: no LVM command, and nothing that waits for a disk."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Protocol

NAME_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class NotMapped:
    """Why there is no such device, as a clause that follows the path."""

    reason: str
    missing: bool = False
    """Whether nothing is at the path."""


class MappedDevices(Protocol):
    """The port."""

    def uuid(self, path: str) -> str | NotMapped:
        """Its name by maker (`dm/uuid`): `LVM-…` of a logical volume, with a suffix for an inner device."""


class SysfsMappedDevices:
    """The kernel's own."""

    def __init__(self, sysfs: str = "/sys") -> None:
        self._sysfs = sysfs

    def uuid(self, path: str) -> str | NotMapped:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return NotMapped("is not there", missing=True)
        except (OSError, ValueError) as e:
            return NotMapped(f"can't be read: {e.strerror if isinstance(e, OSError) else e}")
        if not stat.S_ISBLK(status.st_mode):
            return NotMapped("is no block device")
        device = f"{self._sysfs}/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        try:
            with open(f"{device}/dm/uuid", encoding="ascii", errors="replace") as f:
                return f.read(NAME_BYTES_MAX).strip() or NotMapped("has no name in the device mapper")
        except FileNotFoundError:
            return NotMapped("is no device of the device mapper")
        except OSError as e:
            return NotMapped(f"can't be read in sysfs: {e.strerror}")

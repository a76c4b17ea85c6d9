"""What a disk is, whatever path leads to it: its inode or device number, and the names its maker or LVM gave it.

Names come from sysfs, where the kernel has them anyway: no `lvs`, no `scsi_id`, nothing that waits for a disk.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Protocol

from holdfast.system.files.canonical_path import canonical_path
from holdfast.system.files.ofd_lock import FileKey, key_of
from holdfast.system.files.strong_identity import strong_identity

_NAME_BYTES_MAX = 1024
_LVM_PREFIX = "LVM-"
_LVM_ID_CHARS = 32
_LVM_GROUPS = (6, 4, 4, 4, 4, 4, 6)
_MULTIPATH_PREFIX = "mpath-"


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """Facts about one disk; those that are not known, or not there, are None and empty."""

    key: FileKey | None = None
    lvm_uuid: str = ""
    wwid: str = ""
    canonical: str = ""
    """Its canonical path (`canonical_path`)."""


class DiskIdentities(Protocol):
    """The port. Both may block on the file system that the path is on."""

    def look(self, path: str) -> DiskIdentity: ...

    def strong(self, path: str) -> str:
        """What the disk is on every host (`strong_identity`); empty if nothing says that."""


class SystemDiskIdentities:
    """The kernel's own."""

    def __init__(self, sysfs: str = "/sys") -> None:
        self._sysfs = sysfs

    def look(self, path: str) -> DiskIdentity:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return DiskIdentity()
        canonical = canonical_path(path, self._sysfs)
        if not stat.S_ISBLK(status.st_mode):
            return DiskIdentity(key_of(status), canonical=canonical)
        device = f"{self._sysfs}/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        mapped = _read(f"{device}/dm/uuid")
        wwid = _read(f"{device}/device/wwid") or _read(f"{device}/wwid")
        if mapped.startswith(_MULTIPATH_PREFIX):
            wwid = mapped.removeprefix(_MULTIPATH_PREFIX)
        return DiskIdentity(key_of(status), lvm_uuid_of(mapped), wwid, canonical)

    def strong(self, path: str) -> str:
        return strong_identity(path, sysfs=self._sysfs, lvm_uuid=self.look(path).lvm_uuid)


def lvm_uuid_of(mapped: str) -> str:
    """The UUID as `lvs -o uuid` prints it, of a device mapper name LVM-<volume group><volume>; else empty."""
    ids = lvm_uuids_of(mapped)
    return ids[1] if ids is not None else ""


def lvm_uuids_of(mapped: str) -> tuple[str, str] | None:
    """The same with that of the volume group before it; None if the name is not a volume's."""
    ids = mapped.removeprefix(_LVM_PREFIX)
    # A suffix behind a dash marks an inner device of the volume (a snapshot's origin, a pool's data).
    if not mapped.startswith(_LVM_PREFIX) or len(ids) != 2 * _LVM_ID_CHARS:
        return None
    return _in_groups(ids[:_LVM_ID_CHARS]), _in_groups(ids[_LVM_ID_CHARS:])


def _in_groups(text: str) -> str:
    groups, at = [], 0
    for length in _LVM_GROUPS:
        groups.append(text[at : at + length])
        at += length
    return "-".join(groups)


_SCSI_ID_TYPES = {"naa.": "3", "eui.": "2", "t10.": "1"}
"""The kernel's prefix of a name from page 0x83, and the digit that scsi_id(8) writes for it: its type (SPC-4 7.8.6)."""


def scsi_id_of(wwid: str) -> str:
    """A WWID of sysfs or multipath as `scsi_id --replace-whitespace` prints it; empty if it is of another kind."""
    for prefix, digit in _SCSI_ID_TYPES.items():
        if wwid.startswith(prefix):
            return digit + "_".join(wwid.removeprefix(prefix).split())
    return wwid  # multipath's names are scsi_id's


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as f:
            return f.read(_NAME_BYTES_MAX).strip()
    except OSError:
        return ""

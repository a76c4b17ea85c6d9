"""What a disk is on every host, whatever path leads to it there: the name its maker, LVM or its file server gave it.

    LVM volume                    lvm:UUID                        device mapper's name (dm/uuid)
    SCSI, multipath, NVMe         naa.…, eui.…, uuid.…            /sys/dev/block/…/wwid; a partition adds +START, in sectors
    file on NFS                   nfs:TYPE:HANDLE                 the server's handle: all its clients get the same bytes
    file on another file system   FSTYPE:FSID:TYPE:HANDLE         its own handle (inode and generation) and its id
    loop device                   the identity of its file        +OFFSET, in bytes

Names that repeat on clones are none: PARTUUID, T10 names, serial numbers, the UUID of a file system alone. A file system
whose handles are not known to be the same on all hosts (FUSE, 9p, SMB, overlay) gives none either: its disks are known by
their path. File handles: name_to_handle_at(2). Nothing here asks a disk; a file system that hangs blocks the caller.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct

from holdfast.system.files.mounts import parse_mountinfo

VOLUME_IDENTITY = "lvm:"
"""The beginning of a volume's; behind it is its UUID, as `lvs -o uuid` prints it."""
_AT_FDCWD, _AT_SYMLINK_FOLLOW = -100, 0x400
_HANDLE_BYTES_MAX = 128
"""MAX_HANDLE_SZ of the kernel."""
_HEADER = struct.Struct("Ii")
_BY_SERVER = frozenset(("nfs", "nfs4"))
"""File systems whose handle names the file on the server, with the server's own file system."""
_BY_FILE_SYSTEM = frozenset(
    ("btrfs", "ceph", "ext2", "ext3", "ext4", "fuse.ceph-fuse", "gfs2", "ocfs2", "tmpfs", "xfs")
)
"""File systems whose handles are unique beside their id (statfs f_fsid)."""
_TEXT_BYTES_MAX = 4096
_LVM_PREFIX, _MULTIPATH_PREFIX = "LVM-", "mpath-"
_HEX = re.compile(r"[0-9a-f]+")
_SCSI_ID_PREFIXES = {"3": "naa.", "2": "eui."}
"""scsi_id's digit for a type of name, and the kernel's prefix for the same (SPC-4 7.8.6)."""

_libc = ctypes.CDLL(None, use_errno=True)


def strong_identity(path: str, *, sysfs: str = "/sys", lvm_uuid: str = "") -> str:
    """The identity of the disk at a path; empty if it has none that is the same on all hosts, or can't be read.

    `lvm_uuid`: of the volume, if it is one, as `lvs -o uuid` prints it.
    """
    try:
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            return f"{VOLUME_IDENTITY}{lvm_uuid}" if lvm_uuid else _of_device(status.st_rdev, sysfs)
        return _of_file(path) if stat.S_ISREG(status.st_mode) else ""
    except (OSError, ValueError):
        return ""


def _of_device(device: int, sysfs: str) -> str:
    place = os.path.realpath(f"{sysfs}/dev/block/{os.major(device)}:{os.minor(device)}")
    if start := _read(f"{place}/partition") and _read(f"{place}/start"):
        whole = _of_disk(os.path.dirname(place))
        return f"{whole}+{start}" if whole else ""
    return _of_disk(place)


def _of_disk(place: str) -> str:
    """Of a whole disk, by its directory in sysfs."""
    if backing := _read(f"{place}/loop/backing_file"):
        found = _of_file(backing)
        return f"{found}+{_read(f'{place}/loop/offset') or '0'}" if found else ""
    mapped = _read(f"{place}/dm/uuid")
    if mapped:
        return (
            worldwide_name(mapped.removeprefix(_MULTIPATH_PREFIX))
            if mapped.startswith(_MULTIPATH_PREFIX)
            else ""
        )
    return worldwide_name(_read(f"{place}/device/wwid") or _read(f"{place}/wwid"))


def worldwide_name(name: str) -> str:
    """A name of sysfs or multipath as naa.…, eui.… or uuid.…; empty if it is of a kind that repeats (T10, serial number)."""
    name = name.lower()
    if name[:1] in _SCSI_ID_PREFIXES and _HEX.fullmatch(name[1:]) and len(name) in (17, 33):
        return _SCSI_ID_PREFIXES[name[0]] + name[1:]
    kind, dot, rest = name.partition(".")
    known = kind in ("naa", "eui", "uuid") and dot and _HEX.fullmatch(rest.replace("-", ""))
    return name if known and rest.strip("0-") else ""


def _of_file(path: str) -> str:
    handle = _handle(path)
    if handle is None:
        return ""
    kind, raw, mount_id = handle
    file_system = _type_of_mount(mount_id)
    if file_system in _BY_SERVER:
        return f"nfs:{kind}:{raw.hex()}"
    if file_system in _BY_FILE_SYSTEM:
        return f"{file_system}:{os.statvfs(path).f_fsid:x}:{kind}:{raw.hex()}"
    return ""


def _handle(path: str) -> tuple[int, bytes, int] | None:
    """Type and bytes of a file's handle, and the id of its mount; None where the file system gives none."""
    buffer = ctypes.create_string_buffer(_HEADER.size + _HANDLE_BYTES_MAX)
    _HEADER.pack_into(buffer, 0, _HANDLE_BYTES_MAX, 0)
    mount_id = ctypes.c_int()
    failed = _libc.name_to_handle_at(
        _AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount_id), _AT_SYMLINK_FOLLOW
    )
    if failed:
        return None
    length, kind = _HEADER.unpack_from(buffer, 0)
    return kind, buffer.raw[_HEADER.size : _HEADER.size + length], mount_id.value


def _type_of_mount(mount_id: int) -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            if line.startswith(f"{mount_id} "):
                return next((mount.type for mount in parse_mountinfo(line)), "")
    return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as f:
            return f.read(_TEXT_BYTES_MAX).rstrip("\n")
    except OSError:
        return ""

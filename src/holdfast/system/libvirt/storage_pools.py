"""Where a volume of one of libvirt's storage pools is: the path that libvirt locks for a disk of type='volume'.

libvirt translates pool and volume to a path when a VM starts (libvirt-integration.md 2.1). In pools whose volumes are
files of a directory, or devices below one, that path is the pool's target and the volume's name; iscsi, scsi and network
pools name their volumes otherwise, and have no answer here. The pools' files are libvirt's own: of active ones in /run,
of defined ones in /etc.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET

DIRECTORIES = ("/run/libvirt/storage", "/etc/libvirt/storage")
POOL_BYTES_MAX = 1 << 20
NAMED_BY_TARGET = frozenset(("dir", "fs", "netfs", "logical"))
"""Types of pools where a volume's path is TARGET/NAME."""


def volume_path(pool: str, volume: str, directories: tuple[str, ...] = DIRECTORIES) -> str:
    """Empty if it can't be determined."""
    if not _is_name(pool) or not _is_name(volume):
        return ""
    for directory in directories:
        target = _target(os.path.join(directory, f"{pool}.xml"))
        if target:
            return os.path.join(target, volume)
    return ""


def _target(path: str) -> str:
    """The directory of a pool's volumes; empty for a pool of another kind, or a file that can't be read."""
    try:
        if os.path.getsize(path) > POOL_BYTES_MAX:
            return ""
        tree = ET.parse(path).getroot()
    except (OSError, ET.ParseError, ValueError):
        return ""
    element = tree if tree.tag == "pool" else tree.find(".//pool")
    if element is None or element.get("type") not in NAMED_BY_TARGET:
        return ""
    target = element.findtext("target/path", "").strip()
    return target.rstrip("/") if target.startswith("/") else ""


def _is_name(text: str) -> bool:
    return bool(text) and text not in (".", "..") and "/" not in text and "\0" not in text

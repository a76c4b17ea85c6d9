"""Where a volume of one of libvirt's storage pools is: what libvirt makes of a disk of type='volume' when its VM starts.

In pools whose volumes are files of a directory, or devices below one, it is the path TARGET/NAME, and libvirt locks that
path (libvirt-integration.md 2.1).  In pools that are reached over a network it is a network disk, which libvirt locks never.
Others name their volumes as they like, and only libvirt knows the paths. The pools' files are libvirt's own: of active ones
in /run, of defined ones in /etc.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from holdfast.system.libvirt.network_names import network_name, servers
from holdfast.system.libvirt.xml_text import NotUnderstood, read

DIRECTORIES = ("/run/libvirt/storage", "/etc/libvirt/storage")
POOL_BYTES_MAX = 1 << 20
NAMED_BY_TARGET = frozenset(("dir", "fs", "netfs", "logical"))
"""Types of pools where a volume's path is TARGET/NAME."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One of `path` and `network_name` is set, or `reason` says why neither is known."""

    path: str = ""
    network_name: str = ""
    reason: str = ""


def find_volume(
    pool: str, volume: str, directories: tuple[str, ...] = DIRECTORIES, *, direct: bool = False
) -> Volume:
    """`direct`: QEMU itself reaches the target of an iscsi pool (mode='direct')."""
    if not _is_name(pool) or not volume or "\0" in volume:
        return Volume(reason="its pool or volume has no name")
    reason = f"no file of libvirt has its pool {pool!r}"
    for directory in directories:
        path = os.path.join(directory, f"{pool}.xml")
        try:
            tree = read(path, POOL_BYTES_MAX)
        except NotUnderstood as e:
            if os.path.lexists(path):
                reason = f"{path} can't be read: {e}"
            continue
        element = tree if tree.tag == "pool" else tree.find(".//pool")
        if element is not None:
            return _in_pool(element, volume, direct=direct)
        reason = f"{path} is about no pool"
    return Volume(reason=reason)


def _in_pool(pool: ET.Element, volume: str, *, direct: bool) -> Volume:
    kind = pool.get("type", "")
    if kind in NAMED_BY_TARGET:
        target = pool.findtext("target/path", "").strip()
        if target.startswith("/") and _is_name(volume):
            return Volume(path=f"{target.rstrip('/')}/{volume}")
        return Volume(reason="its pool has no target path, or its name is no file's")
    if name := _network_name(pool, kind, volume, direct=direct):
        return Volume(network_name=name)
    return Volume(reason=f"only libvirt knows the paths of volumes in a pool of type {kind!r}")


def _network_name(pool: ET.Element, kind: str, volume: str, *, direct: bool) -> str:
    """As a disk of type network would be called; empty if the volume is none."""
    source = pool.find("source")
    if source is None:
        return ""
    hosts, name = servers(source), source.findtext("name", "").strip()
    match kind:
        case "rbd":
            return network_name("rbd", f"{name}/{volume}")
        case "sheepdog":
            return network_name("sheepdog", volume)
        case "gluster":
            folder = source.find("dir")
            inside = "" if folder is None else folder.get("path", "").strip("/")
            return network_name("gluster", "/".join(each for each in (name, inside, volume) if each), hosts)
        case "iscsi-direct" | "iscsi" if direct or kind == "iscsi-direct":
            device = source.find("device")
            target = "" if device is None else device.get("path", "")
            return network_name("iscsi", f"{target}/{volume.rpartition(':')[2]}", hosts)
        case _:
            return ""


def _is_name(text: str) -> bool:
    return bool(text) and text not in (".", "..") and "/" not in text and "\0" not in text

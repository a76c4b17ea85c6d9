"""Where libvirt keeps what we need to read: its configuration, its domains; read-only, and only files.

The XML is libvirt's own (libvirt-integration.md section 4); a file that can't be parsed is no answer, not an error.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator

from holdfast.backends.naming import indirect_name
from holdfast.cli.libvirt_conf import ConfFile, parse
from holdfast.model import Resource
from holdfast.system.files.disk_identity import DiskIdentity
from holdfast.system.files.regular_file import Unreadable
from holdfast.system.libvirt.domains import Domain, read_domain
from holdfast.system.libvirt.storage_pools import DIRECTORIES

QEMU_CONF = "etc/libvirt/qemu.conf"
LOCKD_CONF = "etc/libvirt/qemu-lockd.conf"
DOMAINS = "etc/libvirt/qemu"
RUNNING = "run/libvirt/qemu"


CONF_BYTES_MAX = 1 << 20
"""libvirt's own files have some ten thousand bytes with all their comments."""


def read_conf(path: str) -> ConfFile | Unreadable:
    """A configuration file of libvirt as libvirt reads it. It may be a link; never waits."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as f:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return Unreadable("it is no regular file")
            text = f.read(CONF_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return Unreadable("it is not there", missing=True)
    except OSError as e:
        return Unreadable(e.strerror or str(e))
    return parse(text)


def read_settings(path: str) -> dict[str, str] | None:
    """The settings that count, as text; None if there is no such file, or if it can't be read."""
    conf = read_conf(path)
    if isinstance(conf, Unreadable):
        return None
    return {each.name: conf.text(each.name) for each in conf.settings}


def libvirt_lockspaces(root: str = "/") -> list[str]:
    """The lockspace directories of qemu-lockd.conf."""
    settings = read_settings(os.path.join(root, LOCKD_CONF)) or {}
    keys = ("file_lockspace_dir", "lvm_lockspace_dir", "scsi_lockspace_dir")
    return [settings[k] for k in keys if settings.get(k)]


def libvirt_names(path: str, disk: DiskIdentity, root: str = "/") -> list[Resource]:
    """Every name under which libvirt may ask for a disk: by its path, and in the lockspaces of qemu-lockd.conf.

    libvirt takes the first that applies (libvirt-integration.md 2.3). Another host may be configured otherwise, or may
    have been when it took the lock, so all of them are worth a question.
    """
    settings = read_settings(os.path.join(root, LOCKD_CONF)) or {}
    names = [Resource("", path)]
    if directory := settings.get("file_lockspace_dir"):
        names.append(Resource(directory, indirect_name(path)))
    if (directory := settings.get("lvm_lockspace_dir")) and disk.lvm_uuid:
        names.append(Resource(directory, disk.lvm_uuid))
    if (directory := settings.get("scsi_lockspace_dir")) and (scsi_id := scsi_id_of(disk.wwid)):
        names.append(Resource(directory, scsi_id))
    return names


_SCSI_ID_TYPES = {"t10": "1", "eui": "2", "naa": "3"}
"""The digit of a SCSI identifier's type (SPC, VPD page 0x83), with which udev's scsi_id begins its answer."""


def scsi_id_of(wwid: str) -> str:
    """What `scsi_id --replace-whitespace` prints for a disk whose wwid sysfs gives; empty if there is none."""
    kind, _, number = wwid.partition(".")
    digit = _SCSI_ID_TYPES.get(kind)
    if digit is None:
        # A multipath map is named by scsi_id itself.
        return wwid if wwid[:1] in _SCSI_ID_TYPES.values() and wwid.isalnum() else ""
    return digit + re.sub(r"\s+", "_", number.strip())


def domains(root: str = "/", unread: list[str] | None = None) -> Iterator[Domain]:
    """Every domain that is defined or running, a running one with its pid.

    `unread` gets the paths of status files of running domains that are there and can't be read.
    """
    seen: set[str] = set()
    pools = tuple(os.path.join(root, each.lstrip("/")) for each in DIRECTORIES)
    running = sorted(glob.glob(os.path.join(root, RUNNING, "*.xml")))
    defined = sorted(glob.glob(os.path.join(root, DOMAINS, "*.xml")))
    for path in (*running, *defined):
        domain = read_domain(path, pools)
        if domain is not None and domain.name not in seen:
            seen.add(domain.name)
            yield domain
        elif domain is None and unread is not None and path in running and os.path.exists(path):
            unread.append(path)


def lockable_paths(name: str, root: str = "/") -> list[str]:
    """The lockable disks of a domain, by name or UUID."""
    return [d.path for domain in domains(root) if name in (domain.name, domain.uuid) for d in domain.disks]


def lease_paths(key: str, root: str = "/") -> list[str]:
    """The files of `<lease>` elements with that key, in every domain that is defined or running."""
    paths = [path for domain in domains(root) for path in domain.leases if path.endswith(f"/{key}")]
    return list(dict.fromkeys(paths))

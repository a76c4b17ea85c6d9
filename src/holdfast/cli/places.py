"""Where libvirt keeps what we need to read: its configuration, its domains; read-only, and only files.

The XML is libvirt's own (libvirt-integration.md section 4); a file that can't be parsed is no answer, not an error.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from holdfast.system.domain_status import Domain, read_domain

QEMU_CONF = "etc/libvirt/qemu.conf"
LOCKD_CONF = "etc/libvirt/qemu-lockd.conf"
DOMAINS = "etc/libvirt/qemu"
RUNNING = "run/libvirt/qemu"

_SETTING = re.compile(r"^\s*([A-Za-z_]+)\s*=\s*(.*?)\s*$")


def read_settings(path: str) -> dict[str, str] | None:
    """`key = value` of libvirt's configuration files, unquoted; None if there is no such file."""
    found: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                text = line.split("#", 1)[0] if '"' not in line else line
                if text.lstrip().startswith("#"):
                    continue
                if (m := _SETTING.match(text)) is not None:
                    value = m[2]
                    if value.startswith('"') and '"' in value[1:]:
                        value = value[1 : value.index('"', 1)]
                    found[m[1]] = value
    except OSError:
        return None
    return found


def libvirt_lockspaces(root: str = "/") -> list[str]:
    """The lockspace directories of qemu-lockd.conf."""
    settings = read_settings(os.path.join(root, LOCKD_CONF)) or {}
    keys = ("file_lockspace_dir", "lvm_lockspace_dir", "scsi_lockspace_dir")
    return [settings[k] for k in keys if settings.get(k)]


def domains(root: str = "/") -> Iterator[Domain]:
    """Every domain that is defined or running, a running one with its pid."""
    seen: set[str] = set()
    running = sorted(glob.glob(os.path.join(root, RUNNING, "*.xml")))
    defined = sorted(glob.glob(os.path.join(root, DOMAINS, "*.xml")))
    for path in (*running, *defined):
        domain = read_domain(path)
        if domain is not None and domain.name not in seen:
            seen.add(domain.name)
            yield domain


def domain_disks(name: str, root: str = "/") -> list[str]:
    """The lockable disks of a domain, by name or UUID."""
    return [d.path for domain in domains(root) if name in (domain.name, domain.uuid) for d in domain.disks]

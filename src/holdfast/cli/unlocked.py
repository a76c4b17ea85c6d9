"""Disks of running VMs that libvirt asks no lock for: at protection level 0, whatever the daemon holds.

The daemon never hears of them (libvirt-integration.md 2.1), so commands read them from libvirt's status files, and show them
beside what the daemon says.
"""

from __future__ import annotations

import os
import socket

from holdfast.cli.libvirt_files import domains
from holdfast.control.api import HolderInfo
from holdfast.model import Protection

NOTE = "libvirt asks no lock for such disks"
SOURCE = "libvirt"


def unlocked_disks(root: str = "/") -> list[HolderInfo]:
    """One entry for each, like those of the daemon but not held."""
    host = socket.gethostname()
    return [
        HolderInfo(
            resource=what, lockspace="", name=what, mode="not locked", owner=domain.name, owner_uuid=domain.uuid,
            pid=domain.pid, host=host, since=None, backend="", path="", protection=int(Protection.NONE),
            protection_word=Protection.NONE.word, protection_note=NOTE, held=False, lost_reason="", source=SOURCE,
        )
        for domain in domains(root)
        if domain.pid is not None and os.path.exists(f"/proc/{domain.pid}")
        for what in domain.unlocked
    ]  # fmt: skip

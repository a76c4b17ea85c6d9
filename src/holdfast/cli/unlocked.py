"""Disks of running VMs that have no lock for their kind: at protection level 0, whatever the daemon holds.

The daemon never hears of them (libvirt-integration.md 2.1), so commands read them from libvirt's status files, and show them
beside what the daemon says.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace

from holdfast.cli.libvirt_files import domains
from holdfast.control.api import HolderInfo, OwnerInfo
from holdfast.model import Protection

SOURCE = "libvirt"


def unlocked_disks(root: str = "/") -> list[HolderInfo]:
    """One entry for each, like those of the daemon but not held."""
    host = socket.gethostname()
    return [
        HolderInfo(
            resource=str(disk), lockspace="", name=disk.name, mode="not locked", owner=domain.name, owner_uuid=domain.uuid,
            pid=domain.pid, host=host, since=None, backend="", path="", protection=int(Protection.NONE),
            protection_word=Protection.NONE.word, protection_note=disk.why_unlocked, held=False, lost_reason="",
            source=SOURCE,
        )
        for domain in domains(root)
        if domain.pid is not None and domain.runs()
        for disk in domain.unlocked
    ]  # fmt: skip


def weakest(owners: Sequence[OwnerInfo], unlocked: Sequence[HolderInfo]) -> list[OwnerInfo]:
    """The owners with the level of their weakest disk, which for a VM with such a disk is 0."""
    bare = {each.pid for each in unlocked}
    none = Protection.NONE
    return [
        replace(each, protection=int(none), protection_word=none.word) if each.pid in bare else each
        for each in owners
    ]

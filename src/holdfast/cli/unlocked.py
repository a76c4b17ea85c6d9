"""Disks of running VMs that have no lock for their kind: at protection level 0.

libvirt asks for none of them (libvirt-integration.md 2.1), so commands read them from libvirt's status files, and show them
beside what the daemon says. For a network disk that a rule names, its hook has asked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from holdfast.cli.libvirt_files import domains
from holdfast.control.api import HolderInfo, OwnerInfo
from holdfast.model import Protection

SOURCE = "libvirt"


def unlocked_disks(locks: Callable[[], Sequence[HolderInfo]], root: str = "/") -> list[HolderInfo]:
    """One entry for each, like those of the daemon but not held. `locks`: what the daemon holds, if it has to be asked."""
    host = socket.gethostname()
    running = [each for each in domains(root) if each.pid is not None and each.runs()]
    over_network = any(domain.networked for domain in running)
    held = held_names(locks() if over_network else ())
    return [
        HolderInfo(
            resource=str(disk), lockspace="", name=disk.name, mode="not locked", owner=domain.name, owner_uuid=domain.uuid,
            pid=domain.pid or 0, host=host, since=None, backend="", path="", protection=int(Protection.NONE),
            protection_word=Protection.NONE.word, protection_note=disk.why_unlocked, held=False, lost_reason="",
            source=SOURCE,
        )
        for domain in running
        for disk in domain.unlocked
        if (domain.pid, disk.name) not in held
    ]  # fmt: skip


def held_names(locks: Iterable[HolderInfo]) -> frozenset[tuple[int, str]]:
    """The locks that the daemon holds: the owner's pid with the name of the disk."""
    return frozenset((lock.pid, lock.name) for lock in locks if lock.held)


def weakest(owners: Sequence[OwnerInfo], unlocked: Sequence[HolderInfo]) -> list[OwnerInfo]:
    """The owners with the level of their weakest disk, which for a VM with such a disk is 0."""
    bare = {each.pid for each in unlocked}
    none = Protection.NONE
    return [
        replace(each, protection=int(none), protection_word=none.word) if each.pid in bare else each
        for each in owners
    ]

"""What a path is, and which running VMs use it without a lock of their own on it: as the image below theirs, or to read.

libvirt asks a lock for the top image of each writable disk alone, so locks say nothing of these uses.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from functools import partial

from holdfast.cli.libvirt_files import domains
from holdfast.cli.who.evidence import Unreadable, Use
from holdfast.system.files.bounded_question import Silent, answer_in_time
from holdfast.system.libvirt.domain_disks import Access, Role

_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISCHR, "a character device"), (stat.S_ISFIFO, "a FIFO"))

_AS = {
    Role.BELOW: "the image below its own",
    Role.DATA: "the data file of its own image",
    Role.COPY: "the target of a copy",
    Role.NVRAM: "its NVRAM",
    Role.TPM: "its TPM state",
}
_WRITTEN = frozenset((Role.DATA, Role.COPY, Role.NVRAM, Role.TPM))


def no_disk(path: str) -> str:
    """What it is that no VM can have as a disk; empty for everything else, also for what can't be looked at."""
    try:
        mode = answer_in_time(partial(_mode, path))
    except (OSError, Silent):
        return ""
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return ""
    return next((word for test, word in _KINDS if test(mode)), "a socket")


def users(path: str, open_in: Collection[int], root: str) -> tuple[Use, ...] | Unreadable:
    """Running VMs and how they use it. `open_in`: the QEMUs that have it open; `root`: where libvirt's files are."""
    found: list[Use] = []
    unread: list[str] = []
    for domain in domains(root, unread):
        if not domain.runs() or any(disk.path == path for disk in domain.disks):
            continue  # its own disk: locks say who has that
        part = next((each for each in domain.unguarded if each.path == path), None)
        if part is not None:
            found.append(Use(domain.name, domain.pid, f"as {_AS[part.role]}", part.role in _WRITTEN))
        elif path in domain.readonly:
            found.append(Use(domain.name, domain.pid, "to read"))
        elif domain.pid in open_in:
            found.append(Use(domain.name, domain.pid, "below one of its disks, or for a job"))
    return _all(found, unread)


def users_of_name(name: str, root: str) -> tuple[Use, ...] | Unreadable:
    """Running VMs with a disk that has no path but this name, and how they use it."""
    unread: list[str] = []
    found = [
        Use(domain.name, domain.pid, "to read" if disk.access is Access.READ_ONLY else "without a lock")
        for domain in domains(root, unread)
        if domain.runs()
        for disk in domain.every
        if disk.name == name and not disk.path
    ]
    return _all(found, unread)


def _all(found: Sequence[Use], unread: Sequence[str]) -> tuple[Use, ...] | Unreadable:
    """A file that can't be read may name a user; with one that is known the answer is "held" anyway."""
    if unread and not found:
        reason = f"{unread[0]} can't be read: the VM that it is about may use the disk without a lock"
        return Unreadable("libvirt's file about a running VM", reason)
    return tuple(found)


def _mode(path: str) -> int:
    return os.stat(path).st_mode

"""The one path that all hosts should name a disk by, where locks are named by its path.

Two paths to one disk have two lock files, or two leases: neither excludes the other. So a path is *canonical* if no
symbolic link leads to the disk, and `.`, `..` and `//` are not in it.

In /dev the stable names are links themselves, made by udev: each stands for itself. Only the device mapper's numbers
(/dev/dm-3), which differ from host to host, stand for its names (/dev/mapper/NAME). That /dev/vg/web and
/dev/mapper/vg-web are one disk is not seen here.
"""

from __future__ import annotations

import logging
import os
import re

log = logging.getLogger(__name__)

_MAPPED = re.compile(r"/dev/(dm-\d+)")
LINKS_MAX = 40
"""As the kernel's: a path with more links in a row leads nowhere."""
NAME_BYTES_MAX = 1024
WARNED_MAX = 10_000
"""Paths that are remembered so as to warn once of each; then the memory starts again."""


def canonical_path(path: str, sysfs: str = "/sys") -> str:
    """The path itself if it leads nowhere. May block on the file system that it is on."""
    try:
        return _followed(path, sysfs)
    except (OSError, ValueError):
        return path


def _followed(path: str, sysfs: str) -> str:
    at = path
    for _ in range(LINKS_MAX):
        directory, _, name = at.rpartition("/")
        if name in ("", ".", ".."):
            return os.path.realpath(at)
        at = f"{os.path.realpath(directory or '/').rstrip('/')}/{name}"
        if mapped := _MAPPED.fullmatch(at):
            with open(f"{sysfs}/class/block/{mapped[1]}/dm/name", encoding="ascii", errors="replace") as f:
                return f"/dev/mapper/{f.read(NAME_BYTES_MAX).strip()}"
        if at.startswith("/dev/") or not os.path.islink(at):
            return at
        at = os.path.join(os.path.dirname(at), os.readlink(at))
    return path


class PathWarnings:
    """Of one backend that names its locks by the paths of disks: one warning for each path that is not canonical."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._warned: set[str] = set()

    def met(self, path: str, canonical: str) -> None:
        """`canonical`: empty where it is not known."""
        if canonical in ("", path) or path in self._warned:
            return
        if len(self._warned) >= WARNED_MAX:
            self._warned.clear()
        self._warned.add(path)
        log.warning(
            "%s is another name of %s: backend '%s' names locks by path, so a VM that has the disk by another name "
            "is not excluded; 'holdfast doctor' says what to do",
            path,
            canonical,
            self._backend,
        )

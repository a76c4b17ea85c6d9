"""Who holds a lease of sanlock's clients: it has a lockspace, a name and a place, and is no disk of libvirt's.

It is named as sanlock itself does, in `sanlock client status` and everywhere else: LOCKSPACE:RESOURCE:PATH:OFFSET
(sanlock-socket.md 2.3; a colon of the path is written as "\\:"), or as `holdfast list` shows one that this host holds:
sanlock:LOCKSPACE/RESOURCE.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from holdfast.cli.offline.identify import shown
from holdfast.model import SANLOCK_PREFIX
from holdfast.ondisk.geometry import SECTOR_4096
from holdfast.ondisk.leader import Leader

_NAME = r"[^:/\s]{1,48}"
_BY_PLACE = re.compile(rf"({_NAME}):({_NAME}):(/(?:\\:|[^:])+):([0-9]{{1,19}})(?::[0-9]+)?")
_BY_NAME = re.compile(rf"({_NAME}):({_NAME})")
_AS_LISTED = re.compile(rf"{SANLOCK_PREFIX}({_NAME})/({_NAME})")


class ClientLease(NamedTuple):
    """`path` is empty if it was named without its place."""

    lockspace: str
    name: str
    path: str = ""
    offset_bytes: int = 0

    @property
    def place(self) -> str:
        return f"{self.path}:{self.offset_bytes}"

    def at(self, place: str) -> ClientLease:
        """The lease at a place as a journal and `place` have it; itself if that is none."""
        path, _, offset = place.rpartition(":")
        if not path.startswith("/") or not offset.isascii() or not offset.isdigit():
            return self
        return self._replace(path=path, offset_bytes=int(offset))

    def __str__(self) -> str:
        named, path = f"{self.lockspace}:{self.name}", self.path.replace(":", "\\:")
        return f"{named}:{path}:{self.offset_bytes}" if path else named


def named(what: str) -> ClientLease | None:
    """The lease that is called so; None for any other question."""
    if (found := _BY_PLACE.fullmatch(what)) is not None:
        lockspace, name, path, offset = found.groups()
        return ClientLease(lockspace, name, path.replace("\\:", ":"), int(offset))
    found = _AS_LISTED.fullmatch(what) or _BY_NAME.fullmatch(what)
    return ClientLease(found[1], found[2]) if found is not None else None


def at_start_of(path: str) -> str:
    """The lease at offset 0 of a file or device, as `who` wants it named; empty if there is none, or it can't be read.

    It is read as any file, for this says no more than that a lease lies there.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        leader = Leader.decode(os.pread(fd, SECTOR_4096, 0))
    except OSError:
        return ""
    finally:
        os.close(fd)
    if not isinstance(leader, Leader):
        return ""
    return str(ClientLease(shown(leader.space_name), shown(leader.resource_name), path))

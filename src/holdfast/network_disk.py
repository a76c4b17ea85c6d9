"""Which names are of disks that are reached over a network (`system/libvirt/network_names` makes them). PURE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

PROTOCOLS = frozenset(
    (
        "ftp",
        "ftps",
        "gluster",
        "http",
        "https",
        "iscsi",
        "nbd",
        "nfs",
        "rbd",
        "sheepdog",
        "ssh",
        "tftp",
        "vxhs",
    )
)
"""What libvirt has as protocol of a network disk (formatdomain, <source protocol=>)."""
_NAMED = re.compile(rf"({'|'.join(sorted(PROTOCOLS))})(\+[a-z]+)?:")


def is_network_name(text: str) -> bool:
    """Whether a name, or a glob over names, is of disks that are reached over a network: no path begins like that."""
    return not text.startswith("/") and _NAMED.match(text) is not None


def names_network_disk(globs: Iterable[str], name: str) -> bool:
    """Whether one of the globs of the rules is for that disk. "*" is not: it is for paths alone."""
    return any(is_network_name(glob) and fnmatchcase(name, glob) for glob in globs)

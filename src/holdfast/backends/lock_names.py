"""Names of lock files: libvirt's own, so that hosts with virtlockd and hosts with holdfastd meet at the same file."""

from __future__ import annotations

import hashlib


def indirect_name(path: str) -> str:
    """The name of a disk path in a hash lockspace: lower-case hex SHA-256 (libvirt-integration.md 2.3, row 3)."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()

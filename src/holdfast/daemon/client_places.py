"""Where the lockspaces are that clients of sanlock have added, as each copy of this host's incarnation there says it too.

The journal names these lockspaces. Where it is lost, nothing else would: no configuration has them. So the copies in
state_dir and RUN_DIR (`supervision.incarnation_copies`) have the place beside the incarnation, from the join until the
lockspace is removed, and a start that finds one which the journal doesn't name joins it again, in doubt (ADR 0245).
"""

from __future__ import annotations

from holdfast.manager.journal_kinds import SanlockLockspaceLine, text_of
from holdfast.supervision.host_identity import Incarnation
from holdfast.supervision.lockspace_port import LockspaceSpec


def place_of(spec: LockspaceSpec) -> str:
    """`OFFSET:PATH`, the path percent-encoded as in the journal."""
    return f"{spec.offset_bytes}:{text_of(spec.path)}"


def line_of(term: Incarnation) -> SanlockLockspaceLine | None:
    """The journal's line of a lockspace that an incarnation's copy says clients have added; None if it says none.

    Marks of clients (`uses`) are not in a copy; while its leases are in doubt, no client can remove the lockspace anyway.
    """
    offset, colon, path = term.clients_place.partition(":")
    if not colon or not offset.isdecimal():
        return None
    return SanlockLockspaceLine(
        name=text_of(term.lockspace),
        path=path,
        offset_bytes=int(offset),
        sector_bytes=0,
        align_bytes=0,
        host_id=term.host_id,
        io_timeout_s=term.io_timeout_s,
    )

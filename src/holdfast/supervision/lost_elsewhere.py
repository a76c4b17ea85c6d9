"""PURE: what a host that has lost a lockspace says in the host records of its other lockspaces: it may be reset for that."""

from __future__ import annotations

from holdfast.model import cut_utf8, printable, wall_text
from holdfast.ondisk.host_record import END_BYTES_MAX
from holdfast.supervision.lockspace_news import Joined, LockspaceNews, Lost, Over, UsersGone


class LostElsewhere:
    """The lockspaces that are lost now."""

    def __init__(self) -> None:
        self._lost: dict[str, str] = {}

    def heard(self, news: LockspaceNews, *, wall_s: float, fences: bool) -> bool:
        """Whether this changes what is said. `wall_s`: seconds since 1970; `fences`: a watchdog resets this host."""
        match news:
            case Lost(lockspace, reason):
                fate = (
                    "its watchdog resets it unless its VMs there end in time"
                    if fences
                    else "nothing resets it"
                )
                self._lost[lockspace] = (
                    f"{wall_text(wall_s)}: lockspace {lockspace} is lost ({reason}); {fate}"
                )
                return True
            case Joined(lockspace) | UsersGone(lockspace) | Over(lockspace):
                return self._lost.pop(lockspace, None) is not None
            case _:
                return False

    def beside(self, lockspace: str) -> str:
        """What its record says in this lockspace, at most END_BYTES_MAX bytes; empty if no other one is lost."""
        texts = "; ".join(text for name, text in sorted(self._lost.items()) if name != lockspace)
        return cut_utf8(printable(texts), END_BYTES_MAX)

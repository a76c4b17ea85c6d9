"""`holdfast why`: the last refusal or loss of a VM or a disk, what has become of it, and who holds the disk now."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.cli.render import owner_text
from holdfast.model import printable, wall_text

if TYPE_CHECKING:
    from holdfast.cli.who.report import Answer
    from holdfast.control.api import EventInfo

SENTENCES = {
    "refused": "{owner} was refused {disk}",
    "lock-lost": "{owner} lost its lock of {disk}",
    "lease-lost": "{owner} lost the lease of {disk}",
    "owner-stopped": "{owner} was stopped, because its lock of {disk} was lost",
    "owner-not-restarted": "{owner} was stopped for a lost lockspace, and could not be started again",
    "lock-unknown": "the lock of {disk} is held for an owner that nobody can name",
}
"""By the kinds of `manager/events` that an operator asks about."""
MENDED = frozenset({"acquired", "lock-regained", "lock-adopted", "owner-restarted", "lock-settled"})
"""Kinds after which the same VM or disk is well again."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong last, and the first later event by which it was mended, if any."""

    event: EventInfo
    mended: EventInfo | None


def last_trouble(events: Iterable[EventInfo], what: str) -> Trouble | None:
    """Of a VM (its name or uuid) or a disk (its path, or its name without one); events are the oldest first."""
    names = {what, os.path.abspath(what)} if "/" in what else {what}
    trouble: Trouble | None = None
    for event in events:
        if not names & {event.resource, event.owner, event.owner_uuid} - {""}:
            continue
        if event.kind in SENTENCES:
            trouble = Trouble(event, None)
        elif trouble is not None and trouble.mended is None and _mends(event, trouble.event):
            trouble = Trouble(trouble.event, event)
    return trouble


def _mends(event: EventInfo, trouble: EventInfo) -> bool:
    """The same owner has the same disk: that another one has it by now mends nothing for the one that was refused."""
    same_owner = event.owner_uuid == trouble.owner_uuid and event.owner == trouble.owner
    same_disk = event.resource in ("", trouble.resource) or not trouble.resource
    return event.kind in MENDED and same_owner and same_disk


def paragraph(trouble: Trouble, now: Answer | None, now_s: float) -> str:
    """What happened, and the next step. `now`: what `holdfast who` says of the disk; `now_s`: seconds since the epoch."""
    event = trouble.event
    # A VM that may not begin on this host at all was asked about without its disks.
    unnamed = "its start" if event.kind == "refused" else "a disk"
    what = SENTENCES[event.kind].format(
        owner=owner_text(event.owner, event.pid), disk=event.resource or unnamed
    )
    mode = f" ({event.mode})" if event.mode else ""
    sentences = [f"{wall_text(event.time)}, {ago(now_s - event.time)}: {what}{mode}."]
    if event.detail:
        sentences.append(f"holdfastd said: {event.detail.rstrip('.')}.")
    if trouble.mended is not None:
        sentences.append(
            f"It has been well again since {wall_text(trouble.mended.time)} ({trouble.mended.kind})."
        )
    if now is None:
        return printable(" ".join(sentences))
    sentences.append(f"Now: {now.headline}.")
    step = "none: it is well again" if trouble.mended is not None else now.next_step
    return f"{printable(' '.join(sentences))}\nnext: {printable(step)}"


def ago(seconds: float) -> str:
    """A span for people, to its greatest unit; a clock that was set back gives no negative one."""
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"

"""PURE: how this host's last boot ended, by the notes of the flight recorder.

A host that its watchdog resets writes nothing at that moment. What its notes say is what was decided before:

    notes of the last boot                              so
    the daemon was stopped last                         ORDERLY: nothing of ours was left to reset the host
    the watchdog was left unfed, and not fed since      WATCHDOG: it fired, unless something else was faster
    neither, and the device says that it fired          WATCHDOG: the host hung, or holdfastd did
    neither                                             UNEXPLAINED: power, the kernel, a person, a fencing device
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.flight import notes as n
from holdfast.flight.notes import Note
from holdfast.model import cut_utf8, wall_text
from holdfast.ondisk.host_record import END_BYTES_MAX

TAIL_MAX = 20
"""Notes that are shown: the last ones that are more than routine."""
ROUTINE = frozenset(("acquired", "released", "converted", "lock-started", n.ALIVE, n.START))
UNFED_MAX_S = 600.0
"""A watchdog that was unfed for longer than that did not fire: the next daemon of that boot has fed it."""


class Cause(enum.Enum):
    ORDERLY = "orderly"
    WATCHDOG = "watchdog"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class LastEnd:
    """`last`: the last sign of life, seconds since 1970; `unfed`: since when the watchdog was not fed, 0 if it was;
    `resetter`: the watchdog's device that says that it did it.
    """

    boot: str
    cause: Cause
    last: float
    unfed: float
    why: tuple[str, ...]
    """Losses of lockspaces that were not joined again, and what the watchdog's end was said to be, oldest first."""
    tail: tuple[Note, ...]
    resetter: str = ""


def last_end(notes: Sequence[Note], boot: str, resetter: str = "") -> LastEnd | None:
    """Of the last boot before `boot`, which `resetter` ended by its own word; None if there are no notes of one."""
    of_boot = ""
    found: dict[str, list[Note]] = {}
    for note in notes:
        of_boot = note.boot or of_boot
        if of_boot and of_boot != boot:
            found.setdefault(of_boot, []).append(note)
    if not found:
        return None
    last_boot, last = list(found.items())[-1]
    return _of_boot(last_boot, last, resetter)


def _of_boot(boot: str, notes: list[Note], resetter: str) -> LastEnd:
    stopped, unfed = False, None
    lost: dict[str, Note] = {}
    for note in notes:
        match note.kind:
            case n.START | n.ALIVE:
                stopped = False
            case "daemon-stopping":
                stopped = True
            case "watchdog-unfed":
                unfed = note
            case "watchdog-fed":
                unfed = None
            case "lockspace-lost" | "host-reset-awaited":  # "NAME: why"
                lost[note.text.partition(": ")[0]] = note
            case "lockspace-joined":  # "NAME"
                lost.pop(note.text, None)
            case _:
                pass
    last = max(note.at for note in notes)
    if unfed is not None and last - unfed.at > UNFED_MAX_S:
        unfed = None
    why = [*lost.values(), *([unfed] if unfed is not None else [])]
    cause = Cause.ORDERLY if stopped else Cause.UNEXPLAINED
    return LastEnd(
        boot=boot,
        cause=Cause.WATCHDOG if unfed is not None or (resetter and not stopped) else cause,
        last=last,
        unfed=unfed.at if unfed is not None else 0.0,
        why=tuple(f"{wall_text(each.at)}: {each.text}" for each in sorted(why, key=lambda each: each.at)),
        tail=tuple(note for note in notes if note.kind not in ROUTINE)[-TAIL_MAX:],
        resetter=resetter,
    )


def paragraph(end: LastEnd) -> str:
    """For people, at most END_BYTES_MAX bytes of UTF-8, so that it fits the host's record."""
    last, why = wall_text(end.last), "".join(f" {each.rstrip('.')}." for each in end.why)
    if end.cause is Cause.ORDERLY:
        text = f"holdfastd was stopped in good order before that boot ended; its last note is of {last}.{why}"
    elif end.cause is Cause.WATCHDOG and not end.unfed:
        text = (
            f"the watchdog reset this host ({end.resetter} says so), and holdfastd had decided nothing that leads to that; "
            f"its last note is of {last}.{why} The whole host hung, or holdfastd itself ended or hung."
        )
    elif end.cause is Cause.WATCHDOG:
        doubt = f" ({end.resetter} says so)" if end.resetter else ", unless something else did before"
        text = (
            f"the watchdog had not been fed since {wall_text(end.unfed)}, so it reset this host{doubt}; the last note is of "
            f"{last}.{why}"
        )
    else:
        text = (
            f"holdfastd had decided nothing that resets this host; its last note is of {last}.{why} A power failure, a "
            "crash of the kernel, a person or a fencing device ended that boot, or holdfastd itself ended or hung and its "
            "watchdog fired."
        )
    return cut_utf8(text, END_BYTES_MAX)

"""When each QEMU could write to the volume: what it noted of its own opens and closes (open_log.c). PURE but for `build`.

TIME opens -1 FLAGS      it is about to open the device
TIME open FD FLAGS       it has
TIME close FD 0          it has closed that
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAME = "open_log.so"
WRITES = (os.O_WRONLY, os.O_RDWR)


class NotShown(Exception):
    """The notes don't show what they must."""


@dataclass(frozen=True)
class Turn:
    """One QEMU that could write, from when to when, by the clock of h1; infinite if it has not closed the device."""

    host: str
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Turns:
    """All of them."""

    turns: int
    least_gap_s: float
    """Between the end of a turn and the begin of a later one on the other host; negative if they overlap."""


def build(place: Path) -> Path:
    """What is preloaded into QEMU."""
    made = place / NAME
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O2", "-o", made, Path(__file__).with_suffix(".c"), "-ldl"], check=True
    )
    return made


def turns_of(host: str, text: str, ahead_s: float) -> list[Turn]:
    """`text`: the notes of a host's QEMUs, each after a line `== FILE`; `ahead_s`: of its clock."""
    found: list[Turn] = []
    for notes in text.split("== ")[1:]:
        writers: dict[str, float] = {}
        about_s = 0.0
        for line in notes.splitlines()[1:]:
            at, what, fd, flags = line.split()
            can_write = int(flags, 8) & os.O_ACCMODE in WRITES
            if what == "opens":
                about_s = float(at) - ahead_s
            elif what == "open" and can_write:
                writers[fd] = about_s
            elif what == "close" and fd in writers:
                found.append(Turn(host, writers.pop(fd), float(at) - ahead_s))
        found += [Turn(host, began_s, float("inf")) for began_s in writers.values()]
    return found


def compared(one: str, two: str, ahead_s: float) -> Turns:
    """The turns of h1 and h2, whose clock is ahead by so much. Raises `NotShown` without one on each."""
    turns = sorted(turns_of("h1", one, 0.0) + turns_of("h2", two, ahead_s), key=lambda turn: turn.began_s)
    if {turn.host for turn in turns} != {"h1", "h2"}:
        raise NotShown(f"turns of writing were seen on {sorted({turn.host for turn in turns})} alone")
    gaps = [
        after.began_s - before.ended_s
        for index, after in enumerate(turns)
        for before in turns[:index]
        if before.host != after.host
    ]
    return Turns(len(turns), min(gaps))

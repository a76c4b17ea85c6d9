"""What strace has seen of the volume on both hosts: when a QEMU had it open to write. PURE."""

from __future__ import annotations

import re
from dataclasses import dataclass

OPENED = re.compile(
    r"^(\d+)\s+(\d+\.\d+) openat\(.*\"(?P<path>/dev/[^\"]*)\", (?P<flags>[A-Z_|]+).*\) = (?P<fd>\d+)"
)
CLOSED = re.compile(r"^(\d+)\s+(\d+\.\d+) close\((?P<fd>\d+)")
ENDED = re.compile(r"^(\d+)\s+(\d+\.\d+) \+\+\+ ")


class NotTraced(Exception):
    """The traces don't show what they must."""


@dataclass(frozen=True)
class Turn:
    """One QEMU that could write, from when to when, by the clock of h1."""

    host: str
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Turns:
    """All of them in order of time."""

    turns: int
    least_gap_s: float
    """Between two turns of different hosts; negative if they overlap."""


def turns_of(host: str, text: str, ahead_s: float) -> list[Turn]:
    """`text`: the traces of a host, each after a line `== FILE`; `ahead_s`: of its clock."""
    found: list[Turn] = []
    for trace in text.split("== ")[1:]:
        writers: dict[str, float] = {}
        began = last = 0.0
        for line in trace.splitlines()[1:]:
            if ended := ENDED.match(line):
                last = float(ended[2])
                continue
            if opened := OPENED.match(line):
                if "O_RDWR" in opened["flags"] or "O_WRONLY" in opened["flags"]:
                    if not writers:
                        began = float(opened[2])
                    writers[opened["fd"]] = float(opened[2])
            elif (closed := CLOSED.match(line)) and closed["fd"] in writers:
                del writers[closed["fd"]]
                if not writers:
                    found.append(Turn(host, began - ahead_s, float(closed[2]) - ahead_s))
        if writers:
            found.append(Turn(host, began - ahead_s, last - ahead_s))
    return found


def overlaps(one: str, two: str, ahead_s: float) -> Turns:
    """The turns of h1 and h2, whose clock is ahead by so much. Raises `NotTraced` without one on each."""
    turns = sorted(turns_of("h1", one, 0.0) + turns_of("h2", two, ahead_s), key=lambda turn: turn.began_s)
    if {turn.host for turn in turns} != {"h1", "h2"}:
        raise NotTraced(f"turns of writing were seen on {sorted({turn.host for turn in turns})} alone")
    gaps = [
        after.began_s - before.ended_s
        for index, after in enumerate(turns)
        for before in turns[:index]
        if before.host != after.host
    ]
    return Turns(len(turns), min(gaps))

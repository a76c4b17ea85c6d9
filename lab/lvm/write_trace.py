"""Who could write to the volume when, and who did, by what strace saw of every QEMU. PURE.

The guest writes its record, which has a counter, at byte 512 of the volume once for each count (tests/e2e/lab/guest.S). So
the counts that were written, each with the host that wrote it, stand in the one order that there is, by no clock: a count
that is missing was written by somebody else, and one that is there twice by two guests.

`text` of a host: the files of `strace -ff -ttt -T -y -x -s 16` with `CALLS`, each after a line `== FILE`; FILE ends in
`PID.trace.THREAD`. Not seen: descriptors that come over a socket or by fork, which this QEMU has for no disk.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from lab.lvm.open_log import NotShown, Turn

CALLS = "open,openat,close,dup,dup2,dup3,fcntl,pwrite64,pwritev,pwritev2,io_submit,io_uring_enter"
OPTIONS = f"-D -ff --seccomp-bpf -ttt -T -y -x -s 16 -e trace={CALLS} -e signal=none"
OPENS = ("open", "openat")
RECORD_AT = 512
_LINE = re.compile(r"(\d+\.\d+) (\w+)\((.*)\) += (\d+)(?:<[^>]*>)? <([\d.]+)>")
_OPENED = re.compile(r'(?:[^"]*, )?"([^"]*)", ([A-Z_|0-9]+)')
_FD = re.compile(r"(\d+)")
_RECORD = re.compile(r'"((?:\\x[0-9a-f]{2}){12,})"')
_END = re.compile(r"(\d+\.\d+) \+\+\+ (?:exited|killed)")


@dataclass(frozen=True)
class Write:
    """A write of the guest's record, from the call to its return, by the clock of h1."""

    host: str
    count: int
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Traced:
    """Of one host."""

    turns: list[Turn]
    writes: list[Write]


@dataclass(frozen=True)
class Proof:
    """What was shown."""

    turns: int
    least_gap_s: float
    """Between the end of a descriptor that may write and the begin of a later one of the other host."""
    writes: dict[str, int]
    """How many, by host."""
    changes: int
    """How often a write's host is another one than that of the write before."""


@dataclass(frozen=True)
class _Call:
    began_s: float
    ended_s: float
    name: str
    arguments: str
    result: str


def traced(host: str, text: str, device: str, ahead_s: float) -> Traced:
    """`ahead_s`: of its clock before h1's. Raises `NotShown` on a write to the device that is not understood."""
    calls: dict[str, list[_Call]] = {}
    ends: dict[str, float] = {}
    over: set[str] = set()  # a process whose first thread has ended; another one that ends proves nothing
    for part in text.split("== ")[1:]:
        lines = part.splitlines()
        pid, _, thread = lines[0].rpartition(".trace.")
        calls.setdefault(pid, []).extend(_calls(lines[1:], ahead_s))
        for line in lines[1:]:
            if end := _END.match(line):
                ends[pid] = max(ends.get(pid, 0.0), float(end[1]) - ahead_s)
                if pid.endswith(f".{thread}"):
                    over.add(pid)
    found = Traced([], [])
    for pid, of_process in calls.items():
        _follow(host, sorted(of_process, key=_counts_from), device, found)
        last_s = ends[pid] if pid in over else float("inf")
        found.turns[:] = [
            Turn(t.host, t.began_s, last_s if t.ended_s < 0 else t.ended_s) for t in found.turns
        ]
    return found


def shown(one: Traced, two: Traced, before: int, after: int) -> Proof:
    """`before`, `after`: the counter as it was read outside when no guest ran. Raises `NotShown`."""
    turns = sorted(one.turns + two.turns, key=lambda turn: turn.began_s)
    if {turn.host for turn in turns} != {"h1", "h2"}:
        raise NotShown(f"turns of writing were seen on {sorted({turn.host for turn in turns})} alone")
    gap_s = min(
        second.began_s - first.ended_s
        for index, second in enumerate(turns)
        for first in turns[:index]
        if first.host != second.host
    )
    writes = sorted(one.writes + two.writes, key=lambda write: write.count)
    counts = [write.count for write in writes]
    if counts != list(range(before + 1, after + 1)):
        missing = sorted(set(range(before + 1, after + 1)) - set(counts))
        twice = sorted({count for count in counts if counts.count(count) > 1})
        raise NotShown(f"of the counts {before + 1} to {after}, none has written {missing}, two have {twice}")
    for write in writes:
        if not any(
            turn.host == write.host and turn.began_s <= write.began_s and write.ended_s <= turn.ended_s
            for turn in turns
        ):
            raise NotShown(f"count {write.count} was written on {write.host} with no descriptor for it")
    changes = sum(first.host != second.host for first, second in pairwise(writes))
    by_host = {host: sum(write.host == host for write in writes) for host in ("h1", "h2")}
    return Proof(len(turns), gap_s, by_host, changes)


def _calls(lines: list[str], ahead_s: float) -> Iterator[_Call]:
    for line in lines:
        if found := _LINE.fullmatch(line):
            began_s = float(found[1]) - ahead_s
            yield _Call(began_s, began_s + float(found[5]), found[2], found[3], found[4])


def _counts_from(call: _Call) -> float:
    """A descriptor is there when its call has returned; what is done with one is done from the call on."""
    return call.ended_s if call.name in OPENS else call.began_s


def _follow(host: str, calls: list[_Call], device: str, found: Traced) -> None:
    """One process; a turn that no call has ended ends at -1."""
    writers: dict[str, float] = {}

    def ended(fd: str, at_s: float) -> None:
        if fd in writers:
            found.turns.append(Turn(host, writers.pop(fd), at_s))

    for call in calls:
        fd = number[1] if (number := _FD.match(call.arguments)) else ""
        if call.name in OPENS:
            opened = _OPENED.match(call.arguments)
            if opened and opened[1] == device and {"O_RDWR", "O_WRONLY"} & set(opened[2].split("|")):
                writers[call.result] = call.began_s
        elif call.name == "close":
            ended(fd, call.ended_s)
        elif call.name.startswith("dup") or "F_DUPFD" in call.arguments:
            ended(call.result, call.ended_s)
            if fd in writers:
                writers[call.result] = call.began_s
        elif call.name.startswith("pwrite") and fd in writers:
            found.writes.append(_write(host, call))
        elif call.name in ("io_submit", "io_uring_enter"):
            raise NotShown(f"{call.name}: writes that a trace of calls does not show")
    found.turns.extend(Turn(host, began_s, -1.0) for began_s in writers.values())


def _write(host: str, call: _Call) -> Write:
    record = _RECORD.search(call.arguments)
    if record is None or f", {RECORD_AT}" not in call.arguments.rpartition('"')[2]:
        raise NotShown(f"a write that is not of the record: {call}")
    raw = bytes.fromhex(record[1].replace("\\x", ""))
    magic, count, _ = struct.unpack("<4sII", raw[:12])
    if magic != b"LHB2":
        raise NotShown(f"a write that is not of the record: {call}")
    return Write(host, count, call.began_s, call.ended_s)

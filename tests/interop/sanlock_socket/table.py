"""The rows of the specification that need a script: sanlock-socket.md 2 (commands), 2.1 (results) and 3.3 (recovery).

Rows are read off the page. A script says which rows it plays by `plays`; a row that can't be played here has its
reason in `NOT_PLAYED`. `test_scripts` fails if a row has neither, or both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

PAGE = Path(__file__).parents[3] / "docs" / "specs" / "sanlock-socket.md"

_CODE = re.compile(r"-?\d+")
_RANGE = re.compile(r"(-\d+) … (-\d+)")


class CommandRow(NamedTuple):
    """Of section 2: number, name, and the letters of how it is served."""

    number: int
    name: str
    how: str


def _section(title: str) -> str:
    text = PAGE.read_text()
    start = text.index(f"\n{title}")
    following = re.search(r"\n#{2,3} ", text[start + len(title) :])
    assert following is not None
    return text[start : start + len(title) + following.start()]


def command_rows() -> list[CommandRow]:
    found = re.findall(r"^\| (\d+) \| (\w+) \| ([^|]+) \|", _section("## 2. Commands"), re.MULTILINE)
    return [CommandRow(int(number), name, how.strip()) for number, name, how in found]


def result_codes() -> list[int]:
    """Of both tables of section 2.1: one for each code."""
    codes: list[int] = []
    for line in _section("### 2.1 Result codes").splitlines():
        for cell in line.split("|")[1:-1:2] if line.startswith("|") else []:
            for first, last in _RANGE.findall(cell):
                codes += range(int(first), int(last) - 1, -1)
            codes += [int(code) for code in _CODE.findall(_RANGE.sub("", cell.partition(" E")[0]))]
    return codes


def recovery_steps() -> list[str]:
    """Of section 3.3: 1, 2a to 2d, 3, 4."""
    steps: list[str] = []
    number, letter = "", 0
    for line in _section("### 3.3 Recovery sequence").splitlines():
        if found := re.match(r"(\d)\. ", line):
            number, letter = found[1], 0
            steps.append(number)
        elif line.startswith("   * "):
            letter += 1
            steps.append(f"{number}{'abcd'[letter - 1]}")
    return [step for step in steps if f"{step}a" not in steps]


def rows() -> list[str]:
    """Names of all: "2/7 ACQUIRE", "2.1/-28", "3.3/2a"."""
    return [
        *(f"2/{row.number} {row.name}" for row in command_rows()),
        *(f"2.1/{code}" for code in result_codes()),
        *(f"3.3/{step}" for step in recovery_steps()),
    ]


# --- scripts ---

Script = TypeVar("Script", bound=Callable[..., None])
PLAYED: dict[str, list[str]] = {}
"""Rows to the names of the scripts that play them."""


def plays(*names: str) -> Callable[[Script], Script]:
    """Mark a script as that of these rows; a command's row may be named by its number alone."""

    def marked(script: Script) -> Script:
        for name in names:
            PLAYED.setdefault(name, []).append(script.__name__)
        return script

    return marked


def scripts_of(row: str) -> list[str]:
    return PLAYED.get(row, []) + PLAYED.get(row.partition(" ")[0], []) * (" " in row)


_IO = "needs a device that fails single reads or writes; a file has no such blocks"
_RACE = "needs two hosts' writes in one order of several, within a millisecond"
_INTERNAL = "never in an answer: the reason of a failed renewal, which `status -D` and the log show"
NOT_PLAYED = {
    "2.1/-25": "needs an acquire that outlives its client, so storage that stalls",
    "2.1/-116": "needs all workers busy while a client ends; an acquire for a dead client is refused before (-16, -3)",
    "2.1/1": "internal: clients see 0",
    "2.1/-201": "no command was seen to answer it",
    "2.1/-202": "needs storage that stalls for io_timeout",
    "2.1/-210": _IO,
    "2.1/-211": _IO,
    "2.1/-220": _IO,
    "2.1/-221": _IO,
    "2.1/-212": "sanlock reads the leader until it has the version of that block, for longer than a test waits",
    "2.1/-213": _RACE,
    "2.1/-262": "takes the 68 s in which sanlock watches whether the other host renews",
    "2.1/-225": "the checksum is read first; a record of another sector size with a good one has ended a 3.8.5",
    "2.1/-241": "no command was seen to answer it: another lockspace name on disk gives -226",
    "2.1/-242": "no command was seen to answer it",
    "2.1/-244": _RACE,
    "2.1/-245": _RACE,
    "2.1/-246": _RACE,
    "2.1/-260": _INTERNAL,
    "2.1/-261": _INTERNAL,
    "3.3/4": "its end is the reset of this machine by the watchdog",
}
"""Rows without a script, and why."""

"""Programs of Holdfast that stand still (SIGSTOP) at a given call, so that a test can kill them there.

A directory has scripts with the names of the installed programs. Each puts a stop around functions, as the file of stops
says, and runs the program: what is tested is the product's own code, and has no hook for tests in it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.polling import wait_until

PROGRAMS = {
    "holdfast": "holdfast.cli.main",
    "holdfastd": "holdfast.holdfastd",
    "holdfast-virtlockd-switch": "holdfast.switch.program",
}
KEEPER = "keeper"
"""`holdfast-virtlockd-switch` as the keeper."""
SCRIPT = """#!{python}
import importlib, json, os, signal, sys

HERE, NAME = {here!r}, {name!r}
if sys.argv[1:] == ["--holdfast-keep"]:
    NAME = "keeper"


def halt(reached):
    if os.path.exists(reached):
        return
    with open(reached + ".new", "w") as f:
        f.write(str(os.getpid()))
    os.rename(reached + ".new", reached)
    os.kill(os.getpid(), signal.SIGSTOP)


def put(module, function, when, number, reached):
    owner = importlib.import_module(module)
    *path, last = function.split(".")
    for each in path:
        owner = getattr(owner, each)
    was, calls = getattr(owner, last), [0]

    def stopping(*values, **named):
        calls[0] += 1
        if when == "before" and calls[0] == number:
            halt(reached)
        result = was(*values, **named)
        if when == "after" and calls[0] == number:
            halt(reached)
        return result

    setattr(owner, last, stopping)


if os.path.exists(HERE + "/stops.json") and sys.argv[1:] != ["--holdfast-check"] and "--check-config" not in sys.argv:
    with open(HERE + "/stops.json") as f:
        for program, *stop in json.load(f):
            if program == NAME:
                put(*stop)
"""
RUN = """import importlib, sys
sys.exit(importlib.import_module({module!r}).main())
"""


@dataclass(frozen=True, slots=True)
class Stop:
    """Before or after the nth call of a function (`module:function`) in one of the programs, the first time only."""

    program: str
    where: str
    when: str = "before"
    number: int = 1


class StoppingPrograms:
    """The directory. The paths are those of programs that find each other beside themselves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._count = 0
        for name, module in PROGRAMS.items():
            self.add(name, RUN.format(module=module))

    def add(self, name: str, text: str) -> None:
        """One more program, in Python."""
        script = self.directory / name
        script.write_text(
            SCRIPT.format(python=sys.executable, here=str(self.directory), name=name) + "\n\n" + text
        )
        script.chmod(0o755)

    def path(self, program: str) -> str:
        return str(self.directory / program)

    def stop_at(self, *stops: Stop) -> list[Path]:
        """For programs that are started from now on. Returns, for each stop, the file that is there when it is reached."""
        files, lines = [], []
        for each in stops:
            self._count += 1
            files.append(self.directory / f"reached-{self._count}")
            line = asdict(each)
            module, _, function = line.pop("where").partition(":")
            lines.append([line["program"], module, function, line["when"], line["number"], str(files[-1])])
        (self.directory / "stops.json").write_text(json.dumps(lines))
        return files


def stopped(reached: Path) -> int:
    """Waits until a process stands still at its stop; returns its pid."""
    wait_until(reached.exists, f"{reached.name} to be reached")
    pid = int(reached.read_text())
    wait_until(lambda: is_stopped(pid), f"pid {pid} to stand still")
    return pid


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def has_ended(pid: int) -> bool:
    """Also as a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state in "ZX"


def kill(pid: int, number: int) -> None:
    """And wait for the end of it."""
    os.kill(pid, number)
    wait_until(lambda: has_ended(pid), f"pid {pid} to end")

"""A program of ours in virtlockd's place, and back (ADR 0211): a bind mount over virtlockd's file, for some seconds.

    DIRECTORY/virtlockd     the real program, by a bind mount that is made first
    DIRECTORY/plan.json     what the program in its place is to do, and for whom
    DIRECTORY/result.json   what it did
    DIRECTORY/locks         what virtlockd had, until holdfastd has it (`left_behind`)
    the program's path      ours, by a bind mount that is made last

Nothing on disk is changed. A run that ends half-way leaves a program there that executes the real one, since the run that
wrote the plan lives no more; a reboot ends the mounts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import msgspec

from holdfast.system.files.regular_file import Unreadable, read_regular
from holdfast.system.host import fd_messages
from holdfast.system.host.bind_mount import bind, unbind
from holdfast.system.host.process import lives

DIRECTORY = "/run/holdfast-switch"
REAL = f"{DIRECTORY}/virtlockd"
PLAN = f"{DIRECTORY}/plan.json"
RESULT = f"{DIRECTORY}/result.json"
LOCKS = f"{DIRECTORY}/locks"
KEEPER = f"{DIRECTORY}/keeper"
PROGRAM = "holdfast-virtlockd-switch"
KEEP = "--holdfast-keep"
"""The option by which that program is a keeper; virtlockd does not have it."""
PLAN_BYTES_MAX = 16 << 20
"""A result has a line for each lock."""
KEEPER_ANSWER_S = 10.0


class Plan(msgspec.Struct, frozen=True):
    """`pid`: virtlockd's; `target`: the path of its program; `by`: pid and start time of the run that ordered the switch.
    `command`: holdfastd's, which is executed in virtlockd's place; empty: a keeper gets locks and connections. `backend`:
    holdfastd's name of the file driver that locks files themselves.
    """

    pid: int
    start: int
    target: str
    by: tuple[int, int]
    command: list[str]
    backend: str

    def is_ordered(self) -> bool:
        """Whether the run that ordered it still waits for it."""
        pid, ticks = self.by
        return ticks != 0 and lives(pid, ticks)


class LockResult(msgspec.Struct, frozen=True):
    """What became of one lock, for people: `mode` is what it is now, or empty."""

    resource: str
    users: str
    wanted: str
    mode: str
    why: str = ""

    def __str__(self) -> str:
        has = f"has a {self.mode} lock only" if self.mode else "has no lock"
        return f"{self.users}: {self.resource} {has}, not an {self.wanted} one: {self.why}"


class Result(msgspec.Struct, frozen=True):
    """`outcome`: begun, back, kept or holdfastd; the run that ordered the switch also makes `ended` of it, if the process
    was killed with all its locks. `locks`: all of them, unless virtlockd goes on.
    """

    pid: int
    outcome: str
    why: str = ""
    locks: list[LockResult] = []

    @property
    def doubtful(self) -> list[LockResult]:
        return [each for each in self.locks if each.mode != each.wanted]


def read_plan() -> Plan | None:
    try:
        return msgspec.json.decode(_raw(PLAN), type=Plan)
    except msgspec.DecodeError:
        return None


def read_result() -> Result | None:
    try:
        return msgspec.json.decode(_raw(RESULT), type=Result)
    except msgspec.DecodeError:
        return None


def _raw(path: str) -> bytes:
    raw = read_regular(path, PLAN_BYTES_MAX)
    return b"" if isinstance(raw, Unreadable) else raw


def write(path: str, value: msgspec.Struct) -> None:
    """Whole or not at all; raises OSError."""
    new = f"{path}.new"
    with open(new, "wb") as f:
        f.write(msgspec.json.encode(value))
    os.replace(new, path)


def put(plan: Plan, program: str) -> None:
    """Raises OSError, with nothing in virtlockd's place then."""
    remove(plan.target)
    os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
    for path in (RESULT, PLAN, LOCKS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    write(PLAN, plan)
    with open(REAL, "ab"):
        pass
    bind(plan.target, REAL)
    bind(program, plan.target)


def mounted(path: str) -> bool:
    """Whether something is mounted at that very path, in this process's namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        return any(line.split()[4] == path for line in f)


def remove(target: str) -> None:
    """Ours goes, the real one comes to light; raises OSError. The result stays to be read. A mount that was there before, as
    the host has it, is not touched.
    """
    while mounted(REAL) and mounted(target) and not os.path.samefile(target, REAL):
        unbind(target)
    while mounted(REAL):
        unbind(REAL)


def keeper_lives() -> bool:
    """Whether a keeper listens; the socket of one that was killed stays."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(KEEPER)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # it is not known: who has locks is not passed over
    return True


def keeper_has_locks() -> bool:
    """Whether there is a keeper with anything; also if it does not say so in time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(KEEPER_ANSWER_S)
        try:
            sock.connect(KEEPER)
            fd_messages.send(sock, {"kind": "ask"})
            answer = fd_messages.receive(sock)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return answer is None or answer[0]["kind"] != "nothing"


def program() -> str:
    """The path of the program that stands in virtlockd's place: beside the holdfast command."""
    beside = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), PROGRAM)
    for each in (beside, os.path.join(os.path.dirname(sys.executable), PROGRAM), f"/usr/bin/{PROGRAM}"):
        if os.access(each, os.X_OK):
            return each
    return ""

"""Debian's python3-sanlock in a process of its own, which gets its calls one by one: a program as oVirt's vdsm is one.

What calls give is written down as a transcript, so that two daemons can be compared. Generations, timestamps and places
differ between any two runs: they become words.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.sanlock_socket.scene import Host, Scene

COMMAND_S = 60
_VARIES = re.compile(
    r"\b(timestamp|gen|pid|p|fd|owner_generation|write_generation|checksum|write_timestamp) \w+"
)
"""Of two runs, in lines of sanlock's command: a word, and the number that follows it."""
PYTHON = "/usr/bin/python3"
"""The one that has the package: its module is compiled for Debian's Python."""
WRONG_GENERATION = 99
"""Of no host here: kept as it is in transcripts."""
_PROGRAM = """
import ast, os, select, sys, time
import sanlock

def exists():
    return sorted(name for name in dir(sanlock) if callable(getattr(sanlock, name)) and name[0].islower())

def wait_event(fd, number, seconds):
    end = time.monotonic() + seconds
    while select.select([fd], [], [], max(0, end - time.monotonic()))[0]:
        for event in sanlock.get_event(fd):
            if event["event"] == number:
                return event
    return "silence"

own = {"exists": exists, "wait_event": wait_event, "close": os.close}
for line in sys.stdin:
    name, args, kwargs = ast.literal_eval(line)
    try:
        found = (own.get(name) or getattr(sanlock, name))(*args, **kwargs)
    except Exception as e:
        found = (type(e).__name__, *e.args)
    print(repr(found), flush=True)
"""


def has_python_sanlock() -> bool:
    """False on Debian 14, which has dropped the package; where it is listed it has to be installed."""
    listed = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", "python3-sanlock"], capture_output=True, check=False
    ).stdout
    return subprocess.run([PYTHON, "-c", "import sanlock"], check=False).returncode == 0 or bool(listed)


class PythonClient:
    """One process; its registered connections end with it."""

    def __init__(self, host: Host) -> None:
        run_dir = str(host.daemon.socket_path.parent)
        self._process = subprocess.Popen(
            [PYTHON, "-c", _PROGRAM],
            env={**os.environ, "SANLOCK_RUN_DIR": run_dir},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __call__(self, name: str, *args: object, **kwargs: object) -> object:
        """What the call returned; an exception as a tuple: its class, and its arguments."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(repr((name, args, kwargs)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"it ended with {self._process.wait()} in {name}{args}"
        found: object = ast.literal_eval(answer)
        return found

    def wait_ended(self, timeout_s: float) -> int:
        """Its exit status, negative for a signal."""
        return self._process.wait(timeout_s)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass
class Transcript:
    """Calls of some clients of one scene, with what they gave, in words that don't differ between runs."""

    scene: Scene
    lines: list[str] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    unseen: frozenset[bytes] = frozenset()
    """Lockspaces of scripts that are played beside this one."""
    _clients: list[PythonClient] = field(default_factory=list)

    def client(self, host: Host) -> PythonClient:
        self._clients.append(PythonClient(host))
        return self._clients[-1]

    def writes(self, label: str, client: PythonClient) -> Callable[..., object]:
        """Calls by that client, written down under that label; each gives what was found, as it is."""

        def call(name: str, *args: object, **kwargs: object) -> object:
            found = client(name, *args, **kwargs)
            self.called.add(name)
            self.say(f"{label} {name}{args}{kwargs or ''}", found)
            return found

        return call

    def say(self, what: str, found: object) -> None:
        line = f"{what} -> {self._in_words(found)!r}".replace(str(self.scene.place), "PLACE")
        for number, client in enumerate(self._clients):
            line = line.replace(f"'pid': {client.pid}", f"'pid': that of process {number}")
            line = line.replace(f"-p {client.pid}", f"-p that of process {number}")
        self.lines.append(line)

    def command(self, label: str, host: Host, *arguments: str) -> tuple[int, str]:
        """sanlock's command line at that host's daemon; written down as exit status and lines."""
        done = subprocess.run(
            ["sanlock", *arguments],
            env={**os.environ, "SANLOCK_RUN_DIR": str(host.daemon.socket_path.parent)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        lines = [_VARIES.sub(r"\1 N", line.rstrip()) for line in done.stdout.splitlines()]
        self.say(f"{label} {' '.join(arguments)}", (done.returncode, [line for line in lines if line]))
        return done.returncode, done.stdout

    def _in_words(self, found: object) -> object:
        if isinstance(found, dict):
            return {key: self._of_key(key, each) for key, each in found.items()}
        if isinstance(found, list):
            return [self._in_words(each) for each in found if not self._is_unseen(each)]
        return found

    def _is_unseen(self, found: object) -> bool:
        return isinstance(found, dict) and found.get("lockspace") in self.unseen

    def _of_key(self, key: str, found: object) -> object:
        if key in ("generation", "from_generation") and found and found != WRONG_GENERATION:
            return "some generation"
        if key == "timestamp" and found:
            return "some time"
        return self._in_words(found)

    def close(self) -> None:
        for client in self._clients:
            client.close()


def disk(path: Path, offset_bytes: int = 0) -> list[tuple[str, int]]:
    """As calls about resources name their place."""
    return [(str(path), offset_bytes)]

"""Runs `sanlock direct`, which works on files without its daemon, and reads what it prints."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.interop.sanlock.programs import Program, installed

from holdfast.ondisk.geometry import MIB, Geometry

# `direct` commands answer in milliseconds; a stuck one must not stop the test run for long.
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class DumpedLine:
    """One line of `sanlock direct dump`: what the real program believes to be on disk."""

    offset_bytes: int
    lockspace: str
    resource: str
    timestamp: int
    owner_id: int
    generation: int
    lver: str


def direct(*arguments: str, expect: int = 0, program: Program | None = None) -> str:
    """Run `sanlock direct ARGUMENTS...`, check its exit status and return what it printed."""
    done = subprocess.run(
        [*(program or installed()).command, "direct", *arguments],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == expect, (
        f"sanlock direct {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout + done.stderr


def sizes(geometry: Geometry) -> tuple[str, ...]:
    """The options that name a geometry."""
    return ("-Z", str(geometry.sector_bytes), "-A", f"{geometry.align_bytes // MIB}M")


def read_leader(kind: str, what: str, program: Program | None = None) -> dict[str, str]:
    """`sanlock direct read_leader`: field name to printed value."""
    lines = direct("read_leader", kind, what, program=program).splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line and not line.startswith("read_leader"))


def dump(path: Path, offset_bytes: int, length_bytes: int) -> list[DumpedLine]:
    """`sanlock direct dump`: the records it recognises, delta and paxos leases alike."""
    lines = direct("dump", f"{path}:{offset_bytes}:{length_bytes}").splitlines()
    dumped = []
    for line in lines[1:]:
        words = line.split()
        # A delta lease has no lver, lines of shared holders have fewer words still.
        if len(words) < 6 or not words[3].isdigit():
            continue
        offset, lockspace, resource, timestamp, owner, generation = words[:6]
        lver = words[6] if len(words) > 6 else ""
        dumped.append(
            DumpedLine(int(offset), lockspace, resource, int(timestamp), int(owner), int(generation), lver)
        )
    return dumped


def blank_file(path: Path, size_bytes: int) -> Path:
    """A sparse file of that size."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def write_at(path: Path, offset_bytes: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        file.write(content)


def read_at(path: Path, offset_bytes: int, length_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset_bytes)
        return file.read(length_bytes)

"""The real sanlocks: the installed one, and those of other Debian releases, extracted beside it (`tools/debian-sanlock`)."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.sim.mutations import ROOT

_EXTRACTING_S = 180
"""Some 40 MB from a Debian mirror."""


@dataclass(frozen=True, slots=True)
class Program:
    """A sanlock: the words that its command begins with, and its version."""

    command: tuple[str, ...]
    version: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def _with_version(*command: str) -> Program:
    said = subprocess.run([*command, "version"], capture_output=True, text=True, check=True).stdout
    return Program(command, tuple(int(number) for number in said.split()[-1].split(".")))


@functools.cache
def installed() -> Program:
    """This machine's own."""
    return _with_version("sanlock")


@functools.cache
def of_release(suite: str) -> Program:
    """That of a Debian release, by its own loader and libraries."""
    done = subprocess.run(
        [ROOT / "tools" / "debian-sanlock", suite],
        capture_output=True,
        text=True,
        check=False,
        timeout=_EXTRACTING_S,
    )
    assert done.returncode == 0, f"sanlock of {suite} can't be had: {done.stderr}"
    folder = Path(done.stdout.strip())
    (loader,) = folder.glob("usr/lib/*/ld-linux-*.so.*")
    return _with_version(
        str(loader), "--library-path", str(loader.parent), str(folder / "usr" / "sbin" / "sanlock")
    )

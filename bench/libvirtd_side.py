"""libvirtd's side of VM cycles: connect, REGISTER, 2 x ACQUIRE, close, connect, REGISTER, 2 x RELEASE, close.

The program is `libvirtd_side.c`, built where it is used.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.vms import Vm

SOURCE = Path(__file__).with_suffix(".c")


def build(directory: Path) -> Path:
    """The program, compiled into a directory."""
    if shutil.which("cc") is None:
        raise RuntimeError("there is no C compiler; apt-get install gcc libc6-dev")
    program = directory / "libvirtd_side"
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", str(program), str(SOURCE)], check=True)
    return program


def write_frames(vms: Sequence[Vm], directory: Path) -> Path:
    """The file of what is said for these VMs."""
    frames = directory / "frames"
    with frames.open("wb") as f:
        for vm in vms:
            for each in (*vm.acquire, *vm.release):
                f.write(len(each).to_bytes(4, sys.byteorder) + each)
    return frames


class LibvirtdSide:
    """One client of a daemon, that starts and pauses VMs one after the other."""

    def __init__(self, program: Path, frames: Path, socket: str) -> None:
        self._process = subprocess.Popen(
            [str(program), socket, str(frames)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def cycles(self, count: int, first: int) -> tuple[float, float]:
        """Seconds for `count` cycles from VM number `first` on, and the median seconds of a start (the acquiring half)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count} {first}\n")
        self._process.stdin.flush()
        seconds, start_s = map(float, self._process.stdout.readline().split())
        return seconds, start_s

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself, and said why
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

"""`make run`: the main job on the embedded default, with a real QEMU, in under a minute and without a trace.

Starts holdfastd with file locks in a private directory, guards a QEMU with `holdfast run`, shows that a second start on
the same disk is refused and names the holder, asks who holds it, ends the first and shows the disk free again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from holdfast.cli import exits

BIN = Path(sys.executable).parent
DISK_BYTES = 16 << 20
WAIT_S = 30.0


class DemoFailed(Exception):
    """Something did not happen that should have; the text says what."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what} did not happen within {WAIT_S:g} s")
        time.sleep(0.05)


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


class Demo:
    """One run in one directory."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "holdfast.toml"
        self.disk = directory / "web.img"
        self.config.write_text(
            f'run_dir = "{directory}/run"\nstate_dir = "{directory}/state"\nlog_level = "error"\n'
            f'[virtlockd]\nsocket = "{directory}/virtlockd-sock"\n'
        )
        with self.disk.open("wb") as f:
            f.truncate(DISK_BYTES)

    def command(self, *arguments: str) -> list[str]:
        return [str(BIN / "holdfast"), "--config", str(self.config), *arguments]

    def guarded_qemu(self, name: str) -> list[str]:
        return self.command(
            "run", "--disk", str(self.disk), "--name", name, "--",
            "qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "32", "-display", "none", "-nodefaults",
            "-drive", f"file={self.disk},format=raw,if=ide",
        )  # fmt: skip

    def show(self, *arguments: str, expect: int) -> str:
        print(f"$ holdfast {' '.join(arguments)}", flush=True)
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)
        print(done.stdout + done.stderr, end="", flush=True)
        if done.returncode != expect:
            raise DemoFailed(f"'holdfast {arguments[0]}' exited with {done.returncode}, not {expect}")
        return done.stdout

    def free(self) -> bool:
        done = subprocess.run(self.command("who", str(self.disk)), capture_output=True, check=False)
        return done.returncode == exits.FREE

    def play(self) -> None:
        say("1. holdfastd, with file locks in a private directory")
        daemon = subprocess.Popen([str(BIN / "holdfastd"), "--config", str(self.config)])
        first: subprocess.Popen[bytes] | None = None
        try:
            wait_until(
                lambda: (
                    subprocess.run(self.command("status"), capture_output=True, check=False).returncode == 0
                ),
                "holdfastd's first answer",
            )
            self.show("status", expect=0)
            say(
                "2. a QEMU that holds its disk: holdfast run --disk web.img --name web1 -- qemu-system-x86_64 …"
            )
            first = subprocess.Popen(self.guarded_qemu("web1"))
            wait_until(lambda: not self.free(), "the first start")
            say("3. a second QEMU on the same disk is refused, and told by whom")
            second = subprocess.run(self.guarded_qemu("web2"), capture_output=True, text=True, check=False)
            print(second.stderr, end="")
            if second.returncode != 75 or "web1" not in second.stderr:
                raise DemoFailed(f"the second start was not refused by name (exit {second.returncode})")
            say("4. who has it?")
            self.show("who", str(self.disk), expect=0)
            self.show("list", expect=0)
            say("5. the first one ends, and the disk is free again")
            first.send_signal(signal.SIGTERM)
            first.wait(timeout=WAIT_S)
            wait_until(self.free, "the release")
            self.show("who", str(self.disk), expect=3)
            self.show("events", expect=0)
        finally:
            for process in (first, daemon):
                if process is not None and process.poll() is None:
                    process.terminate()
                    process.wait(timeout=WAIT_S)


def main() -> int:
    if shutil.which("qemu-system-x86_64") is None:
        print(
            "qemu-system-x86_64 is missing; on Debian, as root: apt-get install qemu-system-x86",
            file=sys.stderr,
        )
        return 1
    os.environ.pop("HOLDFAST_CONFIG", None)
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as name:
        try:
            Demo(Path(name)).play()
        except (DemoFailed, subprocess.TimeoutExpired) as e:
            print(f"\nthe demo failed: {e}", file=sys.stderr)
            return 1
    say("Done; nothing was left behind.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A clean root file system in which packages are installed, with a shell as pid 1 and without network or systemd."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

# One shell that is pid 1 of the root, so that everything in it ends with the test.
ENTER = """
set -e
mount -t proc proc "$ROOT/proc"; mount --rbind /dev "$ROOT/dev"; mount -t tmpfs tmpfs "$ROOT/run"
exec chroot "$ROOT" env -i HOME=/root DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    bash -c 'echo ready; while read -r line; do eval "$line" </dev/null 2>&1; echo "end $?"; done'
"""


class Root:
    """A root file system with a shell in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shell = subprocess.Popen(
            ["unshare", "-m", "-p", "-f", "-u", "-i", "-n", "--kill-child", "sh", "-c", ENTER],
            env={"PATH": os.environ["PATH"], "ROOT": str(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._shell.stdout is not None
        assert self._shell.stdout.readline() == "ready\n"

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and output."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(command + "\n")
        self._shell.stdin.flush()
        said = ""
        for line in self._shell.stdout:
            if line.startswith("end "):
                return int(line.split()[1]), said
            said += line
        raise AssertionError(f"the shell has ended: {said}")

    def ok(self, command: str) -> str:
        code, said = self.run(command)
        assert code == 0, f"{command}: {code}: {said}"
        return said

    def wait(self, command: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.run(command)[0] != 0:
            assert time.monotonic() < deadline, f"{command}: {self.run(command)}"
            time.sleep(0.1)

    def close(self) -> None:
        self._shell.kill()
        self._shell.communicate()

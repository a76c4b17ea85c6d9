"""The real wdmd of this machine, in namespaces of its own, with a watchdog device that resets nothing (`device.c`)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

from tests.support.polling import wait_until
from tests.support.wdmd_double import Generation

from holdfast.system.watchdog import wdmd

FIRE_S = 60
"""Built into wdmd 3.8.5."""

# In a pid namespace too: whatever it forks ends with it.
_UNSHARE = ("unshare", "-m", "-p", "-f", "--kill-child", "--propagation", "private")
# A /dev with nothing but what wdmd opens: it must never find a device that would reset this machine.
_IN_NAMESPACES = """set -e
mount -t tmpfs -o mode=755 tmpfs /dev
mknod -m 666 /dev/null c 1 3
for name in watchdog watchdog0; do mknod -m 600 /dev/$name c 1 3; done
mkdir /dev/shm && mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
exec env LD_PRELOAD="$1" WATCHDOG_LOG="$2" wdmd -D -G root
"""


def installed_generation() -> Generation:
    said = subprocess.run(["wdmd", "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+)\.(\d+)", said.stdout + said.stderr)
    assert found is not None, said
    since = (int(found[1]), int(found[2])) >= (3, 9)
    return Generation.SINCE_3_9 if since else Generation.BEFORE_3_9


def build_device(place: Path) -> Path:
    """What is preloaded."""
    library = place / "device.so"
    source = Path(__file__).with_name("device.c")
    subprocess.run(["gcc", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class RealWdmd:
    """Runs from construction to `close`."""

    def __init__(self, place: Path, device: Path) -> None:
        self._device_log = place / "device.log"
        self._output = (place / "wdmd.log").open("wb")
        self._process = subprocess.Popen(
            [*_UNSHARE, "bash", "-c", _IN_NAMESPACES, "wdmd", str(device), str(self._device_log)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self.path = wait_until(self._socket, "wdmd's socket")

    def _socket(self) -> str:
        """As this process sees it: wdmd's /run is its own."""
        assert self._process.poll() is None, Path(self._output.name).read_text()
        for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            path = f"/proc/{pid}/root/run/wdmd/wdmd.sock"
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(path)
                return path
        return ""

    @property
    def device_words(self) -> list[str]:
        """What has been done to the device, in order."""
        with contextlib.suppress(FileNotFoundError):
            return [line.split()[1] for line in self._device_log.read_text().splitlines()]
        return []

    @property
    def has_device_open(self) -> bool:
        opened = [word for word in self.device_words if word in ("open", "close", "close-unclean")]
        return opened[-1:] == ["open"]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()


def ask(connection: socket.socket, messages: bytes) -> list[tuple[int, int]]:
    """(command, fire timeout) of the answers, up to that to STATUS, which has to be the last of the messages."""
    connection.sendall(messages)
    answers: list[tuple[int, int]] = []
    while not answers or answers[-1][0] != wdmd.STATUS:
        raw = connection.recv(wdmd.MESSAGE_BYTES, socket.MSG_WAITALL)
        assert len(raw) == wdmd.MESSAGE_BYTES, raw
        answers.append(wdmd.unpack(raw)[:2])
    return answers

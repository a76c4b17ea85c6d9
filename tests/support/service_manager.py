"""A small double of systemd: socket activation and the descriptor store, as sd_listen_fds(3) and sd_notify(3) say.

It keeps what it is given (FDSTORE=1), lets go of what it is told to (FDSTOREREMOVE=1), and starts the service anew with
its sockets first and the store behind them, under their names.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.support.daemon import BIN, Holdfastd
from tests.support.polling import wait_until

FDS_PER_MESSAGE = 64

_TRAMPOLINE = """
import os, sys
count, program, *arguments = sys.argv[1:]
fds = [int(f) for f in os.environ.pop("PASS_FDS").split(",") if f]
spare = max([*fds, 3 + len(fds)]) + 1
for i, fd in enumerate(fds):  # out of the way first: the wanted numbers may be taken by one another
    os.dup2(fd, spare + i, inheritable=False)
for i in range(len(fds)):
    os.dup2(spare + i, 3 + i, inheritable=True)
os.closerange(3 + len(fds), spare + len(fds))  # the originals too, whatever their numbers
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count)
os.execv(program, [program, *arguments])
"""
"""Between fork and exec systemd places the descriptors from 3 on and knows the pid; so does this."""


class ServiceManager:
    """systemd's side of one service."""

    def __init__(self, directory: Path, daemon: Holdfastd, *, sockets: Sequence[tuple[str, str]]) -> None:
        self.daemon = daemon
        self.stored: list[tuple[str, int]] = []
        self.messages: list[str] = []
        self._guard = threading.Lock()
        self._listening: list[tuple[str, socket.socket]] = []
        for name, path in sockets:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen(30)
            self._listening.append((name, listener))
        self._notify_path = str(directory / "notify")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(self._notify_path)
        self._ending = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def close(self) -> None:
        self._ending = True
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"", self._notify_path)
        self._reader.join()
        self._notify.close()
        for _, listener in self._listening:
            listener.close()
        for _, fd in self.stored:
            os.close(fd)

    # --- the service's messages ---

    def _read(self) -> None:
        space = socket.CMSG_LEN(FDS_PER_MESSAGE * 4)
        while not self._ending:
            raw, ancillary, _, _ = self._notify.recvmsg(65536, space)
            fds = array.array("i")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            with self._guard:
                self._take(raw.decode(), list(fds))

    def _take(self, message: str, fds: list[int]) -> None:
        fields = dict(line.split("=", 1) for line in message.splitlines() if "=" in line)
        name = fields.get("FDNAME", "stored")
        if "FDSTORE" in fields:
            self.stored += [(name, fd) for fd in fds]
            fds = []
        elif "FDSTOREREMOVE" in fields:
            for stored_name, fd in [s for s in self.stored if s[0] == name]:
                os.close(fd)
                self.stored.remove((stored_name, fd))
        for fd in fds:
            os.close(fd)
        self.messages.append(message)

    def _drain(self) -> None:
        """Read what the service has sent so far before acting on its end, as systemd does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            before = self.heard("X_DRAINED")
            s.sendto(b"X_DRAINED=1", self._notify_path)
        wait_until(lambda: self.heard("X_DRAINED") > before, "the messages so far to be read")

    @property
    def names(self) -> list[str]:
        with self._guard:
            return sorted(name for name, _ in self.stored)

    def heard(self, text: str) -> int:
        with self._guard:
            return sum(text in m for m in self.messages)

    # --- the service's life ---

    def start(self) -> None:
        """Start the service with its sockets and the store, and wait until it says READY."""
        self._drain()
        with self._guard:
            passed = [(n, s.fileno()) for n, s in self._listening] + list(self.stored)
            before = sum("READY=1" in m for m in self.messages)
        fds = [fd for _, fd in passed]
        environ = {
            **os.environ,
            "PASS_FDS": ",".join(map(str, fds)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in passed),
            "NOTIFY_SOCKET": self._notify_path,
            "FDSTORE": "4096",
        }
        program = [str(BIN / "holdfastd"), "--config", str(self.daemon.config)]
        with open(self.daemon.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _TRAMPOLINE, str(len(fds)), *program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                pass_fds=fds,
            )
        self.daemon.process = process

        def ready() -> bool:
            assert process.poll() is None, (
                f"holdfastd ended with {process.returncode}:\n{self.daemon.log_text()}"
            )
            return self.heard("READY=1") > before

        with contextlib.ExitStack() as on_failure:
            on_failure.callback(process.kill)
            wait_until(ready, "READY=1 from holdfastd")
            on_failure.pop_all()

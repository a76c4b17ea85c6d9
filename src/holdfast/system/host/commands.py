"""Other programs, run in time and never by the daemon itself: a small process beside it does (`command_server`).

It is started before storage is opened, and again when it has gone: then by a thread, with fork() and not with vfork(),
so that a descriptor that can't be closed holds up that thread, and neither the others nor the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast.system import eager_tasks
from holdfast.system.block_io.pool_calls import future_and_wake, in_time
from holdfast.system.host import command_server

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
"""Longer than starting Python takes on a busy machine; then the program is not run."""
_LINE_BYTES_MAX = 1 << 20
_ANSWER_RESERVE_S = 5.0
"""The server measures a program's time itself; this is for its word to arrive."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: its exit status, or -1 if there is none, and what it said or why it was not run."""

    code: int
    output: str


class Commands(Protocol):
    """The port."""

    async def run(self, command: Sequence[str], timeout_s: float) -> Ended: ...


class CommandProcess:
    """See the module. Where storage may hang, call `start` before any of it is opened."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Ended]] = {}
        self._number = 0

    async def start(self) -> asyncio.StreamWriter:
        """The way to it, as soon as it runs, or is taking too long."""
        async with self._starting:
            if self._writer is None:
                ours, theirs = socket.socketpair()
                done, wake = future_and_wake()
                threading.Thread(target=self._start, args=(theirs, wake), daemon=True).start()
                await in_time(done, START_TIMEOUT_S)
                reader, self._writer = await asyncio.open_connection(sock=ours, limit=_LINE_BYTES_MAX)
                self._listening = asyncio.create_task(self._listen(reader, self._writer))
            return self._writer

    async def run(self, command: Sequence[str], timeout_s: float) -> Ended:
        writer = await self.start()
        self._number += 1
        number = self._number
        ended = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            writer.write(json.dumps([number, list(command), timeout_s]).encode() + b"\n")
            done, _ = await asyncio.wait((ended,), timeout=timeout_s + _ANSWER_RESERVE_S)
            return ended.result() if done else Ended(-1, f"did not answer within {timeout_s:g} s")
        finally:
            del self._waiting[number]

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                number, code, output = json.loads(line)
                if number in self._waiting:
                    eager_tasks.resolve(self._waiting[number], Ended(code, output))
        except OSError as e:
            log.debug("command server: %s", e)
        self._writer = None
        writer.close()
        for each in self._waiting.values():
            eager_tasks.resolve(each, Ended(-1, "the process that runs programs has gone"))

    def _start(self, theirs: socket.socket, wake: Callable[[], None]) -> None:
        """On a thread."""
        # Documented for cases like this: vfork() stops the whole process until the program runs.
        subprocess._USE_VFORK = False  # type: ignore[misc]
        if self._process is not None:
            self._process.poll()  # an earlier one that has ended
        command = [sys.executable, "-I", "-S", command_server.__file__, str(theirs.fileno())]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
                )
            except OSError as e:
                log.error("the process that runs programs can't be started: %s", e)
        wake()

"""A small client of sanlock's socket, on `holdfast.wire.sanlock`: it blocks, and says what it waited for in vain.

A registered connection is made by a process of its own, which passes it here: the daemon signals the process that
called connect(), and that must not be the one that runs the tests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeVar

from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.header import HEADER_BYTES, Header, decode_reply_header

WAIT_S = 20.0
"""For any answer; the longest one that a script waits for takes a few seconds."""
SILENCE_S = 0.3
"""How long nothing has to come where no answer is expected."""

_PROCESS = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"TERM\\n"))
made = socket.socket(socket.AF_UNIX)
made.connect(sys.argv[1])
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"x"], [made.fileno()])
made.close()
while True:
    signal.pause()
"""

Answer = TypeVar("Answer")


class SocketClient:
    """One connection. `header` is that of the last answer."""

    def __init__(self, path: Path, sock: socket.socket | None = None) -> None:
        if sock is None:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(WAIT_S)
            sock.connect(str(path))
        self.sock = sock
        self.sock.settimeout(WAIT_S)
        self.header: Header | None = None

    def send(self, *requests: r.AnyRequest | bytes) -> None:
        """In one piece."""
        self.sock.sendall(
            b"".join(each if isinstance(each, bytes) else request_table.encode(each) for each in requests)
        )

    def receive(self, size: int) -> bytes:
        raw = b""
        while len(raw) < size:
            chunk = self.sock.recv(size - len(raw))
            assert chunk, f"the end after {len(raw)} of {size} bytes"
            raw += chunk
        return raw

    def rest(self) -> bytes:
        """Up to the end; a daemon that closes with requests unread resets the connection."""
        raw = b""
        try:
            while chunk := self.sock.recv(1 << 20):
                raw += chunk
        except ConnectionResetError:
            pass
        return raw

    def answer(self, command: Command) -> replies.Reply:
        """The next one, which has to be this command's."""
        head = self.receive(HEADER_BYTES)
        self.header = header = decode_reply_header(head)
        assert header.command == command, f"an answer to {header.command}, not to {command!r}"
        if command in replies.STREAMS:
            return replies.decode(command, head + self.rest())
        return replies.decode(command, head + self.receive(header.length - HEADER_BYTES))

    def ask(self, request: r.AnyRequest) -> replies.Reply:
        self.send(request)
        return self.answer(request_table.command_of(request))

    def result(self, request: r.AnyRequest) -> int:
        return self.ask(request).result

    def asked(self, request: r.AnyRequest, kind: type[Answer]) -> Answer:
        """The answer, which has to be of this kind."""
        reply = self.ask(request)
        assert isinstance(reply, kind), reply
        return reply

    def is_silent(self) -> bool:
        """Whether nothing comes, not even the end."""
        self.sock.settimeout(SILENCE_S)
        try:
            return not self.sock.recv(1, socket.MSG_PEEK) and False
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(WAIT_S)

    def is_closed(self) -> bool:
        return not self.rest()

    def close(self) -> None:
        self.sock.close()


class Process:
    """A process with a registered connection, whose descriptor this program has alone: `client` acts for it."""

    def __init__(self, path: Path) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _PROCESS, str(path), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
        )
        theirs.close()
        ours.settimeout(WAIT_S)
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        ours.close()
        self.pid = self._process.pid
        self.client = SocketClient(path, socket.socket(fileno=descriptor))
        self.client.send(r.Register())

    def terms(self, wait_s: float = 0.0) -> int:
        """How many SIGTERMs it has got by now, or until then."""
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        until, seen = time.monotonic() + wait_s, b""
        while True:
            seen += self._process.stdout.read() or b""
            if seen or time.monotonic() >= until:
                return seen.count(b"TERM")
            time.sleep(0.02)

    def wait_killed(self, wait_s: float = WAIT_S) -> bool:
        """Whether it ends by SIGKILL in that time."""
        try:
            return self._process.wait(wait_s) == -9
        except subprocess.TimeoutExpired:
            return False

    def runs(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self.client.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

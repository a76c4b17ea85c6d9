"""A double of wdmd, sanlock's watchdog daemon: it answers as the real ones do, and remembers what it was sent.

Both generations that are in use: 3.8.5 has its device open from the start, 3.9 and later open it when a connection asks
for it, and close it with the last one. Neither says in STATUS whether it is open. `tests/interop/wdmd` shows that the
real one of this machine answers like its double.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from holdfast.system.watchdog import wdmd

FIRE_TIMEOUT_S = 30
"""A grace of 15 s: owners of a lost lease get SIGTERM after half of it."""
AMPLE_S = 20.0
"""A stuck test shall end."""
CLOSED = (0, 0)


class Generation(enum.Enum):
    BEFORE_3_9 = "3.8.5"
    SINCE_3_9 = "3.9.5"


class Wdmd:
    """Listens, answers STATUS and OPEN_WATCHDOG, and writes down what each connection says."""

    def __init__(self, path: Path, generation: Generation, fire_timeout_s: int = FIRE_TIMEOUT_S) -> None:
        self.path = path
        self.generation = generation
        self.fire_timeout_s = fire_timeout_s
        self.device_fails = False
        """It can't open its device."""
        self.restarts_after_a_status = False
        """The next STATUS is its last answer: it is restarted by an upgrade of its package."""
        self.changed = threading.Condition()
        self.messages: list[list[tuple[int, int, int, int, bytes]]] = []
        """For each connection what `wdmd.unpack` makes of its messages."""
        self.said: list[list[tuple[int, int]]] = []
        """For each connection (command, expire time) in order; CLOSED when it was closed."""
        self._sockets: set[socket.socket] = set()
        self._asked: set[socket.socket] = set()
        self._pinged_at = 0
        self._listen()

    @property
    def has_device_open(self) -> bool:
        return bool(self._asked) or (self.generation is Generation.BEFORE_3_9 and not self.device_fails)

    def expires(self, connection: int) -> list[int]:
        return [expire for command, expire in self.said[connection] if command == wdmd.TEST_LIVE]

    def wait(self, happened: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(happened, AMPLE_S), self.said

    def close(self) -> None:
        """Gone, and its connections with it."""
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._accepting:
            self._accepting.join()  # or one that is just accepted would be left open
        self._listener.close()
        with self.changed:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def restart(self) -> None:
        self.close()
        self.path.unlink()
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self.changed:
                    self._sockets.add(client)
                    self.said.append([])
                    self.messages.append([])
                    number = len(self.said) - 1
                threading.Thread(target=self._serve, args=(client, number), daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        raw = b""
        restarts = False
        with contextlib.suppress(OSError):
            while not restarts and (piece := client.recv(4096)):
                raw += piece
                while not restarts and len(raw) >= wdmd.MESSAGE_BYTES:
                    message, raw = raw[: wdmd.MESSAGE_BYTES], raw[wdmd.MESSAGE_BYTES :]
                    # It acts before it answers; who has read the answer finds the message here.
                    answer = self._take(client, number, message)
                    if answer:
                        client.sendall(answer)
                    restarts = self.restarts_after_a_status and wdmd.unpack(message)[0] == wdmd.STATUS
        if restarts:
            self.restarts_after_a_status = False
            self.restart()
        with self.changed:
            self._sockets.discard(client)
            self._asked.discard(client)
            client.close()
            self.said[number].append(CLOSED)
            self.changed.notify_all()

    def _take(self, client: socket.socket, number: int, message: bytes) -> bytes:
        command, fire_s, renewal, expire, name = wdmd.unpack(message)
        with self.changed:
            self.messages[number].append((command, fire_s, renewal, expire, name))
            self.said[number].append((command, expire))
            answer = self._answer(client, command, fire_s)
            if self.has_device_open:
                self._pinged_at = int(time.clock_gettime(time.CLOCK_MONOTONIC))
            self.changed.notify_all()
        return answer

    def _answer(self, client: socket.socket, command: int, fire_s: int) -> bytes:
        if command == wdmd.STATUS:
            # Also while nothing is open.
            pinged_at = self._pinged_at or (self.has_device_open and 1)
            return wdmd.pack(command, fire_timeout_s=self.fire_timeout_s, last_keepalive=int(pinged_at))
        if command == wdmd.OPEN_WATCHDOG and self.generation is Generation.SINCE_3_9:
            if self.device_fails:
                return wdmd.pack(command, fire_timeout_s=0)
            if not self._asked and fire_s:
                self.fire_timeout_s = fire_s
            self._asked.add(client)
            return wdmd.pack(command, fire_timeout_s=self.fire_timeout_s)
        return b""

"""A double of wdmd, sanlock's watchdog daemon: it answers as the real one does, and remembers what it was told."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from holdfast.system import wdmd

FIRE_TIMEOUT_S = 30
"""A grace of 15 s: owners of a lost lease get SIGTERM after half of it."""


class Wdmd:
    """Listens, answers STATUS, and writes down what each connection says."""

    def __init__(self, path: Path, fire_timeout_s: int = FIRE_TIMEOUT_S) -> None:
        self._fire_timeout_s = fire_timeout_s
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self.said: list[list[tuple[int, int]]] = []
        """For each connection (command, expire time) in order; (0, 0) when it was closed."""
        self._sockets: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self.said.append([])
                threading.Thread(target=self._serve, args=(client, self.said[-1]), daemon=True).start()

    def _serve(self, client: socket.socket, said: list[tuple[int, int]]) -> None:
        raw = b""
        with contextlib.suppress(OSError):
            while piece := client.recv(4096):
                raw += piece
                while len(raw) >= wdmd.MESSAGE_BYTES:
                    command, _, _, expire, _ = wdmd.unpack(raw[: wdmd.MESSAGE_BYTES])
                    raw = raw[wdmd.MESSAGE_BYTES :]
                    said.append((command, expire))
                    if command == wdmd.STATUS:
                        client.sendall(wdmd.pack(wdmd.STATUS, fire_timeout_s=self._fire_timeout_s))
        said.append((0, 0))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()  # or one that is just accepted would be left open
        self._listener.close()
        for each in self._sockets:
            each.close()

    def expires(self, connection: int) -> list[int]:
        return [expire for command, expire in self.said[connection] if command == wdmd.TEST_LIVE]

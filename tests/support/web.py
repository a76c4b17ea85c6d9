"""A real holdfast-web as a subprocess, and requests to it."""

from __future__ import annotations

import http.client
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.daemon import BIN, Holdfastd
from tests.support.polling import wait_until

SERVING = "serving http://127.0.0.1:"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: str


class HoldfastWeb:
    """The server for one daemon, on a free port of loopback."""

    def __init__(self, daemon: Holdfastd, log: Path, arguments: Sequence[str] = ()) -> None:
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [
                    str(BIN / "holdfast-web"),
                    "--listen",
                    "127.0.0.1:0",
                    "--socket",
                    str(daemon.run_dir / "io.holdfast.Control.read-only"),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "CREDENTIALS_DIRECTORY": ""},
            )

        def serves() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return "\n" in self.log.read_text().partition(SERVING)[2]

        wait_until(serves, "holdfast-web to serve")
        self.port = int(self.log.read_text().partition(SERVING)[2].partition("/")[0])
        self.url = f"http://127.0.0.1:{self.port}"

    def get(self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read().decode())
        finally:
            connection.close()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)

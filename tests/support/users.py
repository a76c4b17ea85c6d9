"""Another user on the daemon's control socket: by a process of its own, with a plain Varlink client."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection
from typing import Any

from tests.support.daemon import Holdfastd

NOBODY, NOGROUP, ADM = 65534, 65534, 4
"""Of Debian's base-passwd."""

OWN_PID = "OWN"
"""As a parameter: the pid of the process that asks."""

_ASK = """
import json, os, socket, sys
path, calls = sys.argv[1], json.loads(sys.argv[2].replace('"OWN"', str(os.getpid())))
s = socket.socket(socket.AF_UNIX)
s.connect(path)
replies = []
for method, parameters in calls:
    s.sendall(json.dumps({"method": method, "parameters": parameters}).encode() + b"\\0")
    raw = b""
    while not raw.endswith(b"\\0"):
        part = s.recv(65536)
        if not part:
            sys.exit("closed")
        raw += part
    replies.append(json.loads(raw[:-1]))
print(json.dumps(replies))
"""

Call = tuple[str, dict[str, object]]


class NotServed(Exception):
    """The user could not connect, or was disconnected without an answer."""


def ask_as_nobody(
    daemon: Holdfastd, *calls: Call, gid: int = NOGROUP, groups: Collection[int] = (), path: str = ""
) -> list[dict[str, Any]]:
    """The replies to these methods of io.holdfast.Control, at the control socket or another `path`; raises `NotServed`."""
    for directory in (daemon.directory.parent, daemon.directory):
        os.chmod(directory, 0o755)
    named = [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    asked = json.dumps([(f"io.holdfast.Control.{method}", parameters) for method, parameters in calls])
    ended = subprocess.run(
        [
            *("setpriv", f"--reuid={NOBODY}", f"--regid={gid}", *named),
            *("/usr/bin/python3", "-c", _ASK, path or daemon.control, asked),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    if ended.returncode != 0:
        raise NotServed(ended.stderr)
    replies: list[dict[str, Any]] = json.loads(ended.stdout)
    return replies

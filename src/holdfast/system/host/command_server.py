"""Runs other programs for the daemon, as a process of its own that has no storage open.

A process that starts a program closes its descriptors in the new one first, and closing one whose storage hangs hangs:

    daemon    fork ── waits, and all of its threads with it, until the child runs the program
    child           └─ close(lease file on a dead path) …… hangs

So this is started before any storage is opened, by its path and with nothing of Holdfast's: it shall stay small. Each
line on its socket is one program to run, each line back says how one ended. It ends with the daemon; the programs
that it has started run on.
"""

import json
import os
import socket
import subprocess
import sys
import threading

OUTPUT_BYTES_MAX = 16384
"""So much of a program's output is passed on: error messages, and a line has to have an end."""


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    lock = threading.Lock()

    def run(number: int, command: list[str], timeout_s: float) -> None:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
            code, output = done.returncode, done.stdout[:OUTPUT_BYTES_MAX].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            code, output = -1, f"did not answer within {timeout_s:g} s"
        except OSError as e:
            code, output = -1, f"can't be started: {e.strerror}"
        with lock:
            channel.sendall(json.dumps([number, code, output]).encode() + b"\n")

    with channel.makefile("rb") as lines:
        for line in lines:
            threading.Thread(target=run, args=json.loads(line), daemon=True).start()
    os._exit(0)


if __name__ == "__main__":
    main()

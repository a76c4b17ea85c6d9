"""`make test`'s pytest: all tests, in two processes that take about as long, because one of them mostly waits: for a real
sanlock's timeouts, and for leases that daemons lose.

The second process's output is shown when it has ended. The exit status is 0 only if both are well.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

WAITING = ("tests/interop", "tests/daemon")


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.run([*pytest, *arguments], check=False).returncode
    with tempfile.TemporaryFile() as output:
        waiting = subprocess.Popen([*pytest, *WAITING], stdout=output, stderr=subprocess.STDOUT)
        try:
            status = subprocess.run(
                [*pytest, *(f"--ignore={each}" for each in WAITING)], check=False
            ).returncode
            status = waiting.wait() or status
        finally:
            waiting.kill()
            waiting.wait()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

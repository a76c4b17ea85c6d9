"""Fuzzed messages to both sockets of a live daemon for a time of your choice (`make fuzz`).

    python -m tests.fuzz.live_sockets SECONDS

The messages and what has to hold after each (the daemon lives, has no more descriptors and hardly more memory, its locks
stand, no traceback) are those of tests/daemon/test_fuzzed_frames.py, which plays 150 of each kind.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.daemon.test_fuzzed_frames import FRAMES, MESSAGES, resident_kib, survives
from tests.support.daemon import Holdfastd, make_disk

EXAMPLES_EACH = 100
"""Between two looks at the clock."""


def main() -> None:
    until = time.monotonic() + float(sys.argv[1])
    directory = Path(tempfile.mkdtemp(prefix="hf-"))
    (directory / "inside").mkdir()
    daemon = Holdfastd(directory).start(cwd=directory / "inside")
    disk = make_disk(directory)
    guarded = (daemon, disk, daemon.vm([disk], name="guarded"))
    begun_kib, examples = resident_kib(daemon.pid), 0

    @settings(
        max_examples=EXAMPLES_EACH, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        messages=st.lists(MESSAGES, min_size=1, max_size=8), frames=st.lists(FRAMES, min_size=1, max_size=8)
    )
    def throw(messages: list[bytes], frames: list[bytes]) -> None:
        nonlocal examples
        survives(guarded, daemon.control, messages)
        survives(guarded, daemon.socket, frames)
        examples += 1

    try:
        while time.monotonic() < until:
            throw()
    finally:
        print(f"{examples} examples for each socket; {begun_kib} to {resident_kib(daemon.pid)} KiB resident")
        daemon.stop_all()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Fuzzed messages to the three sockets of a live daemon for a time of your choice (`make fuzz`).

    python -m tests.fuzz.live_sockets SECONDS

The messages and what has to hold after each (the daemon lives, has no more descriptors and hardly more memory, its locks
stand, no traceback) are those of tests/daemon/test_fuzzed_frames.py and test_fuzzed_sanlock.py, which play some of each.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.daemon import test_fuzzed_sanlock as sanlock
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
    in_sanlocks_place = sanlock.guard()
    daemons = (daemon, in_sanlocks_place.daemon)
    begun_kib, examples = [resident_kib(each.pid) for each in daemons], 0

    @settings(
        max_examples=EXAMPLES_EACH, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        messages=st.lists(MESSAGES, min_size=1, max_size=8),
        frames=st.lists(FRAMES, min_size=1, max_size=8),
        requests=sanlock.CONNECTIONS,
    )
    def throw(messages: list[bytes], frames: list[bytes], requests: list[list[bytes]]) -> None:
        nonlocal examples
        survives(guarded, daemon.control, messages)
        survives(guarded, daemon.socket, frames)
        sanlock.survives(in_sanlocks_place, requests)
        examples += 1

    try:
        while time.monotonic() < until:
            throw()
    finally:
        ended_kib = [resident_kib(each.pid) for each in daemons]
        print(f"{examples} examples for each socket; {begun_kib} to {ended_kib} KiB resident")
        daemon.stop_all()
        sanlock.close(in_sanlocks_place)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

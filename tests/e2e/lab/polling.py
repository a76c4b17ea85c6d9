"""Waiting, without guessing how long: a condition is asked for again and again until it holds.

No test in this suite sleeps for a fixed time and then hopes.  The time limits are far above what a loaded
machine needs; they exist so that a broken daemon gives a message instead of a hang.
"""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

LIMIT_S = 60.0
INTERVAL_S = 0.02


def until(probe: Callable[[], Answer], what: str, limit_s: float = LIMIT_S) -> Answer:
    """Ask `probe` until its answer is true, and return that answer; `what` completes "waited for …"."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit_s:.0f} s for {what}; last answer: {answer!r}")
        time.sleep(INTERVAL_S)

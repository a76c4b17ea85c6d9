"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 30.0
"""Far more than any condition here needs on a busy machine: it only ends a test that would never end."""


def wait_until(condition: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S) -> T:
    """The condition's first true value; AssertionError, with what was waited for, if it never comes."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for: {what}"
        time.sleep(0.01)

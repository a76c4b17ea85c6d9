"""Log lines that a client can cause, at a limited rate: one that sends nonsense in a loop must not fill the host's disk.

10 lines in a minute are written, each further one is counted; the first line of the next minute says how many
were left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import monotonic

LINES_PER_PERIOD = 10
"""Enough to see what is wrong and who sends it."""
PERIOD_S = 60.0


class LimitedLog:
    """One kind of line; `left_out` counts those that were not written since the last one that was."""

    def __init__(
        self,
        log: logging.Logger,
        level: int = logging.WARNING,
        *,
        lines_max: int = LINES_PER_PERIOD,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._log = log
        self._level = level
        self._lines_max = lines_max
        self._now = now
        self._period_from = now()
        self._written = 0
        self.left_out = 0

    def write(
        self,
        message: str,
        *arguments: object,
        failure: BaseException | None = None,
        about: Mapping[str, object] | None = None,
    ) -> None:
        """`failure`: an exception whose traceback belongs to the line. `about`: its facts (`log_lines.facts`)."""
        now = self._now()
        if now - self._period_from >= PERIOD_S:
            self._period_from, self._written = now, 0
        if self._written >= self._lines_max:
            self.left_out += 1
            return
        self._written += 1
        if self.left_out:
            message += " (%d more lines like this were left out before it)"
            arguments += (self.left_out,)
            self.left_out = 0
        self._log.log(self._level, message, *arguments, exc_info=failure, extra=about)

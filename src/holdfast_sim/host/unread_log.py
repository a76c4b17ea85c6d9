"""A log whose reader hangs at times: log records of shipping code pass through the shipping queue to it.

One log for the whole cluster, small enough to overflow. It has a separate generator and makes no events, so that it does
not change a seed's history: how much has been read is computed from the time at the next record.
"""

from __future__ import annotations

import logging
from random import Random

from holdfast.system.logs.log_queue import LineBuffer, lost_text
from holdfast_sim.world import World

BUFFER_BYTES_MAX = 4000
"""About twenty lines."""
READS_S, HANGS_S = 10.0, 20.0
"""Mean seconds for which the reader reads, and for which it hangs."""
_LOST = "lines of the log were lost"


class UnreadLog:
    """Call `offer` for each record, and `close` at the end of a seed, when the log is read again."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._buffer = LineBuffer(BUFFER_BYTES_MAX)
        self._reads = True
        self._turns_at = random.expovariate(1 / READS_S)
        self.offered = 0
        self.written = 0
        self.reported = 0
        """The number of lost lines that the log itself reports."""

    def offer(self, record: logging.LogRecord) -> None:
        self._read_until(self._world.now)
        self.offered += 1
        line = f"{record.getMessage()}\n".encode("utf-8", "backslashreplace")[:BUFFER_BYTES_MAX]
        self._buffer.offer(line, important=record.levelno >= logging.WARNING)
        if self._buffer.queued_bytes > BUFFER_BYTES_MAX:
            self._world.fail("a log that nobody reads", f"{self._buffer.queued_bytes} bytes are queued")

    def close(self) -> None:
        """Write everything that is queued, and check that all lost lines were reported."""
        self._read()
        if (lost := self.offered - self.written) != self.reported:
            what = f"{lost} lines are missing, and {self.reported} are reported lost"
            self._world.fail("a log that nobody reads", what)

    def _read_until(self, now: float) -> None:
        if self._reads:
            self._read()
        while now >= self._turns_at:
            self._reads = not self._reads
            self._turns_at += self._random.expovariate(1 / (READS_S if self._reads else HANGS_S))
            if self._reads:
                self._read()

    def _read(self) -> None:
        while (line := self._buffer.take()) is not None:
            text = line.decode()
            if text.rstrip("\n").endswith(lost_text(0)[1:]) and _LOST in text:
                self.reported += int(text.split(" ", 1)[0])
            else:
                self.written += 1
            self._buffer.settle(line, written=True, report=lambda lines: f"{lost_text(lines)}\n".encode())

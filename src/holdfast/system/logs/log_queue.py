"""A log that nobody reads never stalls the daemon: lines go through a bounded queue to one thread that writes them.

stderr is journald's socket or a pipe. When its reader hangs (its disk is often the one that the leases are on), a write
blocks for as long as that lasts. On the event loop that would hold up every client, and the stopping of owners whose
lease is lost: another host would take over while they write.

    any thread ──► queue (bounded) ──► thread "log" ──► stderr … blocks
       │ never waits                      │
       └ full: counted, dropped           └ after the next line that is written: "N lines of the log were lost"

Routine lines (below WARNING) fill at most half of the queue, so that the important ones still have room.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from holdfast.system.logs.log_lines import LineFormatter

log = logging.getLogger(__name__)

QUEUE_BYTES_MAX = 4 << 20
"""Some 40 000 lines: minutes of trouble on a busy host, and little beside the daemon's own memory."""
LINE_BYTES_MAX = 64 << 10
"""A line longer than that is cut: one line must not use up the queue."""
FLUSH_S = 1.0
"""How long an ending or re-executing daemon waits for its last lines to be written."""


class LineBuffer:
    """The queue itself: bounded, and it counts what it drops. Without a thread and without a lock."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self.queued_bytes = 0
        """Of the lines that are not written yet, the one that is being written among them."""
        self.dropped_total = 0

    def offer(self, line: bytes, *, important: bool) -> bool:
        """Queue a line, or drop it and count that; never waits. Routine lines fill at most half."""
        if self.queued_bytes + len(line) > (self._bytes_max if important else self._bytes_max // 2):
            self._drop()
            return False
        self._lines.append(line)
        self.queued_bytes += len(line)
        return True

    def take(self) -> bytes | None:
        """The next line to be written; `settle` has to follow."""
        return self._lines.popleft() if self._lines else None

    def settle(self, line: bytes, *, written: bool, report: Callable[[int], bytes]) -> None:
        """A line that was taken is written, or can't be. After one that is, a line of `report` says how many were lost."""
        self.queued_bytes -= len(line)
        if not written:
            self._drop()
        elif self._dropped:
            lost = report(self._dropped)
            self._dropped = 0
            self._lines.appendleft(lost)
            self.queued_bytes += len(lost)

    def _drop(self) -> None:
        self._dropped += 1
        self.dropped_total += 1


class LogQueue(logging.Handler):
    """A handler whose `emit` never waits. Its thread is a daemon thread and writes to a descriptor that it doesn't own."""

    def __init__(self, fd: int, *, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        super().__init__()
        self._fd = fd
        self._changed = threading.Condition()
        self._buffer = LineBuffer(queue_bytes_max)
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """How many lines were lost since the start."""
        return self._buffer.dropped_total

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as e:  # a wrong format string is a bug that must not cost more than its line
            text = self._own(
                logging.ERROR,
                f"a line of the log from {record.pathname}:{record.lineno} could not be formatted: {e!r}",
            )
        line = text.encode("utf-8", "backslashreplace")[:LINE_BYTES_MAX] + b"\n"
        with self._changed:
            if self._buffer.offer(line, important=record.levelno >= logging.WARNING):
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, for FLUSH_S at most."""
        until = time.monotonic() + FLUSH_S
        with self._changed:
            while self._buffer.queued_bytes and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _own(self, level: int, text: str) -> str:
        """A line of the queue's own."""
        return self.format(logging.LogRecord(__name__, level, __file__, 0, "%s", (text,), None))

    def _lost(self, lines: int) -> bytes:
        return self._own(logging.WARNING, lost_text(lines)).encode() + b"\n"

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                while (line := self._buffer.take()) is None:
                    self._changed.wait()
            written = self._write(line)
            with self._changed:
                self._buffer.settle(line, written=written, report=self._lost)
                self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        """False if it can't be written, as when the reader has ended."""
        while line:
            try:
                line = line[os.write(self._fd, line) :]
            except BlockingIOError:  # somebody else made it non-blocking
                select.select([], [self._fd], [])
            except OSError:
                return False
        return True


def lost_text(lines: int) -> str:
    return f"{lines} lines of the log were lost: it was not read in time"


def log_to(fd: int, level: str, *, journal: bool) -> None:
    """Log through a queue to this descriptor, and send there what Python itself would write to stderr, and wait for.
    `journal`: journald reads it. Other handlers get lines of INFO also where this one is to have less.
    """
    queue = LogQueue(fd)
    queue.setFormatter(LineFormatter(journal=journal))
    queue.setLevel(level)
    logging.basicConfig(level=min(queue.level, logging.INFO), handlers=[queue])
    threading.excepthook = _thread_failed
    sys.unraisablehook = _failed_unheard


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    name = failed.thread.name if failed.thread is not None else "unknown"
    log.critical("unexpected failure of thread %s", name, exc_info=failed.exc_value)


def _failed_unheard(failed: sys.UnraisableHookArgs) -> None:
    log.error("unexpected failure in %r: %s", failed.object, failed.err_msg, exc_info=failed.exc_value)


def flush_logs() -> None:
    """Before this program ends or is replaced: write what is queued, within a bound."""
    for handler in logging.getLogger().handlers:
        handler.flush()


LEVELS = ("debug", "info", "warning", "error")


def log_level() -> str:
    """The level of the lines that are written; empty without a queue."""
    queue = _queue()
    return logging.getLevelName(queue.level).lower() if queue is not None else ""


def set_log_level(level: str, by: str) -> str:
    """Write lines of this level and above from now on, and one about the change; the level before. Raises ValueError."""
    queue = _queue()
    if level not in LEVELS:
        raise ValueError(f"log level '{level}' is none of {', '.join(LEVELS)}")
    if queue is None:
        raise ValueError("this daemon's log has no level that could be changed")
    before, number = queue.level, logging.getLevelNamesMapping()[level.upper()]
    _set_levels(queue, min(before, number))  # for the line about it
    log.warning("log level: %s, before %s; changed by %s", level, logging.getLevelName(before).lower(), by)
    _set_levels(queue, number)
    return logging.getLevelName(before).lower()


def _set_levels(queue: LogQueue, level: int) -> None:
    queue.setLevel(level)
    logging.getLogger().setLevel(min(level, logging.INFO))


def _queue() -> LogQueue | None:
    return next((each for each in logging.getLogger().handlers if isinstance(each, LogQueue)), None)

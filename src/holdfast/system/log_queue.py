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

from holdfast.system.log_lines import LineFormatter

log = logging.getLogger(__name__)

QUEUE_BYTES_MAX = 4 << 20
"""Some 40 000 lines: minutes of trouble on a busy host, and little beside the daemon's own memory."""
LINE_BYTES_MAX = 64 << 10
"""A line longer than that is cut: one line must not use up the queue."""
FLUSH_S = 1.0
"""How long an ending or re-executing daemon waits for its last lines to be written."""


class LogQueue(logging.Handler):
    """A handler whose `emit` never waits. Its thread is a daemon thread and writes to a descriptor that it doesn't own."""

    def __init__(self, fd: int, *, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        super().__init__()
        self._fd = fd
        self._bytes_max = queue_bytes_max
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        """Of the lines that are not written yet, the one that is being written among them."""
        self._dropped = 0
        self._dropped_total = 0
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """How many lines were lost since the start."""
        return self._dropped_total

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as e:  # a wrong format string is a bug that must not cost more than its line
            text = self._own(
                logging.ERROR,
                f"a line of the log from {record.pathname}:{record.lineno} could not be formatted: {e!r}",
            )
        line = text.encode("utf-8", "backslashreplace")[:LINE_BYTES_MAX] + b"\n"
        room = self._bytes_max if record.levelno >= logging.WARNING else self._bytes_max // 2
        with self._changed:
            if self._queued_bytes + len(line) > room:
                self._drop()
                return
            self._lines.append(line)
            self._queued_bytes += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, for FLUSH_S at most."""
        until = time.monotonic() + FLUSH_S
        with self._changed:
            while self._queued_bytes and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _own(self, level: int, text: str) -> str:
        """A line of the queue's own."""
        return self.format(logging.LogRecord(__name__, level, __file__, 0, "%s", (text,), None))

    def _drop(self) -> None:
        self._dropped += 1
        self._dropped_total += 1

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                line = self._lines.popleft()
            written = self._write(line)
            with self._changed:
                self._queued_bytes -= len(line)
                if not written:
                    self._drop()
                elif self._dropped:
                    text = f"{self._dropped} lines of the log were lost: it was not read in time"
                    lost = self._own(logging.WARNING, text).encode() + b"\n"
                    self._dropped = 0
                    self._lines.appendleft(lost)
                    self._queued_bytes += len(lost)
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


def log_to(fd: int, level: str, *, journal: bool) -> None:
    """Log through a queue to this descriptor, and send there what Python itself would write to stderr, and wait for.
    `journal`: journald reads it.
    """
    queue = LogQueue(fd)
    queue.setFormatter(LineFormatter(journal=journal))
    logging.basicConfig(level=level, handlers=[queue])
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

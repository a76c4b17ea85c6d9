"""The latest lines of the log, in memory, for clients that ask for them (sanlock's LOG_DUMP)."""

from __future__ import annotations

import logging
from collections import deque

from holdfast.system.logs.log_lines import LineFormatter

LINES_MAX = 4096
LINE_BYTES_MAX = 512
"""A longer line is cut: all of them take 2 MiB at most."""


class RecentLines(logging.Handler):
    """A handler for the root logger; any thread logs, the event loop reads."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(journal=False))
        self._lines: deque[bytes] = deque(maxlen=LINES_MAX)

    @classmethod
    def of_root(cls) -> RecentLines:
        """From now on."""
        lines = cls()
        logging.getLogger().addHandler(lines)
        return lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record).encode("utf-8", "replace")[:LINE_BYTES_MAX])

    def text(self) -> bytes:
        """Oldest first, a line each."""
        return b"".join(line.rstrip(b"\n") + b"\n" for line in list(self._lines))

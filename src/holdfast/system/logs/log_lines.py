"""A line of the log: nothing that a client or another host has named can forge one, or move a terminal that shows it.

    2026-11-27 02:03:04,567 WARNING refused /srv/x.img to web1 (pid 7): … [VM=web1 DISK=/srv/x.img EVENT=refused]
    <4>WARNING refused …                                                   the same for journald, with its priority

Control characters of the finished message are spelled out, line feeds among them, so a record is one line. A traceback has
several, each with a mark in front that no record has. Facts for programs stand at the end, in a fixed order.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping

from holdfast.model import printable

FACTS_ATTRIBUTE = "facts"
"""Of a record: what `facts` returned goes here by `extra=`."""
TRACEBACK_MARK = "    | "
_PRIORITIES = (
    (logging.CRITICAL, "<2>"),
    (logging.ERROR, "<3>"),
    (logging.WARNING, "<4>"),
    (logging.INFO, "<6>"),
)
"""sd-daemon(3); what is below is debugging."""
_DEBUG = "<7>"
_PLAIN = re.compile(r"[^\s\"=\[\]\\]+")
"""A value that needs no quotes."""


def facts(*, vm: str = "", disk: str = "", host: str = "", event: str = "") -> dict[str, object]:
    """`extra` of a log call: who and what it is about, for programs that read the log; empty ones are left out."""
    named = (("VM", vm), ("DISK", disk), ("HOST", host), ("EVENT", event))
    return {FACTS_ATTRIBUTE: tuple((key, value) for key, value in named if value)}


class LineFormatter(logging.Formatter):
    """`journal`: each line begins with its priority, and has no time, which the journal notes itself."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = printable(f"{record.levelname} {record.getMessage()}")
        if found := getattr(record, FACTS_ATTRIBUTE, ()):
            text += f" [{' '.join(f'{key}={_value(value)}' for key, value in found)}]"
        start = _priority(record.levelno) if self._journal else f"{self.formatTime(record)} "
        lines = [start + text]
        if record.exc_info:
            mark = start + TRACEBACK_MARK if self._journal else TRACEBACK_MARK
            lines += [mark + printable(line) for line in self.formatException(record.exc_info).splitlines()]
        return "\n".join(lines)


def _priority(level: int) -> str:
    return next((mark for least, mark in _PRIORITIES if level >= least), _DEBUG)


def _value(value: str) -> str:
    value = printable(value)
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def goes_to_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether that descriptor is the stream that systemd has connected to the journal (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"

"""A question to storage that may hang, for a command that has to end: asked by a process of its own.

A thread inside a request that hangs can't be ended, and a process with one can't be reaped: the shell would wait for it. So
a child asks; without an answer in time it is killed and left to init, with nothing of ours open.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

from holdfast.system.files.regular_file import write_all

T = TypeVar("T")

ANSWER_S = 5.0
"""Storage that is well answers in milliseconds; NFS that retransmits once, in a second or two."""
PART_BYTES = 1 << 16
"""As much as a pipe holds."""


class Silent(Exception):
    """The storage did not answer in time."""


def answer_in_time(question: Callable[[], T], seconds: float = ANSWER_S) -> T:
    """What it returns or raises, both of which must be picklable; raises `Silent`. Only for a program with one thread."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(question, writer)
    os.close(writer)
    try:
        raw = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
    if raw is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)  # it may never end
        raise Silent
    os.waitpid(pid, 0)
    if not raw:
        raise Silent  # somebody has killed the child
    returned, value = pickle.loads(raw)  # our own child wrote it
    if not returned:
        raise value
    result: T = value
    return result


def _answer(question: Callable[[], object], writer: int) -> None:
    """In the child; never returns. It may hang for ever, so it keeps nothing open that anybody waits for."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        keep = os.dup2(writer, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        try:
            answer: tuple[bool, object] = True, question()
        except Exception as e:
            answer = False, e
        write_all(keep, pickle.dumps(answer))
    finally:
        os._exit(0)


def _read(reader: int, until: float) -> bytes | None:
    raw = b""
    while (left_s := until - time.monotonic()) > 0:
        with contextlib.suppress(InterruptedError):
            if not select.select([reader], [], [], left_s)[0]:
                break
            part = os.read(reader, PART_BYTES)
            if not part:
                return raw
            raw += part
    return None

"""The log's queue: it never makes anybody wait, and says what it lost."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tests.support.polling import wait_until

from holdfast.system.logs.log_queue import LINE_BYTES_MAX, LogQueue


class Pipe:
    """A log's descriptor whose reader is this test."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.text = ""

    def read_until(self, pattern: str) -> str:
        while not re.search(pattern, self.text):
            part = os.read(self.reader, 1 << 20)
            assert part
            self.text += part.decode()
        return self.text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)


def logger_on(queue: LogQueue) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(queue)
    return logger


def test_lines_are_written_in_their_order(pipe: Pipe) -> None:
    log = logger_on(LogQueue(pipe.writer))
    for number in range(1000):
        log.info("line %d", number)
    lines = pipe.read_until("line 999\n").splitlines()
    assert lines == [f"line {number}" for number in range(1000)]


def test_log_that_nobody_reads_holds_up_nobody_and_its_losses_are_reported_when_it_is_read(
    pipe: Pipe,
) -> None:
    queue = LogQueue(pipe.writer, queue_bytes_max=64_000)
    log = logger_on(queue)
    wrote = threading.Event()

    def write() -> None:
        for number in range(20_000):
            log.info("line %d", number)
        wrote.set()

    threading.Thread(target=write, daemon=True).start()
    assert wrote.wait(60), "a log call waits for the reader"
    assert queue.dropped > 0
    queue.flush()  # within its bound, although nothing can be written
    log.critical("the end")
    text = pipe.read_until("the end\n")
    lost = re.findall(r"^(\d+) lines of the log were lost", text, re.MULTILINE)
    assert sum(map(int, lost)) == queue.dropped
    assert len(re.findall(r"^line \d+$", text, re.MULTILINE)) + queue.dropped == 20_000


def test_important_lines_still_find_room_when_routine_ones_have_used_up_theirs(pipe: Pipe) -> None:
    queue = LogQueue(pipe.writer, queue_bytes_max=64_000)
    log = logger_on(queue)
    for number in range(20_000):
        log.debug("routine %d", number)
    before = queue.dropped
    for number in range(100):
        log.critical("LEASE LOST: %d", number)
    assert queue.dropped == before
    assert pipe.read_until("LEASE LOST: 99\n").count("LEASE LOST") == 100


def test_last_lines_are_written_before_the_end(pipe: Pipe) -> None:
    queue = LogQueue(pipe.writer)
    log = logger_on(queue)
    for number in range(100):
        log.critical("line %d", number)
    queue.flush()
    assert os.read(pipe.reader, 1 << 20).decode().endswith("line 99\n")


def test_line_that_can_not_be_formatted_and_one_without_end_cost_no_more_than_themselves(pipe: Pipe) -> None:
    log = logger_on(LogQueue(pipe.writer))
    log.info("%d", "no number")
    log.info("x" * (2 * LINE_BYTES_MAX))
    log.info("surrogate \udcff")
    text = pipe.read_until("surrogate")
    assert "could not be formatted" in text
    assert max(map(len, text.splitlines())) == LINE_BYTES_MAX


def test_reader_that_ended_costs_lines_and_nothing_else(pipe: Pipe) -> None:
    queue = LogQueue(pipe.writer)
    log = logger_on(queue)
    os.dup2(os.open(os.devnull, os.O_RDONLY), pipe.reader)  # closes the only reading end
    log.error("nobody will read this")
    wait_until(lambda: queue.dropped == 1, "the line to be given up")


_FAILS_IN_A_THREAD = """
import sys, threading
from holdfast.system.logs.log_queue import log_to

log_to(2, "INFO", journal=False)
thread = threading.Thread(target=lambda: 1 / 0, name="renewal")
thread.start()
thread.join()
print("went on", flush=True)
sys.stdin.read()
"""


def test_thread_that_fails_does_not_wait_for_the_reader_either(pipe: Pipe) -> None:
    """Python writes tracebacks of threads to stderr by itself: the thread would stand there with what it holds."""
    filled = fill(pipe.writer)
    with subprocess.Popen(
        [sys.executable, "-c", _FAILS_IN_A_THREAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=pipe.writer,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "went on\n"
        os.read(pipe.reader, filled)
        text = pipe.read_until("ZeroDivisionError: .*\n")
        assert "CRITICAL unexpected failure of thread renewal" in text
        process.communicate("")


def fill(fd: int) -> int:
    """Make a pipe full; how many bytes that took."""
    os.set_blocking(fd, False)
    filled = 0
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += os.write(fd, b"x" * size)
    os.set_blocking(fd, True)
    return filled

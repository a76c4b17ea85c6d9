"""A question that may hang does not keep its asker."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from holdfast.system.files.bounded_question import PART_BYTES, Silent, answer_in_time


def test_answer_and_error_come_back() -> None:
    assert answer_in_time(lambda: ("there", 7)) == ("there", 7)
    with pytest.raises(FileNotFoundError):
        answer_in_time(lambda: os.stat("/nonexistent"))


def test_question_that_hangs_is_left_behind() -> None:
    begun = time.monotonic()
    with pytest.raises(Silent):
        answer_in_time(lambda: time.sleep(600), seconds=0.2)
    assert time.monotonic() - begun < 60


def test_answer_that_is_larger_than_a_pipe_comes_whole() -> None:
    assert len(answer_in_time(lambda: b"x" * 3 * PART_BYTES)) == 3 * PART_BYTES


def test_child_that_was_killed_has_not_answered() -> None:
    with pytest.raises(Silent):
        answer_in_time(lambda: os.kill(os.getpid(), 9))


def test_child_that_hangs_keeps_no_reader_of_our_output_waiting() -> None:
    """`holdfast doctor | less` ends although the child that asked can't be killed."""
    program = (
        "import os, signal, time\n"
        "from holdfast.system.files import bounded_question as b\n"
        "os.kill = lambda pid, number: print(pid, flush=True)\n"  # as if it could not be killed
        "try:\n b.answer_in_time(lambda: time.sleep(30), seconds=0.2)\n"
        "except b.Silent:\n print('silent', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    pid, said = done.stdout.split()
    assert said == "silent"
    os.kill(int(pid), 9)

"""Lines that a client can cause: so many in a minute, and the next one says how many were left out."""

from __future__ import annotations

import logging

import pytest

from holdfast.system.logs.log_limit import PERIOD_S, LimitedLog


def test_lines_beyond_the_limit_are_counted_and_reported_when_the_next_minute_has_begun(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [100.0]
    limited = LimitedLog(logging.getLogger("limited"), lines_max=3, now=lambda: now[0])
    for number in range(10):
        limited.write("client %d", number)
    assert [r.getMessage() for r in caplog.records] == ["client 0", "client 1", "client 2"]
    now[0] += PERIOD_S
    limited.write("client %d", 10)
    limited.write("client %d", 11)
    assert [r.getMessage() for r in caplog.records][3:] == [
        "client 10 (7 more lines like this were left out before it)",
        "client 11",
    ]
    assert limited.left_out == 0


def test_failure_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    LimitedLog(logging.getLogger("limited"), logging.ERROR).write("failed", failure=ValueError("x"))
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None

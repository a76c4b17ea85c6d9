"""Lines of the log: one record is one line, whatever names are in it."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping

import pytest

from holdfast.manager import events as ev
from holdfast.model import OwnerName, Resource
from holdfast.system.logs.log_lines import TRACEBACK_MARK, LineFormatter, facts, goes_to_journal

FORGED = "evil\n2026-11-26 00:00:00,000 CRITICAL lockspace X is LOST\x1b[31m\r\u202e\x85\u2028\0"


def formatted(
    message: str,
    *arguments: object,
    journal: bool = True,
    level: int = logging.WARNING,
    extra: Mapping[str, object] | None = None,
) -> str:
    record = logging.LogRecord("test", level, "", 0, message, arguments, None)
    record.__dict__.update(extra or {})
    return LineFormatter(journal=journal).format(record)


def raised(text: str) -> dict[str, object]:
    try:
        raise ValueError(text)
    except ValueError:
        return {"exc_info": sys.exc_info()}


def test_name_with_control_characters_makes_no_second_line_and_moves_no_terminal() -> None:
    line = formatted("refused %s", FORGED, extra=facts(vm=FORGED, disk=FORGED))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert line.startswith("<4>WARNING refused evil\\n2026")


def test_traceback_looks_like_no_record_even_when_its_text_was_chosen_by_a_client() -> None:
    lines = formatted("failed", journal=False, extra=raised(FORGED)).splitlines()
    assert len(lines) > 3
    assert all(line.startswith(TRACEBACK_MARK) for line in lines[1:])
    assert all(line.isprintable() for line in lines)
    for line in formatted("failed", extra=raised("x\n<0>y"), level=logging.ERROR).splitlines():
        assert line.startswith("<3>")


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_journal_gets_the_priority_of_each_line(level: int, priority: int) -> None:
    assert formatted("text", level=level) == f"<{priority}>{logging.getLevelName(level)} text"


def test_file_gets_the_time_instead() -> None:
    assert re.fullmatch(r"[-\d]+ [:\d]+,\d{3} WARNING text", formatted("text", journal=False))


def test_facts_stand_at_the_end_in_a_fixed_order_and_without_the_empty_ones() -> None:
    about = ev.logged(ev.REFUSED, OwnerName("web1"), Resource("", "/srv/x y.img"), "beta")
    assert (
        formatted("no", extra=about) == '<4>WARNING no [VM=web1 DISK="/srv/x y.img" HOST=beta EVENT=refused]'
    )
    assert formatted("no", extra=facts(event="e", vm="a")) == "<4>WARNING no [VM=a EVENT=e]"


@pytest.mark.parametrize("name", ["a b", 'a"b', "a=b", "a]b", "a\\b", "a EVENT=acquired", "a] [VM=b"])
def test_value_can_not_pass_for_another_fact(name: str) -> None:
    text = formatted("no", extra=facts(vm=name, event="refused"))
    quoted = re.fullmatch(r'<4>WARNING no \[VM="((?:[^"\\]|\\.)*)" EVENT=refused\]', text)
    assert quoted is not None
    assert re.sub(r"\\(.)", r"\1", quoted[1]) == name


def test_only_the_stream_that_systemd_has_made_gets_priorities() -> None:
    reader, writer = os.pipe()
    found = os.fstat(writer)
    assert goes_to_journal(writer, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    assert not goes_to_journal(writer, {"JOURNAL_STREAM": "9:77"})
    assert not goes_to_journal(writer, {})
    os.close(reader)
    os.close(writer)
    assert not goes_to_journal(writer, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})

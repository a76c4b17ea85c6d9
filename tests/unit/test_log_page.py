"""docs/situations/log-messages.md has each line that the program logs at warning and above, with its level, and no other;
and each that the keeper and the program in virtlockd's place print, which have no levels.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "situations" / "log-messages.md"
LEVELS = {"warning": "warning", "error": "error", "exception": "error", "critical": "critical"}
PLACE = re.compile(r"%(?:\.\d+)?[a-z]")
REASON_ALONE = "…"
"""A message that is its argument: it explains itself."""
Line = tuple[str, str]


SWITCH = "in a live switch"
"""The heading of what programs print (`_say`) that have no logger."""


def lines_of(source: str) -> Iterator[Line]:
    """Level and message of each call, with … for what is put in. Raises ValueError for a message that is no plain text."""
    tree = ast.parse(source)
    yield from _printed(tree)
    limited = dict(_limited(tree))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called, where = node.func.attr, ast.unparse(node.func.value)
        if where in limited and called == "write":
            level = limited[where]
        elif where == "log" and called in LEVELS:
            level = LEVELS[called]
        else:
            continue
        message = node.args[0]
        if not isinstance(message, ast.Constant) or not isinstance(message.value, str):
            raise ValueError(f"line {node.lineno}: {ast.unparse(message)}")
        yield level, PLACE.sub("…", message.value)


def _printed(tree: ast.Module) -> Iterator[Line]:
    """Of a module that has a `_say(text)` of its own."""
    own = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "_say"]
    if not own or [each.arg for each in own[0].args.args] != ["text"]:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_say":
            message = node.args[0]
            if not isinstance(message, ast.JoinedStr | ast.Constant):
                raise ValueError(f"line {node.lineno}: {ast.unparse(message)}")
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            yield (
                SWITCH,
                "".join(str(each.value) if isinstance(each, ast.Constant) else "…" for each in parts),
            )


def _limited(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names of `LimitedLog` objects, and their levels."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = node.value
            if ast.unparse(made.func) == "LimitedLog":
                level = ast.unparse(made.args[1]) if len(made.args) > 1 else "logging.WARNING"
                if level != "logging.INFO":
                    yield ast.unparse(node.targets[0]), level.removeprefix("logging.").lower()


def logged() -> set[Line]:
    found: set[Line] = set()
    for path in sorted((ROOT / "src" / "holdfast").rglob("*.py")):
        found.update(lines_of(path.read_text()))
    return {each for each in found if each[1] != REASON_ALONE}


def documented(text: str) -> list[Line]:
    """The rows of its tables, by the heading above them."""
    found: list[Line] = []
    level = ""
    for line in text.splitlines():
        if line.startswith("## "):
            level = line.removeprefix("## ").lower()
        elif row := re.fullmatch(r"\| `(.+?)` \| .*\S.* \|", line):
            found.append((level, row[1]))
    return found


def test_page_has_each_message_of_the_program_once_and_no_other() -> None:
    rows = documented(PAGE.read_text())
    program = logged()
    assert len(program) > 150
    assert sorted(program - set(rows)) == [], "the page has no word about these"
    assert sorted(set(rows) - program) == [], "the program logs these no more"
    assert len(rows) == len(set(rows))


def test_messages_are_found_with_their_levels() -> None:
    source = (
        'log.info("a")\nlog.warning("b %s of %.0f", 1, 2)\nlog.exception("c")\n'
        'few = LimitedLog(log, logging.ERROR)\nfew.write("d %d", 1)\nfile.write("e")\n'
    )
    assert set(lines_of(source)) == {("warning", "b … of …"), ("error", "c"), ("error", "d …")}
    with pytest.raises(ValueError, match="line 1: text"):
        list(lines_of("log.error(text)"))
    printing = "def _say(text: str) -> None: ...\n"
    assert set(lines_of(printing + "_say(f'{a}: b {c!r}')\n_say('d')\n")) == {
        (SWITCH, "…: b …"),
        (SWITCH, "d"),
    }
    with pytest.raises(ValueError, match="line 2: text"):
        list(lines_of(printing + "_say(text)"))
    assert list(lines_of("def _say(which): ...\n_say(text)")) == []


def test_row_under_another_level_is_another_row() -> None:
    assert documented("## Error\n\n| `a …` | b |\n\n## Warning\n| `c` | d |") == [
        ("error", "a …"),
        ("warning", "c"),
    ]

"""Docstrings and comments are plain English with the field's terms (docs/glossary.md); these words are to be avoided."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
import holdfast_sim

PACKAGES = (Path(holdfast.__file__).parent, Path(holdfast_sim.__file__).parent)
AVOIDED = re.compile(
    r"\b(told|tells?|whoever|anew|amid|errands?|heartbeat|taken out|rests? on|gone on with|come home|mostly)\b",
    re.IGNORECASE,
)
PLANTED = (
    "whoever wanted more has been refused",
    "whoever opens the path from now on makes a new one",
)
"""Comments that are pieces of planted bugs."""


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Every docstring and comment, with the line where it begins."""
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def avoided(text: str) -> list[str]:
    return [
        f"{line}: {found[0]}"
        for line, words in prose(text)
        for found in AVOIDED.finditer(words)
        if not any(piece in words for piece in PLANTED)
    ]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_prose_of_a_package_has_none_of_these_words(package: Path) -> None:
    found = [
        f"{path.relative_to(package)}:{each}"
        for path in sorted(package.rglob("*.py"))
        for each in avoided(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_planted_word_is_found_in_a_docstring_and_in_a_comment() -> None:
    assert avoided('"""Whoever asks is told."""\nx = "told"  # written anew\n') == [
        "1: Whoever",
        "1: told",
        "2: anew",
    ]

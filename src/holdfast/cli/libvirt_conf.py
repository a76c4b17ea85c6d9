"""libvirt's own configuration files (qemu.conf, qemu-lockd.conf), read as libvirt reads them.

What it accepts was found out with libvirt 9.0's virtlockd, which reads its file with the same code
(tests/interop/virtlockd/test_conf_files.py asks it again):

    statement   name = value, ended by a line's end, ";" or a comment; name: a letter, then letters, digits, "_"
    value       "text" or 'text' on one line, without escapes; the same over lines, between three double quotes;
                a whole number; [value, value, ] over lines, without comments inside
    twice       the first statement of a name counts
    nothing     an empty file is fine, one that has only blank lines is an error

A file with an error stops libvirt's QEMU driver from starting at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[+-]?[0-9]+")
_BLANK = re.compile(r"[ \t]*")
_SPACE = re.compile(r"[ \t\r\n]*")
_COMMENT = re.compile(r"#[^\r\n]*")
_END_OF_LINE = re.compile(r"[\r\n]+")
_QUOTES = ('"""', '"', "'")
NUMBER_MAX = 2**63 - 1
"""Of a long long. libvirt 9.0 takes larger ones and reads another number; 11.3 refuses the file."""
LISTS_WITHIN_MAX = 100
"""Lists in lists; libvirt's own keys have one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One statement: text, a number or a list, and the line where it is."""

    name: str
    value: str | int | list[object]
    line: int


@dataclass(frozen=True, slots=True)
class ConfFile:
    """``settings`` in the order of the file, as far as it can be read; ``error`` says why no further, else empty."""

    settings: tuple[Setting, ...] = ()
    error: str = ""
    error_line: int = 0
    _first: dict[str, Setting] = field(default_factory=dict)

    def get(self, name: str) -> Setting | None:
        """The one that counts."""
        return self._first.get(name)

    def ignored(self, name: str) -> list[Setting]:
        """Later ones of the same name."""
        return [each for each in self.settings if each.name == name and each is not self._first[name]]

    def text(self, name: str) -> str:
        """The value that counts, as text; empty if there is none."""
        found = self._first.get(name)
        return "" if found is None else str(found.value)


class _Wrong(Exception):
    """What is expected at a place of the file."""


def parse(text: str) -> ConfFile:
    """Never raises: a file with an error has what stands before it."""
    reader = _Reader(text)
    try:
        reader.read()
    except _Wrong as e:
        return _conf(reader, f"expected {e}")
    return _conf(reader, "")


def _conf(reader: _Reader, error: str) -> ConfFile:
    first: dict[str, Setting] = {}
    for setting in reader.found:
        first.setdefault(setting.name, setting)
    return ConfFile(tuple(reader.found), error, reader.line if error else 0, first)


class _Reader:
    """A place in the text that moves on."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.found: list[Setting] = []

    @property
    def line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def read(self) -> None:
        while self._at < len(self._text):
            self._skip(_SPACE)
            if not self._skip(_COMMENT):
                self._statement()
            self._skip(_SPACE)

    def _statement(self) -> None:
        line = self.line
        name = self._take(_NAME, "a name at the begin of a statement")
        self._skip(_BLANK)
        if not self._word("="):
            raise _Wrong(f'"=" behind {name}')
        self._skip(_BLANK)
        value = self._value(0)
        self._skip(_BLANK)
        if self._word(";"):
            self._skip(_BLANK)
        elif not (self._at == len(self._text) or self._text[self._at] in "\r\n#"):
            raise _Wrong(f"the end of the line behind the value of {name}")
        self.found.append(Setting(name, value, line))
        self._skip(_COMMENT)

    def _value(self, depth: int) -> str | int | list[object]:
        for quote in _QUOTES:
            if self._word(quote):
                return self._quoted(quote)
        if self._word("["):
            return self._list(depth)
        number = _NUMBER.match(self._text, self._at)
        if number is None:
            raise _Wrong('a value: a number, or text in quotes such as "lockd"')
        digits = number[0].lstrip("+-0") or "0"
        if len(digits) > len(str(NUMBER_MAX)) or int(digits) > NUMBER_MAX:
            raise _Wrong(f"a number of at most {NUMBER_MAX}, which is all that libvirt 11 reads")
        self._at = number.end()
        return -int(digits) if number[0].startswith("-") else int(digits)

    def _quoted(self, quote: str) -> str:
        end = self._text.find(quote, self._at)
        value = self._text[self._at : end]
        if end < 0 or (len(quote) == 1 and _END_OF_LINE.search(value)):
            raise _Wrong(f"a closing {quote}")
        self._at = end + len(quote)
        return value

    def _list(self, depth: int) -> list[object]:
        if depth >= LISTS_WITHIN_MAX:
            raise _Wrong("fewer lists in lists")
        values: list[object] = []
        self._skip(_SPACE)
        while not self._word("]"):
            if values or self._at == len(self._text):
                raise _Wrong('"," or "]" in a list')
            while True:
                values.append(self._value(depth + 1))
                self._skip(_SPACE)
                if not self._word(","):
                    break
                self._skip(_SPACE)
                if self._text.startswith("]", self._at):
                    break
        return values

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        found = pattern.match(self._text, self._at)
        if found is None:
            return False
        self._at = found.end()
        return True

    def _word(self, word: str) -> bool:
        if self._text.startswith(word, self._at):
            self._at += len(word)
            return True
        return False

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _Wrong(what)
        self._at = found.end()
        return found[0]

"""Which sanlock this daemon stands in for: what VERSION answers, and the commands that fit it."""

from __future__ import annotations

import re

from holdfast.wire.sanlock.command import COMMANDS_OF_5, EVERY_COMMAND, Command

_VERSION = re.compile(r"(\d{1,2})\.(\d{1,2})(?:\.(\d{1,2}))?")


def version_number(text: str) -> int:
    """0xMMmmpp00 of a version such as "3.9.5"; raises ValueError."""
    found = _VERSION.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is no version of sanlock")
    major, minor, micro = (int(part or 0) for part in found.groups())
    return major << 24 | minor << 16 | micro << 8


def commands_of(version: int) -> frozenset[Command]:
    """The commands that are not dropped as unknown: sanlock 5 has no index, and four more."""
    return COMMANDS_OF_5 if version >> 24 >= 5 else EVERY_COMMAND

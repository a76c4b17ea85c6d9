"""Which sanlock this daemon stands in for: what VERSION answers, and the commands that fit it."""

from __future__ import annotations

from holdfast.wire.sanlock.command import COMMANDS_OF_5, EVERY_COMMAND, Command


def version_number(text: str) -> int:
    """0xMMmmpp00 of a version such as "3.9.5" or "4.0", as the configuration has checked it."""
    major, minor, micro = (*map(int, text.split(".")), 0)[:3]
    return major << 24 | minor << 16 | micro << 8


def is_of_5(version: int) -> bool:
    """Whether a version, as `version_number` returns it, is sanlock 5 or later."""
    return version >> 24 >= 5


def commands_of(version: int) -> frozenset[Command]:
    """The commands that are not dropped as unknown: sanlock 5 has no index, and four more."""
    return COMMANDS_OF_5 if is_of_5(version) else EVERY_COMMAND

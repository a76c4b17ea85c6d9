"""The command line of a KILLPATH: what a client wants run when its leases are to end (sanlock-socket.md 3.3)."""

from __future__ import annotations

from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import KillpathFlag

ARGUMENTS_MAX = 8
"""With the path itself, as sanlock."""


def command_of(killpath: r.Killpath, pid: int | None) -> list[str]:
    """The path and its arguments; `pid` is the last one where the client asked for that and one more has room.

    Arguments are separated by blanks; `\\` makes the next blank or `\\` a character. Any other escape, and what is not
    printable ASCII, ends them, as in sanlock.
    """
    words = [killpath.path]
    word, escaped, is_open = "", False, False
    for character in killpath.arguments:
        if escaped:
            if character not in " \\":
                break
            word, escaped, is_open = word + character, False, True
        elif character == "\\":
            escaped = True
        elif character == " ":
            words, word, is_open = ([*words, word] if is_open else words), "", False
        elif not (character.isascii() and character.isprintable()):
            break
        else:
            word, is_open = word + character, True
    if is_open:
        words.append(word)
    words = words[:ARGUMENTS_MAX]
    if pid is not None and killpath.flags & KillpathFlag.PID and len(words) < ARGUMENTS_MAX:
        words.append(str(pid))
    return words

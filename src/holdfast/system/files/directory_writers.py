"""The users besides the daemon that may make and remove files in a directory.

A user who can write to a directory of lock files can remove one while it is held, and a second host gets a new file and the
lock. With leases it is the same, and the other host's guests write.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Writers:
    """`who`: others that may write, for people; empty if there are none, or the directory can't be read."""

    who: str = ""
    everybody: bool = False


def writers_of(directory: str) -> Writers:
    """By owner and mode; an access control list shows in the mode's group bits. May block."""
    try:
        found = os.stat(directory)
    except (OSError, ValueError):
        return Writers()
    trusted = (0, os.geteuid())
    if found.st_mode & stat.S_IWOTH:
        return Writers("every user of this host", True)
    if found.st_uid not in trusted and found.st_mode & stat.S_IWUSR:
        return Writers(f"user {found.st_uid}")
    if found.st_gid not in (0, os.getegid()) and found.st_mode & stat.S_IWGRP:
        return Writers(f"group {found.st_gid}")
    return Writers()

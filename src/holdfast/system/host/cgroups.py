"""Control groups (cgroup v2) that name a family of processes: who is in one, also after its first process has ended.

A process is born into its parent's group and stays there, however often it forks into the background. No controller is
asked for, so making a group under one's own needs write access to that and nothing else; where there is none, the caller
does without.
"""

from __future__ import annotations

import contextlib
import os
import re

OUR_GROUP = re.compile(r"holdfast-run-\d+")
"""The names of groups that `make` makes; others are nobody's business here."""
_PROCESSES, _KILL = "cgroup.procs", "cgroup.kill"


def make(name: str) -> str:
    """A new group below our own; its directory, or empty if none can be made."""
    parent = _directory_of_own()
    if not parent:
        return ""
    path = f"{parent}/{name}"
    remove(path)  # of an earlier process with that pid
    try:
        os.mkdir(path, 0o755)
    except OSError:
        return ""
    return path


def enter(path: str) -> bool:
    """Move this process; False if that is not permitted."""
    try:
        with open(f"{path}/{_PROCESSES}", "w", encoding="ascii") as f:
            f.write("0")
    except OSError:
        return False
    return True


def is_ours(path: str) -> bool:
    """Whether that may be a group of `make`, and not some other directory."""
    mount, _ = unified_mount()
    inside = bool(mount) and path.startswith(f"{mount}/") and ".." not in path.split("/")
    return inside and OUR_GROUP.fullmatch(os.path.basename(path)) is not None


def members(path: str) -> tuple[int, ...] | None:
    """Who is in the group or one below it; None if it can't be read. A group that is gone has no members."""
    found: list[int] = []

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    try:
        for directory, _, _ in os.walk(path, onerror=unreadable):
            with (
                contextlib.suppress(FileNotFoundError),
                open(f"{directory}/{_PROCESSES}", encoding="ascii") as f,
            ):
                found += [int(line) for line in f]
    except OSError:
        return None
    return tuple(found)


def kill(path: str) -> bool:
    """SIGKILL for all members at once (Linux 5.14); False if the kernel can't."""
    try:
        with open(f"{path}/{_KILL}", "w", encoding="ascii") as f:
            f.write("1")
    except OSError:
        return False
    return True


def remove(path: str) -> None:
    """Quiet if it is gone, or not empty."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _directory_of_own() -> str:
    mount, root = unified_mount()
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as f:
            own = next((line.rstrip("\n")[3:] for line in f if line.startswith("0::")), "")
    except OSError:
        return ""
    if not mount or not own or ".." in own.split("/"):
        return ""
    if root != "/":
        if not own.startswith(root):
            return ""
        own = own[len(root) :]
    return mount + own.rstrip("/")


def unified_mount() -> tuple[str, str]:
    """Where the unified hierarchy is mounted, and which group is its root there; empty if it is not mounted."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            for line in f:
                before, _, after = line.partition(" - ")
                words = before.split()
                if after.startswith("cgroup2 ") and len(words) > 4:
                    return words[4], words[3]
    except OSError:
        pass
    return "", ""

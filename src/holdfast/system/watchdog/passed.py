"""A watchdog that one program hands on to the next, open and armed, and its name in systemd's descriptor store."""

from __future__ import annotations

import os
import stat
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

WATCHDOG_FD_NAME = "watchdog"
"""Of its descriptor in the store."""
WATCHDOG_TAG = "watchdog-"
"""Before the driver in the name of a second descriptor: a released daemon finds the watchdog under its own name only."""
FDNAME_CHARS_MAX = 255
"""Of systemd (sd_pid_notify_with_fds(3)); a path that is longer is not a socket's or a device's."""


@dataclass(frozen=True, slots=True)
class PassedWatchdog:
    """A watchdog's descriptor that is open and armed, and the driver that armed it: no other one may feed it.

    A released daemon passes on the descriptor alone: then ``path`` is empty and ``fire_timeout_s`` 0, and the driver is
    known by the kind of the descriptor. ``tags`` are its names in the descriptor store.
    """

    fd: int
    driver: str
    path: str = ""
    fire_timeout_s: int = 0
    tags: tuple[str, ...] = ()

    def fits(self, driver: str, path: str, fire_timeout_s: int) -> bool:
        """Whether it was armed like that, as far as is known."""
        return (
            self.driver == driver and self.path in ("", path) and self.fire_timeout_s in (0, fire_timeout_s)
        )

    @property
    def armed_with(self) -> tuple[str, str, int]:
        return self.driver, self.path, self.fire_timeout_s

    @property
    def tag(self) -> str:
        """What it was armed with, as a name in the descriptor store."""
        text = f"{WATCHDOG_TAG}{self.driver}-{self.fire_timeout_s}-{urllib.parse.quote(self.path)}"
        return text[:FDNAME_CHARS_MAX]


def passed(fd: int, driver: str, path: str, fire_timeout_s: int, tags: tuple[str, ...]) -> PassedWatchdog:
    """An empty driver is found out by the kind of the descriptor."""
    if not driver:
        driver = "wdmd" if stat.S_ISSOCK(os.fstat(fd).st_mode) else "device"
    return PassedWatchdog(fd, driver, path, fire_timeout_s, tags)


def armed_with(tags: Sequence[str]) -> tuple[str, str, int]:
    """Driver, path and fire timeout by the name in the store; unknown if there is none, or more than one."""
    if len(set(tags)) != 1:
        return "", "", 0
    driver, _, rest = tags[0].removeprefix(WATCHDOG_TAG).partition("-")
    fire, _, path = rest.partition("-")
    return (driver, urllib.parse.unquote(path), int(fire)) if fire.isdigit() else ("", "", 0)

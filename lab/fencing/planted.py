"""Deliberate bugs in the guests' copy of the shipping code: a lab that finds none of them would prove nothing.

Each replaces one piece of one module, and refuses if the piece is not there exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Bug:
    about: str
    module: str
    piece: str
    replacement: str


BUGS = {
    "dead-without-watchdog": Bug(
        "the dead bound of others leaves out the watchdog's fire timeout",
        "protocol/takeover.py",
        "watch.io_timeout_s)).dead_s",
        "watch.io_timeout_s)).fail_s",
    ),
    "wdmd-fed-for-ever": Bug(
        "wdmd is told that all is good for an hour",
        "system/watchdog/wdmd.py",
        "expire = int(their_now + (until - now))",
        "expire = int(their_now + (until - now) + 3600)",
    ),
    "device-fires-late": Bug(
        "the watchdog device is given three times the fire timeout",
        "system/watchdog/device.py",
        "            self._check(fd)\n",
        "            self._check(fd); self._kernel.ioctl(fd, WDIOC_SETTIMEOUT, INT.pack(3 * self._fire_timeout_s))\n",
    ),
    "io-timeout-recorded-short": Bug(
        "a delta lease records half of the io_timeout that its host goes by",
        "protocol/delta_lease.py",
        "io_timeout_s=claim.timing.io_timeout_s,",
        "io_timeout_s=claim.timing.io_timeout_s // 2,",
    ),
    "gone-too-soon": Bug(
        "the owners of a lost lockspace are taken for gone at once",
        "supervision/escalation.py",
        "if not users:",
        "if True:",
    ),
    "dead-doubled": Bug(
        "a host is taken for dead after twice its dead bound",
        "protocol/timing.py",
        "return self.fail_s + self.fire_timeout_s",
        "return 2 * (self.fail_s + self.fire_timeout_s)",
    ),
}


def plant(name: str, python: Path) -> None:
    bug = BUGS[name]
    path = python / "holdfast" / bug.module
    source = path.read_text()
    if source.count(bug.piece) != 1:
        raise ValueError(f"{name}: {bug.module} has {bug.piece!r} {source.count(bug.piece)} times, not once")
    path.write_text(source.replace(bug.piece, bug.replacement))
    # pip has compiled it: a bug of the same length, planted in the same second, would not be seen.
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()

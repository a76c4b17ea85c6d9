"""Whether a watchdog's device says that it has reset this machine before this boot.

Drivers keep what the hardware said when they were loaded (WDIOC_GETBOOTSTATUS), and sysfs shows it without an open, which
would arm the device. A device that says nothing proves nothing: many have no such bit.
"""

from __future__ import annotations

import glob
import os

WDIOF_CARDRESET = 0x20
"""linux/watchdog.h: "Card previously reset the CPU"."""


def resetter(root: str = "/") -> str:
    """The device that did, as "/dev/watchdog0"; empty if none says so."""
    for path in sorted(glob.glob(os.path.join(root, "sys/class/watchdog/*/bootstatus"))):
        try:
            with open(path) as file:
                flags = int(file.read(64))
        except (OSError, ValueError):
            continue
        if flags & WDIOF_CARDRESET:
            return f"/dev/{os.path.basename(os.path.dirname(path))}"
    return ""

"""Whether this host's clocks keep their rate, by which leases are counted.

A host counts the silence of another by its own clock, so docs/safety.md assumes clocks of one rate. Steps do no harm, since
CLOCK_BOOTTIME has none; *slewing* does, for it changes the rate of every clock of the host. The kernel's own discipline
(ntpd, systemd-timesyncd) slews 500 ppm at most, chrony as much as its `maxslewrate` allows.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from holdfast.backends.paxos.config import lockspace_spec
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.lockspaces import lease_tables
from holdfast.cli.doctor.scene import Scene

SLEW_PPM_MAX = 500.0
"""As the kernel's own: two hosts that slew against each other differ by 1000 ppm, 0.14 s in a dead bound of 140 s."""
CHRONY_SLEW_PPM_DEFAULT = 83333.333
"""chrony.conf(5): what holds where no maxslewrate is given."""
CHRONY_FILES = ("etc/chrony/chrony.conf", "etc/chrony.conf")
"""Debian's place, and everybody else's."""
INCLUDES_MAX = 100
"""Files that are read: a configuration that includes itself has to end."""


def clock_rate(scene: Scene) -> Iterator[Finding]:
    """Whether chrony may slew the clocks faster than the argument of leases allows for."""
    leases, root = lease_tables(scene.config.backend), scene.root
    main = next((path for each in CHRONY_FILES if os.path.exists(path := os.path.join(root, each))), None)
    if not leases or main is None:
        return
    rate, where = chrony_slew_ppm(main, root)
    if rate <= SLEW_PPM_MAX:
        yield fine("clock rate", f"chrony slews {rate:g} ppm at most ({where})")
        return
    dead_s = max(lockspace_spec(table).timing.dead_s for table in leases.values())
    yield found(
        "HF070",
        f"chrony may slew this host's clocks by {rate:g} ppm ({where}): {rate * 1e-6 * dead_s:.1f} s in the "
        f"{dead_s} s after which another host takes over; leases allow for {SLEW_PPM_MAX:g} ppm",
        f"write 'maxslewrate {SLEW_PPM_MAX:g}' into {main}, on all hosts of the lockspace; then: systemctl restart chrony",
    )


def chrony_slew_ppm(main: str, root: str) -> tuple[float, str]:
    """The maxslewrate that chrony comes to, and where that is said: the last one counts, in the order of reading."""
    found = [(CHRONY_SLEW_PPM_DEFAULT, f"its default; {main} has no maxslewrate")]
    left = [INCLUDES_MAX]

    def read(path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            return
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            return
        for number, line in enumerate(lines, 1):
            words = line.split()
            # A comment begins with one of these, and only at the begin of a line.
            if len(words) < 2 or words[0][0] in "!;#%":
                continue
            _DIRECTIVES.get(words[0].lower(), _ignored)(words[1:], f"{path}:{number}", found, read, root)

    read(main)
    return found[-1]


Found = list[tuple[float, str]]
Read = Callable[[str], None]


def _maxslewrate(words: list[str], where: str, found: Found, read: Read, root: str) -> None:
    try:
        found.append((float(words[0]), where))
    except ValueError:
        return  # chrony refuses to start with it


def _include(words: list[str], where: str, found: Found, read: Read, root: str) -> None:
    for path in sorted(glob.glob(os.path.join(root, words[0].lstrip("/")))):
        read(path)


def _confdir(words: list[str], where: str, found: Found, read: Read, root: str) -> None:
    # Of files with one name the first directory's counts, and all are read in the order of their names.
    chosen: dict[str, str] = {}
    for directory in words:
        for path in glob.glob(os.path.join(root, directory.lstrip("/"), "*.conf")):
            chosen.setdefault(os.path.basename(path), path)
    for name in sorted(chosen):
        read(chosen[name])


def _ignored(words: list[str], where: str, found: Found, read: Read, root: str) -> None:
    return


_DIRECTIVES: dict[str, Callable[[list[str], str, Found, Read, str], None]] = {
    "maxslewrate": _maxslewrate,
    "include": _include,
    "confdir": _confdir,
}

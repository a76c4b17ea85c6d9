"""What `holdfast doctor` asks of leases: is the lockspace there and joined, and do the clocks keep their rate?

A host counts the silence of another by its own clock, so docs/safety.md assumes clocks of one rate. Steps do no harm, since
CLOCK_BOOTTIME has none; *slewing* does, for it changes the rate of every clock of the host. The kernel's own discipline
(ntpd, systemd-timesyncd) slews 500 ppm at most, chrony as much as its `maxslewrate` allows.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from holdfast.backends.directory_trust import untrusted
from holdfast.backends.paxos_table import lockspace_spec, remarks
from holdfast.control_api import LeaseSpaceInfo
from holdfast.system.bounded_question import ANSWER_S, Silent, answer_in_time
from holdfast.system.directory_writers import Writers, writers_of

SLEW_PPM_MAX = 500.0
"""As the kernel's own: two hosts that slew against each other differ by 1000 ppm, 0.14 s in a dead bound of 140 s."""
CHRONY_SLEW_PPM_DEFAULT = 83333.333
"""chrony.conf(5): what holds where no maxslewrate is given."""
CHRONY_FILES = ("etc/chrony/chrony.conf", "etc/chrony.conf")
"""Debian's place, and everybody else's."""
INCLUDES_MAX = 100
"""Files that are read: a configuration that includes itself has to end."""

Tables = Mapping[str, Mapping[str, object]]
Told = tuple[str, str, str, str]
"""Level, check, text, fix."""


def lease_tables(tables: Tables) -> Tables:
    """Those of the backends that have leases."""
    return {name: table for name, table in tables.items() if table.get("driver") == "paxos"}


def lockspaces(tables: Tables, spaces: list[LeaseSpaceInfo] | None) -> Iterator[Told]:
    """`spaces`: as the daemon tells; None if it does not answer."""
    for name, table in lease_tables(tables).items():
        spec = lockspace_spec(table)
        space, path = spec.name, spec.path
        for remark in remarks(name, table):
            yield (
                "note",
                "lockspace",
                remark,
                "fire_timeout_s in the [backend] table and in the watchdog, on all hosts",
            )
        directory = os.path.dirname(path)
        try:
            there, writers = answer_in_time(partial(_found_at, path))
        except Silent:
            yield (
                "problem",
                "lockspace",
                f"the storage of {path} (backend '{name}') did not answer within {ANSWER_S:g} s: when its leases "
                "fail, their VMs are stopped",
                "find out why it hangs (dmesg, the storage's own log); 'holdfast lockspace list' shows the seconds left",
            )
            continue
        if not there:
            yield (
                "problem",
                "lockspace",
                f"{path} (backend '{name}') is not there: its disks can't be started",
                "mount its storage. Only if no host has ever used this lockspace: see 'holdfast lockspace init --help'",
            )
            continue
        if table.get("directory") and writers.who:
            level = "problem" if writers.everybody else "note"
            yield level, "lease directory", *untrusted(directory, writers)
        told = next((each for each in spaces or () if each.name == space), None)
        if told is not None and told.state != "joined":
            yield (
                "problem",
                "lockspace",
                f"{space} is {told.state}{f': {told.reason}' if told.reason else ''}",
                "holdfast lockspace list shows what it waits for",
            )
        elif table.get("watchdog") == "none":
            yield (
                "note",
                "lockspace",
                f'{space}: watchdog = "none": nothing resets a host that hangs, and its disks may be written twice',
                'watchdog = "device" or "wdmd"',
            )
        elif told is not None and table.get("device") and not table.get("cross_host") and _is_alone(told):
            yield (
                "note",
                "lockspace",
                f"{space}: {path} is not shown to be shared: no other host has been seen in it",
                "join it on another host and ask there and here again; cross_host = true says that it is shared",
            )
        elif told is not None:
            yield "ok", "lockspace", f"{space}: joined as host_id {told.host_id}", ""


def _is_alone(space: LeaseSpaceInfo) -> bool:
    return all(host.host_id == space.host_id for host in space.hosts)


def _found_at(path: str) -> tuple[bool, Writers]:
    """Whether a lockspace is there, and who may write in its directory."""
    return os.path.exists(path), writers_of(os.path.dirname(path))


def clock_rate(tables: Tables, root: str) -> Iterator[Told]:
    """Whether chrony may slew the clocks faster than the argument of leases allows for."""
    leases = lease_tables(tables)
    main = next((path for each in CHRONY_FILES if os.path.exists(path := os.path.join(root, each))), None)
    if not leases or main is None:
        return
    rate, where = chrony_slew_ppm(main, root)
    if rate <= SLEW_PPM_MAX:
        yield "ok", "clock rate", f"chrony slews {rate:g} ppm at most ({where})", ""
        return
    dead_s = max(lockspace_spec(table).timing.dead_s for table in leases.values())
    yield (
        "problem",
        "clock rate",
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

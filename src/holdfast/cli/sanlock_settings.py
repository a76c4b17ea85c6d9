"""PURE: the settings of a host that runs sanlock, as holdfast.toml, and what has no counterpart there.

    qemu-sanlock.conf ──── host_id, disk_lease_dir, io_timeout ────► [backend.leases], [[disk]]
    sanlock's options ──── user, group, io_timeout, watchdog ──────► [sanlock], the backend's io_timeout and watchdog

libvirt's file is about its own plugin, which may go on with it; the backend names the same lockspace and the same leases, so
that the lockd plugin locks with them too. What can't be carried over is a remark: key, reason, and what to do.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.backends.paxos.config import LIBVIRT_LOCKSPACE
from holdfast.cli.libvirt_conf import ConfFile
from holdfast.config_toml import to_toml_value
from holdfast.daemon.sanlockd import RUN_DIR, Settings
from holdfast.ondisk.geometry import HOSTS_MAX_LIMIT
from holdfast.protocol.timing import IO_TIMEOUT_MAX_S

LEASE_DIR_DEFAULT = "/var/lib/libvirt/sanlock"
OPTION_NAMES = ("SANLOCKOPTS", "sanlock_opts")
"""Upstream's unit has the first, Debian's the second."""
KNOWN = frozenset(
    (
        "auto_disk_leases",
        "disk_lease_dir",
        "host_id",
        "require_lease_for_disks",
        "io_timeout",
        "user",
        "group",
    )
)
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")


@dataclass(frozen=True, slots=True)
class Imported:
    """`toml`: the text of a configuration. `remarks`: what it does not have, and what it still needs. `backend`: the keys of
    the table with libvirt's leases; none where libvirt makes none by itself.
    """

    toml: str
    remarks: tuple[str, ...]
    backend: Mapping[str, object] = field(default_factory=dict)


def options_of(texts: Sequence[str]) -> list[str]:
    """The options in files of shell assignments, as our unit has them: of each name the last assignment counts.

    Raises ValueError for quotes that are not closed.
    """
    words: dict[str, list[str]] = {}
    for line in "\n".join(texts).splitlines():
        found = _ASSIGNMENT.fullmatch(line)
        if found is not None and found[1] in OPTION_NAMES:
            values = shlex.split(found[2], comments=True)
            words[found[1]] = [word for value in values for word in value.split()]
    return [word for name in OPTION_NAMES for word in words.get(name, ())]


def imported(plugin: ConfFile | None, settings: Settings, sources: list[str]) -> Imported:
    """`plugin`: qemu-sanlock.conf, None where there is none; `settings`: those of sanlock's daemon; `sources`: the files
    that were read.
    """
    remarks = list(settings.remarks)
    sanlock: dict[str, object] = {
        "socket": f"{RUN_DIR}/sanlock.sock",
        "user": settings.user,
        "group": settings.group,
        "watchdog": settings.watchdog,
        "fire_timeout_s": settings.fire_timeout_s,
        "io_timeout_s": settings.io_timeout_s,
    }
    tables: list[tuple[str, dict[str, object]]] = [("[sanlock]", sanlock)]
    if settings.watchdog == "none":
        remarks.append(
            'watchdog = "none", as sanlock runs here (-w 0): no watchdog resets this host when it loses its leases; '
            'use "wdmd" or "device" where there is one'
        )
    backend = dict(_backend(plugin, settings, remarks)) if plugin is not None else {}
    if backend:
        tables.append(("[backend.leases]", backend))
        tables.append(("[[disk]]", {"match": "*", "backend": "leases"}))
    lines = [f"# made by 'holdfast import-sanlock' from {', '.join(sources) or 'defaults alone'}"]
    for head, table in tables:
        lines += ["", head, *(f"{key} = {to_toml_value(value)}" for key, value in table.items())]
    return Imported("\n".join(lines) + "\n", tuple(remarks), backend)


def _backend(plugin: ConfFile, settings: Settings, remarks: list[str]) -> Iterator[tuple[str, object]]:
    """The keys of the backend with libvirt's leases; none where it makes no leases by itself."""
    given = {each.name: plugin.text(each.name) for each in plugin.settings}
    remarks += [f"{name} of qemu-sanlock.conf is not known" for name in given if name not in KNOWN]
    remarks += _about_leases(given)
    if given.get("auto_disk_leases", "0") == "0":
        remarks.append(
            "auto_disk_leases is not 1: libvirt locks <lease> elements alone, in lockspaces that others add; there is no "
            "backend for them, and disks without a <lease> are not locked"
        )
        return
    yield "driver", "paxos"
    yield "directory", given.get("disk_lease_dir") or LEASE_DIR_DEFAULT
    yield "lockspace", LIBVIRT_LOCKSPACE
    host_id = _whole(given, "host_id", HOSTS_MAX_LIMIT)
    if host_id:
        yield "host_id", host_id
    else:
        remarks.append(
            f"host_id is missing or no number from 1 to {HOSTS_MAX_LIMIT}: libvirt does not start with this file, and "
            "holdfastd needs one that no other host of the lockspace has: write it below [backend.leases]"
        )
    io_timeout_s = _whole(given, "io_timeout", IO_TIMEOUT_MAX_S)
    if io_timeout_s is None:
        remarks.append(f"io_timeout is no number from 0 to {IO_TIMEOUT_MAX_S}: sanlock's default is used")
    yield "io_timeout_s", io_timeout_s or settings.io_timeout_s
    yield "fire_timeout_s", settings.fire_timeout_s
    yield "watchdog", settings.watchdog


def _about_leases(given: Mapping[str, str]) -> Iterator[str]:
    if "require_lease_for_disks" in given:
        yield (
            f"require_lease_for_disks = {given['require_lease_for_disks']} has no key in holdfast.toml: it stays in "
            "qemu-sanlock.conf for that plugin; for the lockd plugin write it into qemu-lockd.conf"
        )
    if owner := [f"{name} = {given[name]}" for name in ("user", "group") if name in given]:
        yield (
            f"{', '.join(owner)}: holdfastd gives each lease file the owner, group and mode of the lockspace's file "
            f"({LIBVIRT_LOCKSPACE}); see that they are those"
        )


def _whole(given: Mapping[str, str], key: str, greatest: int) -> int | None:
    """0 where the key is missing; None for what is no number up to the greatest one."""
    text = given.get(key, "0")
    if not text.isascii() or not text.isdigit() or int(text) > greatest:
        return None
    return int(text)

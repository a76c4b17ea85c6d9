"""Finds changes of the configuration that would remove what held locks need.

A held lock needs parts of the configuration for as long as it is held: the lockspace of its lease, this host's id there, the
watchdog. A reload, or a start that finds locks of this boot, compares the configuration in force with the one on disk:

    differences    what held locks need and would not have any more: the change is refused, key by key
    same_backend   where the tables of the old configuration are in the new one, whatever they are called there

A table is identified by its storage, not by its name: leases by lockspace and directory or device, lock files by their
directory. So a table may be renamed while its locks are held. Anything that no held lock needs may change or be removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.config import Config
from holdfast.model import SANLOCK_PREFIX

USERS_NAMED_MAX = 3
"""Of the locks that need a key: enough to recognise them, few enough for one line of a log."""
VALUE_CHARS_MAX = 200
"""Of a value in a message."""

SHARED = "shared"
"""Of driver lvm: `activation`."""
ABSENT = "absent"
"""The driver that stands in for a backend that can't be made (`backends.absent`)."""
LEASE_DEFAULTS: Mapping[str, object] = {
    "lockspace": "__LIBVIRT__DISKS__",
    "name_by": "path-md5",
    "io_timeout_s": 10,
    "fire_timeout_s": 60,
}
"""What `backends.paxos_table` takes for keys that are left out (a test compares them)."""
WATCHDOG_DEVICE_DEFAULTS: Mapping[object, str] = {
    "device": "/dev/watchdog",
    "wdmd": "/run/wdmd/wdmd.sock",
    "none": "",
}
LEASE_KEYS = ("name_by", "io_timeout_s", "fire_timeout_s", "watchdog", "watchdog_device")
"""Of a backend with leases: what must stay as it is while one of them is held."""


class HeldNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Held locks of one backend. `users` names some of their owners; `host_id` is the one in use, if it is known.

    `count` 0: some may be held, as the journal can't be read whole.
    """

    backend: str
    count: int
    users: tuple[str, ...] = ()
    host_id: int | None = None

    def __str__(self) -> str:
        if self.count == 0:
            return "locks of it may be held: the journal can't be read whole"
        locks = "1 lock is" if self.count == 1 else f"{self.count} locks are"
        text = f"{locks} held" + (f" as host_id {self.host_id}" if self.host_id is not None else "")
        named = list(self.users[:USERS_NAMED_MAX])
        if self.count > len(named):
            named.append("...")
        return f"{text} ({', '.join(named)})" if self.users else text


def differences(old: Config, new: Config, held: Sequence[HeldNeed]) -> list[str]:
    """Why `new` can't be in force while these locks of `old` are held; empty if it can."""
    if not held:
        return []
    found = [
        _changed(key, before, after, str(_all(held)))
        for key, before, after in (
            ("run_dir", old.run_dir, new.run_dir),
            ("state_dir", old.state_dir, new.state_dir),
            ("host_locks", old.host_locks, new.host_locks),
        )
        if before != after
    ]
    places = same_backend(old, new)
    for need in held:
        if need.backend.startswith(SANLOCK_PREFIX):
            found += _of_clients(need, old, new, places)
            continue
        table = old.backend.get(need.backend)
        if table is None or table.get("driver") == ABSENT:
            continue  # lost already: no configuration makes that worse
        found += _of_table(need, table, new, places)
    return found


def _of_table(
    need: HeldNeed, table: Mapping[str, Any], new: Config, places: Mapping[str, str]
) -> Iterator[str]:
    if need.backend in places:
        name = places[need.backend]
        return _changed_keys(need, table, name, new.backend[name])
    return _lost_table(need, table, new)


def _of_clients(need: HeldNeed, old: Config, new: Config, places: Mapping[str, str]) -> Iterator[str]:
    """Differences for leases of sanlock's clients: their socket and watchdog, and what a table says of their lockspace."""
    before, after = old.sanlock, new.sanlock
    if before.socket and not after.socket:
        yield _changed("sanlock.socket", before.socket, after.socket, str(need))
    for key in ("watchdog", "watchdog_device", "fire_timeout_s"):
        if getattr(before, key) != getattr(after, key):
            yield _changed(f"sanlock.{key}", getattr(before, key), getattr(after, key), str(need))
    lockspace = need.backend.removeprefix(SANLOCK_PREFIX)
    named = {name: table for name, table in old.backend.items() if _names(table, lockspace)}
    for name, table in named.items():
        yield from _of_table(msgspec.structs.replace(need, backend=name), table, new, places)
    for name, table in new.backend.items():
        if not named and _names(table, lockspace):
            yield f"backend.{name}.lockspace: is {lockspace}, which a client of sanlock has added, and {need}"


def _names(table: Mapping[str, Any], lockspace: str) -> bool:
    return table.get("driver") == "paxos" and _lease_value(table, "lockspace") == lockspace


def same_backend(old: Config, new: Config) -> Mapping[str, str]:
    """Each table of `old` that `new` has too, under whatever name: old name to new name."""
    found = {}
    for name, table in old.backend.items():
        if table.get("driver") == ABSENT and name in new.backend:
            found[name] = name
            continue
        what = _what(table)
        also = [other for other, theirs in new.backend.items() if _what(theirs) == what]
        if also:
            found[name] = name if name in also else also[0]
    return found


def _what(table: Mapping[str, Any]) -> tuple[object, ...]:
    """The identity of a table's storage; two tables with the same one find each other's locks."""
    driver = table.get("driver")
    match driver:
        case "paxos":
            return (
                driver,
                _lease_value(table, "lockspace"),
                _path(table.get("directory")),
                _path(table.get("device")),
                _value(table.get("offset")),
            )
        case "file":
            return (driver, _path(table.get("directory")))
        case "nop" | "lvm":  # a host has one lvmlockd
            return (driver,)
        case _:
            return (driver, *(f"{key}={_value(value)}" for key, value in sorted(table.items())))


def _lost_table(need: HeldNeed, table: Mapping[str, Any], new: Config) -> Iterator[str]:
    """Differences for a removed table: the keys that differ in the new one of its name, or that it is gone."""
    theirs = new.backend.get(need.backend)
    if theirs is None:
        yield f"backend.{need.backend}: is removed, but {need}; put the table back"
        return
    keys: Sequence[str]
    if table.get("driver") != theirs.get("driver"):
        keys = ("driver",)
    elif table.get("driver") in ("paxos", "file"):
        keys = ("lockspace", "directory", "device", "offset")
    else:
        keys = sorted({*table, *theirs})
    for key in keys:
        before, after = _effective(table, key), _effective(theirs, key)
        if before != after:
            yield _changed(f"backend.{need.backend}.{key}", before, after, str(need))


def _changed_keys(
    need: HeldNeed, table: Mapping[str, Any], new_name: str, theirs: Mapping[str, Any]
) -> Iterator[str]:
    """Changed keys of a table that still exists, under that name or another one."""
    if table.get("driver") == "lvm":
        yield from _changed_guard(need, table, new_name, theirs)
    if table.get("driver") != "paxos":
        return
    before, after = table.get("host_id"), theirs.get("host_id")
    in_use = need.host_id if need.host_id is not None else before
    if after not in (before, in_use, "auto"):
        yield _changed(f"backend.{new_name}.host_id", before, after, str(need))
    hosts_max = theirs.get("hosts_max")
    if isinstance(hosts_max, int) and isinstance(in_use, int) and hosts_max < in_use:
        yield _changed(f"backend.{new_name}.hosts_max", table.get("hosts_max"), hosts_max, str(need))
    for key in LEASE_KEYS:
        before, after = _effective(table, key), _effective(theirs, key)
        if before != after:
            yield _changed(f"backend.{new_name}.{key}", before, after, str(need))


def _changed_guard(
    need: HeldNeed, table: Mapping[str, Any], new_name: str, theirs: Mapping[str, Any]
) -> Iterator[str]:
    """A guard comes, goes or changes only while LVM's lock excludes other hosts without it (ADR 0233)."""
    guards = table.get("guard", ""), theirs.get("guard", "")
    if guards[0] != guards[1] and SHARED in (table.get("activation"), theirs.get("activation")):
        yield (
            f"backend.{new_name}.guard: '{guards[0]}' -> '{guards[1]}' where activation is \"shared\", but {need}; on all "
            'hosts first set activation = "exclusive", then change the guard, then set "shared" again'
        )


def _effective(table: Mapping[str, Any], key: str) -> object:
    """The value that a driver uses: that of the key, or its default."""
    if table.get("driver") != "paxos":
        return _path(table.get(key)) if key == "directory" else table.get(key)
    if key in ("directory", "device"):
        return _path(table.get(key))
    if key == "watchdog_device":
        return _path(table.get(key)) or WATCHDOG_DEVICE_DEFAULTS.get(table.get("watchdog"), "")
    return _lease_value(table, key)


def _lease_value(table: Mapping[str, Any], key: str) -> object:
    return table.get(key, LEASE_DEFAULTS.get(key))


def _path(value: object) -> object:
    """As the drivers read it: without slashes at its end."""
    return value.rstrip("/") if isinstance(value, str) and len(value) > 1 else value or ""


def _all(held: Sequence[HeldNeed]) -> HeldNeed:
    users = tuple(user for need in held for user in need.users)
    return HeldNeed(backend="", count=sum(need.count for need in held), users=users)


def _changed(key: str, before: object, after: object, need: str) -> str:
    return f"{key}: {_value(before)} -> {_value(after)}, but {need}"


def _value(value: object) -> str:
    """A value as it is written in the file; a key that is left out says so."""
    if value is None or value == "":
        return "left out"
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}..."

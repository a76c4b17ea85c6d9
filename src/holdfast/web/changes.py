"""PURE. What the page gets about locks: the rows that are new or different, and the keys of those that are gone.

A host with 2000 VMs has so many rows that all of them each second would be most of the traffic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from holdfast.control.api import HolderInfo

Row = Mapping[str, Any]
Rows = Mapping[str, Row]

SHOWN = (
    "resource",
    "mode",
    "owner",
    "pid",
    "since",
    "backend",
    "protection",
    "protection_word",
    "protection_note",
    "held",
    "lost_reason",
    "unknown",
    "until",
)
"""The fields of `HolderInfo` that the page shows."""


class Changes(NamedTuple):
    """From one picture to the next one."""

    rows: Rows
    gone: list[str]


def rows_of(locks: Iterable[HolderInfo]) -> dict[str, Row]:
    """A row for each claim, by a key that stays the same while the claim lasts."""
    rows: dict[str, Row] = {}
    for lock in locks:
        key = base = f"{lock.number}/{lock.pid}/{lock.name}"
        again = 1
        while key in rows:
            again += 1
            key = f"{base}/{again}"
        rows[key] = {name: getattr(lock, name) for name in SHOWN}
    return rows


def changes(before: Rows, now: Rows) -> Changes:
    return Changes(
        {key: row for key, row in now.items() if before.get(key) != row},
        [key for key in before if key not in now],
    )

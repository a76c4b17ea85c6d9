"""Finds the installed drivers, and makes the backend of a [backend.NAME] table.

Holdfast's own drivers are listed here; packages register theirs as entry points.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

from holdfast.backends import absent as absent_driver
from holdfast.backends import nop as nop_driver
from holdfast.backends.base import Backend, BackendPorts, Driver, KeyNotKnown
from holdfast.backends.file import backend as file_driver
from holdfast.backends.lvm import config as lvm_table
from holdfast.backends.paxos import config
from holdfast.errors import ConfigError, UnknownKey

ENTRY_POINTS = "holdfast.backends"
NOT_OFFERED = frozenset(("absent", "lvm"))
"""What is not named to somebody who has misspelt a driver: a stand-in, and one that is experimental."""


def drivers() -> dict[str, importlib.metadata.EntryPoint]:
    """Every driver that is installed, by the word used in `driver = …`."""
    return {e.name: e for e in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def make_backend(
    name: str, table: Mapping[str, object], ports: BackendPorts, *, file: str = "configuration"
) -> Backend:
    """The backend of one [backend.NAME] table; raises `ConfigError` with the key and the fix."""
    shipped: dict[str, Driver] = {
        "absent": absent_driver.driver,
        "file": file_driver.driver,
        "lvm": lvm_table.driver,
        "nop": nop_driver.driver,
        "paxos": config.driver,
    }
    word = str(table.get("driver", ""))
    driver = shipped.get(word)
    if driver is None:
        known = drivers()
        if word not in known:
            raise ConfigError(
                file=file,
                key=f"backend.{name}.driver",
                reason=f"no driver '{word}' is installed; known: {', '.join(sorted({*shipped, *known} - NOT_OFFERED))}",
            )
        driver = known[word].load()
    try:
        return driver(name, {k: v for k, v in table.items() if k != "driver"}, ports)
    except KeyNotKnown as e:
        raise UnknownKey(
            file=file, key=f"backend.{name}", reason=str(e), place=("backend", name, e.key)
        ) from None
    except ValueError as e:
        raise ConfigError(file=file, key=f"backend.{name}", reason=str(e)) from None

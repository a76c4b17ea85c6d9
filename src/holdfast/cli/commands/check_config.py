"""`holdfast check-config`: does this host have what the configuration names? Devices, sockets, directories, lockspaces.

The configuration may be right and the host not ready yet, so this is reported apart from mistakes in the files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial

from holdfast.backends.paxos.config import WATCHDOG_DEVICE_DEFAULT, WDMD_SOCKET_DEFAULT, lockspace_spec
from holdfast.cli.recorded_timeouts import Tables, differing
from holdfast.system.files.bounded_question import Silent, answer_in_time


def missing(tables: Tables) -> list[str]:
    """What is not there, or is something else, each with key and fix."""
    return [text for name, table in tables.items() for text in _of_backend(name, table)]


def remarkable(tables: Tables) -> list[str]:
    """What is there and may be used, but is not what its operator may expect."""
    texts = []
    for name, table in tables.items():
        if table.get("driver") == "paxos":
            with suppress(Silent):
                texts.append(answer_in_time(partial(differing, name, table)))
    return [each for each in texts if each]


def _of_backend(name: str, table: Mapping[str, object]) -> Iterator[str]:
    key = f"backend.{name}"
    if table.get("driver") == "paxos":
        yield from _watchdog(key, table)
        device = table.get("device")
        path = lockspace_spec(table).path
        if device:
            yield from _wanted(f"{key}.device", str(device), stat.S_ISBLK, "block device")
        else:
            directory = os.path.dirname(path)
            found = list(
                _wanted(f"{key}.directory", directory, stat.S_ISDIR, "directory", "mount its storage")
            )
            yield from found
            if not found:
                yield from _wanted(
                    f"{key}.lockspace",
                    path,
                    stat.S_ISREG,
                    "lockspace",
                    "see 'holdfast lockspace init --help'",
                )
    elif isinstance(table.get("directory"), str):
        yield from _wanted(
            f"{key}.directory",
            str(table["directory"]),
            stat.S_ISDIR,
            "directory",
            "mount its storage, or make it there",
        )


def _watchdog(key: str, table: Mapping[str, object]) -> Iterator[str]:
    path = str(table.get("watchdog_device", ""))
    if table.get("watchdog") == "device":
        yield from _wanted(
            f"{key}.watchdog_device",
            path or WATCHDOG_DEVICE_DEFAULT,
            stat.S_ISCHR,
            "watchdog device",
            "load the watchdog's driver",
        )
    elif table.get("watchdog") == "wdmd":
        yield from _wanted(
            f"{key}.watchdog_device",
            path or WDMD_SOCKET_DEFAULT,
            stat.S_ISSOCK,
            "socket of wdmd",
            "start wdmd",
        )


def _wanted(
    key: str, path: str, kind: Callable[[int], bool], what: str, fix: str = "check the path"
) -> Iterator[str]:
    try:
        mode = answer_in_time(partial(_mode, path))
    except Silent:
        yield f"{key}: the storage of {path} does not answer"
        return
    except OSError as e:
        yield f"{key}: {path}: {e.strerror}; {fix}"
        return
    if not kind(mode):
        yield f"{key}: {path} is no {what}; {fix}"


def _mode(path: str) -> int:
    return os.stat(path).st_mode

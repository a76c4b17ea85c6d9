"""PURE: the state file that virtlockd writes before it re-executes (docs/specs/virtlockd-rpc.md 4.2), as frozen values.

It is of libvirt 9 or later: older shapes (`server`, servers as an array) are `Unusable`, and so is everything that does not
say clearly which descriptor has which lock: then the real virtlockd gets the file, unread and untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from holdfast.model import Mode, Resource

STATE_FILE = "/run/virtlockd-restart-exec.json"
STATE_BYTES_MAX = 10 << 20
"""virtlockd reads no more."""
SERVER = "virtlockd"
SHARED, AUTOCREATE = 1, 2
"""Of `flags`: those of ACQUIRE_RESOURCE (docs/specs/virtlockd-rpc.md 3)."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why the file can't be gone by."""

    reason: str


@dataclass(frozen=True, slots=True)
class Client:
    """A connection; `pid` 0: it has not registered an owner."""

    fd: int
    restricted: bool
    pid: int = 0
    domain_id: int = 0
    name: str = ""
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class HeldLock:
    fd: int
    resource: Resource
    path: str
    mode: Mode
    create: bool
    owners: tuple[int, ...]
    """Pids."""


@dataclass(frozen=True, slots=True)
class VirtlockdState:
    listeners: tuple[int, ...]
    """Of the lock protocol's socket."""
    clients: tuple[Client, ...]
    locks: tuple[HeldLock, ...]
    lockspaces: tuple[str, ...]
    """Directories."""
    spare: tuple[int, ...]
    """Descriptors of files that have no lock."""


def decode(raw: bytes, pid: int) -> VirtlockdState | Unusable:
    """`pid`: of the process that re-executed itself."""
    try:
        top = msgspec.json.decode(raw)
        if top["magic"] != str(pid):
            return Unusable(f"it is of another process (magic {top['magic']!r}, this one is {pid})")
        server = top["daemon"]["servers"][SERVER]
        spaces = [("", top["defaultLockspace"])]
        spaces += [(each["directory"], each) for each in top.get("lockspaces") or ()]
        found = [(space, each) for space, table in spaces for each in table["resources"]]
        state = VirtlockdState(
            listeners=tuple(_fd(sock) for service in server["services"] for sock in service["socks"]),
            clients=tuple(_client(each) for each in server["clients"]),
            locks=tuple(_lock(space, each) for space, each in found if each["lockHeld"]),
            lockspaces=tuple(space for space, _ in spaces if space),
            spare=tuple(_fd(each) for _, each in found if not each["lockHeld"] and each.get("fd", -1) >= 0),
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as e:
        return Unusable(f"it has not the shape that is known: {type(e).__name__} {e}")
    every = [*state.listeners, *state.spare]
    every += [*(each.fd for each in state.clients), *(each.fd for each in state.locks)]
    if len(set(every)) != len(every):
        return Unusable("two of its entries have one descriptor")
    return state


def _fd(table: dict[str, Any]) -> int:
    fd = table["fd"]
    if type(fd) is not int or fd < 0:
        raise ValueError(f"descriptor {fd!r}")
    return fd


def _client(table: dict[str, Any]) -> Client:
    fd, about = _fd(table["sock"]), table["privateData"]
    if not about.get("ownerName") or not about.get("ownerPid"):
        return Client(fd, bool(about["restricted"]))
    return Client(
        fd,
        bool(about["restricted"]),
        int(about["ownerPid"]),
        int(about["ownerId"]),
        str(about["ownerName"]),
        str(about["ownerUUID"]),
    )


def _lock(space: str, table: dict[str, Any]) -> HeldLock:
    flags = int(table["flags"])
    owners = tuple(dict.fromkeys(int(each) for each in table["owners"]))
    if not owners:
        raise ValueError(f"{table['name']} has no owner")
    return HeldLock(
        _fd(table),
        Resource(space, str(table["name"])),
        str(table["path"]),
        Mode.SHARED if flags & SHARED else Mode.EXCLUSIVE,
        bool(flags & AUTOCREATE),
        owners,
    )

"""The `nop` driver: grants everything and protects nothing.

For disks that something else protects. Within this daemon the lock table still excludes a second owner of a name; the
protection level shown is 0, as nothing outside this daemon is excluded.
"""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.backends.base import (
    BackendPorts,
    Capabilities,
    Creation,
    HeldElsewhere,
    OwnerNote,
    SavedLock,
    Stale,
    unknown_keys,
)
from holdfast.model import Mode, Protection, Resource
from holdfast.system.files.ofd_lock import FileKey, IoFailed

PROTECTION_NOTE = "driver 'nop' locks nothing; choose a backend with driver 'file'"


class _HeldNothing:
    __slots__ = ("create", "path")

    def __init__(self) -> None:
        self.path = ""
        self.create = False

    def descriptor(self) -> int | None:
        return None

    async def convert(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | IoFailed | None:
        return None

    async def release(self) -> None:
        return None

    def release_nowait(self) -> bool:
        return True

    def forget(self) -> None:
        return None


class _Candidate:
    __slots__ = ("keys",)

    def __init__(self) -> None:
        self.keys: tuple[FileKey, ...] = ()

    async def take(self, mode: Mode, note: OwnerNote) -> _HeldNothing | HeldElsewhere | Stale | IoFailed:
        return _HeldNothing()

    async def abandon(self) -> None:
        return None


class NopBackend:
    """Grants every lock."""

    capabilities = Capabilities(
        cross_host=False,
        shared_mode=True,
        converts=True,
        survives_restart=True,
        fenced=False,
        names_foreign_holders=False,
    )

    def __init__(self, name: str) -> None:
        self.name = name

    async def open(self, resource: Resource, *, create: Creation) -> _Candidate | IoFailed:
        return _Candidate()

    def take_nowait(self, resource: Resource, mode: Mode) -> tuple[tuple[FileKey, ...], _HeldNothing] | None:
        return (), _HeldNothing()

    async def adopt(
        self, saved: SavedLock, fd: int | None
    ) -> _HeldNothing | HeldElsewhere | Stale | IoFailed:
        return _HeldNothing()

    def protection(self, path: str) -> tuple[Protection, str]:
        return Protection.NONE, PROTECTION_NOTE

    def lock_path(self, resource: Resource) -> str:
        return ""


def driver(name: str, table: Mapping[str, object], ports: BackendPorts) -> NopBackend:
    unknown_keys(table, ())
    return NopBackend(name)

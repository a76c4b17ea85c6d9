"""The `absent` driver: stands in for a backend that can't be made any more, so that the others still work.

A start that uses the kept configuration may find a table whose driver is not installed any more, or refuses a value by
now. Every lock of it is refused with that reason; none falls to another backend, which might protect less.
"""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.backends.base import BackendPorts, Candidate, Capabilities, Creation, Held, SavedLock
from holdfast.errors import Refused
from holdfast.model import Mode, Protection, Resource
from holdfast.system.files.ofd_lock import FileKey, IoFailed


class AbsentBackend:
    """Refuses every lock with the reason for which the real backend can't be made."""

    capabilities = Capabilities(
        cross_host=False,
        shared_mode=False,
        converts=False,
        survives_restart=False,
        fenced=False,
        names_foreign_holders=False,
    )

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = f"backend '{name}' can't be used: {reason}"

    async def open(self, resource: Resource, *, create: Creation) -> Candidate | IoFailed:
        raise Refused(reason=self._reason)

    def take_nowait(self, resource: Resource, mode: Mode) -> tuple[tuple[FileKey, ...], Held] | None:
        return None

    async def adopt(self, saved: SavedLock, fd: int | None) -> Held:
        raise Refused(reason=self._reason)

    def protection(self, path: str) -> tuple[Protection, str]:
        return Protection.NONE, self._reason

    def lock_path(self, resource: Resource) -> str:
        return ""


def driver(name: str, table: Mapping[str, object], ports: BackendPorts) -> AbsentBackend:
    """Key: `reason`, why the backend can't be made."""
    return AbsentBackend(name, str(table.get("reason", "")))

"""Directory lockspaces: the known ones, how they are made, and the files in them.

virtlockd knows a lockspace only while it runs and only if libvirt announced it at its own start; after a plain restart of
the daemon every indirect lock fails. Here known lockspaces are in the journal, and a lockspace that was not announced is
made on demand if its parent directory exists: a `<lease>` element needs that, whose lockspace is TARGET/LOCKSPACE and whose
file is KEY (libvirt-integration.md 2.4).
"""

from __future__ import annotations

import contextlib
import os

from holdfast.errors import (
    DefaultLockspaceExists,
    LockFileCreateFailed,
    LockspaceExists,
    LockspaceNotDirectory,
    LockspaceUnknown,
    NameRefused,
    ResourceInUse,
    StorageFailed,
)
from holdfast.manager.journal import Journal
from holdfast.manager.journal_kinds import LockspaceLine, text_of
from holdfast.model import DIRECT_LOCKSPACE, Resource
from holdfast.system.files.lockspace_files import LockspaceFiles, PathKind
from holdfast.system.files.ofd_lock import FileKey, IoFailed
from holdfast.system.files.storage_executor import Storage

LOCKSPACES_MAX = 10_000
"""Lockspaces known at once; libvirt has three and one per <lease> target."""


class FileLockspaces:
    """The lockspaces of this daemon."""

    def __init__(self, *, files: LockspaceFiles, storage: Storage, journal: Journal) -> None:
        self._files = files
        self._storage = storage
        self._journal = journal
        self._known: dict[str, bool] = {}  # path -> made on demand

    def known(self) -> list[str]:
        return list(self._known)

    def restore(self, paths: dict[str, bool]) -> None:
        self._known.update(paths)

    def made_on_demand(self, path: str) -> bool:
        return self._known.get(path, False)

    def check_name(self, resource: Resource) -> None:
        """Raises an error for a name that is not the name of a file in a directory lockspace."""
        if resource.lockspace == DIRECT_LOCKSPACE:
            return
        name = resource.name
        reason = ""
        if "/" in name:
            reason = "must not contain '/'"
        elif name in ("", ".", ".."):
            reason = "must be the name of a file"
        if reason:
            raise NameRefused(name=name, lockspace=resource.lockspace, reason=reason)

    async def create(self, path: str) -> None:
        """CREATE_LOCKSPACE: idempotent."""
        if path == DIRECT_LOCKSPACE or path in self._known:
            return
        await self._make(path)

    async def new(self, path: str) -> None:
        """NEW: like create, but an existing one is an error, and so is one that cannot be made."""
        if path == DIRECT_LOCKSPACE:
            raise DefaultLockspaceExists()
        if path in self._known:
            raise LockspaceExists(path=path)
        await self._make(path)

    async def _make(self, path: str) -> None:
        if not path.startswith("/"):
            raise NameRefused(name="", lockspace=path, reason="needs a lockspace with an absolute path")
        kind = await self._storage.call(path, lambda: self._files.kind(path))
        if kind is PathKind.OTHER:
            raise LockspaceNotDirectory(path=path)
        if kind is PathKind.MISSING:
            failed = await self._storage.call(path, lambda: self._files.make_directories(path))
            if failed is not None:
                raise StorageFailed(what=failed.what, path=path, errno=failed.errno)
        self._know(path, on_demand=False)

    def _know(self, path: str, *, on_demand: bool) -> None:
        if len(self._known) >= LOCKSPACES_MAX:
            raise NameRefused(
                name="", lockspace=path, reason=f"would be more than {LOCKSPACES_MAX} lockspaces"
            )
        self._known[path] = on_demand
        with contextlib.suppress(OSError):  # without the journal it is found again on demand
            self._journal.append(LockspaceLine(text_of(path), on_demand))

    async def need(self, path: str, *, make: bool) -> None:
        """Checks a request's lockspace: it is known, or exists as a directory, or (with `make`) is made in its parent."""
        if path == DIRECT_LOCKSPACE or path in self._known:
            return
        parent = os.path.dirname(path.rstrip("/"))
        if not path.startswith("/") or path.rstrip("/") == "":
            raise LockspaceUnknown(path=path)

        def kind_of_path() -> IoFailed | PathKind | None:
            if (kind := self._files.kind(path)) is not PathKind.MISSING:
                return kind
            if not make or self._files.kind(parent) is not PathKind.DIRECTORY:
                return PathKind.MISSING
            return self._files.make_directories(path)

        answer = await self._storage.call(path, kind_of_path)
        if answer is PathKind.OTHER:
            raise LockspaceNotDirectory(path=path)
        if answer is PathKind.MISSING:
            raise LockspaceUnknown(path=path)
        if isinstance(answer, IoFailed):
            raise StorageFailed(what=answer.what, path=path, errno=answer.errno)
        self._know(path, on_demand=True)

    # --- CREATE_RESOURCE and DELETE_RESOURCE ---

    @staticmethod
    def file_of(resource: Resource) -> str:
        return f"{resource.lockspace}/{resource.name}" if resource.lockspace else resource.name

    async def key_of(self, resource: Resource) -> FileKey | None:
        """The key of a resource's file, to find out whether it is held under another name."""
        path = self.file_of(resource)
        return await self._storage.call(path, lambda: self._files.key(path))

    async def create_file(self, resource: Resource) -> None:
        path = self.file_of(resource)
        failed = await self._storage.call(path, lambda: self._files.create(path))
        if failed is not None:
            raise LockFileCreateFailed(what=failed.what, path=f"'{path}'", errno=failed.errno)

    async def delete_file(self, resource: Resource) -> None:
        path = self.file_of(resource)
        failed = await self._storage.call(path, lambda: self._files.remove(path))
        if failed is not None:
            if failed.what == LockspaceFiles.HELD:
                raise ResourceInUse(name=resource.name)
            raise StorageFailed(what=failed.what, path=path, errno=failed.errno)

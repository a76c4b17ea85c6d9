"""The `file` driver: an open-file-description lock on byte 0 of a file, as virtlockd's record locks.

Which file that is:
* *direct*: the disk itself, for a path in the direct lockspace, when the backend has no ``directory``;
* *indirect*: a file named by the SHA-256 of the path in ``directory`` - the same name that libvirt's
  ``file_lockspace_dir`` gives, so a host that runs virtlockd with that setting is excluded too; if other hosts see the
  directory, a second file there is named by what the disk is on all of them (ADR 0197);
* in a directory lockspace that libvirt made: the file LOCKSPACE/NAME.

An indirect lock file is made for the lock and removed with it. Between opening and locking, the last holder may have
removed the file, so after locking, path and descriptor must be the same inode:

    host A: open f1   lock f1 … unlink f1, close
    host B:        open f1 … … … … … … … … lock f1 (granted: A released it, but f1 has no name any more)
    host C:                        open f2 (new inode), lock f2: granted as well, unless B checks again

The remover unlinks while it still holds the lock exclusively, so a host that passes the check holds the named file.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

from holdfast.backends.base import (
    BackendPorts,
    Capabilities,
    Creation,
    HeldElsewhere,
    LeftFile,
    NotedOwner,
    OwnerNote,
    Recognized,
    SavedLock,
    Stale,
    unknown_keys,
)
from holdfast.backends.directory_trust import DirectoryTrust
from holdfast.backends.file.lock_file_records import LockFileRecords, noted_by
from holdfast.backends.known_identities import KnownIdentities
from holdfast.backends.naming import indirect_name
from holdfast.model import IDENTITY_LOCKSPACE, Holder, Mode, Protection, Resource
from holdfast.system.files.canonical_path import PathWarnings
from holdfast.system.files.ofd_lock import FileKey, ForeignLock, IoFailed, OpenedFile

log = logging.getLogger(__name__)


PROTECTIONS_MAX = 10_000
"""Directories whose protection is cached; when full, the cache is emptied."""


class HeldFile:
    """One locked descriptor."""

    __slots__ = ("_backend", "_disk", "_fd", "_mode", "_pool", "_recorded", "create", "path", "weaker")

    def __init__(
        self, backend: FileBackend, fd: int, path: str, pool: str, mode: Mode, *, create: bool, disk: str = ""
    ) -> None:
        self._backend = backend
        self._disk = disk
        self._pool = pool
        self._fd = fd
        self._mode = mode
        self._recorded = False
        self.path = path
        self.create = create
        self.weaker = ""
        """See `MayBeWeaker`."""

    def descriptor(self) -> int | None:
        return self._fd

    def record(self, note: OwnerNote) -> None:
        """Write the owner's name to the lock file; storage thread. Best effort, unlike the lock."""
        self._recorded = self._backend.records.write(
            self._fd, self._mode, note, self._disk, first=not self._recorded
        )

    def note_recorded(self) -> None:
        """After a restart: find out whether the record in the file is ours to blank."""
        self._recorded = bool(self._backend.records.read(self._fd))

    async def noted_owner(self) -> NotedOwner:
        """See `NotesOwner`: only a lock file has a record."""
        if not self.create:
            return NotedOwner()
        backend = self._backend
        return await backend.storage.run(self._pool, self.path, lambda: backend.records.owner(self._fd))

    async def convert(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | IoFailed | None:
        backend = self._backend

        def work() -> HeldElsewhere | IoFailed | None:
            refused = backend.files.lock(self._fd, mode, self.path)
            if isinstance(refused, ForeignLock):
                return backend.elsewhere(self._fd, refused, recorded=self._recorded)
            if refused is None:
                before, self._mode = self._mode, mode
                self.weaker = ""
                if self._recorded and before is not mode:
                    backend.records.blank(self._fd, before)
                    self.record(note)
            return refused

        return await backend.storage.run(self._pool, self.path, work, patient=True)

    async def release(self) -> None:
        if not self.release_nowait():
            fd, self._fd = self._fd, -1
            await self._backend.storage.run(self._pool, self.path, lambda: self._let_go(fd), patient=True)

    def release_nowait(self) -> bool:
        if self._fd >= 0:
            if self._pool:
                return False
            fd, self._fd = self._fd, -1
            self._let_go(fd)
        return True

    def _let_go(self, fd: int) -> None:
        backend = self._backend
        try:
            # A reader elsewhere keeps the file: only a lock that excludes everybody may take the name away.
            if self.create and backend.files.lock(fd, Mode.EXCLUSIVE, self.path) is None:
                # … and only the name of the very file that is locked.
                if backend.files.same_file(fd, self.path) and (failed := backend.files.remove(self.path)):
                    log.warning("lock file %s stays behind: error %d", self.path, failed.errno)
            elif self._recorded:
                backend.records.blank(fd, self._mode)
        finally:
            # systemd closes its copy some time after our message; the next owner must not wait for that.
            for let_go in (backend.files.unlock, backend.files.close):
                try:
                    let_go(fd)
                except OSError as e:
                    log.error("letting go of the lock on %s: %s", self.path, e)

    def forget(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._backend.files.close(fd)


class OpenFile:
    """An opened, not yet locked, lock file."""

    __slots__ = ("_backend", "_creation", "_disk", "_fd", "_path", "_pool", "keys")

    def __init__(
        self,
        backend: FileBackend,
        opened: OpenedFile,
        path: str,
        pool: str,
        creation: Creation,
        disk: str = "",
    ) -> None:
        self._backend = backend
        self._disk = disk
        self._pool = pool
        self._fd = opened.fd
        self._path = path
        self._creation = creation
        self.keys: tuple[FileKey, ...] = (opened.key,) if opened.disk is None else (opened.key, opened.disk)

    async def take(self, mode: Mode, note: OwnerNote) -> HeldFile | HeldElsewhere | Stale | IoFailed:
        if not self._pool:
            return self._take(mode, note)
        return await self._backend.storage.run(
            self._pool, self._path, lambda: self._take(mode, note), undo=_let_go_late
        )

    def _take(self, mode: Mode, note: OwnerNote) -> HeldFile | HeldElsewhere | Stale | IoFailed:
        """Storage thread."""
        creation = self._creation
        own_file = creation is not Creation.NONE
        if own_file:
            self._backend.trust.meet(self._path.rpartition("/")[0])
        taken = self._backend.lock_file(self._fd, self._path, self._pool, mode, creation, self._disk)
        if own_file and isinstance(taken, HeldFile):
            taken.record(note)
        return taken

    async def abandon(self) -> None:
        await self._backend.storage.run(
            self._pool, self._path, lambda: self._backend.files.close(self._fd), patient=True
        )


def _let_go_late(late: HeldFile | HeldElsewhere | Stale | IoFailed) -> None:
    """The lock was granted after its caller had timed out: closing the descriptor releases it."""
    if isinstance(late, HeldFile):
        late.forget()


class FileBackend:
    """Holds record locks on files. `directory`: where lock files of direct resources are; empty: lock the disk itself."""

    capabilities = Capabilities(
        cross_host=True,
        shared_mode=True,
        converts=True,
        survives_restart=True,
        fenced=False,
        names_foreign_holders=True,
    )

    def __init__(
        self, name: str, ports: BackendPorts, *, directory: str = "", cross_host: bool | None = None
    ) -> None:
        self.name = name
        self.directory = directory
        self.files = ports.files
        self.storage = ports.storage
        self.records = LockFileRecords(ports.files, ports.clock, ports.host)
        self._host = ports.host
        self._mounts = ports.mounts
        self._cross_host = cross_host
        self._protections: dict[str, tuple[Protection, str]] = {}
        self._protections_of = 0
        self._warnings = PathWarnings(name)
        self.trust = DirectoryTrust(name, ports.files)
        self._identities = ports.identities
        self._known = (
            KnownIdentities(ports.storage, ports.identities) if ports.identities is not None else None
        )

    # --- which file ---

    def lock_path(self, resource: Resource) -> str:
        if resource.lockspace:
            if self.directory:
                return f"{self.directory}/{indirect_name(str(resource))}"
            return f"{resource.lockspace}/{resource.name}"
        return f"{self.directory}/{indirect_name(resource.name)}" if self.directory else resource.name

    async def identity(self, resource: Resource) -> Resource | None:
        """See `LocksIdentities`."""
        if self._known is None or not self.directory or resource.lockspace:
            return None
        if self.protection(self.lock_path(resource))[0] < Protection.CROSS_HOST:
            return None  # on one host the inode excludes
        return await self._known.of(resource.name)

    def _disk_of(self, resource: Resource) -> str:
        """The path of the disk that a lock is for, where the lock does not lie in a lockspace of libvirt's."""
        if resource.lockspace:
            return self._known.path_of(resource) if self._known is not None else ""
        return resource.name

    async def open(self, resource: Resource, *, create: Creation) -> OpenFile | IoFailed:
        path = self.lock_path(resource)
        disk, named = "", self._disk_of(resource)
        if self.directory:
            create = Creation.TEMPORARY
            if named and (not self._may_block(named) or self._may_block(path)):
                disk = named  # elsewhere the inode is optional: don't risk blocking for it
        opened, pool = await self._open(path, create=create is not Creation.NONE, disk=disk)
        if isinstance(opened, IoFailed):
            return opened
        self._warnings.met(disk, opened.canonical)
        return OpenFile(self, opened, path, pool, create, named)

    def take_nowait(self, resource: Resource, mode: Mode) -> tuple[tuple[FileKey, ...], HeldFile] | None:
        """Fast path for direct locks. Anything that creates or writes a lock file takes the general path."""
        if self.directory or resource.lockspace:
            return None
        path = resource.name
        opened, pool = self._open_at_once(path, create=False)
        if opened is None or isinstance(opened, IoFailed):
            return None
        if self.files.lock(opened.fd, mode, path) is not None:
            self.files.close(opened.fd)
            return None
        return (opened.key,), HeldFile(self, opened.fd, path, pool, mode, create=False)

    def _open_at_once(
        self, path: str, *, create: bool, disk: str = ""
    ) -> tuple[OpenedFile | IoFailed | None, str]:
        """The opened file, or None if that may block; and the name of its storage's worker pool."""
        pool = self.storage.pool(path)
        if pool:
            return None, pool
        opened = self.files.open(path, create=create, disk=disk, follow=False)
        if isinstance(opened, IoFailed) and opened.errno == errno.ELOOP:
            return None, self.storage.pool_of_link(path)
        return opened, pool

    async def _open(self, path: str, *, create: bool, disk: str = "") -> tuple[OpenedFile | IoFailed, str]:
        """The opened file and the name of its storage's worker pool."""
        opened, pool = self._open_at_once(path, create=create, disk=disk)
        if opened is None:
            files = self.files
            opened = await self.storage.run(
                pool, path, lambda: files.open(path, create=create, disk=disk), undo=self._close_opened
            )
        return opened, pool

    def _may_block(self, path: str) -> bool:
        return self._mounts.mount_of(path).may_block

    def _close_opened(self, opened: OpenedFile | IoFailed) -> None:
        if not isinstance(opened, IoFailed):
            self.files.close(opened.fd)

    async def adopt(self, saved: SavedLock, fd: int | None) -> HeldFile | HeldElsewhere | Stale | IoFailed:
        """A kept descriptor has the lock: taking it again on that changes nothing. One that has less, after a live
        switch from virtlockd, keeps that: closing it would let somebody have the disk exclusively.

        Without one the file is opened again. A temporary lock file may have been removed by a host that held it in
        between, and is made again; any other file must still be the one that was locked.
        """
        path = saved.path
        if fd is not None:
            kept, pool = fd, self.storage.pool(path) or self.storage.pool_of_link(path)
        else:
            opened, pool = await self._open(path, create=saved.create)
            if isinstance(opened, IoFailed):
                return opened
            if not saved.create and opened.key != saved.keys[0]:
                self._close_opened(opened)
                return Stale()
            kept = opened.fd

        def work() -> HeldFile | HeldElsewhere | Stale | IoFailed:
            creation = Creation.TEMPORARY if saved.create else Creation.NONE
            disk = "" if saved.resource.lockspace else saved.resource.name
            taken = self._shared_at_least(fd, saved, pool, disk) or self.lock_file(
                kept, path, pool, saved.mode, creation, disk
            )
            if isinstance(taken, HeldFile) and (saved.create or saved.resource.lockspace):
                taken.note_recorded()
            return taken

        return await self.storage.run(pool, path, work, undo=_let_go_late)

    def _shared_at_least(self, fd: int | None, saved: SavedLock, pool: str, disk: str) -> HeldFile | None:
        """A kept descriptor whose lock is shared, and can't be made exclusive because another one is shared too; storage
        thread.
        """
        files, path = self.files, saved.path
        if fd is None or saved.mode is not Mode.EXCLUSIVE or files.lock(fd, saved.mode, path) is None:
            return None
        if files.lock(fd, Mode.SHARED, path) is not None:
            return None
        held = HeldFile(self, fd, path, pool, Mode.SHARED, create=saved.create, disk=disk)
        held.weaker = "its lock is shared, not exclusive: somebody else has a shared lock on it too"
        return held

    def lock_file(
        self, fd: int, path: str, pool: str, mode: Mode, creation: Creation, disk: str
    ) -> HeldFile | HeldElsewhere | Stale | IoFailed:
        """Lock an open file, or close it; storage thread."""
        files = self.files
        refused = files.lock(fd, mode, path)
        if refused is None:
            if creation is Creation.NONE or files.same_file(fd, path):
                return HeldFile(self, fd, path, pool, mode, create=creation is Creation.TEMPORARY, disk=disk)
            files.close(fd)
            return Stale()
        answer: HeldElsewhere | IoFailed
        if isinstance(refused, ForeignLock):
            answer = self.elsewhere(fd, refused, recorded=creation is not Creation.NONE)
        else:
            answer = refused
        files.close(fd)
        return answer

    # --- what it is worth ---

    def protection(self, path: str) -> tuple[Protection, str]:
        """Depends on the file system of the lock file; `cross_host` in the configuration overrides that."""
        if self._cross_host is not None:
            if self._cross_host:
                return Protection.CROSS_HOST, ""
            return Protection.SAME_HOST, f"backend '{self.name}' says cross_host = false"
        if self._mounts.changes != self._protections_of or len(self._protections) > PROTECTIONS_MAX:
            self._protections.clear()
            self._protections_of = self._mounts.changes
        directory = path.rpartition("/")[0]
        known = self._protections.get(directory)
        if known is None:
            known = self._protections[directory] = self._weigh(directory)
        return known

    def _weigh(self, directory: str) -> tuple[Protection, str]:
        mount, _ = self._mounts.locate(directory)
        if mount.type == "devtmpfs" or directory.startswith("/dev"):
            return (
                Protection.SAME_HOST,
                "locks on a device node stay on this host; use a backend with a shared 'directory'",
            )
        if mount.lock_warning:
            return mount.protection, f"{mount.point} is {mount.lock_warning}"
        if mount.protection < Protection.CROSS_HOST:
            return (
                mount.protection,
                f"{mount.point} ({mount.type}) is local to this host; put the lock directory on shared storage",
            )
        return mount.protection, ""

    # --- who is in the way ---

    def elsewhere(self, fd: int, foreign: ForeignLock, *, recorded: bool) -> HeldElsewhere:
        """Names the holder as far as the kernel and the owner record allow; storage thread.

        `recorded`: the file is a lock file. A disk's own content is its guest's, and must not be believed.
        """
        if foreign.pid is not None:
            return HeldElsewhere(
                (Holder(pid=foreign.pid, host=self._host, mode=foreign.mode, source="kernel"),)
            )
        holders = self.records.read(fd) if recorded else []
        holders = [h for h in holders if h.mode is foreign.mode] or holders
        return HeldElsewhere(tuple(holders) or (Holder(mode=foreign.mode, source="kernel"),))

    # --- what a lock file's record says of it ---

    def recognize(self, fd: int, path: str) -> Recognized | None:
        """See `KeepsDescriptors`. A lock file has a record of its owner; a disk's content is its guest's."""
        directory, _, name = path.rpartition("/")
        if not self.directory:
            noted = NotedOwner(disk=path)
            return Recognized(resource=Resource("", path), create=False, noted=noted) if path else None
        if directory != self.directory:
            return None
        noted = self.records.owner(fd)
        return Recognized(resource=self._resource(name, noted), create=True, noted=noted)

    def _resource(self, name: str, noted: NotedOwner) -> Resource:
        """What a lock file is for: the disk in its record, or what that is, if the file's name is the hash of it."""
        if noted.disk and indirect_name(noted.disk) == name:
            return Resource("", noted.disk)
        strong = self._identities.strong(noted.disk) if noted.disk and self._identities is not None else ""
        identity = Resource(IDENTITY_LOCKSPACE, strong)
        if strong and indirect_name(str(identity)) == name:
            return identity
        return Resource(self.directory, name)

    async def left_files(self) -> list[LeftFile]:
        """See `KeepsDescriptors`: lists the lock directory, and reads each small file in it."""
        if not self.directory:
            return []
        pool = self.storage.pool(self.directory) or self.storage.pool_of_link(self.directory)
        return await self.storage.run(pool, self.directory, self._left_files, patient=True)

    def _left_files(self) -> list[LeftFile]:
        """Storage thread."""
        found = []
        for name in self.files.names(self.directory):
            path = f"{self.directory}/{name}"
            opened = self.files.open(path, create=False, follow=False)
            if isinstance(opened, IoFailed):
                continue
            ours = [h for h in self.records.read(opened.fd) if h.host == self._host and h.pid]
            self.files.close(opened.fd)
            if len(ours) == 1:
                noted = noted_by(ours[0])
                found.append(
                    LeftFile(
                        path=path,
                        key=opened.key,
                        resource=self._resource(name, noted),
                        mode=ours[0].mode or Mode.EXCLUSIVE,
                        noted=noted,
                    )
                )
        return found


def driver(name: str, table: Mapping[str, object], ports: BackendPorts) -> FileBackend:
    """Keys: `directory` (absolute path), `cross_host` (true: the operator vouches that locks reach other hosts)."""
    unknown_keys(table, ("directory", "cross_host"))
    directory = table.get("directory", "")
    if not isinstance(directory, str) or (directory and not directory.startswith("/")):
        raise ValueError('directory must be an absolute path, such as "/srv/locks"')
    cross_host = table.get("cross_host")
    if cross_host is not None and not isinstance(cross_host, bool):
        raise ValueError("cross_host must be true or false; leave it out to judge by the file system")
    return FileBackend(
        name,
        ports,
        directory=directory.rstrip("/") if len(directory) > 1 else directory,
        cross_host=cross_host,
    )

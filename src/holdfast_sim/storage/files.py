"""Files that hosts share, or one device with all leases on it: the kernel's part of `system.block_io.lease_files`.

    SharedDirectory    names and their files; a file is an extent of the device that no other file ever gets
    Volume             where a lockspace and its leases are: a directory, or a device
    SimulatedStorage   the `LeaseStorage` port of one process, over the paths of its machine
    OpenedPath         the `LeaseDisk` port

A name appears or disappears at one moment, between the issue of the request and its completion. A caller that gives up
gets a timeout, and the request still takes effect; a failed request may have taken effect or not. A file without a name
stays usable for processes that have it open. A directory can be unmounted under a running daemon: open files stay open,
and its path shows what is below the mount point.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.disk import OPEN_TIMEOUT_S
from holdfast.system.block_io.disk_file import DiskFacts
from holdfast.system.block_io.lease_files import MAKE_TIMEOUT_S, UNFINISHED_PREFIX
from holdfast.system.block_io.offload import Job
from holdfast_sim.event_loop import Process
from holdfast_sim.host.machine import Machine
from holdfast_sim.host.offload import SimulatedErrands
from holdfast_sim.storage.disk import NameRequest, Path, PathDisk, SharedDisk

T = TypeVar("T")
NEVER_S = 1e6
OnName = Callable[[str, "File", str], None]
"""(name, the file that got or lost it, the process that did it)"""


@dataclass(frozen=True)
class File:
    """An extent of a device; `number` is its inode, or that of the device's node."""

    number: int
    offset: int
    size: int | None


class SharedDirectory:
    """Names of one directory. The first file is at the start of the device."""

    def __init__(self, disk: SharedDisk, align_bytes: int) -> None:
        self.disk = disk
        self.names: dict[str, File] = {}
        self.on_linked: OnName = lambda *_: None
        self.on_unlinked: OnName = lambda *_: None
        self._align_bytes = align_bytes
        self._serial = 0

    def make(self, content: bytes) -> File:
        """A file without a name."""
        disk = self.disk
        file = File(self._serial, self._serial * self._align_bytes, len(content))
        self._serial += 1
        missing = file.offset + self._align_bytes - len(disk.content)
        disk.content.extend(bytes(max(0, missing)))
        disk.content[file.offset : file.offset + len(content)] = content
        return file

    def link(self, name: str, file: File, who: str) -> None:
        if name in self.names:
            raise FileExistsError(errno.EEXIST, "File exists")
        self.names[name] = file
        if not name.startswith(UNFINISHED_PREFIX):
            self.on_linked(name, file, who)

    def unlink(self, name: str, who: str) -> None:
        file = self.names.pop(name, None)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "No such file")
        if not name.startswith(UNFINISHED_PREFIX):
            self.on_unlinked(name, file, who)

    def find(self, name: str) -> File:
        if name not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file")
        return self.names[name]


@dataclass(frozen=True)
class Volume:
    """`root` is the directory's path, or the device's."""

    root: str
    disk: SharedDisk
    directory: SharedDirectory | None
    lockspace_path: str
    lease_hosts: int
    """The number of hosts that its leases are created for."""


class OpenedPath(PathDisk):
    """An open lease file or device: the `LeaseDisk` port."""

    def __init__(
        self, storage: SimulatedStorage, process: Process, path: Path, file: File, name: str
    ) -> None:
        super().__init__(process, path, file.offset, file.size)
        self._storage = storage
        self._name = name
        size = len(path.disk.content) if file.size is None else file.size
        self.facts = DiskFacts(
            path=name,
            direct=True,
            is_block_device=file.size is None,
            logical_sector_bytes=path.disk.sector_bytes if file.size is None else 0,
            size_bytes=size,
            file_system=path.disk.number,
            inode=file.number,
        )

    async def is_named(self) -> bool:
        found = await self._storage.identity_of(self._name)
        return found == (self.facts.file_system, self.facts.inode)

    def close(self) -> None:
        """Does nothing: pending requests belong to the kernel."""


PATIENCE = 0.5, 4.0
"""How many timeouts a caller waits for a whole offloaded job, which makes several requests."""


class SimulatedStorage(SimulatedErrands):
    """The `LeaseStorage` port of one process. A request hangs while its path does; only a reset cancels it."""

    def __init__(self, process: Process, machine: Machine, volumes: Mapping[str, Volume]) -> None:
        super().__init__(lambda: machine.world.random.uniform(*PATIENCE))
        self._process = process
        self._machine = machine
        self._volumes = volumes

    # --- the port ---

    async def open(
        self, path: str, *, writable: bool = True, job: Job | None = None
    ) -> OpenedPath | IoFailed:
        if not self._is_there(path):
            return IoFailed(errno.ENOENT)
        way, find = self._looked_up(path)
        file = await self._asked(way, (find,), OPEN_TIMEOUT_S)
        return file if isinstance(file, IoFailed) else OpenedPath(self, self._process, way, file, path)

    async def make(self, path: str, content: bytes, *, like: str, job: Job | None = None) -> IoFailed | None:
        directory = self._directory(os.path.dirname(path))
        name, who = os.path.basename(path), self._process.name
        temporary = ""

        def write() -> None:
            nonlocal temporary
            directory.find(os.path.basename(like))
            file = directory.make(content)
            temporary = f"{UNFINISHED_PREFIX}{file.number}"
            directory.link(temporary, file, who)

        def link() -> None:
            try:
                directory.link(name, directory.find(temporary), who)
            finally:
                directory.unlink(temporary, who)

        failed = await self._asked(self._way(directory.disk), (write, link), MAKE_TIMEOUT_S, changes=True)
        return failed if isinstance(failed, IoFailed) else None

    async def remove(self, facts: DiskFacts) -> IoFailed | None:
        place, name = os.path.split(facts.path)
        directory = self._directory(place)

        def unlink() -> None:
            if (directory.disk.number, directory.find(name).number) != (facts.file_system, facts.inode):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            directory.unlink(name, self._process.name)

        # This wait is never given up, as the port requires.
        failed = await self._asked(self._way(directory.disk), (unlink,), NEVER_S, changes=True)
        return failed if isinstance(failed, IoFailed) else None

    async def names(self, directory: str) -> list[str] | IoFailed:
        looked_at = self._directory(directory)
        return await self._asked(
            self._way(looked_at.disk), (lambda: sorted(looked_at.names),), OPEN_TIMEOUT_S
        )

    async def identity_of(self, path: str) -> tuple[int, int] | IoFailed:
        if not self._is_there(path):
            return IoFailed(errno.ENOENT)
        way, find = self._looked_up(path)
        file = await self._asked(way, (find,), OPEN_TIMEOUT_S)
        return file if isinstance(file, IoFailed) else (way.disk.number, file.number)

    # --- which file a path leads to at this moment ---

    def _is_there(self, path: str) -> bool:
        """Whether there is such a device or directory: a damaged journal may name another."""
        root = os.path.dirname(path)
        return path in self._volumes or root in self._volumes or root in self._machine.unmounted

    def _looked_up(self, path: str) -> tuple[Path, Callable[[], File]]:
        device = self._volumes.get(path)
        if device is not None and device.directory is None:
            return self._way(device.disk), lambda: File(0, 0, None)
        directory = self._directory(os.path.dirname(path))
        return self._way(directory.disk), lambda: directory.find(os.path.basename(path))

    def _directory(self, root: str) -> SharedDirectory:
        below = self._machine.unmounted.get(root)
        if below is not None:
            return below
        directory = self._volumes[root].directory
        assert directory is not None
        return directory

    def _way(self, disk: SharedDisk) -> Path:
        return self._machine.paths[disk.name]

    async def _asked(
        self, way: Path, steps: tuple[Callable[[], T], ...], timeout_s: float, *, changes: bool = False
    ) -> T | IoFailed:
        self._process.port("disk")
        request = NameRequest(self._process, -1, b"", steps=steps, only_looks=not changes)
        await PathDisk(self._process, way)._handed_over(request, way.ask, timeout_s)
        if not request.done:
            return IoFailed(errno.ETIMEDOUT)
        if request.failed or request.errno:
            return IoFailed(request.errno or errno.EIO)
        return request.result  # type: ignore[return-value]  # what the last step returned

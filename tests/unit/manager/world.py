"""A lock manager on the real file backend and a real directory, with simulated time and processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from holdfast.backends.base import Backend, BackendPorts
from holdfast.backends.file.backend import FileBackend
from holdfast.backends.lease_backend import LeaseBackend
from holdfast.backends.nop import NopBackend
from holdfast.manager.adoption import Recovery
from holdfast.manager.events import Events
from holdfast.manager.file_lockspaces import FileLockspaces
from holdfast.manager.hashed_names import Identify, nothing_known
from holdfast.manager.journal import Journal
from holdfast.manager.journal_kinds import Line
from holdfast.manager.journal_replay import SavedState
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.lost_locks import DeadHolder
from holdfast.manager.owners import Owner
from holdfast.manager.routing import Route, Routing, Rule
from holdfast.model import AcquireRequest, LockFailureAction, Mode, OwnerName, Protection, Resource
from holdfast.system.files.lockspace_files import LockspaceFiles
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.ofd_lock import FileKey, SystemLockFiles
from holdfast.system.files.proc_locks import refused_by
from holdfast.system.files.storage_executor import InlineStorage
from holdfast.system.libvirt.domains import DomainStatus
from holdfast.testing.fakes import (
    SimulatedAppendFile,
    SimulatedClock,
    SimulatedOpenFiles,
    SimulatedProcesses,
    settle,
)
from holdfast.testing.gated_backend import SlowBackend

T = TypeVar("T")
MOUNTS = MountTable()
"""One for all: it is only read, and each keeps a descriptor."""
HOST = "alpha"
BOOT = "boot-1"


class NoLibvirt:
    """A host without libvirt: nothing can be suspended by it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.started: list[str] = []
        self.starts = True
        self.marks: list[tuple[str, str]] = []
        self.suspends = False
        self.queries: list[str] = []
        self.replies = True
        self.answering = asyncio.Event()
        """Set: QEMU's main loop runs."""
        self.answering.set()

    async def suspend(self, uuid: str) -> bool:
        self.asked.append(uuid)
        return self.suspends

    async def answers(self, uuid: str) -> bool:
        self.queries.append(uuid)
        await self.answering.wait()
        return self.replies

    async def start(self, uuid: str) -> bool:
        self.started.append(uuid)
        return self.starts

    async def mark(self, uuid: str, reason: str) -> bool:
        self.marks.append((uuid, reason))
        return True


class World:
    """One daemon's manager; a second one on the same directory, processes and journal file is its successor."""

    def __init__(
        self,
        directory: Path,
        *,
        before: World | None = None,
        slow: bool = False,
        slow_open: bool = False,
        direct_at_once: bool = False,
        protection_min: Protection = Protection.NONE,
        owners_max: int = 100,
        on_lock_lost: LockFailureAction = LockFailureAction.POWEROFF,
        dead_holder: DeadHolder = lambda _, __: None,
        status: DomainStatus | None = None,
        acquire_wait_s: float = 0.0,
        lends: bool = False,
        leases: bool = False,
        start_min: Protection = Protection.NONE,
        identify: Identify = nothing_known,
        writers: Backend | None = None,
        guard: LeaseBackend | None = None,
    ) -> None:
        """`writers`: the backend of disks below /writers; `guard`: the one of their guard leases."""
        self.directory = directory
        self.clock: SimulatedClock = before.clock if before else SimulatedClock()
        self.processes: SimulatedProcesses = before.processes if before else SimulatedProcesses()
        self.open_files: SimulatedOpenFiles = before.open_files if before else SimulatedOpenFiles()
        self.file: SimulatedAppendFile = before.file if before else SimulatedAppendFile()
        ports = BackendPorts(
            files=SystemLockFiles(), storage=InlineStorage(), mounts=MOUNTS, clock=self.clock, host=HOST
        )
        self.locks_directory = directory / "locks"
        self.locks_directory.mkdir(exist_ok=True)
        plain: dict[str, Backend] = {
            "file": FileBackend("file", ports),
            "shared": FileBackend("shared", ports, directory=str(self.locks_directory)),
            "nop": NopBackend("nop"),
        }
        self.slow = SlowBackend(plain["file"], slow_open=slow_open)
        self.slow_shared = SlowBackend(plain["shared"], slow_open=slow_open)
        self.backends: dict[str, Backend] = dict(plain)
        if slow:
            self.backends.update(shared=self.slow_shared)
            if not direct_at_once:
                self.backends.update(file=self.slow)
        route = {n: Route(b, protection_min) for n, b in self.backends.items()}
        rules = [
            Rule("*/indirect/*", route["shared"], of_lockspace=False),
            Rule("/nop/*", route["nop"], of_lockspace=False),
        ]
        if leases:
            fenced = FileBackend("leases", ports)
            fenced.capabilities = replace(fenced.capabilities, fenced=True)
            self.backends["leases"] = fenced
            rules.append(Rule("*/leased/*", Route(fenced, protection_min, start_min), of_lockspace=False))
        if writers is not None:
            self.backends[writers.name] = writers
            by_guard = Route(writers, protection_min, by_identity=guard is not None, guard=guard)
            rules.append(Rule("/writers/*", by_guard, of_lockspace=False))
        if guard is not None:
            self.backends[guard.name] = guard
        self.kept: dict[int, int] = {}
        """Descriptors in the descriptor store, by lock."""
        self.audit: list[str] = []
        self.events = Events(self.clock.wall)
        self.journal = Journal(self.file, boot=BOOT, host=HOST, snapshot=self._snapshot)
        self.manager = LockManager(
            routing=Routing(rules, route["file"], self.backends),
            lockspaces=FileLockspaces(files=LockspaceFiles(), storage=InlineStorage(), journal=self.journal),
            journal=self.journal,
            processes=self.processes,
            clock=self.clock,
            events=self.events,
            host=HOST,
            owners_max=owners_max,
            open_files=self.open_files,
            disk_key=self._disk_key,
            audit=self.audit.append,
            keep=self._keep,
            dead_holder=dead_holder,
            domains=status,
            acquire_wait_s=acquire_wait_s,
            lends=lends,
            identify=identify,
        )
        self.known: list[HostLock] = []
        """Locks that are held again, or were attributed to an owner."""
        self.manager.unknown.on_known = self.manager.lost.on_regained = self.known.append
        self.libvirt = NoLibvirt()
        self.recovery = Recovery(
            self.manager,
            processes=self.processes,
            clock=self.clock,
            domains=self.libvirt,
            on_lock_lost=on_lock_lost,
        )
        self.manager.departures.on_refused = self.recovery.act
        if before is None:
            self.journal.compact()

    @staticmethod
    async def _disk_key(path: str) -> FileKey | None:
        return LockspaceFiles().key(path)

    def _snapshot(self) -> list[Line]:
        return self.manager.journal_lines()

    def _keep(self, lock_id: int, descriptor: int | None) -> None:
        if descriptor is None:
            self.kept.pop(lock_id, None)
        else:
            self.kept[lock_id] = descriptor

    # --- what tests do ---

    def disk(self, name: str = "disk.img") -> str:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return str(path)

    def owner(self, pid: int, name: str = "", *, start: bool = True, hidden: bool = False) -> Owner:
        """A registered owner; its process is started unless told otherwise."""
        if start and not self.processes.is_running(pid):
            self.processes.start(pid, hidden=hidden)
        return self.manager.register(pid, OwnerName(name or f"vm{pid}", f"uuid-{pid}", pid))

    def start(self, awaitable: Awaitable[T]) -> asyncio.Task[T]:
        async def run() -> T:
            return await awaitable

        return asyncio.get_running_loop().create_task(run())

    def crash(self) -> None:
        """The daemon is killed: its kernel locks go, nothing else happens."""
        self.manager.closing = True
        for lock in self.manager.table:
            if lock.held is not None:
                lock.held.forget()
        for owner in self.manager.owners:
            if owner.process is not None:
                owner.process.close()

    def saved(self) -> SavedState:
        return self.journal.load()


def locked(path: str) -> bool:
    return refused_by(path) is not None


def want(
    path: str, mode: Mode = Mode.EXCLUSIVE, *, lockspace: str = "", create: bool = False
) -> AcquireRequest:
    return AcquireRequest(Resource(lockspace, path), mode, create)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene on an event loop of its own; what still waits for simulated time at its end is dropped."""

    async def go() -> None:
        await scene()
        await settle()

    asyncio.run(go())

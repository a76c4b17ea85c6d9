"""The daemon: the object graph, and its life from start to end.

    start     (`holdfastd` has claimed the run directory and found inherited descriptors)
              journal ─ adopt owners and locks ─ listen ─ READY
    SIGUSR1   (also SIGHUP) check that the program on disk can start ─ exec it with everything open
    SIGTERM   stop listening, leave locks and VMs as they are: the journal and the descriptor store keep them

This is the only module that knows every layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import grp
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from holdfast import __version__
from holdfast.backend_wiring import build_routing
from holdfast.backends.base import BackendPorts
from holdfast.backends.paxos import PaxosBackend
from holdfast.config import Config
from holdfast.control_api import BackendInfo, StatusInfo
from holdfast.frontends.control import ControlFrontend
from holdfast.frontends.listener import Listener
from holdfast.frontends.virtlockd import VirtlockdFrontend
from holdfast.handover import Handover, lock_name
from holdfast.lease_wiring import WATCHDOG_FD_NAME, LeaseHost, LeaseSpaceCalls, machine_of
from holdfast.manager import events as ev
from holdfast.manager.events import Events
from holdfast.manager.found_descriptors import FoundDescriptors
from holdfast.manager.host_fencing import HostFencer
from holdfast.manager.inspection import Inspection
from holdfast.manager.journal import Journal
from holdfast.manager.lease_breaker import LeaseBreaker
from holdfast.manager.lease_collection import LeaseCollector
from holdfast.manager.lease_recovery import LeaseRecovery, Loss
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lockspaces import Lockspaces
from holdfast.manager.recovery import Recovery
from holdfast.model import Instant, LockFailureAction
from holdfast.supervision.host_terms import HostIdentity, encode_term
from holdfast.supervision.keeper import LockspaceKeeper
from holdfast.system import descriptors as fds
from holdfast.system import tasks
from holdfast.system.append_file import SystemAppendFile
from holdfast.system.blocking import LanedStorage
from holdfast.system.clock import SystemClock
from holdfast.system.commands import CommandProcess
from holdfast.system.domain_control import VirshDomainControl
from holdfast.system.domain_status import LibvirtStatusFiles, status_directory
from holdfast.system.file_lock import SystemLockFiles
from holdfast.system.lockspace_files import LockspaceFiles
from holdfast.system.memory_file import append_line
from holdfast.system.mounts import MountTable
from holdfast.system.open_files import SystemOpenFiles
from holdfast.system.process import SystemProcesses, boot_id, host_name, machine_ids
from holdfast.system.readiness import Readiness
from holdfast.system.realtime import lock_memory

log = logging.getLogger("holdfast")

VIRTLOCKD_SOCKET_MODE = 0o700
"""As virtlockd's own (virtlockd-rpc.md 1)."""
GC_THRESHOLD = 20_000
"""Objects more before the collector looks for cycles: requests make many objects and hardly any cycle."""
IN_FLIGHT_WAIT_S = 2.0
"""How long a re-exec or a stop waits for requests that wait for storage; what is left is asked again or undone."""
CHECK_TIMEOUT_S = 60.0
"""For the program on disk to say whether it can start."""
BREAKS_FILE = "broken-leases.log"
"""Every order to break a lease: who, what, on whose word, and what came of it."""
SETTLED_FILE = "settled-locks.log"
"""Every unknown lock that an operator settled: who said so, and which lock."""
EXIT_SOCKET = 6


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class Daemon:
    """The object graph of one running daemon."""

    def __init__(self, config: Config, inherited: fds.Inherited, run_dir_lock: int) -> None:
        self.config = config
        self._inherited = inherited
        self._run_dir_lock = run_dir_lock
        self._loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[None] = self._loop.create_future()
        self._passed_sockets = fds.listening(fd for _, fd in inherited.named)
        self._self_bound: list[str] = []
        self._started_wall_s = time.time()
        self._reloading = False

        self.notifier = fds.Notifier(os.environ)
        self._readiness = Readiness(self._loop)
        clock, processes, mounts = SystemClock(), SystemProcesses(self._readiness), MountTable()
        storage = LanedStorage(mounts, timeout_s=config.limits.storage_timeout_s, now=time.monotonic)
        self._storage = storage
        host = host_name()
        self._host = host
        self._boot = boot_id()
        self.leases = LeaseHost(
            clock=clock,
            identity=HostIdentity(host, self._boot, machine_of(host, *machine_ids())),
            copy_dirs=(config.state_dir, config.run_dir),
            in_use=lambda backends: self.lease_recovery.in_use(set(backends)),
            keep=self.notifier.store,
            watchdog_fd=inherited.take_watchdog(WATCHDOG_FD_NAME),
        )
        ports = BackendPorts(
            files=SystemLockFiles(),
            storage=storage,
            mounts=mounts,
            clock=clock,
            host=host,
            leases=self.leases.ports(),
        )
        self.routing = build_routing(config, ports)
        self.journal = Journal(
            SystemAppendFile(config.journal_path),
            boot=self._boot,
            host=host,
            snapshot=lambda: self.manager.journal_lines(),  # noqa: PLW0108 - there is no manager yet
        )
        self.events = Events(time.time)
        files = LockspaceFiles()
        status_files = LibvirtStatusFiles(status_directory(os.environ, os.geteuid()))
        self.manager = LockManager(
            routing=self.routing,
            lockspaces=Lockspaces(files=files, storage=storage, journal=self.journal),
            journal=self.journal,
            processes=processes,
            clock=clock,
            events=self.events,
            host=host,
            owners_max=config.limits.owners_max,
            open_files=SystemOpenFiles(),
            disk_key=lambda path: storage.call(path, lambda: files.key(path)),
            audit=lambda line: append_line(f"{config.state_dir}/{SETTLED_FILE}", line),
            domains=status_files,
            keep=self._keep_lock if self.notifier.stores else None,
        )
        self.commands = CommandProcess()
        domains = VirshDomainControl(config.recovery.libvirt_uri, self.commands)
        self.lease_recovery = LeaseRecovery(
            self.manager,
            clock=clock,
            domains=domains,
            status=status_files,
            actions={
                n: b.on_lockfailure for n, b in self.routing.backends.items() if isinstance(b, PaxosBackend)
            },
        )
        self.collector = LeaseCollector(self.manager)
        self.leases.on_joined = self._lockspace_joined
        self.leases.on_lost = self._lockspace_lost
        self.recovery = Recovery(
            self.manager,
            processes=processes,
            clock=clock,
            domains=domains,
            on_lock_lost=LockFailureAction(config.recovery.on_lock_lost),
        )
        self.virtlockd = VirtlockdFrontend(
            self.manager,
            uid=os.geteuid(),
            readiness=self._readiness,
            keep=self.notifier.store if self.notifier.stores else None,
        )
        breaker = LeaseBreaker(
            self.manager,
            clock=clock,
            record=lambda line: append_line(f"{config.state_dir}/{BREAKS_FILE}", line),
        )
        inspection = Inspection(self.manager, files=files, storage=storage, host=host)
        self.control = ControlFrontend(
            self.manager,
            inspection,
            self.status,
            lease_spaces=LeaseSpaceCalls(
                self.leases,
                lambda backends: self.lease_recovery.count(set(backends)),
                clock.now,
                self.collector,
                breaker,
                HostFencer(self.manager, breaker),
            ),
            uid=os.geteuid(),
            group=config.control.group,
        )
        self.listeners: dict[str, Listener] = {}
        self._handover = Handover(
            manager=self.manager,
            recovery=self.recovery,
            journal=self.journal,
            events=self.events,
            virtlockd=self.virtlockd,
            store=self.notifier.store,
            boot=self._boot,
            leases=self.leases,
            collector=self.collector,
            found=FoundDescriptors(self.manager, storage=storage),
        )

    def _lockspace_joined(self, keeper: LockspaceKeeper) -> None:
        if keeper.incarnation is not None:
            self.manager.remember_incarnation(keeper.name, encode_term(keeper.incarnation))
        self.lease_recovery.joined(keeper.name)

    def _lockspace_lost(self, keeper: LockspaceKeeper, reason: str) -> None:
        self.lease_recovery.lost(
            Loss(
                lockspace=keeper.name,
                reason=reason,
                backends=self.leases.backends_of(keeper),
                timing=keeper.timing,
                lost_at=Instant(keeper.lost_at or 0.0),
                renewed_at=None if keeper.renewed_at is None else Instant(keeper.renewed_at),
                on_all_gone=keeper.users_are_gone,
            )
        )

    def _keep_lock(self, lock_id: int, fd: int | None) -> None:
        self.notifier.store(lock_name(lock_id), fd)

    # --- start ---

    async def run(self) -> None:
        """Serve until told to stop."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._loop.add_signal_handler(number, self._stop_now)
        for number in (signal.SIGUSR1, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, fds.HELD_SIGNALS)
        if self.leases.keepers:
            await self.commands.start()  # now: later its start would wait for storage that hangs
        try:
            self._open_listeners()
            await self._handover.adopt(
                self._inherited, self.journal.load(), journal_path=self.config.journal_path
            )
        except BaseException:
            self._close_listeners()
            raise
        self.journal.compact()
        for listener in self.listeners.values():
            listener.start()
        for keeper in self.leases.keepers:
            if keeper.gone_on:
                # Only now: every lock that is to be held again stands in the table.
                self.collector.account_for_left_behind(self.leases.backends_of(keeper))
        if self.leases.keepers:
            lock_memory()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        self._announce()
        await self._stop
        await self._shut_down()

    def _announce(self) -> None:
        again = self._inherited.reexec is not None
        held = len(self.manager.table)
        text = f"serving {self.config.virtlockd.socket}; {len(self.manager.owners)} owners, {held} locks"
        self.events.emit(
            ev.DAEMON_RESTARTED if again or held else ev.DAEMON_STARTED, pid=os.getpid(), detail=text
        )
        self.notifier.ready(text)
        log.info("holdfastd %s %s %s", __version__, "goes on" if again else "is ready", text)

    def _open_listeners(self) -> None:
        config = self.config
        gid = grp.getgrnam(config.control.group).gr_gid if config.control.group else None
        self.virtlockd.listener = self._listener(
            "virtlockd",
            config.virtlockd.socket,
            lambda: self._bind(config.virtlockd.socket, VIRTLOCKD_SOCKET_MODE, None),
            config.virtlockd.max_clients,
            self.virtlockd,
        )
        self.control.listener = self._listener(
            "control",
            config.control_socket,
            lambda: self._bind(config.control_socket, 0o600 if gid is None else 0o660, gid),
            config.control.max_clients,
            self.control,
        )

    def _listener(
        self,
        name: str,
        path: str,
        bind: Callable[[], socket.socket],
        clients_max: int,
        frontend: VirtlockdFrontend | ControlFrontend,
    ) -> Listener:
        reexec = self._inherited.reexec
        if reexec is not None and name in reexec.listeners:
            sock = socket.socket(fileno=reexec.listeners[name])
            self._self_bound = list(reexec.self_bound)
        elif path in self._passed_sockets:
            sock = socket.socket(fileno=self._passed_sockets[path])
        else:
            sock = bind()
        self.listeners[name] = Listener(
            name,
            sock,
            clients_max=clients_max,
            cap_key=f"{name}.max_clients",
            readiness=self._readiness,
            admit=frontend.admit,
            serve=frontend.serve,
        )
        return self.listeners[name]

    def _bind(self, path: str, mode: int, gid: int | None) -> socket.socket:
        other = fds.socket_in_use(path)
        if other is not None:
            raise StartError(
                f"{path}: {_program(other)} already listens there; stop it first "
                "(for virtlockd: systemctl disable --now virtlockd.socket virtlockd-admin.socket virtlockd)",
                EXIT_SOCKET,
            )
        try:
            sock = fds.bind_socket(path, mode=mode, gid=gid)
        except OSError as e:
            raise StartError(f"{path}: can't listen there: {e.strerror}", EXIT_SOCKET) from e
        self._self_bound.append(path)
        return sock

    # --- status ---

    def status(self) -> StatusInfo:
        config, manager = self.config, self.manager
        return StatusInfo(
            version=__version__,
            host=self._host,
            pid=os.getpid(),
            started=self._started_wall_s,
            owners=len(manager.owners),
            locks=len(manager.table),
            locks_lost=sum(1 for lock in manager.table if lock.held is None),
            connections=self.listeners["virtlockd"].clients,
            connections_max=config.virtlockd.max_clients,
            lockspaces=manager.lockspaces.known(),
            backends=[
                BackendInfo(
                    name=name,
                    driver=str(config.backend[name].get("driver", "")),
                    capabilities=[
                        field
                        for field in backend.capabilities.__dataclass_fields__
                        if getattr(backend.capabilities, field)
                    ],
                )
                for name, backend in self.routing.backends.items()
            ],
            default_backend=config.default_backend,
            virtlockd_socket=config.virtlockd.socket,
            journal=self.journal.failing or "ok",
            descriptor_store=self.notifier.stores,
            storage_waiting=[f"{name}: {n} calls" for name, n in self._storage.waiting.items()],
            config_files=list(config.sources),
            last_event=self.events.last,
        )

    # --- end ---

    def _stop_now(self) -> None:
        tasks.resolve(self._stop, None)

    async def _shut_down(self) -> None:
        """Leave: locks end with this process (unless a descriptor store keeps them), VMs and the journal stay."""
        self.notifier.stopping()
        self.events.emit(ev.DAEMON_STOPPING, pid=os.getpid())
        log.info("stopping; %d locks stay in the journal, no VM is touched", len(self.manager.table))
        self.manager.closing = True
        self._close_listeners()
        self.control.close_all()
        # What an owner that has just ended rested on is being given back: that needs the lockspace.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(tasks.all_ended(), IN_FLIGHT_WAIT_S)
        await self.leases.stop()
        self.journal.compact()

    def _close_listeners(self) -> None:
        for listener in self.listeners.values():
            listener.close()
        for path in self._self_bound:
            with contextlib.suppress(OSError):
                os.unlink(path)

    # --- re-exec ---

    def _reload(self) -> None:
        if not self._reloading:
            self._reloading = True
            tasks.start(self._reexec())

    async def _reexec(self) -> None:
        """Become the program on disk, if it can start with the configuration on disk; else go on as we are."""
        try:
            self.notifier.reloading(int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6))
            if why := self.leases.why_not_reexec():
                log.error("reload refused: %s", why)
                self.notifier.ready("reload refused, see the log")
                return
            if not await self._next_can_start():
                self.notifier.ready("reload refused, see the log")
                return
            for connection in list(self.virtlockd.connections):
                connection.hold()
            deadline = time.monotonic() + IN_FLIGHT_WAIT_S
            while any(c.busy for c in self.virtlockd.connections) and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            log.info("re-executing with %d locks", len(self.manager.table))
            self.control.close_all()
            try:
                state = self._handover.state(
                    {name: each.socket.fileno() for name, each in self.listeners.items()},
                    self._self_bound,
                    self._run_dir_lock,
                )
                fds.exec_with(state, sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ)
            except OSError as e:
                log.error("re-exec failed: %s; going on as before", e)
            for connection in list(self.virtlockd.connections):
                connection.go_on()
            self.notifier.ready("reload failed, see the log")
        finally:
            self._reloading = False

    async def _next_can_start(self) -> bool:
        """A dry run of what would be executed: a broken upgrade or configuration must not cost the locks."""
        command = [sys.executable, *sys.orig_argv[1:], "--check-config"]
        ended = await self.commands.run(command, CHECK_TIMEOUT_S)
        if ended.code != 0:
            log.error("reload refused: the program on disk can't start: %s", ended.told or "it says nothing")
        return ended.code == 0


def _program(pid: int) -> str:
    name = SystemProcesses().program(pid) if pid > 0 else ""
    return f"{name or 'another program'} (pid {pid})" if pid > 0 else "another program"

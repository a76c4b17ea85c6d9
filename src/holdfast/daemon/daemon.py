"""The daemon: sockets, signals and exec around the object graph from `build`, from start to end.

    start     (`holdfastd` has claimed the run directory and found inherited descriptors)
              journal ─ adopt owners and locks ─ listen ─ READY
    SIGUSR1   (also SIGHUP, `holdfast reload`) check that the program on disk may take over ─ exec it with everything open
    SIGTERM   (also SIGINT, and SIGQUIT for a restart) put off while storage hangs that would keep this process from ending,
              and VMs need locks on other storage; then
              stop listening, keep locks and VMs as they are, by journal and descriptor store

This is the only module that knows every layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import grp
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

import msgspec

from holdfast import __version__
from holdfast.config import READ_GROUP_DEFAULT, Config
from holdfast.control.api import BackendInfo, MeasuresInfo, StatusInfo
from holdfast.daemon import flight_notes, lifecycle
from holdfast.daemon.build import build
from holdfast.daemon.kept_clients import KeptClients
from holdfast.daemon.kept_config import Start
from holdfast.daemon.measures import LoopDelay, measures
from holdfast.daemon.reload import ConfigurationInForce, NextProgram, held_needs
from holdfast.daemon.sanlock_socket import AREAS, SanlockSocket
from holdfast.daemon.system_ports import pooled_storage, system_ports, users_lease_storage
from holdfast.daemon.volume_calls import VolumeCalls
from holdfast.flight.recorder import FlightRecorder
from holdfast.frontends.listener import Listener, Peer
from holdfast.frontends.varlink import USER_LOCKS_SHARE, ControlFrontend
from holdfast.frontends.varlink_clients import READERS_MAX, ReadFrontend
from holdfast.frontends.varlink_read import ReadInterface
from holdfast.manager import events as ev
from holdfast.manager.hook_operations import HookOperations
from holdfast.manager.hook_policy import HookPolicy
from holdfast.manager.identity_locks import disks
from holdfast.manager.maintenance import MAINTENANCE_FILE, Maintenance
from holdfast.supervision.host_identity import decode_term
from holdfast.supervision.incarnation_copies import copy_path
from holdfast.supervision.lockspace_supervisor import LockspaceSupervisor
from holdfast.system import eager_tasks
from holdfast.system.block_io.request_gate import GATE, listed
from holdfast.system.epoll import Readiness
from holdfast.system.files.daemon_lock import DaemonLocks
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.state_file import StateFile
from holdfast.system.files.storage_executor import gate_name
from holdfast.system.host import descriptors as fds
from holdfast.system.host.commands import CommandProcess
from holdfast.system.host.process import SystemProcesses
from holdfast.system.host.realtime import lock_memory
from holdfast.system.logs.log_queue import log_level, set_log_level
from holdfast.system.logs.recent_lines import RecentLines

log = logging.getLogger("holdfast")

VIRTLOCKD_SOCKET_MODE = 0o700
"""As virtlockd's own (virtlockd-rpc.md 1)."""
RESTART_SIGNAL = signal.SIGQUIT
"""RestartKillSignal= of our units: a stop of which the next start is already ordered (ADR 0186)."""
GC_THRESHOLD = 20_000
"""New objects before the garbage collector searches for cycles: requests make many objects and hardly any cycle."""
PUT_OFF_LOOK_S = 1.0
STOP_SAID_AGAIN_S = 30.0
"""A stop that is put off says each `PUT_OFF_LOOK_S` that it needs so much longer; a daemon that is dead says nothing."""
STATUS_CHARS_MAX = 2000
"""Length of the text for `systemctl status`: the first reasons of a refusal."""
SIGNS_OF_LIFE = 4
"""So many within the time in which the service manager wants one: a busy host may be late with three."""
READERS = "readers"
"""The name of the read-only socket, also for the next program."""
EXIT_ERROR = 1
EXIT_SOCKET = 71
"""EX_OSERR of <sysexits.h>; the codes of the holdfast command (cli/exits) mean other things."""


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class Daemon:
    """One running daemon."""

    def __init__(
        self,
        start: Start,
        inherited: fds.Inherited,
        own: DaemonLocks,
        *,
        recorder: FlightRecorder,
        last_end: str,
    ) -> None:
        """`last_end`: how this host's last boot ended, by the flight recorder; empty if it does not say."""
        config = start.config
        self._recorder = recorder
        self.config = config
        self._inherited = inherited
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[None] = self._loop.create_future()
        self._passed_sockets = fds.listening(fd for _, fd in inherited.named)
        self._self_bound: list[str] = []
        self._started_wall_s = time.time()
        self._reloading = False
        self._stop_asked = False
        self._restarts = False

        self.notifier = fds.Notifier(os.environ)
        self._readiness = Readiness(self._loop)
        mounts = MountTable()
        self._storage = pooled_storage(config, mounts)
        self.commands = CommandProcess()
        ports = system_ports(
            config,
            readiness=self._readiness,
            mounts=mounts,
            storage=self._storage,
            store=self.notifier,
            commands=self.commands,
            predecessors=own.predecessors,
            last_end=last_end,
        )
        self._host = ports.identity.node
        before = start.before(ports.identity.boot)
        self.parts = build(config, ports, inherited, before)
        self.manager = self.parts.manager
        self.leases = self.parts.leases
        self.events = self.parts.events
        self.loop_delay = LoopDelay(self._loop)
        flight_notes.of_events(recorder, self.events)
        self.virtlockd = self.parts.virtlockd
        self.maintenance = Maintenance(
            StateFile(f"{config.state_dir}/{MAINTENANCE_FILE}"), self.events, ports.clock.wall
        )
        self.virtlockd.maintenance = self.maintenance
        self.control = ControlFrontend(
            self.manager,
            self.parts.inspection,
            self.status,
            self.measures,
            lease_spaces=self.parts.lease_calls,
            reload=self.reload,
            uid=ports.uid,
            group=config.control.group,
            clients_max=config.control.max_clients,
            idle_timeout_s=config.control.idle_timeout_s,
            storage=self._storage,
            user_locks_max=resource.getrlimit(resource.RLIMIT_NOFILE)[0] // USER_LOCKS_SHARE,
            hook_operations=HookOperations(
                self.manager,
                self.parts.inspection,
                ports.clock,
                mounts=ports.mounts,
                policy=HookPolicy(
                    (each.match, each.prepare or "", each.migrate or "") for each in config.hook_actions
                ),
                volumes=self.parts.volumes,
            ),
            maintenance=self.maintenance,
            set_log_level=set_log_level,
            volume_calls=VolumeCalls(self.parts.volumes),
        )
        self.readers = ReadFrontend(
            ReadInterface(
                self.events, self.parts.inspection, self.status, self.measures, self.parts.lease_calls
            ),
            uid=ports.uid,
            groups=[config.control.group, read_group(config)],
            idle_timeout_s=config.control.idle_timeout_s,
        )
        kept = KeptClients(inherited, ports.store, served=bool(config.sanlock.socket))
        self.sanlock = (
            SanlockSocket(
                self.parts,
                lockspaces=self.parts.clients,
                backends=self.parts.client_backends,
                kept=kept,
                commands=self.commands,
                areas=users_lease_storage(AREAS, config.sanlock.user) if config.sanlock.user else None,
                version=config.sanlock.version,
                io_timeout_s=config.sanlock.io_timeout_s,
                watchdog=self.parts.clients.watchdog,
                log_text=RecentLines.of_root().text,
                end=self._ask_to_stop,
            )
            if config.sanlock.socket
            else None
        )
        self.listeners: dict[str, Listener] = {}
        held = partial(held_needs, self.manager, self.leases)
        self._in_force = ConfigurationInForce(config, file=start.file, text=before.configuration, held=held)
        self._in_force.keep()  # before any lock is granted: the next start may need it
        self._next = NextProgram(
            commands=self.commands, file=start.file, in_force=config, text=before.configuration, held=held
        )

    # --- start ---

    async def run(self) -> None:
        """Serve until a stop is requested."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._ask_to_stop)
        self._loop.add_signal_handler(RESTART_SIGNAL, self._ask_to_stop, True)
        for number in (signal.SIGUSR1, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, fds.HELD_SIGNALS)
        gc.set_threshold(GC_THRESHOLD)
        if self.leases.supervisors or self.sanlock is not None or self.parts.volumes is not None:
            await self.commands.start()  # now: later its start would wait for storage that hangs
        try:
            self._open_listeners()
            if self._in_force.failing:
                eager_tasks.start(self._in_force.keep_trying(self.parts.ports.clock))
            for supervisor in self.leases.supervisors:
                if why := copied_from(supervisor):
                    raise StartError(why, EXIT_ERROR)
            if self.sanlock is not None:
                self.sanlock.admit_early()
            await lifecycle.adopt(self.parts)
        except BaseException:
            self._close_listeners()
            raise
        if self.sanlock is not None:
            self.sanlock.restore()
        lifecycle.begin(self.parts)
        self._inherited.taken()
        for listener in self.listeners.values():
            listener.start()
        lifecycle.account_for_left_behind(self.parts)
        if self.sanlock is not None:
            self.sanlock.serve_adopted()
        if self.leases.supervisors or self.sanlock is not None:
            lock_memory()
        gc.collect()
        gc.freeze()
        self._announce()
        if self.notifier.watched_s is not None:
            self._show_life(self.notifier.watched_s / SIGNS_OF_LIFE)
        flight_notes.of_life(self._recorder, self.leases, self._loop)
        self.loop_delay.begin()
        await self._stop
        await self._shut_down()

    def _show_life(self, every_s: float) -> None:
        """Send watchdog messages to systemd by a timer of the loop, so that a blocked loop sends none."""
        self.notifier.alive()
        self._loop.call_later(every_s, self._show_life, every_s)

    def _announce(self) -> None:
        again = self._inherited.reexec is not None
        held = sum(1 for _ in disks(self.manager.table))
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
            self.virtlockd.admit,
            self.virtlockd.serve,
        )
        self.control.listener = self._listener(
            "control",
            config.control_socket,
            lambda: self._bind(config.control_socket, 0o600 if gid is None else 0o660, gid),
            config.control.max_clients,
            self.control.admit,
            self.control.serve,
        )
        if self.sanlock is not None:
            table = config.sanlock
            of_clients = grp.getgrnam(table.group).gr_gid if table.group else None
            self.sanlock.frontend.listener = self._listener(
                "sanlock",
                table.socket,
                lambda: self._bind(table.socket, 0o600 if of_clients is None else 0o660, of_clients),
                table.max_clients,
                lambda peer, sock: "",  # the socket's mode says who may connect
                self.sanlock.frontend.serve,
            )
        # A socket that was passed on, or is systemd's, was made for the earlier configuration, or for root only.
        try:
            fds.open_socket_to(config.control_socket, gid)
        except OSError as e:
            log.error("%s can't be opened to its group: %s", config.control_socket, e.strerror)

        self._open_read_only()

    def _open_read_only(self) -> None:
        """Nobody needs it to start a VM, so nothing about it keeps this daemon from starting."""
        path = self.config.read_socket
        group = read_group(self.config)
        gid = grp.getgrnam(group).gr_gid if group else None
        try:
            self.readers.listener = self._listener(
                READERS,
                path,
                lambda: self._bind(path, 0o600 if gid is None else 0o660, gid),
                READERS_MAX,
                self.readers.admit,
                self.readers.serve,
            )
            fds.open_socket_to(path, gid)
        except (StartError, OSError) as e:
            log.error("no read-only socket, which holdfast-web asks: %s", e)

    def _listener(
        self,
        name: str,
        path: str,
        bind: Callable[[], socket.socket],
        clients_max: int,
        admit: Callable[[Peer, socket.SocketType], str],
        serve: Callable[[socket.SocketType, Peer], None],
    ) -> Listener:
        reexec = self._inherited.reexec
        if reexec is not None and name in reexec.listeners:
            sock = socket.socket(fileno=reexec.listeners[name])
            self._self_bound = list(dict.fromkeys((*self._self_bound, *reexec.self_bound)))
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
            admit=admit,
            serve=serve,
        )
        return self.listeners[name]

    def _bind(self, path: str, mode: int, gid: int | None) -> socket.socket:
        other = fds.socket_in_use(path)
        dead = self._own.predecessors
        if other is not None and other not in dead.pids and not (other == 0 and dead.listens_at(path)):
            raise StartError(
                f"{path}: {_program(other)} already listens there; stop it first "
                "('holdfast doctor' says how: stopping a virtlockd kills the VMs that hold locks in it)",
                EXIT_SOCKET,
            )
        try:
            sock = fds.bind_socket(path, mode=mode, gid=gid)
        except OSError as e:
            raise StartError(f"{path}: can't listen there: {e.strerror}", EXIT_SOCKET) from e
        self._self_bound.append(path)
        return sock

    # --- status ---

    def measures(self) -> MeasuresInfo:
        return measures(self.events, self.loop_delay, self.leases, self.parts.ports.clock.now())

    def status(self) -> StatusInfo:
        config, manager = self.config, self.manager
        ordered = self.maintenance.ordered
        return StatusInfo(
            version=__version__,
            host=self._host,
            pid=os.getpid(),
            started=self._started_wall_s,
            owners=len(manager.owners),
            locks=sum(1 for _ in disks(manager.table)),
            locks_lost=sum(1 for lock in manager.table if manager.why_lost(lock) and not lock.stands_for),
            locks_unknown=len(manager.unknown.locks),
            locks_departing=len(manager.departures),
            doubt=manager.doubt if manager.unknown.locks else "",
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
                for name, backend in self.parts.routing.backends.items()
                if name in config.backend
            ],
            default_backend=config.default_backend,
            virtlockd_socket=config.virtlockd.socket,
            journal=self.parts.journal.failing or "ok",
            descriptor_store=self.notifier.stores,
            storage_waiting=[
                *(f"{name}: {n} calls" for name, n in self._storage.waiting.items()),
                *map(str, GATE.inside(at_least_s=lifecycle.IN_FLIGHT_WAIT_S)),
            ],
            config_files=list(config.sources),
            last_event=self.events.last,
            maintenance_since=ordered.since if ordered is not None else None,
            maintenance_by=ordered.by if ordered is not None else "",
            maintenance_reason=ordered.reason if ordered is not None else "",
            log_level=log_level(),
            problems=[
                *self._in_force.problems(),
                *self.leases.problems,
                *self.leases.refusals,
                *self.leases.losses,
                *manager.departures.problems(),
                *self.parts.moved.problems(),
                *self.parts.identities.problems(),
                *self._recorder.problems(),
                *(self.parts.volumes.problems() if self.parts.volumes is not None else ()),
            ],
        )

    # --- end ---

    def _ask_to_stop(self, restarts: bool = False) -> None:
        """`restarts`: the service manager starts the next daemon at once."""
        self._restarts = restarts
        if self._stop_asked:
            eager_tasks.resolve(self._stop, None)  # a second request stops at once
        else:
            self._stop_asked = True
            eager_tasks.start(self._stop_when_safe())

    async def _stop_when_safe(self) -> None:
        """Stop once no VM loses its locks by that. A process with a thread that hangs in storage can't end: its successor
        would start late, and meanwhile the lockspaces on healthy storage would not be renewed.
        """
        asked = time.monotonic()
        while (waited_s := time.monotonic() - asked) < lifecycle.IN_FLIGHT_WAIT_S and GATE.inside(
            at_least_s=waited_s
        ):
            await asyncio.sleep(lifecycle.IN_FLIGHT_PAUSE_S)
        said = False
        while not self._stop.done() and (why := self._why_not_stop()):
            if not said:
                log.critical("the stop is put off: %s; a second SIGTERM stops it now", why)
                said = True
            self.notifier.still_here(f"the stop is put off: {why}", STOP_SAID_AGAIN_S)
            await asyncio.sleep(PUT_OFF_LOOK_S)
        eager_tasks.resolve(self._stop, None)

    def _why_not_stop(self) -> str:
        """Which requests hang and which locks on other storage would suffer; empty if none would."""
        stuck = GATE.inside(at_least_s=lifecycle.IN_FLIGHT_WAIT_S)
        if not stuck:
            return ""
        pools = {each.pool for each in stuck}
        suffers = [f"lockspace {name}" for name in self.leases.used_beside(pools)]
        if not self.notifier.stores:
            files = sum(
                lock.held is not None
                and lock.held.descriptor() is not None
                and gate_name(self._storage.pool(lock.path)) not in pools
                for lock in self.manager.table
            )
            suffers += [f"{files} locks on files"] if files else []
        return f"{listed(stuck)}; VMs need {' and '.join(suffers)}" if suffers else ""

    async def _shut_down(self) -> None:
        self.notifier.stopping()
        await lifecycle.stop(self.parts, self._close_clients, restarts=self._restarts)

    def _close_clients(self) -> None:
        self._close_listeners()
        self.control.close_all()
        self.readers.close_all()
        if self.sanlock is not None:
            self.sanlock.frontend.close()

    def _close_listeners(self) -> None:
        for listener in self.listeners.values():
            listener.close()
        for path in self._self_bound:
            with contextlib.suppress(OSError):
                os.unlink(path)

    # --- re-exec ---

    def _reload(self) -> None:
        if not self._reloading:
            eager_tasks.start(self.reload())

    async def reload(self) -> list[str]:
        """Become the program on disk, if it may take over with the configuration on disk.

        Returns only when all stays as it is, with the reasons.
        """
        if self._reloading:
            return ["another reload is under way"]
        self._reloading = True
        try:
            self.notifier.reloading(int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6))
            self._recorder.hurry()
            reasons = await lifecycle.reload(
                self.parts,
                why_not=self._next.why_not,
                execute=self._execute_next,
                feeds_first=lambda: self._next.feeds_first,
                clients=self.sanlock.frontend.connections if self.sanlock is not None else {},
            )
            self._in_force.keep()  # removed if the program on disk is an older one, which does not take over now
            self.notifier.ready(f"reload refused: {'; '.join(reasons)}"[:STATUS_CHARS_MAX])
            return reasons
        finally:
            self._reloading = False

    def _execute_next(self) -> None:
        """Does not return; raises OSError if the program on disk can't be executed."""
        state = self.parts.handover.state(
            {name: each.socket.fileno() for name, each in self.listeners.items()},
            self._self_bound,
            self._own,
        )
        if self.sanlock is not None and self._next.takes_clients:
            clients, slots = self.sanlock.passed_on()
            state = msgspec.structs.replace(state, clients=clients, client_slots=slots)
        elif self.sanlock is not None:
            self.sanlock.lets_go()
        fds.exec_with(state, sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ)


def copied_from(supervisor: LockspaceSupervisor) -> str:
    """Why this daemon must not start: what it remembers of a lockspace is what a living daemon of this host goes by.

    It would take that one's VMs for its own, and the lease that it can't resume for a lost one: it would kill them.
    """
    term, (users, pid) = supervisor.remembered, supervisor.use.living_others()
    if term is None or not pid:
        return ""
    for user in users:
        for directory in (user.run_dir, user.state_dir):
            theirs = decode_term(StateFile(copy_path(directory, supervisor.name)).read())
            if theirs is None or (theirs.host_name, theirs.generation) != (term.host_name, term.generation):
                continue
            return (
                "state_dir or run_dir of this daemon is a copy, or was copied: it has the incarnation of lockspace "
                f"{supervisor.name} in which another holdfastd of this host runs (pid {pid}, {user}): stop that one, "
                "or start this one with empty directories"
            )
    return ""


def read_group(config: Config) -> str:
    """Whose members may ask at the read-only socket; empty: root's only."""
    if config.control.read_group is not None:
        return config.control.read_group
    try:
        return grp.getgrnam(READ_GROUP_DEFAULT).gr_name
    except (KeyError, ValueError):
        return ""


def _program(pid: int) -> str:
    name = SystemProcesses().program(pid) if pid > 0 else ""
    return f"{name or 'another program'} (pid {pid})" if pid > 0 else "another program"

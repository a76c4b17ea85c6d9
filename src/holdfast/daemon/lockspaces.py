"""The leases' part of the object graph: lockspaces, their threads, the lease monitor, the watchdog.

A host has one lease monitor and one watchdog for all lockspaces of its backends. They are made when the first backend asks
for a lockspace; nothing runs before `start`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from holdfast.backends.base import LeasePorts
from holdfast.daemon.client_places import line_of, place_of
from holdfast.daemon.watchdog_choice import HostWatchdog, words_of
from holdfast.manager.journal_kinds import SanlockLockspaceLine
from holdfast.manager.unknown_locks import UnknownLocks
from holdfast.protocol.ports import Clock as ProtocolClock
from holdfast.protocol.ports import Rng
from holdfast.supervision.host_identity import REMOVED, HostIdentity, Incarnation, decode_term
from holdfast.supervision.host_records import HostRecords
from holdfast.supervision.incarnation_copies import IncarnationCopies
from holdfast.supervision.lease_monitor import LeaseMonitor
from holdfast.supervision.lockspace_news import Joined, Leaving, LockspaceNews
from holdfast.supervision.lockspace_port import LockspacePort, LockspaceSpec, WatchdogSpec
from holdfast.supervision.lockspace_supervisor import (
    LockspaceState,
    LockspaceSupervisor,
)
from holdfast.supervision.lockspace_use import LockspaceUse, User
from holdfast.supervision.lost_elsewhere import LostElsewhere
from holdfast.system import eager_tasks
from holdfast.system.block_io.lease_files import LeaseStorage
from holdfast.system.block_io.renewal_threads import LeaseThreads
from holdfast.system.clock import Clock
from holdfast.system.files.disk_identity import DiskIdentities
from holdfast.system.files.host_record_files import HostRecordFiles
from holdfast.system.files.lockspace_locks import SpaceLocks
from holdfast.system.files.state_file import StatePort
from holdfast.system.host.descriptors import DescriptorStore, NoStore
from holdfast.system.host.predecessor import Predecessors
from holdfast.system.watchdog.device import Watchdog
from holdfast.system.watchdog.fed_until import NO_FD, FedUntil, NotKept
from holdfast.system.watchdog.passed import PassedWatchdog

log = logging.getLogger("holdfast")

FIRST_TRY_WAIT_S = 10.0
"""How long the start waits until it is known whether the last incarnations resume; other backends' locks wait too."""
LEAVE_WAIT_S = 5.0
"""Freeing a host id is two requests; longer means that storage hangs."""
LEAVE_LOOK_S = 0.02
"""Between two checks whether all lockspaces are left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseHostPorts:
    """Ports of the system for a host with leases."""

    threads: LeaseThreads
    """For renewals: each with a disk and a clock of its own."""
    start_heart: Callable[[Coroutine[Any, Any, None], Callable[[object], None]], None]
    """Run the lease monitor on a thread of its own; the second argument is called there with its result."""
    heart_clock: ProtocolClock
    watchdog: Callable[[WatchdogSpec, int | None], Watchdog]
    """The driver of that choice; it uses the descriptor of an earlier program if there is one."""
    storage: Callable[[str], LeaseStorage]
    """Storage for the leases of a lockspace, with workers of its own."""
    writes_in_flight: Callable[[str], Callable[[], bool]]
    """Of the leases of a lockspace: a question that stays true while a write that is under way now may still land."""
    incarnation_files: Callable[[str], Sequence[StatePort]]
    """The copies of this host's incarnation in a lockspace: one that survives a power cut, one of this boot alone."""
    copied_lockspaces: Callable[[], Collection[str]]
    """The lockspaces of which there is such a copy."""
    space_locks: SpaceLocks
    """One lock per lockspace on this host, whatever directories its daemons have."""
    directories: tuple[str, str]
    """(run_dir, state_dir), which identify this daemon among those of this host."""
    identities: DiskIdentities
    rng: Rng
    token: Callable[[], str]
    """Random digits for a name that no other host and no earlier incarnation has used."""
    generation_min: Callable[[], int]
    """The least generation of a claim that is made now: seconds since 1970."""
    reread_s: float
    """Within so long each held lease is read again; 0: never."""
    host_records: Callable[[str, str], HostRecordFiles] | None = None
    """(lockspace, path): files of its host records; None: it has none."""
    last_end: str = ""
    """How this host's last boot ended, by the flight recorder; empty if that is not known."""
    fed_until: Callable[[int], FedUntil] = lambda _: NotKept()
    """Memory for the bound of the last feeding; it uses the descriptor that an earlier program has left, -1: none."""
    end_first_feeding: Callable[[], None] = lambda: None
    """This program may feed the watchdog already, by the bound that the earlier one left (ADR 0242); it does no more."""


class TimeLeft(NamedTuple):
    """How long the leases of this host are good if nobody renews them, in seconds."""

    now_s: float
    """The first of them."""
    renewed_s: float
    """The same at the moment of a renewal."""
    renewal_s: float
    """Within that time each is renewed, unless its storage is late."""


class HostLockspaces:
    """All lockspaces of this host. `in_use` returns whether an owner depends on a lease of one of these backends,
    `in_doubt` whether there is a placeholder for leases of one of them. `report` gets the news of every lockspace.
    """

    def __init__(
        self,
        *,
        ports: LeaseHostPorts,
        clock: Clock,
        identity: HostIdentity,
        in_use: Callable[[Iterable[str]], bool] = lambda _: False,
        in_doubt: Callable[[Iterable[str]], bool] = lambda _: False,
        report: Callable[[LockspaceNews], None] = lambda _: None,
        store: DescriptorStore | None = None,
        watchdog: PassedWatchdog | None = None,
        watchdog_needed: bool = False,
        fed_until_fd: int = NO_FD,
        predecessors: Predecessors | None = None,
        space_locks: Mapping[str, int] | None = None,
    ) -> None:
        """`watchdog`: of an earlier daemon, open and armed; `watchdog_needed`: locks may be held that depend on it.
        `fed_until_fd`: the memory with the bound of that daemon's last feeding.
        `lockspace_locks`: the locks of lockspaces that an earlier program has passed on, by lockspace.
        """
        self._ports = ports
        self._clock = clock
        self._predecessors = predecessors if predecessors is not None else Predecessors()
        self._identity = identity
        self.carried: dict[str, bytes] = {}
        """Incarnations that the journal has, by lockspace."""
        self._in_use = in_use
        self._in_doubt = in_doubt
        self._space_locks = dict(space_locks or {})
        self._watchdog = HostWatchdog(
            make=ports.watchdog,
            store=store if store is not None else NoStore(),
            passed=watchdog,
            needed=watchdog_needed,
        )
        self._fed_until_fd = fed_until_fd
        self._fed_until: FedUntil = NotKept()
        self._choice: WatchdogSpec | None = None
        self._lease_monitor: LeaseMonitor | None = None
        self._monitor_runs = False
        self._supervisors: dict[str, tuple[LockspaceSupervisor, set[str]]] = {}
        self._of_clients: set[str] = set()
        """Lockspaces that no backend names: clients have added them."""
        self._report = report
        self._lost = LostElsewhere()

    def ports(self) -> LeasePorts:
        return LeasePorts(
            lockspace=self._lockspace,
            storage=self._ports.storage,
            identities=self._ports.identities,
            rng=self._ports.rng,
            spawn=eager_tasks.start,
        )

    @property
    def supervisors(self) -> list[LockspaceSupervisor]:
        return [supervisor for supervisor, _ in self._supervisors.values()]

    @property
    def lease_monitor(self) -> LeaseMonitor | None:
        """None before the first lockspace."""
        return self._lease_monitor

    @property
    def refusals(self) -> list[str]:
        """Why this daemon does not use lockspaces that this host could join: another of its daemons may use them."""
        return [supervisor.use.refused for supervisor in self.supervisors if supervisor.use.refused]

    @property
    def problems(self) -> list[str]:
        """Problems that an operator has to fix."""
        return self._watchdog.problems

    def backends_of(self, lockspace: str) -> set[str]:
        return self._supervisors[lockspace][1]

    def users_gone(self, lockspace: str) -> None:
        """See `LockspaceSupervisor.users_gone`."""
        self._supervisors[lockspace][0].users_gone()

    def _lockspace(self, spec: LockspaceSpec, backend: str, choice: WatchdogSpec) -> LockspacePort:
        if self._choice not in (None, choice):
            raise ValueError(
                f"watchdog: a host has one, but another backend says {words_of(self._choice)}, this one {words_of(choice)}"
            )
        known = self._supervisors.get(spec.name)
        if known is not None:
            if known[0].spec != spec:
                raise ValueError(f"lockspace '{spec.name}' is named by another backend with other values")
            known[1].add(backend)
            return known[0]
        ports = self._ports
        if self._lease_monitor is None:
            self._choice = choice
            self._fed_until = ports.fed_until(self._fed_until_fd)
            self._lease_monitor = LeaseMonitor(
                clock=ports.heart_clock,
                watchdog=self._watchdog.driver(choice),
                fed_until=self._fed_until,
                on_armed_late=lambda: ports.threads.call_soon(self._store_armed),
            )
        backends = {backend}
        supervisor = LockspaceSupervisor(
            spec,
            lease_monitor=self._lease_monitor,
            threads=ports.threads,
            clock=self._clock,
            copies=self._copies(spec.name, lambda: place_of(spec) if spec.name in self._of_clients else ""),
            use=LockspaceUse(
                spec.name,
                ports.space_locks.of(spec.name, self._space_locks.pop(spec.name, -1)),
                User(self._identity.boot, *ports.directories),
                stuck=lambda dead: dead.inside(pools_of(spec.name)),
            ),
            identity=self._identity,
            token=ports.token,
            in_use=lambda: self._in_use(backends),
            lease_writes=partial(ports.writes_in_flight, spec.name),
            spawn=eager_tasks.start,
            report=self._news,
            generation_min=ports.generation_min,
            may_start=partial(self._why_not_start, spec.name),
            is_in_doubt=lambda: self._in_doubt(backends),
            records=HostRecords(
                spec.name,
                spec.path,
                ports.host_records(spec.name, spec.path),
                self._identity,
                ports.last_end,
            )
            if ports.host_records is not None
            else None,
        )
        self._supervisors[spec.name] = supervisor, backends
        return supervisor

    def _copies(self, lockspace: str, clients_place: Callable[[], str] = str) -> IncarnationCopies:
        return IncarnationCopies(
            lockspace,
            self._ports.incarnation_files(lockspace),
            lambda: [raw] if (raw := self.carried.get(lockspace)) else [],
            clients_place,
        )

    def _why_not_start(self, lockspace: str) -> str:
        """Why not, or empty: a dead daemon's request may still land there, over our writes (ADR 0121, 0129, 0134)."""
        pid = self._predecessors.inside(pools_of(lockspace))
        return (
            f"an earlier daemon (pid {pid}) still has a request inside its storage" if pid is not None else ""
        )

    # --- what an earlier daemon left ---

    def carry(self, incarnations: Mapping[str, bytes]) -> None:
        """The journal's copies of this host's incarnations, by lockspace."""
        self.carried.update(incarnations)

    def carried_of_this_boot(self) -> dict[str, str]:
        """Those of the journal's copies that are of this boot and can be read."""
        found = {
            name: raw
            for name, raw in self.carried.items()
            if (term := decode_term(raw)) is not None and term.boot == self._identity.boot
        }
        return {name: raw.decode() for name, raw in found.items()}

    @property
    def has_earlier_life(self) -> bool:
        """Whether an earlier daemon of this boot was in one of the lockspaces, according to any copy."""
        return any(supervisor.has_earlier_life for supervisor in self.supervisors)

    @property
    def losses(self) -> list[str]:
        """The lockspaces that are lost now, each with the reason."""
        return [
            f"lockspace {k.name} is lost: {k.reason}"
            for k in self.supervisors
            if k.state is LockspaceState.LOST
        ]

    def copied_of_clients(self) -> dict[str, SanlockLockspaceLine]:
        """The lockspaces, by name as in the journal, that clients had added to an earlier daemon of this boot and not
        removed, by the copies of its incarnations.
        """
        found = {}
        for name in sorted({*self._ports.copied_lockspaces(), *self.carried}.difference(self._supervisors)):
            term = self._copies(name).of_boot(self._identity.boot)
            if term is not None and (line := line_of(term)) is not None:
                found[line.name] = line
        return found

    def may_be_clients(self, lockspace: str) -> bool:
        """Whether the copies bear out that an earlier daemon of this boot was in it for clients and has not left it."""
        term = self._copies(lockspace).of_boot(self._identity.boot)
        return term is not None and term.clients_place != REMOVED

    def forget_place(self, lockspace: str) -> Incarnation | None:
        """See `IncarnationCopies.forget_place`."""
        return self._copies(lockspace).forget_place(self._identity.boot, self._clock.now())

    def hold_places(self, unknown: UnknownLocks, why: str) -> None:
        """The journal does not show which leases an earlier daemon of this boot held: until storage is read, maybe any."""
        for supervisor, backends in self._supervisors.values():
            if supervisor.has_earlier_life:
                for backend in sorted(backends):
                    unknown.hold_place(backend, f"leases of lockspace {supervisor.name}", why)

    # --- life ---

    async def start(self) -> None:
        """Start everything; returns when it is known which last incarnations resume, or after a time limit."""
        self._ports.end_first_feeding()
        for passed in self._space_locks.values():
            self._ports.space_locks.drop(passed)
        self._space_locks.clear()
        self._watchdog.stop_unfit(lambda: any(supervisor.use.others() for supervisor in self.supervisors))
        if self._lease_monitor is None:
            return
        self._begin_monitor(self._lease_monitor)
        loop = asyncio.get_running_loop()
        tried = []
        for supervisor in self.supervisors:
            done: asyncio.Future[None] = loop.create_future()
            begin = supervisor.rejoin if supervisor.name in self._of_clients else supervisor.start
            begin(partial(eager_tasks.resolve, done, None))
            if supervisor.resuming:
                tried.append(done)  # a claim takes long, and no owner depends on it yet
        if tried:
            await asyncio.wait(tried, timeout=FIRST_TRY_WAIT_S)

    def _begin_monitor(self, lease_monitor: LeaseMonitor) -> None:
        self._monitor_runs = True
        if self._watchdog.passed is not None:
            self._owe_others(lease_monitor)
        self._watchdog.begin()
        self._ports.start_heart(lease_monitor.run(), self._heart_stopped)

    def for_clients(self, spec: LockspaceSpec, backend: str, watchdog: WatchdogSpec) -> LockspaceSupervisor:
        """A supervisor at run time, for a lockspace that no backend names; not started yet. With the first lockspace of this
        host the lease monitor starts; `watchdog` is chosen only then.
        """
        supervisor = self.restored_for_clients(spec, backend, watchdog)
        if self._lease_monitor is not None and not self._monitor_runs:
            self._begin_monitor(self._lease_monitor)
        return supervisor

    def restored_for_clients(
        self, spec: LockspaceSpec, backend: str, watchdog: WatchdogSpec
    ) -> LockspaceSupervisor:
        """The same before `start`, for a lockspace that an earlier daemon was in: `start` joins it again."""
        if spec.name in self._supervisors:
            raise ValueError(f"lockspace '{spec.name}' is there already")
        self._lockspace(spec, backend, self._choice or watchdog)
        self._of_clients.add(spec.name)
        return self._supervisors[spec.name][0]

    def serve_clients(self, lockspace: str, backend: str) -> LockspaceSupervisor:
        """A configured lockspace has one backend more, for leases of sanlock's clients."""
        supervisor, backends = self._supervisors[lockspace]
        backends.add(backend)
        return supervisor

    @property
    def watchdog(self) -> WatchdogSpec | None:
        """The watchdog of this host's lockspaces; None if there is no lockspace yet."""
        return self._choice

    def conflict(self, watchdog: WatchdogSpec) -> str:
        """Why clients' lockspaces can't have this watchdog: a host has one. Empty if they can."""
        if self._choice in (None, watchdog):
            return ""
        return f"a host has one watchdog, and a backend says {words_of(self._choice)}, this table {words_of(watchdog)}"

    def forget(self, lockspace: str) -> None:
        """Drop a lockspace that has ended; a lock on this host that it still has is the next one's of that name."""
        supervisor, _ = self._supervisors[lockspace]
        if not supervisor.has_ended:
            raise ValueError(f"lockspace '{lockspace}' has not ended")
        del self._supervisors[lockspace]
        self._of_clients.discard(lockspace)
        if (held := supervisor.use.descriptor()) is not None:
            self._space_locks[lockspace] = held

    def is_in_use(self, lockspace: str) -> bool:
        """Whether an owner depends on a lease of it."""
        return self._in_use(self._supervisors[lockspace][1])

    def _owe_others(self, lease_monitor: LeaseMonitor) -> None:
        """The watchdog that was passed on may guard virtual machines of a daemon with other directories: this one can't
        renew their lease, and must neither stop it nor feed it for another lockspace.
        """
        for supervisor in self.supervisors:
            if (why := supervisor.use.others()) and not supervisor.has_earlier_life:
                log.critical("the watchdog that an earlier daemon has armed is not fed: %s", why)
                lease_monitor.block_feeding(supervisor.name)

    def _heart_stopped(self, result: object) -> None:
        if isinstance(result, BaseException):
            # Leases are not measured any more, so the unfed watchdog will reset this host: log why while there is time.
            log.critical("the heartbeat stopped: %r", result)
            for supervisor in self.supervisors:
                self._ports.threads.call_soon(supervisor.heart_stopped)

    def _news(self, news: LockspaceNews) -> None:
        if isinstance(news, Joined):
            self._store_armed()
        self._report(news)
        fences = self._lease_monitor is not None and self._lease_monitor.fences
        if self._lost.heard(news, wall_s=self._clock.wall(), fences=fences):
            for supervisor in self.supervisors:
                if supervisor.records is not None:
                    eager_tasks.start(supervisor.records.tell(self._lost.beside(supervisor.name)))

    def _store_armed(self) -> None:
        self._watchdog.store_armed(self.watchdog_descriptor(), self._fed_until.descriptor())

    def space_locks(self) -> dict[str, int]:
        """The locks of lockspaces that are held, for the next program."""
        held = {supervisor.name: supervisor.use.descriptor() for supervisor in self.supervisors}
        return {name: fd for name, fd in held.items() if fd is not None}

    def watchdog_descriptor(self) -> int | None:
        return self._lease_monitor.watchdog_descriptor() if self._lease_monitor is not None else None

    def armed_watchdog(self) -> PassedWatchdog | None:
        """The watchdog that the next program has to feed; None without one."""
        return self._watchdog.armed(self.watchdog_descriptor())

    def fed_until_descriptor(self) -> int:
        """The memory with the bound of the last feeding, for the next program; -1: there is none."""
        return self._fed_until.descriptor()

    def time_left(self) -> TimeLeft | None:
        """Of the leases of lockspaces with owners; None if there are none."""
        used = [
            supervisor
            for supervisor, backends in self._supervisors.values()
            if supervisor.state is LockspaceState.JOINED and self._in_use(backends)
        ]
        if not used:
            return None
        return TimeLeft(
            min(supervisor.fails_in_s for supervisor in used),
            min(supervisor.timing.fail_s for supervisor in used),
            max(supervisor.timing.renewal_s + supervisor.timing.io_timeout_s for supervisor in used),
        )

    def why_not_reexec(self) -> str:
        """Why not, or empty: a re-exec waits for every request inside the kernel, so storage must not be late."""
        for supervisor in self.supervisors:
            if supervisor.late:
                return f"lockspace {supervisor.name} is not renewed in time: its storage may hang"
        return ""

    def leave(self, supervisor: LockspaceSupervisor, on_left: Callable[[], None] = lambda: None) -> None:
        """Leave an unused lockspace. `on_left` is called when it is left, or that has failed."""
        self._report(Leaving(supervisor.name))
        supervisor.leave(on_left)

    def used_beside(self, stuck_pools: Collection[str]) -> list[str]:
        """The lockspaces in use that are renewed in time, and whose storage is none of these."""
        return [
            supervisor.name
            for supervisor, backends in self._supervisors.values()
            if supervisor.state is LockspaceState.JOINED
            and not supervisor.late
            and self._in_use(backends)
            and not any(pool in stuck_pools for pool in pools_of(supervisor.name))
        ]

    def _back_within_s(self, supervisor: LockspaceSupervisor) -> float:
        """Until the lease fails, or a device fires that nobody feeds; wdmd goes by the lease."""
        if self._choice is None or self._choice.driver != "device":
            return supervisor.fails_in_s
        return min(supervisor.fails_in_s, self._choice.fire_timeout_s)

    async def stop(self, *, clients_stay: bool = False) -> None:
        """Leave unused lockspaces; those in use stay joined and must be resumed before they expire. `clients_stay`: so do
        those that clients have added, as the next daemon follows at once (ADR 0186), if it can feed the watchdog.
        """
        left = []
        # Nobody can feed an armed watchdog that is not kept: closing a connection of wdmd's resets the host.
        clients_stay = clients_stay and (self.watchdog_descriptor() is None or self._watchdog.is_kept)
        for supervisor, backends in self._supervisors.values():
            is_well = supervisor.state is LockspaceState.JOINED and not supervisor.late
            if self._in_use(backends):
                log.critical(
                    "leases of lockspace %s stay held: start holdfastd again within %.0f s, or %s",
                    supervisor.name,
                    self._back_within_s(supervisor),
                    _fate(supervisor),
                )
            elif clients_stay and is_well and supervisor.name in self._of_clients:
                log.warning(
                    "lockspace %s stays joined over the restart of holdfastd, for clients that hold nothing in it now",
                    supervisor.name,
                )
            elif supervisor.state not in (LockspaceState.LOST, LockspaceState.LEFT):
                left.append(supervisor)
                self.leave(supervisor)
        # A write that is under way keeps the watchdog armed (ADR 0121); most end in a moment.
        until = self._clock.now() + LEAVE_WAIT_S
        while self._clock.now() < until and any(_leaving(supervisor) for supervisor in left):
            await self._clock.sleep(LEAVE_LOOK_S)
        for supervisor in left:
            if _leaving(supervisor):
                log.critical(
                    "lockspace %s could not be left, its storage hangs: start holdfastd again within %.0f s, or %s",
                    supervisor.name,
                    self._back_within_s(supervisor),
                    _fate(supervisor),
                )
        if self.watchdog_descriptor() is None:
            self._watchdog.forget()


def pool_of_leases(lockspace: str) -> str:
    """The name of the worker pool for requests to the leases of a lockspace."""
    return f"leases of {lockspace}"


def pools_of(lockspace: str) -> tuple[str, str]:
    """The names of the worker pools for requests to a lockspace and to its leases."""
    return f"lockspace {lockspace}", pool_of_leases(lockspace)


def _leaving(supervisor: LockspaceSupervisor) -> bool:
    return supervisor.state is not LockspaceState.LEFT or supervisor.guarded


def _fate(supervisor: LockspaceSupervisor) -> str:
    return "this host is reset" if supervisor.fences else "another host may take them over"

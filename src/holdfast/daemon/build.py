"""Builds the object graph from a configuration and the ports of a system; daemon and simulator run the same one.

    Config ──────┐
                 ├─► build ─► Parts ─► their life, in `lifecycle`
    SystemPorts ─┘
        of this host: `system_ports`; of a simulated one: `testing.machine_ports`

Parts that a simulated host does not have are in `daemon`: listening sockets, signals, exec, and the frontend of the control
socket.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from holdfast import config as configuration
from holdfast.backends.base import Backend, BackendPorts
from holdfast.backends.file.host_files import HostFilesBackend
from holdfast.backends.lease_backend import LeaseBackend
from holdfast.backends.lvm.backend import LvmBackend
from holdfast.backends.lvm.host_volumes import HostVolumes
from holdfast.backends.paxos.area_backend import in_lockspace
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.backends.registry import make_backend
from holdfast.config import Config, DiskRule
from holdfast.config_change import WATCHDOG_DEVICE_DEFAULTS
from holdfast.daemon.client_backends import ClientBackends
from holdfast.daemon.client_lockspaces import ClientLockspaces
from holdfast.daemon.handover import Before, Handover, lock_name
from holdfast.daemon.lockspace_calls import LeaseSpaceCalls
from holdfast.daemon.lockspace_reactions import LockspaceReactions, Observer
from holdfast.daemon.lockspaces import HostLockspaces, LeaseHostPorts
from holdfast.daemon.volume_claims import connect_volumes, volumes_of
from holdfast.errors import ConfigError
from holdfast.frontends.virtlockd import VirtlockdFrontend
from holdfast.lease_admin.breaking import LeaseBreaker
from holdfast.lease_admin.garbage_collection import LeaseCollector
from holdfast.lease_admin.host_fencing import HostFencer
from holdfast.lease_admin.lockspace_loss import LockspaceLoss
from holdfast.lease_admin.rereading import LeaseRereading
from holdfast.manager.adoption import Recovery
from holdfast.manager.events import Events
from holdfast.manager.file_lockspaces import FileLockspaces
from holdfast.manager.found_descriptors import FoundDescriptors
from holdfast.manager.identity_locks import IdentityLocks
from holdfast.manager.journal import Journal
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_search import LockSearch
from holdfast.manager.moved_disks import MovedDisks
from holdfast.manager.queries import Inspection
from holdfast.manager.routing import Route, Routing, Rule
from holdfast.manager.unasked_disks import UnaskedDisks
from holdfast.model import LockFailureAction, Protection
from holdfast.network_disk import is_network_name
from holdfast.supervision.host_identity import HostIdentity
from holdfast.supervision.lockspace_port import WatchdogSpec
from holdfast.system.block_io.request_gate import Gate
from holdfast.system.clock import Clock
from holdfast.system.epoll import Readiness
from holdfast.system.files.append_file import AppendFile
from holdfast.system.files.disk_identity import DiskIdentity
from holdfast.system.files.fixed_record import FixedRecord
from holdfast.system.files.lockspace_files import LockspaceFiles
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.ofd_lock import FileKey, LockFiles
from holdfast.system.files.open_files import OpenFiles
from holdfast.system.files.storage_executor import Storage
from holdfast.system.host.descriptors import DescriptorStore, Inherited
from holdfast.system.host.predecessor import Predecessors
from holdfast.system.host.process import Processes
from holdfast.system.libvirt.domains import DomainStatus
from holdfast.system.libvirt.virsh import DomainControl
from holdfast.system.watchdog.passed import WATCHDOG_FD_NAME

SETTLED_FILE = "settled-locks.log"
"""Every unknown lock that an operator settled: who said so, and which lock."""
BREAKS_FILE = "broken-leases.log"
"""Every order to break a lease: who, what, on whose word, and what came of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemPorts:
    """The ports of `system` that a daemon uses."""

    pid: int
    uid: int
    identity: HostIdentity
    clock: Clock
    processes: Processes
    domains: DomainControl
    status: DomainStatus | None
    files: LockFiles
    open_files: OpenFiles
    lockspace_files: LockspaceFiles
    storage: Storage
    mounts: MountTable
    readiness: Readiness
    store: DescriptorStore
    """Where descriptors outlive this daemon."""
    journal: AppendFile
    journal_extent: FixedRecord
    """How far the journal goes."""
    append_for_good: Callable[[str, str], None]
    """(file of the state directory, line): one line more, on stable storage; raises OSError."""
    all_ended: Callable[[float], Awaitable[bool]]
    """Wait until every task of this daemon has ended, or for so many seconds; whether all have."""
    gate: Gate
    """What every request to storage passes: closed for a re-exec, which would wait for each that is inside."""
    predecessors: Predecessors
    """Daemons that were killed and still have requests inside storage that hangs."""
    leases: LeaseHostPorts
    volumes: Callable[[], HostVolumes] | None = None
    """Makes what driver lvm needs of this host; None: it has no LVM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a daemon's object graph that other modules use."""

    config: Config
    ports: SystemPorts
    inherited: Inherited
    routing: Routing
    manager: LockManager
    journal: Journal
    events: Events
    leases: HostLockspaces
    lease_recovery: LockspaceLoss
    lease_calls: LeaseSpaceCalls
    reactions: LockspaceReactions
    clients: ClientLockspaces
    """Those that sanlock's clients add and remove."""
    client_backends: ClientBackends
    recovery: Recovery
    collector: LeaseCollector
    rereading: LeaseRereading
    moved: MovedDisks
    identities: IdentityLocks
    volumes: LvmBackend | None
    """The backend with driver lvm, if one is configured."""
    breaker: LeaseBreaker
    inspection: Inspection
    virtlockd: VirtlockdFrontend
    handover: Handover


def build(
    config: Config,
    ports: SystemPorts,
    inherited: Inherited,
    before: Before,
    observe: Observer = lambda _: None,
) -> Parts:
    """The whole graph; raises `ConfigError`. Nothing runs and nothing is sent before `lifecycle` starts it.

    `observe`: see `lockspace_reactions`.
    """
    clock, processes, host = ports.clock, ports.processes, ports.identity.node
    leases = HostLockspaces(
        ports=ports.leases,
        clock=clock,
        identity=ports.identity,
        in_use=lambda backends: lease_recovery.in_use(set(backends)),
        in_doubt=lambda backends: manager.unknown.has_place(set(backends)),
        report=lambda news: reactions.react(news),  # noqa: PLW0108 - there are none yet
        store=ports.store,
        watchdog=inherited.take_watchdog(WATCHDOG_FD_NAME),
        watchdog_needed=before.leases_held,
        fed_until_fd=inherited.take_fed_until(),
        predecessors=ports.predecessors,
        space_locks=inherited.reexec.space_locks if inherited.reexec is not None else None,
    )
    routing = build_routing(
        config,
        BackendPorts(
            files=ports.files,
            storage=ports.storage,
            mounts=ports.mounts,
            clock=clock,
            host=host,
            leases=leases.ports(),
            identities=ports.leases.identities,
            volumes=ports.volumes() if ports.volumes is not None and _uses_volumes(config) else None,
        ),
    )
    journal = Journal(
        ports.journal,
        boot=ports.identity.boot,
        host=host,
        snapshot=lambda: manager.journal_lines(),  # noqa: PLW0108 - there is no manager yet
        extent=ports.journal_extent,
    )
    events = Events(clock.wall)
    manager = LockManager(
        routing=routing,
        lockspaces=FileLockspaces(files=ports.lockspace_files, storage=ports.storage, journal=journal),
        journal=journal,
        processes=processes,
        clock=clock,
        events=events,
        host=host,
        owners_max=config.limits.owners_max,
        open_files=ports.open_files,
        disk_key=partial(_disk_key, ports),
        audit=partial(ports.append_for_good, SETTLED_FILE),
        domains=ports.status,
        identify=partial(_identify, ports),
        keep=partial(_keep_lock, ports.store) if ports.store.stores else None,
        dead_holder=ports.predecessors.holds,
        acquire_wait_s=config.limits.acquire_wait_s,
        lends=config.migration_peers == "any",
    )
    lease_recovery = LockspaceLoss(
        manager,
        clock=clock,
        domains=ports.domains,
        status=ports.status,
        actions={name: backend.on_lockfailure for name, backend in routing.leases.items()},
        resets={name for name, backend in routing.leases.items() if backend.resets},
        report=lambda news: reactions.react(news),  # noqa: PLW0108 - there are none yet
    )
    collector, moved = LeaseCollector(manager, clock=clock), MovedDisks(manager, clock=clock)
    identities = IdentityLocks(manager, clock=clock)
    manager.unknown.on_known = manager.lost.on_regained = moved.known
    reactions = LockspaceReactions(
        leases=leases,
        manager=manager,
        collector=collector,
        loss=lease_recovery,
        moved=moved,
        identities=identities,
        observe=observe,
    )
    client_backends = ClientBackends(
        routing,
        leases=ports.leases.storage,
        storage=ports.storage,
        identities=ports.leases.identities,
        clock=clock,
        rng=ports.leases.rng,
    )
    clients = ClientLockspaces(
        leases,
        backends=client_backends,
        book=manager.book,
        clock=clock,
        watchdog=_watchdog_of_clients(config, leases),
        in_doubt=lambda backends: manager.unknown.has_place(set(backends)),
        others=lambda backends: lease_recovery.users_beside_clients(set(backends)),
    )
    reactions.on_incarnation = clients.note
    manager.unknown.may_be_clients = lambda lock: client_backends.serves(routing.leases.get(lock.backend))
    if config.sanlock.socket:
        clients.serve_configured()
    recovery = Recovery(
        manager,
        processes=processes,
        clock=clock,
        domains=ports.domains,
        on_lock_lost=LockFailureAction(config.recovery.on_lock_lost),
    )
    manager.departures.on_refused = recovery.act
    volumes = volumes_of(routing.backends)
    if volumes is not None and ports.volumes is not None:
        connect_volumes(volumes, manager, recovery)
    virtlockd = VirtlockdFrontend(
        manager,
        uid=ports.uid,
        readiness=ports.readiness,
        keep=ports.store.store if ports.store.stores else None,
        unasked=UnaskedDisks(manager, ports.status),
    )
    breaker = LeaseBreaker(
        manager,
        clock=clock,
        record=partial(ports.append_for_good, BREAKS_FILE),
        spaces=lambda: leases.supervisors,
    )
    return Parts(
        config=config,
        ports=ports,
        inherited=inherited,
        routing=routing,
        manager=manager,
        journal=journal,
        events=events,
        leases=leases,
        lease_recovery=lease_recovery,
        lease_calls=LeaseSpaceCalls(
            leases,
            lambda backends: lease_recovery.count(set(backends)),
            clock.now,
            collector,
            breaker,
            HostFencer(manager, breaker),
        ),
        reactions=reactions,
        clients=clients,
        client_backends=client_backends,
        recovery=recovery,
        collector=collector,
        rereading=LeaseRereading(manager, recovery, clock=clock, round_s=ports.leases.reread_s),
        moved=moved,
        identities=identities,
        volumes=volumes,
        breaker=breaker,
        inspection=Inspection(manager, files=ports.lockspace_files, storage=ports.storage, host=host),
        virtlockd=virtlockd,
        handover=Handover(
            manager=manager,
            recovery=recovery,
            journal=journal,
            events=events,
            virtlockd=virtlockd,
            store=ports.store.store,
            boot=ports.identity.boot,
            leases=leases,
            collector=collector,
            found=FoundDescriptors(manager, storage=ports.storage),
            search=LockSearch(manager, domains=ports.status),
            before=before,
            join_again=clients.restore if config.sanlock.socket else clients.forget,
            guard_again=clients.restore,
        ),
    )


def _uses_volumes(config: Config) -> bool:
    return any(table.get("driver") == "lvm" for table in config.backend.values())


def _watchdog_of_clients(config: Config, leases: HostLockspaces) -> WatchdogSpec:
    """Of the lockspaces that clients add; raises `ConfigError`."""
    table = config.sanlock

    def problem(reason: str) -> ConfigError:
        return ConfigError(file=config.source(), key="sanlock.watchdog", reason=reason)

    if table.watchdog is None:
        if leases.watchdog is None and table.socket:
            raise problem(
                'is needed, as no backend with leases has one: "device" (this host is reset when it loses its leases), '
                '"wdmd" (the same by sanlock\'s daemon), or "none" (nothing resets a host that hangs; its disks may be '
                "written twice)"
            )
        return leases.watchdog or WatchdogSpec("none", "", table.fire_timeout_s)
    path = table.watchdog_device or WATCHDOG_DEVICE_DEFAULTS[table.watchdog]
    wanted = WatchdogSpec(table.watchdog, path, table.fire_timeout_s)
    if table.socket and (conflict := leases.conflict(wanted)):
        raise problem(conflict)
    return wanted


def _keep_lock(store: DescriptorStore, lock_id: int, fd: int | None) -> None:
    store.store(lock_name(lock_id), fd)


async def _disk_key(ports: SystemPorts, path: str) -> FileKey | None:
    return await ports.storage.call(path, lambda: ports.lockspace_files.key(path))


async def _identify(ports: SystemPorts, path: str) -> DiskIdentity:
    return await ports.storage.call(path, lambda: ports.leases.identities.look(path))


def build_routing(config: Config, ports: BackendPorts) -> Routing:
    """Backends and rules of a configuration; raises `ConfigError`."""
    backends = {
        name: make_backend(name, table, ports, file=config.source()) for name, table in config.backend.items()
    }
    _share_leases(backends.values())
    _check_one_lvmlockd(config, backends)
    _link_guards(config, backends)
    _check_network_rules(config, backends)
    rules = [
        Rule(
            rule.match if rule.match is not None else rule.lockspace or "",
            _route(config, backends[rule.backend], rule),
            of_lockspace=rule.match is None,
        )
        for rule in config.disk
    ]
    return Routing(
        rules,
        _route(config, backends[config.default_backend], None),
        backends,
        host_files=HostFilesBackend(ports, directory=config.host_files),
    )


def _share_leases(backends: Iterable[Backend]) -> None:
    """Backends of one lockspace share what this host is using or giving up there: it has one host block in each lease."""
    before: list[Backend] = []
    for backend in backends:
        if isinstance(backend, PaxosBackend):
            beside = in_lockspace(before, backend.presence)
            if beside is not None:
                backend.share_leases(beside)
            before.append(backend)


def _check_one_lvmlockd(config: Config, backends: Mapping[str, Backend]) -> None:
    """Raises `ConfigError`: each backend with driver lvm would reconcile the volumes of the other one, too."""
    names = [name for name, backend in backends.items() if isinstance(backend, LvmBackend)]
    if len(names) > 1:
        raise ConfigError(
            file=config.source(),
            key=f"backend.{names[1]}.driver",
            reason=f"is lvm, as that of backend.{names[0]}: a host has one lvmlockd, so one backend serves all its volume "
            f"groups; name '{names[0]}' in these rules",
        )


def _link_guards(config: Config, backends: Mapping[str, Backend]) -> None:
    """Gives backends with driver lvm their guards. Raises `ConfigError` with the key and the fix."""
    for name, backend in backends.items():
        if not isinstance(backend, LvmBackend) or not backend.guard_name:
            continue
        guard, key = backends.get(backend.guard_name), f"backend.{name}.guard"
        reason = ""
        if guard is None:
            reason = f"no [backend.{backend.guard_name}] is configured"
        elif not isinstance(guard, LeaseBackend):
            reason = f"backend '{backend.guard_name}' has no leases"
        elif not guard.names.by_path:
            reason = f"backend '{backend.guard_name}' names its leases by what disks are already (name_by)"
        if reason:
            raise ConfigError(
                file=config.source(),
                key=key,
                reason=f'{reason}: name one with driver = "paxos" that names leases by path, in a lockspace of all hosts of '
                "these volume groups",
            )
        assert isinstance(guard, LeaseBackend)
        backend.guard = guard
        for number, rule in enumerate(config.disk, 1):
            if rule.backend == name and rule.identity != "auto":
                raise ConfigError(
                    file=config.source(),
                    key=f"disk[{number}].identity",
                    reason=f"is \"{rule.identity}\", and the guard of backend '{name}' is a lease of what a volume is: "
                    "leave it out",
                )


def _check_network_rules(config: Config, backends: Mapping[str, Backend]) -> None:
    """Raises `ConfigError`: a disk that is reached over a network has no file and no device of the host to lock."""
    for number, rule in enumerate(config.disk, 1):
        backend = backends[rule.backend]
        if rule.match is None or not is_network_name(rule.match):
            continue
        if not isinstance(backend, LeaseBackend) or not backend.names.by_path:
            raise ConfigError(
                file=config.source(),
                key=f"disk[{number}].backend",
                reason=f"'{rule.backend}' can't lock disks that are reached over a network ('{rule.match}'): "
                'name one with driver = "paxos" that names leases by path (name_by)',
            )


def _route(config: Config, backend: Backend, rule: DiskRule | None) -> Route:
    """The route of a rule. Leases serve to exclude other hosts: if no minimum is set, a VM starts only if they do."""
    says = rule is not None and rule.require_protection is not None
    guard = backend.guard if isinstance(backend, LvmBackend) else None
    has_leases = backend.capabilities.fenced or guard is not None
    start_min = Protection.CROSS_HOST if has_leases and not says else Protection.NONE
    by_identity = rule is None or rule.identity == "auto"
    return Route(backend, configuration.protection_min(config, rule), start_min, by_identity, guard)

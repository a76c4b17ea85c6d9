"""The engine behind the sanlock frontend: every command goes to the module that carries it out; nothing is decided here.

resource_commands    leases of registered clients: ACQUIRE, RELEASE, INQUIRE, CONVERT, REQUEST, value blocks
lockspace_commands   ADD, INQ and REM_LOCKSPACE, SET_CONFIG, EXAMINE, SHUTDOWN
lockspace_questions  STATUS, LOG_DUMP, HOST_STATUS, RENEWAL, GET_LOCKSPACES, GET_HOSTS
host_events          SET_EVENT
area_commands        ALIGN, READ_ and WRITE_ commands, over `foreign_areas`, as `area_guard` lets them
host_marks           INIT_LOCKSPACE_HOST, SET_HOST
rindex_commands      resource indexes
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.frontends.sanlock.area_commands import AreaCommands
from holdfast.frontends.sanlock.area_guard import AreaGuard
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.engine_ports import (
    Daemon,
    ForeignAreas,
    LeasesOfLockspaces,
    LockspaceFacts,
    Lockspaces,
)
from holdfast.frontends.sanlock.held_resources import HeldResource
from holdfast.frontends.sanlock.host_events import HostEvents
from holdfast.frontends.sanlock.host_marks import HostMarks
from holdfast.frontends.sanlock.lockspace_commands import LockspaceCommands
from holdfast.frontends.sanlock.lockspace_questions import LockspaceQuestions
from holdfast.frontends.sanlock.resource_commands import ResourceCommands
from holdfast.frontends.sanlock.rindex_commands import RindexCommands
from holdfast.frontends.sanlock.service import DaemonState, SanlockService
from holdfast.frontends.sanlock.version import is_of_5
from holdfast.manager.client_leases import ClientLeases
from holdfast.manager.owners import Owner
from holdfast.model import SANLOCK_PREFIX
from holdfast.protocol.membership import Membership
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.structures import Lockspace

log = logging.getLogger(__name__)


class SanlockEngine(SanlockService):
    """`backends` holds the leases of each lockspace. `gone` is called with the name of one that a client has removed."""

    def __init__(
        self,
        *,
        lockspaces: Lockspaces,
        facts: LockspaceFacts,
        daemon: Daemon,
        leases: ClientLeases,
        backends: LeasesOfLockspaces,
        areas: ForeignAreas,
        clock: Clock,
        gone: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._leases = leases
        self._backends = backends
        guard = AreaGuard(
            leases,
            member=self._member,
            views=lambda: list(facts.views()),
            why_not_removed=lockspaces.why_not_removed,
        )

        def io_timeout_s() -> int:
            return daemon.facts().io_timeout_s

        self._areas = AreaCommands(areas, guard, clock=clock, member=self._member, io_timeout_s=io_timeout_s)
        self._marks = HostMarks(
            areas,
            guard,
            clock=clock,
            member=self._member,
            backend=backends.backend_of,
            io_timeout_s=io_timeout_s,
        )
        self._rindexes = RindexCommands(areas, guard, backends, self._areas, clock=clock)
        self._lockspaces = LockspaceCommands(
            lockspaces,
            facts,
            daemon,
            leases,
            backends,
            clock=clock,
            index_in_use=self._rindexes.is_in_use,
            gone=gone,
        )
        self._resources = ResourceCommands(
            leases,
            self._lockspaces,
            clock=clock,
            notify=facts.notify,
            has_codes_of_5=is_of_5(daemon.facts().version),
        )
        self._questions = LockspaceQuestions(
            self._lockspaces, facts, daemon, clock=clock, resources=self._resources.resource_records
        )
        self._events = HostEvents(self._lockspaces, facts, clock=clock)

    # --- for the daemon ---

    def restore(
        self, owner: Owner, connected: Sequence[Client], pending: Collection[int], keep: Callable[[], Client]
    ) -> None:
        """A process that was registered with an earlier daemon has what the lock table says (`ResourceCommands.restore`)."""
        self._resources.restore(owner, connected, pending, keep)

    def kept_ended(self, owner: Owner) -> None:
        """Such a process has ended; the manager releases what it had."""
        self._resources.kept_ended(owner)

    def clients_in(self, lockspace: str) -> list[Client]:
        """The clients with a lease there, each once: those that are stopped when it is lost or removed."""
        name = SANLOCK_PREFIX + lockspace
        held = self._resources.held.newest_first()
        return sorted({each.client for each in held if each.key.lockspace == name})

    def held(self) -> list[HeldResource]:
        """All leases of clients."""
        return self._resources.held.newest_first()

    def killpath_of(self, client: Client) -> r.Killpath | None:
        """What a client wants run when its leases are to end."""
        return self._resources.killpaths.get(client)

    def _member(self, lockspace: str) -> Membership | None:
        backend: AreaBackend | None = self._backends.backend_of(lockspace)
        found = backend.presence.membership() if backend is not None else None
        return found if isinstance(found, Membership) else None

    # --- registered clients ---

    def client_registered(self, client: Client, kept: Client | None) -> None:
        self._resources.client_registered(client, kept)

    def client_restricted(self, client: Client) -> None:
        self._resources.client_restricted(client)

    def client_died(self, client: Client) -> None:
        self._resources.client_died(client)

    def client_closed(self, client: Client) -> None:
        self._resources.client_closed(client)

    async def acquire(self, client: Client, request: r.Acquire) -> replies.Plain:
        return await self._resources.acquire(client, request)

    async def acquire2(self, client: Client, request: r.Acquire2) -> replies.Plain | replies.Holder:
        return await self._resources.acquire2(client, request)

    async def release(self, client: Client, request: r.Release) -> replies.Plain:
        return await self._resources.release(client, request)

    async def inquire(self, client: Client, request: r.Inquire) -> replies.ClientState:
        return await self._resources.inquire(client, request)

    async def convert(self, client: Client, request: r.Convert) -> replies.Plain:
        return await self._resources.convert(client, request)

    async def killpath(self, client: Client, request: r.Killpath) -> replies.Plain:
        return await self._resources.killpath(client, request)

    async def set_lvb(self, request: r.SetLvb) -> replies.Plain:
        return await self._resources.set_lvb(request)

    async def get_lvb(self, request: r.GetLvb) -> replies.ValueBlock:
        return await self._resources.get_lvb(request)

    async def request(self, request: r.Request) -> replies.Plain:
        return await self._resources.request(request)

    # --- answered at once ---

    def shutdown(self, request: r.Shutdown) -> None:
        eager_tasks.start(self._lockspaces.shut_down(force=bool(request.force)))

    def status(self) -> DaemonState:
        return self._questions.status()

    def log_dump(self) -> replies.Log:
        return self._questions.log_dump()

    def host_status(self, request: r.HostStatus) -> replies.Records:
        return self._questions.host_status(request)

    def renewal(self, request: r.Renewal) -> replies.Records:
        return self._questions.renewal(request)

    def get_lockspaces(self, request: r.GetLockspaces) -> replies.Lockspaces:
        return self._questions.lockspaces()

    def get_hosts(self, request: r.GetHosts) -> replies.Hosts:
        return self._questions.hosts(request)

    def set_config(self, request: r.SetConfig) -> replies.Plain:
        return self._lockspaces.set_config(request)

    def event_lockspace(self, lockspace: Lockspace) -> replies.Plain:
        return self._questions.event_lockspace(lockspace)

    # --- lockspaces ---

    async def shutdown_wait(self, request: r.ShutdownWait) -> replies.Plain:
        return replies.Plain(await self._lockspaces.shut_down(force=bool(request.force)))

    async def add_lockspace(self, request: r.AddLockspace) -> replies.Plain:
        return await self._lockspaces.add(request)

    async def rem_lockspace(self, request: r.RemLockspace) -> replies.Plain:
        return await self._lockspaces.remove(request)

    async def add_lockspace_again(self, request: r.AddLockspace) -> replies.Plain:
        return await self._lockspaces.add_again(request)

    async def rem_lockspace_again(self, request: r.RemLockspace) -> replies.Plain:
        return await self._lockspaces.remove_again(request)

    async def inq_lockspace(self, request: r.InqLockspace) -> replies.Plain:
        return await self._lockspaces.inquire(request)

    async def examine_lockspace(self, request: r.ExamineLockspace) -> replies.Plain:
        return self._lockspaces.examine(request.lockspace)

    async def examine_resource(self, request: r.ExamineResource) -> replies.Plain:
        return self._lockspaces.examine(request.resource)

    async def set_event(self, request: r.SetEvent) -> replies.Plain:
        return await self._events.set(request)

    # --- areas ---

    async def align(self, request: r.Align) -> replies.Plain:
        return await self._areas.align(request)

    async def write_lockspace(self, request: r.WriteLockspace) -> replies.Plain:
        return await self._areas.write_lockspace(request)

    async def read_lockspace(self, request: r.ReadLockspace) -> replies.LockspaceRead:
        return await self._areas.read_lockspace(request)

    async def read_lockspace_host(self, request: r.ReadLockspaceHost) -> replies.LockspaceHostRead:
        return await self._areas.read_lockspace_host(request)

    async def init_lockspace_host(self, request: r.InitLockspaceHost) -> replies.Plain:
        return await self._marks.init(request)

    async def set_host(self, request: r.SetHost) -> replies.Plain:
        return await self._marks.set_host(request)

    async def write_resource(self, request: r.WriteResource) -> replies.Plain:
        return await self._areas.write_resource(request)

    async def read_resource(self, request: r.ReadResource) -> replies.ResourceRead:
        return await self._areas.read_resource(request)

    async def read_resource_owners(self, request: r.ReadResourceOwners) -> replies.OwnersRead:
        return await self._areas.read_resource_owners(request)

    # --- indexes ---

    async def format_rindex(self, request: r.FormatRindex) -> replies.Plain:
        return await self._rindexes.format(request)

    async def rebuild_rindex(self, request: r.RebuildRindex) -> replies.Plain:
        return await self._rindexes.rebuild(request)

    async def update_rindex(self, request: r.UpdateRindex) -> replies.IndexEntry:
        return await self._rindexes.update(request)

    async def lookup_rindex(self, request: r.LookupRindex) -> replies.IndexEntry:
        return await self._rindexes.lookup(request)

    async def create_resource(self, request: r.CreateResource) -> replies.IndexEntry:
        return await self._rindexes.create(request)

    async def delete_resource(self, request: r.DeleteResource) -> replies.IndexEntry:
        return await self._rindexes.delete(request)

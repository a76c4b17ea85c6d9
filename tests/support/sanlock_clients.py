"""Clients of sanlock's protocol on two hosts, without sockets: their commands on a real lock manager and real leases."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from holdfast.backends.paxos.area_backend import AreaBackend, resource_in
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.frontends.sanlock.clients import Client, Clients
from holdfast.frontends.sanlock.resource_commands import ResourceCommands
from holdfast.frontends.sanlock.version import is_of_5, version_number
from holdfast.manager.client_leases import ClientLeases
from holdfast.manager.journal_replay import SavedState
from holdfast.manager.owners import Owner
from holdfast.manager.routing import Route, Rule
from holdfast.model import Mode, Protection
from holdfast.ondisk.geometry import DEFAULT, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.types import HostId
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures
from holdfast.wire.sanlock.flags import ResourceFlag
from holdfast.wire.sanlock.result import Result
from tests.support.leases import SPACE, HostLockspaces, make_area, make_lockspace
from tests.unit.manager.world import World

SHARED, PERSISTENT, LVER = ResourceFlag.SHARED, ResourceFlag.PERSISTENT, ResourceFlag.LVER
WAIT_S = 20.0
"""For what has to come: leases are on real files, and a slow machine shall pass."""


def played(scene: Callable[[], Awaitable[None]]) -> None:
    async def go() -> None:
        await scene()

    asyncio.run(go())


async def comes(what: Callable[[], object]) -> None:
    """Return when it is true."""
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while not what():
        assert asyncio.get_running_loop().time() < deadline, "it never came"
        await asyncio.sleep(0.005)


class Storage:
    """A lockspace and leases that no daemon has made."""

    def __init__(self, directory: Path, *names: str, geometry: Geometry = DEFAULT) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.lockspace = directory / SPACE
        make_lockspace(self.lockspace)
        self.path = directory / "leases"
        self.geometry = geometry
        self.offsets = {name: n * geometry.align_bytes for n, name in enumerate(names, 1)}
        for name, offset_bytes in self.offsets.items():
            make_area(self.path, offset_bytes, name, geometry)

    def resource(
        self, name: str, flags: int = 0, lver: int = 0, *, space: str = SPACE
    ) -> structures.Resource:
        disk = structures.Disk(str(self.path), self.offsets.get(name, 0))
        return structures.Resource.of(space, name, disk, flags=flags, lver=lver)

    def leader(self, name: str) -> Leader:
        with self.path.open("rb") as f:
            f.seek(self.offsets[name])
            leader = Leader.decode(f.read(512))
        assert isinstance(leader, Leader), leader
        return leader


class Site:
    """One host's daemon; `before`: it was killed, and this is the next one."""

    def __init__(
        self,
        storage: Storage,
        *,
        host_id: int = 1,
        before: Site | None = None,
        lockd: bool = False,
        version: str = "3.9.5",
    ) -> None:
        self.storage = storage
        work = storage.directory / f"host{host_id}"
        work.mkdir(exist_ok=True)
        self.world: World = World(work, before=before.world if before else None)
        if before is None:
            self.host = HostLockspaces(storage.lockspace, host_id, f"host-{host_id}", clock=self.world.clock)
        else:
            self.host = before.host
        self.manager = self.world.manager
        self.lockd: PaxosBackend | None = None
        if lockd:
            self.lockd = self.host.backend(storage.directory)
            routing = self.manager.routing
            routing.add_clients_leases(self.lockd)
            rule = Rule("*/leased/*", Route(self.lockd, Protection.NONE), of_lockspace=False)
            routing.rules = (rule, *routing.rules)
        self.backend = self.host.area_backend(beside=self.lockd)
        self.manager.routing.add_clients_leases(self.backend)
        self.leases = ClientLeases(self.manager)
        self.notified: list[tuple[str, HostId]] = []
        self.commands = ResourceCommands(
            self.leases,
            self,
            clock=self.world.clock,
            notify=lambda space, host: self.notified.append((space, host)),
            has_codes_of_5=is_of_5(version_number(version)),
        )
        self._clients = Clients()

    def backend_of(self, lockspace: str) -> AreaBackend | None:
        return self.backend if lockspace == SPACE else None

    def leave(self) -> None:
        self.host.presence.member = NotAMember("it was lost")
        self.host.may_write = False

    # --- clients ---

    def client(self, pid: int) -> Client:
        """A registered connection of that process, which is started if it does not run yet."""
        if not self.world.processes.is_running(pid):
            self.world.processes.start(pid)
        client = self._clients.add(pid=pid, fd=pid)
        self._clients.register(client)
        return client

    async def close(self, client: Client) -> None:
        """Its connection ends; returns when its leases are dealt with."""
        client.dead = True
        self.commands.client_closed(client)
        await comes(lambda: client not in self.commands._owners)

    async def acquire(
        self, client: Client, *resources: structures.Resource, flags: int = 0, owner_name: str = ""
    ) -> int:
        options = structures.Options(PaddedName.of(owner_name))
        return (await self.commands.acquire(client, r.Acquire(flags, r.OWN, resources, options))).result

    async def release(self, client: Client, *resources: structures.Resource, flags: int = 0) -> int:
        return (await self.commands.release(client, r.Release(flags, r.OWN, resources))).result

    async def convert(self, client: Client, resource: structures.Resource, flags: int = 0) -> int:
        return (await self.commands.convert(client, r.Convert(flags, r.OWN, resource))).result

    async def state(self, client: Client) -> str:
        reply = await self.commands.inquire(client, r.Inquire(0, r.OWN))
        assert reply.result == Result.OK
        return reply.text

    def claims(self, name: str) -> dict[str, Mode]:
        """Who has that lease in the lock table, as text."""
        lock = self.manager.table.named(resource_in(SPACE, name))
        found: dict[str, Mode] = {}
        for owner_id in lock.claims if lock is not None else ():
            owner = self.manager.owners.get(owner_id)
            assert owner is not None
            assert lock is not None
            found[str(owner)] = lock.claims[owner_id][resource_in(SPACE, name)]
        return found

    def owner(self, pid: int) -> Owner | None:
        return self.manager.owners.with_pid(pid)

    # --- restarts ---

    async def restarted(
        self, *, connected: Sequence[Client] = (), pending: Collection[int] = ()
    ) -> tuple[Site, SavedState]:
        """The daemon is killed, and the next one has adopted what it found: also these connections, and the requests with
        these numbers, which it has to answer.
        """
        self.world.crash()
        after = Site(self.storage, before=self, lockd=self.lockd is not None)
        state = after.world.saved()
        after.world.recovery.connected = Counter((each.owner_id, each.pid) for each in connected)
        living = after.world.recovery.owners(state)
        task = asyncio.get_running_loop().create_task(after.world.recovery.locks(state, living, {}))
        await comes(lambda: _step(after, task))
        for owner in living.values():
            if not owner.alive():
                after.manager.owner_ended(owner)
        for owner in living.values():
            mine = [after._adopted(each) for each in connected if each.owner_id == owner.id]
            if mine:
                after.commands.restore(owner, mine, pending, partial(after._clients.add_kept, owner.pid))
        return after, state

    def _adopted(self, before: Client) -> Client:
        client = self._clients.add_at(before.client_id, pid=before.pid, fd=before.fd)
        client.owner_id, client.request = before.owner_id, before.request
        self._clients.register(client)
        return client

    def same(self, before: Client) -> Client:
        """That connection, as this daemon has it."""
        return next(each for each in self._clients.in_order() if each.client_id == before.client_id)


def _step(site: Site, task: asyncio.Task[None]) -> bool:
    if not task.done() and site.world.clock.sleepers:
        asyncio.get_running_loop().create_task(site.world.clock.advance(0.05))
    return task.done()

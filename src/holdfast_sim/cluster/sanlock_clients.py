"""Registered clients of sanlock's protocol on simulated hosts: processes that acquire leases by the frontend that ships.

    ClientSite            what clients of all hosts share: chance, requests that stand, what value blocks may say
    SimulatedConnection   one connection, without a socket: bytes of requests in, bytes of answers out
    HostClients           the clients of one life of a daemon: `SanlockSocket` over its parts
    ClientDesk            one disk on one host, as a client has it: `ManagedDesk` for clients

A client holds the very lease that libvirt's virtual machines have of the disk, at the place where that is. Connections end
with the daemon, as without a descriptor store; the next daemon has the client's process until that connects again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import TYPE_CHECKING

from holdfast.backends.paxos.area_backend import resource_in
from holdfast.daemon.kept_clients import FoundClient
from holdfast.daemon.sanlock_socket import SanlockSocket
from holdfast.frontends.listener import Peer
from holdfast.frontends.sanlock.connection import Answer, Leftovers
from holdfast.frontends.sanlock.connection_slots import Slots
from holdfast.frontends.sanlock.frontend import SanlockFrontend
from holdfast.manager.lock_registry import HostLock
from holdfast.protocol.paxos_release import Mode
from holdfast.system.host.commands import Ended
from holdfast.system.host.descriptors import SavedClient
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import (
    AcquireFlag,
    ForceMode,
    KillpathFlag,
    ReleaseFlag,
    RequestFlag,
    ResourceFlag,
    RestrictFlag,
)
from holdfast.wire.sanlock.framer import Framer
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import Disk, Options, Resource
from holdfast_sim.host.machine import VirtualMachine
from holdfast_sim.storage.disk_names import lease_of

if TYPE_CHECKING:
    from holdfast_sim.cluster.daemon import ManagedDaemon
    from holdfast_sim.cluster.vm import ManagedDesk

SHARE = 0.5
"""Of the starts on a disk: by a client, where clients are played."""
KILLPATH = "/usr/local/sbin/stop-client"
VALUE_BYTES = 16


class ClientSite:
    """What the clients of all hosts share."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(f"sanlock's clients {seed}")
        self.stopped = False
        """No client begins any more."""
        self._asked: dict[str, float] = {}
        """When the last request for each disk came to its end; for ever, while one is under way."""
        self.values: dict[str, set[bytes]] = {}
        """What the value block of each disk's lease may say; a disk without an entry: anything."""

    def asks(self, resource: str) -> None:
        self._asked[resource] = float("inf")

    def has_asked(self, resource: str, now: float) -> None:
        self._asked[resource] = now

    def is_asked(self, resource: str, since: float) -> bool:
        """Whether somebody may have asked for a lease that is held since then."""
        return self._asked.get(resource, -1.0) >= since

    def begins(self) -> bool:
        """Whether a client is started, and not a virtual machine."""
        return not self.stopped and self.rng.random() < SHARE


class NothingKept:
    """The connections that a daemon finds: none."""

    def __init__(self) -> None:
        self.slots: Slots | None = None
        self.found: Sequence[FoundClient] = ()
        self.owners: Counter[tuple[int, int]] = Counter()
        self.pending: frozenset[int] = frozenset()

    def keep(self, client_id: int, fd: int | None) -> None:
        """Does nothing: connections end with the daemon."""

    def passed_on(self, connections: Iterable[Leftovers]) -> tuple[list[SavedClient], int]:
        return [], -1


class SimulatedConnection:
    """What `SanlockFrontend` asks of a connection. One request at a time, as its client waits for each answer."""

    was_begun = False

    def __init__(self, frontend: SanlockFrontend, pid: int) -> None:
        self.peer = Peer(pid, 0, 0)
        self.client = frontend.clients.add(pid=pid, fd=-1)
        self._frontend = frontend
        self._framer = Framer(commands=frontend.commands, admit=lambda header: frontend.admit(self, header))  # type: ignore[arg-type]
        self.is_open = True
        frontend.connections[self] = None  # type: ignore[index]

    async def ask(self, request: r.AnyRequest) -> replies.Reply | None:
        """The answer; None if there is none, or the connection has ended before it."""
        raw = request_table.encode(request)
        self._framer.feed(raw)
        framed = self._framer.next()
        assert framed is not None, request
        found = self._frontend.answer(self, framed)  # type: ignore[arg-type]
        answer = found if isinstance(found, Answer) else await found
        if not self.is_open:
            return None
        if answer.closes:
            self.close()
        return replies.decode(Command(framed.header.command), answer.raw) if answer.raw else None

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._frontend.closed(self)  # type: ignore[arg-type]

    # --- what only sockets need ---

    def note(self) -> None:
        """Does nothing: no later daemon has this connection."""

    changed = catch_up = note

    def begun(self) -> int:
        return self._frontend.next_request()

    def restrict(self) -> None:
        self._framer.rejecting = True


class HostClients:
    """The clients of one life of a daemon. `run` is the port of commands: it plays killpaths."""

    def __init__(self, daemon: ManagedDaemon, site: ClientSite) -> None:
        self._daemon = daemon
        self.site = site
        parts = daemon.parts
        self.socket = SanlockSocket(
            parts,
            lockspaces=parts.clients,
            backends=parts.client_backends,
            kept=NothingKept(),
            commands=self,
            areas=None,
            version=parts.config.sanlock.version,
            io_timeout_s=parts.config.sanlock.io_timeout_s,
            watchdog=parts.clients.watchdog,
            log_text=bytes,
            end=lambda: None,
        )
        self._connections: dict[int, SimulatedConnection] = {}

    def connection_of(self, pid: int) -> SimulatedConnection | None:
        """The registered one of that process; None if that has not connected again since the daemon started."""
        return self._connections.get(pid)

    async def register(self, pid: int) -> SimulatedConnection:
        connection = self._connections[pid] = SimulatedConnection(self.socket.frontend, pid)
        await connection.ask(r.Register())
        return connection

    async def ask(self, request: r.AnyRequest, *, registered: bool = False) -> replies.Reply | None:
        """By a program that connects, asks and ends: `sanlock client`."""
        processes = self._daemon.state.processes
        pid = next(processes.pids)
        processes.start(pid)
        connection = SimulatedConnection(self.socket.frontend, pid)
        try:
            if registered:
                await connection.ask(r.Register())
            return await connection.ask(request)
        finally:
            connection.close()
            processes.end(pid)

    def is_asked(self, desk: ManagedDesk) -> bool:
        """Whether a request may stand for the lease that a client has of that disk."""
        vm = desk.vm
        return vm is not None and vm.is_client and self.site.is_asked(desk.resource, vm.held_since)

    def ended(self, pid: int) -> None:
        """A process has ended: the daemon finds its connection closed."""
        connection = self._connections.pop(pid, None)
        if connection is not None:
            self._daemon.process.loop.call_soon(connection.close)

    def close(self) -> None:
        """The daemon stops."""
        self.socket.frontend.close()

    async def connect_again(self) -> None:
        """The clients that run find the new daemon, most of them."""
        for vm in list(self._daemon.machine.vms):
            await self._daemon.clock.sleep(self.site.rng.uniform(0, 3))
            alone = vm.is_client and vm.held and vm.running and vm.pid not in self._connections
            if alone and self.site.rng.random() < 0.7:
                await self.register(vm.pid)

    # --- killpaths ---

    async def run(self, command: Sequence[str], timeout_s: float) -> Ended:
        """A killpath: it stops its client in time, too late, or not at all."""
        random, daemon = self.site.rng, self._daemon
        pid = int(command[-1])
        await daemon.clock.sleep(random.choice((0.2, 2.0, 8.0)))
        vm = next((vm for vm in daemon.machine.vms if vm.pid == pid), None)
        if vm is None or random.random() < 0.2:
            return Ended(1, "has done nothing")
        daemon.world.record(daemon.machine.name, f"the killpath of {vm.name} stops it")
        daemon.checkers.writes_no_more(vm)
        vm.paused = True
        if random.random() < 0.5:
            await self.ask(r.Release(ReleaseFlag.ALL, r.Target(pid), ()))
        if vm.running and not vm.stubborn:
            daemon.state.processes.end(pid)
        return Ended(0, "")


class ClientDesk:
    """One disk on one host, for clients."""

    def __init__(self, desk: ManagedDesk, clients: HostClients) -> None:
        self._desk = desk
        self._clients = clients
        self._site = clients.site
        self._daemon = desk.seat.daemon

    def _resource(self, flags: int = 0) -> Resource | None:
        """The disk's lease, as a client says it; None if there is none."""
        seat, name = self._desk.seat, lease_of(self._desk.resource)
        volume, place = seat.volume, self._daemon.checkers.leases.of(seat.space.name, self._desk.resource)
        if volume.directory is not None:
            return Resource.of(seat.space.name, name, Disk(f"{volume.root}/{name}", 0), flags=flags)
        if place is None:
            return None
        return Resource.of(seat.space.name, name, Disk(volume.root, place.offset), flags=flags)

    @property
    def orphan(self) -> Mode | None:
        """How a client that has ended holds the disk on: nobody may have it but a client that asks for the orphan."""
        term, resource = self._desk.seat.term, self._desk.resource
        if term is None or resource not in term.orphans:
            return None
        return term.beliefs.get(resource)

    @property
    def _lock(self) -> HostLock | None:
        """The lease's, in the lock table."""
        name = resource_in(self._desk.seat.space.name, lease_of(self._desk.resource))
        return self._daemon.manager.table.named(name)

    @property
    def is_orphan(self) -> bool:
        """Whether the daemon holds the lease for a client that has ended, by the lock table."""
        manager, lock = self._daemon.manager, self._lock
        owners = [manager.owners.get(owner_id) for owner_id in lock.claims] if lock is not None else []
        return any(owner is not None and owner.keeps_orphans for owner in owners)

    def begins(self) -> bool:
        """Whether a client is started, and not a virtual machine."""
        return self._desk.seat.space.is_added or self._site.begins()

    async def start(self, vm: VirtualMachine, mode: Mode) -> None:
        daemon, rng, orphan = self._daemon, self._site.rng, self.orphan
        was_unknown = len(daemon.manager.unknown) > 0
        vm.name = f"client{vm.pid}"
        connection = await self._clients.register(vm.pid)
        if rng.random() < 0.3:
            await connection.ask(r.Killpath(rng.choice((0, KillpathFlag.PID)), r.OWN, KILLPATH, str(vm.pid)))
        if rng.random() < 0.1:
            await connection.ask(r.Restrict(rng.choice((RestrictFlag.SIGKILL, RestrictFlag.SIGTERM))))
        vm.is_persistent = rng.random() < 0.4 and not self._site.stopped
        flags = AcquireFlag.LVB if rng.random() < 0.5 else 0
        if orphan is not None and rng.random() < 0.6:
            flags, mode = flags | AcquireFlag.ORPHAN, orphan
        if rng.random() < 0.3:
            flags |= AcquireFlag.OWNER_NOWAIT
        resource = self._resource(
            (ResourceFlag.PERSISTENT if vm.is_persistent else 0)
            | (ResourceFlag.SHARED if mode is Mode.SHARED else 0)
        )
        if resource is None:
            self._refused(vm, "there is no such lease")
            return
        begun_at = daemon.world.now
        answer = await connection.ask(r.Acquire(flags, r.OWN, (resource,), Options()))
        result = answer.result if answer is not None else Result.ENOTTY
        if result != Result.OK:
            self._refused(vm, f"result {result}")
            return
        term = self._desk.seat.term
        if not vm.running or term is None:
            return
        is_given_away = self.orphan is not None and Mode.EXCLUSIVE in (orphan, mode)
        if is_given_away and not flags & AcquireFlag.ORPHAN:
            daemon.world.fail("exclusion", f"{vm.name} gets {self._desk.resource}, an orphan", daemon.machine)
        self._desk.is_remembered(vm, term, may_be_adopted=was_unknown or orphan is not None)
        term.orphans.discard(self._desk.resource)
        is_taken_up = orphan is not None and bool(flags & AcquireFlag.ORPHAN)
        vm.held, vm.held_since = True, 0.0 if is_taken_up else begun_at
        self._desk.believes(term, vm, mode)
        daemon.checkers.runs(term, self._desk.resource, vm)
        vm.has_value_block = bool(flags & AcquireFlag.LVB)
        if vm.has_value_block:
            await self._reads_value_block(connection, vm)

    def _refused(self, vm: VirtualMachine, why: str) -> None:
        daemon = self._daemon
        self._desk.last_refusal = f"ACQUIRE: {why}"
        daemon.world.record(daemon.machine.name, f"refuses {self._desk.resource} to {vm.name}: {why}")
        if vm.running:
            daemon.state.processes.end(vm.pid)

    # --- value blocks ---

    async def _reads_value_block(self, connection: SimulatedConnection, vm: VirtualMachine) -> None:
        """Check that the lease's value block is one that a holder has written last."""
        resource, values = self._desk.resource, self._site.values
        answer = await connection.ask(r.GetLvb(VALUE_BYTES, self._named()))
        term = self._desk.seat.term
        if not isinstance(answer, replies.ValueBlock) or answer.result != Result.OK:
            return
        if not vm.writes or term is None or term.vms.get(resource) is not vm:
            return
        known = values.get(resource, {bytes(VALUE_BYTES)})
        if answer.value_block not in known:
            self._daemon.world.fail(
                "value blocks",
                f"{vm.name} reads {answer.value_block!r} of {resource}, which may say {sorted(known)}",
                self._daemon.machine,
            )
        if term.beliefs.get(resource) is Mode.EXCLUSIVE:
            values[resource] = {answer.value_block}

    async def _writes_value_block(self, connection: SimulatedConnection, vm: VirtualMachine) -> None:
        term, resource = self._desk.seat.term, self._desk.resource
        if not vm.has_value_block or term is None or term.beliefs.get(resource) is not Mode.EXCLUSIVE:
            return
        content = f"{vm.name} {self._site.rng.randrange(1000)}".encode().ljust(VALUE_BYTES, b".")
        self._site.values.setdefault(resource, {bytes(VALUE_BYTES)}).add(content)
        await connection.ask(r.SetLvb(self._named(), content))

    # --- the end ---

    async def stop(self, vm: VirtualMachine) -> None:
        daemon, rng = self._daemon, self._site.rng
        connection = self._clients.connection_of(vm.pid)
        if connection is not None and rng.random() < 0.5:
            await self._writes_value_block(connection, vm)
        if rng.random() < 0.5 and vm.running:
            await self._release(vm)
        if vm.running:
            daemon.state.processes.end(vm.pid)
        while self._is_held(vm):
            await daemon.clock.sleep(0.2)

    async def _release(self, vm: VirtualMachine) -> None:
        """By its own connection, or by `sanlock client release -p`."""
        daemon, connection = self._daemon, self._clients.connection_of(vm.pid)
        vm.paused = True
        vm.is_persistent = False
        daemon.checkers.writes_no_more(vm)
        if connection is not None and self._site.rng.random() < 0.7:
            answer = await connection.ask(r.Release(0, r.OWN, (self._named(),)))
        else:
            answer = await self._clients.ask(r.Release(ReleaseFlag.ALL, r.Target(vm.pid), ()))
        result = answer and answer.result
        daemon.world.record(daemon.machine.name, f"{vm.name} releases {self._desk.resource}: {result}")

    def _named(self) -> Resource:
        return Resource.of(self._desk.seat.space.name, lease_of(self._desk.resource), Disk())

    def _is_held(self, vm: VirtualMachine) -> bool:
        """Whether the process has the lease still, by the lock table."""
        manager, lock = self._daemon.manager, self._lock
        owner = manager.owners.with_pid(vm.pid)
        return lock is not None and owner is not None and owner.id in lock.claims

    async def release_orphan(self) -> None:
        term = self._desk.seat.term
        if term is None or not self._daemon.serving:
            return
        self._daemon.checkers.orphan_ends(term, self._desk.resource)
        released = r.Release(ReleaseFlag.ORPHAN, r.OWN, (self._named(),))
        answer = await self._clients.ask(released, registered=True)
        result = answer and answer.result
        self._daemon.world.record(
            self._daemon.machine.name, f"{result} orphans of {self._desk.resource} are released"
        )

    # --- while it is held ---

    async def convert(self, vm: VirtualMachine) -> None:
        term, connection = self._desk.seat.term, self._clients.connection_of(vm.pid)
        before = term.beliefs.get(self._desk.resource) if term is not None else None
        if term is None or connection is None or before is None:
            return
        wanted = Mode.SHARED if before is Mode.EXCLUSIVE else Mode.EXCLUSIVE
        if wanted is Mode.SHARED:
            await self._writes_value_block(connection, vm)
            # The client stops writing at this order; in both cases its lease must stay held throughout.
            self._desk.believes(term, vm, Mode.SHARED)
        flags = ResourceFlag.SHARED if wanted is Mode.SHARED else 0
        begun_at = self._daemon.world.now
        answer = await connection.ask(r.Convert(0, r.OWN, self._named()._replace(flags=flags)))
        result = answer and answer.result
        daemon = self._daemon
        if result != Result.OK:
            daemon.world.record(
                daemon.machine.name, f"does not convert {self._desk.resource} for {vm.name}: {result}"
            )
        elif vm.running and not vm.paused and not term.over and term.vms.get(self._desk.resource) is vm:
            self._desk.believes(term, vm, wanted)
            vm.held_since = begun_at if wanted is Mode.EXCLUSIVE else vm.held_since

    async def ask_for(self) -> None:
        """REQUEST: the holder on another host is to give it up."""
        resource, daemon, site = self._resource(), self._daemon, self._site
        if resource is None:
            return
        force = site.rng.choice((ForceMode.GRACEFUL, ForceMode.FORCE))
        site.asks(self._desk.resource)
        try:
            answer = await self._clients.ask(r.Request(RequestFlag.NEXT_LVER, force, resource))
        finally:
            site.has_asked(self._desk.resource, daemon.world.now)
        result = answer and answer.result
        daemon.world.record(daemon.machine.name, f"asks for {self._desk.resource}, {force.name}: {result}")

"""All clients of sanlock's protocol: which command goes where, and what is answered without the engine.

A command that is bound to a registered client is checked twice: at its header, where a refusal goes out at once, and
when it is whole, where the client is marked as busy. So half a request keeps nobody's client busy.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from holdfast.frontends.listener import Listener, Peer
from holdfast.frontends.sanlock.client_records import client_record, name_of_command
from holdfast.frontends.sanlock.clients import Client, Clients, bound_to_client
from holdfast.frontends.sanlock.connection import Answer, Leftovers, SanlockConnection
from holdfast.frontends.sanlock.connection_slots import CHANNEL, REGISTERED, Entry, Slots
from holdfast.frontends.sanlock.event_channels import EventChannels
from holdfast.frontends.sanlock.service import SanlockService
from holdfast.ondisk.delta import Event
from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.protocol.types import Generation, HostId
from holdfast.system.epoll import Readiness
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.command import EVERY_COMMAND, Command, Served, served
from holdfast.wire.sanlock.flags import RestrictFlag
from holdfast.wire.sanlock.framer import Framed
from holdfast.wire.sanlock.header import EXIT_HEADER, Header
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import StateRecord
from holdfast.wire.sanlock.structures import EventCallback, HostEvent

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 4096
"""sanlock has 1024 slots and promises 1000 clients; a registered client of ours costs a descriptor and 2 KiB."""
UPTO_DAEMON, UPTO_CLIENTS, UPTO_LOCKSPACES = 1, 2, 3
"""STATUS ends behind these records."""


def _own_slot(client_id: int, name: str) -> Client:
    client = Client(client_id, pid=-1, fd=-1)
    client.name = name
    return client


_MAY_BE_REPEATED = frozenset(
    (
        r.AddLockspace,
        r.RemLockspace,
        r.InqLockspace,
        r.ExamineLockspace,
        r.ExamineResource,
        r.SetEvent,
        r.Request,
        r.Align,
        r.WriteLockspace,
        r.WriteResource,
        r.ReadLockspace,
        r.ReadLockspaceHost,
        r.ReadResource,
        r.ReadResourceOwners,
        r.SetLvb,
        r.GetLvb,
        r.LookupRindex,
    )
)
"""Of the commands that are not bound to a client: carried out twice, they come to the same. After a crash within any other
one the connection is closed, as nobody knows whether it was carried out.
"""
_OWN_SLOTS = (_own_slot(0, "helper"), _own_slot(1, "listener"))
"""sanlock's own, which its clients are used to see in STATUS."""


class SanlockFrontend:
    """`version` is what VERSION answers, as 0xMMmmpp00; `commands` are those that are not dropped as unknown. `slots` has
    what the next daemon finds of each connection, and `keep` has one outlive this daemon (None: not any more), by its
    client id; without `slots`, connections end with it.
    """

    def __init__(
        self,
        service: SanlockService,
        *,
        readiness: Readiness,
        version: int,
        commands: frozenset[Command] = EVERY_COMMAND,
        slots: Slots | None = None,
        keep: Callable[[int, int | None], None] = lambda _id, _fd: None,
    ) -> None:
        self._service = service
        self._version = version
        self.readiness = readiness
        self.commands = commands
        self.clients = Clients()
        self.connections: dict[SanlockConnection, None] = {}
        self.listener: Listener | None = None
        self._channels = EventChannels()
        self._catching_up = False
        self._slots = slots
        self._keep = keep
        self._adopted: list[tuple[SanlockConnection, Entry, Leftovers | None]] = []
        self._known: asyncio.Event | None = None
        self._counted: frozenset[int] = frozenset()
        self._last_request = 0  # without slots
        self.is_ending = False
        s = service
        self._at_once: dict[type, Callable[[Any], replies.Reply]] = {
            r.Status: self._status,
            r.LogDump: lambda _: s.log_dump(),
            r.HostStatus: s.host_status,
            r.Renewal: s.renewal,
            r.GetLockspaces: s.get_lockspaces,
            r.GetHosts: s.get_hosts,
            r.SetConfig: s.set_config,
            r.EndEvent: self._end_event,
        }
        self._in_time: dict[type, Callable[[Any], Coroutine[Any, Any, replies.Reply]]] = {
            r.ShutdownWait: s.shutdown_wait,
            r.AddLockspace: s.add_lockspace,
            r.RemLockspace: s.rem_lockspace,
            r.InqLockspace: s.inq_lockspace,
            r.ExamineLockspace: s.examine_lockspace,
            r.ExamineResource: s.examine_resource,
            r.SetEvent: s.set_event,
            r.Request: s.request,
            r.Align: s.align,
            r.WriteLockspace: s.write_lockspace,
            r.ReadLockspace: s.read_lockspace,
            r.ReadLockspaceHost: s.read_lockspace_host,
            r.InitLockspaceHost: s.init_lockspace_host,
            r.SetHost: s.set_host,
            r.WriteResource: s.write_resource,
            r.ReadResource: s.read_resource,
            r.ReadResourceOwners: s.read_resource_owners,
            r.SetLvb: s.set_lvb,
            r.GetLvb: s.get_lvb,
            r.FormatRindex: s.format_rindex,
            r.RebuildRindex: s.rebuild_rindex,
            r.UpdateRindex: s.update_rindex,
            r.LookupRindex: s.lookup_rindex,
            r.CreateResource: s.create_resource,
            r.DeleteResource: s.delete_resource,
        }
        self._again: dict[type, Callable[[Any], Coroutine[Any, Any, replies.Reply]]] = {
            **self._in_time,
            r.AddLockspace: s.add_lockspace_again,
            r.RemLockspace: s.rem_lockspace_again,
        }
        self._for_client: dict[type, Callable[[Client, Any], Coroutine[Any, Any, replies.Reply]]] = {
            r.Acquire: s.acquire,
            r.Acquire2: s.acquire2,
            r.Release: s.release,
            r.Inquire: s.inquire,
            r.Convert: s.convert,
            r.Killpath: s.killpath,
        }

    # --- connections ---

    def listen(self, sock: socket.socket, *, clients_max: int = CONNECTIONS_MAX, cap_key: str) -> None:
        """Begin to accept; `cap_key` is the configuration's name for the bound. Who may connect, the socket's mode says."""
        self.listener = Listener(
            "sanlock",
            sock,
            clients_max=clients_max,
            cap_key=cap_key,
            readiness=self.readiness,
            admit=lambda peer, sock: "",
            serve=self.serve,
        )
        self.listener.start()

    def serve(self, sock: socket.SocketType, peer: Peer) -> None:
        client = self.clients.add(pid=peer.pid, fd=sock.fileno())
        client.slot = self._slots.of(client.client_id) if self._slots is not None else None
        connection = SanlockConnection(self, sock, peer, client)
        self.connections[connection] = None
        connection.start()

    def keep(self, client: Client, fd: int | None) -> None:
        self._keep(client.client_id, fd)

    def next_request(self) -> int:
        if self._slots is not None:
            return self._slots.next_request()
        self._last_request += 1
        return self._last_request

    def hung_up(self, connection: SanlockConnection) -> None:
        """A client has gone while its connection waits for a command's end."""
        client = connection.client
        client.dead = True
        if client.registered and client.active is not None:
            self._service.client_died(client)

    def closed(self, connection: SanlockConnection) -> None:
        del self.connections[connection]
        self._channels.remove(connection)
        if self.listener is not None:
            self.listener.left()
        client = connection.client
        client.connected = False
        known, client.dead = client.dead, True
        if client.active is None:
            self._gone(client)
        elif not known and not self.is_ending:
            self._service.client_died(client)

    def _gone(self, client: Client) -> None:
        self.clients.remove(client)
        if client.registered and not self.is_ending:
            self._service.client_closed(client)

    def close(self) -> None:
        """The daemon ends: that is no client's end, and none is reported."""
        self.is_ending = True
        if self.listener is not None:
            self.listener.close()
        for connection in list(self.connections):
            connection.close()

    # --- events ---

    def publish(
        self, lockspace: str, to_host_id: int, event: Event, sender: tuple[HostId, Generation]
    ) -> None:
        """An event for that host of this lockspace, to all clients that wait for it."""
        seen = HostEvent(to_host_id, event.generation, event.number, event.argument)
        self._channels.publish(lockspace, EventCallback(seen, int(sender[0]), int(sender[1])))

    def lockspace_gone(self, lockspace: str) -> None:
        """Its event channels end."""
        self._channels.close_all(lockspace)

    # --- over a restart ---

    def admit_early(self, of_earlier: Collection[int]) -> None:
        """Serve connections while it is not known yet what an earlier daemon's clients hold: what does not depend on that is
        answered, and all else waits for `serve_adopted`. `of_earlier`: the numbers of clients that `adopt` will enter.
        """
        self.clients.reserve(of_earlier)
        self._counted = frozenset(of_earlier)
        self._known = asyncio.Event()
        if self.listener is not None:
            for _ in of_earlier:
                self.listener.adopted()
            self.listener.start()

    async def _when_known(
        self, known: asyncio.Event, connection: SanlockConnection, framed: Framed
    ) -> Answer:
        await known.wait()
        header = framed.header
        if (refused := self.admit(connection, header)) is not None:
            return Answer(replies.refusal(header, framed.body, refused).encode(header))
        answer = self.answer(connection, framed)
        return answer if isinstance(answer, Answer) else await answer

    def adopt(
        self, client_id: int, sock: socket.SocketType, peer: Peer, entry: Entry, left: Leftovers | None
    ) -> Client:
        """A connection that an earlier daemon had; `serve_adopted` resumes it. `left` as a re-exec has passed it on."""
        client = self.clients.add_at(client_id, pid=peer.pid, fd=sock.fileno())
        client.slot = self._slots.of(client_id) if self._slots is not None else None
        client.restricted, client.owner_id = entry.restricted, entry.owner
        connection = SanlockConnection(self, sock, peer, client)
        if entry.kind & REGISTERED:
            self.clients.register(client)
        client.name = entry.name.decode("utf-8", "surrogateescape")
        if entry.restricted & RestrictFlag.ALL:
            connection.restrict()
        if entry.kind & CHANNEL:
            self._channels.add(PaddedName(entry.lockspace.ljust(NAME_BYTES, b"\0")), connection)
        self.connections[connection] = None
        if self.listener is not None and client_id not in self._counted:
            self.listener.adopted()
        self._adopted.append((connection, entry, left))
        return client

    def serve_adopted(self) -> None:
        """Resume them, when what they hold is known: an end of file ends it, and a request is about it."""
        adopted, self._adopted = self._adopted, []
        known, self._known = self._known, None
        for connection, entry, left in adopted:
            try:
                connection.resume(entry, left)
            except Exception:  # one client's error must not end the daemon here
                log.exception("the connection of %s could not go on", connection.client)
        if known is not None:
            known.set()

    def keep_process(self, pid: int) -> Client:
        """A process that was registered with an earlier daemon, on a connection that is gone."""
        return self.clients.add_kept(pid)

    def kept_ended(self, pid: int) -> None:
        """Such a process has ended."""
        if (client := self.clients.kept_of(pid)) is not None:
            client.dead = True
            self.clients.remove(client)

    def _register(self, client: Client) -> None:
        if client.registered:
            return
        kept = self.clients.kept_of(client.pid)
        if kept is not None and kept.active is not None:
            kept = None  # a command by its pid is under way for it: it stays beside the new one
        if kept is not None:
            self.clients.remove(kept)
        self.clients.register(client)
        self._service.client_registered(client, kept)

    # --- requests ---

    def admit(self, connection: SanlockConnection, header: Header) -> Result | None:
        """At a header: the result that refuses it, before its body is read."""
        client = connection.client
        client.last = Command(header.command)
        if not client.registered:
            client.name = name_of_command(client.last)
        if not bound_to_client(header) or self._known is not None:
            return None
        found = self._target(connection, header)
        return found if isinstance(found, Result) else None

    def _target(self, connection: SanlockConnection, header: Header) -> Client | Result:
        found = self.clients.target(connection.client, header)
        if found is Result.ESRCH and self._caught_up(connection, header):
            found = self.clients.target(connection.client, header)
        return found

    def _caught_up(self, asking: SanlockConnection, header: Header) -> bool:
        """Read what that process has sent: its REGISTER may have come before this command, and be served later.

        False if that is under way already.
        """
        if self._catching_up:
            return False
        self._catching_up = True
        for connection in list(self.connections):
            if (
                connection is not asking
                and connection.peer.pid == header.data2
                and not connection.client.registered
            ):
                connection.catch_up()
        self._catching_up = False
        return True

    def answer(self, connection: SanlockConnection, framed: Framed) -> Answer | Coroutine[Any, Any, Answer]:
        header = framed.header
        if framed.refused is not None:
            return Answer(replies.refusal(header, framed.body, framed.refused).encode(header))
        if self._known is not None and not _is_known_at_once(header):
            return self._when_known(self._known, connection, framed)
        closes = served(Command(header.command)) is Served.CLOSES
        try:
            return self._begin(connection, framed)
        except Exception:
            return Answer(_failure(header, framed.body), closes=closes)

    def _begin(self, connection: SanlockConnection, framed: Framed) -> Answer | Coroutine[Any, Any, Answer]:
        header = framed.header
        request = request_table.decode(header, framed.body)
        match request:
            case r.Register():
                self._register(connection.client)
                connection.note()
                return Answer()
            case r.Restrict():
                connection.client.restricted = request.flags
                self._service.client_restricted(connection.client)
                connection.changed()
                if request.flags & RestrictFlag.ALL:
                    connection.restrict()
                return Answer(replies.Plain().encode(header))
            case r.Version():
                return Answer(replies.Plain(Result.OK, self._version).encode(header))
            case r.Shutdown():
                self._service.shutdown(request)
                return Answer(closes=True)
            case r.RegEvent():
                return self._reg_event(connection, header, request)
            case _:
                pass
        kind = type(request)
        if kind in self._at_once:
            return Answer(self._at_once[kind](request).encode(header), closes=True)
        if kind in self._in_time:
            if connection.was_begun and kind not in _MAY_BE_REPEATED:
                log.warning(
                    "%s has to ask again: an earlier daemon has begun with its %s",
                    connection.client,
                    kind.__name__,
                )
                return Answer(closes=True)
            connection.begun()
            return self._finish(
                framed, (self._again if connection.was_begun else self._in_time)[kind](request)
            )
        target = self._target(connection, header)
        if isinstance(target, Result):
            return Answer(replies.Plain(target).encode(header))
        target.active = Command(header.command)
        target.request = connection.begun()
        if isinstance(request, r.Acquire | r.Acquire2):
            target.name = request.options.owner_name.text
            if target.slot is not None:
                target.slot.name(target.name)
        return self._finish_for(target, framed, self._for_client[kind](target, request))

    async def _finish(self, framed: Framed, rest: Coroutine[Any, Any, replies.Reply]) -> Answer:
        header = framed.header
        try:
            reply = await rest
        except Exception:
            return Answer(_failure(header, framed.body))
        if header.command == Command.SHUTDOWN_WAIT and reply.result == Result.OK:
            return Answer(EXIT_HEADER.encode(), closes=True)
        return Answer(reply.encode(header))

    async def _finish_for(
        self, target: Client, framed: Framed, rest: Coroutine[Any, Any, replies.Reply]
    ) -> Answer:
        try:
            return await self._finish(framed, rest)
        finally:
            target.active = None
            if not target.connected:
                self._gone(target)

    # --- answered here ---

    def _status(self, request: r.Status) -> replies.Records:
        state = self._service.status()
        records: tuple[StateRecord, ...] = (state.daemon,)
        if request.upto != UPTO_DAEMON:
            records += state.threads + tuple(map(client_record, (*_OWN_SLOTS, *self.clients.in_order())))
            if request.upto != UPTO_CLIENTS:
                records += state.lockspaces
                if request.upto != UPTO_LOCKSPACES:
                    records += state.resources
        return replies.Records(Result.OK, records)

    def _reg_event(self, connection: SanlockConnection, header: Header, request: r.RegEvent) -> Answer:
        result = self._service.event_lockspace(request.lockspace).result
        if result == Result.OK:
            result = self._channels.add(request.lockspace.name, connection)
        good = result == Result.OK
        lockspace = request.lockspace.name.text.encode("utf-8", "surrogateescape")
        return Answer(
            replies.Plain(result).encode(header), closes=not good, events=lockspace if good else b""
        )

    def _end_event(self, request: r.EndEvent) -> replies.Plain:
        reply = self._service.event_lockspace(request.lockspace)
        if reply.result == Result.OK:
            self._channels.close_ended(request.lockspace.name)
        return reply


def _is_known_at_once(header: Header) -> bool:
    """Whether the answer does not depend on what clients of an earlier daemon hold."""
    if header.command == Command.STATUS:
        return header.data == UPTO_DAEMON
    return header.command in (Command.VERSION, Command.LOG_DUMP)


def _failure(header: Header, body: bytes) -> bytes:
    """The answer to a command whose service failed unexpectedly; called while that is handled."""
    log.exception("unexpected failure serving %s of a sanlock client", Command(header.command).name)
    return replies.refusal(header, body, Result.ERROR).encode(header)

"""Who is connected, and whose leases a command is about (sanlock-socket.md 1.2 and 2.2).

Each connection has a slot, whose number is its client id: the first free one. REGISTER makes it a process's registered
connection; the pid is that of the process which called connect(), also when others have the descriptor by now.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Collection

from holdfast.frontends.sanlock.connection_slots import Slot
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.command import Command, Served, served
from holdfast.wire.sanlock.header import Header
from holdfast.wire.sanlock.request_table import target_of
from holdfast.wire.sanlock.result import Result

FIRST_CLIENT_ID = 2
"""sanlock's slots 0 and 1 are its own: the helper and the listener."""


class Client:
    """One connection as commands and `status` see it. `kill_count`, `kill_last_s` and `owner_id` are the service's."""

    __slots__ = (
        "active",
        "client_id",
        "connected",
        "dead",
        "fd",
        "kept",
        "kill_count",
        "kill_last_s",
        "last",
        "name",
        "owner_id",
        "pid",
        "registered",
        "request",
        "restricted",
        "slot",
    )

    def __init__(self, client_id: int, *, pid: int, fd: int) -> None:
        self.client_id = client_id
        self.pid = pid
        self.fd = fd
        self.registered = False
        self.connected = True
        """Its connection is open on our side."""
        self.kept = False
        """An earlier daemon had its connection: commands by its pid are for it until its process ends."""
        self.dead = False
        """Its process has ended the connection."""
        self.active: Command | None = None
        """The command that is under way for it: one at a time."""
        self.last: Command | None = None
        """The last command that arrived on its connection."""
        self.restricted = 0
        """`RestrictFlag`s."""
        self.name = ""
        """What `status` calls it: the command; once it is registered, the pid, then its last ACQUIRE's owner name."""
        self.kill_count = 0
        """How often it was signalled because its lockspace failed or leaves; 0: it is not being killed."""
        self.kill_last_s = 0
        self.request = 0
        """The number of the command that is under way for it, or was the last one: what it does is marked with that."""
        self.owner_id = 0
        """The number of its owner; 0: it has none."""
        self.slot: Slot | None = None
        """What the next daemon finds of its connection."""

    def __str__(self) -> str:
        return f"client {self.client_id} (pid {self.pid})"

    def __lt__(self, other: Client) -> bool:
        return self.client_id < other.client_id


class Clients:
    """All of them, by slot, and registered ones by pid."""

    def __init__(self) -> None:
        self._by_id: dict[int, Client] = {}
        self._free: list[int] = []
        self._next = FIRST_CLIENT_ID
        self._reserved: set[int] = set()
        self._registered: dict[int, list[Client]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def in_order(self) -> list[Client]:
        """By their slots."""
        return [self._by_id[client_id] for client_id in sorted(self._by_id)]

    def add(self, *, pid: int, fd: int) -> Client:
        """In the first free slot."""
        return self.add_at(self._free[0] if self._free else self._next, pid=pid, fd=fd)

    def reserve(self, client_ids: Collection[int]) -> None:
        """These slots are of connections that an earlier daemon had: `add` takes none of them."""
        for client_id in client_ids:
            self._take(client_id)
        self._reserved.update(client_ids)

    def _take(self, client_id: int) -> None:
        if client_id in self._reserved:
            self._reserved.remove(client_id)
        elif client_id >= self._next:
            for skipped in range(self._next, client_id):
                heapq.heappush(self._free, skipped)
            self._next = client_id + 1
        elif self._free[0] == client_id:
            heapq.heappop(self._free)
        else:
            self._free.remove(client_id)
            heapq.heapify(self._free)

    def add_at(self, client_id: int, *, pid: int, fd: int) -> Client:
        """In this slot, which is free: of a connection that an earlier daemon had there."""
        self._take(client_id)
        client = self._by_id[client_id] = Client(client_id, pid=pid, fd=fd)
        return client

    def register(self, client: Client) -> None:
        if not client.registered:
            client.registered = True
            client.name = str(client.pid)
            bisect.insort(self._registered.setdefault(client.pid, []), client)

    def add_kept(self, pid: int) -> Client:
        """A registered process whose connection an earlier daemon had."""
        client = self.add(pid=pid, fd=-1)
        client.kept = True
        self.register(client)
        return client

    def kept_of(self, pid: int) -> Client | None:
        return next((client for client in self._registered.get(pid, ()) if client.kept), None)

    def remove(self, client: Client) -> None:
        """Give its slot to the next one."""
        del self._by_id[client.client_id]
        heapq.heappush(self._free, client.client_id)
        if client.registered:
            same_pid = self._registered[client.pid]
            same_pid.remove(client)
            if not same_pid:
                del self._registered[client.pid]

    def of_process(self, pid: int) -> list[Client]:
        """Its registered connections that are open, by their slots."""
        return [client for client in self._registered.get(pid, ()) if not client.dead]

    def target(self, sender: Client, header: Header) -> Client | Result:
        """Whose leases this command is about, or the result that refuses it, in the order of sanlock-socket.md 2.2."""
        target = target_of(header)
        found = sender if target == r.OWN else self._named(target)
        if found is None:
            return Result.ESRCH
        if not found.registered or found.dead:
            return Result.EBUSY
        if header.command == Command.KILLPATH and found is not sender:
            return Result.EINVAL
        if found.kill_count and header.command in _ACQUIRE:
            return Result.EBUSY
        return Result.EBUSY if found.active is not None else found

    def _named(self, target: r.Target) -> Client | None:
        """A process with several registered connections is meant by the one in the lowest slot."""
        if target.by_client_id:
            found = self._by_id.get(target.number)
            return found if found is not None and found.registered else None
        same_pid = self._registered.get(target.number)
        return same_pid[0] if same_pid else None


_ACQUIRE = frozenset((Command.ACQUIRE, Command.ACQUIRE2))


def bound_to_client(header: Header) -> bool:
    return served(Command(header.command)) is Served.CLIENT

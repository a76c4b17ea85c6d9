"""Connections that an earlier daemon had: what the frontend makes of what is in them."""

from __future__ import annotations

import asyncio
import os
import select
import socket

from tests.support.sanlock_service import FakeService

from holdfast.frontends.listener import peer_of
from holdfast.frontends.sanlock.connection_slots import GOOD, REGISTERED, SLOTS_BYTES, Entry, Slots
from holdfast.frontends.sanlock.frontend import UPTO_DAEMON, SanlockFrontend
from holdfast.ondisk.padded_name import PaddedName
from holdfast.system.epoll import Readiness
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import ReleaseFlag, RestrictFlag
from holdfast.wire.sanlock.header import HEADER_BYTES

ONE = s.Resource.of("LS", "R1", s.Disk("/lease", 1048576))
NUMBER = 5


class Next:
    """A daemon that gets one connection, and the client's end of that."""

    def __init__(self, *requests: r.AnyRequest | bytes) -> None:
        self.service = FakeService()
        self.service.lockspaces["LS"] = s.Lockspace.of("LS", 1, "/lease")
        self.slots = Slots(bytearray(SLOTS_BYTES))
        self.kept: list[tuple[int, int | None]] = []
        self.frontend = SanlockFrontend(
            self.service,
            readiness=Readiness(asyncio.get_running_loop()),
            version=1,
            slots=self.slots,
            keep=lambda client_id, fd: self.kept.append((client_id, fd)),
        )
        self.ours, self.client = socket.socketpair()
        self.client.settimeout(5)
        for each in requests:
            self.client.sendall(each if isinstance(each, bytes) else request_table.encode(each))

    def adopt(self, *, kind: int = REGISTERED, restricted: int = 0, request: int = 0) -> None:
        entry = Entry(GOOD, kind, restricted, request, 0, 1, b"vm")
        slot = self.slots.of(NUMBER)
        assert slot is not None
        slot.write(entry)
        self.frontend.adopt(NUMBER, self.ours, peer_of(self.ours), entry, None)
        self.frontend.serve_adopted()

    async def answer(self) -> tuple[Command, replies.Reply]:
        raw = await asyncio.to_thread(self.client.recv, 4096)
        command = Command(int.from_bytes(raw[8:12], "little"))
        return command, replies.decode(command, raw)

    def close(self) -> None:
        self.service.gate.set()
        self.frontend.close()
        self.frontend.readiness.close()
        for each in (self.ours, self.client):
            each.close()

    @property
    def entry(self) -> Entry:
        slot = self.slots.of(NUMBER)
        assert slot is not None
        return slot.read()

    def left_in_the_socket(self) -> int:
        try:
            return len(self.ours.recv(1 << 16, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0


def test_request_stays_in_the_socket_until_it_is_answered() -> None:
    async def scene() -> None:
        raw = request_table.encode(r.Acquire(0, r.OWN, (ONE,)))
        daemon = Next(raw)
        daemon.service.gate.clear()
        daemon.adopt()
        assert daemon.entry.request, "it is begun"
        daemon.ours.setsockopt(socket.SOL_SOCKET, 42, 0)  # SO_PEEK_OFF: as the next daemon begins
        assert daemon.left_in_the_socket() == len(raw)
        assert daemon.entry.state == GOOD
        daemon.service.gate.set()
        assert await daemon.answer() == (Command.ACQUIRE, replies.Plain(0))
        assert daemon.left_in_the_socket() == 0
        assert (daemon.entry.state, daemon.entry.request) == (GOOD, 0)
        daemon.close()

    asyncio.run(scene())


def test_half_of_a_request_stays_in_the_socket() -> None:
    async def scene() -> None:
        raw = request_table.encode(r.Acquire(0, r.OWN, (ONE,)))
        daemon = Next(raw[:50])
        daemon.adopt()
        await asyncio.sleep(0.05)
        daemon.client.sendall(raw[50:])
        assert await daemon.answer() == (Command.ACQUIRE, replies.Plain(0))
        daemon.close()

    asyncio.run(scene())


def test_number_of_a_request_that_was_begun_is_kept() -> None:
    async def scene() -> None:
        daemon = Next(r.Acquire(0, r.OWN, (ONE,)))
        daemon.service.gate.clear()
        daemon.adopt(request=77)
        (client,) = daemon.frontend.clients.in_order()
        assert client.request == 77
        daemon.service.gate.set()
        await daemon.answer()
        daemon.close()

    asyncio.run(scene())


def test_what_may_not_be_carried_out_twice_ends_the_connection() -> None:
    async def scene() -> None:
        request = r.FormatRindex(s.Rindex(PaddedName.of("LS"), 0, 0, s.Disk("/lease", 0)))
        daemon = Next(request)
        daemon.adopt(kind=0, request=77)
        assert await asyncio.to_thread(daemon.client.recv, 1) == b""
        assert daemon.kept == [(NUMBER, None)]
        again = Next(request)
        again.adopt(kind=0)
        assert (await again.answer())[0] == Command.FORMAT_RINDEX, "it had not begun"
        again.close()
        daemon.close()

    asyncio.run(scene())


def test_nothing_is_done_for_a_client_that_has_gone() -> None:
    async def scene() -> None:
        lockspace = s.Lockspace.of("LS", 1, "/lease")
        daemon = Next(r.WriteLockspace(0, 0, 1, lockspace))
        daemon.client.close()
        daemon.adopt()
        await asyncio.sleep(0.02)
        assert not daemon.service.seen
        assert daemon.service.closed == [os.getpid()], "its leases end"
        daemon.close()

    asyncio.run(scene())


def test_restricted_connection_is_it_still() -> None:
    async def scene() -> None:
        daemon = Next(r.Version())
        daemon.adopt(restricted=RestrictFlag.ALL)
        await asyncio.sleep(0.02)
        daemon.client.setblocking(False)
        try:
            raise AssertionError(daemon.client.recv(HEADER_BYTES))
        except BlockingIOError:
            pass
        daemon.close()

    asyncio.run(scene())


def test_daemon_that_ends_leaves_the_request_to_the_next_one() -> None:
    async def scene() -> None:
        raw = request_table.encode(r.Acquire(0, r.OWN, (ONE,)))
        daemon = Next(raw)
        copy = daemon.ours.dup()  # the descriptor store's
        daemon.service.gate.clear()
        daemon.adopt()
        number = daemon.entry.request
        daemon.frontend.close()
        daemon.service.gate.set()
        await asyncio.sleep(0.02)
        copy.setsockopt(socket.SOL_SOCKET, 42, 0)
        assert copy.recv(1 << 16) == raw
        copy.close()
        assert (daemon.entry.state, daemon.entry.request) == (GOOD, number)
        assert not daemon.kept
        daemon.close()

    asyncio.run(scene())


def test_what_depends_on_clients_of_an_earlier_daemon_waits_until_they_are_known() -> None:
    """It is killed with thousands of leases: the next daemon can be asked at once what it is."""

    async def scene() -> None:
        daemon = Next(r.Acquire(0, r.OWN, (ONE,)))
        daemon.frontend.admit_early([NUMBER])
        clients = []
        for _ in range(7):
            ours, theirs = socket.socketpair()
            theirs.settimeout(5)
            daemon.frontend.serve(ours, peer_of(ours))
            clients.append(theirs)
        assert [each.client_id for each in daemon.frontend.clients.in_order()] == [2, 3, 4, 6, 7, 8, 9]
        version, daemon_only, log, releases, lists, registers, gone = clients
        by_pid = r.Target(os.getpid())
        releases.sendall(request_table.encode(r.Release(ReleaseFlag.ALL, by_pid, ())))
        lists.sendall(request_table.encode(r.Status()))
        registers.sendall(request_table.encode(r.Register()))
        gone.sendall(request_table.encode(r.Inquire(0, by_pid)))
        gone.close()
        for client, request in (
            (version, r.Version()),
            (daemon_only, r.Status(UPTO_DAEMON)),
            (log, r.LogDump()),
        ):
            client.sendall(request_table.encode(request))
            assert await asyncio.to_thread(client.recv, 4096)
        waiting = releases, lists
        assert not daemon.service.seen
        assert not select.select(waiting, [], [], 0)[0], "doubt is not 'free'"
        daemon.adopt()
        assert await daemon.answer() == (Command.ACQUIRE, replies.Plain(0))
        for each in waiting:
            assert await asyncio.to_thread(each.recv, 4096)
        assert [type(each) for each in daemon.service.seen[:2]] == [r.Acquire, r.Release], "the earlier first"
        assert daemon.service.held[NUMBER] == []
        daemon.close()
        for each in clients:
            each.close()

    asyncio.run(scene())

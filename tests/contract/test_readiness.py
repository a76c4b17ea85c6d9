"""Descriptors that are watched, and that are not watched any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

from tests.unit.manager.world import World

from holdfast.frontends.listener import Peer
from holdfast.frontends.virtlockd import VirtlockdFrontend
from holdfast.system.epoll import Readiness
from holdfast.testing.fakes import settle
from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire


def ready(what: Readiness | socket.socket) -> bool:
    poll = select.poll()
    poll.register(what, select.POLLIN)
    return bool(poll.poll(0))


async def turns_of_the_loop(happened: Callable[[], bool]) -> None:
    for _ in range(100):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


def test_forgotten_and_closed_descriptor_is_not_heard_of_again() -> None:
    async def scene() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        heard: list[str] = []
        ours, peer = socket.socketpair()
        number = ours.fileno()
        readiness.add(number, lambda: heard.append("first"))
        readiness.forget(number)
        ours.close()
        peer.close()
        again, other = socket.socketpair()
        if (descriptor := again.detach()) != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        readiness.add(number, lambda: heard.append("second"))
        other.send(b"x")
        await turns_of_the_loop(lambda: "second" in heard)
        assert "first" not in heard
        readiness.forget(number)
        os.close(number)
        readiness.close()
        other.close()

    asyncio.run(scene())


def test_removed_descriptor_is_not_heard_of_although_a_copy_of_it_lives() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        readiness = Readiness(loop)
        ours, peer = socket.socketpair()
        copy = os.dup(ours.fileno())
        readiness.add(ours.fileno(), lambda: None)
        readiness.remove(ours.fileno())
        ours.close()
        peer.close()
        assert not ready(readiness), "the copy is not watched in its place"
        os.close(copy)
        readiness.close()

    asyncio.run(scene())


def connected(frontend: VirtlockdFrontend) -> socket.socket:
    """The client of a new connection, whose peer is pid 7."""
    ours, client = socket.socketpair()
    frontend.serve(socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, ours.detach()), Peer(7, 0, 0))
    return client


def call(procedure: int, payload: bytes, serial: int = 0) -> bytes:
    return rpc.encode(
        rpc.Header(rpc.PROGRAM_LOCKSPACE, rpc.VERSION, procedure, rpc.TYPE_CALL, serial, 0), payload
    )


REGISTER = call(wire.PROC_REGISTER, wire.Register(bytes(16), "vm7", 1, 7, 0).encode())


def test_client_that_leaves_without_having_read_its_replies_is_forgotten(tmp_path: Path) -> None:
    async def scene() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        frontend = VirtlockdFrontend(World(tmp_path).manager, uid=0, readiness=readiness)
        client = connected(frontend)
        client.setblocking(False)
        assert len(readiness) == 1
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(REGISTER)
                await asyncio.sleep(0)
        client.close()
        await turns_of_the_loop(lambda: not frontend.connections)
        assert len(readiness) == 0
        readiness.close()

    asyncio.run(scene())


def test_requests_from_before_a_re_exec_are_answered_before_more_is_read(tmp_path: Path) -> None:
    async def scene() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        w = World(tmp_path, slow=True)
        frontend = VirtlockdFrontend(w.manager, uid=0, readiness=readiness)
        disks = [w.disk(name) for name in ("a.img", "b.img")]
        acquires = [
            call(wire.PROC_ACQUIRE_RESOURCE, wire.ResourceCall("", disk, 0).encode()) for disk in disks
        ]
        ours, client = socket.socketpair()
        sock = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, ours.detach())
        carried = REGISTER + b"".join(acquires)
        frontend.adopt(sock, Peer(7, 0, 0), None, restricted=False, carried=carried)
        frontend.serve_adopted()
        await w.slow.gates.waits_for(f"take {disks[0]}")
        assert len(readiness) == 0, "one request waits in the queue: no more is read"
        w.slow.gates.let_go(f"take {disks[0]}")
        await w.slow.gates.waits_for(f"take {disks[1]}")
        w.slow.gates.let_all_go()
        await settle()
        assert len(client.recv(4096)) == 3 * rpc.MESSAGE_BYTES_MIN
        assert len(readiness) == 1
        client.close()
        await turns_of_the_loop(lambda: not frontend.connections)
        readiness.close()

    asyncio.run(scene())


def test_end_of_a_connection_that_the_descriptor_store_keeps_is_heard_of_once(tmp_path: Path) -> None:
    async def scene() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        copies: dict[str, int] = {}

        def keep(name: str, fd: int | None) -> None:
            if fd is not None:
                copies[name] = os.dup(fd)

        manager = World(tmp_path).manager
        frontend = VirtlockdFrontend(manager, uid=0, readiness=readiness, keep=keep)
        client = connected(frontend)
        for request in (REGISTER, call(wire.PROC_RESTRICT, wire.Restrict(0).encode())):
            client.send(request)
            await turns_of_the_loop(lambda: ready(client))
            assert len(client.recv(4096)) == rpc.MESSAGE_BYTES_MIN
        assert len(copies) == 1
        client.close()
        await turns_of_the_loop(lambda: not frontend.connections)
        assert not ready(readiness), "the store's copy is not watched in its place"
        for copy in copies.values():
            os.close(copy)
        readiness.close()

    asyncio.run(scene())

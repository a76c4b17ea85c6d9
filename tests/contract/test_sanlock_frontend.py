"""sanlock's clients over real sockets, and a service in memory: framing, order, targets, closing and keeping, ends."""

from __future__ import annotations

import asyncio
import os
import resource as limits
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.support.sanlock_service import FakeService

from holdfast.frontends.sanlock.clients import FIRST_CLIENT_ID
from holdfast.frontends.sanlock.event_channels import CHANNELS_MAX
from holdfast.frontends.sanlock.frontend import SanlockFrontend
from holdfast.ondisk.delta import Event
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.types import Generation, HostId
from holdfast.system.epoll import Readiness
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import Command, Served, served
from holdfast.wire.sanlock.flags import ReleaseFlag, RestrictFlag
from holdfast.wire.sanlock.header import EXIT_HEADER, HEADER_BYTES, decode_header, request_header
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import VERSION_3_9, RecordType, keys_of

VERSION_NUMBER = 0x03090500
WAIT_S = 10.0
"""For what has to come; a slow machine shall pass."""
ONE = s.Resource.of("LS", "R1", s.Disk("/lease", 1048576))
TWO = s.Resource.of("LS", "R2", s.Disk("/lease", 2097152))
LS = s.Lockspace.of("LS", 1, "/lease")
PID = os.getpid()
"""Every client's here: the kernel says who called connect()."""


class Peer:
    """A client's end. What comes back is read by the lengths that headers say."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setblocking(False)
        self.sock.connect(str(path))
        self._received = b""

    def put(self, *requests: r.AnyRequest | bytes) -> None:
        """Send at once, in one piece."""
        raw = b"".join(each if isinstance(each, bytes) else request_table.encode(each) for each in requests)
        assert self.sock.send(raw) == len(raw)

    async def _more(self) -> bool:
        chunk = await asyncio.wait_for(self._loop.sock_recv(self.sock, 1 << 20), WAIT_S)
        self._received += chunk
        return bool(chunk)

    async def raw(self, size: int) -> bytes:
        while len(self._received) < size:
            assert await self._more(), f"the end, after {self._received!r}"
        done, self._received = self._received[:size], self._received[size:]
        return done

    async def answer(self) -> tuple[Command, replies.Reply]:
        head = await self.raw(HEADER_BYTES)
        header = decode_header(head)
        body = await self.raw(header.length - HEADER_BYTES)
        return Command(header.command), replies.decode(Command(header.command), head + body)

    async def ask(self, request: r.AnyRequest) -> replies.Reply:
        self.put(request)
        command, reply = await self.answer()
        assert command == request_table.command_of(request)
        return reply

    async def rest(self) -> bytes:
        """Everything up to the end."""
        while await self._more():
            pass
        return self._received

    async def is_alive(self) -> bool:
        """It answers, and nothing else had come before."""
        return await self.ask(r.Version()) == replies.Plain(0, VERSION_NUMBER)

    def close(self) -> None:
        self.sock.close()


class Scene:
    """A frontend with its listener, and its clients."""

    def __init__(self, place: Path, service: FakeService | None = None) -> None:
        self.service = service or FakeService()
        self.readiness = Readiness(asyncio.get_running_loop())
        self.frontend = SanlockFrontend(self.service, readiness=self.readiness, version=VERSION_NUMBER)
        self.path = place / "sanlock.sock"
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        self.frontend.listen(sock, cap_key="none")
        self.peers: list[Peer] = []

    def peer(self) -> Peer:
        self.peers.append(Peer(self.path))
        return self.peers[-1]

    async def registered(self, *, lockspace: bool = True) -> Peer:
        peer = self.peer()
        peer.put(r.Register())
        assert await peer.is_alive()
        if lockspace:
            self.service.lockspaces["LS"] = LS
        return peer

    async def until(self, happened: Callable[[], bool]) -> None:
        for _ in range(int(WAIT_S / 0.01)):
            if happened():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it never happened")

    def close(self) -> None:
        self.service.gate.set()
        self.service.joining.set()
        for peer in self.peers:
            peer.close()
        self.frontend.close()
        self.readiness.close()


def played(place: Path, scene: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        stage = Scene(place)
        try:
            await scene(stage)
        finally:
            stage.close()

    asyncio.run(play())


# --- closing and keeping ---

EXAMPLES: dict[Command, r.AnyRequest] = {
    request_table.command_of(each): each
    for each in (
        r.Restrict(0),
        r.Version(),
        r.Status(),
        r.LogDump(),
        r.HostStatus(LS),
        r.Renewal(LS),
        r.GetLockspaces(),
        r.GetHosts(0, LS),
        r.SetConfig(1, 0, LS),
        r.EndEvent(LS),
        r.AddLockspace(0, 1, LS),
        r.RemLockspace(0, LS),
        r.InqLockspace(0, LS),
        r.ExamineLockspace(LS),
        r.ExamineResource(ONE._replace(disks=())),
        r.SetEvent(0, LS, s.HostEvent(2)),
        r.Request(0, 1, ONE),
        r.Align(s.Disk("/lease")),
        r.WriteLockspace(0, 0, 1, LS),
        r.ReadLockspace(LS),
        r.ReadLockspaceHost(LS),
        r.InitLockspaceHost(0, 1, LS, s.HostRecord(1)),
        r.SetHost(1, 1, LS, s.Host(2, 1)),
        r.WriteResource(0, 0, 0, ONE),
        r.ReadResource(ONE),
        r.ReadResourceOwners(ONE),
        r.SetLvb(ONE._replace(disks=()), b"v" * 512),
        r.GetLvb(0, ONE._replace(disks=())),
        r.FormatRindex(s.Rindex()),
        r.RebuildRindex(s.Rindex()),
        r.UpdateRindex(0, s.Rindex(), s.RindexEntry()),
        r.LookupRindex(s.Rindex(), s.RindexEntry()),
        r.CreateResource(0, 0, s.Rindex(), s.RindexEntry()),
        r.DeleteResource(s.Rindex(), s.RindexEntry()),
        r.Acquire(0, r.OWN, (ONE,)),
        r.Acquire2(0, r.OWN, (ONE,)),
        r.Release(0, r.OWN, ()),
        r.Inquire(0, r.OWN),
        r.Convert(0, r.OWN, ONE._replace(disks=())),
        r.Killpath(0, r.OWN, "/bin/true", "a"),
    )
}
ELSEWHERE = {Command.REGISTER, Command.SHUTDOWN, Command.SHUTDOWN_WAIT, Command.REG_EVENT}


def test_every_command_has_an_example_or_a_test_of_its_own() -> None:
    assert EXAMPLES.keys() | ELSEWHERE == set(Command)


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: command.name)
def test_command_is_answered_and_its_connection_is_closed_or_kept(command: Command, tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        peer = await stage.registered()
        peer.put(EXAMPLES[command])
        if served(command) is Served.CLOSES:
            raw = await peer.rest()
            reply = replies.decode(command, raw)
        else:
            answered, reply = await peer.answer()
            assert answered is command
            assert await peer.is_alive()
        allowed = {Command.CONVERT: Result.ENOENT, Command.SET_HOST: Result.VERSION_INCOMPAT}
        allowed |= {Command.GET_LVB: Result.ENOENT, Command.ALIGN: 1 << 20}  # type: ignore[dict-item]
        assert reply.result == allowed.get(command, Result.OK)

    played(tmp_path, scene)


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: command.name)
def test_request_that_comes_byte_by_byte_holds_up_nobody(command: Command, tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        slow, other = await stage.registered(), await stage.registered()
        raw = request_table.encode(EXAMPLES[command])
        for at in (1, 31, 32, len(raw) // 2, len(raw) - 1):
            before = 0 if at == 1 else {31: 1, 32: 31, len(raw) // 2: 32}.get(at, len(raw) // 2)
            slow.put(raw[min(before, len(raw)) : at])
            assert await other.is_alive()
        slow.put(raw[len(raw) - 1 :])
        head = decode_header(await slow.raw(HEADER_BYTES))
        assert head.command == command

    if len(request_table.encode(EXAMPLES[command])) > 2 * HEADER_BYTES + 2:
        played(tmp_path, scene)


def test_register_and_shutdown_have_no_answer(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        peer = stage.peer()
        peer.put(r.Register())
        assert await peer.is_alive()
        peer.put(r.Shutdown(1))
        assert not await peer.rest()
        assert stage.service.seen == [r.Shutdown(1)]

    played(tmp_path, scene)


def test_shutdown_wait_is_refused_at_once_or_answered_at_the_exit(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        stage.service.lockspaces["LS"] = LS
        peer = stage.peer()
        assert (await peer.ask(r.ShutdownWait(0))).result == Result.EBUSY
        peer.put(r.ShutdownWait(1))
        assert await stage.peer().is_alive()
        stage.service.exits.set()
        assert await peer.rest() == EXIT_HEADER.encode()

    played(tmp_path, scene)


def test_large_answer_reaches_a_client_that_reads_slowly(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        peer = stage.peer()
        peer.put(r.LogDump())
        await asyncio.sleep(0.05)
        assert await stage.peer().is_alive()
        assert replies.decode(Command.LOG_DUMP, await peer.rest()) == stage.service.log_dump()

    played(tmp_path, scene)


# --- order ---


def test_pipelined_requests_are_answered_in_order_one_after_the_other(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        peer = await stage.registered()
        stage.service.gate.clear()
        peer.put(r.Acquire(0, r.OWN, (ONE,)), r.Inquire(0, r.OWN), r.ReadLockspace(LS), r.Version())
        await stage.until(lambda: bool(stage.service.seen))
        assert await stage.peer().is_alive()
        assert len(stage.service.seen) == 1
        stage.service.gate.set()
        assert [await peer.answer() for _ in range(4)] == [
            (Command.ACQUIRE, replies.Plain()),
            (Command.INQUIRE, replies.ClientState(0, 1, "LS:R1:/lease:1048576:0")),
            (Command.READ_LOCKSPACE, replies.LockspaceRead(0, LS, 10)),
            (Command.VERSION, replies.Plain(0, VERSION_NUMBER)),
        ]

    played(tmp_path, scene)


def test_nothing_is_read_from_a_client_while_its_command_is_under_way(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        peer = await stage.registered()
        stage.service.joining.clear()
        peer.put(r.AddLockspace(0, 1, LS))
        await stage.until(lambda: bool(stage.service.seen))
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 1 << 24:
                sent += peer.sock.send(request_table.encode(r.Version()) * 500)
                await asyncio.sleep(0)
        stage.service.joining.set()
        assert (await peer.answer())[0] is Command.ADD_LOCKSPACE
        assert (await peer.answer())[0] is Command.VERSION

    played(tmp_path, scene)


def test_register_is_seen_before_a_command_that_another_client_sent_after_it(tmp_path: Path) -> None:
    """A descriptor that is ready earlier is served earlier: here the asking one, with the begin of its request."""

    async def scene(stage: Scene) -> None:
        vm, libvirtd = stage.peer(), stage.peer()
        assert await vm.is_alive()
        assert await libvirtd.is_alive()
        raw = request_table.encode(r.Inquire(0, r.Target(PID)))
        libvirtd.put(raw[:16])
        vm.put(r.Register())
        libvirtd.put(raw[16:])
        assert await libvirtd.answer() == (Command.INQUIRE, replies.ClientState())

    played(tmp_path, scene)


def test_clients_that_all_name_a_process_that_never_registers_are_all_refused(tmp_path: Path) -> None:
    """To answer one, what the others have sent is read; not theirs for theirs again, however many there are."""

    async def scene(stage: Scene) -> None:
        peers = [stage.peer() for _ in range(300)]
        for peer in peers:
            assert await peer.is_alive()
        for peer in peers:
            peer.put(r.Inquire(0, r.Target(PID)), r.Inquire(0, r.Target(PID)))
        for peer in peers:
            for _ in range(2):
                assert (await peer.answer())[1].result == Result.ESRCH

    played(tmp_path, scene)


def test_client_whose_request_was_read_early_is_not_taken_for_gone(tmp_path: Path) -> None:
    """Its descriptor was ready in the same round, and what comes of that is called when its command is under way."""

    async def scene(stage: Scene) -> None:
        adding, asking = stage.peer(), stage.peer()
        assert await adding.is_alive()
        assert await asking.is_alive()
        stage.service.joining.clear()
        raw = request_table.encode(r.Inquire(0, r.Target(PID)))
        asking.put(raw[:16])
        adding.put(r.AddLockspace(0, 1, LS))
        asking.put(raw[16:])
        assert (await asking.answer())[1].result == Result.ESRCH
        assert stage.service.seen == [r.AddLockspace(0, 1, LS)]
        assert not any(client.dead for client in stage.frontend.clients.in_order())
        stage.service.joining.set()
        assert (await adding.answer())[1].result == Result.OK
        assert await adding.is_alive()

    played(tmp_path, scene)


# --- whose leases a command is about ---


def test_commands_by_pid_act_on_the_registered_connection_in_the_lowest_slot(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        first, second = await stage.registered(), await stage.registered()
        other = stage.peer()
        assert (await other.ask(r.Acquire(0, r.Target(PID), (ONE,)))).result == Result.OK
        assert list(stage.service.held) == [FIRST_CLIENT_ID]
        assert (await second.ask(r.Inquire(0, r.OWN))) == replies.ClientState()
        first.close()
        await stage.until(lambda: stage.service.closed == [PID])
        assert (await other.ask(r.Inquire(0, r.Target(PID)))) == replies.ClientState()
        third = await stage.registered()
        assert stage.frontend.clients.in_order()[0].registered
        assert (await third.ask(r.Acquire(0, r.OWN, (TWO,)))).result == Result.OK
        assert list(stage.service.held)[-1] == FIRST_CLIENT_ID  # its slot is the first free one

    played(tmp_path, scene)


def test_client_id_names_a_connection(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        await stage.registered()
        second = await stage.registered()
        other = stage.peer()
        by_id = r.Target(FIRST_CLIENT_ID + 1, by_client_id=True)
        assert (await other.ask(r.Acquire(0, by_id, (ONE,)))).result == Result.OK
        assert (await second.ask(r.Inquire(0, r.OWN))).result == Result.OK
        assert list(stage.service.held) == [FIRST_CLIENT_ID + 1]
        for unknown in (FIRST_CLIENT_ID + 2, 99):  # not registered: the asking one; nobody
            answer = await other.ask(r.Inquire(0, r.Target(unknown, by_client_id=True)))
            assert answer.result == Result.ESRCH
        assert (await other.ask(r.Inquire(0, r.Target(99)))).result == Result.ESRCH

    played(tmp_path, scene)


@pytest.mark.parametrize(
    "command", [c for c in EXAMPLES if served(c) is Served.CLIENT], ids=lambda command: command.name
)
def test_refusals_come_in_order_and_leave_the_stream_in_sync(command: Command, tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        peer = stage.peer()
        request = EXAMPLES[command]
        peer.put(request._replace(target=r.Target(1)), request)  # type: ignore[call-arg]
        assert (await peer.answer())[1].result == Result.ESRCH
        assert (await peer.answer())[1].result == Result.EBUSY  # it is not registered itself
        assert await peer.is_alive()
        assert not stage.service.seen

    played(tmp_path, scene)


def test_too_many_resources_and_disks_are_refused_at_once_and_leave_the_stream_in_sync(
    tmp_path: Path,
) -> None:
    async def scene(stage: Scene) -> None:
        peer = await stage.registered()
        five = s.Resource.of("LS", "R1", *[s.Disk("/x")] * 5)
        for request, result in (
            (r.Acquire(0, r.OWN, (ONE,) * 9), Result.E2BIG),
            (r.Acquire(0, r.OWN, (ONE, five)), Result.ERANGE),
            (r.Request(0, 1, five), Result.ERANGE),
            (r.WriteResource(0, 0, 0, s.Resource.of("LS", "R1")), Result.ERANGE),
            (r.SetLvb(s.Resource.of("LS", "R1"), b"v" * 5000), Result.E2BIG),
        ):
            raw = request_table.encode(request)
            peer.put(raw[:1400])  # the last resource's first part, at most
            assert (await peer.answer())[1].result == result
            peer.put(raw[1400:] or b"")
            assert await peer.is_alive()
        for reading in (r.ReadResource(five), r.ReadResourceOwners(five)):
            answer = await peer.ask(reading)
            assert isinstance(answer, replies.ResourceRead | replies.OwnersRead)
            assert (answer.result, answer.resource) == (Result.ERANGE, five._replace(disks=()))
        assert not stage.service.seen

    played(tmp_path, scene)


def test_one_command_at_a_time_for_a_client_and_the_others_are_refused_at_once(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm = await stage.registered()
        stage.service.gate.clear()
        first, second = stage.peer(), stage.peer()
        first.put(r.Acquire(0, r.Target(PID), (ONE,)))
        await stage.until(lambda: bool(stage.service.seen))
        assert (await second.ask(r.Acquire(0, r.Target(PID), (TWO,)))).result == Result.EBUSY
        assert (await vm.ask(r.Inquire(0, r.OWN))).result == Result.EBUSY
        stage.service.gate.set()
        assert (await first.answer())[1].result == Result.OK
        assert (await vm.ask(r.Inquire(0, r.OWN))) == replies.ClientState(0, 1, "LS:R1:/lease:1048576:0")

    played(tmp_path, scene)


def test_half_a_request_keeps_no_other_client_busy(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm, slow = await stage.registered(), stage.peer()
        raw = request_table.encode(r.Acquire(0, r.Target(PID), (ONE,)))
        slow.put(raw[:-1])
        assert (await vm.ask(r.Inquire(0, r.OWN))).result == Result.OK
        stage.service.gate.clear()
        vm.put(r.Acquire(0, r.OWN, (TWO,)))
        await stage.until(lambda: len(stage.service.seen) == 2)
        slow.put(raw[-1:])  # it was admitted at its header; by now the client is busy
        assert (await slow.answer())[1].result == Result.EBUSY

    played(tmp_path, scene)


def test_client_that_is_being_killed_may_release_but_not_acquire(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm = await stage.registered()
        stage.frontend.clients.in_order()[0].kill_count = 1
        assert (await vm.ask(r.Acquire(0, r.OWN, (ONE,)))).result == Result.EBUSY
        assert (await vm.ask(r.Acquire2(0, r.OWN, (ONE,)))).result == Result.EBUSY
        for request in (r.Inquire(0, r.OWN), r.Release(ReleaseFlag.ALL, r.OWN, ())):
            assert (await vm.ask(request)).result == Result.OK

    played(tmp_path, scene)


def test_killpath_is_for_the_own_connection_only(tmp_path: Path) -> None:
    """sanlock reads its body from the other connection then."""

    async def scene(stage: Scene) -> None:
        await stage.registered()
        other = stage.peer()
        assert (await other.ask(r.Killpath(0, r.Target(PID), "/bin/true", ""))).result == Result.EINVAL
        assert await other.is_alive()

    played(tmp_path, scene)


# --- RESTRICT ---


def test_restricted_connection_answers_nothing_more_and_stays_registered(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm, other = await stage.registered(), stage.peer()
        restrict = r.Restrict(RestrictFlag.ALL | RestrictFlag.SIGKILL)
        vm.put(restrict, r.Inquire(0, r.OWN), r.Acquire(0, r.OWN, (ONE,)), r.Version())
        assert await vm.answer() == (Command.RESTRICT, replies.Plain())
        vm.put(r.Version())
        assert (await other.ask(r.Acquire(0, r.Target(PID), (ONE,)))).result == Result.OK
        assert [type(each) for each in stage.service.seen] == [r.Acquire]
        assert stage.frontend.clients.in_order()[0].restricted == restrict.flags
        vm.close()
        await stage.until(lambda: stage.service.closed == [PID])

    played(tmp_path, scene)


def test_restriction_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        peer = stage.peer()
        for flags in (RestrictFlag.SIGKILL, RestrictFlag.SIGTERM, RestrictFlag(0)):
            assert (await peer.ask(r.Restrict(flags))).result == Result.OK
            assert stage.frontend.clients.in_order()[0].restricted == flags

    played(tmp_path, scene)


# --- ends ---


def test_end_of_a_registered_connection_is_reported_once_and_that_of_others_is_not(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm, other = await stage.registered(), stage.peer()
        assert await other.is_alive()
        other.close()
        vm.close()
        await stage.until(lambda: not stage.frontend.connections)
        assert (stage.service.closed, stage.service.died) == ([PID], [])
        assert len(stage.frontend.clients) == 0

    played(tmp_path, scene)


def test_client_that_dies_while_its_command_is_under_way_is_reported_at_once_and_cleaned_up_behind_it(
    tmp_path: Path,
) -> None:
    async def scene(stage: Scene) -> None:
        vm = await stage.registered()
        stage.service.gate.clear()
        vm.put(r.Acquire(0, r.OWN, (ONE,)))
        await stage.until(lambda: bool(stage.service.seen))
        vm.close()
        await stage.until(lambda: stage.service.died == [PID])
        assert not stage.service.closed
        other = stage.peer()
        assert (await other.ask(r.Inquire(0, r.Target(PID)))).result == Result.EBUSY
        stage.service.gate.set()
        await stage.until(lambda: stage.service.closed == [PID])
        assert (await other.ask(r.Inquire(0, r.Target(PID)))).result == Result.ESRCH
        assert stage.service.died == [PID]

    played(tmp_path, scene)


def test_client_that_dies_while_another_acquires_for_it_is_cleaned_up_behind_that(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm, other = await stage.registered(), stage.peer()
        stage.service.gate.clear()
        other.put(r.Acquire(0, r.Target(PID), (ONE,)))
        await stage.until(lambda: bool(stage.service.seen))
        vm.close()
        await stage.until(lambda: stage.service.died == [PID])
        assert not stage.service.closed
        stage.service.gate.set()
        assert (await other.answer())[1].result == Result.ENOTTY
        assert stage.service.closed == [PID]
        assert len(stage.frontend.clients) == 1

    played(tmp_path, scene)


def test_client_that_dies_while_it_adds_a_lockspace_is_dead_at_once_and_reported_once(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm, other = await stage.registered(), stage.peer()
        stage.service.gate.clear()
        stage.service.joining.clear()
        vm.put(r.AddLockspace(0, 1, LS))
        await stage.until(lambda: len(stage.service.seen) == 1)
        other.put(r.Acquire(0, r.Target(PID), (ONE,)))
        await stage.until(lambda: len(stage.service.seen) == 2)
        vm.close()
        await stage.until(lambda: stage.service.died == [PID])
        stage.service.joining.set()
        await stage.until(lambda: len(stage.frontend.connections) == 1)
        assert not stage.service.closed
        stage.service.gate.set()
        assert (await other.answer())[1].result == Result.ENOTTY
        await stage.until(lambda: stage.service.closed == [PID])
        assert stage.service.died == [PID]

        stage.service.joining.clear()
        again = await stage.registered()
        again.put(r.AddLockspace(0, 1, LS))
        await stage.until(lambda: len(stage.service.seen) == 3)
        again.close()
        await stage.until(lambda: stage.frontend.clients.in_order()[0].dead)
        assert (await stage.peer().ask(r.Inquire(0, r.Target(PID)))).result == Result.EBUSY
        stage.service.joining.set()

    played(tmp_path, scene)


def test_inherited_descriptor_keeps_the_client_alive(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm = await stage.registered()
        inherited = vm.sock.dup()
        vm.close()
        assert (await stage.peer().ask(r.Inquire(0, r.Target(PID)))).result == Result.OK
        inherited.close()
        await stage.until(lambda: stage.service.closed == [PID])

    played(tmp_path, scene)


@pytest.mark.parametrize(
    "command",
    [c for c, each in EXAMPLES.items() if len(request_table.encode(each)) > HEADER_BYTES],
    ids=lambda command: command.name,
)
def test_body_that_ends_too_early_is_answered_and_the_connection_closed(
    command: Command, tmp_path: Path
) -> None:
    async def scene(stage: Scene) -> None:
        peer = await stage.registered()
        peer.put(request_table.encode(EXAMPLES[command])[:-1])
        peer.sock.shutdown(socket.SHUT_WR)
        reply = replies.decode(command, await peer.rest())
        assert reply.result == Result.ENOTCONN
        await stage.until(lambda: stage.service.closed == [PID])

    played(tmp_path, scene)


def test_client_that_has_only_stopped_sending_gets_its_answers(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        peer = await stage.registered()
        stage.service.gate.clear()
        peer.put(r.Acquire(0, r.OWN, (ONE,)), r.Inquire(0, r.OWN))
        peer.sock.shutdown(socket.SHUT_WR)
        await stage.until(lambda: bool(stage.service.seen))
        assert not stage.service.died
        stage.service.gate.set()
        assert (await peer.answer())[1].result == Result.OK
        assert (await peer.answer())[1].result == Result.OK
        assert not await peer.rest()

    played(tmp_path, scene)


def test_end_of_the_daemon_is_no_clients_end(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm, acquiring, waiting = await stage.registered(), await stage.registered(), stage.peer()
        stage.service.gate.clear()
        acquiring.put(r.Acquire(0, r.OWN, (ONE,)))
        waiting.put(r.ShutdownWait(1))
        await stage.until(lambda: bool(stage.service.seen) and len(stage.frontend.clients) == 3)
        stage.frontend.close()
        for peer in (vm, acquiring, waiting):
            assert not await peer.rest()
        stage.service.gate.set()
        stage.service.exits.set()
        await stage.until(lambda: not len(stage.frontend.clients))
        assert (stage.service.closed, stage.service.died) == ([], [])

    played(tmp_path, scene)


def test_eleven_hundred_clients_are_served(tmp_path: Path) -> None:
    if limits.getrlimit(limits.RLIMIT_NOFILE)[0] < 2400:
        limits.setrlimit(limits.RLIMIT_NOFILE, (2400, limits.getrlimit(limits.RLIMIT_NOFILE)[1]))

    async def scene(stage: Scene) -> None:
        peers = []
        for at in range(1100):
            peers.append(stage.peer())
            peers[-1].put(r.Register())
            if at % 100 == 0:  # the backlog has room for some hundred
                assert await peers[-1].is_alive()
        for peer in peers:
            assert await peer.is_alive()
        assert len(stage.frontend.clients) == 1100
        peers[0].put(request_table.encode(r.Acquire(0, r.OWN, (ONE,)))[:100])
        assert await peers[-1].is_alive()
        peers[-1].put(r.Status(2))
        found = replies.decode(Command.STATUS, await peers[-1].rest())
        assert isinstance(found, replies.Records)
        assert len(found.records) == 1103  # the daemon, sanlock's own two, the clients

    played(tmp_path, scene)


# --- STATUS and events ---


def test_status_lists_clients_between_the_daemon_and_its_lockspaces(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm = await stage.registered()
        assert (await vm.ask(r.Restrict(RestrictFlag.SIGTERM))).result == Result.OK
        options = s.Options(PaddedName.of("web1"))
        assert (await vm.ask(r.Acquire(0, r.OWN, (ONE,), options))).result == Result.OK
        for upto, types in (
            (1, [1]),
            (2, [1, 2, 2, 2, 2]),
            (3, [1, 2, 2, 2, 2, 3]),
            (0, [1, 2, 2, 2, 2, 3, 4]),
        ):
            asking = stage.peer()
            asking.put(r.Status(upto))
            found = replies.decode(Command.STATUS, await asking.rest())
            assert isinstance(found, replies.Records)
            assert [record.type for record in found.records] == types
            if upto != 1:
                assert [each.name.text for each in found.records[1:3]] == ["helper", "listener"]
                client, ours = found.records[3:5]
                assert (client.name.text, client.data32) == ("web1", PID)
                assert tuple(client.words) == keys_of(RecordType.CLIENT, VERSION_3_9)
                assert client.words["restricted"] == "4"
                assert client.words["cmd_last"] == "7"
                assert (ours.name.text, ours.data32, ours.words["pid"]) == ("status", 2**32 - 1, "-1")

    played(tmp_path, scene)


EVENT = s.EventCallback(s.HostEvent(1, 1, 0xABC, 0xDEF), 2, 1)
PUBLISHED = 1, Event(1, 0xABC, 0xDEF), (HostId(2), Generation(1))


def test_event_channel_gets_events_until_the_client_ends_it(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        stage.service.lockspaces["LS"] = LS
        channel, other = stage.peer(), stage.peer()
        assert await channel.is_alive()
        assert (await channel.ask(r.RegEvent(LS))).result == Result.OK
        for _ in range(2):
            stage.frontend.publish("LS", *PUBLISHED)
            stage.frontend.publish("another", *PUBLISHED)
            assert s.EventCallback.decode(await channel.raw(80)) == EVENT
        channel.put(b"\1\0\0\0")
        other.put(r.EndEvent(LS))
        assert replies.decode(Command.END_EVENT, await other.rest()) == replies.Plain()
        assert not await channel.rest()

    played(tmp_path, scene)


def test_requests_on_an_event_channel_are_not_served(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        stage.service.lockspaces["LS"] = LS
        channel, other = stage.peer(), stage.peer()
        assert await channel.is_alive()
        assert (await channel.ask(r.RegEvent(LS))).result == Result.OK
        channel.put(r.Version(), r.Version())
        other.put(r.EndEvent(LS))
        await other.rest()
        stage.frontend.publish("LS", *PUBLISHED)  # it was not ended by these bytes
        assert await channel.raw(80) == EVENT.encode()
        channel.sock.shutdown(socket.SHUT_WR)
        assert not await channel.rest()

    played(tmp_path, scene)


def test_channels_of_a_lockspace_are_limited_and_of_another_one_refused(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        stage.service.lockspaces["LS"] = LS
        channels = [stage.peer() for _ in range(CHANNELS_MAX + 1)]
        for channel in channels[:-1]:
            assert (await channel.ask(r.RegEvent(LS))).result == Result.OK
        assert (await channels[-1].ask(r.RegEvent(LS))).result == Result.ENOCSI
        assert not await channels[-1].rest()
        refused = stage.peer()
        assert (await refused.ask(r.RegEvent(s.Lockspace.of("none")))).result == Result.ENOENT
        assert not await refused.rest()
        channels[0].close()
        await stage.until(lambda: len(stage.frontend.connections) == CHANNELS_MAX - 1)
        assert (await stage.peer().ask(r.RegEvent(LS))).result == Result.OK
        stage.frontend.lockspace_gone("LS")
        assert not await channels[1].rest()

    played(tmp_path, scene)


def test_channel_that_is_not_read_is_closed_when_it_is_full(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        stage.service.lockspaces["LS"] = LS
        channel = stage.peer()
        assert (await channel.ask(r.RegEvent(LS))).result == Result.OK
        for _ in range(100_000):
            stage.frontend.publish("LS", *PUBLISHED)
            if not stage.frontend.connections:
                break
        assert not stage.frontend.connections
        assert len(await channel.rest()) % 80 == 0

    played(tmp_path, scene)


# --- what no client can do ---


def test_failure_of_the_service_is_answered_and_serves_others_on(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm = await stage.registered()
        stage.service.fails = True
        for request in (r.Acquire(0, r.OWN, (ONE,)), r.AddLockspace(0, 1, LS), r.WriteLockspace(0, 0, 1, LS)):
            assert (await vm.ask(request)).result == Result.ERROR
        asking = stage.peer()
        asking.put(r.GetLockspaces())
        assert decode_header(await asking.rest()).result == Result.ERROR
        stage.service.fails = False
        assert (await vm.ask(r.Inquire(0, r.OWN))).result == Result.OK

    played(tmp_path, scene)


def test_headers_that_are_none_get_no_answer_and_the_connection_stays(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        vm = await stage.registered()
        vm.put(
            request_header(0).encode(),
            request_header(45).encode(),
            bytes(HEADER_BYTES),
            request_header(9)._replace(version=0x20001).encode(),
        )
        assert await vm.is_alive()

    played(tmp_path, scene)

"""Connections of sanlock's clients outlive the daemon, under a double of systemd: who is registered and what was asked.

The daemon kills itself at the step that a test names (`tests/support/kill_points`).
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.sanlock.direct import blank_file
from tests.interop.sanlock_socket import scene as scenes
from tests.interop.sanlock_socket.client import SocketClient
from tests.interop.sanlock_socket.scene import HoldfastDaemon, Scene, head, holding
from tests.support.polling import wait_until
from tests.support.service_manager import ServiceManager

from holdfast.ondisk.geometry import MIB
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import (
    ConvertFlag,
    KillpathFlag,
    ReleaseFlag,
    ResourceFlag,
    RestrictFlag,
    SetEventFlag,
)
from holdfast.wire.sanlock.header import HEADER_BYTES
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import EVENT_CALLBACK_BYTES, Disk, EventCallback, HostEvent, Resource

ENDS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "restart": signal.SIGQUIT}
"""How the daemon ends, by the way to the next one; "restart" is RestartKillSignal= of the units."""
KILL_POINTS = Path(__file__).parents[1] / "support" / "kill_points"


class ServedDaemon(HoldfastDaemon):
    """One that a service manager starts, with a descriptor store and an order to kill itself."""

    manager: ServiceManager | None = None

    def start(self, **_: object) -> ServedDaemon:
        if self.manager is None:
            sockets = [("v", self.socket), ("control", self.control), ("sanlock", str(self.socket_path))]
            self.manager = ServiceManager(self.directory, self, sockets=sockets)
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", "HOLDFAST_KILL_AT")}
        path = os.pathsep.join(filter(None, [str(KILL_POINTS), before["PYTHONPATH"] or ""]))
        os.environ |= {"PYTHONPATH": path, "HOLDFAST_KILL_AT": str(self.order)}
        try:
            self.manager.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        return self

    @property
    def order(self) -> Path:
        return self.directory / "kill-at"

    def dies_at(self, step: str) -> None:
        self.order.write_text(step)

    def is_dead(self) -> None:
        """Returns when it has killed itself."""
        assert self.process is not None
        assert self.process.wait(20) == -signal.SIGKILL
        assert not self.order.exists()

    def again(self, way: str) -> None:
        client = SocketClient(self.socket_path)
        client.result(
            r.Version()
        )  # it has gone on behind its last answer: right there, a kill closes the connection
        client.close()
        if way == "reexec":
            self.reexec()
            return
        self.kill(ENDS[way])
        self.start()

    def stop(self) -> None:
        super().stop()
        if self.manager is not None:
            self.manager.close()


def served(directory: Path, name: str, options: tuple[str, ...]) -> ServedDaemon:
    table = f'[sanlock]\nsocket = "{directory}/sanlock.sock"\nwatchdog = "none"\nfire_timeout_s = 30'
    return ServedDaemon(directory, table).start()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place, pytest.MonkeyPatch.context() as patch:
        patch.setitem(scenes.START, "holdfast", served)
        stage = Scene("holdfast", Path(place))
        try:
            yield stage
        finally:
            stage.close()


@pytest.fixture
def daemon(scene: Scene) -> Iterator[ServedDaemon]:
    assert isinstance(scene.one.daemon, ServedDaemon)
    yield scene.one.daemon
    scene.close_clients()
    scene.one.daemon.order.unlink(missing_ok=True)


def owners(scene: Scene, lease: Resource) -> list[int]:
    """By storage, as the other host reads it."""
    found = scene.two.client().asked(r.ReadResourceOwners(lease), replies.OwnersRead)
    return [each.host_id for each in found.hosts]


def state_of(client: SocketClient, target: r.Target = r.OWN) -> str:
    reply = client.asked(r.Inquire(0, target), replies.ClientState)
    assert reply.result == Result.OK
    return str(reply)


@pytest.mark.parametrize("way", ["kill", "stop", "reexec"])
def test_a_registered_connection_is_it_still_for_the_next_daemon(
    scene: Scene, daemon: ServedDaemon, way: str
) -> None:
    lease, shared, plain = scene.lease(), scene.lease(), scene.one.client()
    process = holding(scene.one, lease, shared._replace(flags=ResourceFlag.SHARED))
    killpath = r.Killpath(KillpathFlag.PID, r.OWN, "/bin/true", "")
    assert process.client.result(killpath) == Result.OK
    halves = request_table.encode(r.Release(0, r.OWN, (head(shared),)))
    before = state_of(process.client)
    assert plain.result(r.Version()) == Result.OK
    process.client.send(halves[:40])
    daemon.again(way)
    process.client.send(halves[40:])
    assert process.client.answer(Command.RELEASE).result == Result.OK, "it has the half that was sent before"
    assert plain.result(r.Version()) == Result.OK, "one that is not registered goes on, too"
    after = state_of(process.client)
    assert after in before or lease.name.text in after
    assert shared.name.text not in after
    assert process.client.result(r.Restrict(RestrictFlag.ALL)) == Result.OK
    daemon.again(way)
    process.client.send(r.Version())
    assert process.client.is_silent(), "no command is accepted from it any more"
    assert owners(scene, lease) == [1]
    process.client.close()
    wait_until(lambda: owners(scene, lease) == [], "the lease to end with the connection")
    assert process.runs()


def test_a_client_that_holds_nothing_has_its_lockspace_right_after_a_restart(
    scene: Scene, daemon: ServedDaemon
) -> None:
    """A VM that is suspended: it is resumed while another daemon would still be claiming the host id."""
    lease, process = scene.lease(), scene.one.process()
    state_of(process.client)
    before = scene.record_of(scene.one).generation
    daemon.again("restart")
    assert process.client.result(r.Acquire(0, r.OWN, (lease,))) == Result.OK
    assert scene.record_of(scene.one).generation == before
    process.close()
    wait_until(lambda: owners(scene, lease) == [], "the lease to end with its process")
    daemon.again("restart")  # nobody is registered any more
    wait_until(lambda: scene.one.is_in(scene.of(scene.one)), "the join")
    assert scene.record_of(scene.one).generation > before


@pytest.mark.parametrize("way", ["kill", "reexec"])
def test_each_connection_of_a_process_has_its_own_leases(
    scene: Scene, daemon: ServedDaemon, way: str
) -> None:
    """As lvmlockd, which registers one for each volume group."""
    leases = scene.lease(), scene.lease()
    clients = scene.one.client(), scene.one.client()
    for client, lease in zip(clients, leases, strict=True):
        client.send(r.Register())
        assert client.result(r.Acquire(0, r.OWN, (lease,))) == Result.OK
    before = [state_of(client) for client in clients]
    daemon.again(way)
    assert [state_of(client) for client in clients] == before
    clients[0].close()
    wait_until(lambda: owners(scene, leases[0]) == [], "the first one's to be free")
    assert owners(scene, leases[1]) == [1]
    assert clients[1].result(r.Release(ReleaseFlag.ALL, r.OWN, ())) == Result.OK


@pytest.mark.parametrize(("step", "by_pid"), [("read", False), ("one", False), ("done", True)])
def test_an_acquire_is_answered_by_the_next_daemon(
    scene: Scene, daemon: ServedDaemon, step: str, by_pid: bool
) -> None:
    leases = scene.lease(), scene.lease()
    process = scene.one.process()
    state_of(process.client)
    client = scene.one.client() if by_pid else process.client
    target = r.Target(process.pid) if by_pid else r.OWN
    daemon.dies_at(f"{step} ACQUIRE")
    client.send(r.Acquire(0, target, leases))
    daemon.is_dead()
    daemon.start()
    assert client.answer(Command.ACQUIRE).result == Result.OK
    assert [owners(scene, each) for each in leases] == [[1], [1]]
    found = state_of(process.client)
    assert all(each.name.text in found for each in leases)
    if step != "read":
        read = scene.two.client().asked(r.ReadResource(leases[0]), replies.ResourceRead)
        assert read.resource.lver == 1, "it was acquired once"
    assert client.result(r.Acquire(0, target, leases[:1])) == Result.EEXIST, "by another request"
    assert client.result(r.Release(ReleaseFlag.ALL, target, ())) == Result.OK


def test_an_acquire_that_is_repeated_gives_back_its_own_leases_only(
    scene: Scene, daemon: ServedDaemon
) -> None:
    """A lease that the client had before is no success of this request, and stays."""
    had, wanted = scene.lease(), scene.lease()
    process = holding(scene.one, had)
    daemon.dies_at("one ACQUIRE")
    process.client.send(r.Acquire(0, r.OWN, (wanted, had)))
    daemon.is_dead()
    daemon.start()
    assert process.client.answer(Command.ACQUIRE).result == Result.EEXIST
    assert owners(scene, had) == [1]
    assert owners(scene, wanted) == []


@pytest.mark.parametrize("step", ["unclaimed", "done"])
def test_a_release_is_answered_by_the_next_daemon(scene: Scene, daemon: ServedDaemon, step: str) -> None:
    lease, never = scene.lease(), scene.lease()
    process = holding(scene.one, lease)
    daemon.dies_at(f"{step} RELEASE")
    process.client.send(r.Release(0, r.OWN, (head(lease),)))
    daemon.is_dead()
    daemon.start()
    assert process.client.answer(Command.RELEASE).result == Result.OK
    assert owners(scene, lease) == []
    assert process.client.result(r.Release(0, r.OWN, (head(lease),))) == Result.FAILED
    assert process.client.result(r.Release(0, r.OWN, (head(never),))) == Result.FAILED


@pytest.mark.parametrize("ends", ["connection", "process"])
def test_a_lease_whose_client_ends_with_the_daemon_is_free(
    scene: Scene, daemon: ServedDaemon, ends: str
) -> None:
    """The journal has the end of the claim, storage has not, and nobody is left to ask for it once more."""
    lease, shared, removed = scene.lease(), scene.lease(), blank_file(scene.place / f"removed-{ends}", MIB)
    gone = Resource.of(scenes.NAME, f"GONE-{ends}", Disk(str(removed), 0))
    assert scene.one.result(r.WriteResource(0, 0, 0, gone)) == Result.OK
    process = holding(scene.one, lease)
    other = holding(scene.one, shared._replace(flags=ResourceFlag.SHARED), gone)
    assert other.client.result(r.Release(0, r.OWN, (head(gone),))) == Result.OK
    removed.unlink()
    daemon.dies_at("unclaimed RELEASE")
    if ends == "connection":
        process.client.close()
    else:
        process.close()
    daemon.is_dead()
    assert owners(scene, lease) == [1]
    daemon.start()
    wait_until(lambda: owners(scene, lease) == [], "the next daemon to free it")
    daemon.says("was left behind by an earlier daemon; it is free now")
    assert "may have been left behind" not in daemon.log_text(), "one that was removed is not asked for again"
    assert owners(scene, shared) == [1]
    assert other.client.result(r.Release(0, r.OWN, (head(shared),))) == Result.OK


def test_a_conversion_is_answered_by_the_next_daemon(scene: Scene, daemon: ServedDaemon) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease)
    shared = lease._replace(flags=ResourceFlag.SHARED)
    daemon.dies_at("done CONVERT")
    process.client.send(r.Convert(0, r.OWN, shared))
    daemon.is_dead()
    daemon.start()
    assert process.client.answer(Command.CONVERT).result == Result.OK
    assert process.client.result(r.Convert(0, r.OWN, shared)) == Result.EALREADY
    assert process.client.result(r.Convert(ConvertFlag.OWNER_NOWAIT, r.OWN, lease)) == Result.OK


@pytest.mark.long
def test_lockspaces_that_are_added_and_removed_meanwhile(scene: Scene, daemon: ServedDaemon) -> None:
    lockspace = scene.new_lockspace("MEANWHILE")
    client = scene.one.client()
    for request, command in (
        (r.AddLockspace(0, scenes.IO_TIMEOUT_S, lockspace), Command.ADD_LOCKSPACE),
        (r.RemLockspace(0, lockspace), Command.REM_LOCKSPACE),
    ):
        daemon.dies_at(f"done {command.name}")
        client.send(request)
        daemon.is_dead()
        daemon.start()
        assert client.answer(command).result == Result.OK


@pytest.mark.parametrize("step", ["half", "sent"])
def test_an_answer_that_may_be_sent_is_not_sent_twice(scene: Scene, daemon: ServedDaemon, step: str) -> None:
    lease = scene.lease()
    process = scene.one.process()
    state_of(process.client)
    daemon.dies_at(f"{step} ACQUIRE")
    process.client.send(r.Acquire(0, r.OWN, (lease,)))
    daemon.is_dead()
    daemon.start()
    if step == "sent":
        assert process.client.answer(Command.ACQUIRE).result == Result.OK
        assert lease.name.text in state_of(process.client)
        return
    assert len(process.client.rest()) == HEADER_BYTES // 2, (
        "the connection ends: nobody knows how much it got"
    )
    by_pid = r.Target(process.pid)
    assert lease.name.text in state_of(scene.one.client(), by_pid), "the lease stays, until the process ends"
    assert owners(scene, lease) == [1]
    process.close()
    wait_until(lambda: owners(scene, lease) == [], "the lease to end with the process")


@pytest.mark.parametrize("way", ["kill", "reexec"])
def test_a_client_that_reads_no_answers_gets_each_once(scene: Scene, daemon: ServedDaemon, way: str) -> None:
    client, asked = scene.one.client(), 2000
    raw = request_table.encode(r.Version())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    client.send(raw * asked)
    assert scene.one.client().result(r.Version()) == Result.OK, "the daemon has stopped serving it"
    daemon.again(way)
    if way == "kill":
        got = len(client.rest())
        assert not got % HEADER_BYTES
        assert 0 < got < asked * HEADER_BYTES
    else:
        assert len(client.receive(asked * HEADER_BYTES)) == asked * HEADER_BYTES
        assert client.is_silent()


def test_nothing_is_done_for_a_client_that_has_gone_meanwhile(scene: Scene, daemon: ServedDaemon) -> None:
    """Hours may have passed: what it wanted written over may be another's by now."""
    lease = scene.lease()
    process = holding(scene.one, lease)
    client = scene.one.client()
    assert client.result(r.Version()) == Result.OK
    blank = scene.blank()
    daemon.kill()
    client.send(r.WriteResource(0, 0, 0, blank))
    client.close()
    process.client.close()
    daemon.start()
    wait_until(lambda: owners(scene, lease) == [], "the lease to end with its connection")
    assert not any(scene.sector(blank, 0))
    assert process.runs()


def test_the_store_has_no_connection_that_has_ended(scene: Scene, daemon: ServedDaemon) -> None:
    manager = daemon.manager
    assert manager is not None
    holding(scene.one, scene.lease())
    wait_until(lambda: any(name.endswith("-0") for name in manager.names), "one to be stored")
    scene.close_clients()
    wait_until(lambda: not any(name.startswith("conn-") for name in manager.names), "none to be stored")


@pytest.mark.parametrize("way", ["kill", "restart", "reexec"])
def test_an_event_channel_goes_on(scene: Scene, daemon: ServedDaemon, way: str) -> None:
    """An event that another host sets comes through the connection that an earlier daemon had, once it renews its record."""
    channel = scene.one.client()
    channel.send(r.RegEvent(scene.of(scene.one)))
    assert channel.answer(Command.REG_EVENT).result == Result.OK
    holding(scene.one, scene.lease())  # so that a restart stays in the lockspace
    daemon.again(way)
    here, there = scene.record_of(scene.one), scene.record_of(scene.two)
    event = HostEvent(1, here.generation, EVENTS[way], 0xDEF)
    setting = r.SetEvent(SetEventFlag.REPLACE_EVENT, scene.of(scene.two), event)  # that of an earlier script
    assert scene.two.result(setting) == Result.OK
    wait_until(lambda: event_on(channel) == EventCallback(event, 2, there.generation), "the event")
    channel.send(b"\1\0\0\0")
    assert scene.one.result(r.EndEvent(scene.of(scene.one))) == Result.OK
    assert len(channel.rest()) % EVENT_CALLBACK_BYTES == 0


EVENTS = {"kill": 0xA, "restart": 0xB, "reexec": 0xC}


def event_on(channel: SocketClient) -> EventCallback:
    """The next one; those of earlier scripts may come before it."""
    return EventCallback.decode(channel.receive(EVENT_CALLBACK_BYTES))

"""What sanlock 5 added to the socket, played to the real one of Debian 14 (newer-sanlock.md 3): commands 41 to 44,
flags, records."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.sanlock.daemon import SanlockDaemon
from tests.interop.sanlock.direct import blank_file, read_at, write_at
from tests.interop.sanlock.programs import of_release
from tests.interop.sanlock_socket.client import Process, SocketClient
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import COMMANDS_OF_3, COMMANDS_OF_5, Command
from holdfast.wire.sanlock.flags import (
    AddFlag,
    ConfigOrder,
    GetHostsFlag,
    HostMark,
    HostState,
    InitHostFlag,
    ReleaseFlag,
    ResourceFlag,
)
from holdfast.wire.sanlock.header import request_header
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import VERSION_5, RecordType, keys_of

pytestmark = pytest.mark.interop

NAME, IO_TIMEOUT_S = "LS", 1
ABSENT_HOST, ABSENT_GENERATION = 7, 5


class Pair:
    """Two hosts with sanlock 5 in one lockspace of its own default version."""

    def __init__(self, place: Path) -> None:
        self.lockspace = s.Lockspace.of(NAME, 1, str(blank_file(place / "ls", MIB)))
        self.leases = blank_file(place / "leases", 16 * MIB)
        self._count = 0
        self._processes: list[Process] = []
        self._clients: list[SocketClient] = []
        self.daemons: list[SanlockDaemon] = []
        for name in ("one", "two"):
            (place / name).mkdir()
            self.daemons.append(SanlockDaemon(place / name, f"host-{name}", of_release("forky")))
        assert self.result(r.WriteLockspace(0, 0, IO_TIMEOUT_S, self.lockspace)) == Result.OK
        for host, _ in enumerate(self.daemons):
            request = r.AddLockspace(AddFlag.ASYNC, IO_TIMEOUT_S, self.of(host))
            assert self.result(request, host) == Result.OK
        for host, _ in enumerate(self.daemons):
            wait_until(lambda host=host: self._sees_both(host), "two living hosts")  # type: ignore[misc]

    def of(self, host: int) -> s.Lockspace:
        return self.lockspace._replace(host_id=host + 1)

    def _sees_both(self, host: int) -> bool:
        if self.result(r.InqLockspace(0, self.of(host)), host):
            return False
        found = self.client(host).asked(r.GetHosts(0, self.of(host)._replace(host_id=0)), replies.Hosts)
        return [each.state for each in found.hosts] == [HostState.LIVE] * 2

    def client(self, host: int = 0) -> SocketClient:
        self._clients.append(SocketClient(self.daemons[host].socket_path))
        return self._clients[-1]

    def process(self, host: int = 0) -> Process:
        self._processes.append(Process(self.daemons[host].socket_path))
        return self._processes[-1]

    def result(self, request: r.AnyRequest, host: int = 0) -> int:
        return self.client(host).result(request)

    def lease(self) -> s.Resource:
        self._count += 1
        resource = s.Resource.of(NAME, f"R{self._count}", s.Disk(str(self.leases), self._count * MIB))
        assert self.result(r.WriteResource(0, 0, 0, resource)) == Result.OK
        return resource

    def close_clients(self) -> None:
        for client in self._clients:
            client.close()
        for process in self._processes:
            process.close()
        self._clients.clear()
        self._processes.clear()

    def close(self) -> None:
        self.close_clients()
        for daemon in self.daemons:
            daemon.stop()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Pair]:
    place = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
    pair = Pair(place)
    try:
        yield pair
    finally:
        pair.close()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def pair(hosts: Pair) -> Iterator[Pair]:
    yield hosts
    hosts.close_clients()


def test_unknown_command_gets_no_answer_and_one_that_is_gone_makes_the_connection_deaf(pair: Pair) -> None:
    unknown = pair.client()
    unknown.send(request_header(45).encode(), request_header(99).encode())
    found = unknown.asked(r.Version(), replies.Plain)
    assert (found.result, found.data2 >> 24) == (Result.OK, 5)
    for command in COMMANDS_OF_3 - COMMANDS_OF_5:
        gone = pair.client()
        gone.send(request_header(command).encode(), r.Version())
        assert gone.is_silent()


def test_acquire2_names_the_holder(pair: Pair) -> None:
    lease = pair.lease()
    holder, other = pair.process(), pair.process(1)
    assert holder.client.ask(r.Acquire2(0, r.OWN, (lease,))) == replies.Plain()
    assert holder.client.ask(r.Acquire2(0, r.OWN, (lease,))) == replies.Plain(Result.EEXIST)
    found = other.client.asked(r.Acquire2(0, r.OWN, (lease,)), replies.Holder)
    assert (found.result, found.host_name.text) == (Result.ACQUIRE_IDLIVE, "host-one")
    assert (found.host.host_id, found.host.generation, found.host.state) == (1, 1, HostState.LIVE)
    assert found.host.timestamp
    assert other.client.header is not None
    assert other.client.header.length == 112


def test_acquire2_names_one_who_shares(pair: Pair) -> None:
    lease = pair.lease()
    shared = lease._replace(flags=ResourceFlag.SHARED)
    assert pair.process().client.result(r.Acquire(0, r.OWN, (shared,))) == Result.OK
    found = pair.process(1).client.asked(r.Acquire2(0, r.OWN, (lease,)), replies.Holder)
    assert (found.result, found.host.host_id, found.host.timestamp) == (Result.EAGAIN, 1, 0)


def test_client_id_names_a_process(pair: Pair) -> None:
    lease = pair.lease()
    process = pair.process()
    records = pair.client().asked(r.Status(2), replies.Records).records
    (number,) = [int(each.words["ci"]) for each in records if each.data32 == process.pid]
    target = r.Target(number, by_client_id=True)
    other = pair.client()
    assert other.result(r.Acquire(0, target, (lease,))) == Result.OK
    assert other.asked(r.Inquire(0, target), replies.ClientState).leases == 1
    assert other.result(r.Release(ReleaseFlag.NO_DISK, target, (lease._replace(disks=()),))) == Result.OK
    owners = other.asked(r.ReadResourceOwners(lease), replies.OwnersRead)
    assert [each.host_id for each in owners.hosts] == [1]  # forgotten here, and still on disk


@pytest.mark.parametrize(
    ("change", "result"), [({"lver": 40}, Result.RELEASE_LVER), ({"owner_id": 2}, Result.RELEASE_OWNER)]
)
def test_release_of_a_lease_that_was_written_over(pair: Pair, change: dict[str, int], result: Result) -> None:
    """sanlock 5 has other numbers than 3; ours are compared in contract/test_sanlock_resources.py."""
    lease, process = pair.lease(), pair.process()
    assert process.client.result(r.Acquire(0, r.OWN, (lease,))) == Result.OK
    at = lease.disks[0].offset_bytes
    leader = Leader.decode(read_at(pair.leases, at, DEFAULT.sector_bytes))
    assert isinstance(leader, Leader)
    write_at(pair.leases, at, dataclasses.replace(leader, **change).sector())  # type: ignore[arg-type]
    assert process.client.result(r.Release(0, r.OWN, (lease._replace(disks=()),))) == result


def test_record_of_a_host_is_read_made_and_marked(pair: Pair) -> None:
    def read(host_id: int) -> replies.LockspaceHostRead:
        lockspace = pair.lockspace._replace(host_id=host_id)
        return pair.client().asked(r.ReadLockspaceHost(lockspace), replies.LockspaceHostRead)

    living = read(2)
    assert (living.result, living.io_timeout_s) == (Result.OK, IO_TIMEOUT_S)
    assert (living.host.host_id, living.host.generation, living.host.flags) == (2, 1, 0)
    assert living.host.timestamp

    absent = pair.lockspace._replace(host_id=ABSENT_HOST)
    record = s.HostRecord(ABSENT_HOST, ABSENT_GENERATION, PaddedName.of("absent"), 1)
    request = r.InitLockspaceHost(InitHostFlag.NO_CAW, IO_TIMEOUT_S, absent, record)
    assert pair.client().ask(request) == replies.Plain()
    made = read(ABSENT_HOST).host
    assert (made.host_id, made.generation) == (ABSENT_HOST, ABSENT_GENERATION)
    assert made.timestamp

    def marked(generation: int) -> int:
        host = s.Host(ABSENT_HOST, generation)
        return pair.result(r.SetHost(HostMark.DEAD_EXT, IO_TIMEOUT_S, pair.lockspace, host))

    assert marked(ABSENT_GENERATION - 1) == Result.WRONG_GENERATION
    assert marked(ABSENT_GENERATION) == Result.OK


def test_own_host_alone_is_listed_when_that_is_asked_for(pair: Pair) -> None:
    request = r.GetHosts(GetHostsFlag.LOCAL, pair.lockspace._replace(host_id=0))
    found = pair.client(1).asked(request, replies.Hosts)
    assert [each.host_id for each in found.hosts] == [2]


def test_io_timeout_of_a_joined_lockspace_changes_with_the_next_renewals(pair: Pair) -> None:
    def shown() -> int:
        return (
            pair.client()
            .asked(r.GetHosts(GetHostsFlag.LOCAL, pair.of(0)), replies.Hosts)
            .hosts[0]
            .io_timeout_s
        )

    for seconds, result in ((0, Result.EINVAL), (IO_TIMEOUT_S, Result.OK), (2 * IO_TIMEOUT_S, Result.OK)):
        assert pair.result(r.SetConfig(ConfigOrder.IO_TIMEOUT, seconds, pair.of(0))) == result
    wait_until(lambda: shown() == 2 * IO_TIMEOUT_S, "the record to show the new one")
    assert pair.result(r.SetConfig(ConfigOrder.IO_TIMEOUT, IO_TIMEOUT_S, pair.of(0))) == Result.OK
    wait_until(lambda: shown() == IO_TIMEOUT_S, "the record to show the old one")


def test_new_records_of_status_are_read(pair: Pair) -> None:
    process = pair.process()
    assert process.client.result(r.Acquire(0, r.OWN, (pair.lease(),))) == Result.OK
    records = pair.client().asked(r.Status(), replies.Records).records
    types = {each.type for each in records}
    assert RecordType.WORKER in types
    assert types <= set(RecordType)
    whole = pair.of(0)
    for asked in (r.HostStatus(whole), r.Renewal(whole)):
        records += pair.client().asked(asked, replies.Records).records
    without = RecordType.WORKER, RecordType.RESOURCE_THREAD
    seen = [each for each in records if each.type not in without]
    assert {each.type for each in seen} == set(RecordType) - set(without)
    for each in seen:
        assert tuple(each.words) == keys_of(each.type, VERSION_5)


def test_every_new_command_is_played() -> None:
    text = Path(__file__).read_text()
    names = {
        row.request.__name__
        for command, row in request_table.ROWS.items()
        if command > Command.REBUILD_RINDEX
    }
    assert all(f"r.{name}(" in text for name in names)

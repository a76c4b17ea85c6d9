"""Two hosts with a daemon each in one lockspace, and what scripts need: fresh leases, clients, processes that hold.

Scripts know a daemon by its socket alone, so that they can be played to any program that serves sanlock's clients:
`START` has one start for each. Today those are real sanlocks.
"""

from __future__ import annotations

import itertools
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.interop.sanlock.daemon import SanlockDaemon
from tests.interop.sanlock.direct import blank_file, read_at, write_at
from tests.interop.sanlock.programs import of_release
from tests.interop.sanlock_socket.client import Process, SocketClient
from tests.support.daemon import Holdfastd
from tests.support.polling import wait_until

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import AddFlag, HostState
from holdfast.wire.sanlock.result import Result, described

IO_TIMEOUT_S = 1
GRACE_S, HOLDFAST_GRACE_S, HOLDFAST_FIRE_TIMEOUT_S = 6, 15, 30
LEASES = 160
"""Places for leases in one file: each script takes its own."""
NAME = "LS"


class Daemon(Protocol):
    """What a program under test has to offer beside its socket."""

    @property
    def socket_path(self) -> Path: ...
    def stalls(self) -> int:
        """How often its storage has not answered within the I/O timeout."""

    def kill(self) -> object: ...
    def stop(self) -> None: ...


class HoldfastDaemon(Holdfastd):
    """holdfastd in sanlock's place; a restart keeps what it had."""

    @property
    def socket_path(self) -> Path:
        return self.directory / "sanlock.sock"

    def stalls(self) -> int:
        return 0

    def kill(self, number: int = signal.SIGKILL) -> int:
        return super().kill(number)

    def stop(self) -> None:
        self.stop_all()


def holdfast(directory: Path, name: str, options: tuple[str, ...]) -> HoldfastDaemon:
    table = f'[sanlock]\nsocket = "{directory}/sanlock.sock"\n'
    if options == ("-g", str(HOLDFAST_GRACE_S)):
        table += f'watchdog = "none"\nfire_timeout_s = {HOLDFAST_FIRE_TIMEOUT_S}'
    elif options == ("-w", "1"):
        table += f'watchdog = "wdmd"\nwatchdog_device = "{directory}/no-wdmd"'
    else:
        assert not options, f"holdfastd has no {options}"
        table += 'watchdog = "none"'
    daemon = HoldfastDaemon(directory, table)
    daemon.start()
    return daemon


START: dict[str, Callable[[Path, str, tuple[str, ...]], Daemon]] = {
    "holdfast": holdfast,
    "sanlock": lambda directory, name, options: SanlockDaemon(directory, name, options=options),
    "sanlock-of-trixie": lambda directory, name, options: SanlockDaemon(
        directory, name, of_release("trixie"), options=options
    ),
}
"""By program: starts a daemon with its files in a directory, a host name, and options as sanlock's."""


class Host:
    """One daemon and its clients."""

    def __init__(self, start: str, directory: Path, host_id: int, *options: str) -> None:
        directory.mkdir()
        self.host_id = host_id
        self.daemon = START[start](directory, f"host-{host_id}", options)
        self._clients: list[SocketClient] = []
        self._processes: list[Process] = []

    def client(self) -> SocketClient:
        self._clients.append(SocketClient(self.daemon.socket_path))
        return self._clients[-1]

    def process(self) -> Process:
        self._processes.append(Process(self.daemon.socket_path))
        return self._processes[-1]

    def result(self, request: r.AnyRequest) -> int:
        """Of a connection of its own."""
        client = self.client()
        try:
            return client.result(request)
        finally:
            client.close()

    def is_in(self, lockspace: s.Lockspace) -> bool:
        return self.result(r.InqLockspace(0, lockspace)) == Result.OK

    def join(self, lockspace: s.Lockspace) -> None:
        done = self.result(r.AddLockspace(0, IO_TIMEOUT_S, lockspace))
        assert done == Result.OK, described(done)

    def close_clients(self) -> None:
        for client in self._clients:
            client.close()
        for process in self._processes:
            process.close()
        self._clients.clear()
        self._processes.clear()

    def close(self) -> None:
        self.close_clients()
        self.daemon.stop()


class Scene:
    """`one` and `two` are joined to `lockspace`; leases are free and formatted when a script gets them."""

    def __init__(self, start: str, place: Path) -> None:
        self.start = start
        self.place = place
        self.leases = blank_file(place / "leases", LEASES * MIB)
        self._numbers = itertools.count()
        self._others: list[Host] = []
        self._stalls_of_lone_hosts = 0
        self.one = self.another_host("one")
        self.two = self.another_host("two", host_id=2)
        self._others.clear()
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        self.lockspace = self.new_lockspace(NAME)
        for host in (self.one, self.two):
            done = host.result(r.AddLockspace(AddFlag.ASYNC, IO_TIMEOUT_S, self.of(host)))
            assert done == Result.OK, described(done)
        for host in (self.one, self.two):
            wait_until(lambda host=host: host.is_in(self.of(host)), "the join")  # type: ignore[misc]
        for host in (self.one, self.two):  # until each has seen the other renew
            wait_until(lambda host=host: self._sees_both(host), "two living hosts")  # type: ignore[misc]
            host.close_clients()

    def _sees_both(self, host: Host) -> bool:
        found = host.client().asked(r.GetHosts(0, self.lockspace._replace(host_id=0)), replies.Hosts)
        return [each.state for each in found.hosts] == [HostState.LIVE] * 2

    def of(self, host: Host) -> s.Lockspace:
        """The lockspace as that host names it."""
        return self.lockspace._replace(host_id=host.host_id)

    def record_of(self, host: Host) -> DeltaLease:
        """That host's delta lease, read from storage. sanlock's generation is 1 here; Holdfast's is of the date."""
        at = DEFAULT.delta_offset_bytes(host.host_id)
        record = DeltaLease.decode(read_at(Path(self.lockspace.disk.path), at, DEFAULT.sector_bytes))
        assert isinstance(record, DeltaLease), record
        return record

    @property
    def grace_s(self) -> int:
        """How long clients of a lost lockspace are asked before they are killed; Holdfast's is of the fire timeout."""
        return HOLDFAST_GRACE_S if self.start == "holdfast" else GRACE_S

    @property
    def ticks_s(self) -> float:
        """More than one signal is sent in this time: sanlock sends one a second, Holdfast one in five for a loss."""
        return 7.0 if self.start == "holdfast" else 3.0

    @property
    def log_of_a_join(self) -> bytes:
        """A piece of the line by which the daemon logs that it has joined the lockspace."""
        return b"lockspace LS: joined as host_id 1" if self.start == "holdfast" else b"LS:1:"

    def new_lockspace(self, name: str, *, by: Host | None = None) -> s.Lockspace:
        """Written in a file of its name, with host id 1."""
        path = blank_file(self.place / name, MIB)
        lockspace = s.Lockspace.of(name, 1, str(path))
        done = (by or self.one).result(r.WriteLockspace(0, 0, IO_TIMEOUT_S, lockspace))
        assert done == Result.OK, described(done)
        return lockspace

    def blank(self, name: str = "", *, lockspace: str = NAME, flags: int = 0) -> s.Resource:
        """A resource whose area was never written."""
        number = next(self._numbers)
        disk = s.Disk(str(self.leases), number * MIB)
        return s.Resource.of(lockspace, name or f"R{number}", disk, flags=flags)

    def lease(
        self, name: str = "", *, lockspace: str = NAME, hosts: int = 0, by: Host | None = None
    ) -> s.Resource:
        resource = self.blank(name, lockspace=lockspace)
        done = (by or self.one).result(r.WriteResource(0, hosts, 0, resource))
        assert done == Result.OK, described(done)
        return resource

    def sector(self, resource: s.Resource, at_bytes: int) -> bytes:
        return read_at(self.leases, resource.disks[0].offset_bytes + at_bytes, DEFAULT.sector_bytes)

    def overwrite(self, resource: s.Resource, at_bytes: int, raw: bytes) -> None:
        """Write bytes of its area directly; a daemon may write there, too."""
        sector = at_bytes - at_bytes % DEFAULT.sector_bytes
        old = bytearray(self.sector(resource, sector))
        old[at_bytes - sector : at_bytes - sector + len(raw)] = raw
        write_at(self.leases, resource.disks[0].offset_bytes + sector, bytes(old))

    def another_host(self, name: str, *options: str, host_id: int = 1) -> Host:
        """A daemon more, in no lockspace; it ends with the script."""
        self._others.append(Host(self.start, self.place / name, host_id, *options))
        return self._others[-1]

    @contextmanager
    def lone_host(self, name: str, *options: str) -> Iterator[Host]:
        """The same for a script that is played beside others."""
        host = Host(self.start, self.place / f"{name}{next(self._numbers)}", 1, *options)
        try:
            yield host
        finally:
            self._stalls_of_lone_hosts += host.daemon.stalls()
            host.close()

    def stalls(self) -> int:
        """How often the storage of this machine was late for one of the two hosts, or for a lone one that has ended."""
        return self._stalls_of_lone_hosts + sum(host.daemon.stalls() for host in (self.one, self.two))

    def close_clients(self) -> None:
        """After each script."""
        for host in (self.one, self.two):
            host.close_clients()
        for host in self._others:
            host.close()
        self._others.clear()

    def close(self) -> None:
        self.close_clients()
        self.one.close()
        self.two.close()


def holding(host: Host, *resources: s.Resource, flags: int = 0, options: s.Options | None = None) -> Process:
    """A new process of that host that holds these."""
    process = host.process()
    done = process.client.result(r.Acquire(flags, r.OWN, resources, options or s.Options()))
    assert done == Result.OK, described(done)
    return process


def head(resource: s.Resource) -> s.Resource:
    """As commands without disks send it."""
    return resource._replace(disks=())


@contextmanager
def on_stage(start: str) -> Iterator[Scene]:
    """A scene in a directory of its own, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place:
        stage = Scene(start, Path(place))
        try:
            yield stage
        finally:
            stage.close()

"""Two hosts of one lockspace on the same lease files: holdfastd with the paxos driver, and Debian's sanlock.

Each is asked by a client of its own kind: holdfastd through virtlockd's protocol, sanlock through its own library
(libsanlock_client, by ctypes).  A client is a process, as a VM's libvirtd side is.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.peers import wait_for_socket
from bench.vms import REPLY_BYTES, frame
from holdfast.wire import virtlockd as wire

SPACE = "__LIBVIRT__DISKS__"
IO_TIMEOUT_S = 1
"""Joining is quick then; how long an acquire takes does not depend on it."""
JOIN_TIMEOUT_S = 60.0
FIRE_TIMEOUT_S = 60
"""sanlock's; it can't be changed there."""


@dataclass(frozen=True, slots=True)
class LeaseCalls:
    """The two calls for one lease; each returns why it was refused, empty if it was not."""

    acquire: Callable[[], str]
    release: Callable[[], str]

    def pair(self) -> float:
        """Acquires the lease and releases it; returns the seconds that the acquire took."""
        begin = time.perf_counter()
        refused = self.acquire()
        took = time.perf_counter() - begin
        if refused or (refused := self.release()):
            raise RuntimeError(f"refused: {refused}")
        return took


CallsOf = Callable[[str], LeaseCalls]
"""From the path of a disk to the calls for its lease, as one owner makes them."""


def lease_name(disk: str) -> str:
    """As libvirt's sanlock plugin names it."""
    return hashlib.md5(disk.encode(), usedforsecurity=False).hexdigest()


class LeaseDirectory:
    """A lockspace and the disks whose leases are benchmarked."""

    def __init__(self, place: Path, hosts_max: int, name: str = SPACE) -> None:
        self.place = place
        self.hosts_max = hosts_max
        self.name = name
        self.leases = place / "leases"
        self.leases.mkdir(parents=True)
        self.space = self.leases / name
        command = ("lockspace", "init", str(self.space), "--name", name, "--hosts-max", str(hosts_max))
        subprocess.run([program("holdfast"), *command], check=True, stdout=subprocess.DEVNULL)

    def disk(self, number: int) -> str:
        path = self.place / f"{number}.img"
        path.touch()
        return str(path)


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


class LeasingHoldfastd:
    """Host 1 of the lockspace, or of several: disks have their leases in the directory that they lie beside.

    `identity`: "path" as sanlock, one lease for a disk; "auto" as users have it, with a second one by what it is.
    """

    name = "holdfastd"

    def __init__(
        self,
        directory: LeaseDirectory,
        *others: LeaseDirectory,
        fire_timeout_s: int = FIRE_TIMEOUT_S,
        identity: str = "path",
    ) -> None:
        self.directory = directory
        self._directories = (directory, *others)
        self._place = directory.place / "holdfastd"
        self._place.mkdir()
        self.socket = str(self._place / "s")
        config = self._place / "holdfast.toml"
        config.write_text(
            f'run_dir = "{self._place}/run"\nstate_dir = "{self._place}/state"\n'
            f'host_locks = "{self._place}/lockspaces"\n'
            f'[virtlockd]\nsocket = "{self.socket}"\nmax_clients = 5000\n'
            + "".join(
                f'[backend.leases{number}]\ndriver = "paxos"\ndirectory = "{each.leases}"\nlockspace = "{each.name}"\n'
                f'host_id = 1\nwatchdog = "none"\nhosts_max = {each.hosts_max}\nio_timeout_s = {IO_TIMEOUT_S}\n'
                f"fire_timeout_s = {fire_timeout_s}\ncross_host = true\n"
                f'[[disk]]\nmatch = "{each.place}/*"\nbackend = "leases{number}"\n'
                f'identity = "{identity}"\n'
                for number, each in enumerate(self._directories)
            )
        )
        self._log = self._place / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([program("holdfastd"), "--config", str(config)], stderr=log)
        wait_for_socket(self.socket, self.process)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_joined(self) -> None:
        everywhere = len(self._directories)
        until(lambda: self._log.read_bytes().count(b" generation ") >= everywhere, "holdfastd to join")

    def connect(self) -> CallsOf:
        """Registers the calling process."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.socket)

        def call(request: bytes) -> str:
            connection.sendall(request)
            reply = connection.recv(4096)
            return "" if len(reply) == REPLY_BYTES else repr(reply[REPLY_BYTES:])

        pid = os.getpid()
        register = wire.Register(pid.to_bytes(16), f"vm{pid}", 1, pid, 0).encode()
        if refused := call(frame(wire.PROC_REGISTER, 0, register)):
            raise RuntimeError(f"refused: {refused}")

        def calls(disk: str) -> LeaseCalls:
            payload = wire.ResourceCall("", disk, 0).encode()
            acquire, release = (
                frame(p, 1, payload) for p in (wire.PROC_ACQUIRE_RESOURCE, wire.PROC_RELEASE_RESOURCE)
            )
            return LeaseCalls(lambda: call(acquire), lambda: call(release))

        return calls

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class _Disk(ctypes.Structure):
    _fields_ = (
        ("path", ctypes.c_char * 1024),
        ("offset", ctypes.c_uint64),
        ("pad1", ctypes.c_uint32),
        ("pad2", ctypes.c_uint32),
    )


class _Resource(ctypes.Structure):
    """struct sanlk_resource of <sanlock.h>, with one disk."""

    _fields_ = (
        ("lockspace_name", ctypes.c_char * 48),
        ("name", ctypes.c_char * 48),
        ("lver", ctypes.c_uint64),
        ("data64", ctypes.c_uint64),
        ("data32", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("num_disks", ctypes.c_uint32),
        ("disk", _Disk),
    )


@dataclass(frozen=True, slots=True)
class LeasePlace:
    """A lease as clients of sanlock name it."""

    lockspace: str
    name: str
    path: str
    offset_bytes: int


def libsanlock_calls(place_of: Callable[[str], LeasePlace]) -> CallsOf:
    """Registers the calling process at the daemon of SANLOCK_RUN_DIR, through sanlock's own library."""
    library = ctypes.CDLL("libsanlock_client.so.1")
    connection = library.sanlock_register()
    if connection < 0:
        raise RuntimeError(f"sanlock_register: {connection}")

    def answer(number: int) -> str:
        return f"error {number}" if number else ""

    def calls(disk: str) -> LeaseCalls:
        place = place_of(disk)
        resource = _Resource(
            lockspace_name=place.lockspace.encode(),
            name=place.name.encode(),
            num_disks=1,
            disk=_Disk(path=place.path.encode(), offset=place.offset_bytes),
        )
        resources = (ctypes.POINTER(_Resource) * 1)(ctypes.pointer(resource))
        return LeaseCalls(
            lambda: answer(library.sanlock_acquire(connection, -1, 0, 1, resources, None)),
            lambda: answer(library.sanlock_release(connection, -1, 0, 1, resources)),
        )

    return calls


class Sanlock:
    """Host 2 of the lockspace, or of several."""

    name = "sanlock"

    def __init__(self, directory: LeaseDirectory, *others: LeaseDirectory) -> None:
        self.directory = directory
        self._directories = (directory, *others)
        run = directory.place / "sanlock"
        run.mkdir()
        self._environment = {"SANLOCK_PRIVILEGED": "0", "SANLOCK_RUN_DIR": str(run)}
        command = ("-D", "-w", "0", "-l", "0", "-h", "0", "-U", "root", "-G", "root", "-e", "bench-sanlock")
        self.process = subprocess.Popen(
            ["sanlock", "daemon", *command, "-o", str(IO_TIMEOUT_S)],
            env={**os.environ, **self._environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: self._client("status") == 0, "sanlock to answer")

    @property
    def pid(self) -> int:
        return self.process.pid

    def _client(self, *arguments: str) -> int:
        return subprocess.run(
            ["sanlock", "client", *arguments],
            env={**os.environ, **self._environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode

    def wait_joined(self) -> None:
        with ThreadPoolExecutor(len(self._directories)) as each:
            if any(each.map(self._join, self._directories)):
                raise RuntimeError("sanlock could not join the lockspace")

    def _join(self, directory: LeaseDirectory) -> int:
        place = f"{directory.name}:2:{directory.space}:0"
        return self._client("add_lockspace", "-s", place, "-o", str(IO_TIMEOUT_S))

    def connect(self) -> CallsOf:
        """Registers the calling process."""
        os.environ.update(self._environment)

        def place_of(disk: str) -> LeasePlace:
            directory = next(d for d in self._directories if Path(disk).parent == d.place)
            name = lease_name(disk)
            return LeasePlace(directory.name, name, str(directory.leases / name), 0)

        return libsanlock_calls(place_of)

    def stop(self) -> None:
        self._client("shutdown", "-f", "1")
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


LeasePeer = LeasingHoldfastd | Sanlock


def until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.1)


class LeaseServer(Protocol):
    """What a client can register at."""

    def connect(self) -> CallsOf: ...


class Client:
    """A process that acquires and releases one lease when told how often."""

    def __init__(self, peer: LeaseServer, disk: str) -> None:
        ask, self._ask = os.pipe()
        self._answer, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._ask)
                os.close(self._answer)
                pair = peer.connect()(disk).pair
                os.write(answer, b"ready\n")
                while request := os.read(ask, 64):
                    took = [pair() for _ in range(int(request))]
                    os.write(answer, b"%.9f\n" % sorted(took)[len(took) // 2])
                code = 0
            finally:
                os._exit(code)
        os.close(ask)
        os.close(answer)
        self.result()

    def begin(self, pairs: int) -> None:
        os.write(self._ask, b"%d" % pairs)

    def result(self) -> str:
        line = os.read(self._answer, 64)
        if not line:
            raise RuntimeError(f"client {self.pid} failed")
        return line.decode().strip()

    def end(self) -> None:
        os.close(self._ask)
        os.close(self._answer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

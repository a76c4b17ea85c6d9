"""Fuzzed headers, bodies and records to sanlock's socket of a live daemon: it lives, doesn't grow, answers others meanwhile,
and a VM that libvirt's lockd plugin has locked in the same lockspace keeps its lease.

The clients are processes of their own: asking for it, one can have itself killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.daemon.test_fuzzed_frames import descriptors, fuzzed, resident_kib, throw
from tests.interop.sanlock_socket.client import SocketClient
from tests.support.daemon import Holdfastd, make_disk
from tests.support.leases import SPACE, make_lockspace
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.leader import Leader
from holdfast.wire.sanlock import request_table as table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.header import MAGIC, PROTOCOL_VERSION, Header, request_header
from holdfast.wire.sanlock.result import Result

HOST_ID = 1
ANSWER_S = 5.0
"""For a client that asks while others are fuzzing: far more than it takes on a busy machine."""
GROWN_KIB = 48 * 1024
"""It comes to rest 22 MiB above, after some thousand requests: lines for LOG_DUMP, buffers of areas, memory in pieces."""
EXAMPLES = 80
"""`make fuzz` plays more: tests/fuzz/live_sockets."""
HALF_HEADERS = 20
"""Clients that never send the rest of what they have begun with."""
DIRECTORY = Path(tempfile.gettempdir()) / f"hf-fuzz-{os.getpid()}"
DISK = DIRECTORY / "disk.img"
LOCKSPACE, SCRATCH = f"leases/{SPACE}", "scratch"
LEASE = f"leases/{hashlib.md5(str(DISK).encode()).hexdigest()}"
"""The VM's."""

U32 = st.sampled_from((0, 1, 2, 3, 4, 5, 8, 9, 0x10, 0x110, 0x280, 255, 256, 257, 2**16, 2**31, 2**32 - 1))
U64 = st.sampled_from((0, 1, 2, 512, 777, MIB, 2 * MIB, 8 * MIB, 2**40, 2**63 - 1, 2**63, 2**64 - 1))
NAMES = st.sampled_from((SPACE, "LS", "R", "", "x" * 48, "a b", "\N{SNOWMAN}", ":", "__RINDEX__")) | st.text(
    max_size=12, alphabet=st.characters(exclude_categories=["Cs"])
)
PATHS = st.sampled_from(
    ("lockspace", "lease", "scratch", "scratch", "scratch", "directory", "none", "", "null", "long")
)


def _path(kind: str) -> bytes:
    """Only of files that this test has made, or that are of no use."""
    here = os.fsencode(DIRECTORY)
    found = {
        "lockspace": here + b"/" + LOCKSPACE.encode(),
        "lease": here + b"/" + LEASE.encode(),
        "scratch": here + b"/" + SCRATCH.encode(),
        "directory": here,
        "none": here + b"/none",
        "": b"",
        "null": b"/dev/null",
        "long": b"/" + b"x" * 1023,
    }
    return found[kind].ljust(1024, b"\0")[:1024]


def _name(text: str) -> bytes:
    return text.encode()[:48].ljust(48, b"\0")


def _words(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


NOTHING = st.just(0)
FOUR = (NOTHING | NOTHING | NOTHING | U32).map(lambda number: number.to_bytes(4, "little"))
EIGHT = (NOTHING | NOTHING | st.just(1) | st.just(MIB) | U64).map(lambda number: number.to_bytes(8, "little"))
NAME = (st.just(SPACE) | st.just("R") | NAMES).map(_name)
PATH = (st.just("lockspace") | st.just("lease") | PATHS).map(_path)
DISKS = _words(PATH, EIGHT, FOUR, FOUR)
LOCKSPACES = _words(NAME, EIGHT, FOUR, FOUR, DISKS)
EVENTS = HOSTS = _words(EIGHT, EIGHT, EIGHT, EIGHT)
INDEXES = _words(FOUR, FOUR, EIGHT, NAME, DISKS)
ENTRIES = _words(NAME, EIGHT, FOUR, FOUR)
OPTIONS = _words(NAME, FOUR, FOUR)
RECORDS = st.binary(min_size=s.LEADER_BYTES, max_size=s.LEADER_BYTES)
TEXTS = st.sampled_from((b"/bin/true", b"/none", b"a\\ b \\x", b"\xff" * 128)).map(
    lambda raw: raw.ljust(128, b"\0")
)
COUNTS = st.sampled_from((0, 1, 1, 1, 2, 4, 5, 8, 2**31, 2**32 - 1))


@st.composite
def resources(draw: st.DrawFn, *, with_disks: bool = True) -> bytes:
    count = draw(COUNTS)
    head = draw(_words(NAME, NAME, EIGHT, EIGHT, FOUR, FOUR, FOUR)) + count.to_bytes(4, "little")
    return head + b"".join(draw(DISKS) for _ in range(min(count, 5) if with_disks else 0))


PARTS = {
    table.LS: LOCKSPACES,
    table.RES: resources(with_disks=False),
    table.WHOLE: resources(),
    table.DISK: DISKS,
    table.HOST: HOSTS,
    table.EVENT: EVENTS,
    table.RECORD: RECORDS,
    table.RX: INDEXES,
    table.RE: ENTRIES,
    table.TEXT: TEXTS,
}
WRITING = (
    *(Command.ACQUIRE, Command.ACQUIRE, Command.CONVERT, Command.RELEASE, Command.REQUEST, Command.SET_LVB),
    *(Command.WRITE_LOCKSPACE, Command.WRITE_RESOURCE, Command.FORMAT_RINDEX, Command.UPDATE_RINDEX),
    *(Command.CREATE_RESOURCE, Command.DELETE_RESOURCE, Command.REBUILD_RINDEX, Command.INIT_LOCKSPACE_HOST),
    *(Command.REM_LOCKSPACE, Command.SET_CONFIG, Command.SET_HOST),
)
"""Played more often than the rest."""
MANY = (Command.ACQUIRE, Command.ACQUIRE2, Command.RELEASE)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One that may be refused for what it says, not for its form."""
    command = draw(st.sampled_from(WRITING) | st.sampled_from(list(Command)))
    # A lockspace that is really added would be growth of another kind, and stay: its places are never formatted.
    if command is Command.ADD_LOCKSPACE:
        place = draw(st.sampled_from(("lockspace", "directory", "none", "null")))
        body = draw(_words(NAME, EIGHT, FOUR, FOUR)) + _path(place) + draw(_words(EIGHT, FOUR, FOUR))
        data = draw(U32)
    elif command in MANY:
        data = draw(st.sampled_from((0, 1, 1, 2, 3, 8, 9, 256, 257, 2**32 - 1)))
        with_disks = command is not Command.RELEASE
        body = b"".join(draw(resources(with_disks=with_disks)) for _ in range(min(data, 3)))
        body += draw(OPTIONS) if with_disks else b""
    else:
        data = draw(U32)
        body = b"".join(draw(PARTS[part]) for part in table.ROWS[command].parts)
        if command is Command.SET_LVB:
            body += draw(st.binary(max_size=600))
    target = draw(st.sampled_from((2**32 - 1, 2**32 - 1, 0, 1, 2**31)))
    head = request_header(command, flags=draw(NOTHING | U32), body_bytes=len(body), data=data, data2=target)
    return head.encode() + body


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A request with its form broken: bytes of the header exchanged, the body cut or longer."""
    raw = bytearray(draw(requests()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, 31))
        raw[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    cut = draw(st.integers(0, len(raw)))
    return bytes(raw[:cut]) if draw(st.booleans()) else bytes(raw) + draw(st.binary(max_size=70))


HEADERS = st.builds(
    lambda *words: Header(*words).encode(),
    st.sampled_from((MAGIC, MAGIC, MAGIC, 0, 2**32 - 1)),
    st.sampled_from((PROTOCOL_VERSION, PROTOCOL_VERSION, 0, 2**16, 2**32 - 1)),
    st.integers(0, 60),
    U32,
    U32,
    U32,
    U32,
    U32,
)
REGISTER = st.just(request_header(Command.REGISTER).encode())
MESSAGES = st.one_of(
    requests(), requests(), requests(), requests(), REGISTER, damaged(), HEADERS, st.binary(max_size=64)
)
REGISTERED = st.lists(MESSAGES, min_size=1, max_size=4).map(
    lambda messages: [request_header(Command.REGISTER).encode(), *messages]
)
CONNECTIONS = st.lists(st.lists(MESSAGES, min_size=1, max_size=4) | REGISTERED, min_size=1, max_size=6)
"""What clients send, one after the other."""


@dataclass
class Guarded:
    """A daemon with a VM of the lockd plugin, and clients that ask it meanwhile."""

    daemon: Holdfastd
    disk: Path
    vm: int
    lease: Path
    asks: SocketClient
    halves: list[SocketClient] = field(default_factory=list)
    pins: tuple[int, int] | None = None
    """Descriptors and memory before."""

    @property
    def socket(self) -> Path:
        return self.daemon.directory / "sanlock.sock"

    def owner(self) -> tuple[int, int]:
        """Of the VM's lease by storage: host id, and how often it was acquired."""
        with self.lease.open("rb") as f:  # a client may have written far behind it
            leader = Leader.decode(f.read(DEFAULT.sector_bytes))
        assert isinstance(leader, Leader), leader
        return leader.owner_id, leader.lver


def guard() -> Guarded:
    DIRECTORY.mkdir()
    leases = DIRECTORY / "leases"
    leases.mkdir()
    make_lockspace(leases / SPACE)
    (DIRECTORY / SCRATCH).write_bytes(b"")
    os.truncate(DIRECTORY / SCRATCH, 16 * MIB)
    daemon = Holdfastd(
        DIRECTORY,
        f'[sanlock]\nsocket = "{DIRECTORY}/sanlock.sock"\nwatchdog = "none"\n[backend.leases]\ndriver = "paxos"\n'
        f'directory = "{leases}"\ncross_host = true\nhost_id = {HOST_ID}\nwatchdog = "none"\nio_timeout_s = 1\n'
        '[[disk]]\nmatch = "*"\nbackend = "leases"\nidentity = "path"\n',
    )
    (DIRECTORY / "inside").mkdir()
    daemon.start(cwd=DIRECTORY / "inside")
    try:
        return _guarded(daemon)
    except BaseException:
        daemon.stop_all()
        raise


def _guarded(daemon: Holdfastd) -> Guarded:
    disk = make_disk(DIRECTORY, DISK.name)
    daemon.says("joined as host_id")
    vm = daemon.vm([disk], name="guarded")
    found = Guarded(daemon, disk, vm, DIRECTORY / LEASE, SocketClient(DIRECTORY / "sanlock.sock"))
    for number in range(HALF_HEADERS):
        client = SocketClient(found.socket)
        client.send(request_header(Command.ACQUIRE).encode()[: number + 1])
        found.halves.append(client)
    return found


def close(guarded: Guarded) -> None:
    guarded.daemon.stop_all()
    for client in (guarded.asks, *guarded.halves):
        client.close()
    shutil.rmtree(DIRECTORY, ignore_errors=True)


def thrown_by_another(path: Path, connections: list[list[bytes]]) -> int:
    """The pid of a process that sends them and ends."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            for messages in connections:
                throw(str(path), messages)
        os._exit(0)
    return pid


def survives(guarded: Guarded, connections: list[list[bytes]]) -> None:
    if guarded.pins is None:
        for _ in range(40):  # what grows once grows here
            os.waitpid(thrown_by_another(guarded.socket, connections), 0)
        guarded.pins = (descriptors(guarded.daemon.pid), resident_kib(guarded.daemon.pid))
    fds, kib = guarded.pins
    daemon, before = guarded.daemon, guarded.owner()
    pid = thrown_by_another(guarded.socket, connections)
    answered = False
    try:
        begun = time.monotonic()
        assert guarded.asks.result(r.Version()) == Result.OK
        assert (
            guarded.asks.result(r.ReadLockspace(s.Lockspace.of(SPACE, 1, f"{DIRECTORY}/{LOCKSPACE}")))
            == Result.OK
        )
        waited_s = time.monotonic() - begun
        answered = True
    finally:
        if not answered:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert waited_s < ANSWER_S
    assert daemon.process is not None
    assert daemon.process.poll() is None, daemon.log_text()[-3000:]
    assert daemon.holders(guarded.disk) == [("guarded", guarded.vm, True)]
    assert guarded.owner() == before
    assert before[0] == HOST_ID
    assert "Traceback" not in daemon.log_text()
    wait_until(lambda: descriptors(daemon.pid) <= fds, "all descriptors of fuzzed connections to be closed")
    assert resident_kib(daemon.pid) < kib + GROWN_KIB


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    found = guard()
    yield found
    close(found)


@settings(parent=fuzzed, max_examples=EXAMPLES)
@given(connections=CONNECTIONS)
def test_fuzzed_requests_of_sanlocks_clients_harm_nobody(
    guarded: Guarded, connections: list[list[bytes]]
) -> None:
    survives(guarded, connections)

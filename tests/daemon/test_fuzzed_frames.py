"""Fuzzed frames to a live daemon with locks held: it lives, doesn't grow, and the locks are untouched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.daemon import Holdfastd, locked, make_disk
from tests.support.polling import wait_until

from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire

S32 = st.sampled_from((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1, 2**31 - 1, -(2**31)))
U32 = st.sampled_from((0, 1, 2, 3, 4, 0x80, 65536, 65537, 2**31, 2**32 - 1))
PROGRAM = st.sampled_from((rpc.PROGRAM_LOCKSPACE,) * 4 + (rpc.PROGRAM_KEEPALIVE, 0x06900690, 0))
TEXTS = st.sampled_from(("", ".", "..", "nope/nope", "\udcff", "x" * 300, "x" * 5000)) | st.text(
    max_size=8, alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="/")
)
"""Never an absolute path, and the daemon works in a directory of its own: DELETE_RESOURCE removes what it is told to,
and the daemon is root."""
PAYLOADS = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda p, n, f: wire.ResourceCall(p, n, f).encode(), TEXTS, TEXTS, U32),
    st.builds(lambda n, i, f: wire.Register(bytes(16), n, i, 0, f).encode(), TEXTS, U32, U32),
    st.builds(lambda f: wire.Restrict(f).encode(), U32),
)
FRAMES = st.one_of(
    st.builds(
        lambda p, v, proc, kind, serial, status, payload: rpc.encode(
            rpc.Header(p, v, proc, kind, serial, status), payload
        ),
        PROGRAM,
        st.sampled_from((1, 1, 1, 2)),
        S32,
        st.sampled_from((0, 0, 0, 1, 2, 3, 4, 5)),
        U32,
        st.sampled_from((0, 0, 0, 1)),
        PAYLOADS,
    ),
    st.builds(lambda n, rest: struct.pack(">I", n) + rest, U32, st.binary(max_size=64)),
    st.binary(max_size=64),
)


METHODS = st.sampled_from(
    (
        *("GetStatus", "ListOwners", "ListLocks", "ListLeaseSpaces", "JoinLeaseSpace", "LeaveLeaseSpace"),
        *("CollectLeases", "BreakLease", "FenceHost", "SettleLock", "GetHolders", "Acquire", "Release"),
        *("WatchEvents", "", "_peer", "__init__"),
    )
)
NAMES = st.sampled_from(
    (
        *("pid", "name", "disks", "path", "paths", "lock", "host", "operator", "lockspace", "attest_off"),
        *("dry_run", "after", "follow", "until_closed", "family", "shared"),
    )
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((0, -1, 1 << 31, 1 << 70, 0.5)),
    TEXTS,
    st.sampled_from(("/nope", "/dev/null", "/proc/self/mem", "\ud800", "/a\0b", "\x1b[31m")),
)
PARAMETERS = st.recursive(
    LEAVES, lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each, max_size=6), max_leaves=8
)
CALLS = st.builds(
    lambda interface, method, parameters, flags: (
        json.dumps({"method": f"{interface}.{method}", "parameters": parameters, **flags}).encode() + b"\0"
    ),
    st.sampled_from(("io.holdfast.Control",) * 4 + ("org.varlink.service", "io.holdfast", "")),
    METHODS,
    st.dictionaries(NAMES, PARAMETERS, max_size=6) | PARAMETERS,
    st.dictionaries(st.sampled_from(("more", "oneway", "upgrade", "x")), st.booleans() | LEAVES, max_size=2),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A call with some bytes exchanged, left out or put in."""
    raw = bytearray(draw(CALLS))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


MESSAGES = st.one_of(CALLS, CALLS, damaged(), st.binary(max_size=64))


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Holdfastd, Path, int]]:
    directory = Path(tempfile.mkdtemp(prefix="hf-"))
    inside = directory / "inside"
    inside.mkdir()
    daemon = Holdfastd(directory).start(cwd=inside)
    disk = make_disk(directory)
    vm = daemon.vm([disk], name="guarded")
    yield daemon, disk, vm
    daemon.stop_all()
    shutil.rmtree(directory, ignore_errors=True)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def throw(path: str, frames: list[bytes]) -> None:
    """Send, read whatever comes, go away."""
    with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(OSError):
        s.settimeout(60)
        s.connect(path)
        for frame in frames:
            s.sendall(frame)
        s.shutdown(socket.SHUT_WR)
        while s.recv(65536):
            pass


_PINS: dict[str, tuple[int, int]] = {}
"""By socket: descriptors and memory before."""

fuzzed = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@fuzzed
@given(frames=st.lists(FRAMES, min_size=1, max_size=8))
def test_fuzzed_frames_neither_stop_nor_grow_the_daemon_nor_touch_its_locks(
    guarded: tuple[Holdfastd, Path, int], frames: list[bytes]
) -> None:
    survives(guarded, guarded[0].socket, frames)


@fuzzed
@given(frames=st.lists(MESSAGES, min_size=1, max_size=8))
def test_fuzzed_messages_neither_stop_nor_grow_the_daemon_nor_touch_its_locks(
    guarded: tuple[Holdfastd, Path, int], frames: list[bytes]
) -> None:
    survives(guarded, guarded[0].control, frames)


def survives(guarded: tuple[Holdfastd, Path, int], path: str, frames: list[bytes]) -> None:
    daemon, disk, vm = guarded
    if path not in _PINS:
        for _ in range(200):  # what grows once grows here
            throw(path, frames)
        _PINS[path] = (descriptors(daemon.pid), resident_kib(daemon.pid))
    fds, kib = _PINS[path]
    throw(path, frames)
    assert daemon.process is not None
    assert daemon.process.poll() is None, daemon.log_text()[-3000:]
    assert daemon.holders(disk) == [("guarded", vm, True)]
    assert locked(disk)
    assert "Traceback" not in daemon.log_text()
    wait_until(lambda: descriptors(daemon.pid) <= fds, "all descriptors of fuzzed connections to be closed")
    assert resident_kib(daemon.pid) < kib + 16 * 1024

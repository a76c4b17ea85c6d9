"""sanlock's own command line speaks to our connection layer, with a service in memory behind it.

What it prints and how it exits is what it does with the real daemon: the bytes that it gets are understood.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.sanlock_socket.client import Process
from tests.support.sanlock_service import FakeService

from holdfast.frontends.sanlock.frontend import SanlockFrontend
from holdfast.system.epoll import Readiness
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.result import Result

pytestmark = pytest.mark.interop

VERSION_NUMBER = 0x03090500
_CALL_S = 20.0
LEASE = s.Resource.of("LS", "R1", s.Disk("/tmp/leases", 1048576))


class Served:
    """The frontend on a thread of its own, at `sanlock.sock` of a run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / "sanlock.sock"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        assert self._ready.wait(_CALL_S)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self.service = FakeService()
        readiness = Readiness(self._loop)
        self.frontend = SanlockFrontend(self.service, readiness=readiness, version=VERSION_NUMBER)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        self.frontend.listen(sock, cap_key="none")
        self._ready.set()
        await self._over.wait()
        self.frontend.close()
        readiness.close()

    def command(self, *arguments: str, expect: int = 0) -> list[str]:
        """What `sanlock client` prints, line by line."""
        done = subprocess.run(
            ["sanlock", "client", *arguments],
            env={**os.environ, "SANLOCK_RUN_DIR": str(self.run_dir)},
            capture_output=True,
            text=True,
            timeout=_CALL_S,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout.splitlines()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@pytest.fixture
def served() -> Iterator[Served]:
    place = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
    stage = Served(place)
    try:
        yield stage
    finally:
        stage.close()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def holder(served: Served) -> Iterator[Process]:
    """A registered process that holds a lease."""
    process = Process(served.path)
    try:
        assert process.client.result(r.AddLockspace(0, 1, s.Lockspace.of("LS", 1, "/tmp/ls"))) == Result.OK
        assert process.client.result(r.Acquire(0, r.OWN, (LEASE,))) == Result.OK
        yield process
    finally:
        process.close()


def test_version_and_lockspaces(served: Served) -> None:
    assert any("3.9.5" in line for line in served.command("version"))
    place = ("-s", "LS:1:/tmp/ls:0")
    assert served.command("add_lockspace", *place)[-1] == "add_lockspace done 0"
    assert served.command("inq_lockspace", *place)[-1] == "inq_lockspace done 0"
    assert served.command("inq_lockspace", "-s", "X:1:/tmp/ls:0", expect=1)[-1] == "inq_lockspace done -2"
    assert [line.strip() for line in served.command("gets", "-h", "1")] == [
        "s LS:1:/tmp/ls:0",
        "h 1 gen 1 timestamp 7 LIVE",
    ]
    assert served.command("set_config", *place, "-u", "1")[-1] == "set_config done 0"
    assert served.command("rem_lockspace", *place)[-1] == "rem_lockspace done 0"


def test_status_shows_clients_lockspaces_and_resources(served: Served, holder: Process) -> None:
    lines = served.command("status")
    assert lines[0] == "daemon host"
    assert f"p {holder.pid}" in " ".join(line.rstrip() for line in lines)
    assert "s LS:1:/tmp/ls:0" in lines
    assert [line for line in lines if line.startswith("r LS:R1:/tmp/leases:1048576:")]
    assert f"    pid={holder.pid}" in served.command("status", "-D")


def test_leases_of_a_process_are_acquired_inquired_and_released(served: Served, holder: Process) -> None:
    pid = ("-p", str(holder.pid))
    assert served.command("acquire", *pid, "-r", "LS:R2:/tmp/leases:2097152")[-1] == "acquire done 0"
    assert served.command("inquire", *pid) == [
        f"inquire pid {holder.pid}",
        "inquire done 0 res_count 2",
        '"LS:R1:/tmp/leases:1048576:0 LS:R2:/tmp/leases:2097152:0"',
    ]
    assert (
        served.command("convert", *pid, "-r", "LS:R1:/tmp/leases:1048576:SH", expect=1)[-1]
        == "convert done -2"
    )
    assert served.command("release", *pid, "-r", "LS:R1:/tmp/leases:1048576")[-1] == "release done 0"
    assert (
        served.command("release", *pid, "-r", "LS:R1:/tmp/leases:1048576", expect=1)[-1] == "release done -1"
    )
    assert (
        served.command("acquire", "-p", "999999", "-r", "LS:R2:/tmp/leases:0", expect=1)[-1]
        == "acquire done -3"
    )


def test_storage_commands_are_understood(served: Served) -> None:
    assert served.command("read", "-s", "LS:1:/tmp/ls:0")[0] == "s LS:1:/tmp/ls:0"
    assert served.command("read", "-r", "LS:R1:/tmp/leases:0")[0].startswith("r LS:R1:/tmp/leases:0")
    assert served.command("init", "-s", "LS:0:/tmp/ls:0")[-1] == "init done 0"
    assert served.command("init", "-r", "LS:R1:/tmp/leases:0")[-1] == "init done 0"
    assert served.command("align", "-s", "LS:0:/tmp/ls:0", expect=1)[-1] == "align done 1048576"
    assert (
        served.command("request", "-r", "LS:R1:/tmp/leases:0", "-f", "1", expect=1)[-1] == "request done -28"
    )
    assert served.command("examine", "-s", "LS:1:/tmp/ls:0")[-1] == "examine done 0"
    index = ("-x", "LS:/tmp/index:0")
    assert served.command("format", *index)[-1] == "format done 0"
    assert "create_resource done 0" in served.command("create", *index, "-e", "R1")
    assert served.command("delete", *index, "-e", "R1")[-1] == "delete_resource done 0"
    assert "lookup done 0" in served.command("lookup", *index, "-e", "R1")
    assert served.command("rebuild", *index)[-1] == "rebuild done 0"


def test_streams_and_shutdown(served: Served, holder: Process) -> None:
    log = served.command("log_dump", expect=1)  # it takes a number of bytes for a failure
    assert set(log) == {"2026-01-01 one line", ""}
    assert served.command("host_status", "-s", "LS") == []
    assert served.command("renewal", "-s", "LS") == []
    assert served.command("shutdown", "-w", "1", expect=1)[-1] == "shutdown done -16"
    assert served.command("shutdown")[-1] == "shutdown done 0"
    assert holder.runs()


def test_program_is_run_with_a_lease(served: Served, holder: Process) -> None:
    """REGISTER, ACQUIRE on the own connection, exec: the descriptor stays open in the program."""
    lines = served.command("command", "-r", "LS:R3:/tmp/leases:3145728", "-c", "/bin/echo", "it", "ran")
    assert lines[-1] == "it ran"
    acquired = [each for each in served.service.seen if isinstance(each, r.Acquire)]
    assert [each.name.text for each in acquired[-1].resources] == ["R3"]

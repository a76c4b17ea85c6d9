"""Clients that send nonsense, too much or nothing at all: they harm themselves, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import Factory, Holdfastd, bystander

from holdfast.control.api import DiskWish
from holdfast.control.client import CallRefused
from holdfast.frontends.varlink_connection import MESSAGE_BYTES_MAX
from holdfast.system.logs.log_limit import LINES_PER_PERIOD

NOBODY = 65534
GROUP = "nogroup"
CONTROL = f'[control]\ngroup = "{GROUP}"\n'
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
PROTOCOL = "io.holdfast.Control.ProtocolViolation"


@contextlib.contextmanager
def connected(daemon: Holdfastd, timeout_s: float = 60) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(timeout_s)
        s.connect(daemon.control)
        yield s


def replies(s: socket.socket) -> list[dict[str, Any]]:
    """All that come before the daemon closes the connection."""
    raw = b""
    while part := s.recv(1 << 16):
        raw += part
    return [json.loads(each) for each in raw.split(b"\0")[:-1]]


def call(method: str, **more: object) -> bytes:
    return json.dumps({"method": f"io.holdfast.Control.{method}", "parameters": {}, **more}).encode() + b"\0"


def memory_mb(daemon: Holdfastd) -> int:
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) >> 10


# --- messages ---


def test_message_without_an_end_is_refused_at_its_bound_and_not_read_on(daemon: Holdfastd) -> None:
    before_mb, sent = memory_mb(daemon), 0
    with connected(daemon) as s:
        with pytest.raises(OSError, match=r"pipe|reset"):
            while sent < 8 << 20:
                sent += s.send(b"A" * (1 << 16))
        (reply,) = replies(s)
    assert reply["error"] == PROTOCOL
    assert f"longer than {MESSAGE_BYTES_MAX} bytes" in reply["parameters"]["message"]
    assert memory_mb(daemon) < before_mb + 32
    with daemon.client() as client:
        client.register(pid=bystander(), name="vm", domain_id=1)


def test_message_that_comes_in_many_small_parts_is_read_without_copying_it_each_time(
    daemon: Holdfastd,
) -> None:
    """Nearly as long as may be, a byte more each time at first: it is answered as any other."""
    padding = "x" * (MESSAGE_BYTES_MAX - 1000)
    raw = json.dumps({"method": "org.varlink.service.GetInfo", "padding": padding}).encode() + b"\0"
    with connected(daemon) as s:
        for at in range(100):
            s.sendall(raw[at : at + 1])
        for at in range(100, len(raw), 1000):
            s.sendall(raw[at : at + 1000])
        reply = json.loads(s.recv(1 << 16)[:-1])
    assert reply["parameters"]["product"] == "holdfastd"


def test_client_that_never_reads_is_not_served_on(daemon: Holdfastd) -> None:
    request = (
        b'{"method":"org.varlink.service.GetInterfaceDescription",'
        b'"parameters":{"interface":"io.holdfast.Control"}}\0'
    )
    before_mb, sent = memory_mb(daemon), 0
    with connected(daemon, timeout_s=2) as s:
        with pytest.raises(TimeoutError):
            while sent < 32 << 20:
                sent += s.send(request * 500)
        assert memory_mb(daemon) < before_mb + 32
        with daemon.admin() as admin:
            assert admin.status().pid == daemon.pid


def test_many_calls_in_one_packet_are_answered_in_order(daemon: Holdfastd) -> None:
    with connected(daemon) as s:
        s.sendall((call("GetStatus") + call("ListOwners")) * 50)
        raw = b""
        while raw.count(b"\0") < 100:
            raw += s.recv(1 << 16)
    keys = [next(iter(json.loads(each)["parameters"])) for each in raw.split(b"\0")[:-1]]
    assert keys == ["status", "owners"] * 50


MALFORMED = {
    "empty": b"\0",
    "not UTF-8": b"\xff\xfe\0",
    "not JSON": b"nonsense\0",
    "no object": b"[]\0",
    "no method": b"{}\0",
    "a method that is a number": b'{"method":7}\0',
    "a method without interface": b'{"method":"x"}\0',
    "parameters that are a list": b'{"method":"io.holdfast.Control.GetStatus","parameters":[]}\0',
    "deep nesting": b'{"a":' * 50_000 + b"\0",
    "deep lists": b"[" * 100_000 + b"\0",
    "a number without end": b'{"a":' + b"9" * 100_000 + b"}\0",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_message_gets_one_error_and_its_connection_is_closed(
    shared_daemon: Holdfastd, kind: str
) -> None:
    with connected(shared_daemon) as s:
        s.sendall(MALFORMED[kind])
        (reply,) = replies(s)
    assert reply["error"] == PROTOCOL
    assert reply["parameters"]["message"].startswith("the message ")
    assert "Traceback" not in shared_daemon.log_text()


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"pid": 1 << 70, "name": "x", "disks": []}, None),
        ({"pid": 1, "name": "x", "disks": 7}, "org.varlink.service.InvalidParameter"),
        ({"pid": -1, "name": "\ud800", "disks": []}, PROTOCOL),
        ({"pid": 1, "name": "x", "disks": [{"path": "/a\0b", "shared": False}]}, PROTOCOL),
        ({"pid": 1, "name": "x", "disks": [{"path": "/\ud800", "shared": False}]}, PROTOCOL),
        ({"pid": 1, "name": "x", "disks": [], "family": "/sys/fs/cgroup/\0"}, PROTOCOL),
    ],
    ids=json.dumps,
)
def test_odd_parameters_are_answered_without_a_traceback(
    shared_daemon: Holdfastd, parameters: dict[str, object], error: str | None
) -> None:
    """A name with half of a surrogate pair would make every later list fail."""
    with connected(shared_daemon) as s:
        s.sendall(call("Acquire", parameters=parameters))
        raw = s.recv(1 << 16)
    assert json.loads(raw.split(b"\0")[0]).get("error") == error
    with shared_daemon.admin() as admin:
        admin.owners()
    assert "Traceback" not in shared_daemon.log_text()


def test_nonsense_in_a_loop_does_not_fill_the_log(daemon: Holdfastd) -> None:
    before = len(daemon.log_text().splitlines())
    for _ in range(20 * LINES_PER_PERIOD):
        with connected(daemon) as s:
            s.sendall(b"\xff\0")
            replies(s)
    after = len(daemon.log_text().splitlines())
    assert after - before <= 2 * LINES_PER_PERIOD  # a minute may have ended meanwhile


# --- places ---

_HOARD = """
import json, socket, sys
path, count = sys.argv[1], int(sys.argv[2])
held, refused = [], []
for _ in range(count):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    held.append(s)
for s in held:
    try:
        s.sendall(b'{"method":"org.varlink.service.GetInfo"}\\0')
    except BrokenPipeError:
        pass
    refused.append(json.loads(s.recv(65536)[:-1]).get("error", ""))
print(json.dumps(refused), flush=True)
sys.stdin.read()
"""


def test_one_user_can_not_take_the_places_of_others(make_daemon: Factory) -> None:
    daemon = make_daemon(CONTROL).start()
    os.chmod(daemon.directory.parent, 0o755)
    os.chmod(daemon.directory, 0o755)
    hoarder = subprocess.Popen(
        [*AS_NOBODY, "/usr/bin/python3", "-c", _HOARD, daemon.control, "64"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert hoarder.stdout is not None
        refused = json.loads(hoarder.stdout.readline())
        assert refused == [""] * 16 + ["io.holdfast.Control.TooManyConnections"] * 48
        assert daemon.count("refused client") <= 2 * LINES_PER_PERIOD
        held = [daemon.admin() for _ in range(40)]
        assert {admin.status().pid for admin in held} == {daemon.pid}
        for admin in held:
            admin.close()
    finally:
        hoarder.communicate()


def test_client_library_says_why_the_daemon_did_not_serve_it(make_daemon: Factory, place: Path) -> None:
    """A stand-in for the daemon that refuses at once, as holdfastd does for a user with too many connections."""
    path = str(place / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        from holdfast.control.client import ControlClient
        from holdfast.frontends.varlink_connection import refuse_client

        client = ControlClient(path)
        accepted, _ = listening.accept()
        refuse_client(accepted, "io.holdfast.Control.TooManyConnections", {"message": "close some"})
        with client, pytest.raises(CallRefused, match="close some"):
            client.status()


def test_idle_client_is_disconnected_and_one_that_follows_events_is_not(make_daemon: Factory) -> None:
    daemon = make_daemon("[control]\nidle_timeout_s = 1\n").start()
    with connected(daemon) as follower:
        follower.sendall(call("WatchEvents", parameters={"after": 0, "follow": True}, more=True))
        assert b"daemon-started" in follower.recv(1 << 16)
        with connected(daemon) as idle, connected(daemon) as partial:
            partial.sendall(b'{"method":')
            assert idle.recv(1) == b""
            assert partial.recv(1) == b""
        follower.setblocking(False)
        with pytest.raises(BlockingIOError):
            follower.recv(1)  # open, and there is no news


def test_follower_that_has_gone_gives_its_place_back(make_daemon: Factory) -> None:
    daemon = make_daemon("[control]\nmax_clients = 1\n").start()
    with connected(daemon) as follower:
        follower.sendall(call("WatchEvents", parameters={"after": 0, "follow": True}, more=True))
        assert b"daemon-started" in follower.recv(1 << 16)
    with daemon.admin() as admin:
        assert admin.status().pid == daemon.pid
    assert "Traceback" not in daemon.log_text()


# --- the log ---

FORGED = "evil\n2026-11-26 00:00:00,000 CRITICAL lockspace X is LOST: forged\x1b[31m"
RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")


def test_names_of_clients_forge_no_line_of_the_log(daemon: Holdfastd, place: Path) -> None:
    disk = place / "disk\n2026-11-26 00:00:00,000 CRITICAL forged by path\x1b[31m.img"
    disk.write_bytes(b"\0")
    daemon.vm([disk], name=FORGED)
    with daemon.admin() as admin, pytest.raises(CallRefused):
        admin.acquire(pid=bystander(), name=FORGED, disks=[DiskWish(str(disk))])
    daemon.says("refused")
    for line in daemon.log_text().split("\n")[:-1]:
        assert RECORD.match(line), line
        assert line.isprintable()
    (line,) = [line for line in daemon.log_text().splitlines() if "WARNING refused" in line]
    assert line.endswith(" EVENT=refused]")
    for arguments in (("list",), ("list", "--owners"), ("who", str(disk)), ("who", FORGED), ("events",)):
        shown = daemon.cli(*arguments).stdout
        assert "forged" in shown
        assert not re.search(r"^2026-11-26", shown, re.MULTILINE)
        assert "\x1b" not in shown


def test_journal_is_sent_the_priority_of_each_line(make_daemon: Factory) -> None:
    daemon = make_daemon()
    daemon.log.touch()
    found = daemon.log.stat()
    daemon.start(environ={"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    daemon.reexec()
    with connected(daemon) as s:
        s.sendall(b"nonsense\0")
        replies(s)
    daemon.says("<4>WARNING control: client pid")
    daemon.says("<6>INFO holdfastd")
    assert all(re.match(r"<[2-7]>[A-Z]+ ", line) for line in daemon.log_text().splitlines())

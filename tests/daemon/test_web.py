"""The real holdfast-web beside a real holdfastd: pages, stream, metrics; and the socket where nothing can be changed."""

from __future__ import annotations

import http.client
import inspect
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import BIN, Factory, Holdfastd, make_disk
from tests.support.polling import wait_until
from tests.support.users import ADM, NotServed, ask_as_nobody
from tests.support.web import HoldfastWeb

from holdfast.control.api import ERROR_METHOD_NOT_FOUND
from holdfast.control.client import CallRefused, ControlClient
from holdfast.frontends.varlink import ControlInterface
from holdfast.frontends.varlink_read import ReadInterface

READS = {"GetStatus", "ListOwners", "ListLocks", "ListLeaseSpaces", "GetMeasures", "WatchEvents"}
READ_GROUP = 'read_group = "adm"\n'


@pytest.fixture(scope="module")
def daemon() -> Iterator[Holdfastd]:
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    found = Holdfastd(place / "d", f"[control]\n{READ_GROUP}")
    found.start()
    yield found
    found.stop_all()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def web(daemon: Holdfastd) -> Iterator[HoldfastWeb]:
    found = HoldfastWeb(daemon, daemon.directory / "web.log")
    yield found
    found.stop()


class Stream:
    """Server-sent events of /events."""

    def __init__(self, web: HoldfastWeb) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=30)
        self.connection.request("GET", "/events")
        self.answer = self.connection.getresponse()
        assert self.answer.getheader("content-type") == "text/event-stream"

    def next(self) -> tuple[str, Any]:
        lines = []
        while line := self.answer.readline().decode().rstrip("\n"):
            lines.append(line)
        fields = dict(line.split(": ", 1) for line in lines)
        return fields.get("event", ""), json.loads(fields.get("data", "null"))

    def close(self) -> None:
        self.answer.close()
        self.connection.close()

    def until(self, name: str) -> Any:
        while True:
            kind, data = self.next()
            if kind == name:
                return data


# --- the read-only socket ---


def read_socket(daemon: Holdfastd) -> str:
    return str(daemon.run_dir / "io.holdfast.Control.read-only")


def test_read_only_socket_offers_reports_alone() -> None:
    """What is added to it has to be added here too: that no method there changes anything is known by reading it."""
    offered = {name for name, _ in inspect.getmembers(ReadInterface, inspect.isfunction) if name[0].isupper()}
    assert offered == READS
    assert issubclass(ControlInterface, ReadInterface)


def test_no_changing_method_is_there_for_root_either(daemon: Holdfastd) -> None:
    changing = {
        name
        for name, _ in inspect.getmembers(ControlInterface, inspect.isfunction)
        if name[0].isupper() and name not in READS
    }
    assert changing >= {"Acquire", "Release", "Reload", "BreakLease", "FenceHost", "SettleLock", "GetHolders"}
    with ControlClient(read_socket(daemon)) as client:
        assert client.status().host
        for method in sorted(changing):
            with pytest.raises(CallRefused) as refused:
                client._call(method, {})
            assert refused.value.kind == ERROR_METHOD_NOT_FOUND, method


def test_only_members_of_its_group_may_connect_and_not_to_the_control_socket(daemon: Holdfastd) -> None:
    path = read_socket(daemon)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    (reply,) = ask_as_nobody(daemon, ("GetStatus", {}), groups=[ADM], path=path)
    assert reply["parameters"]["status"]["pid"] == daemon.pid
    with pytest.raises(NotServed, match="Permission denied"):
        ask_as_nobody(daemon, ("GetStatus", {}), path=path)
    with pytest.raises(NotServed, match="Permission denied"):
        ask_as_nobody(daemon, ("GetStatus", {}), groups=[ADM])


def test_it_outlives_a_reload_and_a_place_that_cannot_be_had_stops_no_daemon(make_daemon: Factory) -> None:
    daemon = make_daemon()
    daemon.start().reexec()
    with ControlClient(read_socket(daemon)) as client:
        assert client.measures().events["daemon-restarted"] == 1
    daemon.kill()
    os.unlink(read_socket(daemon))
    os.mkdir(read_socket(daemon))
    daemon.start()
    daemon.says("no read-only socket")
    assert daemon.cli_json("status")["pid"] == daemon.pid


# --- pages ---


def test_page_and_its_files_are_served_with_a_policy_that_runs_our_script_alone(web: HoldfastWeb) -> None:
    for path in ("/", "/page.js", "/page.css"):
        answer = web.get(path)
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert web.get(path, method="HEAD").body == ""
    assert web.get("/").headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "path",
    [
        "/../main.py",
        "/..%2fmain.py",
        "/static/../../main.py",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/index.html",
        "/page.js/",
        "/%00",
    ],
)
def test_no_other_path_is_served(web: HoldfastWeb, path: str) -> None:
    assert web.get(path).status == 404


def test_other_names_and_methods_are_refused(web: HoldfastWeb) -> None:
    for path in ("/", "/events", "/metrics", "/nothing"):
        answer = web.get(path, {"Host": "evil.example"})
        assert (answer.status, "evil" in answer.body) == (403, False)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert web.get("/", method=method).status == 405


def test_metrics_are_those_of_the_command(daemon: Holdfastd, web: HoldfastWeb) -> None:
    answer = web.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    theirs = daemon.cli("metrics").stdout

    def names(text: str) -> set[str]:
        return {re.split(" [^ ]+$", line)[0] for line in text.splitlines() if "disk_protection" not in line}

    assert names(answer.body) == names(theirs)
    assert "holdfast_up 1" in answer.body.splitlines()


def test_with_a_token_every_path_needs_it(daemon: Holdfastd, place: Path) -> None:
    file = place / "token"
    file.write_text("0123456789abcdef0123456789\n")
    file.chmod(0o600)
    web = HoldfastWeb(daemon, place / "log", ["--token-file", str(file)])
    try:
        for path in ("/", "/events", "/metrics", "/page.js", "/nothing"):
            answer = web.get(path, {"Authorization": "Bearer wrong"})
            assert (answer.status, answer.headers["www-authenticate"][:5]) == (401, "Basic")
        given = {"Authorization": "Bearer 0123456789abcdef0123456789", "Host": "web.example"}
        assert web.get("/metrics", given).status == 200
        with open(f"/proc/{web.process.pid}/cmdline") as f:
            assert "0123456789" not in f.read()
    finally:
        web.stop()


def test_without_a_token_it_does_not_listen_for_other_hosts() -> None:
    done = subprocess.run(
        [str(BIN / "holdfast-web"), "--listen", "0.0.0.0:0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, "needs --token-file" in done.stderr) == (2, True)


# --- the stream ---


def test_stream_shows_what_happens_over_a_restart_of_the_daemon_and_ends_with_the_server(
    make_daemon: Factory, place: Path
) -> None:
    daemon = make_daemon().start()
    web = HoldfastWeb(daemon, place / "log")
    stream = Stream(web)
    assert stream.until("state")["status"]["pid"] == daemon.pid
    assert stream.until("locks") == {"all": True, "rows": {}, "gone": []}
    name = "<script>alert(1)</script>"
    vm = daemon.vm([make_disk(place, "a.img")], name=name)
    ((key, row),) = stream.until("locks")["rows"].items()
    assert (row["owner"], row["held"], row["protection"]) == (name, True, 1)
    assert [each["kind"] for each in stream.until("events")][-1] == "acquired"
    daemon.end_vm(vm)
    assert stream.until("locks")["gone"] == [key]
    daemon.kill()
    assert stream.until("daemon")["up"] is False
    assert web.get("/metrics").body.splitlines()[-1] == "holdfast_up 0"
    daemon.start()
    assert stream.until("state")["status"]["pid"] == daemon.pid
    began = time.monotonic()
    web.stop()
    assert time.monotonic() - began < 20, "an open page does not keep it"
    stream.close()


def test_idle_connections_of_one_client_do_not_keep_others_out_for_good(web: HoldfastWeb) -> None:
    idle = [socket.create_connection(("127.0.0.1", web.port)) for _ in range(100)]
    try:
        assert web.get("/").status in (200, 503)
    finally:
        for each in idle:
            each.close()
    wait_until(lambda: web.get("/").status == 200, "places to be free again")

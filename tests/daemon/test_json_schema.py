"""Every command's --json on a host with a daemon, a lockspace and a VM, against the schema that ships."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon.conftest import FIRE_TIMEOUT_S, IO_TIMEOUT_S
from tests.daemon.test_leases import joined
from tests.support.daemon import Holdfastd, make_disk
from tests.support.json_schema import why_not
from tests.support.leases import SPACE, make_lockspace

from holdfast.cli.json_schema import COMMANDS

RUNS: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "list": ("list",),
    "list --owners": ("list", "--owners"),
    "vm list": ("vm", "list"),
    "who": ("who", "{disk}"),
    "why": ("why", "web1"),
    "check-config": ("check-config",),
    "config show": ("config", "show"),
    "doctor": ("doctor",),
    "doctor --explain": ("doctor", "--explain", "all"),
    "explain-reset": ("explain-reset",),
    "explain-reset HOST": ("explain-reset", "{node}"),
    "host list": ("host", "list"),
    "import-lvmlock": ("import-lvmlock",),
    "import-sanlock": ("import-sanlock",),
    "lease dump": ("lease", "dump", "{space}"),
    "lease gc": ("lease", "gc", "--dry-run"),
    "lease init": ("lease", "init", "{place}/new", "--lockspace", "x", "--resource", "y"),
    "lockspace init": ("lockspace", "init", "{place}/space", "--name", "x", "--hosts-max", "8"),
    "lockspace list": ("lockspace", "list"),
    "lockspace join": ("lockspace", "join", SPACE),
    "lockspace set": ("lockspace", "set", SPACE, "--io-timeout", str(IO_TIMEOUT_S)),
    "log-level": ("log-level", "debug"),
    "maintenance on": ("maintenance", "on", "--reason", "x"),
    "maintenance status": ("maintenance", "status"),
    "maintenance off": ("maintenance", "off"),
    "setup": ("setup", "--dry-run"),
    "sim": ("sim", "--seeds", "1"),
    "version": ("version",),
    "reload": ("reload",),
}
MORE = {"break", "settle", "host fenced", "events", "lockspace leave", "setup --undo", "failed"}
"""By another test, here or in tests/unit/test_json_schema.py; `setup --undo` prints plain lists of texts."""
ELSEWHERE = {
    *("volume list", "volume who", "volume activate", "volume deactivate", "attach"),
    *("switch", "switch --dry-run"),
}
"""Beside what they need: volumes in tests/daemon/test_shared_volumes.py, the switch of a real virtlockd in
tests/interop/virtlockd/test_live_switch.py.
"""


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[Holdfastd, dict[str, str]]]:
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    (place / "leases").mkdir()
    make_lockspace(place / "leases" / SPACE)
    daemon = Holdfastd(
        place / "d",
        f'[backend.leases]\ndriver = "paxos"\ndirectory = "{place}/leases"\nhost_id = 1\nwatchdog = "none"\n'
        f"io_timeout_s = {IO_TIMEOUT_S}\nfire_timeout_s = {FIRE_TIMEOUT_S}\ncross_host = true\n"
        '[[disk]]\nmatch = "*/leased/*"\nbackend = "leases"\n',
    )
    joined(daemon.start())
    (place / "leased").mkdir()
    disk = make_disk(place / "leased", "web.img")
    daemon.vm([disk], name="web1")
    yield (
        daemon,
        {
            "disk": str(disk),
            "space": str(place / "leases" / SPACE),
            "place": str(place),
            "node": socket.gethostname(),
        },
    )
    daemon.stop_all()
    shutil.rmtree(place, ignore_errors=True)


def test_no_command_is_left_out() -> None:
    assert RUNS.keys() | MORE | ELSEWHERE == COMMANDS.keys()
    assert not RUNS.keys() & (MORE | ELSEWHERE)


@pytest.mark.long  # a process for each
@pytest.mark.parametrize("command", RUNS)
def test_output_is_as_the_schema_says(host: tuple[Holdfastd, dict[str, str]], command: str) -> None:
    daemon, names = host
    done = daemon.cli(*(word.format(**names) for word in RUNS[command]), "--json")
    assert why_not(command, json.loads(done.stdout)) == "", (done.stdout, done.stderr)


def test_errors_events_and_a_leave_are_as_the_schema_says(host: tuple[Holdfastd, dict[str, str]]) -> None:
    daemon, _ = host
    for words in (
        ("settle", "/nowhere", "--operator", "me"),
        ("lockspace", "join", "nosuch"),
        ("lease", "dump", "/nowhere"),
        ("host", "fenced", "nosuch"),
        ("status", "--nosuch"),
    ):
        done = daemon.cli(*words, "--json")
        assert done.returncode != 0
        assert why_not("failed", json.loads(done.stdout)) == "", words
    lines = daemon.cli("events", "--json").stdout.splitlines()
    assert len(lines) > 2
    assert [
        why_not("events", json.loads(line)) for line in lines if why_not("events", json.loads(line))
    ] == []
    daemon.end_vm(daemon.pids[0])
    left = daemon.cli("lockspace", "leave", SPACE, "--json")
    assert left.returncode == 0, left.stdout
    assert why_not("lockspace leave", json.loads(left.stdout)) == ""

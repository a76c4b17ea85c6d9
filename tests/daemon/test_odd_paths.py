"""What else may have the path of a file: a start then serves, or ends with one line that says why. It never hangs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.daemon.conftest import MakeHost
from tests.support.daemon import Factory, Holdfastd, make_disk, refusal
from tests.support.leases import SPACE
from tests.support.mounts import mounted
from tests.support.polling import wait_until

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
STATE = f"state/lockspace-{SPACE}.json"


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "a directory": os.mkdir,
    "a FIFO": os.mkfifo,
    "a socket": a_socket,
    "a symbolic link": lambda path: os.symlink("/nowhere/at/all", path),
}
ENDS = {"run/holdfastd.pid": 1, "state/holdfastd.lock": 1}
SERVES = ("run/journal", STATE)


def prepared(host: Holdfastd) -> Holdfastd:
    host.run_dir.mkdir()
    (host.directory / "state").mkdir()
    return host


def journal(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in (["start", 1, BOOT, "vm"], *lines))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ENDS)
def test_start_ends_with_one_line_when_something_else_has_the_path_of_a_lock(
    make_host: MakeHost, path: str, kind: str
) -> None:
    host = prepared(make_host("a", 1))
    KINDS[kind](host.directory / path)
    assert host.spawn().wait(60) == ENDS[path]
    (line,) = host.log_text().splitlines()
    assert f"{host.directory / path} is {kind}, not a file; move it out of the way" in line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", SERVES)
def test_start_serves_and_says_why_when_something_else_has_the_path_of_what_it_remembers(
    make_host: MakeHost, path: str, kind: str
) -> None:
    host = prepared(make_host("a", 1))
    KINDS[kind](host.directory / path)
    host.start()
    host.says(f"{host.directory / path} is {kind}, not a file; move it out of the way")
    assert "Traceback" not in host.log_text()
    assert host.cli("status").stdout


def test_locks_are_refused_until_the_path_of_the_journal_is_free_again(
    make_daemon: Factory, place: Path
) -> None:
    """Nothing is put in place of a link or FIFO: the journal that it stands for may name locks that are held."""
    host = prepared(make_daemon())
    path = host.run_dir / "journal"
    path.symlink_to("/nowhere/at/all")
    host.start()
    assert f"{path} is a symbolic link" in host.cli_json("status")["journal"]
    assert host.cli("status").returncode == 6
    disk = make_disk(place)
    assert "is a symbolic link" in refusal(host, disk)
    assert path.is_symlink()
    path.unlink()
    wait_until(lambda: refusal(host, disk) == "", "locks to be granted again")
    assert path.is_file()
    assert not path.is_symlink()
    wait_until(lambda: host.cli_json("status")["journal"] == "ok", "the journal to be written")


def test_full_run_directory_does_not_keep_the_daemon_from_starting(make_host: MakeHost) -> None:
    host = prepared(make_host("a", 1))
    with mounted(host.run_dir, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        with contextlib.suppress(OSError):
            (host.run_dir / "filling").write_bytes(b"x" * 70000)
        host.start()
        host.says("the pid can't be written there")
        host.says("joined as host_id")
        host.kill()


def test_control_socket_in_place_of_which_a_directory_is_ends_the_start_with_its_path(
    make_host: MakeHost,
) -> None:
    host = prepared(make_host("a", 1))
    Path(host.control).mkdir()
    assert host.spawn().wait(60) == 71
    host.says(f"{host.control}: can't listen there: Is a directory")
    assert "Traceback" not in host.log_text()


def test_lockspace_in_place_of_which_a_fifo_is_is_not_joined_and_the_rest_is_served(
    make_host: MakeHost, leases: Path, place: Path
) -> None:
    (leases / SPACE).unlink()
    os.mkfifo(leases / SPACE)
    host = make_host("a", 1).start()
    host.says(f"{leases / SPACE} can't be opened: Block device required")
    (place / "local").mkdir()
    assert refusal(host, make_disk(place / "local")) == ""


ODD_JOURNALS = {
    "noise": os.urandom(1 << 20),
    "deep nesting": b"[" * 100_000 + b"\n",
    "a number without end": b'["owner",1,' + b"1" * (1 << 20),
    "ids beyond 64 bits": journal(["owner", 10**30, 1, 1, "n", "u", 1], ["claim", 1 << 64, 1, "", "/d", 2]),
    "a negative pid": journal(["owner", 1, -5, 1, "n", "u", 1]),
    "a pid beyond 32 bits": journal(["owner", 1, 1 << 40, 1, "n", "u", 1]),
    "a mode that is none": journal(["lock", 1, "leases", "/x", False, 7, [], 1.0]),
    "a lock without keys": journal(
        ["owner", 1, os.getpid(), 0, "n", "u", 1],
        ["lock", 1, "leases", "/x", False, 2, [], 1.0],
        ["claim", 1, 1, "", "/d", 2],
    ),
    "a name with NUL": journal(
        ["owner", 1, os.getpid(), 0, "n", "u", 1],
        ["lock", 1, "file", "/tmp/%00x", False, 2, [[1, 2]], 1.0],
        ["claim", 1, 1, "", "/tmp/%00x", 2],
    ),
    "an empty path": journal(
        ["owner", 1, os.getpid(), 0, "n", "u", 1],
        ["lock", 1, "file", "", True, 2, [[1, 2]], 1.0],
        ["claim", 1, 1, "", "", 2],
    ),
}


@pytest.mark.parametrize("content", ODD_JOURNALS)
def test_start_serves_whatever_the_journal_says(make_host: MakeHost, content: str) -> None:
    host = prepared(make_host("a", 1))
    (host.run_dir / "journal").write_bytes(ODD_JOURNALS[content])
    host.start()
    assert "Traceback" not in host.log_text()
    assert host.cli("status").stdout


TERM = {
    "lockspace": SPACE,
    "host_id": 1,
    "generation": 1,
    "host_name": "vm.0123456789ab",
    "boot": BOOT,
    "machine": "x" * 32,
    "io_timeout_s": 1,
    "fire_timeout_s": 6,
}


@pytest.mark.parametrize(
    "odd",
    [
        {"host_id": 0},
        {"host_id": -3},
        {"host_id": 10**30},
        {"generation": -1},
        {"generation": 1 << 70},
        {"host_name": "x" * 300},
        {"host_name": ""},
        {"io_timeout_s": 0},
        {"io_timeout_s": -5, "boot": "another"},
    ],
    ids=json.dumps,
)
def test_start_serves_whatever_the_state_file_says(make_host: MakeHost, odd: dict[str, object]) -> None:
    host = prepared(make_host("a", 1))
    (host.directory / STATE).write_text(json.dumps({**TERM, **odd}))
    host.start()
    assert host.cli("status").stdout

"""The control socket and the holdfast command, against the real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import BIN, Factory, Holdfastd, bystander, exists, locked, make_disk, refusal
from tests.support.polling import wait_until
from tests.support.users import ADM, NOBODY, OWN_PID, Call, NotServed, ask_as_nobody
from tests.support.varlink_client import locks_by_asyncvarlink

from holdfast.control.api import DiskWish
from holdfast.control.client import CallRefused
from holdfast.testing.virtlockd_client import AUTOCREATE, SHARED


def raw_call(path: str, method: str, **parameters: object) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(path)
        s.sendall(json.dumps({"method": method, "parameters": parameters}).encode() + b"\0")
        raw = b""
        while not raw.endswith(b"\0"):
            part = s.recv(65536)
            assert part, "the daemon closed the connection"
            raw += part
        reply: dict[str, Any] = json.loads(raw[:-1])
        return reply


# --- Varlink ---


def test_service_tells_its_interfaces_to_any_varlink_client(shared_daemon: Holdfastd) -> None:
    answer = raw_call(shared_daemon.control, "org.varlink.service.GetInfo")["parameters"]
    assert answer["product"] == "holdfastd"
    assert set(answer["interfaces"]) == {"org.varlink.service", "io.holdfast.Control"}
    text = raw_call(
        shared_daemon.control, "org.varlink.service.GetInterfaceDescription", interface="io.holdfast.Control"
    )["parameters"]["description"]
    for word in ("method GetStatus", "method ListLocks", "method WatchEvents", "method Acquire"):
        assert word in text


def test_asyncvarlink_client_can_call_what_introspection_shows(shared_daemon: Holdfastd) -> None:
    assert asyncio.run(locks_by_asyncvarlink(shared_daemon.control)) == {"locks": []}


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("io.holdfast.Control.Nonsense", "org.varlink.service.MethodNotFound"),
        ("io.holdfast.Nonsense.GetStatus", "org.varlink.service.InterfaceNotFound"),
    ],
)
def test_unknown_methods_are_varlink_errors(shared_daemon: Holdfastd, method: str, error: str) -> None:
    assert raw_call(shared_daemon.control, method)["error"] == error


@pytest.mark.parametrize(
    "raw", [b"\0", b"nonsense\0", b"[]\0", b"{}\0", b"\xff\xfe\0", b"{" * 100_000 + b"\0"]
)
def test_nonsense_on_the_control_socket_hurts_nobody(shared_daemon: Holdfastd, raw: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(shared_daemon.control)
        s.sendall(raw)
        with shared_daemon.admin() as admin:
            assert admin.status().pid == shared_daemon.pid


def test_all_disks_of_one_acquire_or_none(shared_daemon: Holdfastd, place: Path) -> None:
    one, two, three = (make_disk(place, f"{n}.img") for n in range(3))
    with shared_daemon.admin() as admin:
        admin.acquire(pid=bystander(1), name="first", disks=[DiskWish(str(two))])
        wishes = [DiskWish(str(d)) for d in (one, two, three)]
        with pytest.raises(CallRefused, match="first") as refused:
            admin.acquire(pid=bystander(2), name="second", disks=wishes)
        assert refused.value.kind == "ResourceBusy"
        assert not locked(one)
        assert not locked(three)
        admin.release(pid=bystander(1), paths=[str(two)])
        admin.acquire(pid=bystander(2), name="second", disks=wishes)
        admin.release(pid=bystander(2), paths=[str(d) for d in (one, two, three)])


def test_group_members_may_connect_and_others_may_not(make_daemon: Factory, place: Path) -> None:
    daemon = make_daemon(extra='[control]\ngroup = "adm"').start()
    disk = make_disk(place)
    os.chown(disk, NOBODY, -1)
    assert os.stat(daemon.control).st_mode & 0o777 == 0o660
    status: Call = ("GetStatus", {})
    with pytest.raises(NotServed):
        ask_as_nobody(daemon, status)
    (reply,) = ask_as_nobody(daemon, status, groups=[ADM])
    assert reply["parameters"]["status"]["pid"] == daemon.pid
    os.chmod(daemon.control, 0o777)  # even then the daemon asks who it is
    with pytest.raises(NotServed):
        ask_as_nobody(daemon, status)
    disks = [{"path": str(disk), "shared": False}]
    own, foreign = ask_as_nobody(
        daemon,
        ("Acquire", {"name": "mine", "disks": disks, "pid": OWN_PID}),
        ("Acquire", {"name": "mine", "disks": disks, "pid": os.getpid()}),
        groups=[ADM],
    )
    assert "error" not in own
    assert foreign["error"] == "io.holdfast.Control.NotPermitted"


# --- the command ---


def test_every_answer_with_json_parses_and_says_the_same(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    assert daemon.cli_json("status")["locks"] == 1
    (lock,) = daemon.cli_json("list")
    assert (lock["resource"], lock["owner"], lock["pid"], lock["mode"]) == (
        str(disk),
        "web1",
        vm,
        "exclusive",
    )
    assert lock["protection"] == 1
    (owner,) = daemon.cli_json("list", "--owners")
    assert (owner["name"], owner["pid"], owner["locks"]) == ("web1", vm, 1)
    assert daemon.cli_json("who", str(disk))["verdict"] == "held"
    assert daemon.cli_json("who", "web1")["disks"][0]["subject"] == str(disk)
    assert daemon.cli_json("check-config")["ok"]
    assert {f["severity"] for f in daemon.cli_json("doctor")} <= {"ok", "note", "problem"}
    lines = daemon.cli("events", "--json").stdout.splitlines()
    assert [json.loads(line)["kind"] for line in lines][-1] == "acquired"


def test_exit_codes_tell_the_answer(daemon: Holdfastd, place: Path) -> None:
    disk, free = make_disk(place), make_disk(place, "free.img")
    daemon.vm([disk], name="web1")
    for code, arguments in (
        (0, ("status",)),
        (0, ("list",)),
        (0, ("who", str(disk))),
        (3, ("who", str(free))),
        (0, ("events",)),
        (0, ("top",)),
        (0, ("host", "list")),
        (0, ("check-config",)),
        (0, ("--help",)),
        (2, ("nonsense",)),
        (2, ("run",)),
        (2, ("run", "--disk", "/none", "--", "true")),
        (75, ("run", "--disk", str(disk), "--", "true")),
        (127, ("run", "--", "no-such-command")),
        (126, ("run", "--", "/etc/passwd")),
        (7, ("run", "--disk", str(free), "--", "sh", "-c", "exit 7")),
        (128 + signal.SIGKILL, ("run", "--", "sh", "-c", "kill -9 $$")),
    ):
        ended = daemon.cli(*arguments)
        assert ended.returncode == code, f"{arguments}: {ended.stdout}{ended.stderr}"
    daemon.kill()
    for arguments in (
        ("status",),
        ("list",),
        ("events",),
        ("top",),
        ("why", "web1"),
        ("host", "list"),
        ("run", "--", "true"),
    ):
        assert daemon.cli(*arguments).returncode == 69
    daemon.config.write_text("nonsense = 1\n")
    ended = daemon.cli("check-config")
    assert ended.returncode == 78
    assert "nonsense: is not known" in ended.stderr


def test_refused_run_names_the_holder_and_does_not_start_the_command(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    daemon.vm([disk], name="web1")
    ended = daemon.cli("run", "--disk", str(disk), "--", "touch", str(place / "ran"))
    assert "was not started: Lockspace resource" in ended.stderr
    assert "web1" in ended.stderr
    assert not (place / "ran").exists()


def run_in_background(daemon: Holdfastd, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(BIN / "holdfast"), "--config", str(daemon.config), "run", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        return int(f.read().rsplit(")", 1)[1].split()[1])


def test_run_holds_the_disk_after_it_was_killed_itself_and_as_long_as_the_command_lives(
    daemon: Holdfastd, place: Path
) -> None:
    disk = make_disk(place)
    script = "echo $$; exec sleep 1000"
    run = run_in_background(daemon, "--disk", str(disk), "--name", "backup", "--", "sh", "-c", script)
    assert run.stdout is not None
    command = int(run.stdout.readline())
    supervisor = parent_of(command)
    try:
        assert daemon.holders(disk) == [("backup", supervisor, True)]
        run.kill()
        run.wait()
        assert exists(command)
        assert daemon.holders(disk) == [("backup", supervisor, True)]
        daemon.kill()
        daemon.start()
        assert daemon.holders(disk) == [("backup", supervisor, True)]
    finally:
        os.kill(command, signal.SIGKILL)
        run.stdout.close()
    wait_until(lambda: not locked(disk), "the lock to go with the command")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_run_passes_signals_on_and_the_exit_code_back(daemon: Holdfastd, number: signal.Signals) -> None:
    program = (
        "import signal,sys,os\n"
        f"signal.signal({int(number)}, lambda *_: os._exit(33))\n"
        "print('set', flush=True)\nsignal.pause()\n"
    )
    run = run_in_background(daemon, "--", sys.executable, "-c", program)
    assert run.stdout is not None
    with run.stdout:
        assert run.stdout.readline() == "set\n"
        run.send_signal(number)
        assert run.wait(60) == 33


def test_who_answers_from_journal_kernel_and_owner_record_when_the_daemon_is_down(
    make_daemon: Factory, place: Path
) -> None:
    locks = place / "locks"
    locks.mkdir()
    backend = f'[backend.shared]\ndriver = "file"\ndirectory = "{locks}"\n'
    daemon = make_daemon(extra=backend, top='default_backend = "shared"').start()
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    daemon.kill()
    answer = daemon.cli_json("who", str(disk))
    journal = [line for layer in answer["layers"] if layer["name"] == "journal" for line in layer["lines"]]
    assert f"exclusive lock of web1 (pid {vm}, still running); holdfastd will retake it" in journal[0]
    assert "start holdfastd" in answer["next_step"]
    records = [line for layer in answer["layers"] if layer["name"] == "lock file" for line in layer["lines"]]
    assert "web1" in records[0]
    other = make_daemon(name="other", extra=backend, top='default_backend = "shared"').start()
    thief = other.vm([disk], name="thief")
    answer = daemon.cli_json("who", str(disk))
    assert answer["verdict"] == "held"
    kernel = [line for layer in answer["layers"] if layer["name"] == "kernel" for line in layer["lines"]]
    assert f"holdfastd (pid {other.pid})" in kernel[0]
    assert exists(thief)


def test_followed_events_go_on_over_a_reexec_and_over_a_restart(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    out = place / "events"
    with open(out, "wb") as file:
        follower = subprocess.Popen(
            [str(BIN / "holdfast"), "--config", str(daemon.config), "events", "-f", "--json"],
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    try:

        def seen() -> list[tuple[str, str]]:
            events = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
            return [(e["kind"], e["owner"]) for e in events]

        daemon.vm([disk], name="before", flags=SHARED)
        wait_until(lambda: ("acquired", "before") in seen(), "the first event")
        daemon.reexec()
        daemon.vm([disk], name="after", flags=SHARED)
        wait_until(lambda: ("acquired", "after") in seen(), "an event after the re-exec")
        assert [k for k, _ in seen()].count("daemon-restarted") == 1
        assert seen().count(("acquired", "before")) == 1, "none is told twice"
        daemon.kill()
        daemon.start()
        daemon.vm([disk], name="at-last", flags=SHARED)
        wait_until(lambda: ("acquired", "at-last") in seen(), "an event after the restart")
    finally:
        follower.kill()
        follower.wait()


def test_lists_on_no_terminal_are_plain_columns(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    daemon.vm([disk], name="web1")
    heading, line = daemon.cli("list").stdout.splitlines()
    assert heading.split("\t")[0] == "DISK"
    assert line.split("\t")[0] == str(disk)
    assert "\x1b" not in line


def test_disk_is_found_by_its_hash_in_a_lockspace(daemon: Holdfastd, place: Path) -> None:
    from holdfast.backends.naming import indirect_name

    disk, space = make_disk(place), place / "space"
    space.mkdir()
    with daemon.client() as client:
        client.create_lockspace(str(space))
    vm = daemon.vm([indirect_name(str(disk))], name="web1", lockspace=str(space), flags=AUTOCREATE)
    assert daemon.holders(disk) == [("web1", vm, True)]
    assert daemon.cli("who", str(disk)).returncode == 0


def test_completion_scripts_are_offered(daemon: Holdfastd) -> None:
    result = daemon.cli(environ={"_HOLDFAST_COMPLETE": "bash_source"})
    assert "complete" in result.stdout


def test_why_names_the_holder_of_the_last_refusal_and_events_are_chosen(
    shared_daemon: Holdfastd, place: Path
) -> None:
    disk = make_disk(place, "why.img")
    vm = shared_daemon.vm([disk], name="web1")
    assert refusal(shared_daemon, disk)
    for subject in ("rival", str(disk)):
        done = shared_daemon.cli("why", subject)
        assert done.returncode == 0, done.stderr
        assert f"rival (pid {bystander(7)}) was refused {disk} (exclusive)" in done.stdout
        assert "Now: held by web1" in done.stdout
        assert "next: " in done.stdout
    nothing = shared_daemon.cli("why", "web1")
    assert nothing.returncode == 3
    assert "refused nothing" in nothing.stdout
    shown = shared_daemon.cli("events", "--since", "1h", "--kind", "refused", "--json").stdout.splitlines()
    assert {json.loads(line)["kind"] for line in shown} == {"refused"}
    wrong = shared_daemon.cli("events", "--kind", "refusal")
    assert wrong.returncode == 2
    assert "lock-lost" in wrong.stderr
    shared_daemon.end_vm(vm)
    assert not refusal(shared_daemon, disk)
    assert "next: none" in shared_daemon.cli("why", "rival").stdout

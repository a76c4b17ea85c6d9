"""`holdfast status` is red when something needs a person, and a broken file blinds no command that only asks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.conftest import MakeHost
from tests.daemon.test_leases import joined
from tests.support.daemon import BIN, Factory, Holdfastd, make_disk
from tests.support.leases import SPACE
from tests.support.users import NOBODY, NOGROUP, NotServed, ask_as_nobody

from holdfast.cli import exits

CHECKOUT = Path(__file__).parents[2]


def edit(daemon: Holdfastd, old: str, new: str) -> None:
    text = daemon.config.read_text()
    assert old in text
    daemon.config.write_text(text.replace(old, new))


def degraded(daemon: Holdfastd) -> list[str]:
    result = daemon.cli("status", "--json")
    reasons: list[str] = json.loads(result.stdout)["degraded"]
    assert result.returncode == (exits.DEGRADED if reasons else exits.OK)
    return reasons


def test_status_is_red_while_a_lockspace_cannot_be_used(make_host: MakeHost) -> None:
    alpha = make_host("alpha", 1).start()
    joined(alpha)
    assert degraded(alpha) == []
    assert f"lockspace    {SPACE} (" in alpha.cli("status").stdout
    assert alpha.cli("lockspace", "leave", SPACE).returncode == 0
    (reason,) = degraded(alpha)
    assert reason.startswith(f"lockspace {SPACE} can't be used, it is left")
    assert f"DEGRADED     {reason}" in alpha.cli("status").stdout


def test_status_and_doctor_are_red_after_an_edit_that_was_not_loaded(daemon: Holdfastd) -> None:
    assert degraded(daemon) == []
    daemon.config.write_text(f"{daemon.config.read_text()}[limits]\nowners_max = 9\n")
    (reason,) = degraded(daemon)
    assert "'holdfast reload' puts it into force (limits.owners_max: 20000 -> 9)" in reason
    (finding,) = [each for each in daemon.cli_json("doctor") if each["id"] == "HF002"]
    assert "limits.owners_max: 20000 -> 9" in finding["facts"]
    assert daemon.cli("reload").returncode == 0
    assert degraded(daemon) == []


@pytest.mark.parametrize("broken", ["[virtlockd\n", "nonsense = 1\n"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "nothing kept"])
def test_broken_configuration_blinds_no_command_that_asks(daemon: Holdfastd, broken: str, kept: bool) -> None:
    daemon.config.write_text(
        daemon.config.read_text() + broken if "[" in broken else broken + daemon.config.read_text()
    )
    if not kept:
        (daemon.run_dir / "config-in-force.toml").unlink()
    assert daemon.cli("list").returncode == exits.OK
    assert daemon.cli("lockspace", "list").returncode == exits.OK
    status = daemon.cli("status")
    assert status.returncode == exits.DEGRADED
    assert f"holdfastd {json.loads(daemon.cli('status', '--json').stdout)['version']}" in status.stdout
    result = daemon.cli("who", "/nowhere/x.img")
    assert result.returncode == (exits.UNKNOWN if kept else exits.BAD_CONFIG), (
        "without its backends nobody knows"
    )


def asked(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "holdfast"), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environ},
    )


def error(result: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """The exit code, which the object has too, and the error."""
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["ok"] is False
    assert answer["exit"] == result.returncode
    return result.returncode, answer["error"]


def test_errors_with_json_are_objects(daemon: Holdfastd, place: Path) -> None:
    free = make_disk(place)
    assert error(daemon.cli("lockspace", "join", "nosuch", "--json"))[0] == exits.REFUSED
    assert error(daemon.cli("settle", str(free), "--operator", "me", "--json"))[0] == exits.REFUSED
    assert error(daemon.cli("who", "--json")) == (exits.USAGE, "Missing argument 'PATH-OR-DOMAIN'.")
    assert error(daemon.cli("who", "", "--json"))[0] == exits.USAGE
    daemon.kill()
    for command in (
        ("status",),
        ("list",),
        ("lockspace", "list"),
        ("lockspace", "join", "x"),
        ("break", str(free)),
    ):
        assert error(daemon.cli(*command, "--json"))[0] == exits.UNREACHABLE
    daemon.config.write_text("nonsense = 1\n")
    code, text = error(daemon.cli("who", str(free), "--json"))
    assert (code, "nonsense: is not known" in text) == (exits.BAD_CONFIG, True)


def test_run_that_is_refused_says_so_as_an_object_beside_the_output_of_the_command(
    daemon: Holdfastd, place: Path
) -> None:
    disk = make_disk(place)
    daemon.vm([disk], name="web1")
    result = daemon.cli("run", "--json", "--disk", str(disk), "--", "echo", "x")
    assert (result.returncode, result.stdout) == (exits.REFUSED, "")
    answer = json.loads(result.stderr)
    assert (answer["ok"], answer["exit"], "web1" in answer["error"]) == (False, exits.REFUSED, True)


def test_lockspace_commands_answer_in_json(make_host: MakeHost) -> None:
    alpha = make_host("alpha", 1).start()
    joined(alpha)
    assert alpha.cli_json("lockspace", "leave", SPACE) == {"ok": True, "lockspace": SPACE}
    assert alpha.cli_json("lockspace", "join", SPACE)["state"] == "joined"


# --- users who are not root ---


def as_nobody(place: Path, *command: str, before: str = "true") -> subprocess.CompletedProcess[str]:
    """In a mount namespace where nothing of this machine's is in /run, and where the user reaches the checkout.

    A checkout below a directory that only root enters, such as root's home, is bound to one that everybody does.
    """
    os.chmod(place, 0o755)
    user = f"setpriv --reuid={NOBODY} --regid={NOGROUP} --clear-groups"
    bound = place / "checkout"
    bound.mkdir(exist_ok=True)
    program = f"{bound / BIN.relative_to(CHECKOUT)}/python -m holdfast.cli.main"
    script = (
        f"mount --bind {CHECKOUT} {bound} && mount -t tmpfs holdfast-test /run && {before} && "
        f"exec env PYTHONPATH={bound}/src {user} {program} {' '.join(command)}"
    )
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(place)},
    )


def test_user_who_may_not_connect_is_told_so(daemon: Holdfastd, place: Path) -> None:
    for directory in (place, daemon.directory, daemon.run_dir):
        os.chmod(directory, 0o755)
    result = as_nobody(place, "--socket", str(daemon.control), "list", "--json")
    assert result.returncode == exits.NOT_PERMITTED
    assert "be root, or a member of control.group" in json.loads(result.stdout)["error"]


def test_user_without_a_daemon_of_its_own_asks_the_systems(place: Path) -> None:
    result = as_nobody(place, "status", before="mkdir -m 755 /run/holdfast")
    assert result.returncode == exits.UNREACHABLE
    assert "holdfastd does not answer at /run/holdfast/io.holdfast.Control" in result.stderr
    assert f"{place}/.cache/holdfast" in as_nobody(place, "status").stderr


def test_who_says_that_a_user_does_not_see_everything(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    os.chmod(disk, 0o644)
    daemon.vm([disk], name="web1")
    result = as_nobody(place, "who", str(disk))
    assert "this user is not root" in result.stdout
    assert "sudo holdfast who" in result.stdout
    assert "run this on the other hosts" not in result.stdout


def test_doctor_of_a_user_is_red_and_begins_with_that(place: Path) -> None:
    result = as_nobody(place, "doctor", "--json")
    assert result.returncode == exits.PROBLEMS
    assert next(each["id"] for each in json.loads(result.stdout) if each["id"]) == "HF004"


# --- what a reload and a restart change ---


def test_group_of_the_control_socket_is_changed_by_a_reload(daemon: Holdfastd) -> None:
    with pytest.raises(NotServed):
        ask_as_nobody(daemon, ("GetStatus", {}))
    daemon.config.write_text(daemon.config.read_text() + '[control]\ngroup = "nogroup"\n')
    assert daemon.cli("reload").returncode == 0
    assert "status" in ask_as_nobody(daemon, ("GetStatus", {}))[0]["parameters"]
    edit(daemon, '[control]\ngroup = "nogroup"\n', "")
    assert daemon.cli("reload").returncode == 0
    with pytest.raises(NotServed):
        ask_as_nobody(daemon, ("GetStatus", {}))


def test_who_asks_for_newer_events_misses_none_over_a_restart(daemon: Holdfastd, place: Path) -> None:
    daemon.vm([make_disk(place)], name="before")
    with daemon.admin() as admin:
        last = list(admin.events(after=0, follow=False))[-1].number
    daemon.kill()
    daemon.start()
    for number in range(3):  # more events than the earlier daemon had
        daemon.vm([make_disk(place, f"{number}.img")], name=f"after{number}")
    with daemon.admin() as admin:
        newer = [each.kind for each in admin.events(after=last, follow=False)]
        everything = [each.kind for each in admin.events(after=0, follow=False)]
        assert newer == everything != []
        assert [e.kind for e in admin.events(after=1 << 60, follow=False)] == everything, (
            "of a clock set back"
        )


def test_stop_while_somebody_follows_events_logs_no_traceback(daemon: Holdfastd) -> None:
    follower = subprocess.Popen(
        [str(BIN / "holdfast"), "--config", str(daemon.config), "events", "-f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        assert "daemon-started" in follower.stdout.readline()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.process is not None
        assert daemon.process.wait(60) == 0
    finally:
        follower.kill()
    assert "Traceback" not in daemon.log_text()
    assert "may this user connect" not in follower.communicate()[1]


# --- check-config ---


def test_check_config_names_what_this_host_lacks(make_daemon: Factory, place: Path) -> None:
    (place / "leases").mkdir()
    table = (
        f'[backend.san]\ndriver = "paxos"\ndirectory = "{place}/leases"\nhost_id = 1\nwatchdog = "device"\n'
        f'watchdog_device = "{place}/watchdog"\n[backend.shared]\ndriver = "file"\ndirectory = "{place}/locks"\n'
    )
    daemon = make_daemon(table)
    result = daemon.cli("check-config")
    assert result.returncode == exits.PROBLEMS
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == [
        "backend.san.watchdog_device",
        "backend.san.lockspace",
        "backend.shared.directory",
    ]
    assert "configuration can be used" in result.stdout
    (place / "watchdog").touch()
    assert "is no watchdog device" in daemon.cli("check-config").stderr
    assert len(daemon.cli_json("check-config")["missing"]) == 3
    daemon.config.write_text(table + "[nonsense]\n")
    assert daemon.cli("check-config").returncode == exits.BAD_CONFIG


def test_io_timeout_of_the_lockspace_and_the_configured_one_are_tied_together(
    make_daemon: Factory, place: Path
) -> None:
    """A join took 24 s with io_timeout_s = 2, and nothing said that the lockspace was made for 10 (review, M8)."""
    (place / "leases").mkdir()
    space = place / "leases" / "vms"
    table = (
        f'[backend.san]\ndriver = "paxos"\ndirectory = "{place}/leases"\nlockspace = "vms"\nhost_id = 1\n'
        'watchdog = "none"\ncross_host = true\nio_timeout_s = 1\n'
    )
    daemon = make_daemon(table)
    made = daemon.cli_json("lockspace", "init", str(space), "--name", "vms")
    assert made["io_timeout"] == 1, "of the backend that is configured there"
    assert daemon.cli("check-config").stderr == ""
    space.unlink()
    elsewhere = daemon.cli("lockspace", "init", str(place / "other"), "--name", "vms")
    assert "io_timeout 10 s" in elsewhere.stdout
    made_by_hand = daemon.cli("lockspace", "init", str(space), "--name", "vms", "--io-timeout", "2")
    assert "--io-timeout 2 differs from io_timeout_s = 1, by which this host will go" in made_by_hand.stderr
    result = daemon.cli("check-config")
    assert result.returncode == exits.OK
    assert "io_timeout_s = 1 (backend 'san') is what this host goes by" in result.stderr
    assert "2000 host ids that nobody has now say 2 s" in result.stderr
    (note,) = daemon.cli_json("check-config")["notes"]
    assert f"note: {note}\n" == result.stderr
    (finding,) = daemon.cli_json("doctor", "--only", "HF075")
    assert (finding["severity"], finding["facts"]) == ("note", note)
    joined(daemon.start()).says(
        "its record said io_timeout 2 s, so the claim waited by the greater of the two: io_timeout_s = 1 counts from now on"
    )


# --- who ---


@pytest.mark.parametrize("path", ["/dev/null", "/", "fifo"])
def test_who_calls_nothing_free_that_is_no_disk(daemon: Holdfastd, place: Path, path: str) -> None:
    os.mkfifo(place / "fifo")
    result = daemon.cli("who", str(place / path))
    assert result.returncode == exits.UNKNOWN
    assert "no disk of a VM" in result.stdout
    assert "free" not in result.stdout


def test_who_finds_a_lock_by_its_bare_name(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    daemon.vm([disk], name="web1")
    with daemon.admin() as admin:
        (lock,) = admin.locks()
    assert lock.name == str(disk)
    space = place / "space"
    space.mkdir()
    (space / "key1").touch()
    with daemon.client() as client:
        client.create_lockspace(str(space))
    daemon.vm(["key1"], name="web2", lockspace=str(space))
    result = daemon.cli("who", "key1")
    assert result.returncode == exits.OK
    assert "held by web2" in result.stdout


# --- how answers look ---


def on_a_terminal(daemon: Holdfastd, *arguments: str, **environ: str) -> str:
    """What a command writes when its output is a terminal."""
    command = " ".join([str(BIN / "holdfast"), "--config", str(daemon.config), *arguments])
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "TERM": "xterm", **environ},
    )
    return done.stdout


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminal_without_colours_gets_none(daemon: Holdfastd, place: Path, plain: dict[str, str]) -> None:
    daemon.vm([make_disk(place)], name="web1")
    for command in ("status", "list", "doctor"):
        assert "\x1b" not in on_a_terminal(daemon, command, **plain), command
    assert "\x1b" in on_a_terminal(daemon, "list")


def test_dump_of_what_is_no_lease_exits_with_a_code_of_its_own(daemon: Holdfastd, place: Path) -> None:
    (place / "text").write_text("no lease\n" * 1000)
    (place / "empty").touch()
    (place / "random").write_bytes(bytes(range(1, 101)))
    (place / "zeros").write_bytes(bytes(1 << 20))
    (place / "image").write_bytes(b"QFI\xfb" + bytes(4092))
    os.mkfifo(place / "fifo")
    for name, code, kind in (
        ("text", exits.UNKNOWN, "is a text file of 9000 bytes; it holds no lease, lockspace or index"),
        ("empty", exits.UNKNOWN, "is an empty file"),
        ("random", exits.UNKNOWN, "is a file of 100 bytes"),
        ("zeros", exits.UNKNOWN, "is a file of 1048576 bytes that begins with zeros"),
        ("image", exits.UNKNOWN, "is a qcow2 image"),
        ("fifo", exits.FAILED, "it is a FIFO; name a regular file or a block device"),
        (".", exits.FAILED, "it is a directory; name a file in that directory"),
    ):
        result = daemon.cli("lease", "dump", str(place / name))
        assert (result.returncode, result.stdout) == (code, ""), name
        assert kind in result.stderr
        assert daemon.cli_json("lease", "dump", str(place / name))["ok"] is False
    made = daemon.cli("lockspace", "init", str(place / "space"), "--name", "vms", "--hosts-max", "64")
    assert "for 64 hosts (it has room for 2000)" in made.stdout
    assert daemon.cli("lease", "dump", str(place / "space")).returncode == exits.OK

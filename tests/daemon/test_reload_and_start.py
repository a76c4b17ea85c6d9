"""A reload or a start with an edited configuration, while VMs run: nothing that guards them is let go of.

What a held lock needs can't be changed by a reload, which says what needs it; a start goes on with the configuration that
was in force, and is red until that is put right. Another host's tries are refused throughout, and no VM is touched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.conftest import MakeHost
from tests.daemon.test_leases import DEAD_S, joined, record
from tests.support.daemon import BIN, Factory, Holdfastd, exists, make_disk, refusal
from tests.support.leases import SPACE, make_lockspace
from tests.support.polling import wait_until
from tests.support.service_manager import ServiceManager
from tests.support.users import ADM, ask_as_nobody
from tests.support.wdmd_double import FIRE_TIMEOUT_S, Generation, Wdmd

from holdfast.system.watchdog import wdmd

Edit = Callable[[str, Path], str]
REFUSED_EXIT = 75


@pytest.fixture
def alpha(make_host: MakeHost) -> Holdfastd:
    return make_host("alpha", 1)


@pytest.fixture
def beta(make_host: MakeHost) -> Holdfastd:
    return make_host("beta", 2)


def edit(host: Holdfastd, change: Callable[[str], str]) -> str:
    """Changes the configuration on disk; the text before."""
    before = host.config.read_text()
    after = change(before)
    assert after != before
    host.config.write_text(after)
    return before


def accepted_by_check_config(host: Holdfastd) -> bool:
    command = [str(BIN / "holdfastd"), "--config", str(host.config), "--check-config"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def problems(host: Holdfastd) -> list[str]:
    with host.admin() as admin:
        return admin.status().problems


def is_red(host: Holdfastd, text: str) -> None:
    """`status` and `doctor` say it, on a terminal and to machines, and their exit codes do."""
    assert any(text in problem for problem in problems(host)), problems(host)
    status = host.cli("status")
    assert status.returncode == 6
    assert text in status.stdout
    doctor = host.cli("doctor", "--json")
    assert doctor.returncode == 5
    assert any(f["severity"] == "problem" and text in f["facts"] for f in json.loads(doctor.stdout)), (
        doctor.stdout
    )


class Watch:
    """A VM of alpha's and its disk, which beta wants for as long as this is asked."""

    def __init__(self, alpha: Holdfastd, beta: Holdfastd, leases: Path, disk: Path, vm: int) -> None:
        self.alpha, self.beta, self.leases, self.disk, self.vm = alpha, beta, leases, disk, vm
        self.generation = record(leases, 1).generation

    def all_is_well(self) -> None:
        assert exists(self.vm), self.alpha.log_text()[-3000:]
        assert "is locked by VM web1" in refusal(self.beta, self.disk)
        assert self.alpha.holders(self.disk) == [("web1", self.vm, True)]

    def stays_well(self) -> None:
        """It is renewed in the same term: then nobody may take its leases, however long one waits."""
        assert record(self.leases, 1).generation == self.generation
        for _ in range(2):
            before = record(self.leases, 1).timestamp
            wait_until(lambda: record(self.leases, 1).timestamp > before, "the next renewal")  # noqa: B023
            self.all_is_well()

    def stays_well_beyond_the_dead_bound(self) -> None:
        until = time.monotonic() + DEAD_S + 2
        while time.monotonic() < until:
            self.all_is_well()
            time.sleep(0.3)  # a pace, not a wait: each try is a few reads of the lease


@pytest.fixture
def watch(alpha: Holdfastd, beta: Holdfastd, leases: Path, place: Path) -> Watch:
    joined(alpha.start()), joined(beta.start())
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    watch = Watch(alpha, beta, leases, disk, vm)
    watch.all_is_well()
    return watch


def without_the_backend(text: str, _: Path) -> str:
    return text[: text.index("[backend.leases]")]


def with_another_directory(text: str, place: Path) -> str:
    (place / "other").mkdir()
    make_lockspace(place / "other" / SPACE)
    return text.replace(f'directory = "{place}/leases"', f'directory = "{place}/other"')


def with_another_host_id(text: str, _: Path) -> str:
    return text.replace("host_id = 1", "host_id = 3")


def with_another_state_dir(text: str, place: Path) -> str:
    return text.replace(f'state_dir = "{place}/alpha/state"', f'state_dir = "{place}/elsewhere"')


EDITS: list[tuple[Edit, str]] = [
    (without_the_backend, "backend.leases: is removed"),
    (with_another_directory, "backend.leases.directory: "),
    (with_another_host_id, "backend.leases.host_id: 1 -> 3"),
    (with_another_state_dir, "state_dir: "),
]
NAMES = ["backend removed", "directory", "host_id", "state_dir"]


@pytest.mark.parametrize(("change", "expected"), EDITS, ids=NAMES)
def test_reload_that_takes_what_a_held_lock_needs_is_refused_with_key_values_and_locks(
    watch: Watch, place: Path, change: Edit, expected: str
) -> None:
    alpha = watch.alpha
    before = edit(alpha, lambda text: change(text, place))
    assert accepted_by_check_config(alpha)
    pid = alpha.pid
    done = alpha.cli("reload")
    assert done.returncode == REFUSED_EXIT, done
    assert expected in done.stderr
    assert f"web1: {watch.disk}" in done.stderr
    assert "1 lock is held" in done.stderr
    answer = alpha.cli("reload", "--json")
    assert (answer.returncode, json.loads(answer.stdout)["ok"]) == (REFUSED_EXIT, False)
    assert any(expected in reason for reason in json.loads(answer.stdout)["reasons"])
    os.kill(alpha.pid, signal.SIGUSR1)  # as scripts do it
    wait_until(lambda: alpha.count("reload refused: ") >= 3, "the third refusal")
    is_red(alpha, expected)
    watch.stays_well()
    if change is without_the_backend:
        watch.stays_well_beyond_the_dead_bound()
    assert alpha.pid == pid
    alpha.config.write_text(before)
    assert problems(alpha) == []
    # A busy machine may start it more slowly than a lease with io_timeout 1 s allows.
    wait_until(lambda: alpha.cli("reload").returncode == 0, "the reload")
    watch.all_is_well()


@pytest.mark.parametrize(("change", "expected"), EDITS, ids=NAMES)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["restart", "crash"])
def test_start_goes_on_with_the_configuration_that_held_locks_need(
    watch: Watch, place: Path, change: Edit, expected: str, how: int
) -> None:
    alpha = watch.alpha
    before = edit(alpha, lambda text: change(text, place))
    alpha.kill(how)
    alpha.start()
    alpha.says("the configuration on disk is not used: ")
    alpha.says(expected)
    is_red(alpha, expected)
    watch.stays_well()
    if change is without_the_backend and how == signal.SIGKILL:
        watch.stays_well_beyond_the_dead_bound()
    alpha.config.write_text(before)
    # A busy machine may start it more slowly than a lease with io_timeout 1 s allows.
    wait_until(lambda: alpha.cli("reload").returncode == 0, "the reload")
    assert problems(alpha) == []
    watch.all_is_well()


BROKEN: list[tuple[str, str]] = [
    ("[virtlockd\n", "is not TOML"),
    ("[limits]\nowners_max = 1\n", ">= 8"),
    ("[limits]\nfrom_the_future = 1\n", "from_the_future"),
    ('[backend.new]\ndriver = "future"\n', "no driver 'future'"),
]


@pytest.mark.parametrize(
    ("more", "expected"), BROKEN, ids=["syntax", "value", "unknown key", "unknown driver"]
)
def test_start_with_a_configuration_that_can_not_be_used_goes_on_guarding(
    watch: Watch, more: str, expected: str
) -> None:
    alpha = watch.alpha
    before = edit(alpha, lambda text: text + more)
    alpha.kill(signal.SIGTERM)
    alpha.start()
    is_red(alpha, expected)
    done = alpha.cli("reload")
    assert done.returncode == REFUSED_EXIT
    assert expected in done.stderr
    watch.stays_well()
    alpha.config.write_text(before)
    # A busy machine may start it more slowly than a lease with io_timeout 1 s allows.
    wait_until(lambda: alpha.cli("reload").returncode == 0, "the reload")
    assert problems(alpha) == []
    watch.all_is_well()


@pytest.mark.parametrize(("more", "expected"), BROKEN[:3], ids=["syntax", "value", "unknown key"])
def test_start_with_a_broken_configuration_ends_with_the_reason_when_nothing_is_held(
    daemon: Holdfastd, more: str, expected: str
) -> None:
    daemon.kill(signal.SIGTERM)
    edit(daemon, lambda text: text + more)
    process = daemon.spawn()
    assert process.wait(timeout=30) == 78
    daemon.says(expected)


def test_lost_snippet_does_not_take_the_lockspace_of_running_vms(
    watch: Watch, alpha: Holdfastd, place: Path
) -> None:
    """The backend is in a file of conf.d, which an upgrade loses; both a reload and a start find it gone."""
    text = alpha.config.read_text()
    snippets = alpha.config.parent / "conf.d"
    snippets.mkdir()
    at = text.index("[backend.leases]")
    (snippets / "50-leases.toml").write_text(text[at:])
    alpha.config.write_text(text[:at])
    assert alpha.cli("reload").returncode == 0  # the same, in two files
    assert problems(alpha) == []
    (snippets / "50-leases.toml").unlink()
    done = alpha.cli("reload")
    assert done.returncode == REFUSED_EXIT
    assert "backend.leases: is removed" in done.stderr
    alpha.kill()
    alpha.start()
    is_red(alpha, "backend.leases: is removed")
    watch.stays_well()


def renamed(text: str) -> str:
    return text.replace("[backend.leases]", "[backend.san]").replace('backend = "leases"', 'backend = "san"')


@pytest.mark.parametrize("how", ["reload", "restart", "crash"])
def test_renamed_backend_keeps_its_locks_and_its_lockspace_can_not_be_left(
    watch: Watch, leases: Path, how: str
) -> None:
    alpha = watch.alpha
    edit(alpha, renamed)
    if how == "reload":
        assert alpha.cli("reload").returncode == 0
    else:
        alpha.kill(signal.SIGTERM if how == "restart" else signal.SIGKILL)
        alpha.start()
    assert problems(alpha) == []
    [lock] = alpha.cli_json("list")
    assert (lock["backend"], lock["held"]) == ("san", True)
    left = alpha.cli("lockspace", "leave", SPACE)
    assert left.returncode != 0
    assert "2 leases of lockspace" in left.stderr
    watch.stays_well()
    alpha.kill(signal.SIGTERM)  # must not leave the lockspace by itself either
    assert not record(leases, 1).is_free
    alpha.start()
    watch.all_is_well()
    alpha.end_vm(watch.vm)
    wait_until(lambda: refusal(watch.beta, watch.disk) == "", "the lease to be free")


def test_lock_whose_backend_has_no_table_any_more_still_keeps_its_lockspace(watch: Watch) -> None:
    """The kept configuration is lost, too: nobody knows which table the lock belongs to, so it counts for each."""
    alpha = watch.alpha
    edit(alpha, renamed)
    alpha.kill()
    (alpha.run_dir / "config-in-force.toml").unlink()
    alpha.start()
    assert alpha.cli("lockspace", "leave", SPACE).returncode != 0
    until = time.monotonic() + DEAD_S + 2
    while time.monotonic() < until:
        assert exists(watch.vm)
        assert refusal(watch.beta, watch.disk) != ""
        time.sleep(0.3)


def test_what_no_held_lock_needs_may_be_reloaded(watch: Watch) -> None:
    alpha = watch.alpha
    edit(alpha, lambda text: text + '[backend.spare]\ndriver = "file"\ndirectory = "/tmp"\n')
    assert problems(alpha) == [
        "the configuration on disk is not in force yet: 'holdfast reload' puts it into force"
    ]
    assert alpha.cli("reload").returncode == 0
    assert problems(alpha) == []
    assert "spare" in alpha.cli("status").stdout
    watch.all_is_well()


def test_host_id_may_be_edited_when_no_vm_runs(alpha: Holdfastd, leases: Path) -> None:
    joined(alpha.start())
    edit(alpha, lambda text: text.replace("host_id = 1", "host_id = 3"))
    assert alpha.cli("reload").returncode == 0
    alpha.says("as host_id 3")
    assert not record(leases, 3).is_free


def test_reload_into_another_state_directory_takes_the_lock_of_that_one(
    make_host: MakeHost, place: Path
) -> None:
    """With nothing held the change is accepted; then no second daemon may use that directory."""
    alpha, beta = make_host("alpha", 1), make_host("beta", 2)
    joined(alpha.start())
    edit(alpha, lambda text: with_another_state_dir(text, place))
    assert alpha.cli("reload").returncode == 0
    edit(beta, lambda text: text.replace(f"{place}/beta/state", f"{place}/elsewhere"))
    assert beta.spawn().wait(timeout=60) == 1
    beta.says(f"another holdfastd (pid {alpha.pid}) uses {place}/elsewhere")
    joined(alpha)


def test_reload_needs_no_libvirt_socket_of_its_own_and_answers_when_the_new_program_serves(
    daemon: Holdfastd, place: Path
) -> None:
    disk = make_disk(place)
    vm = daemon.vm([disk])
    with daemon.admin() as admin:
        before = admin.status().started
    done = daemon.cli("reload", "--json")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["ok"]
    with daemon.admin() as admin:
        assert admin.status().started > before
    assert daemon.holders(disk) == [("vm", vm, True)]
    daemon.kill(signal.SIGTERM)
    assert daemon.cli("reload").returncode == 69


def test_only_root_may_reload(make_daemon: Factory, place: Path) -> None:
    daemon = make_daemon(extra='[control]\ngroup = "adm"').start()
    for directory in (place, daemon.directory, daemon.run_dir):
        directory.chmod(0o755)
    (reply,) = ask_as_nobody(daemon, ("Reload", {}), groups=[ADM])
    assert reply["error"] == "io.holdfast.Control.NotPermitted"
    assert daemon.count("re-executing") == 0


# --- the kept file ---


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "dangling link", "noise", "another boot"])
def test_start_is_held_up_by_nothing_in_the_place_of_the_kept_configuration(
    daemon: Holdfastd, place: Path, kind: str
) -> None:
    disk = make_disk(place)
    vm = daemon.vm([disk])
    daemon.kill()
    kept = daemon.run_dir / "config-in-force.toml"
    text = kept.read_text()
    kept.unlink()
    if kind == "fifo":
        os.mkfifo(kept)
    elif kind == "directory":
        kept.mkdir()
    elif kind == "link":
        (place / "elsewhere").write_text("precious")
        kept.symlink_to(place / "elsewhere")
    elif kind == "dangling link":
        kept.symlink_to(place / "nowhere")
    elif kind == "noise":
        kept.write_bytes(os.urandom(5000))
    else:
        kept.write_text(text.replace("boot ", "boot x", 1))
    daemon.start()
    assert daemon.holders(disk) == [("vm", vm, True)]
    if kind == "directory":
        is_red(daemon, "can't be kept in")
        kept.rmdir()
        wait_until(lambda: problems(daemon) == [], "it to be kept after all")
    assert kept.is_file()
    assert not kept.is_symlink()
    assert "[virtlockd]" in kept.read_text()
    if kind == "link":
        assert (place / "elsewhere").read_text() == "precious"


def test_kept_configuration_of_a_newer_version_is_used_without_the_keys_that_this_one_does_not_know(
    watch: Watch,
) -> None:
    alpha = watch.alpha
    kept = alpha.run_dir / "config-in-force.toml"
    text = kept.read_text()
    text = text.replace("[limits]", "[limits]\nfrom_the_future = 1")
    kept.write_text(text.replace("[backend.leases]", '[backend.leases]\nshine = "bright"'))
    edit(alpha, lambda text: text + "[virtlockd\n")
    alpha.kill()
    alpha.start()
    alpha.says("limits.from_the_future: is not known")
    alpha.says("unknown key 'shine'")
    watch.all_is_well()


def test_kept_configuration_that_is_older_than_the_last_daemon_is_ignored(
    alpha: Holdfastd, leases: Path, place: Path
) -> None:
    """A release that keeps none has run meanwhile, with another configuration: its VMs need that one."""
    joined(alpha.start())
    kept = alpha.run_dir / "config-in-force.toml"
    text = kept.read_text()
    vm = alpha.vm([make_disk(place)], name="web1")
    alpha.kill()
    kept.write_text(text.replace("host_id = 1", "host_id = 9"))
    started = (alpha.run_dir / "holdfastd.pid").stat().st_mtime
    os.utime(kept, (started - 1, started - 1))
    alpha.start()
    alpha.says("has run since it was written")
    assert problems(alpha) == []
    assert exists(vm)
    assert not record(leases, 1).is_free


def test_backend_that_can_not_be_made_any_more_refuses_and_the_others_go_on_guarding(
    watch: Watch, place: Path
) -> None:
    """The driver's package was removed, and a group: the files can't be used, nor the kept configuration as it is."""
    alpha = watch.alpha
    kept = alpha.run_dir / "config-in-force.toml"
    gone = '\n[backend.gone]\ndriver = "gone"\nurl = "x"\n'
    rule = '[[disk]]\nmatch = "*/gone/*"\nbackend = "gone"\n'
    text = kept.read_text().replace("[[disk]]", rule + "[[disk]]", 1) + gone
    kept.write_text(text.replace('group = ""', 'group = "nobody-has-this-group"'))
    before = edit(alpha, lambda text: text.replace("[[disk]]", rule + "[[disk]]", 1) + gone)
    alpha.kill()
    alpha.start()
    is_red(alpha, "no driver 'gone' is installed")
    watch.stays_well()
    (place / "gone").mkdir()
    why = refusal(alpha, make_disk(place / "gone"))
    assert "backend 'gone' can't be used: no driver 'gone' is installed" in why
    assert gone.strip() in kept.read_text()  # it may be installed again
    alpha.config.write_text(before)
    # A busy machine may start it more slowly than a lease with io_timeout 1 s allows.
    wait_until(lambda: alpha.cli("reload").returncode == 0, "the reload")
    assert problems(alpha) == []
    watch.all_is_well()


@pytest.mark.parametrize("damage", ["first line", "empty", "missing"])
def test_damaged_journal_counts_as_locks_that_may_be_held(watch: Watch, damage: str) -> None:
    alpha = watch.alpha
    alpha.kill()
    journal = alpha.run_dir / "journal"
    if damage == "first line":
        journal.write_bytes(b"\0" * 8 + journal.read_bytes())
    elif damage == "empty":
        journal.write_bytes(b"")
    else:
        journal.unlink()
    edit(alpha, lambda text: text.replace("host_id = 1", "host_id = 3"))
    alpha.start()
    alpha.says("the configuration on disk is not used: backend.leases.host_id: 1 -> 3")
    alpha.says("gone on with as host_id 1")
    assert exists(watch.vm)


# --- what a program on disk says of itself ---


def dry_run(host: Holdfastd, check: Any) -> subprocess.CompletedProcess[str]:
    path = host.directory / "check.json"
    path.write_text(check if isinstance(check, str) else json.dumps(check))
    return subprocess.run(
        [str(BIN / "holdfastd"), "--config", str(host.config), "--check-config"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "HOLDFAST_RELOAD_CHECK": str(path)},
    )


def test_program_that_knows_no_state_of_that_version_says_so_before_the_exec(daemon: Holdfastd) -> None:
    kept = (daemon.run_dir / "config-in-force.toml").read_text()
    result = dry_run(daemon, {"state_version": 999, "configuration": kept, "held": []})
    assert result.returncode == 78
    assert "a state of version 999, this program knows 1" in result.stderr
    assert dry_run(daemon, {"state_version": 1, "configuration": kept, "held": []}).returncode == 0
    # What it can't make sense of it leaves to the daemon that asks.
    unasked = dry_run(daemon, "noise")
    assert (unasked.returncode, "compared" in unasked.stderr) == (0, False)


def test_running_daemon_compares_by_itself_where_the_program_on_disk_can_not(
    make_host: MakeHost, place: Path
) -> None:
    """An older release ignores the variable; `env` is what sets it, and here one that drops it stands in for that."""
    tools = place / "bin"
    tools.mkdir()
    (tools / "env").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tools / "env").chmod(0o755)
    alpha = make_host("alpha", 1)
    joined(alpha.start(environ={"PATH": f"{tools}:{os.environ['PATH']}"}))
    vm = alpha.vm([make_disk(place)], name="web1")
    before = edit(alpha, lambda text: text.replace("host_id = 1", "host_id = 3"))
    done = alpha.cli("reload")
    assert done.returncode == REFUSED_EXIT
    assert "backend.leases.host_id: 1 -> 3" in done.stderr
    alpha.config.write_text(before)
    # A busy machine may start it more slowly than a lease with io_timeout 1 s allows.
    wait_until(lambda: alpha.cli("reload").returncode == 0, "the reload")
    assert exists(vm)


# --- the watchdog ---


@pytest.fixture
def double(place: Path) -> Iterator[Wdmd]:
    double = Wdmd(place / "wdmd.sock", Generation.SINCE_3_9)
    yield double
    double.close()


@pytest.fixture
def fenced(make_daemon: Factory, leases: Path, place: Path, double: Wdmd) -> Holdfastd:
    return make_daemon(
        f'[backend.leases]\ndriver = "paxos"\ndirectory = "{leases}"\nhost_id = 1\ncross_host = true\n'
        f'watchdog = "wdmd"\nwatchdog_device = "{place}/wdmd.sock"\n'
        f"io_timeout_s = 1\nfire_timeout_s = {FIRE_TIMEOUT_S}\n"
        '[[disk]]\nmatch = "*"\nbackend = "leases"\n'
    )


@pytest.fixture
def manager(fenced: Holdfastd, place: Path) -> Iterator[ServiceManager]:
    """What starts it and has its descriptors meanwhile; its lockspace is joined."""
    manager = ServiceManager(
        place,
        fenced,
        sockets=[("holdfastd.socket", fenced.socket), ("holdfastd-control.socket", fenced.control)],
    )
    manager.start()
    joined(fenced)
    yield manager
    fenced.stop_all()
    manager.close()


def is_still_fed(double: Wdmd) -> None:
    """On the connection that was armed first; it was neither stopped nor closed."""
    before = len(double.expires(0))
    wait_until(lambda: len(double.expires(0)) >= before + 3, "the watchdog to be fed")
    assert 0 not in double.expires(0)
    assert (0, 0) not in double.said[0]
    assert len(double.said) == 1


WATCHDOGS: list[tuple[Callable[[str, Path], str], str]] = [
    (
        lambda text, place: text.replace('watchdog = "wdmd"', 'watchdog = "none"').replace(
            f'watchdog_device = "{place}/wdmd.sock"\n', ""
        ),
        'backend.leases.watchdog: "wdmd" -> "none"',
    ),
    (
        lambda text, place: text.replace('watchdog = "wdmd"', 'watchdog = "device"').replace(
            f'watchdog_device = "{place}/wdmd.sock"', 'watchdog_device = "/dev/null"'
        ),
        'backend.leases.watchdog: "wdmd" -> "device"',
    ),
    (
        lambda text, _: text.replace(f"fire_timeout_s = {FIRE_TIMEOUT_S}", "fire_timeout_s = 60"),
        f"backend.leases.fire_timeout_s: {FIRE_TIMEOUT_S} -> 60",
    ),
]


@pytest.mark.parametrize(("change", "expected"), WATCHDOGS, ids=["none", "device", "fire timeout"])
@pytest.mark.parametrize("how", ["reload", "start"])
def test_watchdog_of_held_leases_is_not_exchanged_and_goes_on_being_fed(
    fenced: Holdfastd,
    manager: ServiceManager,
    place: Path,
    double: Wdmd,
    change: Edit,
    expected: str,
    how: str,
) -> None:
    vm = fenced.vm([make_disk(place)], name="web1")
    edit(fenced, lambda text: change(text, place))
    assert accepted_by_check_config(fenced)
    if how == "reload":
        done = fenced.cli("reload")
        assert done.returncode == REFUSED_EXIT
        assert expected in done.stderr
    else:
        fenced.kill()
        manager.start()
    is_red(fenced, expected)
    is_still_fed(double)
    assert exists(vm)
    assert fenced.holders(place / "disk.img") == [("web1", vm, True)]


def test_armed_watchdog_that_no_lock_needs_is_stopped_by_its_own_driver_before_another_is_used(
    fenced: Holdfastd, manager: ServiceManager, place: Path, double: Wdmd
) -> None:
    wait_until(lambda: "watchdog" in manager.names, "the watchdog to be in the store")
    fenced.kill()
    edit(fenced, lambda text: WATCHDOGS[0][0](text, place))
    manager.start()
    wait_until(lambda: double.expires(0)[-1:] == [0], "the watchdog to be stopped")
    wait_until(lambda: double.said[0][-1] == (0, 0), "the connection to be closed")
    assert double.said[0][-3:-1] == [(wdmd.TEST_LIVE, 0), (wdmd.REFCOUNT_CLEAR, 0)]
    wait_until(
        lambda: not [name for name in manager.names if name.startswith("watchdog")],
        "it to be out of the store",
    )
    assert problems(fenced) == []


def test_watchdog_has_one_name_in_the_store_after_a_start_that_found_two(
    fenced: Holdfastd, manager: ServiceManager, place: Path
) -> None:
    """A daemon that was killed between two messages to systemd left one; two that differ would say nothing."""
    vm = fenced.vm([make_disk(place)], name="web1")
    wait_until(lambda: "watchdog" in manager.names, "the watchdog to be in the store")
    (name,) = [name for name in manager.names if name.startswith("watchdog-")]
    assert name.startswith(f"watchdog-wdmd-{FIRE_TIMEOUT_S}-")
    fenced.kill()
    manager.stored.append(("watchdog-device-60-/dev/watchdog", os.memfd_create("left behind")))
    manager.start()
    joined(fenced)
    wait_until(
        lambda: [each for each in manager.names if each.startswith("watchdog-")] == [name],
        "the watchdog to have one name",
    )
    assert exists(vm)


def test_watchdog_stays_with_held_leases_though_the_kept_configuration_is_lost(
    fenced: Holdfastd, manager: ServiceManager, place: Path, double: Wdmd
) -> None:
    vm = fenced.vm([make_disk(place)], name="web1")
    edit(fenced, lambda text: WATCHDOGS[0][0](text, place))
    fenced.kill()
    (fenced.run_dir / "config-in-force.toml").unlink()
    manager.start()
    is_red(fenced, "the watchdog stays")
    is_still_fed(double)
    assert exists(vm)

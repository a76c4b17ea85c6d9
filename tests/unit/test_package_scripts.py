"""The Debian package's maintainer scripts, played with other programs in a root of their own (dpkg's DPKG_ROOT)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.control.api import HolderInfo

PACKAGING = Path(__file__).parents[2] / "packaging"
DEBIAN = PACKAGING / "debian"
HOOK = "etc/libvirt/hooks/qemu.d/holdfast"

SYSTEMCTL = """#!/bin/sh
hook=no; [ ! -e "$DPKG_ROOT/etc/libvirt/hooks/qemu.d/holdfast" ] || hook=yes
echo "$* hook=$hook" >>"$DPKG_ROOT/calls"
case "$*" in
"-q is-active holdfastd.service") exit "${ACTIVE:-0}" ;;
"reload holdfastd.service") exit "${RELOAD:-0}" ;;
esac
"""
LOCKS_HELD = """#!/bin/sh
n=$(($(cat "$DPKG_ROOT/asked" 2>/dev/null || echo 0) + 1)); echo $n >"$DPKG_ROOT/asked"
echo "locks-held $*" >>"$DPKG_ROOT/calls"
[ "$n" != "$HELD_AT" ] || { echo "  web1 (pid 4711): /srv/web1.img"; exit 1; }
exit "${CODE:-0}"
"""


@dataclass
class Host:
    root: Path

    def program(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)
        (self.root / path).chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(DEBIAN / f"holdfast.{script}"), *arguments],
            env={"PATH": f"{self.root}/bin:{os.environ['PATH']}", "DPKG_ROOT": str(self.root), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def runs(self, pid: int, *command: str) -> None:
        process = self.root / "proc" / str(pid)
        process.mkdir(parents=True)
        (process / "root").symlink_to(self.root)
        (process / "cmdline").write_bytes(b"\0".join(map(os.fsencode, command)) + b"\0")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    for each in ("run/systemd/system", "proc", "usr/lib/holdfast/lib", "var/lib"):
        (tmp_path / each).mkdir(parents=True)
    made.program("bin/systemctl", SYSTEMCTL)
    made.program("usr/bin/holdfastd", "#!/usr/bin/python3.99 -I\n")
    made.program("usr/lib/holdfast/package/locks-held", LOCKS_HELD)
    for each in ("after-unpacking", "before-removal"):
        made.program(f"usr/lib/holdfast/package/{each}", (PACKAGING / "package" / each).read_text())
    made.program(HOOK, (PACKAGING / "libvirt" / "qemu-hook").read_text())
    return made


def test_installing_asks_systemd_for_nothing_but_to_read_units(host: Host) -> None:
    assert host.run("postinst", "configure", "", ACTIVE="3").returncode == 0
    assert host.calls() == ["daemon-reload hook=yes", "-q is-active holdfastd.service hook=yes"]


def test_upgrading_reloads_a_running_daemon(host: Host) -> None:
    assert host.run("prerm", "upgrade", "9").returncode == 0
    assert host.run("postinst", "configure", "0.0.9").returncode == 0
    assert host.calls()[-1] == "reload holdfastd.service hook=yes"
    others = [call for call in host.calls() if not call.startswith("start holdfast-vms.target")]
    assert not any(verb in " ".join(others) for verb in ("restart", "stop", "start ", "enable"))
    assert len(others) == len(host.calls()) - 1  # it starts no program, and orders the VMs


def test_refused_reload_leaves_the_package_configured_and_the_daemon_alone(host: Host) -> None:
    done = host.run("postinst", "configure", "0.0.9", RELOAD="1")
    assert done.returncode == 0
    assert "the previous holdfastd goes on" in done.stderr
    assert host.calls()[-1].startswith("reload")


def test_removal_is_refused_with_the_vms(host: Host) -> None:
    done = host.run("prerm", "remove", HELD_AT="1")
    assert done.returncode == 1
    assert "web1 (pid 4711): /srv/web1.img" in done.stderr
    assert host.calls() == ["locks-held "]
    assert (host.root / HOOK).exists()


def test_doubt_refuses_a_removal(host: Host) -> None:
    done = host.run("prerm", "remove", CODE="2")
    assert done.returncode == 1
    assert "can't be determined" in done.stderr
    assert not any("stop" in call for call in host.calls())


def test_daemon_that_runs_and_does_not_answer_refuses_a_removal(host: Host) -> None:
    host.runs(77, "/usr/bin/python3.11", "-I", "/usr/bin/holdfastd")
    done = host.run("prerm", "remove", CODE="3")
    assert done.returncode == 1
    assert "holdfastd runs (pid 77) and does not answer" in done.stderr
    assert not any("stop" in call for call in host.calls())
    assert (host.root / HOOK).exists()


def test_no_daemon_and_nobody_in_the_journal_lets_the_package_go(host: Host) -> None:
    assert host.run("prerm", "remove", CODE="3").returncode == 0
    assert not (host.root / HOOK).exists()


def test_vm_that_comes_during_a_removal_refuses_it_and_the_hook_is_back(host: Host) -> None:
    assert host.run("prerm", "remove", HELD_AT="2").returncode == 1
    assert (host.root / HOOK).exists()
    assert not any("stop" in call for call in host.calls())


def test_vm_that_comes_as_the_daemon_stops_starts_it_again(host: Host) -> None:
    assert host.run("prerm", "remove", HELD_AT="3").returncode == 1
    assert (host.root / HOOK).exists()
    assert host.calls()[-3:] == [
        "stop holdfastd.socket holdfastd.service hook=no",
        "locks-held --offline",
        "start holdfastd.socket holdfastd.service hook=no",
    ]


def test_hook_goes_before_the_daemon(host: Host) -> None:
    assert host.run("prerm", "remove").returncode == 0
    assert "stop holdfastd.socket holdfastd.service hook=no" in host.calls()
    assert any(call.startswith("-q disable holdfastd.socket holdfastd.service") for call in host.calls())
    assert not (host.root / HOOK).exists()


def test_hook_of_somebody_else_stays(host: Host) -> None:
    host.program(HOOK, "#!/bin/sh\nexit 0\n")
    assert host.run("prerm", "remove").returncode == 0
    assert (host.root / HOOK).exists()


def test_daemon_that_still_runs_refuses_removal_and_purge(host: Host) -> None:
    host.runs(77, "/usr/bin/python3.11", "-I", "/usr/bin/holdfastd")
    (host.root / "run/holdfast").mkdir()
    for done in (host.run("prerm", "remove"), host.run("postrm", "purge")):
        assert done.returncode == 1
        assert "pid 77" in done.stderr
    assert (host.root / "run/holdfast").exists()
    assert (host.root / HOOK).exists()


def test_timer_ends_with_the_daemon(host: Host) -> None:
    assert host.run("prerm", "remove").returncode == 0
    calls = [each.rpartition(" hook")[0] for each in host.calls()]
    assert calls.index("stop holdfastd.socket holdfastd.service") < calls.index(
        "stop holdfast-lease-gc.timer"
    )


@pytest.mark.parametrize("done", [False, True])
def test_removal_says_what_a_setup_that_was_not_undone_leaves(host: Host, *, done: bool) -> None:
    if done:
        (host.root / "var/lib/holdfast/setup").mkdir(parents=True)
        (host.root / "var/lib/holdfast/setup/done.json").touch()
    said = host.run("prerm", "remove").stderr
    assert ("virtlockd sees no lease" in said) == done


def test_purge_leaves_nothing(host: Host) -> None:
    host.runs(78, "vi", "/etc/holdfast/holdfast.toml")
    for each in ("run/holdfast", "var/lib/holdfast", "etc/holdfast", "var/lib/systemd/timers"):
        (host.root / each).mkdir(parents=True)
    for each in ("holdfast-lease-gc", "apt-daily"):
        (host.root / f"var/lib/systemd/timers/stamp-{each}.timer").touch()
    assert host.run("postrm", "remove").returncode == 0
    assert (host.root / "etc/holdfast").exists()
    assert host.run("postrm", "purge").returncode == 0
    for each in ("run/holdfast", "var/lib/holdfast", "etc/holdfast"):
        assert not (host.root / each).exists()
    assert os.listdir(host.root / "var/lib/systemd/timers") == ["stamp-apt-daily.timer"]


def holder(**changed: object) -> dict[str, object]:
    row: dict[str, object] = {
        "owner": "web1", "pid": 4711, "resource": "/srv/web1.img", "path": "/srv/leases/7b99", "held": True,
        "unknown": "",
    }  # fmt: skip
    assert set(row) <= set(HolderInfo.__dataclass_fields__)
    return row | changed


@pytest.mark.parametrize(
    ("exit_code", "said", "code", "words"),
    [
        (0, json.dumps([]), 0, ""),
        (0, json.dumps([holder()]), 1, "web1 (pid 4711): /srv/web1.img"),
        (0, json.dumps([holder(held=False)]), 0, ""),
        (0, json.dumps([holder(unknown="no such process", owner="")]), 1, "an unknown owner"),
        (0, json.dumps([{"name": "of another version"}]), 2, "not understood"),
        (0, "", 2, "not understood"),
        (77, "", 2, "exit 77"),
        (1, "", 2, "exit 1"),
    ],
)
def test_what_the_daemon_says_of_locks(
    tmp_path: Path, exit_code: int, said: str, code: int, words: str
) -> None:
    fake = tmp_path / "holdfast"
    (tmp_path / "said").write_text(said)
    fake.write_text(f"#!/bin/sh\ncat {tmp_path}/said\nexit {exit_code}\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(PACKAGING / "package" / "locks_held.py")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert words in done.stdout + done.stderr


def test_each_drop_in_is_in_the_package_and_orders_vms_before_the_daemon_at_a_shutdown() -> None:
    install = (PACKAGING / "package/install").read_text()
    drop_ins = {
        each.parent.name: each.read_text() for each in (PACKAGING / "systemd").glob("*.d/holdfast.conf")
    }
    assert {"libvirt-guests.service.d", "machine-.scope.d", "virtlockd.service.d"} == set(drop_ins)
    assert all(each in install for each in drop_ins)
    for each in ("libvirt-guests.service.d", "machine-.scope.d"):
        [after] = re.findall(r"^After=(.*)$", drop_ins[each], re.MULTILINE)
        # Not holdfastd.service: a VM whose end hangs would keep that from its next start.
        assert "holdfast-vms.target" in after.split() and "holdfastd.service" not in after.split()
    target = (PACKAGING / "systemd/holdfast-vms.target").read_text()
    assert re.findall(r"^After=(.*)$", target, re.MULTILINE) == ["holdfastd.service"]
    assert "*.target" in install
    assert "Wants=holdfast-vms.target\n" in (PACKAGING / "systemd/holdfastd.service").read_text()

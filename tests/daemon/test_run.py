"""`holdfast run` holds for the command and whatever it has started, and a killed keeper frees nothing that is in use."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.daemon.test_control import parent_of, run_in_background
from tests.support.daemon import BIN, Holdfastd, exists, locked, make_disk, refusal
from tests.support.polling import wait_until

from holdfast.system.host import cgroups
from holdfast.system.host.process import SystemProcesses

DAEMONIZES = """
import os, sys, signal
disk, pidfile = sys.argv[1:]
if os.fork():
    os._exit(5)
os.setsid()
if os.fork():
    os._exit(0)
os.open(disk, os.O_RDWR)
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
with open(pidfile + ".new", "w") as f:
    f.write(str(os.getpid()))
os.rename(pidfile + ".new", pidfile)
signal.pause()
"""
"""What `qemu -daemonize` does: it forks twice, its first process ends, and the last one has the disk open."""


@dataclass
class Run:
    """A `holdfast run` whose command has gone into the background."""

    daemon: Holdfastd
    disk: Path
    writer: int
    supervisor: int
    ended: subprocess.CompletedProcess[str]


@pytest.fixture
def run(daemon: Holdfastd, place: Path) -> Iterator[Run]:
    disk = make_disk(place)
    pidfile = place / "pid"
    # The pipes to this test end with the command: neither writer nor keeper has them.
    ended = daemon.cli(
        "run",
        "--disk",
        str(disk),
        "--name",
        "web1",
        "--",
        sys.executable,
        "-c",
        DAEMONIZES,
        str(disk),
        str(pidfile),
    )
    writer = int(wait_until(lambda: pidfile.exists() and pidfile.read_text(), "the writer's pid"))
    yield Run(daemon, disk, writer, parent_of(writer), ended)
    with contextlib.suppress(ProcessLookupError):
        os.kill(writer, signal.SIGKILL)


def test_command_that_goes_into_the_background_keeps_its_disk_until_it_ends(run: Run) -> None:
    assert run.ended.returncode == 5, "the command's own exit code"
    assert f"{run.disk} stays locked as long as these run: pid" in run.ended.stderr
    assert run.daemon.holders(run.disk) == [("web1", run.supervisor, True)]
    assert "web1" in refusal(run.daemon, run.disk)
    os.kill(run.writer, signal.SIGKILL)
    wait_until(lambda: refusal(run.daemon, run.disk) == "", "the disk to be free")
    wait_until(lambda: not exists(run.supervisor), "the keeper to end")


def test_killed_keeper_frees_nothing_that_is_open_and_all_that_is_closed(run: Run) -> None:
    os.kill(run.supervisor, signal.SIGKILL)
    run.daemon.says("is in use by what it started, pid")
    assert exists(run.writer)
    assert refusal(run.daemon, run.disk)
    assert locked(run.disk)
    os.kill(run.writer, signal.SIGKILL)
    wait_until(lambda: refusal(run.daemon, run.disk) == "", "the disk to be free")


def test_disk_of_a_killed_keeper_stays_over_a_restart_of_the_daemon(run: Run) -> None:
    run.daemon.kill()
    os.kill(run.supervisor, signal.SIGKILL)
    wait_until(lambda: not exists(run.supervisor), "the keeper to end")
    run.daemon.start()
    run.daemon.says("is in use by what it started, pid")
    assert refusal(run.daemon, run.disk)
    run.daemon.reexec()
    assert refusal(run.daemon, run.disk)
    os.kill(run.writer, signal.SIGKILL)
    wait_until(lambda: refusal(run.daemon, run.disk) == "", "the disk to be free")


def test_keeper_that_is_asked_to_end_passes_it_on(run: Run) -> None:
    os.kill(run.supervisor, signal.SIGTERM)
    wait_until(lambda: not exists(run.writer), "the writer to end")
    wait_until(lambda: refusal(run.daemon, run.disk) == "", "the disk to be free")


def test_run_whose_keeper_is_killed_says_so_and_stays_as_long_as_its_command(
    daemon: Holdfastd, place: Path
) -> None:
    disk = make_disk(place)
    command = "echo $$; exec sleep 1000"
    process = subprocess.Popen(
        [
            str(BIN / "holdfast"),
            "--config",
            str(daemon.config),
            "run",
            "--disk",
            str(disk),
            "--",
            "sh",
            "-c",
            command,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    pid = int(process.stdout.readline())
    os.kill(parent_of(pid), signal.SIGKILL)
    assert "the process that keeps the lock was killed" in process.stderr.readline()
    assert process.poll() is None
    os.kill(pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGKILL
    process.stdout.close()
    process.stderr.close()


def test_run_without_a_disk_says_that_nothing_is_locked(daemon: Holdfastd) -> None:
    ended = daemon.cli("run", "--", "true")
    assert ended.returncode == 0
    assert ended.stderr == "holdfast: nothing is locked while true runs: no --disk names a disk to hold\n"


def test_owner_that_lost_its_lease_is_killed_with_all_of_its_descendants(run: Run) -> None:
    """What the daemon sends when a lockspace is lost: SIGKILL, which the keeper can't pass on."""
    supervisor = SystemProcesses().open(run.supervisor)
    assert supervisor is not None
    supervisor.signal(signal.SIGKILL, tree=True)
    supervisor.close()
    wait_until(lambda: not exists(run.writer), "the writer to end")
    wait_until(lambda: refusal(run.daemon, run.disk) == "", "the disk to be free")


def test_killed_keeper_frees_nothing_for_a_command_that_has_not_opened_the_disk_yet(
    daemon: Holdfastd, place: Path
) -> None:
    """A script that comes to the disk later: who belongs to the command is known by its control group."""
    disk = make_disk(place)
    script = "sleep 1000 & echo $!; wait"
    process = subprocess.Popen(
        [
            str(BIN / "holdfast"),
            "--config",
            str(daemon.config),
            "run",
            "--disk",
            str(disk),
            "--",
            "sh",
            "-c",
            script,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    later = int(process.stdout.readline())
    command = parent_of(later)
    group = cgroup_of(later)
    assert Path(group).name == f"holdfast-run-{parent_of(command)}"
    os.kill(parent_of(command), signal.SIGKILL)
    daemon.says(f"is in use by what it started, pid {command}, {later}")
    os.kill(command, signal.SIGKILL)
    daemon.says(f"is in use by what it started, pid {later}")
    assert refusal(daemon, disk)
    daemon.reexec()
    assert refusal(daemon, disk)
    os.kill(later, signal.SIGKILL)
    wait_until(lambda: refusal(daemon, disk) == "", "the disk to be free")
    wait_until(lambda: not os.path.exists(group), "the group to be removed")
    process.wait()
    process.stdout.close()


def test_group_of_a_run_goes_with_it(daemon: Holdfastd, place: Path) -> None:
    disk = make_disk(place)
    ended = daemon.cli("run", "--disk", str(disk), "--", "cat", "/proc/self/cgroup")
    (name,) = re.findall(r"^0::(.*)$", ended.stdout, re.MULTILINE)
    assert "holdfast-run-" in name
    wait_until(lambda: not os.path.exists(cgroups.unified_mount()[0] + name), "the group to be removed")


def cgroup_of(pid: int) -> str:
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as f:
        return cgroups.unified_mount()[0] + next(line[3:].rstrip() for line in f if line.startswith("0::"))


def test_disk_is_free_when_run_has_ended(daemon: Holdfastd, place: Path) -> None:
    """One run after the other in a script: `run` does not end before the daemon has let go of its disks."""
    disk = make_disk(place)
    process = run_in_background(
        daemon, "--disk", str(disk), "--", "sh", "-c", f"kill -STOP {daemon.pid}; echo stopped"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert process.wait(60) == 0
    assert not locked(disk)
    process.stdout.close()

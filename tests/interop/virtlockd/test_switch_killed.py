"""A live switch (ADR 0211, ADR 0212, ADR 0227) of which one process is killed (SIGKILL), at each step of it.

All the while another process tries to lock each disk exclusively. It must get none, unless every process that had the
descriptors is dead: then holdfastd says so, takes the locks again, and acts on those that it finds taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon import locked, make_disk
from tests.support.polling import wait_until
from tests.support.stopping_programs import (
    KEEPER,
    Stop,
    StoppingPrograms,
    has_ended,
    is_stopped,
    kill,
    stopped,
)
from tests.support.switch_site import Site, rival

ORDER = """
import subprocess, sys
from holdfast.switch.order import NotSwitched, find, order
vms, pid = [int(each) for each in sys.argv[2:]], int(sys.argv[1])
try:
    print(order(find(pid), vms, command=(), backend="file", keep=lambda command: subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)).outcome, flush=True)
except NotSwitched as e:
    print("not switched:", e, flush=True)
"""
PROGRAM, HOLDFASTD, CLI = "holdfast-virtlockd-switch", "holdfastd", "order"
PATIENCE_S = 0.4
"""How long something has to stay as it is to be taken for settled; a program that is too fast is found by most runs."""


class Switching:
    """Three VMs, and a switch by a keeper, as `holdfast setup` has it, or without one, as `holdfast switch` has it."""

    def __init__(self, place: Path, tmp_path: Path) -> None:
        self.site = Site(Path(tempfile.mkdtemp(dir=place)))
        self.programs = StoppingPrograms(self.site.directory / "bin")
        self.programs.add(CLI, ORDER)
        self.disks = [make_disk(tmp_path, f"disk{number}") for number in range(3)]
        for number, disk in enumerate(self.disks):
            self.site.vm(f"vm{number}", str(disk))
        self.whole = [(f"vm{number}", str(disk), True) for number, disk in enumerate(self.disks)]
        self.log = self.site.directory / "holdfastd.log"
        self._started: list[subprocess.Popen[str]] = []

    def order(self) -> subprocess.Popen[str]:
        pids = [str(vm.pid) for vm in self.site.vms.values()]
        return self._start(self.programs.path(CLI), str(self.site.pid), *pids)

    def switch(self) -> subprocess.Popen[str]:
        return self._start(self.programs.path("holdfast"), "--config", str(self.site.config), "switch")

    def holdfastd(self) -> subprocess.Popen[str]:
        with open(self.log, "a") as log:
            command = [self.programs.path("holdfastd"), "--config", str(self.site.config)]
            started = self.site.inside(*command, stderr=log)
        self._started.append(started)
        return started

    def _start(self, *command: str) -> subprocess.Popen[str]:
        self._started.append(self.site.inside(*command))
        return self._started[-1]

    def shows(self, holders: list[tuple[str, str, bool]]) -> None:
        """Waits until holdfastd has exactly these."""
        try:
            wait_until(lambda: self.site.answers() and self.site.holders() == holders, f"{holders}")
        except AssertionError as e:
            raise AssertionError(self.log.read_text()) from e

    def becomes_whole(self) -> None:
        self.shows(self.whole)
        assert all(vm.poll() is None for vm in self.site.vms.values())
        # The end of a VM ends its lock.
        self.site.end("vm0")
        wait_until(lambda: not locked(self.disks[0]), "the lock to end with its VM")
        assert not (self.site.root / "run/holdfast-switch/keeper").exists()
        assert not (self.site.root / "run/holdfast-switch/locks").exists()

    def virtlockd_goes_on(self) -> None:
        """With its own locks, which end with their VMs."""
        wait_until(lambda: self.site.program().startswith("/usr/sbin/virtlockd"), "virtlockd to run")
        wait_until(lambda: self.site.refused(self.disks[1]), "virtlockd to refuse the disk to others")
        kinds = re.findall(r"(POSIX|OFDLCK) .* WRITE (\d+)", Path("/proc/locks").read_text())
        assert kinds.count(("POSIX", str(self.site.pid))) >= len(self.disks)
        self.site.end("vm0")
        wait_until(lambda: not locked(self.disks[0]), "the lock to end with its VM")
        assert all(locked(disk) for disk in self.disks[1:])

    def vm0_is_stopped(self) -> None:
        """And no other VM."""
        vms = self.site.vms
        wait_until(lambda: is_stopped(vms["vm0"].pid), "the VM that lost its lock to be stopped")
        assert not any(is_stopped(vms[each].pid) for each in ("vm1", "vm2"))
        os.kill(vms["vm0"].pid, signal.SIGCONT)

    def keeper(self) -> int:
        """Its pid."""
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    b"--holdfast-keep" in (each / "cmdline").read_bytes()
                    and str(self.programs.directory).encode() in (each / "cmdline").read_bytes()
                ):
                    return int(each.name)
        raise AssertionError("there is no keeper")

    def close(self) -> None:
        self.site.close()
        for each in self._started:
            each.kill()
            each.communicate()


@pytest.fixture
def switching(place: Path, tmp_path: Path) -> Iterator[Switching]:
    made = Switching(place, tmp_path)
    yield made
    made.close()


@contextlib.contextmanager
def nobody_gets_a_disk(switching: Switching) -> Iterator[None]:
    with rival("exclusive", *switching.disks) as thief:
        yield
        thief.kill()
        assert thief.stdout is not None
        assert thief.stdout.read() == "", "it got a disk"


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    return line


def has_got(thief: subprocess.Popen[str]) -> bool:
    assert thief.stdout is not None
    return bool(select.select([thief.stdout], [], [], 0)[0])


def says_nothing(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return not select.select([process.stdout], [], [], PATIENCE_S)[0]


LONG = pytest.mark.long


# --- (a) the keeper ---


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(
            Stop(KEEPER, "holdfast.switch.keeper:_until_converted"), id="before it said kept", marks=LONG
        ),
        pytest.param(Stop(KEEPER, "holdfast.switch.keeper:_confirmed"), id="after kept", marks=LONG),
        pytest.param(Stop(KEEPER, "holdfast.switch.place:write", "after"), id="with its result written"),
    ],
)
def test_virtlockd_goes_on_if_the_keeper_is_killed_before_it_has_everything(
    switching: Switching, stop: Stop
) -> None:
    (reached,) = switching.programs.stop_at(stop)
    with rival("exclusive", *switching.disks[1:]) as thief:
        order = switching.order()
        keeper = stopped(reached)
        assert says_nothing(order), "nothing is decided yet"
        kill(keeper, signal.SIGKILL)
        assert answer(order).startswith("not switched: the real virtlockd runs on")
        switching.virtlockd_goes_on()
        assert not has_got(thief)
    # And the switch can be ordered again.
    again = switching.order()
    assert answer(again) == "kept\n"


@pytest.mark.parametrize("when", ["before", pytest.param("while", marks=LONG)])
def test_locks_that_end_with_the_keeper_are_taken_again_and_a_rival_is_acted_on(
    switching: Switching, when: str
) -> None:
    """Before it is asked, and while it is asked."""
    stops = [Stop(KEEPER, "holdfast.switch.keeper:_fetched")] if when == "while" else []
    reached = switching.programs.stop_at(*stops)
    with rival("exclusive", *switching.disks[:1]) as thief:
        assert answer(switching.order()) == "kept\n"
        keeper = switching.keeper()
        for file in reached:
            switching.holdfastd()
            assert stopped(file) == keeper
        assert not has_got(thief)
        kill(keeper, signal.SIGKILL)
        assert answer(thief) == f"got {switching.disks[0]}\n"
        if when == "before":
            switching.holdfastd()
        switching.shows([("vm0", str(switching.disks[0]), False), *switching.whole[1:]])
        said = switching.log.read_text()
        assert "3 locks of virtlockd's (pid " in said
        assert "ended in the switch" in said
        assert f"LOCK LOST: {switching.disks[0]} of " in said
        switching.vm0_is_stopped()


def test_a_keeper_that_is_killed_while_holdfastd_adopts_has_nothing_that_is_not_there(
    switching: Switching,
) -> None:
    (reached,) = switching.programs.stop_at(Stop(HOLDFASTD, "holdfast.daemon.lifecycle:begin"))
    with nobody_gets_a_disk(switching):
        assert answer(switching.order()) == "kept\n"
        keeper = switching.keeper()
        switching.holdfastd()
        holdfastd = stopped(reached)
        kill(keeper, signal.SIGKILL)
        os.kill(holdfastd, signal.SIGCONT)
        switching.shows(switching.whole)
    assert "ended in the switch" not in switching.log.read_text()
    assert not (switching.site.root / "run/holdfast-switch/locks").exists()


# --- (b) the program in virtlockd's place ---

POSIX = "holdfast.system.files.process_locks:KernelRecordLocks.posix"
IN_VIRTLOCKDS_PLACE = [
    pytest.param(Stop(PROGRAM, POSIX, number=4), id="before the first POSIX lock ends", marks=LONG),
    pytest.param(Stop(PROGRAM, POSIX, "after", 5), id="with POSIX locks of some files"),
    pytest.param(
        Stop(PROGRAM, "holdfast.switch.lock_conversion:_exclusive"),
        id="with shared locks of descriptions",
        marks=LONG,
    ),
    pytest.param(
        Stop(PROGRAM, "holdfast.switch.program:convert", "after"), id="with all converted", marks=LONG
    ),
    pytest.param(Stop(PROGRAM, "holdfast.switch.place:remove"), id="with everything at the keeper"),
]


@pytest.mark.parametrize("stop", IN_VIRTLOCKDS_PLACE)
def test_a_keeper_has_all_locks_when_the_program_is_killed_from_the_second_step_on(
    switching: Switching, stop: Stop
) -> None:
    (reached,) = switching.programs.stop_at(stop)
    with nobody_gets_a_disk(switching):
        order = switching.order()
        program = stopped(reached)
        assert program == switching.site.pid
        assert says_nothing(order), "virtlockd's process has not ended"
        kill(program, signal.SIGKILL)
        assert answer(order) == "kept\n"
        switching.holdfastd()
        switching.shows(switching.whole)
    switching.becomes_whole()
    assert "ended in the switch" not in switching.log.read_text()


def test_a_rival_that_is_faster_than_the_keeper_is_named_and_acted_on(switching: Switching) -> None:
    (reached,) = switching.programs.stop_at(Stop(PROGRAM, "holdfast.switch.program:convert"))
    order = switching.order()
    program, keeper = stopped(reached), switching.keeper()
    os.kill(keeper, signal.SIGSTOP)
    wait_until(lambda: is_stopped(keeper), "the keeper to stand still")
    with rival("exclusive", switching.disks[0]) as thief:
        kill(program, signal.SIGKILL)
        assert answer(thief) == f"got {switching.disks[0]}\n"
        os.kill(keeper, signal.SIGCONT)
        assert answer(order) == "kept\n"
        result = json.loads((switching.site.root / "run/holdfast-switch/result.json").read_text())
        found = {each["resource"]: (each["mode"], each["users"]) for each in result["locks"]}
        assert found.pop(str(switching.disks[0])) == ("", "vm0")
        assert {mode for mode, _ in found.values()} == {"exclusive"}
        switching.holdfastd()
        lost = [("vm0", str(switching.disks[0]), False), *switching.whole[1:]]
        switching.shows(lost)
        switching.vm0_is_stopped()
        assert f"LOCK LOST: {switching.disks[0]} of " in switching.log.read_text()


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(Stop(PROGRAM, "holdfast.switch.place:read_plan"), id="before it has read anything"),
        pytest.param(
            Stop(PROGRAM, "holdfast.switch.program:_give_to_keeper"),
            id="before the keeper has anything",
            marks=LONG,
        ),
    ],
)
def test_locks_that_end_before_the_keeper_has_them_are_reported_and_taken_again(
    switching: Switching, stop: Stop
) -> None:
    (reached,) = switching.programs.stop_at(stop)
    order = switching.order()
    program = stopped(reached)
    assert all(locked(disk) for disk in switching.disks)
    kill(program, signal.SIGKILL)
    assert answer(order) == "ended\n"
    assert not any(locked(disk) for disk in switching.disks)
    switching.holdfastd()
    switching.shows(switching.whole)
    assert "3 locks of virtlockd's (pid " in switching.log.read_text()


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(Stop(PROGRAM, "holdfast.switch.program:convert"), id="before", marks=LONG),
        pytest.param(Stop(PROGRAM, "holdfast.switch.program:convert", "after"), id="converted"),
        pytest.param(Stop(PROGRAM, "holdfast.switch.program:exec_with"), id="before holdfastd", marks=LONG),
        pytest.param(Stop(HOLDFASTD, "holdfast.daemon.lifecycle:adopt"), id="before it adopts", marks=LONG),
        pytest.param(Stop(HOLDFASTD, "holdfast.daemon.lifecycle:begin"), id="midway", marks=LONG),
    ],
)
def test_without_a_keeper_the_loss_is_said_at_once_and_the_next_start_takes_the_locks_again(
    switching: Switching, stop: Stop
) -> None:
    (reached,) = switching.programs.stop_at(stop)
    with rival("exclusive", *switching.disks[:1]) as thief:
        switch = switching.switch()
        program = stopped(reached)
        assert program == switching.site.pid
        assert not has_got(thief)
        kill(program, signal.SIGKILL)
        out, err = switch.communicate(timeout=30)
        assert switch.returncode == 1, out + err
        assert f"(pid {program}) was killed in the switch" in err
        assert "start holdfastd now" in err
        assert answer(thief) == f"got {switching.disks[0]}\n"
        switching.holdfastd()
        lost = [("vm0", str(switching.disks[0]), False), *switching.whole[1:]]
        switching.shows(lost)
        assert "ended in the switch" in switching.log.read_text()
        switching.vm0_is_stopped()


# --- (c) holdfastd ---


@pytest.mark.parametrize("function", [pytest.param("adopt", marks=LONG), "begin"])
def test_a_holdfastd_that_is_killed_before_it_has_everything_leaves_it_at_the_keeper(
    switching: Switching, function: str
) -> None:
    (reached,) = switching.programs.stop_at(Stop(HOLDFASTD, f"holdfast.daemon.lifecycle:{function}"))
    with nobody_gets_a_disk(switching):
        assert answer(switching.order()) == "kept\n"
        switching.holdfastd()
        kill(stopped(reached), signal.SIGKILL)
        switching.holdfastd()
        switching.shows(switching.whole)
    switching.becomes_whole()


def test_no_holdfastd_starts_while_virtlockds_process_is_there(switching: Switching) -> None:
    (reached,) = switching.programs.stop_at(Stop(PROGRAM, "holdfast.switch.program:convert"))
    switching.switch()
    program = stopped(reached)
    beside = switching.holdfastd()
    assert beside.wait(timeout=30) == 69
    assert f"virtlockd (pid {program}) is being switched just now" in switching.log.read_text()
    os.kill(program, signal.SIGCONT)
    switching.shows(switching.whole)


def test_a_vm_that_ends_while_the_keeper_has_its_lock_has_none_afterwards(switching: Switching) -> None:
    assert answer(switching.order()) == "kept\n"
    switching.site.end("vm0")
    assert locked(switching.disks[0])
    switching.holdfastd()
    switching.shows(switching.whole[1:])
    wait_until(lambda: not locked(switching.disks[0]), "the lock to end")


# --- (d) the run that orders the switch ---


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(Stop(CLI, "holdfast.switch.place:put"), id="with an empty keeper"),
        pytest.param(
            Stop(CLI, "holdfast.switch.place:put", "after"),
            id="with the program in virtlockd's place",
            marks=LONG,
        ),
    ],
)
def test_a_run_that_is_killed_before_it_asks_leaves_virtlockd_and_the_next_one_switches(
    switching: Switching, stop: Stop
) -> None:
    (reached,) = switching.programs.stop_at(stop)
    with nobody_gets_a_disk(switching):
        switching.order()
        kill(stopped(reached), signal.SIGKILL)
        if stop.when == "after":  # somebody reloads virtlockd
            os.kill(switching.site.pid, signal.SIGUSR1)
            wait_until(lambda: "the real virtlockd is executed" in switching.site.log(), "ours to give way")
            wait_until(lambda: switching.site.refused(switching.disks[1]), "virtlockd to serve")
        assert answer(switching.order()) == "kept\n"
        switching.holdfastd()
        switching.shows(switching.whole)
    switching.becomes_whole()


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=LONG)])
def test_a_switch_goes_on_without_the_run_that_ordered_it(switching: Switching, when: str) -> None:
    (reached,) = switching.programs.stop_at(Stop(PROGRAM, "holdfast.switch.program:convert", when))
    with nobody_gets_a_disk(switching):
        order = switching.order()
        program = stopped(reached)
        kill(order.pid, signal.SIGKILL)
        os.kill(program, signal.SIGCONT)
        wait_until(lambda: has_ended(program), "virtlockd's process to end")
        switching.holdfastd()
        switching.shows(switching.whole)
    switching.becomes_whole()

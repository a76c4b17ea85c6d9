"""Two daemons of one host that share no directory but `host_locks`: one of them uses a lockspace, the other one waits.

What it would do otherwise: find this host's id by its name, and take the leases of the first daemon's VMs for those of a
term that has ended.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.daemon import Factory, Holdfastd, exists, make_disk, refusal
from tests.support.leases import make_lockspace
from tests.support.polling import wait_until

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT

IO_TIMEOUT_S = 4
"""A lease fails 32 s after its last renewal: more than a busy machine takes to start a daemon again."""
JOINED = "lockspace {0}: joined as"
WAITS = "lockspace {0} is not joined"

MakeOne = Callable[..., Holdfastd]


@pytest.fixture
def make_one(make_daemon: Factory, place: Path) -> MakeOne:
    """A daemon of the one host that all of them are on. Disks in a folder of a lockspace's name have leases there."""

    def make(name: str, *spaces: str) -> Holdfastd:
        tables = ""
        for space in spaces:
            directory = place / "leases" / space
            if not directory.is_dir():
                directory.mkdir(parents=True)
                make_lockspace(directory / space, name=space)
            (place / space).mkdir(exist_ok=True)
            tables += (
                f'[backend.{space}]\ndriver = "paxos"\ndirectory = "{directory}"\nlockspace = "{space}"\n'
                f'host_id = "auto"\nwatchdog = "none"\nio_timeout_s = {IO_TIMEOUT_S}\nfire_timeout_s = 10\n'
                f'cross_host = true\n[[disk]]\nmatch = "*/{space}/*"\nbackend = "{space}"\n'
            )
        return make_daemon(tables, name=name, host_locks=place / "host")

    return make


def generation(place: Path, space: str) -> int:
    """Of the host id that this host found."""
    with (place / "leases" / space / space).open("rb") as f:
        f.seek(DEFAULT.delta_offset_bytes(1))
        found = DeltaLease.decode(f.read(512))
    assert isinstance(found, DeltaLease)
    return found.generation


def waits_on(daemon: Holdfastd, space: str) -> str:
    """What it says after one more try."""
    before = daemon.count(WAITS.format(space))
    wait_until(lambda: daemon.count(WAITS.format(space)) > before, f"another try to join {space}")
    return daemon.log_text().rsplit(WAITS.format(space), 1)[1].split("\n", 1)[0]


def test_second_daemon_with_other_directories_joins_when_the_first_has_left_in_good_order(
    make_one: MakeOne, place: Path
) -> None:
    first = make_one("first", "vms", "mine").start()
    first.says(JOINED.format("vms"))
    disk = make_disk(place / "vms")
    vm = first.vm([disk])
    second = make_one("second", "vms", "other").start()
    second.says(JOINED.format("other"))
    other = make_disk(place / "other")

    waiting = waits_on(second, "vms")
    assert f"(pid {first.pid}, run_dir {first.run_dir}, state_dir {place}/first/state)" in waiting
    assert "is not in lockspace vms" in refusal(second, disk)
    assert refusal(second, other) == ""
    (listed,) = [each for each in second.cli_json("lockspace", "list") if each["name"] == "vms"]
    assert (listed["state"], str(first.pid) in listed["reason"]) == ("not joined", True)
    status = second.cli("status")
    assert (status.returncode, f"another holdfastd of this host (pid {first.pid}" in status.stdout) == (
        6,
        True,
    )
    assert f"vms is not joined: lockspace vms is used by another holdfastd of this host (pid {first.pid}" in (
        second.cli("doctor").stdout
    )

    joined_as = generation(place, "vms")
    first.kill()
    waiting = waits_on(second, "vms")
    assert f"has ended (run_dir {first.run_dir}, state_dir {place}/first/state)" in waiting
    assert "start it once with these directories" in waiting
    assert "is not in lockspace vms" in refusal(second, disk)
    assert refusal(second, other) == ""
    assert generation(place, "vms") == joined_as

    first.start()
    first.says("lockspace vms: gone on with as")
    assert exists(vm)
    assert first.holders(disk) == [("vm", vm, True)]
    first.end_vm(vm)
    wait_until(lambda: refusal(first, disk) == "", "the lease to be free")
    assert first.kill(signal.SIGTERM) == 0
    second.says(JOINED.format("vms"))
    assert refusal(second, disk) == ""
    assert generation(place, "vms") > joined_as


def test_lock_of_a_lockspace_is_held_over_a_reload_and_until_it_is_left(
    make_one: MakeOne, place: Path
) -> None:
    first = make_one("first", "vms", "mine").start()
    first.says(JOINED.format("vms"))
    lock = place / "host" / "vms" / "lock"
    inode = f":{lock.stat().st_ino} "
    ending = threading.Event()
    gaps: list[str] = []

    def watch() -> None:
        while not ending.is_set():
            if inode not in Path("/proc/locks").read_text():
                gaps.append(inode)

    watcher = threading.Thread(target=watch)
    watcher.start()
    first.reexec()
    first.says("lockspace vms: gone on with as")
    ending.set()
    watcher.join()
    assert not gaps, "another daemon could have come in between"
    second = make_one("second", "vms").start()
    assert f"pid {first.pid}" in waits_on(second, "vms")
    assert first.cli("lockspace", "leave", "vms").returncode == 0
    second.says(JOINED.format("vms"))
    with first.admin() as admin:
        admin.join_lease_space("vms")
    assert f"pid {second.pid}" in waits_on(first, "vms")
    assert refusal(first, make_disk(place / "mine")) == ""


def test_run_dir_that_was_edited_while_the_daemon_was_down_does_not_cost_a_vm_its_lease(
    make_one: MakeOne, place: Path
) -> None:
    """The kept configuration and the journal are in the old one, and are not found (ADR 0138)."""
    first = make_one("first", "vms").start()
    first.says(JOINED.format("vms"))
    disk = make_disk(place / "vms")
    vm = first.vm([disk])
    joined_as = generation(place, "vms")
    first.kill()
    written = first.config.read_text()
    first.config.write_text(written.replace(f'run_dir = "{first.run_dir}"', f'run_dir = "{place}/elsewhere"'))
    # Nothing else remembers the term: without the record it would be over, and its lease be had by the next VM.
    (copy,) = (place / "first" / "state").glob("lockspace-*.json")
    kept = copy.rename(place / "kept.json")
    first.start()
    assert f"has ended (run_dir {first.run_dir}, " in waits_on(first, "vms")
    assert "is not in lockspace vms" in refusal(first, disk)
    assert generation(place, "vms") == joined_as
    first.kill(signal.SIGTERM)
    first.config.write_text(written)
    kept.rename(copy)
    first.start()
    first.says("lockspace vms: gone on with as")
    assert exists(vm)
    assert first.holders(disk) == [("vm", vm, True)]


def test_damaged_record_refuses_a_new_term_and_lets_the_last_one_go_on(
    make_one: MakeOne, place: Path
) -> None:
    first = make_one("first", "vms").start()
    first.says(JOINED.format("vms"))
    disk = make_disk(place / "vms")
    vm = first.vm([disk])
    first.kill()
    record = place / "host" / "vms" / "users.json"
    assert json.loads(record.read_bytes())["users"][0]["run_dir"] == str(first.run_dir)
    record.write_bytes(record.read_bytes()[:-5])
    second = make_one("second", "vms").start()
    waiting = waits_on(second, "vms")
    assert str(record) in waiting
    assert "remove that file" in waiting
    first.start()
    first.says("lockspace vms: gone on with as")
    assert exists(vm)
    assert refusal(first, disk) != ""
    assert f"pid {first.pid}, run_dir {first.run_dir}" in waits_on(second, "vms")


@pytest.mark.parametrize("journal_too", [False, True], ids=["state_dir", "state_dir and journal"])
def test_copied_state_directory_gives_a_second_daemon_of_the_boot_nothing_of_the_first(
    make_one: MakeOne, place: Path, journal_too: bool
) -> None:
    """The copy remembers the first one's term, and is of this boot: the record of who uses the lockspace still stands."""
    first = make_one("first", "vms").start()
    first.says(JOINED.format("vms"))
    disk = make_disk(place / "vms")
    vm = first.vm([disk])
    joined_as = generation(place, "vms")
    second = make_one("second", "vms")
    shutil.copytree(place / "first" / "state", place / "second" / "state", dirs_exist_ok=True)
    if journal_too:
        second.run_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(first.run_dir / "journal", second.run_dir / "journal")
    assert second.spawn().wait(60) == 1
    second.says(
        "state_dir or run_dir of this daemon is a copy, or was copied: it has the incarnation of lockspace vms"
    )
    second.says(f"(pid {first.pid}, run_dir {first.run_dir}, ")
    assert "SIGKILL" not in second.log_text()
    assert exists(vm)
    assert first.holders(disk) == [("vm", vm, True)]
    first.kill()
    second.start()  # that term goes on in one of the two, whichever is first
    second.says("lockspace vms: gone on with as")
    assert refusal(second, disk) != ""
    copied = second.pid
    assert first.spawn().wait(60) == 1
    first.says(f"in which another holdfastd of this host runs (pid {copied}, ")
    assert exists(vm)
    assert refusal(second, disk) != ""
    assert generation(place, "vms") == joined_as


def test_two_recorded_daemons_without_vms_do_not_keep_each_other_out(make_one: MakeOne, place: Path) -> None:
    """One resumed its incarnation beside the other's record, which is left behind, and was killed (seed 99001491)."""
    first = make_one("first", "vms", "mine").start()
    first.says(JOINED.format("vms"))
    record = place / "host" / "vms" / "users.json"
    users = json.loads(record.read_bytes())["users"]
    first.kill()
    second = make_one("second", "vms", "other")
    theirs = {**users[0], "run_dir": str(second.run_dir), "state_dir": f"{place}/second/state"}
    record.write_bytes(json.dumps({"users": [*users, theirs]}).encode())
    second.start()
    assert f"has ended (run_dir {first.run_dir}, " in waits_on(second, "vms")
    first.start()
    disk = make_disk(place / "vms")
    wait_until(lambda: refusal(first, disk) == "", "the first daemon to be in its lockspace again")
    assert str(second.run_dir) not in record.read_text()

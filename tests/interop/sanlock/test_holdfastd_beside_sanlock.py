"""A real sanlock daemon is host 1, a real holdfastd host 2, in one lockspace on the same lease files."""

import ctypes
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.interop.sanlock.daemon import Holder, SanlockDaemon, beside_holdfastd, held
from tests.interop.sanlock.direct import dump
from tests.support.daemon import Holdfastd, make_disk, refusal
from tests.support.leases import SPACE, make_lockspace
from tests.support.polling import wait_until

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import MIB
from holdfast.ondisk.leader import Leader
from holdfast.testing.virtlockd_client import SHARED

pytestmark = pytest.mark.interop

IO_TIMEOUT_S = 1
DEAD_S = 8 * IO_TIMEOUT_S + 60
"""The real program's watchdog fires after 60 s, and so must ours."""
IN_OPEN = 0x20  # linux/inotify.h


@dataclass
class Beside:
    sanlock: SanlockDaemon
    holdfastd: Holdfastd
    place: Path

    def disk(self, name: str) -> tuple[Path, str]:
        """A disk, and its lease as sanlock names it; made by ours if it is not there."""
        disk = make_disk(self.place, name)
        lease = hashlib.md5(str(disk).encode()).hexdigest()
        return disk, f"{SPACE}:{lease}:{self.place}/leases/{lease}:0"

    def refusal(self, disk: Path, flags: int = 0) -> str:
        """Somebody's try with holdfastd; empty if it was granted (and given back)."""
        return refusal(self.holdfastd, disk, flags=flags)

    def taken_by_sanlock(self, lease: str) -> Holder | None:
        taken = self.sanlock.hold(lease)
        return taken if isinstance(taken, Holder) else None

    def made(self, name: str) -> tuple[Path, str]:
        disk, lease = self.disk(name)
        assert self.refusal(disk) == ""
        return disk, lease


@pytest.fixture
def beside() -> Iterator[Beside]:
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    leases = place / "leases"
    leases.mkdir()
    make_lockspace(leases / SPACE)
    table = f'directory = "{leases}"\ncross_host = true'
    lockspace = f"{SPACE}:1:{leases / SPACE}:0"
    with beside_holdfastd(place, table, lockspace, IO_TIMEOUT_S) as (sanlock, holdfastd):
        yield Beside(sanlock, holdfastd, place)


def test_each_refuses_what_the_other_holds_and_takes_what_it_gives_up(beside: Beside) -> None:
    disk, lease = beside.made("a.img")
    theirs = held(beside.sanlock.hold(lease))
    text = wait_until(lambda: beside.refusal(disk), "a refusal")
    assert "on host the-real-one (host_id 1)" in text
    theirs.release()
    wait_until(lambda: beside.refusal(disk) == "", "the lease to be free")
    vm = beside.holdfastd.vm([disk], name="web1")
    assert isinstance(beside.sanlock.hold(lease), str), "sanlock acquired what holdfastd holds"
    (line,) = dump(Path(lease.split(":")[2]), 0, MIB)
    assert (line.owner_id, line.resource) == (2, lease.split(":")[1])
    beside.holdfastd.end_vm(vm)
    wait_until(lambda: not beside.holdfastd.holders(disk), "the release")
    # Nobody is named any more as soon as the release begins; storage has it a moment later.
    taken = wait_until(lambda: beside.taken_by_sanlock(lease), "the lease to be free on storage")
    assert taken is not None
    taken.release()


def test_they_share_and_neither_gets_it_alone(beside: Beside) -> None:
    disk, lease = beside.made("a.img")
    theirs = held(beside.sanlock.hold(f"{lease}:SH"))
    vm = beside.holdfastd.vm([disk], name="reader", flags=SHARED)
    assert isinstance(beside.sanlock.hold(lease), str)
    beside.holdfastd.end_vm(vm)
    assert "host_id 1" in wait_until(lambda: beside.refusal(disk), "a refusal")
    theirs.release()
    wait_until(lambda: beside.refusal(disk) == "", "the lease to be free")


def opened(path: Path, until: Callable[[], object]) -> bool:
    """Whether anybody opened the file before that returned (inotify, which a rename on top of it ends)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(fd, os.fsencode(path), IN_OPEN) >= 0
        until()
        try:
            return bool(os.read(fd, 4096))
        except BlockingIOError:
            return False
    finally:
        os.close(fd)


def test_sanlock_neither_reads_nor_writes_the_record_of_a_host(beside: Beside) -> None:
    """docs/specs/host-records.md: it stands in the directory of sanlock's own files."""
    record = beside.place / "leases" / f"{SPACE}.host-2"
    wait_until(record.exists, "holdfastd's record")
    _, lease = beside.made("a.img")
    beside.holdfastd.kill()
    before = record.read_bytes(), record.stat().st_mtime_ns

    def sanlock_at_work() -> None:
        for _ in range(3):
            held(beside.sanlock.hold(lease)).release()
            time.sleep(2 * IO_TIMEOUT_S)
        dump(beside.place / "leases" / SPACE, 0, MIB)

    assert not opened(record, sanlock_at_work)
    assert (record.read_bytes(), record.stat().st_mtime_ns) == before
    assert opened(record, record.read_bytes), "a reader is seen"


@pytest.mark.long
def test_sanlock_counts_by_the_io_timeout_that_a_renewal_has_shown_last(beside: Beside) -> None:
    """Raised while it is joined: sanlock goes by it from the next renewal that it reads, and calls no such host failed."""

    def seen() -> str:
        lines = beside.sanlock.client("host_status", "-s", SPACE, "-D").split("\n")
        ours = [number for number, line in enumerate(lines) if line.startswith("2 ")]
        return " ".join(lines[ours[0] :]) if ours else ""

    raised_s = 3 * IO_TIMEOUT_S
    beside.made("a.img")
    done = beside.holdfastd.cli("lockspace", "set", SPACE, "--io-timeout", str(raised_s))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: f"io_timeout={raised_s}" in seen(), "sanlock to read the record")
    renewed = time.monotonic()
    beside.holdfastd.kill()
    # By the io_timeout from before it has failed now; by the new one not yet.
    while time.monotonic() < renewed + 8 * IO_TIMEOUT_S + 5:
        time.sleep(1)
    (ours,) = [
        each for each in beside.sanlock.client("gets", "-h", "1").split("\n") if each.startswith("h 2 ")
    ]
    assert ours.endswith("LIVE"), ours


def test_host_with_sanlock_says_nothing_and_doctor_knows_what_it_counts(beside: Beside) -> None:
    (space,) = beside.holdfastd.cli_json("lockspace", "list")
    by_id = {host["host_id"]: host for host in space["hosts"]}
    assert (by_id[1]["node"], by_id[1]["fire_timeout_s"]) == ("", 0)
    assert space["fire_timeout_s"] == 60
    assert "fire timeout" not in beside.holdfastd.cli("doctor").stdout


def test_older_leader_that_lands_late_is_no_obstacle_for_sanlock(beside: Beside) -> None:
    """Above a block that promises the next version it would be one for ever: sanlock only waits for the leader to follow."""
    listed = "the host table to name sanlock's host"
    wait_until(lambda: "the-real-one" in beside.holdfastd.cli("lockspace", "list").stdout, listed)
    disk, lease = beside.made("a.img")
    area = Path(lease.split(":")[2])
    older = area.read_bytes()[:512]
    assert beside.refusal(disk) == ""
    newer = Leader.decode(area.read_bytes()[:512])
    before = Leader.decode(older)
    assert isinstance(newer, Leader)
    assert isinstance(before, Leader)
    assert (before.is_free, newer.is_free, newer.lver) == (True, True, before.lver + 1)
    with area.open("r+b") as file:
        file.write(older)
    taken = wait_until(lambda: beside.taken_by_sanlock(lease), "sanlock to take the lease")
    assert taken is not None
    (line,) = dump(area, 0, MIB)
    assert (line.owner_id, line.lver) == (1, str(newer.lver + 1))
    taken.release()
    wait_until(lambda: beside.refusal(disk) == "", "the lease to be free")


@pytest.mark.timeout(240)
def test_holdfastd_takes_over_from_a_dead_sanlock_host_after_the_bound(beside: Beside) -> None:
    disk, lease = beside.made("a.img")
    theirs = held(beside.sanlock.hold(lease))
    wait_until(lambda: "alive" in beside.refusal(disk), "it to be seen alive")
    died = time.monotonic()
    beside.sanlock.kill()
    theirs.end()
    while beside.refusal(disk):
        time.sleep(0.2)
        assert time.monotonic() < died + DEAD_S + 30
    assert time.monotonic() - died > DEAD_S - 2 * IO_TIMEOUT_S


@pytest.mark.timeout(240)
def test_lease_of_a_sanlock_host_that_rejoined_at_once_stays_its_owners_until_its_older_term_is_over(
    beside: Beside,
) -> None:
    """sanlock takes its own host id again without the large delay if its name is the same; since 3.9 it is by default."""
    disk, lease = beside.made("a.img")
    theirs = held(beside.sanlock.hold(lease))
    wait_until(lambda: "alive" in beside.refusal(disk), "it to be seen alive")
    died = time.monotonic()
    beside.sanlock.restart()
    lockspace = beside.place / "leases" / SPACE
    beside.sanlock.client("add_lockspace", "-s", f"{SPACE}:1:{lockspace}:0", "-o", str(IO_TIMEOUT_S))
    assert _generation(lockspace) == 2
    assert time.monotonic() - died < DEAD_S / 2, "it took the large delay, so this test shows nothing"
    result = beside.holdfastd.cli("who", str(disk)).stdout
    assert "its host has joined anew since (generation 2)" in result
    assert "may take it" not in result
    while beside.refusal(disk):
        assert theirs.runs()
        time.sleep(0.2)
        assert time.monotonic() < died + 2 * DEAD_S
    # Here no watchdog ends the owner; with one it is gone by now.
    assert time.monotonic() - died > DEAD_S - 2 * IO_TIMEOUT_S
    theirs.end()


def _generation(lockspace: Path) -> int:
    record = DeltaLease.decode(lockspace.read_bytes()[:512])
    assert isinstance(record, DeltaLease)
    return record.generation


@pytest.mark.timeout(240)
def test_sanlock_takes_over_from_a_dead_holdfastd_host_after_the_bound(beside: Beside) -> None:
    disk, lease = beside.made("a.img")
    vm = beside.holdfastd.vm([disk], name="web1")
    assert isinstance(beside.sanlock.hold(lease), str)
    died = time.monotonic()
    beside.holdfastd.kill()
    os.kill(vm, signal.SIGKILL)
    taken: Holder | str = ""
    while isinstance(taken, str):
        try:
            taken = beside.sanlock.hold(lease)
        except AssertionError:
            continue  # it waits longer than the double lets it
        time.sleep(0.5)
        assert time.monotonic() < died + DEAD_S + 30, taken
    assert time.monotonic() - died > DEAD_S - 2 * IO_TIMEOUT_S
    taken.release()

"""The storage of a lockspace stalls, is slow, or fails, under a real daemon that has another lockspace and file locks too.

io_timeout 1 and fire timeout 30: a lease fails at 8 s; its owners are asked, and terminated 7.5 s later.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.daemon import BIN, Factory, Holdfastd, bystander, exists, make_disk, refusal
from tests.support.fuse_storage import FaultyStorage
from tests.support.leases import SPACE, lease_file, make_lockspace
from tests.support.polling import wait_until
from tests.support.wdmd_double import FIRE_TIMEOUT_S, Generation, Wdmd

from holdfast.control.api import DiskWish
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.leader import Leader
from holdfast.system.watchdog import wdmd

FAIL_S = 8
OTHER_SPACE = "vms"
ANSWER_S = 10.0
"""An answer within it has not waited for the storage, which stalls longer than that."""


@dataclass
class Scene:
    """One daemon, and a VM on each kind of lock: on the faulty lockspace, on a healthy one, on a local file."""

    storage: FaultyStorage
    watchdog: Wdmd
    host: Holdfastd
    place: Path
    generation: int = 0
    """Of the first term in the faulty lockspace."""

    def start(self) -> Scene:
        self.host.start()
        wait_until(lambda: self.host.count("joined as host_id") == 2, "both lockspaces to be joined")
        self.generation = self.record().generation
        kinds = ("faulty", "sound", "local")
        self.disks = {kind: make_disk(self.place / kind) for kind in kinds}
        self.vms = {kind: self.host.vm([self.disks[kind]], name=kind) for kind in kinds}
        return self

    def record(self) -> DeltaLease:
        """This host's record in the faulty lockspace, as the disk behind it has it."""
        found = DeltaLease.decode((self.storage.source / SPACE).read_bytes()[: DEFAULT.sector_bytes])
        assert isinstance(found, DeltaLease)
        return found

    def last_keepalive(self) -> int:
        """When the watchdog would fire, as it was told last; wdmd adds its fire timeout to that."""
        return self.watchdog.expires(len(self.watchdog.said) - 1)[-1]

    def standing(self) -> str:
        with self.host.admin() as admin:
            (found,) = [each for each in admin.lease_spaces() if each.name == SPACE]
            return found.state

    def end_vms(self) -> None:
        """They end, and their locks leave the table; what that takes on the disk goes on."""
        for vm in self.vms.values():
            self.host.end_vm(vm)
        wait_until(
            lambda: not any(self.host.holders(disk) for disk in self.disks.values()), "the VMs to be gone"
        )

    @property
    def lease_file(self) -> Path:
        """The lease on the faulty lockspace, behind its storage; it is named by the path of its disk."""
        return lease_file(self.storage.source, self.disks["faulty"])

    def lease_is_free(self) -> bool:
        leader = Leader.decode(self.lease_file.read_bytes()[: DEFAULT.sector_bytes])
        assert isinstance(leader, Leader)
        return leader.is_free

    def events(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.host.cli("events", "--json").stdout.splitlines()]

    def serves_all_but_faulty(self) -> None:
        for kind in ("sound", "local"):
            begun = time.monotonic()
            assert refusal(self.host, make_disk(self.place / kind, "another.img")) == ""
            with self.host.admin() as admin:
                assert admin.status().locks >= 2
            assert time.monotonic() - begun < ANSWER_S

    def others_live(self) -> None:
        for kind in ("sound", "local"):
            assert exists(self.vms[kind])
            assert self.host.holders(self.disks[kind]) == [(kind, self.vms[kind], True)]


@pytest.fixture
def scene(make_daemon: Factory, place: Path) -> Iterator[Scene]:
    for kind in ("faulty", "sound", "local", "sound-leases"):
        (place / kind).mkdir()
    storage = FaultyStorage(place / "behind", place / "leases")
    make_lockspace(storage.source / SPACE)
    make_lockspace(place / "sound-leases" / OTHER_SPACE, name=OTHER_SPACE)
    watchdog = Wdmd(place / "wdmd.sock", Generation.SINCE_3_9)
    common = (
        f'host_id = 1\ncross_host = true\nwatchdog = "wdmd"\nwatchdog_device = "{place}/wdmd.sock"\n'
        f"io_timeout_s = 1\nfire_timeout_s = {FIRE_TIMEOUT_S}\n"
    )
    host = make_daemon(
        f'[backend.faulty]\ndriver = "paxos"\ndirectory = "{storage.at}"\n{common}'
        f'[backend.sound]\ndriver = "paxos"\ndirectory = "{place}/sound-leases"\nlockspace = "{OTHER_SPACE}"\n{common}'
        '[[disk]]\nmatch = "*/faulty/*"\nbackend = "faulty"\nrequire_protection = 3\n'
        '[[disk]]\nmatch = "*/sound/*"\nbackend = "sound"\nrequire_protection = 3\n'
        '[[disk]]\nmatch = "*"\nbackend = "file"\n'
    )
    try:
        yield Scene(storage, watchdog, host, place).start()
    finally:
        storage.close()  # first: a daemon whose requests hang can't end
        host.stop_all()
        watchdog.close()


@pytest.mark.parametrize("fault", ["stall", "fail"])
def test_owners_of_the_faulty_lockspace_are_stopped_in_time_and_nobody_else(scene: Scene, fault: str) -> None:
    s = scene
    getattr(s.storage, fault)()
    s.host.says(f"lockspace {SPACE} is LOST")
    # Nobody was told of a moment beyond the bound of the last renewal that the disk has.
    renewed = s.record().timestamp
    assert s.last_keepalive() <= renewed + FAIL_S
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= renewed + FAIL_S
    latest = s.last_keepalive()
    s.serves_all_but_faulty()
    assert "lost" in refusal(s.host, make_disk(s.place / "faulty", "another.img"))
    wait_until(lambda: not exists(s.vms["faulty"]) or s.last_keepalive() != latest, "the VM to be stopped")
    assert not exists(s.vms["faulty"]), "the watchdog was fed while a VM rested on a lost lease"
    s.others_live()
    s.serves_all_but_faulty()
    s.storage.healthy()
    wait_until(lambda: s.record().generation > s.generation, "the lockspace to be joined again")
    wait_until(lambda: refusal(s.host, s.disks["faulty"]) == "", "the disk to be had again")
    wait_until(lambda: s.last_keepalive() > latest, "the watchdog to be fed again")
    s.others_live()
    events = s.events()
    kinds = [event["kind"] for event in events]
    assert kinds.index("lockspace-lost") < kinds.index("lease-lost") < kinds.index("owner-died")
    assert {e["owner"] for e in events if e["kind"] in ("lease-lost", "owner-stopped")} == {"faulty"}
    s.host.says_once("is LOST")


def test_storage_that_is_slow_but_within_io_timeout_costs_nothing(scene: Scene) -> None:
    s = scene
    s.storage.delay(0.3)
    before = s.record().timestamp
    vm = s.host.vm([make_disk(s.place / "faulty", "another.img")], name="on-slow-storage")
    wait_until(lambda: s.record().timestamp > before + FAIL_S + 2, "renewals beyond the bound of the first")
    assert s.last_keepalive() >= before + FAIL_S
    assert exists(vm)
    assert exists(s.vms["faulty"])
    s.others_live()
    assert s.record().generation == s.generation
    assert "LOST" not in s.host.log_text()


def test_stall_that_ends_before_the_bound_costs_nothing(scene: Scene) -> None:
    s = scene
    s.storage.stall()
    time.sleep(FAIL_S / 2)
    s.storage.healthy()
    before = s.record().timestamp
    wait_until(lambda: s.record().timestamp > before + FAIL_S, "renewals beyond the bound")
    assert exists(s.vms["faulty"])
    assert s.record().generation == s.generation
    assert refusal(s.host, make_disk(s.place / "faulty", "another.img")) == ""
    assert "LOST" not in s.host.log_text()


LET_GO = [(wdmd.TEST_LIVE, 0), (wdmd.REFCOUNT_CLEAR, 0)]
"""What wdmd is told last when nothing needs it any more."""
CLOSED = (0, 0)


def test_stop_right_behind_the_last_vm_waits_for_its_lease_and_lets_go_of_the_watchdog(scene: Scene) -> None:
    """Else the watchdog stayed armed, and the host, on which nobody rests, was reset."""
    s = scene
    s.storage.delay(0.2)
    s.end_vms()
    s.host.kill(signal.SIGTERM)
    latest = s.watchdog.said[-1]
    wait_until(lambda: latest[-1] == CLOSED, "the connection to wdmd to be closed")
    assert latest[-3:-1] == LET_GO
    assert s.lease_is_free()
    assert s.record().is_free


def test_stop_while_a_lease_write_hangs_says_that_the_watchdog_stays_armed(scene: Scene) -> None:
    """What may still land is stopped by a reset only, and nobody may have this host's id before that."""
    s = scene
    s.storage.stall_writes(s.lease_file)
    s.end_vms()
    assert s.host.process is not None
    s.host.process.send_signal(signal.SIGTERM)
    s.host.says(f"lockspace {SPACE} could not be left")
    s.host.says("this host is reset")
    assert f"lockspace {OTHER_SPACE} could not be left" not in s.host.log_text()
    assert not s.record().is_free
    latest = s.watchdog.said[-1]
    s.storage.healthy()
    wait_until(lambda: latest[-1] == CLOSED, "the connection to wdmd to be closed")
    assert latest[-3:-1] != LET_GO


def test_stop_waits_for_the_write_of_its_record_that_it_has_given_up(scene: Scene) -> None:
    s = scene
    s.end_vms()
    wait_until(s.lease_is_free, "the lease to be given back")
    s.storage.stall_writes(s.storage.source / SPACE)
    assert s.host.process is not None
    s.host.process.send_signal(signal.SIGTERM)
    s.host.says("host id not given back")
    latest = s.watchdog.said[-1]
    s.storage.healthy()
    wait_until(lambda: latest[-1] == CLOSED, "the connection to wdmd to be closed")
    assert latest[-3:-1] == LET_GO


def test_lockspace_that_is_lost_while_it_is_left_is_not_joined_again(scene: Scene) -> None:
    s = scene
    s.storage.stall_writes(s.lease_file)
    s.end_vms()
    with ThreadPoolExecutor() as threads:
        leaving = threads.submit(s.host.cli, "lockspace", "leave", SPACE)
        wait_until(lambda: s.standing() == "leaving", "the lockspace to be left")
        record = s.record()
        with open(s.storage.source / SPACE, "r+b") as space:
            space.write(replace(record, generation=record.generation + 1).sector())
        s.host.says(f"lockspace {SPACE} is LOST")
        s.storage.healthy()
        leaving.result()
    assert s.standing() == "left"


def call_and_leave(control: str, method: str, parameters: dict[str, object]) -> None:
    """A client that goes before it is answered."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(control)
        sock.sendall(
            json.dumps({"method": f"io.holdfast.Control.{method}", "parameters": parameters}).encode() + b"\0"
        )
        time.sleep(0.5)


@pytest.mark.parametrize("method", ["Acquire", "Release"])
def test_call_whose_client_has_gone_is_brought_to_its_end(scene: Scene, method: str) -> None:
    """Half of it would leave a lease that nobody can have before the daemon is started again."""
    s = scene
    disk, pid = make_disk(s.place / "faulty", "left.img"), bystander()
    acquire = {"pid": pid, "name": "left", "disks": [{"path": str(disk), "shared": False}]}
    if method == "Release":
        with s.host.admin() as admin:
            admin.acquire(pid=pid, name="left", disks=[DiskWish(str(disk), False)])
    s.storage.stall()
    call_and_leave(
        s.host.control, method, acquire if method == "Acquire" else {"pid": pid, "paths": [str(disk)]}
    )
    s.storage.healthy()
    wait_until(lambda: refusal(s.host, disk) == "" or s.host.holders(disk), "the call to end")
    if s.host.holders(disk):
        with s.host.admin() as admin:
            admin.release(pid=pid, paths=[str(disk)])
    wait_until(lambda: refusal(s.host, disk) == "", "the disk to be had")


def test_disk_of_a_command_that_was_killed_for_its_lost_lease_can_be_had_again(scene: Scene) -> None:
    """Its lock outlives the keeper until its disk is closed, and is let go of when the lockspace is lost already."""
    s = scene
    disk = make_disk(s.place / "faulty", "run.img")
    supervisor = subprocess.Popen(
        [
            str(BIN / "holdfast"),
            "--config",
            str(s.host.config),
            "run",
            "--disk",
            str(disk),
            "--",
            "sleep",
            "600",
        ]
    )
    wait_until(lambda: s.host.holders(disk), "the command to hold its disk")
    s.storage.fail()
    s.host.says(f"lockspace {SPACE} is LOST")
    supervisor.wait(60)
    s.storage.healthy()
    wait_until(lambda: s.record().generation > s.generation, "the lockspace to be joined again")
    wait_until(lambda: refusal(s.host, disk) == "", "the disk to be had again")

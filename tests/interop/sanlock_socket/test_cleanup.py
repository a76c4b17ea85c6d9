"""Debian's virt-sanlock-cleanup removes the files of leases that nobody holds, and no other: run on a host with the real
sanlock, and on one where holdfastd is in its place, over one directory of leases.

It asks sanlock's socket for each lease in turn, and removes the file while it has it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.interop.sanlock.daemon import SanlockDaemon, beside_holdfastd, held
from tests.interop.sanlock_socket.client import Process
from tests.support.daemon import Holdfastd, make_disk, refusal
from tests.support.leases import SPACE, make_lockspace
from tests.support.polling import wait_until

from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.result import Result

pytestmark = pytest.mark.interop

IO_TIMEOUT_S = 1
CLEANUP = "/usr/sbin/virt-sanlock-cleanup"
CLEANUP_S = 120


@dataclass
class Site:
    """Host 1 has sanlock; on host 2 holdfastd serves both of libvirt's plugins."""

    sanlock: SanlockDaemon
    holdfastd: Holdfastd
    place: Path

    @property
    def leases(self) -> Path:
        return self.place / "leases"

    @property
    def socket(self) -> Path:
        return self.place / "d" / "sanlock.sock"

    def lease_of(self, disk: Path) -> Path:
        """As both plugins of libvirt name it."""
        return self.leases / hashlib.md5(str(disk).encode()).hexdigest()

    def as_sanlock_says(self, lease: Path) -> str:
        return f"{SPACE}:{lease.name}:{lease}:0"

    def process_with(self, lease: Path) -> Process:
        """A process that holds it by sanlock's socket of host 2."""
        process = Process(self.socket)
        wanted = s.Resource.of(SPACE, lease.name, s.Disk(str(lease), 0))
        assert process.client.result(r.Acquire(0, r.OWN, (wanted,))) == Result.OK
        return process

    def clean_up(self, run_dir: Path) -> dict[str, str]:
        """By lease, what the program says: PASS where it has removed the file."""
        done = subprocess.run(
            [CLEANUP],
            env={**os.environ, "SANLOCK_RUN_DIR": str(run_dir), "AUGEAS_ROOT": str(self.place)},
            capture_output=True,
            text=True,
            timeout=CLEANUP_S,
            check=True,
        )
        tries = [each.split() for each in done.stdout.split("Cleanup: ") if each]
        return {words[0].split(":")[1]: words[-1] for words in tries}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    place = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
    leases = place / "leases"
    leases.mkdir()
    make_lockspace(leases / SPACE)
    (place / "etc/libvirt").mkdir(parents=True)
    (place / "etc/libvirt/qemu-sanlock.conf").write_text(f'disk_lease_dir = "{leases}"\n')
    table = f'directory = "{leases}"\ncross_host = true'
    more = f'[sanlock]\nsocket = "{place}/d/sanlock.sock"\nwatchdog = "none"'
    lockspace = f"{SPACE}:1:{leases / SPACE}:0"
    with beside_holdfastd(place, table, lockspace, IO_TIMEOUT_S, more=more) as (sanlock, holdfastd):
        yield Site(sanlock, holdfastd, place)
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("where", ["sanlock", "holdfastd"])
def test_no_held_lease_is_removed(site: Site, where: str) -> None:
    disks = {
        name: make_disk(site.place, f"{where}-{name}")
        for name in ("sanlock", "lockd", "client", "free", "left")
    }
    lease = {name: site.lease_of(disk) for name, disk in disks.items()}
    for disk in disks.values():
        assert refusal(site.holdfastd, disk) == ""  # its lease is made
    theirs = held(site.sanlock.hold(site.as_sanlock_says(lease["sanlock"])))
    vm = site.holdfastd.vm([disks["lockd"]], name="web1")
    client = site.process_with(lease["client"])
    site.process_with(lease["left"]).close()
    before = {path.name: path.stat().st_ino for path in site.leases.iterdir()}
    run_dir = site.sanlock.socket_path.parent if where == "sanlock" else site.socket.parent
    try:
        wait_until(lambda: not refusal(site.holdfastd, disks["left"]), "the release")
        said = site.clean_up(run_dir)
        stays = {name: said[lease[name].name] for name in ("sanlock", "lockd", "client")}
        assert stays == dict.fromkeys(stays, "FAIL")
        for name in ("sanlock", "lockd", "client"):
            assert lease[name].stat().st_ino == before[lease[name].name], name
        assert [said[lease[name].name] for name in ("free", "left")] == ["PASS", "PASS"]
        assert not lease["free"].exists()
        assert said[f"{SPACE}.host-2"] == "FAIL"  # holdfastd's record of its host is no lease
        assert (site.leases / SPACE).stat().st_ino == before[SPACE]
        # What was removed is made again on demand, and what was held is held still, for both hosts.
        # Its file may have gone while holdfastd was still releasing the lease: it refuses until that has ended.
        wait_until(lambda: not refusal(site.holdfastd, disks["free"]), "the removed lease to be made again")
        for name in ("sanlock", "lockd", "client"):
            assert refusal(site.holdfastd, disks[name]), name
        for name in ("lockd", "client"):
            assert isinstance(site.sanlock.hold(site.as_sanlock_says(lease[name])), str), name
        assert "lost" not in site.holdfastd.log_text()
    finally:
        theirs.release()
        client.close()
        site.holdfastd.end_vm(vm)

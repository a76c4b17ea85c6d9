"""What sanlock's clients hold when the daemon is killed and its journal lost: storage says whose it is, and for how long."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.conftest import MakeHost
from tests.interop.sanlock_socket.client import Process
from tests.support.daemon import Holdfastd, make_disk, refusal
from tests.support.leases import SPACE
from tests.support.polling import wait_until

from holdfast.backends.naming import NameBy, lease_name
from holdfast.model import Resource as Key
from holdfast.system.files.disk_identity import DiskIdentity
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import AcquireFlag, ResourceFlag
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import Disk, Resource


@pytest.fixture
def host(make_host: MakeHost, place: Path) -> Holdfastd:
    """It serves sanlock's clients in the lockspace of its disks."""
    host = make_host("alpha", 1, identity="path")
    slow = host.config.read_text().replace(
        "io_timeout_s = 1\n", "io_timeout_s = 4\n"
    )  # a restart may take its time
    host.config.write_text(f'{slow}\n[sanlock]\nsocket = "{place}/sanlock.sock"\n')
    host.start()
    host.says("joined as host_id")
    return host


@pytest.fixture
def disk(host: Holdfastd, place: Path) -> Path:
    """Its lease has been made: a client makes none."""
    (place / "images").mkdir()
    disk = make_disk(place / "images")
    host.end_vm(host.vm([disk], name="first"))
    wait_until(lambda: host.cli_json("list") == [], "the lease to be free")
    return disk


@pytest.fixture
def client(place: Path, host: Holdfastd) -> Iterator[Process]:
    process = Process(place / "sanlock.sock")
    yield process
    process.close()


def lease_of(place: Path, disk: Path, flags: int) -> Resource:
    name = lease_name(Key("", str(disk)), NameBy.PATH_MD5, DiskIdentity())
    return Resource.of(SPACE, name, Disk(f"{place}/leases/{name}", 0), flags=flags)


def killed_without_journal(host: Holdfastd) -> None:
    host.kill(signal.SIGKILL)
    (host.run_dir / "journal").unlink()
    host.start()
    host.says("gone on with as")


def leases(host: Holdfastd) -> list[dict[str, Any]]:
    """Of clients, without the placeholder for what nobody can list."""
    return [each for each in host.cli_json("list") if each["lockspace"].startswith("sanlock:")]


def is_orphan(host: Holdfastd) -> bool:
    """Whether there is one lease, which is held and belongs to no process."""
    return [(each["pid"], each["held"]) for each in leases(host)] == [(0, True)]


@pytest.mark.parametrize("mode", [0, ResourceFlag.SHARED])
def test_an_orphan_that_the_journal_has_lost_stays_held_over_every_restart(
    host: Holdfastd, disk: Path, client: Process, place: Path, mode: int
) -> None:
    lease = lease_of(place, disk, ResourceFlag.PERSISTENT | mode)
    assert client.client.result(r.Acquire(0, r.OWN, (lease,))) == Result.OK
    killed_without_journal(host)
    wait_until(lambda: len(leases(host)) == 1, "the lease to be found")
    client.close()
    wait_until(lambda: is_orphan(host), "the end of the client to be seen")
    assert "is locked by" in refusal(host, disk)
    host.kill(signal.SIGKILL)
    host.start()
    wait_until(lambda: is_orphan(host), "the lease to be held again")
    assert "is locked by" in refusal(host, disk)
    assert "LOST" not in host.log_text()


def test_an_orphan_is_let_go_neither_by_a_proof_nor_for_a_vm_of_its_disk(
    host: Holdfastd, disk: Path, client: Process, place: Path
) -> None:
    """The journal, and with it the orphan, was lost after its client's end."""
    lease = lease_of(place, disk, ResourceFlag.PERSISTENT)
    assert client.client.result(r.Acquire(0, r.OWN, (lease,))) == Result.OK
    client.close()
    wait_until(lambda: is_orphan(host), "the orphan")
    killed_without_journal(host)
    wait_until(lambda: len(leases(host)) == 1, "the lease to be found")
    assert "is locked by" in refusal(host, disk)
    (number,) = [each["number"] for each in leases(host)]
    assert host.cli("settle", str(number), "--operator", "me").returncode == 0
    wait_until(lambda: refusal(host, disk) == "", "the lease to be free, by an operator's word")


def test_a_lease_that_ends_with_its_client_does_so_without_the_journal(
    host: Holdfastd, disk: Path, client: Process, place: Path
) -> None:
    lease = lease_of(place, disk, 0)
    assert client.client.result(r.Acquire(AcquireFlag.OWNER_NOWAIT, r.OWN, (lease,))) == Result.OK
    killed_without_journal(host)
    wait_until(lambda: len(leases(host)) == 1, "the lease to be found")
    assert "is locked by" in refusal(host, disk)
    client.close()
    wait_until(lambda: refusal(host, disk) == "", "its end")


def test_a_lease_that_clients_share_outlives_each_of_them_without_the_journal(
    host: Holdfastd, disk: Path, client: Process, place: Path
) -> None:
    """Its note names one of them; nobody knows of the other."""
    lease = lease_of(place, disk, ResourceFlag.SHARED)
    assert client.client.result(r.Acquire(0, r.OWN, (lease,))) == Result.OK
    killed_without_journal(host)
    wait_until(lambda: len(leases(host)) == 1, "the lease to be found")
    client.close()
    wait_until(lambda: is_orphan(host), "the end of the client to be seen")
    assert "is locked by" in refusal(host, disk)

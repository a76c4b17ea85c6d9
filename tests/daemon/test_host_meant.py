"""`holdfast host fenced NAME` with real daemons: a name means one host, or none is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.conftest import MakeHost
from tests.daemon.test_host_records import ONE, TWO, says
from tests.daemon.test_leases import joined
from tests.support.daemon import called, make_disk, refusal
from tests.support.leases import SPACE
from tests.support.polling import wait_until

from holdfast.testing.virtlockd_client import SHARED

DOE = ("--operator", "J. Doe")


@pytest.mark.parametrize("records", [True, False])
def test_host_that_is_off_is_found_by_its_whole_name_and_no_other_is_touched(
    make_host: MakeHost, leases: Path, place: Path, records: bool
) -> None:
    one, two, three = make_host("one", 1), make_host("two", 2), make_host("three", 3)
    for host_id, (host, node) in enumerate(((one, ONE), (two, TWO), (three, "watcher")), 1):
        says(host.start(preexec_fn=called(node)), leases, host_id)
    disks = make_disk(place, "one.img"), make_disk(place, "two.img")
    for host, disk in zip((one, two), disks, strict=True):
        host.vm([disk], name="vm")
        wait_until(lambda disk=disk: "alive" in refusal(three, disk), "the holder to be seen")  # type: ignore[misc]
    if not records:
        for host_id in (1, 2):
            (leases / f"{SPACE}.host-{host_id}").unlink()
    for host in (one, two):
        host.kill()  # before its VM: nothing is given back
        host.stop_all()
        host.pids.clear()
    result = three.cli("host", "fenced", TWO, *DOE, "--wait")
    assert result.returncode == 0, result.stderr
    assert "(host_id 2)" in result.stdout
    assert "(host_id 1)" not in result.stdout
    assert refusal(three, disks[1]) == ""
    recorded = (three.directory / "state" / "broken-leases.log").read_text()
    assert str(disks[1]) in recorded
    assert str(disks[0]) not in recorded


def test_name_that_two_hosts_have_is_refused_with_their_ids(
    make_host: MakeHost, leases: Path, place: Path
) -> None:
    one, two, three = make_host("one", "auto"), make_host("two", "auto"), make_host("three", 9)
    one.start(preexec_fn=called("localhost")).says("joined as host_id 1")
    two.start(preexec_fn=called("localhost")).says("joined as host_id 2")
    joined(three.start(preexec_fn=called("watcher")))
    disk, shared = make_disk(place), make_disk(place, "shared.img")
    two.vm([disk], name="vm")
    for host in (one, two):
        host.vm([shared], name="reader", flags=SHARED)
    wait_until(lambda: "alive" in refusal(three, disk), "the holder to be seen")
    broken = three.cli("break", str(shared), "--attest-off", "localhost", *DOE)
    assert broken.returncode != 0
    assert "localhost may be " in broken.stderr
    two.kill()
    two.stop_all()
    two.pids.clear()
    # One alone holds this one, but the other host of that name may be the one that is off.
    broken = three.cli("break", str(disk), "--attest-off", "localhost", *DOE)
    assert broken.returncode == 75
    assert "host_id 1 of lockspace" in broken.stderr
    assert "host_id 2 of lockspace" in broken.stderr
    assert "say the host id of the one that is meant" in broken.stderr
    result = three.cli("host", "fenced", "localhost", *DOE)
    assert result.returncode == 75
    assert "host_id 1 of lockspace" in result.stderr
    assert "host_id 2 of lockspace" in result.stderr
    result = three.cli("host", "fenced", "2", *DOE, "--wait")
    assert result.returncode == 6, "what the living namesake shares stays"
    assert refusal(three, disk) == ""

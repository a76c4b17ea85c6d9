"""`holdfast host fenced`: all leases of a host that somebody has switched off, freed at once; never of one that renews."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.daemon.conftest import IO_TIMEOUT_S, MakeHost
from tests.daemon.test_leases import DEAD_S, joined, on_device
from tests.support.daemon import Holdfastd, exists, make_disk, refusal
from tests.support.leases import SPACE, lease_file, make_lockspace
from tests.support.polling import wait_until

from holdfast.ondisk import delta
from holdfast.ondisk.delta import FLAG_NO_TIMEOUT, DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.host_block import NO_MODE, HostBlock
from holdfast.testing.virtlockd_client import SHARED

DOE = ("--operator", "J. Doe")


def pair(make_host: MakeHost) -> tuple[Holdfastd, Holdfastd]:
    alpha, beta = make_host("alpha", 1).start(), make_host("beta", 2).start()
    return joined(alpha), joined(beta)


def block_of_one(leases: Path, disk: Path) -> HostBlock:
    """What host 1 has on a lease."""
    raw = lease_file(leases, disk).read_bytes()
    at = DEFAULT.host_block_offset_bytes(1)
    block = HostBlock.decode(raw[at : at + DEFAULT.sector_bytes])
    assert isinstance(block, HostBlock)
    return block


def test_host_that_renews_and_this_very_host_are_not_off_whatever_anybody_says(
    make_host: MakeHost, place: Path
) -> None:
    alpha, beta = pair(make_host)
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    wait_until(lambda: "alive" in refusal(beta, disk), "beta to see alpha")
    result = beta.cli("host", "fenced", "1", *DOE)
    assert (result.returncode, "a host that renews is not off" in result.stderr) == (75, True)
    assert "it has to be silent for" in result.stderr
    waited = beta.cli("host", "fenced", "1", *DOE, "--wait", "--json")
    assert waited.returncode == 75
    (host,) = json.loads(waited.stdout)
    assert host["refused"] == "it goes on renewing: it is not off"
    assert host["leases"] == []
    assert "waiting for silence" in waited.stderr
    own = alpha.cli("host", "fenced", "1", *DOE)
    assert (own.returncode, "is this very host" in own.stderr) == (75, True)
    unknown = beta.cli("host", "fenced", "gamma", *DOE)
    assert (unknown.returncode, "host 'gamma' is in no lockspace" in unknown.stderr) == (4, True)
    nowhere = beta.cli("host", "fenced", "1", *DOE, "--lockspace", "other")
    assert (nowhere.returncode, f"known: {SPACE}" in nowhere.stderr) == (75, True)
    assert beta.cli("host", "fenced", "1").returncode == 2
    assert exists(vm)
    assert refusal(beta, disk)
    assert not (beta.directory / "state" / "broken-leases.log").exists()


@pytest.mark.parametrize("device", [False, True])
def test_leases_of_a_host_that_is_off_are_free_before_the_dead_bound_and_no_others(
    make_host_by_path: MakeHost, place: Path, leases: Path, device: bool
) -> None:
    if device:
        make_lockspace(leases / SPACE, index_entries=8)
    hosts = [make_host_by_path(name, number) for number, name in enumerate(("alpha", "beta", "gamma"), 1)]
    for host in hosts:
        if device:
            on_device(host, leases)
        host.start()
    alpha, beta, gamma = map(joined, hosts)
    web, shared, both, theirs = (make_disk(place, f"{n}.img") for n in ("web", "shared", "both", "theirs"))
    vms = [
        alpha.vm([web], name="web1"),
        alpha.vm([shared], name="reader1", flags=SHARED),
        alpha.vm([both], name="reader2", flags=SHARED),
    ]
    gamma.vm([both], name="reader3", flags=SHARED)
    kept = gamma.vm([theirs], name="web4")
    for disk in (web, shared, both, theirs):
        wait_until(lambda disk=disk: "alive" in refusal(beta, disk), "beta to see the holders")  # type: ignore[misc]
    with beta.admin() as admin:
        (name,) = (h.name for h in admin.lease_spaces()[0].hosts if h.host_id == 1)
    if not device:
        (leases / "README").write_text("not a lease")
    before = None if device else block_of_one(leases, shared)
    alpha.kill()
    for vm in vms:
        alpha.end_vm(vm)
    died = time.monotonic()
    result = beta.cli("host", "fenced", name, *DOE, "--wait", "--json")
    took_s = time.monotonic() - died
    assert result.returncode == 6, result.stderr  # one is shared by a host that lives
    assert 3 * IO_TIMEOUT_S - 2 <= took_s < DEAD_S - 2 * IO_TIMEOUT_S
    (host,) = json.loads(result.stdout)
    assert (host["lockspace"], host["host_id"], host["host_name"], host["refused"]) == (SPACE, 1, name, "")
    by_disk = {each["resource"]: each for each in host["leases"]}
    assert set(by_disk) == {str(web), str(shared), str(both)}
    assert by_disk[str(web)]["freed"]
    assert "attested to be off, unchanged for" in by_disk[str(web)]["detail"]
    assert by_disk[str(shared)]["freed"]
    assert not by_disk[str(both)]["freed"]
    assert "VM reader3" in by_disk[str(both)]["detail"]
    if before is not None:
        # Its promises stand; only its hold is gone.
        assert block_of_one(leases, shared) == replace(before, mode=NO_MODE)
        assert before.mode.is_shared
    # At once, for any host and alone, although the dead bound is yet to come.
    assert refusal(gamma, web) == ""
    assert refusal(gamma, shared) == ""
    assert time.monotonic() - died < DEAD_S - 2 * IO_TIMEOUT_S
    assert "VM reader3" in refusal(beta, both)
    assert "VM web4" in refusal(beta, theirs)
    assert exists(kept)
    lines = [
        json.loads(line) for line in (beta.directory / "state" / "broken-leases.log").read_text().splitlines()
    ]
    assert lines[0]["what"] == "host ordered"
    assert sorted(line["what"] for line in lines[1:]) == ["broken", "broken", "refused"]
    assert {line["operator"] for line in lines} == {"J. Doe"}
    events = [json.loads(line) for line in beta.cli("events", "--json").stdout.splitlines()]
    assert sum(event["kind"] == "lease-broken" for event in events) == 2
    (fenced,) = [event for event in events if event["kind"] == "host-fenced"]
    assert "2 leases freed, 1 not" in fenced["detail"]
    # Said again: what it has left is that one lease; and when it is dead, or back, it is no news either.
    again = beta.cli("host", "fenced", "1", *DOE)
    assert "both.img" in again.stdout
    assert "web.img" not in again.stdout


def record_of(leases: Path, host_id: int) -> DeltaLease:
    at = DEFAULT.delta_offset_bytes(host_id)
    record = DeltaLease.decode((leases / SPACE).read_bytes()[at : at + DEFAULT.sector_bytes])
    assert isinstance(record, DeltaLease), record
    return record


def test_host_that_is_off_is_marked_as_dead_where_the_format_has_a_mark(
    make_host_by_path: MakeHost, place: Path, leases: Path
) -> None:
    """In a lockspace of sanlock 4 and later: hosts with sanlock then free its leases too."""
    make_lockspace(leases / SPACE, version=delta.VERSION_5, flags=FLAG_NO_TIMEOUT)
    alpha, beta = pair(make_host_by_path)
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    wait_until(lambda: "alive" in refusal(beta, disk), "beta to see alpha")
    alpha.kill()
    alpha.end_vm(vm)
    before = record_of(leases, 1)
    time.sleep(DEAD_S + 1)
    assert "never expire by time" in refusal(beta, disk)
    assert "never expire by time" in beta.cli("who", str(disk)).stdout
    result = beta.cli("host", "fenced", "1", *DOE, "--wait", "--json")
    assert result.returncode == 0, result.stderr
    (host,) = json.loads(result.stdout)
    assert host["mark"] == "marked as dead (DEAD_EXT) for all hosts"
    assert [each["freed"] for each in host["leases"]] == [True]
    assert record_of(leases, 1) == before.marked_dead(2, record_of(leases, 2).generation)
    assert refusal(beta, disk) == ""
    log = (beta.directory / "state" / "broken-leases.log").read_text()
    assert "marked as dead" in log
    # It comes back: not before its dead bound has passed, and without the mark.
    begun = time.monotonic()
    alpha.start()
    wait_until(lambda: not record_of(leases, 1).is_marked_dead, "alpha to claim its id")
    assert time.monotonic() - begun > DEAD_S - 1
    assert record_of(leases, 1).generation > before.generation


def test_host_that_finds_itself_marked_as_dead_stops_its_vms_at_once_and_leaves_the_mark(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    make_lockspace(leases / SPACE, version=delta.VERSION_4)
    alpha, beta = pair(make_host)
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    wait_until(lambda: "alive" in refusal(beta, disk), "beta to see alpha")

    generation = record_of(leases, 1).generation

    def stands() -> bool:
        # A renewal that is just being written may take the mark away, as it may any other host's.
        if not record_of(leases, 1).is_marked_dead:
            write_record(leases, record_of(leases, 1).marked_dead(2, 1))
        return not exists(vm)

    wait_until(stands, "the VM to be stopped")
    # The VM is stopped first, and logged then.
    alpha.says(f"host_id 2 has marked generation {generation} of this host as dead (DEAD_EXT)")
    assert record_of(leases, 1).is_marked_dead
    assert refusal(beta, disk) == ""


def write_record(leases: Path, record: DeltaLease) -> None:
    with (leases / SPACE).open("r+b") as f:
        f.seek(DEFAULT.delta_offset_bytes(record.owner_id))
        f.write(record.sector())

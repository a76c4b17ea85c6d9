"""The real daemon with `driver = "paxos"`: two hosts of one lockspace, their restarts, deaths and losses.

io_timeout 1 and fire timeout 6: a lease fails at 8 s, and may be taken over 14 s after its last renewal was seen.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from tests.daemon.conftest import FIRE_TIMEOUT_S, IO_TIMEOUT_S, MakeHost
from tests.support.daemon import Holdfastd, exists, make_disk, refusal
from tests.support.leases import SPACE, lease_file, leases_in, make_lockspace
from tests.support.polling import wait_until

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.testing.virtlockd_client import SHARED

FAIL_S, DEAD_S = 8 * IO_TIMEOUT_S, 8 * IO_TIMEOUT_S + FIRE_TIMEOUT_S


def joined(host: Holdfastd) -> Holdfastd:
    wait_until(lambda: "generation" in host.log_text(), "the lockspace to be joined")
    return host


def record(leases: Path, host_id: int) -> DeltaLease:
    with (leases / SPACE).open("rb") as f:
        f.seek(DEFAULT.delta_offset_bytes(host_id))
        found = DeltaLease.decode(f.read(512))
    assert isinstance(found, DeltaLease)
    return found


def test_start_before_the_lockspace_is_joined_is_refused_while_other_backends_serve(
    make_host: MakeHost, place: Path
) -> None:
    (place / "local").mkdir()
    alpha = make_host("alpha", 1).start()
    text = refusal(alpha, make_disk(place))
    assert f"this host is not in lockspace {SPACE} now: joining" in text
    assert refusal(alpha, make_disk(place / "local")) == ""
    joined(alpha)
    assert refusal(alpha, place / "disk.img") == ""
    assert " s left" in text or "joining" in text


def test_refused_start_names_vm_host_and_id_of_the_other_host(make_host: MakeHost, place: Path) -> None:
    alpha, beta = make_host("alpha", 1).start(), make_host("beta", 2).start()
    disk = make_disk(place)
    joined(alpha), joined(beta)
    vm = alpha.vm([disk], name="web1")
    text = wait_until(lambda: refusal(beta, disk), "a refusal")
    assert "is locked by VM web1" in text
    assert f"on host {os.uname().nodename}." in text
    assert "(host_id 1)" in text
    alpha.end_vm(vm)
    wait_until(lambda: refusal(beta, disk) == "", "the lease to be free")


def test_lockspace_is_left_at_stop_when_nobody_rests_on_it(make_host: MakeHost, leases: Path) -> None:
    alpha = joined(make_host("alpha", 1).start())
    before = record(leases, 1)
    assert not before.is_free
    assert alpha.kill(signal.SIGTERM) == 0
    assert record(leases, 1).is_free
    assert record(leases, 1).generation == before.generation


@pytest.mark.parametrize("how", ["kill", "stop", "reexec"])
def test_leases_go_on_over_a_restart_in_the_same_term(
    make_host: MakeHost, place: Path, leases: Path, how: str
) -> None:
    alpha, beta = make_host("alpha", 1).start(), make_host("beta", 2).start()
    disk = make_disk(place)
    joined(alpha), joined(beta)
    vm = alpha.vm([disk], name="web1")
    generation = record(leases, 1).generation
    if how == "reexec":
        alpha.reexec()
    else:
        alpha.kill(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        alpha.start()
    alpha.says(f"gone on with as host_id 1, generation {generation}")
    assert record(leases, 1).generation == generation
    until = time.monotonic() + DEAD_S + 2
    while time.monotonic() < until:
        assert refusal(beta, disk)
        time.sleep(0.5)
    assert exists(vm)
    assert alpha.holders(disk) == [("web1", vm, True)]
    alpha.end_vm(vm)
    wait_until(lambda: refusal(beta, disk) == "", "the lease to be free")


def test_dead_host_is_taken_over_after_the_bound_and_not_before(make_host: MakeHost, place: Path) -> None:
    alpha, beta = make_host("alpha", 1).start(), make_host("beta", 2).start()
    disk = make_disk(place)
    joined(alpha), joined(beta)
    vm = alpha.vm([disk], name="web1")
    wait_until(lambda: refusal(beta, disk), "a refusal")
    renewed = record_time = time.monotonic()
    alpha.kill()
    alpha.end_vm(vm)
    text = ""
    while answer := refusal(beta, disk):
        text = answer
        time.sleep(0.1)
        assert time.monotonic() < record_time + DEAD_S + 10, text
    took_s = time.monotonic() - renewed
    assert "its leases can be taken over in" in text
    # It was renewed up to one interval before it was killed, and seen up to one interval later.
    assert DEAD_S - 2 * IO_TIMEOUT_S < took_s < DEAD_S + 3 * 2 * IO_TIMEOUT_S


def test_host_that_was_suspended_beyond_its_lease_stops_its_vms_and_joins_again(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    (place / "local").mkdir()
    alpha = joined(make_host("alpha", 1).start())
    disk, local = make_disk(place), make_disk(place / "local")
    vm, other = alpha.vm([disk], name="web1"), alpha.vm([local], name="local1")
    first = record(leases, 1).generation
    os.kill(alpha.pid, signal.SIGSTOP)
    time.sleep(FAIL_S + 1)
    assert exists(vm)
    os.kill(alpha.pid, signal.SIGCONT)
    wait_until(lambda: not exists(vm), "the VM to be stopped")
    assert exists(other)
    wait_until(lambda: record(leases, 1).generation > first, "the lockspace to be joined again")
    wait_until(lambda: refusal(alpha, disk) == "", "the disk to be had again")
    kinds = [e["kind"] for e in map(json.loads, alpha.cli("events", "--json").stdout.splitlines())]
    assert kinds.index("lockspace-lost") < kinds.index("lease-lost") < kinds.index("owner-died")


def test_host_that_was_suspended_until_another_took_over_leaves_the_others_lease_alone(
    make_host_by_path: MakeHost, place: Path, leases: Path
) -> None:
    alpha, beta = make_host_by_path("alpha", 1).start(), make_host_by_path("beta", 2).start()
    joined(alpha), joined(beta)
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    first = record(leases, 1).generation
    os.kill(alpha.pid, signal.SIGSTOP)
    wait_until(lambda: refusal(beta, disk) == "", "beta to take over")
    os.kill(vm, signal.SIGKILL)  # as the watchdog has done by then
    taken = beta.vm([disk], name="web2")
    (lease,) = leases_in(leases)
    before = lease.read_bytes()
    os.kill(alpha.pid, signal.SIGCONT)
    wait_until(lambda: record(leases, 1).generation > first, "the lockspace to be joined again")
    text = wait_until(lambda: refusal(alpha, disk), "a refusal")
    assert "VM web2" in text or "not in lockspace" in text
    wait_until(lambda: "VM web2" in refusal(alpha, disk), "alpha to name the holder")
    # Its attempts were refused before it wrote anything but its own block.
    assert lease.read_bytes()[: 2 * 512] == before[: 2 * 512]
    assert beta.holders(disk) == [("web2", taken, True)]
    assert exists(taken)


def test_vms_of_a_term_that_can_not_be_gone_on_with_are_stopped(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    alpha = joined(make_host("alpha", 1).start())
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    first = record(leases, 1).generation
    alpha.kill()
    time.sleep(FAIL_S + 1)
    alpha.start()
    wait_until(lambda: not exists(vm), "the VM to be stopped")
    alpha.says("its last renewal is")
    wait_until(lambda: refusal(alpha, disk) == "", "the disk to be had again")
    assert record(leases, 1).generation > first


def test_two_hosts_with_one_id_are_told_by_name(make_host: MakeHost) -> None:
    joined(make_host("alpha", 1).start())
    beta = make_host("beta", 1).start()
    beta.says("host id 1 of lockspace __LIBVIRT__DISKS__ is held by host")


def test_host_id_is_found_and_kept(make_host: MakeHost, leases: Path) -> None:
    alpha = joined(make_host("alpha", "auto").start())
    first = record(leases, 1)
    assert not first.is_free
    alpha.kill(signal.SIGTERM)
    alpha.start()
    wait_until(
        lambda: record(leases, 1).generation > first.generation and not record(leases, 1).is_free,
        "id 1 again",
    )
    # Another machine that has the same name, and remembers nothing.
    beta = make_host("beta", "auto").start()
    beta.says("host id 1 of lockspace __LIBVIRT__DISKS__ is held by host")
    beta.says("it has the same name as this host, or is its clone")
    beta.says("joined as host_id 2")
    assert not record(leases, 1).is_free


def test_lockspace_that_is_not_there_yet_is_joined_when_it_comes(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    (leases / SPACE).unlink()
    alpha = make_host("alpha", 1).start()
    alpha.says("No such file or directory")
    disk = make_disk(place)
    wait_until(lambda: "No such file" in refusal(alpha, disk), "a refusal between two attempts to join")
    make_lockspace(leases / SPACE)
    joined(alpha)
    assert refusal(alpha, place / "disk.img") == ""


def test_operator_sees_leaves_and_joins_lockspaces(
    make_host_by_path: MakeHost, place: Path, leases: Path
) -> None:
    alpha = make_host_by_path("alpha", 1).start()
    listed = alpha.cli("lockspace", "list")
    assert (listed.returncode == 0) is (": joined" in listed.stdout), "6 as long as it is not"
    joined(alpha)
    listed = alpha.cli("lockspace", "list")
    assert listed.returncode == 0
    first = record(leases, 1).generation
    assert f"joined as host_id 1 generation {first}, 0 leases" in listed.stdout
    assert 'NOT FENCED (watchdog = "none")' in listed.stdout
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    refused = alpha.cli("lockspace", "leave", SPACE)
    assert (refused.returncode, "1 leases of lockspace" in refused.stderr) == (75, True)
    alpha.end_vm(vm)
    wait_until(lambda: not alpha.holders(disk), "the release")
    assert alpha.cli("lockspace", "leave", SPACE).returncode == 0
    assert record(leases, 1).is_free
    assert "left" in refusal(alpha, disk)
    again = alpha.cli("lockspace", "join", SPACE)
    assert again.returncode == 0
    assert "settles, " in again.stdout
    second = record(leases, 1).generation
    assert second > first
    assert f"joined as host_id 1 generation {second}" in again.stdout
    (answer,) = alpha.cli_json("lockspace", "list")
    assert (answer["name"], answer["state"]) == (SPACE, "joined")


def test_collection_takes_out_what_nobody_holds_and_nothing_else(
    make_host_by_path: MakeHost, place: Path, leases: Path
) -> None:
    alpha, beta = make_host_by_path("alpha", 1).start(), make_host_by_path("beta", 2).start()
    joined(alpha), joined(beta)
    mine, theirs, free = (make_disk(place, f"{name}.img") for name in ("mine", "theirs", "free"))
    alpha.vm([mine], name="web1")
    beta.vm([theirs], name="web2")
    assert refusal(beta, free) == ""
    wait_until(lambda: "alive" in refusal(alpha, theirs), "alpha to see beta")
    before = leases_in(leases)
    looked = alpha.cli("lease", "gc", "--dry-run")
    assert "1 of 3 leases could be taken out" in looked.stdout
    assert leases_in(leases) == before
    answer = {each["kept_because"] for each in alpha.cli_json("lease", "gc")}
    assert len(answer) == 3
    assert "held here" in answer
    assert "" in answer
    assert any("VM web2" in why for why in answer)
    assert len(leases_in(leases)) == len(before) - 1
    assert refusal(beta, mine)
    assert refusal(alpha, theirs)
    assert refusal(alpha, free) == ""


def on_device(host: Holdfastd, leases: Path) -> None:
    text = host.config.read_text()
    host.config.write_text(
        text.replace(f'directory = "{leases}"', f'device = "{leases / SPACE}"').replace(
            "cross_host = true\n", ""
        )
    )


def test_collection_wins_back_the_place_of_a_lease_on_which_a_late_leader_landed(
    make_host_by_path: MakeHost, place: Path, leases: Path
) -> None:
    make_lockspace(leases / SPACE, index_entries=1)
    alpha, beta = make_host_by_path("alpha", 1), make_host_by_path("beta", 2)
    for host in (alpha, beta):
        on_device(host, leases)
        joined(host.start())
    disk = make_disk(place)
    assert refusal(beta, disk) == ""
    at = 3 * DEFAULT.align_bytes
    with (leases / SPACE).open("rb") as f:
        late = os.pread(f.fileno(), DEFAULT.sector_bytes, at)
    assert alpha.cli("lease", "gc").returncode == 0
    with (leases / SPACE).open("r+b") as f:
        os.pwrite(f.fileno(), late, at)
    assert "'holdfast lease gc' frees some" in refusal(alpha, disk)
    assert "1 of 1 leases could be taken out" in alpha.cli("lease", "gc", "--dry-run").stdout
    (gone,) = alpha.cli_json("lease", "gc")
    assert f"at {at}, which its name does not lead to" in gone["name"]
    assert gone["kept_because"] == ""
    assert refusal(beta, disk) == refusal(alpha, disk) == ""


@pytest.mark.parametrize("device", [False, True])
def test_who_names_the_holder_across_hosts_and_from_storage_alone(
    make_host: MakeHost, place: Path, leases: Path, device: bool
) -> None:
    if device:
        make_lockspace(leases / SPACE, index_entries=4)
    alpha, beta = make_host("alpha", 1), make_host("beta", 2)
    for host in (alpha, beta):
        if device:
            on_device(host, leases)
        joined(host.start())
    disk, reader = make_disk(place), make_disk(place, "shared.img")
    assert beta.cli("who", str(disk)).returncode == 3
    alpha.vm([disk], name="web1")
    alpha.vm([reader], name="reader1", flags=SHARED)
    wait_until(lambda: "alive" in refusal(beta, disk), "beta to see alpha")
    here = alpha.cli("who", str(disk))
    assert (here.returncode, "held by web1" in here.stdout) == (0, True)
    wait_until(lambda: ", alive " in beta.cli("who", str(disk)).stdout, "beta's daemon to see alpha renew")
    there = beta.cli("who", str(disk))
    assert there.returncode == 0
    assert "held by VM web1" in there.stdout
    assert "(host_id 1)" in there.stdout
    assert "VM reader1" in beta.cli("who", str(reader)).stdout
    file = lease_file(leases, disk)
    path = leases / SPACE if device else file
    dumped = beta.cli("lease", "dump", str(path), "--lockspace-path", str(leases / SPACE)).stdout
    assert f"lease {SPACE}:{file.name}" in dumped
    assert "exclusive, VM web1)" in dumped
    assert f"  disk {disk}\n" in dumped
    beta.kill()
    alone = beta.cli("who", str(disk))
    assert alone.returncode == 0
    assert "held by VM web1" in alone.stdout
    assert "one look can't tell whether that host lives" in alone.stdout


def test_lease_is_broken_with_a_proof_or_a_named_persons_word_and_that_is_recorded(
    make_host: MakeHost, place: Path
) -> None:
    alpha, beta = make_host("alpha", 1).start(), make_host("beta", 2).start()
    joined(alpha), joined(beta)
    disk, free = make_disk(place), make_disk(place, "free.img")
    vm = alpha.vm([disk], name="web1")
    wait_until(lambda: "alive" in refusal(beta, disk), "beta to see alpha")
    assert "is free: nobody held it" in beta.cli("break", str(free)).stdout
    assert "locked by VM web1" in alpha.cli("break", str(disk)).stderr
    word = ("--attest-off", "1", "--operator", "J. Doe")
    alive = beta.cli("break", str(disk), *word)
    assert (alive.returncode, "VM web1" in alive.stderr) == (75, True)
    assert "not proven to be off" in alive.stderr
    alpha.kill()
    alpha.end_vm(vm)
    died = time.monotonic()
    assert beta.cli("break", str(disk)).returncode == 75
    assert "give a name" in beta.cli("break", str(disk), "--attest-off", "1").stderr
    assert (
        "host 7 is not on it" in beta.cli("break", str(disk), "--attest-off", "7", "--operator", "x").stderr
    )
    wait_until(
        lambda: beta.cli("break", str(disk), *word).returncode == 0, "it to be silent for 3 io_timeouts"
    )
    assert 3 * IO_TIMEOUT_S - 2 <= time.monotonic() - died < DEAD_S - 2 * IO_TIMEOUT_S
    beta.vm([disk], name="web2")
    lines = [
        json.loads(line) for line in (beta.directory / "state" / "broken-leases.log").read_text().splitlines()
    ]
    assert [line["what"] for line in lines][:2] == ["ordered", "broken"]
    assert lines[-1]["what"] == "broken"
    assert lines[-1]["operator"] == "J. Doe"
    assert "attested to be off, unchanged for" in lines[-1]["detail"]
    assert "lease-broken" in beta.cli("events").stdout


def test_lease_that_a_killed_daemon_had_not_written_down_is_free_when_nobody_has_its_disk(
    make_host_by_path: MakeHost, place: Path
) -> None:
    alpha, beta = make_host_by_path("alpha", 1).start(), make_host_by_path("beta", 2).start()
    joined(alpha), joined(beta)
    disk, other = make_disk(place), make_disk(place, "other.img")
    vm = alpha.vm([disk], name="web1")
    alpha.kill()
    alpha.end_vm(vm)
    (alpha.run_dir / "journal").unlink()
    alpha.start()
    alpha.says("settled: no process of this host has its disks open")
    wait_until(lambda: refusal(beta, disk) == "", "the lease to be free")
    kept = alpha.vm([other], name="web2")
    alpha.kill()
    alpha.start()
    time.sleep(2)
    assert refusal(beta, other)
    assert alpha.holders(other) == [("web2", kept, True)]
    alpha.says_once("settled: no process")


def test_owner_of_a_term_that_a_new_lockspace_does_not_know_is_over_after_its_dead_bound(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    alpha, beta = make_host("alpha", 1).start(), make_host("beta", 2).start()
    joined(alpha), joined(beta)
    first = record(leases, 1).generation
    alpha.kill(signal.SIGTERM)
    alpha.start()
    wait_until(
        lambda: record(leases, 1).generation > first and alpha.count("joined as") == 2, "the second term"
    )
    second = record(leases, 1).generation
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    alpha.kill()
    alpha.end_vm(vm)
    (leases / SPACE).unlink()
    make_lockspace(leases / SPACE)
    alpha.start()
    wait_until(lambda: record(leases, 1).timestamp and record(leases, 2).timestamp, "both to have joined it")
    assert record(leases, 1).generation > second
    wait_until(lambda: "can be taken over in" in refusal(beta, disk), "the term to be missed")
    missed = time.monotonic()
    wait_until(lambda: refusal(beta, disk) == "", "the lease to be free")
    assert time.monotonic() - missed >= DEAD_S - 1


def test_leases_on_a_file_system_of_this_host_alone_start_no_vm(make_host: MakeHost, place: Path) -> None:
    alpha = make_host("alpha", 1)
    written = alpha.config.read_text()
    alpha.config.write_text(written.replace("cross_host = true\n", ""))
    joined(alpha.start())
    disk = make_disk(place)
    assert "needs protection level 2 (across hosts) but backend 'leases' gives 1" in refusal(alpha, disk)
    ran = alpha.cli("run", "--disk", str(disk), "--", "true")
    assert ran.returncode != 0
    assert "is local to this host" in ran.stderr
    alpha.config.write_text(written)
    alpha.kill(signal.SIGTERM)
    alpha.start()
    wait_until(lambda: refusal(alpha, disk) == "", "the disk to be had")


def test_collection_goes_through_the_lockspaces_that_can_be_asked(
    make_host_by_path: MakeHost, place: Path, leases: Path
) -> None:
    make_lockspace(leases / "other", name="other")
    alpha = make_host_by_path("alpha", 1)
    table = alpha.config.read_text().split("[backend.leases]")[1].split("[[disk]]")[0]
    alpha.config.write_text(f'{alpha.config.read_text()}\n[backend.a]\nlockspace = "other"\n{table}')
    joined(alpha.start())
    alpha.says("lockspace other: joined as")
    assert refusal(alpha, make_disk(place)) == ""
    assert alpha.cli("lockspace", "leave", "other").returncode == 0
    rows = alpha.cli_json("lease", "gc")
    assert [each["kept_because"] for each in rows if each["backend"] == "leases"] == [""]
    (absent,) = (each for each in rows if each["backend"] == "a")
    assert absent["name"] == "every other lease"
    assert "not in lockspace other now" in absent["kept_because"]
    assert alpha.cli("lockspace", "leave", SPACE).returncode == 0
    assert alpha.cli("lease", "gc").returncode != 0

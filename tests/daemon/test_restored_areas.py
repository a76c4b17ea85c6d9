"""What operators do to lease storage: a lockspace restored from a snapshot or made again, storage without O_DIRECT."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from pathlib import Path

from tests.daemon.conftest import FIRE_TIMEOUT_S, MakeHost
from tests.support.daemon import exists, make_disk, refusal
from tests.support.leases import SPACE, make_lockspace
from tests.support.mounts import mounted
from tests.support.polling import wait_until

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.padded_name import PaddedName

IO_TIMEOUT_S = 1.0
DEAD_S = 14.0
"""8 io_timeouts and the fire timeout of these hosts."""


def test_lockspace_restored_from_a_snapshot_gives_nobody_the_leases_of_a_running_host(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    """Two hosts with one host id and generation were one host for every lease (safety.md A3)."""
    lockspace = leases / SPACE
    before = lockspace.read_bytes()
    alpha, gamma = make_host("alpha", 1).start(), make_host("gamma", "auto")
    alpha.says("generation")
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    with lockspace.open("r+b") as f:
        f.write(before)
    restored = time.monotonic()
    gamma.start()
    gamma.says("joined as host_id")
    while refusal(gamma, disk):
        assert time.monotonic() - restored < 4 * DEAD_S
        if not exists(vm):
            break
        time.sleep(0.1)
    assert not exists(vm), "gamma was granted the disk while the VM of alpha ran"
    wait_until(lambda: not refusal(gamma, disk), "the lease of a host that has ended")


def test_new_host_of_an_id_does_not_get_the_leases_of_the_host_that_had_it(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    """Red before: with the id it took them at once, while the VM ran whose daemon could not notice (ADR 0184)."""
    lockspace = leases / SPACE
    before = lockspace.read_bytes()
    alpha, gamma = make_host("alpha", 1).start(), make_host("gamma", 1)
    alpha.says("generation")
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    alpha.kill()
    with lockspace.open("r+b") as f:
        f.write(before)
    gamma.start()
    gamma.says("joined as host_id 1")
    joined = time.monotonic()
    refused = refusal(gamma, disk)
    assert "of this host's id may be another host" in refused
    assert exists(vm)
    wait_until(lambda: not refusal(gamma, disk), "the dead bound of the id's former host")
    assert time.monotonic() - joined > DEAD_S - 2 * IO_TIMEOUT_S


def test_restored_lease_that_names_a_host_which_has_it_not_is_freed_there(
    make_host_by_path: MakeHost, place: Path, leases: Path
) -> None:
    """Red before: nobody could free it but a restart of that host's daemon."""
    alpha, beta = make_host_by_path("alpha", 1).start(), make_host_by_path("beta", 2).start()
    alpha.says("generation")
    beta.says("generation")
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    (lease,) = (each for each in leases.iterdir() if len(each.name) == 32)
    while_held = lease.read_bytes()
    alpha.end_vm(vm)
    wait_until(lambda: not refusal(beta, disk), "the lease to be free")
    lease.write_bytes(while_held)
    assert "locked by" in refusal(beta, disk)
    wait_until(
        lambda: alpha.cli("lease", "gc").returncode == 0 and not refusal(beta, disk),
        "'lease gc' on the host that the lease names",
    )


def test_owners_get_no_grace_when_another_host_has_the_id(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    alpha = make_host("alpha", 1)
    with_grace = alpha.config.read_text().replace(f"fire_timeout_s = {FIRE_TIMEOUT_S}", "fire_timeout_s = 60")
    alpha.config.write_text(with_grace)
    alpha.start()
    alpha.says("generation")
    vm = alpha.vm([make_disk(place)], name="web1", ignoring=[signal.SIGTERM])
    with (leases / SPACE).open("r+b") as f:
        f.seek(DEFAULT.delta_offset_bytes(1))
        ours = DeltaLease.decode(f.read(DeltaLease.BYTES))
        assert isinstance(ours, DeltaLease)
        theirs = dataclasses.replace(
            ours, generation=ours.generation + 1, host_name=PaddedName.of("beta"), timestamp=5
        )
        f.seek(DEFAULT.delta_offset_bytes(1))
        f.write(theirs.sector())
    wait_until(lambda: not exists(vm), "the VM to be killed")
    alpha.says("SIGKILL")
    assert "SIGTERM" not in alpha.log_text(), "no grace: others may take its disk already"


def test_lockspace_in_use_is_not_made_again(make_host: MakeHost, place: Path, leases: Path) -> None:
    alpha = make_host("alpha", 1).start()
    alpha.says("generation")
    vm = alpha.vm([make_disk(place)], name="web1")
    init = ("lockspace", "init", str(leases / SPACE), "--name", SPACE, "--force", "--io-timeout", "1")
    refused = alpha.cli(*init)
    assert refused.returncode != 0
    assert "(host_id 1) renews there" in refused.stderr
    assert exists(vm)
    alpha.end_vm(vm)
    alpha.kill(signal.SIGTERM)
    assert alpha.cli(*init).returncode == 0, "nobody is in it any more"


def test_storage_that_refuses_o_direct_is_joined_by_an_operators_word_only(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    shutil.rmtree(leases)
    leases.mkdir()
    with mounted(leases, "-t", "ramfs", "none"):
        make_lockspace(leases / SPACE)
        alpha = make_host("alpha", 1).start()
        alpha.says("refuses O_DIRECT")
        disk = make_disk(place)
        assert "page_cache = true" in refusal(alpha, disk)
        alpha.config.write_text(alpha.config.read_text().replace("host_id =", "page_cache = true\nhost_id ="))
        alpha.kill(signal.SIGTERM)
        alpha.start()
        alpha.says("joined as host_id 1")
        vm = alpha.vm([disk], name="web1")
        alpha.config.write_text(alpha.config.read_text().replace("page_cache = true\n", ""))
        alpha.kill()
        alpha.start()
        assert exists(vm), "what runs there already goes on"
        assert [(name, held) for name, _, held in alpha.holders(disk)] == [("web1", True)]
        alpha.stop_all()

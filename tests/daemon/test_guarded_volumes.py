"""driver = "lvm" with a guard over two hosts: daemons, hook, libvirt's calls, leases; lvmlockd and LVM as stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.polling import wait_until
from tests.support.shared_volumes import EX, IO_TIMEOUT_S, SH, Guest, Site, VolumeHost, guarded_site

from holdfast.protocol.timing import Timing

OUT, IN = "migration out", "migration in"
FAIL_S = Timing(IO_TIMEOUT_S).fail_s


def started(activation: str) -> Iterator[Site]:
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    site = guarded_site(place, activation)
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(VolumeHost.starts, (site.h1, site.h2)))
        for host in (site.h1, site.h2):
            is_joined(host)
        yield site
    finally:
        for host in (site.h1, site.h2):
            host.ends()
        shutil.rmtree(place, ignore_errors=True)


def is_joined(host: VolumeHost) -> None:
    wait_until(
        lambda: host.holdfast("lockspace", "list")[0] == 0, f"{host.name} to have joined", timeout_s=60
    )


@pytest.fixture(scope="module")
def exclusive_site() -> Iterator[Site]:
    yield from started("exclusive")


@pytest.fixture(scope="module")
def sharing_site() -> Iterator[Site]:
    yield from started("shared")


@pytest.fixture
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    site = request.getfixturevalue(
        "sharing_site" if "sharing_site" in request.fixturenames else "exclusive_site"
    )
    made = site.guest(request.node.name[:40])
    yield made
    made.ends(site.h1, site.h2)


def guarded(host: VolumeHost, guest: Guest) -> bool:
    """Whether a VM of this host has its guard lease, as `holdfast list` shows it."""
    code, text = host.holdfast("list", "--json")
    assert code == 0, text
    locks = [each for each in json.loads(text) if each["name"] == guest.path and each["held"]]
    return any(each["identity"].startswith("lvm:") and each["backend"] == "san-lvm" for each in locks)


def arrives(guest: Guest, source: VolumeHost, target: VolumeHost) -> None:
    guest.says(source, "running", "booted", OUT)
    assert target.hook("migrate", guest) == ""
    assert target.hook("prepare", guest) == ""
    guest.qemu(target)
    guest.says(target, "paused", "starting up", IN, "prepare")
    guest.says(source, "running", "booted", OUT, "perform3")


def hands_over(guest: Guest, source: VolumeHost, target: VolumeHost) -> None:
    assert guest.asks(source, releases=True) == ""
    guest.says(source, "paused", "migration", OUT, "perform3")
    guest.says(target, "paused", "migration", IN, "finish3")
    guest.says(source, "paused", "migration", OUT, "perform3_done")
    assert guest.asks(target) == ""
    guest.says(target, "running", "migrated")
    guest.is_gone(source)


def test_start_has_both_and_its_end_gives_up_both(exclusive_site: Site, guest: Guest) -> None:
    site = exclusive_site
    guest.starts(site.h1)
    assert site.held(guest) == {1: EX}
    assert guarded(site.h1, guest)
    code, said = site.h2.who(guest.path)
    assert (code, guest.name in said) == (0, True), said
    guest.is_gone(site.h1)
    assert site.held(guest) == {}
    guest.starts(site.h2)
    assert guarded(site.h2, guest)


def test_migration_there_and_back_hands_over_both(exclusive_site: Site, guest: Guest) -> None:
    site = exclusive_site
    guest.starts(site.h1)
    for source, target, number in ((site.h1, site.h2, 2), (site.h2, site.h1, 1)):
        arrives(guest, source, target)
        assert site.held(guest) == {1: SH, 2: SH}
        assert guarded(source, guest)
        hands_over(guest, source, target)
        site.becomes(guest, {number: EX})
        assert guarded(target, guest)


def test_target_waits_for_the_guard_until_its_source_has_completed(
    exclusive_site: Site, guest: Guest
) -> None:
    """RELEASE is answered, and the guard lease stays until the source's QEMU writes no more."""
    site = exclusive_site
    guest.starts(site.h1)
    arrives(guest, site.h1, site.h2)
    assert guest.asks(site.h1, releases=True) == ""
    guest.says(site.h1, "paused", "migration", OUT, "perform3")
    guest.says(site.h2, "paused", "migration", IN, "finish3")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(guest.asks, site.h2)
        wait_until(lambda: guarded(site.h1, guest), "the source to have its guard lease still")
        assert not asked.done()
        guest.says(site.h1, "paused", "migration", OUT, "perform3_done")
        assert asked.result(timeout=60) == ""
    guest.says(site.h2, "running", "migrated")
    guest.is_gone(site.h1)
    site.becomes(guest, {2: EX})


def test_daemons_that_are_killed_lose_no_guard_lease(exclusive_site: Site, guest: Guest) -> None:
    site = exclusive_site
    guest.starts(site.h1)
    site.h1.restarted()
    is_joined(site.h1)
    wait_until(lambda: guarded(site.h1, guest), "the guard lease to be held again", timeout_s=60)
    site.h1.reexec()
    assert guarded(site.h1, guest)
    arrives(guest, site.h1, site.h2)
    site.becomes(guest, {1: SH, 2: SH})
    hands_over(guest, site.h1, site.h2)
    site.becomes(guest, {2: EX})


@pytest.mark.long
def test_guard_comes_and_goes_under_a_running_vm(exclusive_site: Site, guest: Guest) -> None:
    """By a reload: the lease is taken in the background, and is kept for a VM that has it."""
    site = exclusive_site
    config, with_guard = site.h1.config, site.h1.config.read_text()
    config.write_text(with_guard.replace('guard = "san"\n', ""))
    assert site.h1.holdfast("reload")[0] == 0
    guest.starts(site.h1)
    assert site.held(guest) == {1: EX}
    assert not guarded(site.h1, guest)
    config.write_text(with_guard.replace('activation = "exclusive"', 'activation = "shared"'))
    code, said = site.h1.holdfast("reload")
    assert (code != 0, "on all hosts first set activation" in said) == (True, True), said
    config.write_text(with_guard)
    assert site.h1.holdfast("reload")[0] == 0
    wait_until(lambda: guarded(site.h1, guest), "the running VM to get its guard lease", timeout_s=60)
    config.write_text(with_guard.replace('guard = "san"\n', ""))
    assert site.h1.holdfast("reload")[0] == 0
    assert guarded(site.h1, guest), "what it has is kept"
    guest.is_gone(site.h1)
    config.write_text(with_guard)
    assert site.h1.holdfast("reload")[0] == 0
    guest.starts(site.h2)
    assert guarded(site.h2, guest)


def test_activation_changes_under_a_running_vm(exclusive_site: Site, guest: Guest) -> None:
    site = exclusive_site
    config, exclusive = site.h1.config, site.h1.config.read_text()
    guest.starts(site.h1)
    config.write_text(exclusive.replace('activation = "exclusive"', 'activation = "shared"'))
    assert site.h1.holdfast("reload")[0] == 0
    site.becomes(guest, {1: SH})
    assert guarded(site.h1, guest)
    rival = Guest("rival", guest.lv)
    assert "held" in site.h2.refuses(rival), "that host's rule is exclusive still"
    config.write_text(exclusive)
    assert site.h1.holdfast("reload")[0] == 0
    site.becomes(guest, {1: EX})


# --- activation = "shared" ---


def test_guard_alone_refuses_a_second_vm_and_names_the_first(sharing_site: Site, guest: Guest) -> None:
    site = sharing_site
    guest.starts(site.h1)
    site.becomes(guest, {1: SH})
    rival = Guest("rival", guest.lv)
    why = site.h2.refuses(rival)
    assert f"VM {guest.name}" in why
    assert "on host h1" in why
    assert f"held by VM {guest.name}" in site.h1.refuses(rival)
    assert site.held(guest)[1] is SH
    code, said = site.h2.who(guest.path)
    assert (code, f"held by VM {guest.name}" in said, "more" in said.splitlines()[0]) == (0, True, False), (
        said
    )
    guest.is_gone(site.h1)
    assert site.h1.is_active(guest.lv), "all hosts have it active"
    code, said = site.h2.who(guest.path)
    assert (code, "active by lvmlockd on host h1" in said) == (3, True), said
    guest.starts(site.h2)
    assert site.held(guest) == {1: SH, 2: SH}


def test_break_frees_a_guard_lease_with_a_proof_alone(sharing_site: Site, guest: Guest) -> None:
    site = sharing_site
    guest.starts(site.h1)
    code, said = site.h2.holdfast("break", guest.path)
    assert (code != 0, "make it active first" in said) == (True, True), said
    site.h2.refuses(Guest("rival", guest.lv))
    assert site.h2.is_active(guest.lv)
    code, said = site.h2.holdfast("break", guest.path)
    assert (code != 0, "h1" in said) == (True, True), said
    assert guarded(site.h1, guest)
    guest.is_gone(site.h1)
    code, said = site.h2.holdfast("break", guest.path)
    assert (code, "nobody held it" in said) == (0, True), said


def test_migration_flips_nothing_where_all_hosts_have_it_active(sharing_site: Site, guest: Guest) -> None:
    site = sharing_site
    guest.starts(site.h1)
    arrives(guest, site.h1, site.h2)
    hands_over(guest, site.h1, site.h2)
    assert site.held(guest) == {1: SH, 2: SH}
    assert f"VM {guest.name}" in site.h1.refuses(Guest("rival", guest.lv))
    code, said = site.h1.holdfast("volume", "deactivate", guest.path)
    assert (code, site.held(guest)) == (0, {2: SH}), said


def test_guest_that_runs_on_by_itself_keeps_its_guard_lease(sharing_site: Site, guest: Guest) -> None:
    """Row 11a: the target dies after the source's RELEASE, and libvirt never asks again."""
    site = sharing_site
    guest.starts(site.h1)
    arrives(guest, site.h1, site.h2)
    assert guest.asks(site.h1, releases=True) == ""
    guest.says(site.h1, "paused", "migration", OUT, "perform3")
    guest.is_killed(site.h2)
    guest.says(site.h1, "running", "unpaused", OUT, "confirm3_cancelled")
    guest.says(site.h1, "running", "unpaused")
    assert f"VM {guest.name}" in site.h2.refuses(Guest("rival", guest.lv))
    assert guarded(site.h1, guest)


def test_source_writes_again_at_once_when_its_target_has_not_asked(sharing_site: Site, guest: Guest) -> None:
    """Row 11b: with LVM's lock alone it is refused until the target's has died."""
    site = sharing_site
    guest.starts(site.h1)
    arrives(guest, site.h1, site.h2)
    assert guest.asks(site.h1, releases=True) == ""
    guest.says(site.h1, "paused", "migration", OUT, "perform3_done")
    guest.is_killed(site.h2)
    wait_until(lambda: not guarded(site.h1, guest), "the source's guard lease to be given up")
    guest.says(site.h1, "paused", "migration", OUT, "confirm3_cancelled")
    assert guest.asks(site.h1) == ""
    assert site.held(guest) == {1: SH, 2: SH}


def test_restarted_daemon_shares_nothing_before_its_guard_leases_are_held(
    sharing_site: Site, guest: Guest
) -> None:
    site = sharing_site
    guest.starts(site.h1)
    site.h1.restarted()
    assert f"VM {guest.name}" in site.h2.refuses(Guest("rival", guest.lv))
    is_joined(site.h1)
    wait_until(lambda: guest.asks(site.h1) == "", "its VM to be granted again", timeout_s=60)
    assert guarded(site.h1, guest)


@pytest.mark.long
def test_vm_is_stopped_when_its_guards_lockspace_is_lost(sharing_site: Site, guest: Guest) -> None:
    """LVM's lock does not say that another host may take the guard lease over."""
    site = sharing_site
    site.h1.command("virsh", "exit 1")
    guest.starts(site.h1)
    qemu = guest.qemus["h1"]
    os.kill(site.h1.pid, signal.SIGSTOP)
    try:
        time.sleep(FAIL_S + 1)
    finally:
        os.kill(site.h1.pid, signal.SIGCONT)
    wait_until(lambda: qemu.poll() is not None, "its VM to be stopped", timeout_s=60)
    guest.is_gone(site.h1)
    is_joined(site.h1)
    wait_until(
        lambda: site.h2.hook("prepare", guest) == "", "the volume to be had on the other host", timeout_s=60
    )
    assert site.h2.hook("release", guest) == ""

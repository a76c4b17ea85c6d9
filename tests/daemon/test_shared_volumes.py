"""driver = "lvm" over two hosts: the daemon, the hook and libvirt's calls, with lvmlockd and LVM as stand-ins.

Migrations there and back, and cancelled ones, are in tests/e2e/test_shared_volumes.py, with the real libvirt.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.daemon import BIN
from tests.support.json_schema import why_not
from tests.support.polling import wait_until
from tests.support.shared_volumes import EX, SH, Guest, Site, VolumeHost, made_site

ROOT = Path(__file__).parents[2]
OUT, IN = "migration out", "migration in"
Step = Callable[..., None]


@pytest.fixture(scope="module")
def shared_site() -> Iterator[Site]:
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    site = made_site(place)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(VolumeHost.starts, (site.h1, site.h2)))
    yield site
    for host in (site.h1, site.h2):
        host.ends()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    yield shared_site


@pytest.fixture
def guest(site: Site, request: pytest.FixtureRequest) -> Iterator[Guest]:
    made = site.guest(request.node.name[:40])
    yield made
    made.ends(site.h1, site.h2)


def nothing(*_: VolumeHost) -> None:
    """Happens between two steps, which concern these hosts."""


def arrives(site: Site, guest: Guest, source: VolumeHost, target: VolumeHost, step: Step = nothing) -> None:
    """A migration up to its live phase."""
    guest.says(source, "running", "booted", OUT)
    step(source)
    assert target.hook("migrate", guest) == ""
    assert target.hook("prepare", guest) == ""
    assert site.held(guest) == {1: SH, 2: SH}
    assert target.is_active(guest.lv)
    guest.qemu(target)
    guest.says(target, "paused", "starting up", IN, "prepare")
    guest.says(source, "running", "booted", OUT, "perform3")
    step(target)


def migrates(site: Site, guest: Guest, source: VolumeHost, target: VolumeHost, step: Step = nothing) -> None:
    arrives(site, guest, source, target, step)
    assert guest.asks(source, releases=True) == ""
    guest.says(source, "paused", "migration", OUT, "perform3")
    step(source, target)
    guest.says(source, "paused", "migration", OUT, "perform3_done")
    guest.says(target, "paused", "migration", IN, "finish3")
    assert guest.asks(target) == ""
    step(target)
    guest.says(target, "running", "migrated")
    guest.is_gone(source)
    site.becomes(guest, {1 if target is site.h1 else 2: EX})
    assert not source.is_active(guest.lv)


def test_start_refusal_on_both_hosts_and_end(site: Site, guest: Guest) -> None:
    guest.starts(site.h1)
    assert site.held(guest) == {1: EX}
    rival = Guest("rival", guest.lv)
    assert f"{guest.path} is held by host h1, exclusively for 93 s or longer" in site.h2.refuses(rival)
    assert not site.h2.is_active(guest.lv)
    assert f"held by VM {guest.name}" in site.h1.refuses(rival)
    assert site.held(guest) == {1: EX}
    code, text = site.h2.who(guest.path)
    assert code == 0, text
    assert "lease of lvmlockd on host h1 (host_id 1), which writes no VM name, exclusively for 93 s" in text
    guest.is_gone(site.h1)
    assert site.held(guest) == {}
    assert not site.h1.is_active(guest.lv)
    assert site.h2.who(guest.path)[0] == 3, "it is free"
    guest.starts(site.h2)
    assert site.held(guest) == {2: EX}


def test_daemons_are_killed_after_each_step_of_a_migration(site: Site, guest: Guest) -> None:
    def killed(*hosts: VolumeHost) -> None:
        with ThreadPoolExecutor(len(hosts)) as pool:
            list(pool.map(VolumeHost.restarted, hosts))

    guest.starts(site.h1)
    site.h1.reexec()
    migrates(site, guest, site.h1, site.h2, killed)
    killed(site.h2)
    assert guest.asks(site.h2) == ""
    assert f"{guest.path} is held by host h2" in site.h1.refuses(Guest("rival", guest.lv))


def test_release_that_meets_no_daemon_frees_nothing(site: Site, guest: Guest) -> None:
    """Row 3: libvirt logs that, and goes on. The daemon that comes back takes the source's claim for one that departs."""
    guest.starts(site.h1)
    arrives(site, guest, site.h1, site.h2)
    site.h1.kill()
    guest.says(site.h1, "paused", "migration", OUT, "perform3")
    guest.says(site.h2, "paused", "migration", IN, "finish3")
    assert guest.asks(site.h2) == ""
    site.h1.starts()
    assert "host h2" in guest.asks(site.h1)
    rival = Guest("rival", guest.lv)
    assert "held" in site.h1.refuses(rival)
    guest.says(site.h2, "running", "migrated")
    guest.is_gone(site.h1)
    site.becomes(guest, {2: EX})


def test_lvmlockd_that_does_not_answer_refuses_and_deactivates_nothing(site: Site, guest: Guest) -> None:
    """Row 16."""
    guest.starts(site.h1)
    assert guest.asks(site.h1, releases=True) == ""
    socket = site.h1.directory / "lvm" / "lvmlockd.socket"
    away = socket.with_name("away")
    socket.rename(away)
    try:
        site.h1.restarted()
        assert guest.asks(site.h1) != ""
        guest.is_gone(site.h1)
        assert site.h1.is_active(guest.lv)
        assert site.held(guest) == {1: EX}
    finally:
        away.rename(socket)
    site.becomes(guest, {})
    assert not site.h1.is_active(guest.lv)


def test_guest_that_runs_on_by_itself_after_its_release_keeps_its_volume(site: Site, guest: Guest) -> None:
    """Row 11a: the target dies after the source's RELEASE, and libvirt never asks again."""
    guest.starts(site.h1)
    arrives(site, guest, site.h1, site.h2)
    assert guest.asks(site.h1, releases=True) == ""
    guest.says(site.h1, "paused", "migration", OUT, "perform3")
    guest.is_killed(site.h2)
    guest.says(site.h1, "running", "unpaused", OUT, "confirm3_cancelled")
    guest.says(site.h1, "running", "unpaused")
    rival = Guest("rival", guest.lv)
    assert "held" in site.h2.refuses(rival)
    assert f"held by VM {guest.name}" in site.h1.refuses(rival)
    guest.is_gone(site.h2)
    site.becomes(guest, {1: EX})
    assert guest.asks(site.h1) == ""


def test_source_that_asks_again_is_refused_while_its_target_may_write(site: Site, guest: Guest) -> None:
    guest.starts(site.h1)
    arrives(site, guest, site.h1, site.h2)
    assert guest.asks(site.h1, releases=True) == ""
    guest.says(site.h1, "paused", "migration", OUT, "perform3")
    guest.says(site.h2, "paused", "migration", IN, "finish3")
    assert guest.asks(site.h2) == ""
    assert "host h2" in guest.asks(site.h1)
    guest.is_gone(site.h2)
    # Without this it is a source, and its volume is shared again once it has its grant.
    guest.says(site.h1, "paused", "migration", OUT, "confirm3_cancelled")
    assert guest.asks(site.h1) == ""
    site.becomes(guest, {1: EX})


def test_target_of_a_source_that_does_not_share_is_refused(site: Site, guest: Guest) -> None:
    guest.starts(site.h1)
    assert site.h2.hook("migrate", guest) == ""
    assert "does not hand over" in site.h2.refuses(guest)
    assert site.held(guest) == {1: EX}
    assert not site.h2.is_active(guest.lv)


def test_program_is_a_user_of_the_volume_until_it_ends(site: Site, guest: Guest) -> None:
    assert site.h1.inside("lvchange", "-aey", f"vg/{guest.lv}").communicate(timeout=60)[0] == b""
    assert site.held(guest) == {1: EX}
    holdfast = (str(BIN / "holdfast"), "--config", str(site.h1.config))
    program = site.h1.inside(
        *holdfast, "run", "--disk", guest.path, "--", "sh", "-c", "echo runs; exec sleep 1000"
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == b"runs\n"
        site.h1.restarted()  # and its first pass is over before its first answer to the hook's release
        other = Guest("other", guest.lv)
        assert "on this host" in site.h1.refuses(other)
        assert site.held(guest) == {1: EX}
        assert site.h1.is_active(guest.lv)
        assert "is held by host h1" in site.h2.refuses(other)
    finally:
        program.terminate()
        program.communicate(timeout=60)
    site.becomes(guest, {})


def test_volume_of_a_group_that_is_not_shared_is_refused_with_the_fix(site: Site) -> None:
    guest = Guest("plain", "mine")
    guest.path = "/dev/plain/mine"
    assert "volume group plain is not shared" in site.h1.refuses(guest)


def test_migration_of_a_thin_volume_is_refused_before_anything_is_done(site: Site) -> None:
    """At `migrate`, so that libvirt does nothing for it on the target, and the source's volume never waits for it."""
    guest = Guest("thin-guest", "thin")
    why = site.h2.hook("migrate", guest)
    assert why == (
        "holdfast: thin-guest: /dev/vg/thin can't be migrated live: its thin pool vg/pool can't be active on two hosts; "
        "shut the VM down and start it there\n"
    )


def test_operator_activates_a_volume_that_then_follows_its_vm(site: Site, guest: Guest) -> None:
    other = Guest("other", guest.lv)
    assert site.h1.holdfast("volume", "activate", guest.path) == (
        0,
        f"{guest.path} is active here\n",
    )
    assert site.held(guest) == {1: EX}
    site.h1.restarted()
    assert site.h1.is_active(guest.lv), "a restart forgets no order"
    code, said = site.h2.holdfast("volume", "activate", guest.path)
    assert (code, f"{guest.path} is held by host h1" in said) == (75, True), said
    assert not site.h2.is_active(guest.lv)
    assert "activated by an operator" in site.h1.holdfast("volume", "list")[1]
    for command in ("volume list", "volume who", "volume activate"):
        words = (*command.split(), *([] if command == "volume list" else [guest.path]))
        assert why_not(command, json.loads(site.h1.holdfast(*words, "--json")[1])) == ""
    assert site.h2.holdfast("volume", "who", guest.path)[0] == 0
    guest.starts(site.h1)
    code, said = site.h1.holdfast("volume", "list")
    assert f"{guest.path}  exclusive  active  {guest.name} (pid " in said
    assert "owner, writes" in said
    assert "activated by an operator" not in said
    for order in ("deactivate", "activate"):
        code, said = site.h1.holdfast("volume", order, guest.path)
        assert (code, f"is a disk of VM {guest.name}" in said) == (75, True), said
    assert f"held by VM {guest.name}" in site.h1.refuses(other)
    guest.is_gone(site.h1)
    assert site.held(guest) == {}, "the order has ended with the VM's use"


def test_volume_is_not_deactivated_while_anything_may_use_it(site: Site, guest: Guest) -> None:
    assert site.h1.holdfast("volume", "activate", guest.path)[0] == 0
    is_open = site.h1.directory / f"open-{guest.lv}"
    is_open.touch()
    code, said = site.h1.holdfast("volume", "deactivate", guest.path)
    assert (code, "in use" in said) == (75, True), said
    assert site.h1.is_active(guest.lv)
    is_open.unlink()
    unread = site.h1.status_files / "unread.xml"
    unread.write_text("<domstatus")
    code, said = site.h1.holdfast("volume", "deactivate", guest.path)
    assert (code, "can't be read; nothing is deactivated" in said) == (75, True), said
    unread.unlink()
    assert guest.path in site.h1.holdfast("volume", "list")[1]
    code, said = site.h1.holdfast("volume", "deactivate", guest.path, "--json")
    assert (code, why_not("volume deactivate", json.loads(said))) == (0, "")
    assert site.held(guest) == {}
    assert not site.h1.is_active(guest.lv)
    assert guest.path not in site.h1.holdfast("volume", "list")[1]


def test_volume_is_attached_to_a_running_vm_or_left_as_it_was(site: Site, guest: Guest) -> None:
    guest.starts(site.h1)
    data = site.guest("data")
    attached = ("attach", guest.name, data.path, "vdb")
    site.h1.command("virsh", 'echo "error: $*: no such target" >&2; exit 1')
    code, said = site.h1.holdfast(*attached)
    assert (code, "no such target; the volume is inactive again" in said) == (1, True), said
    assert site.held(data) == {}
    assert not site.h1.is_active(data.lv)
    code, said = site.h1.holdfast("attach", "nobody", data.path, "vdb")
    assert (code, "no VM nobody runs on this host" in said) == (75, True), said
    # libvirt asks for the lock of a disk that is in no status file yet.
    asks = (
        f"{sys.executable} -c 'import sys; from tests.support.shared_volumes import ask; ask(*sys.argv[1:])'"
    )
    words = shlex.join([site.h1.socket, str(guest.qemus["h1"].pid), guest.name, guest.uuid, data.path])
    site.h1.command("virsh", f"[ -e {data.path} ] && cd {ROOT} && exec {asks} {words}")
    code, said = site.h1.holdfast(*attached, "--json")
    assert (code, why_not("attach", json.loads(said))) == (0, "")
    assert site.held(data) == {1: EX}
    code, said = site.h1.holdfast("volume", "deactivate", data.path)
    assert (code, f"is a disk of VM {guest.name}" in said) == (75, True), said
    assert f"{data.path} is held by host h1" in site.h2.refuses(data)
    guest.is_gone(site.h1)
    site.becomes(data, {})


def test_group_whose_locks_are_lost_stops_its_vms_and_is_cut_off(site: Site, guest: Guest) -> None:
    guest.starts(site.h1)
    site.h1.command("virsh", "exit 1")
    tables = site.h1.directory / "tables"
    tables.write_text("vg-lv0: 0 131072 linear 254:16 2048\nvg-lv1: 0 131072 error \n")
    site.h1.command("dmsetup", f'[ "$1" = wipe_table ] || exec cat {tables}')
    code, said = site.h1.holdfast("lvm", "kill", "vg")
    assert (code, said.endswith("may still be written: vg-lv0\n")) == (1, True), said
    state = Path(f"/proc/{guest.qemus['h1'].pid}/stat")
    wait_until(lambda: state.read_text().split()[2] == "T", "its VM to be stopped")
    tables.write_text("vg-lv0: 0 131072 error\n")
    code, said = site.h1.holdfast("lvm", "kill", "vg")
    assert (code, "no volume of vg can be written" in said) == (0, True), said
    site.h1.command("dmsetup", "exit 1")
    assert site.h1.holdfast("lvm", "kill", "vg")[0] == 1, "nobody knows what can be written"
    assert site.h1.holdfast("lvm", "kill", "no/name")[0] == 2

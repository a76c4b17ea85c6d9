"""The real lvm2 and lvmlockd on two hosts with a shared VG: over Holdfast in sanlock's place, and over the real sanlock.

Every test is played to both, and what it expects is written once: so what the one answers the other answers. Played as well:
one host of each kind, and sectors of 4096 bytes.
"""

from __future__ import annotations

import itertools
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.lvmlockd.hosts import (
    IO_TIMEOUT_S,
    VG,
    LvmHost,
    Ran,
    Site,
    Volume,
    build_device_mapper,
    lvmlockd_version,
    patiently,
    site,
)
from tests.support.lvmlockd_contract import EX, PATIENCE_S, SH, LvmlockdContract
from tests.support.polling import wait_until

from holdfast.system.lvm.lvmlockd_client import (
    HeldElsewhere,
    LockManagerFailed,
    LockspaceInactive,
    LvmlockdClient,
)
from holdfast.wire.lvmlockd import LvLock

pytestmark = pytest.mark.interop

LOCKED_ELSEWHERE = "LV locked by other host: vg/{0}", "Failed to lock logical volume vg/{0}."
SCENES = {
    "holdfast": (("holdfast", "holdfast"), 512),
    "sanlock": (("sanlock", "sanlock"), 512),
    "mixed": (("sanlock", "holdfast"), 512),
    "holdfast-4096": (("holdfast", "holdfast"), 4096),
    "sanlock-4096": (("sanlock", "sanlock"), 4096),
}
OLD_LVMLOCKD = (2, 3, 16)
"""Debian 12's. 2.03.31 (Debian 13) hangs when it adopts a lock, and in a `vgremove` after one that was refused; over the
real sanlock as over Holdfast."""
adopting = pytest.mark.skipif(
    "lvmlockd_version() > OLD_LVMLOCKD", reason="this lvmlockd hangs when it adopts a lock"
)
DEFAULT = "holdfast"
"""The others are `long`: a site takes 10 s to set up, and what is expected of this one was seen with the real sanlock."""


TAKEOVER_S = 8 * IO_TIMEOUT_S + 60
RENEWAL_S = 2 * IO_TIMEOUT_S + 1
"""Since its last renewal a host may have lived for so long."""


class Scene:
    """A site, and new LVs of it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.one, self.two = site.hosts
        self._numbers = itertools.count(1)

    def volume(self) -> Volume:
        return self.site.new_lv(f"lv{next(self._numbers)}")

    # --- as the contract of lvmlockd's client wants it ---

    def socket_path(self, host: int) -> Path:
        return self.site.hosts[host - 1].lvmlockd_socket

    def new_lv(self) -> LvLock:
        return lock_of(self.volume())

    def kill_vg(self, host: int) -> None:
        self.site.hosts[host - 1].run("lvmlockctl", "--kill", VG)

    def revive_vg(self, host: int, *used: LvLock) -> None:
        on = self.site.hosts[host - 1]
        on.run("lvmlockctl", "--drop", VG)
        wait_until(lambda: not on.lockspaces(), "the lockspace to go")
        self.site.start_vg(on)


def lock_of(volume: Volume) -> LvLock:
    return LvLock(VG, volume.name, volume.uuid, volume.vg_args, volume.lv_args)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.long if name != DEFAULT else ()) for name in SCENES],
)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    programs, sector_bytes = SCENES[request.param]
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place:
        preloaded = build_device_mapper(Path(place))
        with site(Path(place), programs, sector_bytes, preloaded) as made:
            yield Scene(made)


@pytest.fixture
def pair(scene: Scene) -> Scene:
    return scene


def refused(ran: Ran, volume: Volume) -> bool:
    return ran == Ran(5, tuple(line.format(volume.name) for line in LOCKED_ELSEWHERE))


def modes(volume: Volume, *hosts: LvmHost) -> list[str]:
    return [host.locks().get(volume.uuid, "un") for host in hosts]


def orphans(host: LvmHost) -> list[str]:
    return [line for line in host.run("sanlock", "client", "status").lines if line.endswith(" ORPHAN")]


class TestReal(LvmlockdContract):
    """By lvmlockd's socket."""

    test_exclusive_keeps_another_host_from_shared = pytest.mark.long(
        LvmlockdContract.test_exclusive_keeps_another_host_from_shared
    )
    test_failed_storage_is_said_and_a_lock_can_still_be_given_up = pytest.mark.long(
        LvmlockdContract.test_failed_storage_is_said_and_a_lock_can_still_be_given_up
    )


def test_lvchange_takes_converts_and_is_refused(scene: Scene) -> None:
    one, two, lv = scene.one, scene.two, scene.volume()
    one.done("lvchange", "-aey", lv.path)
    assert refused(two.lvm("lvchange", "-aey", lv.path), lv)
    assert modes(lv, one, two) == ["ex", "un"]
    one.done("lvchange", "-asy", lv.path)
    two.done("lvchange", "-asy", lv.path)
    assert modes(lv, one, two) == ["sh", "sh"]
    assert refused(one.lvm("lvchange", "-aey", lv.path), lv)
    assert modes(lv, one, two) == ["sh", "sh"]
    two.done("lvchange", "-an", lv.path)
    one.done("lvchange", "-aey", lv.path)
    one.done("lvchange", "-an", lv.path)
    two.done("lvchange", "-aey", lv.path)
    assert modes(lv, one, two) == ["un", "ex"]
    assert refused(one.lvm("lvremove", "--yes", lv.path), lv) is False
    assert modes(lv, one, two) == ["un", "ex"]
    two.done("lvchange", "-an", lv.path)
    one.done("lvremove", "--yes", lv.path)


@pytest.mark.long
def test_metadata_changes_on_both_hosts_in_turn(scene: Scene) -> None:
    """The VG's lock and its value block: each host reads what the other one has written."""
    one, two, lv = scene.one, scene.two, scene.volume()
    for number in range(3):
        for host, other in ((one, two), (two, one)):
            host.done("lvchange", "--addtag", f"t{number}h{host.host_id}", lv.path)
            tags = other.done("lvs", "--noheadings", "-o", "lv_tags", lv.path).lines[-1].split(",")
            assert f"t{number}h{host.host_id}" in tags
    one.done("lvremove", "--yes", lv.path)


@adopting
def test_lvmlockd_that_is_killed_adopts_its_locks(scene: Scene) -> None:
    one, two, alone, shared = scene.one, scene.two, scene.volume(), scene.volume()
    one.done("lvchange", "-aey", alone.path)
    one.done("lvchange", "-asy", shared.path)
    for active in (alone, shared):
        one.show_as_active(active)
    one.kill_lvmlockd()
    assert len(orphans(one)) == 2
    for each in (alone, shared):
        assert refused(two.lvm("lvchange", "-aey", each.path), each)
    one.start_lvmlockd()
    wait_until(lambda: modes(alone, one) == ["ex"] and modes(shared, one) == ["sh"], "the adoption")
    assert orphans(one) == []
    assert refused(two.lvm("lvchange", "-aey", alone.path), alone)
    with LvmlockdClient(str(one.lvmlockd_socket)) as client:
        client.lock_lv(lock_of(alone), SH)
        client.lock_lv(lock_of(shared), EX)
    two.done("lvchange", "-asy", alone.path)
    two.done("lvchange", "-an", alone.path)
    for active in (alone, shared):
        one.show_as_closed(active)
        one.done("lvchange", "-an", active.path)


@pytest.fixture(params=["holdfast", "sanlock"])
def fresh(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A site for one test, which ends what others need."""
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place:
        programs = (request.param, request.param)
        with site(Path(place), programs, 512, build_device_mapper(Path(place))) as made:
            yield Scene(made)


@pytest.mark.long
@adopting
def test_lock_of_what_is_not_active_any_more_is_not_adopted(fresh: Scene) -> None:
    """It stays this host's, and neither this host nor another one gets it."""
    one, two, lv, closed = fresh.one, fresh.two, fresh.volume(), fresh.volume()
    for each in (lv, closed):
        one.done("lvchange", "-aey", each.path)
    one.show_as_active(lv)
    one.kill_lvmlockd()
    one.start_lvmlockd()
    wait_until(lambda: modes(lv, one) == ["ex"], "the adoption")
    assert [closed.uuid in line for line in orphans(one)] == [True]
    ran = one.lvm("lvchange", "-aey", closed.path)
    assert (ran.status, ran.lines[0]) == (5, f"LV {closed.path} lock failed: error -221"), ran
    assert refused(two.lvm("lvchange", "-aey", closed.path), closed)
    assert len(orphans(one)) == 1


@pytest.mark.long
def test_lvmlockd_that_does_not_adopt_knows_no_lockspace(fresh: Scene) -> None:
    one, two, lv = fresh.one, fresh.two, fresh.volume()
    one.done("lvchange", "-aey", lv.path)
    one.show_as_active(lv)
    one.kill_lvmlockd()
    one.start_lvmlockd(adopts=False)
    assert one.lockspaces() == []
    with LvmlockdClient(str(one.lvmlockd_socket)) as client, pytest.raises(LockspaceInactive):
        client.query_lock_lv(lock_of(lv))
    assert refused(two.lvm("lvchange", "-aey", lv.path), lv)
    assert len(orphans(one)) == 1


@pytest.mark.long
def test_vg_is_stopped_started_and_removed(fresh: Scene) -> None:
    one, two, lv = fresh.one, fresh.two, fresh.volume()
    two.done("lvchange", "-aey", lv.path)
    two.lvm("vgchange", "--lock-stop", VG)
    assert modes(lv, two) == ["ex"]
    two.done("lvchange", "-an", lv.path)
    two.done("vgchange", "--lock-stop", VG)
    assert two.lockspaces() == []
    ran = two.lvm("lvchange", "-aey", lv.path)
    assert ran == Ran(5, ("Cannot access VG vg due to failed lock.",))
    fresh.site.start_vg(two)
    two.done("lvchange", "-aey", lv.path)
    two.done("lvchange", "-an", lv.path)
    if lvmlockd_version() > OLD_LVMLOCKD:
        return
    ran = one.lvm("vgremove", "--yes", VG)
    assert (ran.status, ran.lines[-1]) == (5, 'Lockspace for "vg" not stopped on other hosts'), ran
    two.done("vgchange", "--lock-stop", VG)
    ran = patiently(one, "vgremove", "--yes", VG)
    assert (ran.status, ran.lines[-1]) == (0, 'Volume group "vg" successfully removed'), ran
    assert one.lockspaces() == []


@pytest.mark.long
def test_lock_of_a_dead_host_is_taken_over_when_it_is_dead_for_sure(fresh: Scene) -> None:
    """8 io_timeouts and the fire timeout of 60 s after its last renewal, as sanlock counts; nothing is granted before."""
    one, two, lv = fresh.one, fresh.two, fresh.volume()
    one.done("lvchange", "-aey", lv.path)
    one.power_off()
    began = time.monotonic()
    with LvmlockdClient(str(two.lvmlockd_socket), timeout_s=60) as client:
        while True:
            try:
                client.lock_lv(lock_of(lv), EX)
                break
            except HeldElsewhere:
                assert time.monotonic() < began + TAKEOVER_S + PATIENCE_S
                time.sleep(0.5)
        assert time.monotonic() > began + TAKEOVER_S - RENEWAL_S
        assert client.query_lock_lv(lock_of(lv)) is EX


@pytest.mark.long
@pytest.mark.parametrize("fresh", ["holdfast"], indirect=True)
def test_holdfast_that_starts_its_next_program_keeps_the_locks_of_lvmlockd(fresh: Scene) -> None:
    one, two, lv = fresh.one, fresh.two, fresh.volume()
    one.done("lvchange", "-aey", lv.path)
    one.lock_manager.send_signal(signal.SIGUSR1)
    wait_until(lambda: "goes on" in one.logs(), "the next program")
    assert refused(two.lvm("lvchange", "-aey", lv.path), lv)
    one.done("lvchange", "-asy", lv.path)
    two.done("lvchange", "-asy", lv.path)
    assert modes(lv, one, two) == ["sh", "sh"]


@pytest.mark.long
@pytest.mark.parametrize("fresh", ["holdfast"], indirect=True)
@adopting
def test_holdfast_that_is_killed_holds_the_locks_and_lvmlockd_gets_them_by_a_restart(fresh: Scene) -> None:
    """There is no systemd here that keeps the connection."""
    one, two, lv, other = fresh.one, fresh.two, fresh.volume(), fresh.volume()
    one.done("lvchange", "-aey", lv.path)
    one.show_as_active(lv)
    one.lock_manager.kill()
    one.lock_manager.wait()
    one.start_lock_manager()
    with LvmlockdClient(str(one.lvmlockd_socket)) as client:
        for refused_now, mode in ((lv, SH), (other, EX)):
            with pytest.raises(LockManagerFailed):
                client.lock_lv(lock_of(refused_now), mode)
        assert client.query_lock_lv(lock_of(lv)) is EX
        assert refused(two.lvm("lvchange", "-aey", lv.path), lv)
        one.kill_lvmlockd()
        one.start_lvmlockd()
        wait_until(lambda: modes(lv, one) == ["ex"], "the adoption")
        assert refused(two.lvm("lvchange", "-aey", lv.path), lv)
        client.lock_lv(lock_of(lv), SH)
        client.lock_lv(lock_of(other), EX)
    two.done("lvchange", "-asy", lv.path)

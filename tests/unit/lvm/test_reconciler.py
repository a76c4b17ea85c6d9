"""The reconciler and the calls of libvirt, on hosts of one shared volume group: each row of the crash table (2.5)."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from tests.unit.lvm.test_volumes import report
from tests.unit.lvm.world import EX, LIBVIRTD, LV1, SH, V1, Host, World, scene
from tests.unit.manager.world import run

from holdfast.backends.lvm.hook_calls import HANDOVER_WAIT_S
from holdfast.backends.lvm.kept import decode
from holdfast.backends.lvm.ports import Problem
from holdfast.backends.lvm.reconciler import ASK_AGAIN_S, IDLE_S, UNFINISHED_S
from holdfast.backends.lvm.write_grants import ACQUIRE_WAIT_S
from holdfast.backends.lvm.write_rules import Grant, Vm
from holdfast.model import Mode
from holdfast.system.libvirt.status_words import IN, OUT
from holdfast.testing.fakes import settle
from holdfast_sim.volumes.shared_locks import SharedLocks


def changes(host: Host) -> list[str]:
    """The requests of a host that are no questions."""
    return [each for each in host.locks.asked if not each.startswith(("query", "lease"))]


@scene()
async def test_start_takes_it_exclusively_and_the_end_gives_it_up(w: World) -> None:
    h1, h2 = w.hosts
    await h1.starts()
    assert w.modes == [EX, None]
    why = await h2.hook.prepare(V1, LIBVIRTD, {LV1: EX})
    assert why == "/dev/vg/lv1 is held by host h1"
    await h2.hook.release(V1)
    await h1.ends()
    assert w.modes == [None, None]
    assert not h1.is_active
    assert decode(h1.record.raw).volumes == {}
    await h2.starts()
    assert w.modes == [None, EX]


@scene()
async def test_second_vm_on_the_same_host_is_refused_by_the_first_ones_grant(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    assert await h1.hook.prepare("uuid-v2", LIBVIRTD, {LV1: EX}) == (
        "/dev/vg/lv1 is held by VM v1 (pid 7) on this host"
    )
    await h1.hook.release("uuid-v2")
    assert (await h1.asks(Vm("uuid-v2", 8), "v2")).endswith("VM v1 (pid 7) on this host")
    assert w.modes == [EX, None]


@scene()
async def test_no_vm_comes_beside_another_hook_that_activates_volumes(w: World) -> None:
    (h1, h2) = w.hosts
    await h1.starts()
    for host in w.hosts:
        host.other_hook = "/etc/libvirt/hooks/qemu"
    before = changes(h1)
    for why in (
        await h1.hook.prepare("uuid-v2", LIBVIRTD, {LV1: EX}),
        await h2.hook.prepare("uuid-v2", LIBVIRTD, {LV1: EX}),
        h2.hook.migrate(V1, LIBVIRTD, {LV1: EX}),
    ):
        assert why.startswith(
            "/etc/libvirt/hooks/qemu is a hook that activates and deactivates volumes as well"
        )
    assert await h1.hook.prepare("uuid-v3", LIBVIRTD, {}) == "", "a VM without such a disk"
    assert changes(h1) == before
    assert w.modes == [EX, None], "what runs is not touched"


@scene()
async def test_migration_with_no_hand_step(w: World) -> None:
    source, target = await w.migrates()
    assert w.modes == [SH, SH]
    w.stops(source)
    source.status.says("paused", "migration", OUT, "perform3_done")
    target.status.says("paused", "migration", IN, "finish3", pid=9)
    assert await target.acquires(9) == ""
    target.status.says("running", "migrated", pid=9)
    assert not await target.passes()
    assert w.modes == [SH, SH]  # the source has not gone yet
    await source.ends()
    assert await target.passes()
    assert w.modes == [None, EX]
    assert [len(host.grants.of(LV1)) for host in w.hosts] == [0, 1]
    assert decode(source.record.raw).volumes == {}


@scene()
async def test_lock_of_an_active_volume_is_converted_without_an_lvm_command(w: World) -> None:
    source, target = w.hosts
    await source.starts()
    source.locks.asked.clear()
    await w.arrives(source, target)
    assert changes(source) == ["lock lv1 shared"]


@scene()
async def test_source_that_does_not_share_has_the_target_give_up_and_runs_on(w: World) -> None:
    """Row 1: the daemon of the source is dead."""
    source, target = w.hosts
    await source.starts()
    assert target.hook.migrate(V1, LIBVIRTD, {LV1: EX}) == ""
    why = await w.within(target.hook.prepare(V1, LIBVIRTD, {LV1: EX}), HANDOVER_WAIT_S + 1)
    assert why == (
        "/dev/vg/lv1 is not shared for the migration within 20 s: held by host h1, which does not hand over: is "
        "holdfastd running there?"
    )
    await target.hook.release(V1)
    assert w.modes == [EX, None]
    source.restarted()
    await source.passes()
    assert w.modes == [EX, None]


@scene()
async def test_target_does_not_take_what_no_other_host_shares(w: World) -> None:
    """Free: the source has no lock, and a third host could get an exclusive one. Shared by this host alone: the same."""
    _, target = w.hosts
    assert target.hook.migrate(V1, LIBVIRTD, {LV1: EX}) == ""
    why = await w.within(target.hook.prepare(V1, LIBVIRTD, {LV1: EX}), HANDOVER_WAIT_S + 1)
    assert "no other host holds it" in why
    w.cluster.take("h2", LV1, SH)
    why = await w.within(target.hook.prepare(V1, LIBVIRTD, {LV1: EX}), HANDOVER_WAIT_S + 1)
    assert "no other host holds it" in why
    assert changes(target) == []


@pytest.mark.parametrize("phase", ["", "begin3", "perform3"])
def test_daemon_of_the_source_dies_after_it_shared(phase: str) -> None:
    """Rows 2 and 3: RELEASE finds nobody. The next daemon gives up what the guest has left."""

    async def scene() -> None:
        w = World()
        source, target = await w.migrates()
        source.status.says("running", "booted", OUT, phase)
        source.restarted()
        assert source.grants.of(LV1)[0].grant is Grant.HELD
        await source.passes()
        assert w.modes == [SH, SH]
        source.status.says("paused", "migration", OUT, "confirm3")
        target.status.says("paused", "migration", IN, "finish3", pid=9)
        assert await target.acquires(9) == ""
        await source.passes()
        assert source.grants.of(LV1) == ()
        source.opens(closes=True)
        source.status.gone()
        await source.passes()
        target.status.says("running", "migrated", pid=9)
        await target.passes()
        assert w.modes == [None, EX]

    run(scene)


@scene()
async def test_target_that_is_restarted_goes_on_to_exclusive(w: World) -> None:
    """Row 6."""
    source, target = await w.migrates()
    w.stops(source)
    target.status.says("paused", "migration", IN, "finish3", pid=9)
    assert await target.acquires(9) == ""
    target.status.says("running", "migrated", pid=9)
    target.restarted()
    assert not await target.passes()
    await source.ends()
    assert await target.passes()
    assert w.modes == [None, EX]


@scene(3)
async def test_guest_whose_target_hangs_runs_on_under_the_shared_lock(w: World) -> None:
    """Row 7: the target's libvirtd is dead, its QEMU stands with the volume open."""
    source, target, third = w.hosts
    await source.starts()
    await w.arrives(source, target)
    source.status.says("running", "booted")
    assert not await source.passes()
    assert (source.mode, target.mode) == (SH, SH)
    assert source.grants.of(LV1)[0].grant is Grant.HELD
    assert await third.hook.prepare("uuid-v2", LIBVIRTD, {LV1: EX}) == "/dev/vg/lv1 is held by host h1, h2"
    await w.clock.advance(UNFINISHED_S + 1)
    assert source.reconciler.problems() == [
        "/dev/vg/lv1: not yet as its VMs need it, for 61 s: convert to exclusive: another host holds it"
    ]
    await target.ends()
    assert await source.passes()
    assert source.mode is EX
    assert source.reconciler.problems() == []


@scene()
async def test_guest_that_runs_on_without_an_acquire_has_its_grant_again(w: World) -> None:
    """Row 11a: QEMU runs it by itself when the target has died, and libvirt asks for nothing."""
    source, target = await w.migrates()
    w.stops(source)
    assert source.grants.of(LV1)[0].grant is Grant.YIELDED
    source.status.says("running", "unpaused", OUT, "perform3")
    await source.passes()
    assert source.grants.of(LV1)[0].grant is Grant.YIELDED
    source.status.says("running", "unpaused")
    await source.passes()
    assert source.grants.of(LV1)[0].grant is Grant.HELD
    assert (await target.hook.prepare("uuid-v2", LIBVIRTD, {LV1: EX})).endswith("held by host h1")
    await target.hook.release("uuid-v2")
    await target.ends()
    await source.passes()
    assert w.modes == [EX, None]
    assert source.failures == []


@scene()
async def test_yielded_grant_is_free_for_no_other_vm_of_its_host(w: World) -> None:
    source, target = await w.migrates()
    w.stops(source)
    await target.ends()
    w.cluster.take("h1", LV1, EX)  # whatever may have led to it
    why = await source.asks(Vm("uuid-v2", 8), "v2")
    assert why == "/dev/vg/lv1 is held by VM v1 (pid 7) on this host"


@scene()
async def test_source_that_asks_again_gets_it_only_exclusively(w: World) -> None:
    """Row 11b: the target may have been granted, and its answer lost."""
    source, target = await w.migrates()
    w.stops(source)
    source.status.says("paused", "migration", OUT, "perform3_done")
    target.status.says("paused", "migration", IN, "finish3", pid=9)
    assert await target.acquires(9) == ""
    source.status.says("paused", "migration", OUT, "confirm3_cancelled")
    why = await w.within(source.acquires(), ACQUIRE_WAIT_S + 1)
    assert why == "/dev/vg/lv1 is held by host h2"
    # The daemon did not hear RELEASE: it is no other answer.
    source.grants._host.kept.holdings[LV1.id] = []
    assert (await w.within(source.acquires(), ACQUIRE_WAIT_S + 1)).endswith("held by host h2")
    answer = asyncio.ensure_future(source.acquires())
    await settle()
    await target.ends()
    await w.clock.advance(1.0)
    assert answer.result() == ""
    assert w.modes == [EX, None]


@scene()
async def test_source_asks_again_although_its_release_was_never_heard(w: World) -> None:
    """Row 3, and then the migration fails: the grant is still held by the record, and proves nothing."""
    source, target = await w.migrates()
    target.status.says("paused", "migration", IN, "finish3", pid=9)
    assert await target.acquires(9) == ""
    source.status.says("paused", "migration", OUT, "confirm3_cancelled")
    assert source.grants.of(LV1)[0].grant is Grant.HELD
    assert (await w.within(source.acquires(), ACQUIRE_WAIT_S + 1)).endswith("held by host h2")


@pytest.mark.parametrize(
    ("words"),
    [
        ("paused", "migration", IN, "prepare"),
        ("running", "booted", "", ""),
        ("paused", "migration", "", ""),
        ("paused", "migration", IN, "finish4"),
    ],
)
def test_shared_lock_grants_nothing_but_to_a_target_that_finishes(words: tuple[str, str, str, str]) -> None:
    async def scene() -> None:
        w = World()
        _, target = await w.migrates()
        target.status.says(*words, pid=9)
        assert (await w.within(target.acquires(9), ACQUIRE_WAIT_S + 1)).endswith("held by host h1")
        assert target.grants.of(LV1) == ()

    run(scene)


@scene()
async def test_dead_host_keeps_its_lock_until_it_is_called_dead(w: World) -> None:
    """Rows 10 and 12."""
    source, _ = await w.migrates()
    w.cluster.died("h2")
    source.status.says("running", "booted")
    assert not await source.passes()
    assert source.mode is SH
    w.cluster.called_dead("h2")
    assert await source.passes()
    assert w.modes == [EX, None]


@scene()
async def test_volume_stays_while_a_vm_is_being_started_and_has_no_status_file(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == ""
    await h1.passes()
    h1.restarted()
    await h1.passes()
    assert (h1.mode, h1.is_active) == (EX, True)
    h1.libvirtd_lives = False
    await h1.passes()
    assert (h1.mode, h1.is_active) == (None, False)


@scene()
async def test_volume_stays_while_a_status_file_can_not_be_read(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    h1.opens(closes=True)
    h1.status.gone()
    h1.status.unread = ("/run/libvirt/qemu/v1.xml",)
    assert not await h1.passes()
    assert h1.mode is EX
    assert len(h1.grants.of(LV1)) == 1
    assert h1.reconciler.problems() == [
        "/run/libvirt/qemu/v1.xml can't be read: no volume is deactivated meanwhile"
    ]
    h1.status.unread = ()
    assert await h1.passes()
    assert h1.mode is None


@scene()
async def test_arrival_whose_libvirtd_ends_while_it_waits_activates_nothing(w: World) -> None:
    """The source shares later, for the next attempt (seed 447 of the simulator)."""
    source, target = w.hosts
    await source.starts()
    assert target.hook.migrate(V1, LIBVIRTD, {LV1: EX}) == ""
    answer = asyncio.ensure_future(target.hook.prepare(V1, LIBVIRTD, {LV1: EX}))
    await settle()
    target.libvirtd_lives = False
    await target.passes()
    source.status.says("running", "booted", OUT, "begin3")
    await source.passes()
    await w.clock.advance(1.0)
    assert answer.result() == "libvirt has given it up"
    assert w.modes == [SH, None]


@scene()
async def test_refusal_says_who_is_in_the_way_as_values_too(w: World) -> None:
    h1, h2 = w.hosts
    await h1.starts()
    denied = await h1.grants.acquire(Vm("uuid-v2", 8), "v2", LV1, EX)
    assert denied is not None
    assert (denied.here, denied.lease, denied.refused) == (h1.grants.of(LV1)[0], None, None)
    answer = asyncio.ensure_future(h2.grants.acquire(Vm(V1, 9), "v1", LV1, EX))
    await settle()
    await w.clock.advance(ACQUIRE_WAIT_S + 1)
    assert (denied := answer.result()) is not None
    assert denied.here is None
    assert denied.lease is not None
    assert denied.lease.others == ("h1",)
    assert denied.refused is not None
    assert denied.refused.problem is Problem.HELD_ELSEWHERE


@scene()
async def test_vm_that_asks_again_keeps_its_grant_although_the_record_can_not_be_written(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    h1.record.full = True
    assert "can't be written" in await h1.acquires()
    assert [each.grant for each in h1.grants.of(LV1)] == [Grant.HELD]


@scene()
async def test_damaged_record_deactivates_nothing(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    h1.record.raw = h1.record.raw[:40]
    h1.restarted()
    await h1.passes()
    h1.opens(closes=True)
    h1.status.gone()
    await h1.passes()
    assert h1.mode is EX
    assert "not understood" in h1.reconciler.problems()[0]


@scene()
async def test_volume_that_was_activated_for_no_vm_is_not_touched(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.locks.activate(LV1, EX) is None
    await h1.passes()
    await h1.hook.release(V1)
    assert h1.is_active


@scene()
async def test_record_that_can_not_be_written_refuses_a_start_and_a_grant(w: World) -> None:
    (h1, _) = w.hosts
    h1.record.full = True
    assert "can't be written" in await h1.hook.prepare(V1, LIBVIRTD, {LV1: EX})
    assert changes(h1) == []
    h1.record.full = False
    assert await h1.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == ""
    h1.status.says("paused", "starting up", "start")
    h1.record.full = True
    assert "can't be written" in await h1.acquires()
    assert h1.grants.of(LV1) == ()


@scene()
async def test_lvmlockd_that_does_not_answer_changes_nothing_and_refuses(w: World) -> None:
    """Row 16."""
    (h1, _) = w.hosts
    await h1.starts()
    w.cluster.hosts["h1"].failing = Problem.NO_ANSWER
    h1.status.says("running", "booted", OUT, "begin3")
    assert not await h1.passes()
    assert h1.mode is EX
    h1.status.says("paused", "user")
    h1.releases()
    assert "did not answer" in await w.within(h1.acquires(), ACQUIRE_WAIT_S + 1)
    h1.opens(closes=True)
    h1.status.gone()
    await h1.hook.release(V1)
    assert h1.is_active
    w.cluster.hosts["h1"].failing = None
    assert await h1.passes()
    assert not h1.is_active


@scene()
async def test_running_vm_whose_lock_another_host_has_is_reported_once(w: World) -> None:
    h1, _ = w.hosts
    await h1.starts()
    w.cluster.hosts["h1"].devices.clear()  # lvmlockd has lost it: that is no request of ours
    w.cluster.take("h1", LV1, None)
    w.cluster.hosts["h1"].devices.add(LV1.id)
    w.cluster.take("h2", LV1, EX)
    await h1.passes()
    await h1.passes()
    assert len(h1.failures) == 1
    assert h1.failures[0].startswith("v1: this host has no lock on /dev/vg/lv1 any more")


@scene()
async def test_suspended_guest_frees_its_grant_and_not_its_volume(w: World) -> None:
    h1, h2 = w.hosts
    await h1.starts()
    h1.status.says("paused", "user")
    assert h1.releases() is None
    await h1.passes()
    assert w.modes == [EX, None]
    assert (await h2.hook.prepare("uuid-v2", LIBVIRTD, {LV1: EX})).endswith("held by host h1")
    assert await h1.acquires() == ""


@scene()
async def test_disk_that_is_in_no_status_file_yet_is_kept_by_its_grant(w: World) -> None:
    """Hot-plug, and images of a block job."""
    (h1, _) = w.hosts
    h1.status.says("running")
    h1.status.files["v1"] = h1.status.files["v1"].__class__("v1", V1, (), frozenset(), 7, "running")
    assert await h1.acquires() == ""
    await h1.passes()
    assert (h1.mode, h1.is_active) == (EX, True)
    h1.releases()
    await h1.passes()
    assert (h1.mode, h1.is_active) == (None, False)


@scene()
async def test_shared_disks_are_shared_and_an_exclusive_host_refuses_them_at_once(w: World) -> None:
    h1, h2 = w.hosts
    for host in (h1, h2):
        assert await host.hook.prepare(V1, LIBVIRTD, {LV1: SH}) == ""
        host.status.says("paused", "starting up", "start", shareable=True)
        assert await host.acquires(mode=SH) == ""
        await host.passes()
    assert w.modes == [SH, SH]
    await h1.ends()
    await h2.ends()
    await h1.starts()
    h2.locks.asked.clear()
    assert (await h2.hook.prepare("uuid-v2", LIBVIRTD, {LV1: SH})) == "/dev/vg/lv1 is held by host h1"
    assert changes(h2) == []


@scene()
async def test_volume_of_a_vm_that_runs_already_is_found_by_lvms_report_and_then_kept_in_its_mode(
    w: World,
) -> None:
    (h1, _) = w.hosts
    other = dataclasses.replace(LV1, lv_name="lv9")
    h1.status.says("running", disk=other)
    await h1.passes()
    await settle()
    await h1.passes()
    assert h1.reports.asked == ["/dev/vg/lv9"]
    assert h1.host.kept.volumes == {}
    await w.clock.advance(ASK_AGAIN_S + 1)
    h1.reports.text = report(lv_name="lv9")
    await h1.passes()
    await settle()
    assert h1.host.news.is_set()
    await h1.passes()
    (found,) = h1.host.kept.volumes.values()
    assert w.cluster.holders(found) == {"h1": EX}
    assert len(h1.reports.asked) == 2


@scene()
async def test_vm_on_a_volume_of_one_host_is_not_migrated_and_its_lock_stays_exclusive(w: World) -> None:
    h1, h2 = w.hosts
    thin = dataclasses.replace(LV1, why_not_shared="its thin pool vg/pool can't be active on two hosts")
    h1.host.volumes.remember(thin)
    assert await h1.hook.prepare(V1, LIBVIRTD, {thin: EX}) == ""
    h1.status.says("running", "booted", OUT, "begin3")
    await h1.passes()
    assert h1.mode is EX
    why = h2.hook.migrate(V1, LIBVIRTD, {thin: EX})
    assert why.startswith(
        "/dev/vg/lv1 can't be migrated live: its thin pool vg/pool can't be active on two hosts"
    )


@scene()
async def test_loop_acts_on_news_at_once_tries_again_and_sees_what_was_never_reported(w: World) -> None:
    source, target = w.hosts
    await source.starts()
    loop = asyncio.ensure_future(source.reconciler.run())
    await settle()
    source.status.says("running", "booted", OUT, "begin3")
    await w.clock.advance(IDLE_S + 0.1)
    assert source.mode is SH  # without news
    source.status.says("running", "booted")
    w.cluster.take("h2", LV1, SH)
    source.reconciler.changed("v1")
    await settle()
    assert source.mode is SH
    before = len(changes(source))
    await w.clock.advance(10.0)
    assert 4 < len(changes(source)) - before < 14  # 0.2 s, then up to 2 s
    w.cluster.take("h2", LV1, None)
    await w.clock.advance(2.1)
    assert source.mode is EX
    assert target.mode is None
    before = len(changes(source))
    await w.clock.advance(60.0)
    assert len(changes(source)) == before
    loop.cancel()


def test_fake_cluster_excludes_as_lvmlockd_does() -> None:
    cluster = SharedLocks(["h1", "h2"])
    assert cluster.take("h1", LV1, SH) is None
    assert cluster.take("h2", LV1, SH) is None
    for host in ("h1", "h2"):
        refused = cluster.take(host, LV1, EX)
        assert refused is not None
        assert refused.problem is Problem.HELD_ELSEWHERE
    assert cluster.holders(LV1) == {"h1": Mode.SHARED, "h2": Mode.SHARED}
    cluster.hosts["h1"].devices.add(LV1.id)
    with pytest.raises(AssertionError, match="which is active there"):
        cluster.take("h1", LV1, None)

"""Operators' orders about volumes: what they refuse, what they leave behind, and whom a lost volume group concerns."""

from __future__ import annotations

import pytest
from tests.unit.lvm.test_in_the_daemon import PROGRAM, lock_of, note
from tests.unit.lvm.test_volumes import report
from tests.unit.lvm.world import EX, LIBVIRTD, LV1, V1, Host, World, scene

from holdfast.backends.lvm.volume_orders import LOST, VolumeOrders
from holdfast.backends.lvm.write_rules import Holding
from holdfast.errors import Refused
from holdfast_sim.volumes.shared_locks import volume_named

PATH = str(LV1)


def orders(host: Host) -> VolumeOrders:
    host.reports.text = report(vg_uuid=LV1.id.vg_uuid, lv_uuid=LV1.id.lv_uuid)
    return VolumeOrders(host.host)


@scene()
async def test_volume_that_is_activated_stays_until_it_is_deactivated(w: World) -> None:
    (h1, _) = w.hosts
    assert await orders(h1).activate(PATH, "")
    assert await h1.passes()
    assert (w.modes, h1.is_active) == ([EX, None], True)
    assert not await orders(h1).activate(PATH, "")
    await orders(h1).deactivate(PATH)
    assert (w.modes, h1.is_active) == ([None, None], False)


@scene()
async def test_disk_of_a_vm_is_neither_activated_for_others_nor_deactivated(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    with pytest.raises(Refused, match="is a disk of VM v1 on this host"):
        await orders(h1).activate(PATH, "")
    with pytest.raises(Refused, match="is a disk of VM v1 on this host"):
        await orders(h1).deactivate(PATH)
    assert (w.modes, h1.is_active) == ([EX, None], True)


@scene()
async def test_volume_of_a_program_is_neither_activated_for_others_nor_deactivated(w: World) -> None:
    (h1, _) = w.hosts
    await lock_of(h1).take(EX, note(PROGRAM))
    with pytest.raises(Refused, match="pid 50"):
        await orders(h1).activate(PATH, "")
    with pytest.raises(Refused, match="pid 50"):
        await orders(h1).deactivate(PATH)
    assert (w.modes, h1.is_active) == ([EX, None], True)


@scene()
async def test_volume_of_a_vm_that_is_being_started_is_not_deactivated(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == ""
    with pytest.raises(Refused, match="is being started"):
        await orders(h1).deactivate(PATH)
    assert h1.is_active


@scene()
async def test_nothing_is_deactivated_while_a_status_file_can_not_be_read(w: World) -> None:
    (h1, _) = w.hosts
    await orders(h1).activate(PATH, "")
    h1.status.unread = ("/run/libvirt/qemu/v9.xml",)
    await h1.passes()
    with pytest.raises(Refused, match=r"v9\.xml can't be read; nothing is deactivated"):
        await orders(h1).deactivate(PATH)
    assert h1.is_active


@scene()
async def test_volume_of_another_host_is_not_pinned_here(w: World) -> None:
    """A pin that stays would activate it as soon as that host gives it up."""
    (h1, h2) = w.hosts
    await h2.starts()
    with pytest.raises(Refused, match="is held by host h2"):
        await orders(h1).activate(PATH, "")
    assert h1.host.kept.pinned == {}


@scene()
async def test_pin_that_can_not_be_recorded_activates_nothing(w: World) -> None:
    (h1, _) = w.hosts
    h1.record.full = True
    with pytest.raises(Refused, match="No space left"):
        await orders(h1).activate(PATH, "")
    assert (w.modes, h1.host.kept.pinned) == ([None, None], {})


@scene()
async def test_lost_group_concerns_its_own_vms_with_and_without_a_grant(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    elsewhere = volume_named("lv2", "other")
    h1.host.volumes.remember(elsewhere)
    h1.host.kept.volumes[elsewhere.id] = elsewhere
    h1.status.says("running", name="v2", pid=8, disk=elsewhere)
    h1.status.says("running", name="v3", pid=9)
    await h1.passes()
    met: list[tuple[str, str]] = []

    async def on_lockfailure(holding: Holding, why: str) -> None:
        met.append((holding.name, why))

    done = await orders(h1).group_lost(LV1.vg_name, on_lockfailure)
    assert sorted(met) == [("v1", LOST), ("v3", LOST)]
    assert sorted(done) == [f"{LV1}: {name} (pid {pid}): {LOST}" for name, pid in (("v1", 7), ("v3", 9))]

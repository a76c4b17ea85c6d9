"""A guard lease beside a volume's lock, and volumes that all hosts have active (ADR 0232, 0233)."""

from __future__ import annotations

import dataclasses

from tests.unit.lvm.world import EX, LIBVIRTD, LV1, SH, V1, Host, World, scene

from holdfast.backends.lvm.modes import Want
from holdfast.backends.lvm.ports import Volume
from holdfast.backends.lvm.write_rules import Vm
from holdfast.model import Mode
from holdfast.system.libvirt.domain_disks import Access, DomainDisk, Kind
from holdfast.system.libvirt.domains import Domain
from holdfast.system.libvirt.status_words import IN, OUT

VM1, VM9 = Vm(V1, 7), Vm(V1, 9)


class Leases(dict[Vm, Mode]):
    """Which VM has the guard's lease of the volume, in which mode."""

    def guard(self, *hosts: Host, shares: bool = False) -> Leases:
        for each in hosts:
            each.host.guard = self._of
            each.host.shares_all = shares
        return self

    def _of(self, vm: Vm, _: Volume) -> Mode | None:
        return self.get(vm)


@scene()
async def test_no_vm_writes_without_its_guard_lease_or_with_a_weaker_one(w: World) -> None:
    (h1, _) = w.hosts
    leases = Leases().guard(h1)
    assert await h1.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == ""
    h1.status.says("paused", "starting up", "start")
    refused = "/dev/vg/lv1: the guard lease that its VM needs is not held"
    assert await h1.acquires() == refused
    leases[VM1] = SH
    assert await h1.acquires() == refused
    assert h1.grants.of(LV1) == ()
    leases[VM1] = EX
    assert await h1.acquires() == ""


@scene()
async def test_guest_without_its_guard_lease_does_not_share_its_volume(w: World) -> None:
    """A host with activation = "shared" would take a shared lock and a free guard lease for leave to write."""
    h1, h2 = w.hosts
    await h1.starts()
    leases = Leases().guard(h1)
    h1.status.says("running", "booted", OUT, "begin3")
    await h1.passes()
    assert h1.mode is EX
    h1.status.says("running", "booted", OUT, "perform3")
    await h1.passes()
    assert h1.mode is EX
    leases[VM1] = EX
    await h1.passes()
    assert h1.mode is SH
    assert h2.mode is None


@scene()
async def test_guest_that_only_reads_a_volume_needs_no_guard_lease(w: World) -> None:
    (h1, _) = w.hosts
    Leases().guard(h1)
    assert await h1.locks.activate(LV1, EX) is None
    cd = DomainDisk("sda", Kind.BLOCK, Access.READ_ONLY, str(LV1), str(LV1))
    h1.status.files["v1"] = Domain("v1", V1, (), frozenset(), 7, "running", every=(cd,))
    await h1.passes()
    assert h1.mode is SH


@scene()
async def test_suspended_guest_has_no_guard_lease_and_migrates_all_the_same(w: World) -> None:
    (h1, _) = w.hosts
    leases = Leases({VM1: EX}).guard(h1)
    await h1.starts()
    h1.status.says("paused", "user")
    h1.releases()
    del leases[VM1]
    h1.status.says("paused", "user", OUT, "begin3")
    await h1.passes()
    assert h1.mode is SH


@scene()
async def test_source_with_its_guard_lease_still_needs_the_volume_alone_to_write_again(w: World) -> None:
    """A host without a guard may have been granted: only lvmlockd's refusal keeps the two apart."""
    h1, h2 = w.hosts
    Leases({VM1: EX}).guard(h1)
    await w.migrates()
    w.stops(h1)
    h1.status.says("paused", "migration", OUT, "perform3_done")
    h2.status.says("paused", "migration", IN, "finish3", pid=9)
    assert await h2.acquires(9) == "", "this host has no guard"
    h1.status.says("paused", "migration", OUT, "confirm3_cancelled")
    assert "held by host h2" in await w.within(h1.acquires(), 10.0)


# --- activation = "shared" ---


@scene()
async def test_volume_that_all_hosts_have_active_is_never_exclusive_and_stays_active(w: World) -> None:
    h1, h2 = w.hosts
    leases = Leases({VM1: EX}).guard(h1, h2, shares=True)
    await h1.starts()
    assert await h1.passes()
    assert h1.mode is SH
    assert await h2.hook.prepare("uuid-v2", LIBVIRTD, {LV1: EX}) == "", (
        "there the guard lease is refused next"
    )
    assert w.modes == [SH, SH]
    await h2.hook.release("uuid-v2", LIBVIRTD)
    await h1.ends()
    leases.clear()
    assert w.modes == [SH, SH]
    assert h1.is_active
    assert h1.host.kept.volumes == {}
    assert h1.host.want(LV1)[0] is Want.RESTING


@scene()
async def test_guest_migrates_where_all_hosts_have_it_active(w: World) -> None:
    h1, h2 = w.hosts
    leases = Leases({VM1: EX}).guard(h1, h2, shares=True)
    source, target = await w.migrates()
    assert w.modes == [SH, SH]
    w.stops(source)
    source.status.says("paused", "migration", OUT, "perform3_done")
    del leases[VM1]
    target.status.says("paused", "migration", IN, "finish3", pid=9)
    assert "guard lease" in await target.acquires(9)
    leases[VM9] = EX
    assert await target.acquires(9) == ""
    target.status.says("running", "migrated", pid=9)
    await source.ends()
    await target.passes()
    assert w.modes == [SH, SH]
    assert (source.grants.of(LV1), len(target.grants.of(LV1))) == ((), 1)


@scene()
async def test_source_that_wins_its_guard_lease_again_writes_at_once(w: World) -> None:
    """Row 11b: the target dies after the source has completed, and its lock of LVM's is there until its host is dead."""
    h1, h2 = w.hosts
    Leases({VM1: EX}).guard(h1, h2, shares=True)
    await w.migrates()
    w.stops(h1)
    h1.status.says("paused", "migration", OUT, "perform3_done")
    await h1.passes()
    assert h1.grants.of(LV1) == ()
    w.cluster.died("h2")
    h1.status.says("paused", "migration", OUT, "confirm3_cancelled")
    assert await h1.acquires() == ""
    assert w.modes == [SH, SH]


@scene()
async def test_volume_that_a_guest_has_exclusively_is_shared_when_it_has_its_guard_lease(w: World) -> None:
    """The configuration came to say "shared" while it ran."""
    h1, h2 = w.hosts
    await h1.starts()
    leases = Leases().guard(h1, h2, shares=True)
    await h1.passes()
    assert h1.mode is EX
    assert "held by host h1" in await h2.hook.prepare("uuid-v2", LIBVIRTD, {LV1: EX})
    leases[VM1] = EX
    await h1.passes()
    assert h1.mode is SH


@scene()
async def test_exclusive_lock_of_a_volume_that_nobody_uses_is_weakened_before_it_is_forgotten(
    w: World,
) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    Leases().guard(h1, shares=True)
    await h1.ends()
    await h1.passes()
    await h1.passes()
    assert (h1.mode, h1.is_active, h1.host.kept.volumes) == (SH, True, {})


@scene()
async def test_program_without_its_guard_lease_keeps_its_volume_exclusive(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.asks(Vm("", 50), "backup") == ""
    leases = Leases().guard(h1, shares=True)
    await h1.passes()
    assert h1.mode is EX
    leases[Vm("", 50)] = EX
    await h1.passes()
    assert h1.mode is SH


@scene()
async def test_volume_that_only_one_host_can_have_active_is_exclusive_and_deactivated(w: World) -> None:
    h1, _ = w.hosts
    thin = dataclasses.replace(LV1, why_not_shared="its thin pool vg/pool can't be active on two hosts")
    h1.host.volumes.remember(thin)
    Leases({VM1: EX}).guard(h1, shares=True)
    assert await h1.hook.prepare(V1, LIBVIRTD, {thin: EX}) == ""
    assert w.modes == [EX, None]
    assert await h1.grants.acquire(VM1, "v1", thin, EX) is None
    h1.grants.let_go(VM1, thin)
    await h1.hook.release(V1, LIBVIRTD)
    await h1.passes()
    assert w.modes == [None, None]
    assert not h1.is_active

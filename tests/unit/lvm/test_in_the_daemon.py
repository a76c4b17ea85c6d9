"""What driver lvm adds for a daemon: programs, lost records, the manager's claims, and what is not its business."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from tests.unit.lvm.test_volumes import report
from tests.unit.lvm.world import EX, LIBVIRTD, LV1, SH, V1, Host, World, scene

from holdfast.backends.base import Creation, HeldElsewhere, OwnerNote
from holdfast.backends.lvm.backend import LvmBackend, VolumeLock, key_of
from holdfast.backends.lvm.host_volumes import HostVolumes
from holdfast.backends.lvm.kept import decode
from holdfast.backends.lvm.ports import Problem
from holdfast.backends.lvm.write_rules import Grant, Holding, Vm
from holdfast.errors import Refused
from holdfast.model import AcquireRequest, OwnerName, ProcessId, Resource
from holdfast.system.files.ofd_lock import FileKey
from holdfast.system.libvirt.domains import Disk, Domain
from holdfast.system.libvirt.status_words import IN, OUT

PROGRAM, VM1 = Vm("", 50), Vm(V1, 7)
DISK = Resource("", str(LV1))
OTHER_LIBVIRTD = ProcessId(101, 1)


def backend(host: Host) -> LvmBackend:
    made = LvmBackend("san-lvm", host.host, handover_wait_s=20.0, acquire_wait_s=5.0)
    made._reconciler = host.reconciler
    made._hook, made._grants = host.hook, host.grants
    return made


def lock_of(host: Host) -> VolumeLock:
    return VolumeLock(LV1, (key_of(LV1),), host.host, host.grants)


def note(vm: Vm = VM1, *, libvirtd: int = 0) -> OwnerNote:
    return OwnerNote(OwnerName("v1", vm.uuid), 0 if libvirtd else vm.pid, libvirtd=libvirtd)


# --- programs ---


@scene()
async def test_program_keeps_its_volume_although_no_status_file_has_it(w: World) -> None:
    (h1, h2) = w.hosts
    lock = lock_of(h1)
    assert await lock.take(EX, note(PROGRAM)) is lock
    h1.opens(closes=True)
    assert await h1.passes()
    assert w.modes == [EX, None]
    h1.restarted()
    assert await h1.passes()
    assert (w.modes, h1.is_active) == ([EX, None], True)
    assert await h2.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == "/dev/vg/lv1 is held by host h1"
    lock_of(h1).owner_left(note(PROGRAM))
    assert await h1.passes()
    assert (w.modes, h1.is_active) == ([None, None], False)


@scene()
async def test_program_whose_volume_another_host_has_is_reported_once(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.asks(PROGRAM, "backup") == ""
    w.cluster.called_dead("h1")
    assert w.cluster.take("h2", LV1, EX) is None
    await h1.passes()
    await h1.passes()
    assert [each.split(":")[0] for each in h1.failures] == ["backup"]


@scene()
async def test_program_without_a_claim_is_over_where_the_journal_is_whole(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.asks(PROGRAM, "backup") == ""
    h1.restarted()
    backend(h1).adopted(journal_is_whole=False)
    assert len(h1.grants.of(LV1)) == 1, "a damaged journal proves no end"
    backend(h1).adopted(journal_is_whole=True)
    assert h1.grants.of(LV1) == ()


@scene()
async def test_program_that_the_journal_has_is_kept(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.asks(PROGRAM, "backup") == ""
    h1.restarted()
    h1.host.claims = lambda: [(str(LV1), Holding(PROGRAM, "backup", EX, Grant.HELD))]
    backend(h1).adopted(journal_is_whole=True)
    assert len(h1.grants.of(LV1)) == 1


# --- a record that was lost ---


@scene()
async def test_guest_that_runs_by_its_file_keeps_others_out_without_its_grant(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    h1.record.raw = b""
    h1.restarted()
    other = Vm("uuid-v2", 8)
    assert await h1.asks(other, "v2") == (
        "/dev/vg/lv1 is used by VM v1 (pid 7): by libvirt's status file it runs on this host"
    )
    assert await h1.acquires() == "", "its own file is no rival"
    h1.releases()
    h1.status.says("paused", "user")
    assert await h1.asks(other, "v2") == "", "a suspended guest has let go"


@scene()
async def test_claim_of_the_journal_gets_its_grant_back(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    h1.record.raw = b""
    h1.restarted()
    h1.host.claims = lambda: [(str(LV1), Holding(Vm(V1, 7), "v1", EX, Grant.HELD))]
    assert await h1.passes()
    assert [each.vm for each in h1.grants.of(LV1)] == [Vm(V1, 7)]
    assert decode(h1.record.raw).holdings


@scene()
async def test_claim_of_a_guest_that_has_left_gets_none(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    h1.record.raw = b""
    h1.restarted()
    h1.status.says("paused", "migration", OUT, "perform3_done")
    h1.host.claims = lambda: [(str(LV1), Holding(Vm(V1, 7), "v1", EX, Grant.HELD))]
    await h1.passes()
    assert h1.grants.of(LV1) == ()


@scene()
async def test_record_that_can_not_be_read_deactivates_nothing(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    h1.opens(closes=True)
    h1.status.gone()

    class Unreadable:
        def read(self) -> bytes:
            raise OSError(5, "Input/output error")

        def replace(self, raw: bytes) -> None: ...

    host = HostVolumes(
        status=h1.status,
        volumes=h1.host.volumes,
        locks=h1.locks,
        record=Unreadable(),
        clock=w.clock,
        lives=lambda _: True,
    )
    assert "Input/output error" in host.record_damaged
    host.kept.volumes[LV1.id] = LV1
    assert await host.deactivate(LV1) is None
    assert h1.is_active


# --- a VM that is being started ---


@scene()
async def test_vm_without_a_process_gets_no_grant_before_it_asks(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == ""
    lock = lock_of(h1)
    assert await lock.take(EX, note(libvirtd=100)) is lock
    assert h1.grants.of(LV1) == ()
    h1.status.says("paused", "starting up", "start")
    assert await lock.ask_again(EX, note()) is None
    assert [each.vm for each in h1.grants.of(LV1)] == [Vm(V1, 7)]


@scene()
async def test_vm_without_a_process_does_not_start_on_a_volume_that_is_only_shared(w: World) -> None:
    """A daemon that was restarted takes an arrival for a start."""
    source, target = await w.migrates()
    lock = lock_of(target)
    with pytest.raises(Refused, match="is held shared on this host, and the VM needs it exclusive"):
        await lock.take(EX, note(libvirtd=100))
    source.locks._host.failing = Problem.NO_ANSWER
    with pytest.raises(Refused, match="did not answer"):
        await lock_of(source).take(EX, note(libvirtd=100))


@scene()
async def test_end_that_another_libvirtd_reports_ends_no_announcement_of_one_that_lives(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == ""
    await h1.hook.release(V1, OTHER_LIBVIRTD)
    assert h1.is_active
    h1.libvirtd_lives = False
    await h1.hook.release(V1, OTHER_LIBVIRTD)
    assert not h1.is_active


@scene()
async def test_arrival_on_a_volume_of_one_host_is_refused_at_once(w: World) -> None:
    (_, h2) = w.hosts
    thin = dataclasses.replace(LV1, why_not_shared="its thin pool vg/pool can't be active on two hosts")
    assert h2.hook.migrate(V1, LIBVIRTD, {}) == ""
    assert await h2.hook.prepare(V1, LIBVIRTD, {thin: EX}) == (
        "/dev/vg/lv1 can't be migrated live: its thin pool vg/pool can't be active on two hosts; shut the VM down and start "
        "it there"
    )
    assert not h2.is_active


@scene()
async def test_no_vm_arrives_beside_another_hook_that_activates_volumes(w: World) -> None:
    (_, h2) = w.hosts
    lvm = backend(h2)
    wants = [AcquireRequest(DISK, EX)]
    h2.other_hook = "/etc/libvirt/hooks/qemu"
    assert (await lvm.why_not_live(wants)).startswith("/etc/libvirt/hooks/qemu is a hook that activates")
    assert await lvm.why_not_live([]) == "", "a VM without such a disk"
    h2.other_hook = ""
    assert await lvm.why_not_live(wants) == ""


@scene()
async def test_disk_of_one_host_is_named_at_migrate_unless_it_is_shareable_or_not_ours(w: World) -> None:
    (_, h2) = w.hosts
    lvm = backend(h2)
    wants = [AcquireRequest(DISK, EX)]
    assert await lvm.why_not_live(wants) == "", "LVM does not answer: `prepare` decides"
    h2.reports.text = report(lv_layout="raid,raid1")
    assert await lvm.why_not_live([AcquireRequest(DISK, SH)]) == ""
    assert await lvm.why_not_live(wants) == (
        "/dev/vg/lv1 can't be migrated live: a volume of type raid,raid1 can't be active on two hosts; shut the VM down and "
        "start it there"
    )
    h2.host.is_ours = lambda _: False
    assert await lvm.why_not_live(wants) == ""


# --- what is not its business ---


@scene()
async def test_disk_with_another_rule_is_left_as_it_is(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.locks.activate(LV1, SH) is None
    h1.status.says("running")
    h1.host.is_ours = lambda path: path != str(LV1)
    assert await h1.passes()
    assert w.modes == [SH, None]
    wants = [AcquireRequest(DISK, EX), AcquireRequest(Resource("/space", str(LV1)), EX)]
    assert await backend(h1).prepare("uuid-v2", LIBVIRTD, wants) == ""
    assert w.modes == [SH, None]


@scene()
async def test_lock_has_the_key_of_the_device_as_another_rule_may_lock_that_by_another_path(w: World) -> None:
    (h1, _) = w.hosts
    assert await h1.locks.activate(LV1, EX) is None
    h1.reports.text = report()
    device = FileKey(-1, 64512)

    async def disk_key(path: str) -> FileKey | None:
        return device if path == str(LV1) else None

    made = LvmBackend("san-lvm", h1.host, handover_wait_s=20.0, acquire_wait_s=5.0, disk_key=disk_key)
    found = await made.open(DISK, create=Creation.NONE)
    assert isinstance(found, VolumeLock)
    assert found.keys[1:] == (device,)
    assert found.keys[0].device not in (-1, -2)


@scene()
async def test_name_in_a_lockspace_is_refused(w: World) -> None:
    (h1, _) = w.hosts
    with pytest.raises(Refused, match="driver lvm locks volumes by their paths"):
        await backend(h1).open(Resource("/space", str(LV1)), create=Creation.LASTING)


@scene()
async def test_refusal_names_the_vm_or_the_host_in_the_way(w: World) -> None:
    (h1, h2) = w.hosts
    await h1.starts()
    here = await lock_of(h1).take(EX, note(Vm("uuid-v2", 8)))
    assert isinstance(here, HeldElsewhere)
    assert [(each.name, each.pid) for each in here.holders] == [("v1", 7)]
    asking = asyncio.ensure_future(lock_of(h2).take(EX, note(Vm("uuid-v2", 8))))
    await w.clock.advance(6.0)
    there = await asking
    assert isinstance(there, HeldElsewhere)
    assert [each.host for each in there.holders] == ["h1"]


@scene()
async def test_pass_that_fails_by_a_bug_is_not_the_last_one(w: World) -> None:
    (h1, _) = w.hosts
    await h1.starts()
    served = backend(h1)
    survey, calls = h1.status.survey, []

    def fails_once() -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        return survey()

    h1.status.survey = fails_once  # type: ignore[method-assign,assignment]
    served.begin(None)
    h1.opens(closes=True)
    h1.status.gone()
    for _ in range(4):
        await w.clock.advance(5.0)
    served.stop()
    assert not h1.is_active


def test_target_file_of_another_vm_is_no_rival() -> None:
    """Only guests that run are: a target's may not yet."""
    target = Domain(
        "v2", "uuid-v2", (Disk(str(LV1), shareable=False),), frozenset(), 8, "paused", IN, "prepare"
    )

    async def go() -> None:
        w = World()
        h1 = w.hosts[0]
        h1.status.files["v2"] = target
        assert h1.host.runs_here(LV1, Vm(V1, 7), EX) is None

    asyncio.run(go())

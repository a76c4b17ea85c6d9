"""A disk with a guard (`Route.guard`): a lease of what it is, in another backend, taken first and given back last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
from tests.unit.manager.test_departures import OUT, Status
from tests.unit.manager.test_knows_writers import DISK, EX, SH, Volumes
from tests.unit.manager.world import NoLibvirt, World, run, want

from holdfast.backends.base import Creation, HeldElsewhere, OwnerNote
from holdfast.backends.lease_backend import LeaseBackend
from holdfast.backends.lvm.write_rules import Vm
from holdfast.control.api import IDENTITY_PROBLEM
from holdfast.daemon.volume_claims import _guard
from holdfast.errors import Refused, ResourceBusy
from holdfast.lease_admin.held_back_releases import HeldBackReleases
from holdfast.manager.departures import READ_S
from holdfast.manager.identity_locks import IdentityLocks
from holdfast.manager.repeated_attempts import AGAIN_FIRST_S
from holdfast.model import IDENTITY_LOCKSPACE, Holder, Mode, Resource
from holdfast.system.files.ofd_lock import FileKey, IoFailed
from holdfast.system.libvirt.domains import Disk, Domain
from holdfast_sim.volumes.shared_locks import volume_named

IDENTITY = Resource(IDENTITY_LOCKSPACE, "lvm:uuid")
DISK_KEY = FileKey(-1, 7)


class Names:
    """Of one disk; `known` False: nothing says what it is."""

    known = True
    identity_of = IDENTITY

    async def identity(self, resource: Resource) -> Resource | None:
        return self.identity_of if self.known else None


class Guard(Volumes):
    """Leases; `writer_elsewhere`: another host has it."""

    def __init__(self, calls: list[str], name: str = "san") -> None:
        super().__init__()
        self.name, self.names = name, Names()
        self.keys = (FileKey(-2, 1), DISK_KEY)
        self.said = calls

    async def open(self, resource: Resource, *, create: Creation) -> Guard | IoFailed:
        assert resource == self.names.identity_of
        return self

    async def take(self, mode: Mode, note: OwnerNote) -> Guard | HeldElsewhere:
        self.said.append(f"guard {mode.word}")
        if self.writer_elsewhere:
            return HeldElsewhere((Holder(name="web1", host="beta"),))
        return self

    def release_nowait(self) -> bool:
        self.said.append("guard given back")
        return True


class Guarded(World):
    """One disk with a guard; `calls` has what both backends were asked for, in order."""

    def __init__(self, directory: Path, *, before: World | None = None, status: Status | None = None) -> None:
        self.volumes = Volumes()
        self.volumes.keys = (FileKey(7, 7), DISK_KEY)
        self.calls = self.volumes.calls
        self.guard = Guard(self.calls)
        super().__init__(
            directory,
            before=before,
            status=status,
            writers=self.volumes,
            guard=cast(LeaseBackend, self.guard),
        )
        self.identities = IdentityLocks(self.manager, clock=self.clock)


def scene(body: Callable[[Guarded], Awaitable[None]]) -> Callable[[Path], None]:
    def test(tmp_path: Path) -> None:
        async def go() -> None:
            await body(Guarded(tmp_path))

        run(go)

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


@scene
async def test_guard_is_taken_first_and_given_back_last(w: Guarded) -> None:
    vm = w.owner(50)
    assert await w.manager.acquire(vm, want(DISK))
    assert w.calls == ["guard exclusive", "ask exclusive 50"]
    w.calls.clear()
    await w.manager.release(vm, Resource("", DISK))
    assert w.calls == ["left 50", "release", "guard given back"]
    assert len(w.manager.table) == 0


@scene
async def test_disk_of_which_nothing_says_what_it_is_is_refused(w: Guarded) -> None:
    w.guard.names.known = False
    with pytest.raises(Refused, match="gets no lease of backend 'san', its guard"):
        await w.manager.acquire(w.owner(50), want(DISK))
    assert (w.calls, len(w.manager.table)) == ([], 0)


@scene
async def test_guard_that_another_host_has_refuses_with_its_vm_before_the_volume_is_asked_for(
    w: Guarded,
) -> None:
    w.guard.writer_elsewhere = True
    with pytest.raises(ResourceBusy, match="locked by web1 on host beta") as refused:
        await w.manager.acquire(w.owner(50), want(DISK))
    assert "identity" not in str(refused.value)
    assert w.calls == ["guard exclusive"]


@scene
async def test_guard_is_given_back_when_the_volume_is_refused(w: Guarded) -> None:
    w.volumes.writer_elsewhere = True
    with pytest.raises(ResourceBusy):
        await w.manager.acquire(w.owner(50), want(DISK))
    assert w.calls == ["guard exclusive", "ask exclusive 50", "guard given back"]
    assert len(w.manager.table) == 0


def test_guard_stays_until_the_guest_has_left(tmp_path: Path) -> None:
    async def go() -> None:
        status = Status()
        w = Guarded(tmp_path, status=status)
        vm = w.owner(50, "web1")
        status.says(vm.name.name, 50, "running", "booted")
        await w.manager.acquire(vm, want(DISK))
        status.says(vm.name.name, 50, "paused", "migration", OUT, "perform3")
        await w.manager.release(vm, Resource("", DISK))
        await w.clock.advance(READ_S * 3)
        assert "guard given back" not in w.calls
        status.says(vm.name.name, 50, "paused", "migration", OUT, "perform3_done")
        await w.clock.advance(READ_S * 3)
        assert w.calls[-1] == "guard given back"

    run(go)


@pytest.mark.parametrize("restarted", [False, True])
def test_guard_of_a_lost_lockspace_stays_until_qemu_answers(tmp_path: Path, restarted: bool) -> None:
    """The lock that libvirt releases is LVM's, of another backend (ADR 0224)."""

    async def go() -> None:
        w = Guarded(tmp_path)
        vm = w.owner(50, "web1")
        await w.manager.acquire(vm, want(DISK))
        if restarted:
            saved = w.saved()
            w.crash()
            w = Guarded(tmp_path, before=w)
            owners = w.recovery.owners(saved)
            await w.recovery.locks(saved, owners, {})
            (vm,) = owners.values()
        answers = False

        class Qemu(NoLibvirt):
            async def answers(self, uuid: str) -> bool:
                return answers

        w.manager.releaser.held_back = HeldBackReleases(
            w.manager,
            clock=w.clock,
            domains=Qemu(),
            status=None,
            is_lease=lambda lock: lock.backend == "san",
            losses=("space1",),
            is_lost=lambda lock: lock.backend == "san",
        )
        await w.manager.release(vm, Resource("", DISK))
        await w.clock.advance(5.0)
        assert "guard given back" not in w.calls
        assert not any(call.startswith("left") for call in w.calls)
        answers = True
        await w.clock.advance(5.0)
        assert w.calls[-1] == "guard given back"
        assert len(w.manager.table) == 0

    run(go)


@pytest.mark.parametrize("is_known", [True, False])
def test_second_lock_of_a_disk_is_no_other_lease(tmp_path: Path, is_known: bool) -> None:
    """Else no disk with an identity would be the last one of a VM that stops (ADR 0244). `is_known`: of which disk it is."""

    async def go() -> None:
        status = Status()
        w = Guarded(tmp_path, status=status)
        vm = w.owner(50, "web1")
        status.domains["web1"] = Domain(
            "web1", "uuid-50", (Disk(DISK, shareable=False),), frozenset(), 50, "running"
        )
        await w.manager.acquire(vm, want(DISK))
        w.libvirt.answering.clear()
        w.manager.releaser.held_back = HeldBackReleases(
            w.manager,
            clock=w.clock,
            domains=w.libvirt,
            status=status,
            losses=(),
            is_lease=lambda _: True,
            is_lost=lambda _: False,
        )
        if not is_known:
            for lock in w.manager.table.of_owner(vm.id):
                if any(name.lockspace == IDENTITY_LOCKSPACE for name in lock.names()):
                    lock.keys = lock.keys[:1]
        await w.manager.release(vm, Resource("", DISK))
        assert w.manager.claimed(vm, Resource("", DISK)) is not None
        if is_known:
            w.libvirt.answering.set()
            await w.clock.advance(1.0)
            assert w.calls[-1] == "guard given back" and len(w.manager.table) == 0

    run(go)


def test_running_vm_without_one_gets_it_in_the_background_or_is_named(tmp_path: Path) -> None:
    async def go() -> None:
        first = World(tmp_path, writers=Volumes())
        await first.manager.acquire(first.owner(50, "web1"), want(DISK))
        saved = first.saved()
        first.crash()
        w = Guarded(tmp_path, before=first)
        w.guard.writer_elsewhere = True
        await w.recovery.locks(saved, w.recovery.owners(saved), {})
        w.identities.begin()
        await w.clock.advance(0)
        (problem,) = w.identities.problems()
        assert problem.startswith(f"{IDENTITY_PROBLEM}{DISK} of web1")
        assert "has no lease of backend 'san', its guard: " in problem
        assert "that VM is not migrated live" in problem
        w.guard.writer_elsewhere = False
        await w.clock.advance(4 * AGAIN_FIRST_S)
        assert w.identities.problems() == []
        assert (lock := w.manager.table.named(IDENTITY)) is not None
        assert lock.backend == "san"

    run(go)


@scene
async def test_lease_of_an_earlier_guard_is_named_until_the_vm_lets_go_of_it(w: Guarded) -> None:
    vm = w.owner(50, "web1")
    await w.manager.acquire(vm, want(DISK))
    (lock,) = [each for each in w.manager.table if each.backend == "san"]
    lock.backend = "sun"
    w.backends["sun"] = w.guard
    w.identities.begin()
    await w.clock.advance(0)
    (problem,) = w.identities.problems()
    assert "it is of backend 'sun' until the VM is suspended and resumed" in problem


@scene
async def test_lease_counts_for_its_vm_alone_and_only_while_it_is_held(w: Guarded) -> None:
    volume = volume_named("")
    assert f"lvm:{volume.id.lv_uuid}" == "lvm:uuid-"
    w.guard.names.identity_of = Resource(IDENTITY_LOCKSPACE, "lvm:uuid-")
    vm = w.owner(50, "web1")
    await w.manager.acquire(vm, want(DISK))

    def mode(uuid: str, pid: int, guard: str = "san") -> Mode | None:
        return _guard(w.manager, guard, Vm(uuid, pid), volume)

    assert mode("uuid-50", 50) is EX
    assert mode("uuid-51", 50) is mode("uuid-50", 51) is mode("uuid-50", 50, "sun") is None
    lock = w.manager.table.named(w.guard.names.identity_of)
    assert lock is not None
    lock.held = None
    assert mode("uuid-50", 50) is None


@scene
async def test_vms_that_share_a_disk_share_its_guard(w: Guarded) -> None:
    one, two = w.owner(50), w.owner(51)
    await w.manager.acquire(one, want(DISK, SH))
    await w.manager.acquire(two, want(DISK, SH))
    with pytest.raises(ResourceBusy):
        await w.manager.acquire(two, want(DISK, EX))
    await w.manager.release(one, Resource("", DISK))
    assert "guard given back" not in w.calls
    await w.manager.release(two, Resource("", DISK))
    assert w.calls[-1] == "guard given back"

"""Releases outside a loss: a VM's last lease stays until its QEMU has answered a query (ADR 0244)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.manager.test_departures import OUT, Status
from tests.unit.manager.world import HOST, World, run, want

from holdfast.errors import Refused, ResourceBusy
from holdfast.lease_admin.held_back_releases import QUERIES_MAX, HeldBackReleases
from holdfast.manager.arrivals import AWAITS_QEMU_S
from holdfast.manager.owners import Owner
from holdfast.manager.queries import Inspection
from holdfast.manager.routing import Route, Rule
from holdfast.model import AcquireRequest, Mode, Protection, Resource
from holdfast.system.files.lockspace_files import LockspaceFiles
from holdfast.system.files.storage_executor import InlineStorage
from holdfast.system.libvirt.domains import Disk, Domain

VM, OTHER = 1, 2
LOCAL = "indirect/local.img"
"""Of a backend whose locks are no leases."""


class Stopped(World):
    """Locks of backend `file` stand for leases; no lockspace is lost."""

    def __init__(self, directory: Path) -> None:
        self.status = Status()
        self.has_failed = False
        super().__init__(directory, status=self.status)
        self.held_back = HeldBackReleases(
            self.manager,
            clock=self.clock,
            domains=self.libvirt,
            status=self.status,
            losses=(),
            is_lease=lambda lock: lock.backend == "file",
            is_lost=lambda _: False,
            has_failed=lambda _: self.has_failed,
        )
        self.manager.releaser.held_back = self.held_back
        self.libvirt.answering.clear()

    def says(self, state: str, job: str = "", *, disks: int = 1) -> None:
        """libvirt's status file of the VM, as it is when RELEASE comes: the state may be the one before."""
        self.status.domains["web1"] = Domain(
            "web1",
            f"uuid-{VM}",
            tuple(Disk(self.disk(), shareable=False) for _ in range(disks)),
            frozenset(),
            VM,
            state,
            async_job=job,
        )

    async def running(self, *more: AcquireRequest) -> tuple[Owner, Resource]:
        owner, disk = self.owner(VM, "web1"), want(self.disk())
        self.says("running")
        for each in (disk, *more):
            await self.manager.acquire(owner, each)
        return owner, disk.resource

    def has(self, owner: Owner, resource: Resource) -> bool:
        return self.manager.claimed(owner, resource) is not None


def scene(body: Callable[[Stopped], Awaitable[None]]) -> Callable[[Path], None]:
    def test(tmp_path: Path) -> None:
        async def go() -> None:
            await body(Stopped(tmp_path))

        run(go)

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


@scene
async def test_last_lease_stays_until_qemu_answers(w: Stopped) -> None:
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    w.says("paused")
    await w.manager.release(owner, disk)  # libvirt releases twice
    await w.clock.advance(60)
    assert w.has(owner, disk) and w.libvirt.queries == [f"uuid-{VM}"]
    inspection = Inspection(w.manager, files=LockspaceFiles(), storage=InlineStorage(), host=HOST)
    assert [lock.until for lock in inspection.locks()] == ["held until QEMU answers"]
    w.libvirt.answering.set()
    await w.clock.advance(1)
    assert not w.has(owner, disk)
    assert not any(w.saved().locks.values())


@scene
async def test_leases_before_the_last_one_are_released_at_once(w: Stopped) -> None:
    second, local = want(w.disk("second")), want(w.disk(LOCAL))
    owner, disk = await w.running(second, local)
    await w.manager.release(owner, disk)
    assert not w.has(owner, disk) and w.libvirt.queries == []
    await w.manager.release(owner, second.resource)
    await w.manager.release(owner, local.resource)
    assert w.has(owner, second.resource) and not w.has(owner, local.resource)


@scene
async def test_lost_lock_keeps_nobody_out_and_is_no_other_lease(w: Stopped) -> None:
    """Found by seed 122008320 with forced habits: the journal had a lock of no lockspace, which counted as lost."""
    second = want(w.disk("second"))
    owner, disk = await w.running(second)
    lock = w.manager.table.named(second.resource)
    assert lock is not None and lock.held is not None
    lock.held.forget()
    lock.held = None
    await w.manager.release(owner, disk)
    assert w.has(owner, disk) and w.libvirt.queries == [f"uuid-{VM}"]


@scene
async def test_lock_by_another_name_of_the_disk_is_no_other_lease(w: Stopped) -> None:
    """Found by seed 122041581 with forced habits: a daemon that was killed had left it, and it was given to the VM."""
    other_name = want(w.disk("second"))
    owner, disk = await w.running(other_name)
    first, second = (w.manager.table.named(name) for name in (disk, other_name.resource))
    assert first is not None and second is not None
    w.manager.table.learn(second, (*second.keys, first.keys[0]))
    await w.manager.release(owner, disk)
    assert w.has(owner, disk) and w.libvirt.queries == [f"uuid-{VM}"]


@pytest.mark.parametrize("shared_first", [False, True])
def test_shared_lease_does_not_let_the_last_exclusive_one_go(tmp_path: Path, shared_first: bool) -> None:
    async def go() -> None:
        w = Stopped(tmp_path)
        shared = want(w.disk("shared"), Mode.SHARED)
        owner, disk = await w.running(shared)
        for resource in (shared.resource, disk) if shared_first else (disk, shared.resource):
            await w.manager.release(owner, resource)
        assert w.has(owner, disk)

    run(go)


@scene
async def test_guest_that_runs_on_has_its_lease_and_an_older_answer_does_not_release_it(w: Stopped) -> None:
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    await w.manager.acquire(owner, want(disk.name))
    w.libvirt.answering.set()
    await w.clock.advance(5)
    assert w.has(owner, disk)
    w.libvirt.answering.clear()
    await w.manager.release(owner, disk)
    assert w.has(owner, disk) and len(w.libvirt.queries) == 2
    w.libvirt.answering.set()
    await w.clock.advance(1)
    assert not w.has(owner, disk)


@scene
async def test_guest_does_not_run_on_with_a_lease_that_has_just_failed(w: Stopped) -> None:
    """Its loss is reported by the heartbeat's thread, and may be a moment late."""
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    w.has_failed = True
    with pytest.raises(Refused, match="lockspace was lost"):
        await w.manager.acquire(owner, want(disk.name))
    assert w.has(owner, disk)
    w.has_failed = False
    await w.manager.acquire(owner, want(disk.name))


@scene
async def test_answer_to_an_earlier_release_does_not_end_a_later_one(w: Stopped) -> None:
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    await w.manager.acquire(owner, want(disk.name))
    await w.manager.release(owner, disk)
    w.libvirt.answering.set()
    await w.clock.advance(1)
    assert len(w.libvirt.queries) == 2 and not w.has(owner, disk)


@scene
async def test_acquire_that_takes_it_back_is_no_second_one(w: Stopped) -> None:
    """Else the next release would only undo it, and the disk stay locked (`RepeatedAcquirePolicy`)."""
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    await w.manager.acquire(owner, want(disk.name))
    w.libvirt.answering.set()
    await w.clock.advance(1)
    await w.manager.release(owner, disk)
    await w.clock.advance(1)
    assert not w.has(owner, disk)


@scene
async def test_guest_that_runs_on_gets_the_lock_that_the_rules_name_now(w: Stopped) -> None:
    """`holdfast doctor` names suspend and resume as the way to it (HF092)."""
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    rule = Rule(disk.name, Route(w.backends["shared"], Protection.NONE), of_lockspace=False)
    w.manager.routing.rules = (rule,)
    acquiring = asyncio.ensure_future(w.manager.acquire(owner, want(disk.name)))
    await w.clock.advance(1)
    assert not acquiring.done() and w.has(owner, disk), "requests may be under way"
    w.libvirt.answering.set()
    await w.clock.advance(1)
    await acquiring
    (lock,) = w.manager.table
    assert lock.backend == "shared"


@scene
async def test_guest_keeps_its_lock_if_the_rules_name_another_and_qemu_does_not_answer(w: Stopped) -> None:
    """The other lock may be another VM's: without either, a second guest could write while requests are under way."""
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    rule = Rule(disk.name, Route(w.backends["shared"], Protection.NONE), of_lockspace=False)
    w.manager.routing.rules = (rule,)
    acquiring = asyncio.ensure_future(w.manager.acquire(owner, want(disk.name)))
    await w.clock.advance(AWAITS_QEMU_S + 1)
    with pytest.raises(Refused, match="QEMU has not answered"):
        await acquiring
    (lock,) = w.manager.table
    assert (lock.backend, w.has(owner, disk)) == ("file", True)


@pytest.mark.parametrize(
    ("says", "because"),
    [
        (lambda w: w.says("running", OUT), "QEMU hands over after its requests have ended"),
        (lambda w: w.status.domains.clear(), "it is no VM of this libvirt's"),
        (lambda w: w.says("running", disks=0), "nothing could be asked about it"),
    ],
    ids=["source", "not-libvirts", "no-disk"],
)
def test_released_at_once(tmp_path: Path, says: Callable[[Stopped], None], because: str) -> None:
    async def go() -> None:
        w = Stopped(tmp_path)
        owner, disk = await w.running()
        says(w)
        w.manager.departures.holds_back = lambda *_: False  # type: ignore[method-assign]
        await w.manager.release(owner, disk)
        assert not w.has(owner, disk) and w.libvirt.queries == [], because

    run(go)


@scene
async def test_few_queries_keep_libvirt_waiting_at_once(w: Stopped) -> None:
    """An outage stops all VMs of a host: what an administrator asks libvirt has to get through."""
    for number in range(QUERIES_MAX + 2):
        name = f"web{number}"
        owner, disk = w.owner(10 + number, name), want(w.disk(name))
        w.status.domains[name] = Domain(
            name,
            f"uuid-{10 + number}",
            (Disk(disk.resource.name, False),),
            frozenset(),
            10 + number,
            "running",
        )
        await w.manager.acquire(owner, disk)
        await w.manager.release(owner, disk.resource)
    await w.clock.advance(5)
    assert len(w.libvirt.queries) == QUERIES_MAX and len(w.manager.table) == QUERIES_MAX + 2
    w.libvirt.answering.set()
    await w.clock.advance(1)
    assert len(w.manager.table) == 0


@scene
async def test_next_vm_waits_for_the_answer(w: Stopped) -> None:
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    other = w.owner(OTHER, "web2")
    start = w.start(w.manager.acquire(other, want(disk.name)))
    await w.clock.advance(AWAITS_QEMU_S / 2)
    assert not start.done()
    w.libvirt.answering.set()
    await w.clock.advance(AWAITS_QEMU_S / 4)
    assert start.done() and await start


@scene
async def test_next_vm_is_refused_if_there_is_no_answer(w: Stopped) -> None:
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    start = w.start(w.manager.acquire(w.owner(OTHER, "web2"), want(disk.name)))
    await w.clock.advance(AWAITS_QEMU_S * 2)
    with pytest.raises(ResourceBusy, match="web1"):
        await start


@scene
async def test_what_ends_while_it_is_asked_is_released(w: Stopped) -> None:
    owner, disk = await w.running()
    await w.manager.release(owner, disk)
    w.processes.end(VM)
    await w.clock.advance(1)
    assert len(w.manager.table) == 0

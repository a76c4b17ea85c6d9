"""Which release after a second acquire lets go of the disk, and which undoes only an attach (ADR 0006).

The rows are what libvirt's status file said in traced runs of a real libvirtd at each of these operations.
"""

import asyncio
from dataclasses import replace

import pytest

from holdfast.errors import DiskTwice
from holdfast.manager.owners import Owner
from holdfast.manager.repeated_acquire import UNDO_S, RepeatedAcquirePolicy
from holdfast.model import Holder, OwnerName, Resource
from holdfast.system.libvirt.domain_disks import Access, DomainDisk, Kind
from holdfast.system.libvirt.domains import Disk, Domain
from holdfast.testing.fakes import SimulatedClock

DISK = Resource("", "/srv/web.raw")


def domain(state: str = "running", *, times: int = 1, job: str = "", backing: tuple[str, ...] = ()) -> Domain:
    disks = (Disk(DISK.name, shareable=False),) * times
    return Domain("web1", "", disks, frozenset(backing), 7, state, job)


class Status:
    def __init__(self) -> None:
        self.now: Domain | None = domain()

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        return self.now

    def running(self) -> list[Domain]:
        return [self.now] if self.now is not None else []


class Scene:
    """A VM that holds `DISK` and has just acquired it again."""

    def __init__(self, at_acquire: Domain | None = None) -> None:
        self.status, self.clock = Status(), SimulatedClock()
        self.rule = RepeatedAcquirePolicy(self.status, self.clock)
        self.owner = Owner(1, 7, OwnerName("web1", ""), None)
        self.status.now = at_acquire if at_acquire is not None else domain()
        self.rule.question(self.owner, DISK, Holder)
        self.status.now = domain()

    def wait(self, duration_s: float) -> None:
        asyncio.run(self.clock.advance(duration_s))

    def lets_go(self, *, now: Domain | None = None) -> bool:
        if now is not None:
            self.status.now = now
        return not self.rule.is_undone(self.owner, DISK)


def test_attach_that_qemu_refuses_lets_nothing_go() -> None:
    assert not Scene().lets_go()


def test_block_copy_that_qemu_refuses_late_lets_nothing_go_with_either_release() -> None:
    scene = Scene()
    scene.wait(UNDO_S / 2)
    assert not scene.lets_go()
    assert not scene.lets_go()


def test_suspend_right_after_a_reboot_lets_go_with_its_second_release() -> None:
    scene = Scene()
    assert not scene.lets_go()
    assert scene.lets_go(now=domain("paused"))


@pytest.mark.parametrize("job", ["migration out", "save"])
def test_job_right_after_a_reboot_lets_go(job: str) -> None:
    assert Scene().lets_go(now=domain(job=job))


def test_detach_some_time_after_a_reboot_lets_go() -> None:
    scene = Scene()
    scene.wait(UNDO_S + 1)
    assert scene.lets_go()


def test_disk_attached_twice_in_spite_of_all_stays_held_whenever_one_is_detached() -> None:
    """QEMU's own locking is off: only libvirt's file tells that another of the VM's disks is the same image."""
    scene = Scene()
    scene.wait(UNDO_S * 100)
    assert not scene.lets_go(now=domain(times=2))
    scene.wait(1)
    assert scene.lets_go(now=domain(times=1)), "the last of the two"


def volumes(*names: str, files: int = 0) -> Domain:
    """A VM with volumes whose paths are not known, as libvirt 9.0 lists them when their pool is gone."""
    lost = (DomainDisk("vda", Kind.VOLUME, Access.EXCLUSIVE, name) for name in names)
    return replace(domain(times=files), every=tuple(lost))


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        (volumes("images/web.raw", "images/web.raw"), True),
        (volumes("images/web.raw", files=1), True),
        (volumes("images/web.raw"), False),
        (volumes("images/web.raw", "images/data.raw"), False),
        (volumes("images/data.raw", files=1), False),
    ],
    ids=["twice", "as a file too", "once", "beside another", "another"],
)
def test_volume_that_is_attached_twice_stays_held_when_one_is_detached(now: Domain, kept: bool) -> None:
    """public-reports.md 2: the running VM's lock was freed, and the next host started."""
    scene = Scene()
    scene.wait(UNDO_S * 100)
    assert scene.lets_go(now=now) is not kept


def test_disk_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(DiskTwice):
        Scene(domain(times=2))


@pytest.mark.parametrize("at_acquire", [domain("paused"), domain(backing=(DISK.name,))])
def test_resume_and_block_job_leave_no_doubt(at_acquire: Domain) -> None:
    assert Scene(at_acquire).lets_go()


def test_hold_that_ended_is_no_longer_in_doubt() -> None:
    scene = Scene()
    scene.rule.forget(scene.owner, DISK)
    assert scene.lets_go()

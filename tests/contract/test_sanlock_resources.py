"""Leases of sanlock's clients: what each rule of sanlock-socket.md 2.3 to 2.5 answers, and what stays held."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import pytest
from tests.contract.test_sanlock_frontend import Scene as SocketScene
from tests.support.leases import SPACE, TIMING, lease_file
from tests.support.sanlock_clients import LVER, PERSISTENT, SHARED, Site, Storage, comes, played
from tests.support.sanlock_service import FakeService

from holdfast.errors import ResourceBusy
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.resource_commands import ResourceCommands
from holdfast.lease_admin.lockspace_loss import LockspaceLoss, Loss
from holdfast.manager import events as ev
from holdfast.model import AcquireRequest, Instant, Mode, OwnerName, Resource
from holdfast.ondisk.geometry import GEOMETRIES, MIB
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.request import Request
from holdfast.protocol.host_status import HostState
from holdfast.supervision.lockspace_news import Lost
from holdfast.wire.sanlock import replies, structures
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import AcquireFlag, ForceMode, ReleaseFlag, RequestFlag, ResourceFlag
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import VERSION_3_9

ONE, TWO, THREE = 101, 102, 103
LVB, ORPHAN, ORPHAN_ONLY, NOWAIT = (
    AcquireFlag.LVB,
    AcquireFlag.ORPHAN,
    AcquireFlag.ORPHAN_ONLY,
    AcquireFlag.OWNER_NOWAIT,
)


# --- acquire ---


def test_same_lease_is_never_given_to_two_clients(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s)
        one, two, same_process = site.client(ONE), site.client(TWO), site.client(ONE)
        assert await site.acquire(one, s.resource("R1"), owner_name="vm-1") == Result.OK
        assert s.leader("R1").owner_id == 1
        for other in (one, two, same_process):
            assert await site.acquire(other, s.resource("R1")) == Result.EEXIST
            assert await site.acquire(other, s.resource("R1", SHARED)) == Result.EEXIST
        assert site.claims("R1") == {"vm-1 (pid 101)": Mode.EXCLUSIVE}
        assert [e.kind for e in site.world.events.recent()][:1] == [ev.ACQUIRED]
        assert await site.release(one, s.resource("R1")) == Result.OK
        assert s.leader("R1").is_free
        assert await site.acquire(two, s.resource("R1")) == Result.OK

    played(scene)


def test_lease_that_another_client_is_just_acquiring_is_busy(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s)
        clients = [site.client(pid) for pid in (ONE, TWO, THREE)]
        results = await asyncio.gather(*(site.acquire(each, s.resource("R1")) for each in clients))
        assert sorted(results) == [Result.EBUSY, Result.EBUSY, Result.OK]

    played(scene)


def test_all_leases_of_a_call_or_none(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2", "R3")
        site = Site(s)
        one, two = site.client(ONE), site.client(TWO)
        assert await site.acquire(two, s.resource("R2")) == Result.OK
        wanted = [s.resource(name) for name in ("R1", "R2", "R3")]
        assert await site.acquire(one, *wanted) == Result.EEXIST
        assert await site.state(one) == ""
        assert s.leader("R1").is_free
        assert s.leader("R1").lver == 1, "it was acquired first, and given back"
        assert s.leader("R3").lver == 0, "it was not tried"
        assert await site.release(two, s.resource("R2")) == Result.OK
        assert await site.acquire(one, *wanted) == Result.OK
        assert await site.state(one) == " ".join(
            f"{SPACE}:{name}:{s.path}:{n * MIB}:{lver}"
            for n, name, lver in ((1, "R1", 2), (2, "R2", 2), (3, "R3", 1))
        )
        assert await site.acquire(one) == Result.OK

    played(scene)


def test_refusals_have_sanlocks_codes(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2")
        site, other = Site(s), Site(s, host_id=2)
        one, far = site.client(ONE), other.client(TWO)
        at_r2 = s.resource("R2").disks

        async def answer(resource: structures.Resource, flags: int = 0) -> int:
            return await site.acquire(one, resource, flags=flags)

        assert await answer(s.resource("R1", space="unknown")) == Result.ENOSPC
        assert await answer(s.resource("R1")._replace(disks=at_r2)) == Result.LEADER_RESOURCE
        assert await answer(s.resource("none")._replace(disks=(structures.Disk(str(s.path), 0),))) == (
            Result.LEADER_MAGIC
        )
        missing = structures.Disk(str(s.path) + ".missing")
        assert await answer(s.resource("R1")._replace(disks=(missing,))) == Result.ENOENT
        beyond = structures.Disk(str(s.path), 64 * MIB)
        assert await answer(s.resource("R1")._replace(disks=(beyond,))) == Result.EMSGSIZE
        assert await answer(s.resource("R1", LVER, lver=7)) == Result.ACQUIRE_LVER
        assert await answer(s.resource("R1", SHARED | LVER, lver=7)) == Result.ACQUIRE_LVER
        assert await answer(s.resource("R1"), ORPHAN_ONLY) == Result.ENOENT
        two_disks = s.resource("R1")._replace(disks=at_r2 * 2, num_disks=2)
        assert await answer(two_disks) == Result.EINVAL
        assert s.leader("R1").lver == 0

        assert await other.acquire(far, s.resource("R1")) == Result.OK
        assert await answer(s.resource("R1")) == Result.ACQUIRE_IDLIVE
        assert await answer(s.resource("R1", SHARED)) == Result.ACQUIRE_IDLIVE
        assert [e.kind for e in site.world.events.recent()][-1:] == [ev.REFUSED]
        site.host.state_of[2] = HostState.FAIL
        assert await answer(s.resource("R1"), NOWAIT) == Result.ACQUIRE_OWNED_RETRY
        assert await other.release(far, s.resource("R1")) == Result.OK
        assert await answer(s.resource("R1", LVER, lver=s.leader("R1").lver)) == Result.OK

    played(scene)


def test_shared_leases(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)
        one, two, far = site.client(ONE), site.client(TWO), other.client(THREE)
        for where, client in ((site, one), (site, two), (other, far)):
            assert await where.acquire(client, s.resource("R1", SHARED)) == Result.OK
        assert await site.acquire(site.client(THREE), s.resource("R1")) == Result.EEXIST
        assert (await site.state(one)).endswith(":SH")
        assert await site.release(one, s.resource("R1")) == Result.OK
        assert await other.acquire(other.client(ONE), s.resource("R1")) == Result.EEXIST
        assert await other.release(far, s.resource("R1")) == Result.OK
        assert await other.acquire(far, s.resource("R1")) == Result.EAGAIN, "host 1 shares it still"
        assert await site.release(two, s.resource("R1")) == Result.OK
        assert await other.acquire(far, s.resource("R1")) == Result.OK

    played(scene)


def test_two_clients_of_one_process_share_a_lease_until_the_last_one_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)
        first, second = site.client(ONE), site.client(ONE)
        for each in (first, second):
            assert await site.acquire(each, s.resource("R1", SHARED)) == Result.OK
        assert await site.release(first, s.resource("R1")) == Result.OK
        assert await other.acquire(other.client(TWO), s.resource("R1")) == Result.EAGAIN
        await site.close(second)
        assert await other.acquire(other.client(TWO), s.resource("R1")) == Result.OK

    played(scene)


def test_acquire_waits_for_an_owner_that_may_be_dead(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)
        assert await other.acquire(other.client(TWO), s.resource("R1")) == Result.OK
        site.host.state_of[2] = HostState.FAIL
        waits = asyncio.get_running_loop().create_task(site.acquire(site.client(ONE), s.resource("R1")))
        await comes(lambda: site.world.clock.sleepers)
        assert not waits.done()
        record = other.host
        await other.release(other._clients.in_order()[0], s.resource("R1"))
        await site.world.clock.advance(2)
        assert await asyncio.wait_for(waits, 20) == Result.OK
        assert record.host_id == 2

    played(scene)


def test_client_that_ends_while_it_waits_gets_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2")
        site, other = Site(s), Site(s, host_id=2)
        one, far = site.client(ONE), other.client(TWO)
        assert await other.acquire(far, s.resource("R2")) == Result.OK
        site.host.state_of[2] = HostState.FAIL
        wanted = s.resource("R1"), s.resource("R2")
        waits = asyncio.get_running_loop().create_task(site.acquire(one, *wanted))
        await comes(lambda: site.world.clock.sleepers)
        one.dead = True
        assert await other.release(far, s.resource("R2")) == Result.OK
        await site.world.clock.advance(2)
        assert await asyncio.wait_for(waits, 20) == Result.ENOTTY
        assert s.leader("R1").is_free
        assert s.leader("R2").is_free

    played(scene)


def test_holder_is_named(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)
        one, far = site.client(ONE), other.client(TWO)

        async def answer() -> replies.Plain | replies.Holder:
            return await site.commands.acquire2(one, r.Acquire2(0, r.OWN, (s.resource("R1"),)))

        assert await other.acquire(far, s.resource("R1")) == Result.OK
        refused = await answer()
        assert isinstance(refused, replies.Holder)
        assert (refused.result, refused.host.host_id, refused.host.generation) == (
            Result.ACQUIRE_IDLIVE,
            2,
            1,
        )
        assert refused.host.timestamp == s.leader("R1").timestamp
        assert (refused.host_name.text, refused.host.state) == ("host-2", 3)
        assert await other.convert(far, s.resource("R1", SHARED)) == Result.OK
        shared = await answer()
        assert isinstance(shared, replies.Holder)
        assert (shared.result, shared.host.host_id, shared.host.timestamp) == (Result.EAGAIN, 2, 0)
        assert await other.release(far, s.resource("R1")) == Result.OK
        assert await answer() == replies.Plain()

    played(scene)


# --- one lease table ---


def test_vm_of_the_lockd_plugin_and_a_client_exclude_each_other(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path / "srv")
        site = Site(s, lockd=True)
        disk = tmp_path / "leased" / "disk.img"
        disk.parent.mkdir()
        disk.touch()
        name = lease_file(s.directory, disk).name
        leased = structures.Resource.of(SPACE, name, structures.Disk(str(s.directory / name), 0))
        vm = site.world.owner(TWO, "vm")
        want = AcquireRequest(Resource("", str(disk)), Mode.EXCLUSIVE)
        one = site.client(ONE)
        await site.manager.acquire(vm, want)
        assert await site.acquire(one, leased) == Result.EEXIST
        await site.manager.release(vm, want.resource)
        assert await site.acquire(one, leased) == Result.OK
        with pytest.raises(ResourceBusy, match="pid 101"):
            await site.manager.acquire(vm, want)
        assert await site.release(one, leased) == Result.OK
        await site.manager.acquire(vm, want)

    played(scene)


# --- release, inquire, convert ---


def test_release(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2")
        site = Site(s)
        one, two = site.client(ONE), site.client(TWO)
        assert await site.release(one, flags=ReleaseFlag.ALL) == Result.OK
        assert await site.acquire(one, s.resource("R1"), s.resource("R2")) == Result.OK
        assert await site.release(two, s.resource("R1")) == Result.FAILED
        one.kill_count = 3
        assert await site.release(one, s.resource("none"), s.resource("R2")) == Result.FAILED
        assert s.leader("R2").is_free, "the others are released"
        assert one.kill_count == 3
        assert await site.release(one, flags=ReleaseFlag.ALL) == Result.OK
        assert s.leader("R1").is_free
        assert one.kill_count == 0

    played(scene)


def test_release_may_rename_a_lease(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)
        one = site.client(ONE)
        old, new = s.resource("R1"), s.resource("R1")._replace(name=PaddedName.of("new"))
        rename = ReleaseFlag.RENAME
        assert await site.release(one, old, new, flags=rename) == Result.FAILED
        assert await site.acquire(one, s.resource("R1", SHARED)) == Result.OK
        assert await site.release(one, old, new, flags=rename) == Result.EINVAL
        assert await site.convert(one, old) == Result.OK
        assert await site.release(one, old, flags=rename) == Result.EINVAL
        assert await site.release(one, old, new, flags=rename) == Result.OK
        assert (s.leader("R1").resource_name.text, s.leader("R1").is_free) == ("new", True)
        assert await site.acquire(one, old) == Result.LEADER_RESOURCE
        for where, client in ((site, one), (other, other.client(TWO))):
            assert await where.acquire(client, new) == Result.OK
            assert await where.release(client, new) == Result.OK

    played(scene)


@pytest.mark.parametrize(
    ("version", "change", "result"),
    [
        ("3.9.5", {"lver": 40}, Result.RELEASE_LVER_3),
        ("4.2", {"owner_id": 2}, Result.RELEASE_OWNER_3),
        ("5.1.1", {"lver": 40}, Result.RELEASE_LVER),
        ("5.0", {"owner_id": 2}, Result.RELEASE_OWNER),
    ],
)
def test_release_of_a_lease_that_was_written_over(
    tmp_path: Path, version: str, change: dict[str, int], result: Result
) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s, version=version)
        one = site.client(ONE)
        assert await site.acquire(one, s.resource("R1")) == Result.OK
        other = dataclasses.replace(s.leader("R1"), **change)  # type: ignore[arg-type]
        with s.path.open("r+b") as f:
            f.seek(MIB)
            f.write(other.sector())
        assert await site.release(one, s.resource("R1")) == result
        assert s.leader("R1") == other

    played(scene)


def test_convert(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)
        one, two, far = site.client(ONE), site.client(TWO), other.client(THREE)
        shared, alone = s.resource("R1", SHARED), s.resource("R1")
        assert await site.convert(one, shared) == Result.ENOENT
        assert await site.acquire(one, alone) == Result.OK
        assert await site.convert(one, alone) == Result.EALREADY
        assert await site.convert(one, shared) == Result.OK
        assert s.leader("R1").is_free
        assert await other.acquire(far, shared) == Result.OK
        assert await site.convert(one, alone) == Result.EAGAIN, "another host shares it"
        assert await other.release(far, shared) == Result.OK
        assert await site.acquire(two, shared) == Result.OK
        assert await site.convert(one, alone) == Result.EAGAIN, "another client here shares it"
        assert await site.release(two, shared) == Result.OK
        assert await site.convert(one, alone) == Result.OK
        assert await site.state(one) == f"{SPACE}:R1:{s.path}:{MIB}:{s.leader('R1').lver}"
        assert await other.acquire(far, shared) == Result.ACQUIRE_IDLIVE

    played(scene)


def test_conversion_is_refused_while_another_client_of_the_process_shares(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s)
        first, second = site.client(ONE), site.client(ONE)
        for each in (first, second):
            assert await site.acquire(each, s.resource("R1", SHARED)) == Result.OK
        assert await site.convert(first, s.resource("R1")) == Result.EAGAIN
        await site.close(second)
        assert await site.convert(first, s.resource("R1")) == Result.OK

    played(scene)


# --- the end of a client ---


def test_lease_stays_while_a_descendant_has_the_connection(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s)
        one = site.client(ONE)
        assert await site.acquire(one, s.resource("R1"), owner_name="vm-1") == Result.OK
        site.world.processes.end(ONE)
        await asyncio.sleep(0.05)
        assert site.claims("R1") == {"vm-1 (pid 101)": Mode.EXCLUSIVE}
        assert not s.leader("R1").is_free
        assert await site.acquire(site.client(TWO), s.resource("R1")) == Result.EEXIST
        await site.close(one)
        assert s.leader("R1").is_free
        assert [each.pid for each in site.manager.owners] == [TWO]

    played(scene)


def test_persistent_lease_becomes_an_orphan(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2")
        site = Site(s)
        one, two = site.client(ONE), site.client(TWO)
        assert (
            await site.acquire(one, s.resource("R1", PERSISTENT), s.resource("R2"), owner_name="lvm")
            == Result.OK
        )
        await site.close(one)
        assert s.leader("R2").is_free
        assert not s.leader("R1").is_free
        assert site.claims("R1") == {"lvm (ended; its leases are orphans)": Mode.EXCLUSIVE}
        lver = s.leader("R1").lver
        assert await site.acquire(two, s.resource("R1")) == Result.EUCLEAN
        assert await site.acquire(two, s.resource("R1", SHARED), flags=ORPHAN) == Result.EUCLEAN
        assert site.claims("R1") == {"lvm (ended; its leases are orphans)": Mode.EXCLUSIVE}
        assert await site.acquire(two, s.resource("R1", PERSISTENT), flags=ORPHAN_ONLY) == Result.OK
        assert site.claims("R1") == {"qemu (pid 102)": Mode.EXCLUSIVE}
        assert s.leader("R1").lver == lver
        assert await site.state(two) == f"{SPACE}:R1:{s.path}:{MIB}:{lver}"
        await site.close(two)
        three = site.client(THREE)
        assert await site.release(three, s.resource("none"), flags=ReleaseFlag.ORPHAN) == 0
        everything = structures.Resource.of(SPACE, "")
        assert await site.release(three, everything, flags=ReleaseFlag.ORPHAN) == 1
        await comes(lambda: s.leader("R1").is_free)

    played(scene)


def test_orphan_that_is_taken_up_without_persistent_ends_with_its_client(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s)
        one, two = site.client(ONE), site.client(TWO)
        assert await site.acquire(one, s.resource("R1", PERSISTENT)) == Result.OK
        await site.close(one)
        assert await site.acquire(two, s.resource("R1"), flags=ORPHAN) == Result.OK
        await site.close(two)
        assert s.leader("R1").is_free

    played(scene)


def test_orphan_of_a_refused_call_is_an_orphan_again(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2", geometry=GEOMETRIES[1])
        site = Site(s)
        one, two = site.client(ONE), site.client(TWO)
        assert await site.acquire(one, s.resource("R1", PERSISTENT), owner_name="lvm") == Result.OK
        await site.close(one)
        three = site.client(THREE)
        assert await site.acquire(three, s.resource("R2")) == Result.OK
        assert await site.acquire(two, s.resource("R1"), s.resource("R2"), flags=ORPHAN) == Result.EEXIST
        assert not s.leader("R1").is_free
        assert await site.acquire(two, s.resource("R1")) == Result.EUCLEAN
        assert await site.acquire(two, s.resource("R1"), flags=ORPHAN | LVB) == Result.EINVAL
        assert not s.leader("R1").is_free
        after, _ = await site.restarted()
        assert await after.acquire(after.client(TWO), s.resource("R1")) == Result.EUCLEAN
        assert s.leader("R1").lver == 1

    played(scene)


# --- restarts ---


def test_leases_of_a_client_stay_while_its_process_lives(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2")
        site = Site(s)
        one, two = site.client(ONE), site.client(TWO)
        assert await site.acquire(one, s.resource("R1"), owner_name="vm-1") == Result.OK
        assert await site.acquire(two, s.resource("R2")) == Result.OK
        site.manager.closing = True
        site.world.processes.end(TWO)
        after, _ = await site.restarted()
        await comes(lambda: s.leader("R2").is_free)
        assert after.claims("R1") == {"vm-1 (pid 101)": Mode.EXCLUSIVE}
        assert s.leader("R1").lver == 1, "it was never given up"
        assert await after.acquire(after.client(THREE), s.resource("R1")) == Result.EEXIST
        again = after.client(ONE)
        assert await after.acquire(again, s.resource("R1"), owner_name="vm-1") == Result.OK
        assert await after.state(again) == f"{SPACE}:R1:{s.path}:{MIB}:1"
        after.world.processes.end(ONE)
        await after.close(again)
        assert s.leader("R1").is_free

    played(scene)


def test_process_that_ends_after_a_restart_releases_what_it_had(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s)
        assert await site.acquire(site.client(ONE), s.resource("R1")) == Result.OK
        after, _ = await site.restarted()
        await asyncio.sleep(0.05)
        assert not s.leader("R1").is_free
        after.world.processes.end(ONE)
        await comes(lambda: s.leader("R1").is_free)

    played(scene)


@pytest.mark.parametrize("when", ["before", "while the daemon is down", "after"])
def test_orphan_is_one_after_a_restart(tmp_path: Path, when: str) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2")
        site = Site(s)
        one = site.client(ONE)
        assert (
            await site.acquire(one, s.resource("R1", PERSISTENT), s.resource("R2"), owner_name="lvm")
            == Result.OK
        )
        if when == "before":
            site.world.processes.end(ONE)
            await site.close(one)
        elif when == "while the daemon is down":
            site.manager.closing = True
            site.world.processes.end(ONE)
        after, _ = await site.restarted()
        if when == "after":
            after.world.processes.end(ONE)
        await comes(lambda: after.claims("R1") == {"lvm (ended; its leases are orphans)": Mode.EXCLUSIVE})
        await comes(lambda: s.leader("R2").is_free)
        assert s.leader("R1").lver == 1
        assert not s.leader("R1").is_free
        two = after.client(TWO)
        assert await after.acquire(two, s.resource("R1")) == Result.EUCLEAN
        once_more, _ = await after.restarted()
        assert await once_more.acquire(once_more.client(THREE), s.resource("R1"), flags=ORPHAN) == Result.OK

    played(scene)


def test_lockspace_that_is_left_writes_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s)
        one = site.client(ONE)
        assert await site.acquire(one, s.resource("R1")) == Result.OK
        before = s.leader("R1")
        site.leave()
        assert await site.acquire(site.client(TWO), s.resource("R1")) == Result.ENOSPC
        assert await site.release(one, s.resource("R1")) == Result.OK
        assert s.leader("R1") == before

    played(scene)


def test_lost_lockspace_stops_its_clients_and_ends_its_orphans(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2")
        site = Site(s)
        one, two = site.client(ONE), site.client(TWO)
        assert await site.acquire(one, s.resource("R1", PERSISTENT)) == Result.OK
        await site.close(one)
        assert await site.acquire(two, s.resource("R2")) == Result.OK
        gone: list[str] = []
        recovery = LockspaceLoss(
            site.manager,
            clock=site.world.clock,
            domains=site.world.libvirt,
            status=None,
            actions={},
            report=lambda news: gone.append(news.lockspace),
        )
        now = Instant(site.world.clock.now())
        renewed_at = Instant(now - TIMING.fail_s)
        site.leave()
        news = Lost(SPACE, "not renewed in time", TIMING, lost_at=now, renewed_at=renewed_at)
        recovery.lost(Loss(news, [site.backend.name]))
        await site.world.clock.advance(1)
        assert site.claims("R1") == {}
        assert site.world.processes.signals == [(TWO, signal.SIGTERM)]
        assert gone == [], "a client's process lives"
        await comes(lambda: not site.world.processes.is_running(TWO))
        await site.world.clock.advance(1)
        assert gone == [], "its connection is open: a descendant may have it"
        await site.close(two)
        await site.world.clock.advance(1)
        assert gone == [SPACE]
        assert not s.leader("R2").is_free, "nothing is written any more"

    played(scene)


# --- over a socket ---


class PartOfAnEngine(FakeService):
    """Serves what is about leases; what is about lockspaces is a fake's."""

    def __init__(self, commands: ResourceCommands) -> None:
        super().__init__()
        self._commands = commands

    def client_died(self, client: Client) -> None:
        self._commands.client_died(client)

    def client_closed(self, client: Client) -> None:
        self._commands.client_closed(client)

    async def acquire(self, client: Client, request: r.Acquire | r.Acquire2) -> replies.Plain:
        return await self._commands.acquire(client, r.Acquire(*request))

    async def release(self, client: Client, request: r.Release) -> replies.Plain:
        return await self._commands.release(client, request)

    async def inquire(self, client: Client, request: r.Inquire) -> replies.ClientState:
        return await self._commands.inquire(client, request)


def test_clients_over_a_socket(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path / "srv", "R1", "R2")
        site = Site(s)
        site.world.processes.start(os.getpid())
        stage = SocketScene(tmp_path, PartOfAnEngine(site.commands))
        try:
            one, two = await stage.registered(), await stage.registered()
            assert await one.ask(r.Acquire(0, r.OWN, (s.resource("R1"), s.resource("R2")))) == replies.Plain()
            busy = await two.ask(r.Acquire(0, r.OWN, (s.resource("R2"),)))
            assert busy == replies.Plain(Result.EEXIST)
            assert await stage.peer().ask(r.Inquire(0, r.Target(os.getpid()))) == replies.ClientState(
                Result.OK, 2, f"{SPACE}:R1:{s.path}:{MIB}:1 {SPACE}:R2:{s.path}:{2 * MIB}:1"
            )
            assert await one.ask(r.Release(0, r.OWN, (s.resource("R2"),))) == replies.Plain()
            assert await two.ask(r.Acquire(0, r.OWN, (s.resource("R2"),))) == replies.Plain()
            one.close()
            await comes(lambda: s.leader("R1").is_free)
            assert not s.leader("R2").is_free, "it is another client's of the same process"
        finally:
            stage.close()
        await asyncio.sleep(0.05)
        assert not s.leader("R2").is_free, "the daemon's end is no client's end"

    played(scene)


# --- value blocks ---


def test_value_block_is_written_at_the_release(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)
        one, two, far = site.client(ONE), site.client(TWO), other.client(THREE)
        r1 = s.resource("R1")

        async def put(where: Site, block: bytes) -> int:
            return (await where.commands.set_lvb(r.SetLvb(r1, block))).result

        async def got(where: Site, wanted: int = 0) -> replies.ValueBlock:
            return await where.commands.get_lvb(r.GetLvb(wanted, r1))

        def on_storage() -> bytes:
            return s.path.read_bytes()[MIB + 2002 * 512 :][:512]

        assert await put(site, b"x") == Result.ENOENT
        assert await site.acquire(two, r1) == Result.OK
        assert (await put(site, b"x"), (await got(site)).result) == (Result.EINVAL, Result.EINVAL)
        assert await site.release(two, r1) == Result.OK
        assert await site.acquire(one, r1, flags=LVB) == Result.OK
        assert await put(site, bytes(513)) == Result.E2BIG
        assert await put(site, b"first") == Result.OK
        assert (await got(site)).value_block == b"first".ljust(512, b"\0")
        assert on_storage() == bytes(512), "a crash loses it, as sanlock's"
        assert (await got(site, 5)).value_block == b"first"
        assert await site.convert(one, s.resource("R1", SHARED)) == Result.OK
        assert on_storage().startswith(b"first")
        assert await put(site, b"second") == Result.EINVAL, "it is not alone"
        assert await site.release(one, r1) == Result.OK
        assert await other.acquire(far, r1, flags=LVB) == Result.OK
        assert (await got(other, 5)).value_block == b"first"
        assert await put(other, b"third") == Result.OK
        await other.close(far)
        assert on_storage().startswith(b"third")

    played(scene)


@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if not g.has_lvb], ids=str)
def test_value_block_that_would_lie_in_another_lease_is_refused(tmp_path: Path, geometry: object) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", geometry=geometry)  # type: ignore[arg-type]
        site = Site(s)
        one = site.client(ONE)
        assert await site.acquire(one, s.resource("R1"), flags=LVB) == Result.EINVAL
        assert s.leader("R1").is_free
        assert await site.acquire(one, s.resource("R1")) == Result.OK

    played(scene)


# --- requests ---


def test_lease_on_several_disks_is_refused_by_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """sanlock 5 has dropped them; a request on the first disk alone would reach nobody."""

    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)
        assert await other.acquire(other.client(ONE), s.resource("R1")) == Result.OK
        before = s.path.read_bytes()
        two = s.resource("R1")._replace(disks=s.resource("R1").disks * 2, num_disks=2)
        request = r.Request(RequestFlag.NEXT_LVER, ForceMode.FORCE, two)
        assert (await site.commands.request(request)).result == Result.EINVAL
        assert await site.acquire(site.client(TWO), two) == Result.EINVAL
        assert s.path.read_bytes() == before
        assert site.notified == []

    played(scene)
    said = [each.getMessage() for each in caplog.records]
    assert said == ["refused R1: a lease on several disks is not supported"] * 2


def test_request(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site, other = Site(s), Site(s, host_id=2)

        async def ask(force: int, lver: int, flags: int = 0, space: str = SPACE) -> int:
            resource = s.resource("R1", lver=lver, space=space)
            return (await site.commands.request(r.Request(flags, force, resource))).result

        def record() -> tuple[int, int]:
            found = Request.decode(s.path.read_bytes()[MIB + 512 :][:512])
            assert isinstance(found, Request)
            return found.lver, found.force_mode

        assert await ask(ForceMode.GRACEFUL, 1, space="unknown") == Result.ENOSPC
        assert await ask(ForceMode.GRACEFUL, 5) == Result.OK, "it is free: nothing is written"
        assert record() == (0, 0)
        assert await other.acquire(other.client(ONE), s.resource("R1")) == Result.OK
        assert await ask(ForceMode.GRACEFUL, 1) == Result.REQUEST_OLD
        assert await ask(ForceMode.GRACEFUL, 0) == Result.REQUEST_OLD
        assert site.notified == []
        assert await ask(ForceMode.FORCE, 0, RequestFlag.NEXT_LVER) == Result.OK
        assert record() == (2, 1)
        assert site.notified == [(SPACE, 2)]
        assert await ask(ForceMode.GRACEFUL, 9) == Result.OK
        assert await ask(ForceMode.GRACEFUL, 8) == Result.REQUEST_LVER
        assert await ask(ForceMode.NONE, 0) == Result.OK
        assert record() == (0, 0)

    played(scene)


# --- status ---


def test_records_of_status(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1", "R2", "R3")
        site = Site(s)
        one, two = site.client(ONE), site.client(TWO)
        assert await site.acquire(two, s.resource("R3", PERSISTENT)) == Result.OK
        await site.close(two)
        assert await site.acquire(one, s.resource("R1"), s.resource("R2", SHARED)) == Result.OK
        records = site.commands.resource_records(VERSION_3_9)
        seen = [(each.name.text, each.words["list"], each.data32, each.data64) for each in records]
        assert seen == [("R2", "held", 101, 0), ("R1", "held", 101, 1), ("R3", "orphan", 0, 1)]
        for each in records:
            assert isinstance(each.attached, structures.Resource)
            assert each.attached.disks == s.resource(each.name.text).disks
            assert (each.words["sector_size"], each.words["align_size"]) == ("512", str(MIB))
            assert bool(each.attached.flags & ResourceFlag.SHARED) == (each.name.text == "R2")

    played(scene)


def test_killpath_is_kept_for_the_client_and_its_pid_flag_stays(tmp_path: Path) -> None:
    async def scene() -> None:
        site = Site(Storage(tmp_path))
        one = site.client(ONE)
        await site.commands.killpath(one, r.Killpath(1, r.OWN, "/bin/first", "a"))
        await site.commands.killpath(one, r.Killpath(0, r.OWN, "/bin/second", "b"))
        assert site.commands.killpaths[one] == r.Killpath(1, r.OWN, "/bin/second", "b")
        site.commands.client_closed(one)
        assert not site.commands.killpaths

    played(scene)


def test_owner_of_libvirts_keeps_its_name(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Storage(tmp_path, "R1")
        site = Site(s)
        one = site.client(ONE)
        assert await site.acquire(one, s.resource("R1")) == Result.OK
        owner = site.owner(ONE)
        assert owner is not None
        owner.name = OwnerName("vm", "uuid")
        site.leases.renamed(owner, "other")
        assert owner.name == OwnerName("vm", "uuid")

    played(scene)

"""Owners of a lost lockspace: what is done to them, and what is owed to them when it is joined again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.unit.manager.world import World, run, want

from holdfast.errors import Refused
from holdfast.lease_admin.lockspace_loss import LockspaceLoss, Loss
from holdfast.manager import events as ev
from holdfast.manager.journal_replay import replay
from holdfast.model import Instant, LockFailureAction
from holdfast.protocol.timing import Timing
from holdfast.supervision.lockspace_news import Lost
from holdfast.system.libvirt.domains import Domain
from holdfast.testing.fakes import settle

VM = 1
SPACE = "space1"
TIMING = Timing(1, 60)


class Status:
    """libvirt's status file of the only domain there is."""

    def __init__(self, on_lockfailure: str) -> None:
        self._wanted = on_lockfailure

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        return Domain(name, uuid, (), frozenset(), pid, "running", on_lockfailure=self._wanted)


def recovery_of(
    w: World,
    action: LockFailureAction = LockFailureAction.RESTART,
    status: Status | None = None,
    *,
    resets: bool = False,
    gone: list[str] | None = None,
) -> LockspaceLoss:
    return LockspaceLoss(
        w.manager,
        clock=w.clock,
        domains=w.libvirt,
        status=status,  # type: ignore[arg-type]
        actions={"file": action},
        resets={"file"} if resets else (),
        report=lambda news: None if gone is None else gone.append(news.lockspace),
    )


def lose(w: World, recovery: LockspaceLoss) -> None:
    now = Instant(w.clock.now())
    recovery.lost(
        Loss(
            Lost(SPACE, "not renewed in time", TIMING, lost_at=now, renewed_at=Instant(now - TIMING.fail_s)),
            ["file"],
        )
    )


async def stopped_to_be_restarted(tmp_path: Path) -> World:
    w = World(tmp_path)
    await w.manager.acquire(w.owner(VM, "web1"), want(w.disk()))
    lose(w, recovery_of(w))
    await w.clock.advance(1)
    assert w.processes.signals == [(VM, signal.SIGTERM)]
    await settle()
    return w


@pytest.mark.parametrize("compacted", [False, True])
def test_restart_is_owed_over_a_restart_of_the_daemon(tmp_path: Path, compacted: bool) -> None:
    async def scene() -> None:
        w = await stopped_to_be_restarted(tmp_path)
        if compacted:
            w.journal.compact()
        w.crash()
        after = World(tmp_path, before=w)
        after.manager.book.restarts = after.saved().restarts
        recovery_of(after).joined(SPACE)
        await settle()
        assert after.libvirt.started == [f"uuid-{VM}"]
        assert after.events.recent()[-1].kind == ev.OWNER_RESTARTED
        assert not any(replay(after.file.read()).restarts.values()), "it is owed once"

    run(scene)


def test_restart_that_fails_is_reported(tmp_path: Path) -> None:
    async def scene() -> None:
        w = await stopped_to_be_restarted(tmp_path)
        w.libvirt.starts = False
        recovery_of(w).joined(SPACE)
        await settle()
        assert w.events.recent()[-1].kind == ev.OWNER_NOT_RESTARTED

    run(scene)


def test_domain_that_is_back_already_is_not_started_again(tmp_path: Path) -> None:
    async def scene() -> None:
        w = await stopped_to_be_restarted(tmp_path)
        w.owner(VM, "web1")
        recovery_of(w).joined(SPACE)
        await settle()
        assert w.libvirt.started == []

    run(scene)


def test_paused_domain_says_why_until_the_lockspace_is_joined(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        w.libvirt.suspends = True
        await w.manager.acquire(w.owner(VM, "web1"), want(w.disk()))
        recovery = recovery_of(w, LockFailureAction.PAUSE)
        lose(w, recovery)
        await w.clock.advance(1)
        reason = f"paused because lockspace {SPACE} was lost: not renewed in time"
        assert w.libvirt.marks == [(f"uuid-{VM}", reason)]
        recovery.joined(SPACE)
        await settle()
        assert w.libvirt.marks[1:] == [(f"uuid-{VM}", "")]

    run(scene)


def test_ignore_of_the_xml_is_overruled_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        await w.manager.acquire(w.owner(VM, "web1"), want(w.disk()))
        lose(w, recovery_of(w, LockFailureAction.POWEROFF, Status("ignore")))
        await w.clock.advance(1)
        assert w.processes.signals == [(VM, signal.SIGTERM)]
        assert "its XML says on_lockfailure 'ignore', but only" in caplog.text

    run(scene)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_host_is_reset_for_vms_that_ended_where_the_table_says_so(
    tmp_path: Path, resets: bool, killed: bool
) -> None:
    async def scene() -> None:
        w, gone = World(tmp_path), list[str]()
        w.libvirt.suspends = True
        owner, disk = w.owner(VM, "web1"), want(w.disk())
        await w.manager.acquire(owner, disk)
        lose(w, recovery_of(w, LockFailureAction.PAUSE, resets=resets, gone=gone))
        await w.clock.advance(1)
        assert not gone
        if killed:
            w.processes.end(VM)
        else:
            await w.manager.release(owner, disk.resource)  # as libvirt does when it has paused it
        await w.clock.advance(1)
        awaited = resets and killed
        assert gone == ([] if awaited else [SPACE])
        assert any(e.kind == ev.HOST_RESET_AWAITED for e in w.events.recent()) is awaited

    run(scene)


async def released_and_hanging(w: World, gone: list[str], action: LockFailureAction) -> None:
    """A VM of a lost lockspace whose lock libvirt has released, and whose QEMU waits for requests."""
    owner, disk = w.owner(VM, "web1"), want(w.disk())
    await w.manager.acquire(owner, disk)
    w.libvirt.answering.clear()
    lose(w, recovery_of(w, action, gone=gone))
    await w.manager.release(owner, disk.resource)
    await w.clock.advance(1)


@pytest.mark.parametrize("says_paused", [False, True])
def test_released_lock_counts_until_qemu_has_answered(tmp_path: Path, says_paused: bool) -> None:
    """`says_paused`: libvirt's answer to the suspend came in time. It may be about a stop that it saw before."""

    async def scene() -> None:
        w, gone = World(tmp_path), list[str]()
        w.libvirt.suspends = says_paused
        await released_and_hanging(w, gone, LockFailureAction.PAUSE)
        assert gone == []
        (owner,) = w.manager.owners
        assert w.manager.claimed(owner, want(w.disk()).resource) is not None
        w.libvirt.answering.set()
        await w.clock.advance(1)
        assert gone == [SPACE]
        assert w.processes.signals == []
        assert not any(w.saved().locks.values()), "it is released in the journal too"

    run(scene)


def test_vm_whose_qemu_does_not_answer_is_killed(tmp_path: Path) -> None:
    async def scene() -> None:
        w, gone = World(tmp_path), list[str]()
        w.processes.start(VM, ignoring=frozenset((signal.SIGTERM,)))  # its main loop waits
        await released_and_hanging(w, gone, LockFailureAction.PAUSE)
        await w.clock.advance(TIMING.grace_s / 2)
        assert w.processes.signals == [(VM, signal.SIGTERM)]
        await w.clock.advance(TIMING.grace_s / 2)
        assert (VM, signal.SIGKILL) in w.processes.signals
        await w.clock.advance(1)
        assert gone == [SPACE]

    run(scene)


def test_query_that_fails_is_asked_again(tmp_path: Path) -> None:
    async def scene() -> None:
        w, gone = World(tmp_path), list[str]()
        w.libvirt.replies = False
        await released_and_hanging(w, gone, LockFailureAction.PAUSE)
        w.libvirt.answering.set()
        await w.clock.advance(3)
        assert gone == [] and len(w.libvirt.queries) >= 3
        w.libvirt.replies = True
        await w.clock.advance(2)
        assert gone == [SPACE]

    run(scene)


def test_release_after_a_query_was_sent_needs_another(tmp_path: Path) -> None:
    async def scene() -> None:
        w, gone = World(tmp_path), list[str]()
        owner, first, second = w.owner(VM, "web1"), want(w.disk()), want(w.disk("second"))
        await w.manager.acquire(owner, first)
        await w.manager.acquire(owner, second)
        w.libvirt.answering.clear()
        lose(w, recovery_of(w, LockFailureAction.IGNORE, gone=gone))
        await w.manager.release(owner, first.resource)
        await settle()
        await w.manager.release(owner, second.resource)
        w.libvirt.answering.set()
        await settle()
        assert len(w.libvirt.queries) == 2
        await w.clock.advance(1)
        assert gone == [SPACE]

    run(scene)


def test_lock_that_is_held_back_is_not_acquired_again(tmp_path: Path) -> None:
    async def scene() -> None:
        w, gone = World(tmp_path), list[str]()
        await released_and_hanging(w, gone, LockFailureAction.PAUSE)
        (owner,) = w.manager.owners
        with pytest.raises(Refused, match="QEMU has not answered since"):
            await w.manager.acquire(owner, want(w.disk()))

    run(scene)


def test_next_daemon_has_the_lock_that_is_held_back(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        await released_and_hanging(w, [], LockFailureAction.PAUSE)
        w.crash()
        assert any(World(tmp_path, before=w).saved().locks.values())

    run(scene)


def test_release_of_another_lockspace_is_carried_out_at_once(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path)
        owner, disk = w.owner(VM, "web1"), want(w.disk())
        await w.manager.acquire(owner, disk)
        await w.manager.acquire(w.owner(VM + 1, "user-of-the-other"), want(w.disk("indirect/disk.img")))
        w.libvirt.answering.clear()
        recovery = recovery_of(w)
        now = Instant(w.clock.now())
        recovery.lost(Loss(Lost("other", "why", TIMING, lost_at=now, renewed_at=now), ["shared"]))
        await w.manager.release(owner, disk.resource)
        assert w.manager.claimed(owner, disk.resource) is None
        assert w.libvirt.queries == []

    run(scene)

"""Held leases are read again: what storage does not say any more is taken again, or lost."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.unit.manager.world import World, locked, run, want

from holdfast.lease_admin.rereading import LeaseRereading
from holdfast.manager import events as ev
from holdfast.manager.lock_registry import HostLock
from holdfast.model import Resource

VM = 1
ROUND_S = 60.0


class _OnStorage:
    """A held lock that storage may have forgotten."""

    def __init__(self, held: Any) -> None:
        self._held = held
        self.why = ""
        self.reads = 0
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def why_not_held(self) -> str:
        self.reads += 1
        why = self.why
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return why

    def forget(self) -> None:
        self._held.forget()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)


async def held_lease(tmp_path: Path) -> tuple[World, str, HostLock, Any]:
    w = World(tmp_path)
    disk = w.disk()
    await w.manager.acquire(w.owner(VM, "web1"), want(disk))
    lock = w.manager.table.named(Resource("", disk))
    assert lock is not None
    lock.held = held = _OnStorage(lock.held)
    LeaseRereading(w.manager, w.recovery, clock=w.clock, round_s=ROUND_S).begin()
    return w, disk, lock, held


def test_lease_that_storage_still_has_is_left_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk, lock, held = await held_lease(tmp_path)
        await w.clock.advance(3.5 * ROUND_S)
        assert held.reads == 3
        assert lock.held is held
        assert ev.LOCK_LOST not in [e.kind for e in w.events.recent()]
        assert locked(disk)

    run(scene)


def test_lease_that_storage_has_forgotten_is_taken_again(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk, lock, held = await held_lease(tmp_path)
        held.why = "restored"
        await w.clock.advance(1.5 * ROUND_S)
        assert lock.held is not None
        assert lock.held is not held
        assert locked(disk)
        assert [e.kind for e in w.events.recent()][-1] == ev.LOCK_REGAINED
        assert w.processes.signals == []

    run(scene)


def test_lease_that_another_host_took_since_is_lost_for_certain(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk, lock, held = await held_lease(tmp_path)
        held.why = "restored"

        held.forget()
        thief = World(tmp_path)
        await thief.manager.acquire(thief.owner(9, "thief"), want(disk))
        await w.clock.advance(1.5 * ROUND_S)
        assert lock.held is None
        assert lock.lost_for_certain
        assert w.processes.signals == [(VM, signal.SIGTERM)]
        assert ev.LOCK_LOST in [e.kind for e in w.events.recent()]

    run(scene)


def test_change_while_it_was_read_counts_as_no_loss(tmp_path: Path) -> None:
    async def scene() -> None:
        w, disk, lock, held = await held_lease(tmp_path)
        held.why = "it was being converted"

        async def done() -> None:
            held.why = ""

        held.meanwhile = done
        await w.clock.advance(1.5 * ROUND_S)
        assert lock.held is held
        assert locked(disk)

    run(scene)

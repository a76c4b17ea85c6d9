"""A backend whose storage answers when the test lets it: for everything that may happen between two awaits.

    slow = SlowBackend(FileBackend(…))
    task = asyncio.create_task(manager.acquire(owner, want))
    await slow.waits_for("take /disk")          the call has got as far as storage
    …something else happens…
    slow.let_go("take /disk")                   storage answers

Calls are named by what they do and the path they do it to.  With ``open_gate`` they don't wait at all.
"""

from __future__ import annotations

import asyncio

from holdfast.backends.base import (
    Backend,
    Candidate,
    Creation,
    Held,
    HeldElsewhere,
    LeftBehind,
    OwnerNote,
    SavedLock,
    Stale,
    TakeOutcome,
)
from holdfast.model import Mode, Protection, Resource
from holdfast.system.files.ofd_lock import FileKey, IoFailed
from holdfast.testing.fakes import settle


class Gates:
    """Where calls wait, by name, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.open_gate = False
        self.done: list[str] = []
        """Every call that storage has answered, in order."""

    async def pass_through(self, call: str) -> None:
        if not self.open_gate:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((call, future))
            await future
        self.done.append(call)

    @property
    def waiting(self) -> list[str]:
        return [call for call, _ in self._waiting]

    async def waits_for(self, call: str) -> None:
        """Returns when this call waits; AssertionError if nothing that can go on leads there."""
        await settle()
        assert call in self.waiting, f"no call '{call}' waits, but: {self.waiting}"

    def let_go(self, call: str) -> None:
        """The oldest call of that name is answered."""
        index = self.waiting.index(call)
        self._waiting.pop(index)[1].set_result(None)

    def let_all_go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            future.set_result(None)


class SlowHeld:
    """A `Held` behind the gates."""

    def __init__(self, gates: Gates, inner: Held) -> None:
        self._gates = gates
        self._inner = inner
        self.path = inner.path
        self.create = inner.create

    def descriptor(self) -> int | None:
        return self._inner.descriptor()

    async def convert(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | IoFailed | None:
        await self._gates.pass_through(f"convert {self.path}")
        return await self._inner.convert(mode, note)

    async def release(self) -> None:
        await self._gates.pass_through(f"release {self.path}")
        await self._inner.release()

    def release_nowait(self) -> bool:
        return False

    def forget(self) -> None:
        self._inner.forget()


class SlowCandidate:
    """A `Candidate` behind the gates."""

    def __init__(self, gates: Gates, inner: Candidate, path: str) -> None:
        self._gates = gates
        self._inner = inner
        self._path = path
        self.keys: tuple[FileKey, ...] = inner.keys

    async def take(self, mode: Mode, note: OwnerNote) -> TakeOutcome:
        await self._gates.pass_through(f"take {self._path}")
        outcome = await self._inner.take(mode, note)
        if isinstance(outcome, HeldElsewhere | Stale | LeftBehind | IoFailed):
            return outcome
        return SlowHeld(self._gates, outcome)

    async def abandon(self) -> None:
        await self._gates.pass_through(f"abandon {self._path}")
        await self._inner.abandon()


class SlowBackend:
    """Any backend behind gates; see the module."""

    def __init__(self, inner: Backend, *, slow_open: bool = False) -> None:
        self._inner = inner
        self._slow_open = slow_open
        self.gates = Gates()
        self.name = inner.name
        self.capabilities = inner.capabilities

    async def open(self, resource: Resource, *, create: Creation) -> Candidate | IoFailed:
        path = self.lock_path(resource)
        if self._slow_open:
            await self.gates.pass_through(f"open {path}")
        candidate = await self._inner.open(resource, create=create)
        return candidate if isinstance(candidate, IoFailed) else SlowCandidate(self.gates, candidate, path)

    def take_nowait(self, resource: Resource, mode: Mode) -> None:
        return None

    async def adopt(self, saved: SavedLock, fd: int | None) -> Held | HeldElsewhere | Stale | IoFailed:
        await self.gates.pass_through(f"adopt {saved.path}")
        outcome = await self._inner.adopt(saved, fd)
        if isinstance(outcome, HeldElsewhere | Stale | IoFailed):
            return outcome
        return SlowHeld(self.gates, outcome)

    def protection(self, path: str) -> tuple[Protection, str]:
        return self._inner.protection(path)

    def lock_path(self, resource: Resource) -> str:
        return self._inner.lock_path(resource)

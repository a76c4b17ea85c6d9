"""What every backend must do, as a test class that any of them can subclass; the shipped ones do.

    class TestMyBackend(BackendConformance):
        def make_world(self) -> BackendWorld:
            return BackendWorld(backend=…, rival=…, resource=Resource("", "/dev/vg/a"), settle=…)

It needs pytest only to be found by it: the checks are plain methods with plain asserts, each with a world of its own.
The promises that depend on what a driver claims to be able to do follow its `Capabilities`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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
from holdfast.model import Mode, OwnerName, Protection, Resource
from holdfast.system.files.ofd_lock import IoFailed

NOTE = OwnerNote(OwnerName("web1", "11111111-2222-3333-4444-555555555555", 1), 4711)


@dataclass(frozen=True, kw_only=True)
class BackendWorld:
    """A backend on storage of its own.

    ``rival``: a second backend on the same storage, as another daemon or another host has it; None if the
    driver excludes nobody.  ``resource`` exists, ``missing`` does not and can't be made without `Creation`.
    ``alias``: another name of ``resource``'s disk; None if there can be none.
    """

    backend: Backend
    rival: Backend | None
    resource: Resource
    missing: Resource | None = None
    alias: Resource | None = None
    creation: Creation = Creation.NONE


class BackendConformance:
    """Subclass it and give `make_world`."""

    def make_world(self) -> BackendWorld:
        raise NotImplementedError("give the backend to be tested: see the module's example")

    # --- taking ---

    def test_free_resource_is_taken_and_let_go(self) -> None:
        async def scene(w: BackendWorld) -> None:
            for _ in range(3):
                held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
                await held.release()

        self._run(scene)

    def test_held_resource_excludes_the_rival_until_it_is_let_go(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if w.rival is None:
                return
            held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
            for mode in Mode:
                assert isinstance(await take(w.rival, w, mode), HeldElsewhere)
            await held.release()
            other = assert_held(await take(w.rival, w, Mode.EXCLUSIVE))
            assert isinstance(await take(w.backend, w, Mode.SHARED), HeldElsewhere)
            await other.release()

        self._run(scene)

    def test_shared_locks_join_and_exclude_an_exclusive_one(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if w.rival is None or not w.backend.capabilities.shared_mode:
                return
            one = assert_held(await take(w.backend, w, Mode.SHARED))
            two = assert_held(await take(w.rival, w, Mode.SHARED))
            assert isinstance(await one.convert(Mode.EXCLUSIVE, NOTE), HeldElsewhere)
            await two.release()
            assert isinstance(await take(w.rival, w, Mode.EXCLUSIVE), HeldElsewhere)
            await one.release()

        self._run(scene)

    def test_refusal_changes_nothing(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if w.rival is None:
                return
            held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
            for _ in range(20):
                assert isinstance(await take(w.rival, w, Mode.EXCLUSIVE), HeldElsewhere)
            await held.release()
            again = assert_held(await take(w.rival, w, Mode.EXCLUSIVE))
            await again.release()

        self._run(scene)

    def test_refusal_names_a_holder_if_the_driver_says_it_can(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if w.rival is None or not w.backend.capabilities.names_foreign_holders:
                return
            held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
            refused = await take(w.rival, w, Mode.EXCLUSIVE)
            assert isinstance(refused, HeldElsewhere)
            assert refused.holders
            assert all(str(h) for h in refused.holders)
            await held.release()

        self._run(scene)

    def test_abandoned_candidate_leaves_the_resource_free(self) -> None:
        async def scene(w: BackendWorld) -> None:
            candidate = await opened(w.backend, w)
            await candidate.abandon()
            held = assert_held(await take(w.rival or w.backend, w, Mode.EXCLUSIVE))
            await held.release()

        self._run(scene)

    def test_missing_resource_is_an_answer_and_no_exception(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if w.missing is not None:
                outcome = await w.backend.open(w.missing, create=Creation.NONE)
                assert isinstance(outcome, IoFailed)
                assert outcome.errno

        self._run(scene)

    # --- taking and letting go in a single step, for drivers that can ---

    def test_lock_taken_at_once_is_as_good_as_any(self) -> None:
        async def scene(w: BackendWorld) -> None:
            taken = w.backend.take_nowait(w.resource, Mode.EXCLUSIVE)
            if taken is None:
                return
            keys, held = taken
            candidate = await opened(w.backend, w)
            assert keys == candidate.keys
            await candidate.abandon()
            if w.rival is not None:
                assert isinstance(await take(w.rival, w, Mode.SHARED), HeldElsewhere)
            await held.release()
            await assert_held(await take(w.rival or w.backend, w, Mode.EXCLUSIVE)).release()

        self._run(scene)

    def test_refusal_at_once_changes_nothing(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if w.rival is None:
                return
            held = assert_held(await take(w.rival, w, Mode.SHARED))
            for _ in range(20):
                assert w.backend.take_nowait(w.resource, Mode.EXCLUSIVE) is None
            if w.missing is not None:
                assert w.backend.take_nowait(w.missing, Mode.EXCLUSIVE) is None
            assert await held.convert(Mode.EXCLUSIVE, NOTE) is None
            await held.release()

        self._run(scene)

    def test_what_is_let_go_at_once_is_free_and_else_still_held(self) -> None:
        async def scene(w: BackendWorld) -> None:
            held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
            if not held.release_nowait():
                if w.rival is not None:
                    assert isinstance(await take(w.rival, w, Mode.SHARED), HeldElsewhere)
                await held.release()
            await assert_held(await take(w.rival or w.backend, w, Mode.EXCLUSIVE)).release()

        self._run(scene)

    # --- keys ---

    def test_alias_has_a_key_in_common(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if w.alias is None:
                return
            one = await opened(w.backend, w)
            two = await opened(w.backend, w, w.alias)
            assert set(one.keys) & set(two.keys)
            await one.abandon()
            await two.abandon()

        self._run(scene)

    def test_keys_stay_the_same_for_the_same_resource(self) -> None:
        async def scene(w: BackendWorld) -> None:
            one, two = await opened(w.backend, w), await opened(w.backend, w)
            assert one.keys == two.keys
            await one.abandon()
            await two.abandon()

        self._run(scene)

    # --- converting ---

    def test_conversion_changes_whom_it_excludes_and_never_lets_go(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if not w.backend.capabilities.converts:
                return
            held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
            assert await held.convert(Mode.SHARED, NOTE) is None
            if w.rival is not None:
                reader = assert_held(await take(w.rival, w, Mode.SHARED))
                await reader.release()
                assert isinstance(await take(w.rival, w, Mode.EXCLUSIVE), HeldElsewhere)
            assert await held.convert(Mode.EXCLUSIVE, NOTE) is None
            if w.rival is not None:
                assert isinstance(await take(w.rival, w, Mode.SHARED), HeldElsewhere)
            await held.release()

        self._run(scene)

    # --- a restart of the daemon ---

    def test_lock_is_adopted_after_the_daemon_lost_it(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if not w.backend.capabilities.survives_restart:
                return
            saved, held = await taken_and_saved(w)
            held.forget()
            again = assert_held(await w.backend.adopt(saved, None))
            if w.rival is not None:
                assert isinstance(await take(w.rival, w, Mode.SHARED), HeldElsewhere)
            await again.release()
            assert_held(await take(w.rival or w.backend, w, Mode.EXCLUSIVE)).forget()

        self._run(scene)

    def test_adoption_is_refused_while_the_rival_has_it(self) -> None:
        async def scene(w: BackendWorld) -> None:
            if w.rival is None:
                return
            saved, held = await taken_and_saved(w)
            held.forget()
            taken = await take(w.rival, w, Mode.EXCLUSIVE)
            if isinstance(taken, HeldElsewhere):
                # Nothing of the daemon's kept it: it outlives the daemon on storage, and is there to be taken up.
                again = assert_held(await w.backend.adopt(saved, None))
                await again.release()
                return
            other = assert_held(taken)
            assert isinstance(await w.backend.adopt(saved, None), HeldElsewhere)
            await other.release()

        self._run(scene)

    def test_protection_is_told_with_a_reason_if_it_is_not_the_highest(self) -> None:
        async def scene(w: BackendWorld) -> None:
            level, note = w.backend.protection(w.backend.lock_path(w.resource))
            assert level >= Protection.CROSS_HOST or note

        self._run(scene)

    def _run(self, scene: Callable[[BackendWorld], Awaitable[None]]) -> None:
        async def go() -> None:
            await scene(self.make_world())

        asyncio.run(go())


async def opened(backend: Backend, w: BackendWorld, resource: Resource | None = None) -> Candidate:
    candidate = await backend.open(resource or w.resource, create=w.creation)
    assert not isinstance(candidate, IoFailed), f"it can't be opened: {candidate}"
    return candidate


async def take(backend: Backend, w: BackendWorld, mode: Mode) -> TakeOutcome:
    return await (await opened(backend, w)).take(mode, NOTE)


async def taken_and_saved(w: BackendWorld) -> tuple[SavedLock, Held]:
    candidate = await opened(w.backend, w)
    held = assert_held(await candidate.take(Mode.EXCLUSIVE, NOTE))
    saved = SavedLock(
        resource=w.resource, mode=Mode.EXCLUSIVE, create=held.create, path=held.path, keys=candidate.keys
    )
    return saved, held


def assert_held(outcome: TakeOutcome) -> Held:
    assert not isinstance(outcome, HeldElsewhere | Stale | LeftBehind | IoFailed), (
        f"it was not taken: {outcome}"
    )
    return outcome

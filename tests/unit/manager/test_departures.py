"""Locks of guests that migrate away: whose RELEASE is answered, and what then becomes of the lock.

The status file is a stand-in that says what a test wants; its words and their order are those of a real libvirt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.manager.world import BOOT, HOST, World, locked, run, want

from holdfast.backends.base import Creation, HeldElsewhere, LeftBehind, OwnerNote, Stale
from holdfast.errors import NotAnOwner, Refused, ResourceBusy, ResourceNotLocked
from holdfast.manager import events as ev
from holdfast.manager import journal_kinds as jn
from holdfast.manager.departures import READ_S
from holdfast.manager.journal import Journal
from holdfast.manager.journal_replay import SavedState, replay
from holdfast.manager.owners import Evidence, Owner
from holdfast.model import LockFailureAction, Mode, Resource
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.system.libvirt.domains import Domain
from holdfast.testing.fakes import settle

OUT = "migration out"


class Status:
    """libvirt's status files of some VMs, by name; a VM without one has no file that can be read."""

    def __init__(self) -> None:
        self.domains: dict[str, Domain] = {}
        self.listeners: list[Callable[[str], None]] = []
        self.first: list[Domain] = []
        """What the next reads find, one each, whatever the files say by now."""

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        domain = self.first.pop(0) if self.first else self.domains.get(name)
        return domain if domain is not None and domain.pid == pid else None

    def running(self) -> list[Domain]:
        return list(self.domains.values())

    def says(
        self,
        name: str,
        pid: int,
        state: str,
        reason: str = "",
        job: str = "",
        phase: str = "",
        fail: str = "",
    ) -> None:
        self.domains[name] = Domain(
            name, f"uuid-{pid}", (), frozenset(), pid, state, job, phase, reason, fail
        )


class WatchedStatus(Status):
    """One that sends news, too."""

    def watch(self, on_change: Callable[[str], None]) -> Callable[[], None]:
        self.listeners.append(on_change)
        return lambda: self.listeners.remove(on_change)

    def tells(self, name: str) -> None:
        for listener in list(self.listeners):
            listener(name)


class Scene:
    """VM vm1 has a disk, and libvirt is about to release it for a migration."""

    def __init__(self, tmp_path: Path, *, status: Status | None = None, lends: bool = False) -> None:
        self.path = tmp_path
        self.status = status or Status()
        self.world = World(tmp_path, status=self.status, lends=lends)
        self.disk = self.world.disk()
        self.resource = Resource("", self.disk)
        self.owner = self.world.owner(1)
        self.says("running", "booted")

    def says(self, state: str, reason: str = "", job: str = "", phase: str = "", fail: str = "") -> None:
        self.status.says("vm1", 1, state, reason, job, phase, fail)

    async def acquired(self) -> Scene:
        await self.world.manager.acquire(self.owner, want(self.disk))
        return self

    async def departed(self) -> Scene:
        """What libvirt does up to the guest's stop."""
        await self.acquired()
        self.says("running", "booted", OUT, "perform3")
        await self.release()
        self.says("paused", "migration", OUT, "perform3")
        return self

    async def release(self) -> None:
        await self.world.manager.release(self.owner, self.resource)

    async def goes_by(self, seconds: float = 2 * READ_S) -> None:
        await self.world.clock.advance(seconds)

    def holds(self) -> bool:
        return locked(self.disk)

    def departs(self) -> bool:
        return len(self.world.manager.departures) > 0

    def kinds(self) -> list[str]:
        return [event.kind for event in self.world.events.recent()]

    async def restart_with_target(self, path: Path) -> None:
        """Another daemon takes the lock while ours is away."""
        self.world.crash()
        (path / "other").mkdir()
        self.other = World(path / "other")
        await self.other.manager.acquire(self.other.owner(9), want(self.disk))
        await self.restart(on_lock_lost=LockFailureAction.PAUSE)
        await self.goes_by()

    async def restart(self, **options: object) -> None:
        """The daemon is killed, and the next one adopts what it finds; no descriptor was kept."""
        before = self.world
        if not before.manager.closing:
            before.crash()
        self.world = World(self.path, before=before, status=self.status, **options)  # type: ignore[arg-type]
        state = self.world.saved()
        living = self.world.recovery.owners(state)
        adoption = self.world.start(self.world.recovery.locks(state, living, {}))
        await self.world.clock.advance(0.01)
        await adoption
        self.world.manager.departures.restore(state.lent)
        for owner in living.values():
            self.owner = owner


def scene_of(tmp_path: Path, what: Callable[[Scene], object], **options: object) -> None:
    run(lambda: what(Scene(tmp_path, **options)))  # type: ignore[arg-type,return-value]


def test_lock_released_for_a_migration_is_held_until_the_guest_has_left(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        assert s.holds()
        assert s.departs()
        with pytest.raises(ResourceBusy):
            await s.world.manager.acquire(s.world.owner(2), want(s.disk))
        await s.goes_by(60)
        assert s.holds(), "a long switch-over changes nothing"
        s.says("paused", "migration", OUT, "perform3_done")
        await s.goes_by()
        assert not s.holds()
        assert not s.departs()
        assert s.kinds()[-1] == ev.RELEASED
        await s.world.manager.acquire(s.world.owner(2), want(s.disk))

    scene_of(tmp_path, what)


@pytest.mark.parametrize(
    ("phase", "reason"), [("perform3", "post-copy"), ("confirm3", "migration"), ("perform4", "x")]
)
def test_other_words_that_let_it_go(tmp_path: Path, phase: str, reason: str) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.says("paused", reason, OUT, phase)
        await s.goes_by()
        assert not s.holds()

    scene_of(tmp_path, what)


def test_guest_that_runs_on_has_its_lock_as_before(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.says("running", "unpaused", OUT, "confirm3_cancelled")
        await s.goes_by()
        assert s.departs()
        s.says("running", "unpaused")
        await s.goes_by()
        assert s.holds()
        assert not s.departs()
        assert s.kinds()[-2:] == [ev.DEPARTING, ev.STAYED]
        with pytest.raises(ResourceBusy):
            await s.world.manager.acquire(s.world.owner(2), want(s.disk))
        s.says("paused", "migration", OUT, "perform3_done")
        await s.goes_by()
        assert s.holds(), "an ordinary claim is not let go by what a file says"
        s.says("running", "unpaused")
        await s.release()
        assert not s.holds()

    scene_of(tmp_path, what)


def test_news_is_acted_on_without_a_wait(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        assert isinstance(s.status, WatchedStatus)
        await s.departed()
        s.says("paused", "migration", OUT, "perform3_done")
        s.status.tells("vm2")
        assert s.holds(), "news of another VM"
        s.status.tells("vm1")
        assert not s.holds()
        await s.goes_by()
        assert not s.status.listeners, "nobody listens when nothing departs"

    scene_of(tmp_path, what, status=WatchedStatus())


def test_acquire_by_the_same_owner_ends_it(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        assert await s.world.manager.acquire(s.owner, want(s.disk)), (
            "newly claimed, for libvirt has released it"
        )
        assert not s.departs()
        s.says("paused", "migration", OUT, "perform3_done")
        await s.goes_by()
        assert s.holds()
        s.says("running", "migration canceled")
        await s.release()
        assert not s.holds(), "it undoes no second acquire: there was none"

    scene_of(tmp_path, what)


def test_acquire_is_refused_while_the_lockspace_is_lost(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        backend = s.world.backends["file"]
        backend.lost = "lockspace A: its lease has just been lost"  # type: ignore[attr-defined]
        with pytest.raises(Refused, match="can't be used now: lockspace A: its lease has just been lost"):
            await s.world.manager.acquire(s.owner, want(s.disk))
        assert s.departs()
        backend.lost = ""  # type: ignore[attr-defined]
        await s.world.manager.acquire(s.owner, want(s.disk))
        assert not s.departs()

    scene_of(tmp_path, what)


def test_second_release_is_answered_like_the_first(tmp_path: Path) -> None:
    """libvirt releases twice when a guest is suspended, also in the live phase of a migration."""

    async def what(s: Scene) -> None:
        await s.departed()
        await s.release()
        assert s.holds()
        assert s.kinds().count(ev.DEPARTING) == 1
        del s.status.domains["vm1"]
        await s.release()
        assert s.holds(), "a file that can't be read proves nothing"
        s.says("paused", "user")
        await s.release()
        assert not s.holds(), "no migration any more: a suspend"

    scene_of(tmp_path, what)


def test_file_that_can_not_be_read_holds_the_lock_until_qemu_ends(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        del s.status.domains["vm1"]
        await s.goes_by(30)
        assert s.holds()
        s.world.processes.end(1)
        await settle()
        assert not s.holds()
        assert not s.departs()

    scene_of(tmp_path, what)


@pytest.mark.parametrize(
    "words",
    [
        ("running", "booted"),
        ("paused", "user"),
        ("running", "booted", "save"),
        ("running", "booted", OUT, "perform4"),
    ],
)
def test_other_releases_let_go_at_once(tmp_path: Path, words: tuple[str, ...]) -> None:
    async def what(s: Scene) -> None:
        await s.acquired()
        s.says(*words)
        await s.release()
        assert not s.holds()
        with pytest.raises((ResourceNotLocked, NotAnOwner)):
            await s.release()

    scene_of(tmp_path, what)


def test_words_that_are_not_known_are_reported(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.acquired()
        assert s.world.manager.departures.problems() == []
        s.says("running", "booted", OUT, "perform4")
        await s.release()
        (problem,) = s.world.manager.departures.problems()
        assert "vm1" in problem
        assert "'perform4'" in problem

    scene_of(tmp_path, what)


def test_one_of_two_names_departs_and_the_other_keeps_the_lock(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        w = s.world
        w.locks_directory.joinpath("key").touch()
        await s.acquired()
        other = w.owner(1).id
        assert other == s.owner.id
        link = tmp_path / "link.img"
        link.hardlink_to(s.disk)
        await w.manager.acquire(s.owner, want(str(link)))
        s.says("running", "booted", OUT, "perform3")
        await s.release()
        s.says("paused", "migration", OUT, "perform3_done")
        await s.goes_by()
        assert s.holds()
        assert not s.departs()

    scene_of(tmp_path, what)


def test_shared_claim_departs_without_the_others(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        w = s.world
        await w.manager.acquire(s.owner, want(s.disk, Mode.SHARED))
        other = w.owner(2)
        await w.manager.acquire(other, want(s.disk, Mode.SHARED))
        s.says("running", "booted", OUT, "perform3")
        await s.release()
        with pytest.raises(ResourceBusy):
            await w.manager.acquire(other, want(s.disk, Mode.EXCLUSIVE))
        s.says("paused", "migration", OUT, "perform3_done")
        await s.goes_by()
        await w.manager.acquire(other, want(s.disk, Mode.EXCLUSIVE))

    scene_of(tmp_path, what)


# --- over a restart of the daemon ---


def test_next_daemon_holds_on_and_lets_go_when_the_guest_has_left(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        await s.restart()
        assert s.holds()
        assert s.departs()
        s.says("paused", "migration", OUT, "perform3_done")
        await s.goes_by()
        assert not s.holds()

    scene_of(tmp_path, what)


def test_next_daemon_finds_that_the_guest_runs_on(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.says("running", "unpaused")
        await s.restart()
        await s.goes_by()
        assert s.holds()
        assert not s.departs()
        await s.restart()
        assert not s.departs(), "the journal says so too"

    scene_of(tmp_path, what)


def test_next_daemon_lets_go_of_what_has_left_meanwhile(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.says("paused", "migration", OUT, "confirm3")
        await s.restart()
        assert not s.holds()
        assert not len(s.world.manager.table)

    scene_of(tmp_path, what)


@pytest.mark.parametrize("phase", ["perform3", "perform3_done"])
def test_next_daemon_finds_out_that_libvirt_released_while_nobody_listened(
    tmp_path: Path, phase: str
) -> None:
    async def what(s: Scene) -> None:
        await s.acquired()
        s.says("paused", "migration", OUT, phase)
        await s.restart()
        await s.goes_by()
        assert s.holds() is (phase == "perform3")
        assert s.departs() is (phase == "perform3")
        s.says("running", "unpaused")
        await s.goes_by()
        assert s.holds() is (phase == "perform3")
        assert not s.departs()

    scene_of(tmp_path, what)


def test_next_daemon_leaves_a_guest_alone_that_runs_or_whose_words_are_not_known(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.acquired()
        for words in (
            ("running", "booted", OUT, "perform3"),
            ("running", "booted", OUT, "perform4"),
            ("paused", "user"),
        ):
            s.says(*words)
            await s.restart()
            await s.goes_by()
            assert s.holds()
            assert not s.departs()

    scene_of(tmp_path, what)


@pytest.mark.parametrize("stopped", [True, False])
def test_lock_that_is_found_by_its_note_departs_if_its_guest_has_stopped(
    tmp_path: Path, stopped: bool
) -> None:
    """Storage failed while it was let go, or the journal was lost: nothing else says that libvirt released it. Its RELEASE
    may come just before its lock is found, and the word that it has stopped just after (seed 101003612).
    """

    async def what(s: Scene) -> None:
        s.says("paused" if stopped else "running", "migration", OUT, "perform3")
        candidate = await s.world.backends["file"].open(s.resource, create=Creation.NONE)
        assert not isinstance(candidate, IoFailed)
        held = await candidate.take(Mode.EXCLUSIVE, OwnerNote(s.owner.name, 1, 0))
        assert not isinstance(held, LeftBehind | Stale | HeldElsewhere | IoFailed)
        s.world.manager.unknown.hold(
            backend="file",
            held=held,
            resource=s.resource,
            mode=Mode.EXCLUSIVE,
            keys=candidate.keys,
            name=s.owner.name,
            evidence=Evidence(why="the journal doesn't name it", process=s.owner.process_id),
        )
        assert s.departs() is stopped
        s.says("paused", "migration", OUT, "perform3")
        await s.goes_by()
        assert s.holds()
        assert s.departs()
        s.says("paused", "migration", OUT, "perform3_done")
        await s.goes_by()
        assert not s.holds()

    scene_of(tmp_path, what)


def test_target_that_has_the_lock_by_then_is_no_reason_to_stop_the_source(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.says("paused", "migration", OUT, "perform3_done")
        await s.restart_with_target(tmp_path)
        assert not s.world.libvirt.asked
        assert s.world.processes.is_running(1)
        assert ev.LOCK_LOST not in s.kinds()

    scene_of(tmp_path, what)


def test_guest_that_left_and_ends_while_its_lock_is_tidied_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.says("paused", "migration", OUT, "perform3_done")
        s.world.crash()
        s.world = World(s.path, before=s.world, status=s.status)

        async def ends_meanwhile(_: object) -> None:
            s.world.processes.end(1)
            await settle()

        monkeypatch.setattr(s.world.manager.unknown, "read_note", ends_meanwhile)
        state = s.world.saved()
        adoption = s.world.start(s.world.recovery.locks(state, s.world.recovery.owners(state), {}))
        await s.world.clock.advance(0.1)
        assert adoption.done()
        assert not len(s.world.manager.table)
        assert not s.holds()

    scene_of(tmp_path, what)


def test_target_that_takes_the_lock_while_we_try_is_no_stranger(tmp_path: Path) -> None:
    """The guest leaves between the read of its status file and the answer of storage."""

    async def what(s: Scene) -> None:
        await s.departed()
        s.status.first = [s.status.domains["vm1"]]
        s.says("paused", "migration", OUT, "perform3_done")
        await s.restart_with_target(tmp_path)
        assert not s.status.first
        assert not s.world.libvirt.asked

    scene_of(tmp_path, what)


def test_stranger_that_has_the_lock_by_then_is_one(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        await s.restart_with_target(tmp_path)
        assert s.world.libvirt.asked == ["uuid-1"]
        assert ev.LOCK_LOST in s.kinds()

    scene_of(tmp_path, what)


def test_journal_that_is_rewritten_has_what_departs(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.world.journal.compact()
        (lock,) = s.world.saved().locks.values()
        assert lock.departing == {(s.owner.id, s.resource)}
        s.says("running", "unpaused")
        await s.goes_by()
        (lock,) = s.world.saved().locks.values()
        assert lock.departing == set()

    scene_of(tmp_path, what)


# --- migration_peers = "any" ---


def test_lent_lock_is_let_go_at_once_and_taken_back(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        assert not s.holds()
        await s.goes_by(5)
        assert not s.holds()
        s.says("running", "unpaused")
        await s.goes_by()
        assert s.holds()
        assert s.kinds()[-2:] == [ev.ACQUIRED, ev.LOCK_REGAINED]

    scene_of(tmp_path, what, lends=True)


def test_lent_lock_that_somebody_else_has_stops_the_guest(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        await s.world.manager.acquire(s.world.owner(2), want(s.disk))
        s.says("running", "unpaused", fail="pause")
        await s.goes_by()
        assert s.world.libvirt.asked == ["uuid-1"]
        assert ev.LOCK_LOST in s.kinds()
        await s.goes_by(60)
        assert s.kinds().count(ev.LOCK_LOST) == 1

    scene_of(tmp_path, what, lends=True)


def test_lent_lock_whose_guest_left_is_forgotten(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.says("paused", "migration", OUT, "perform3_done")
        await s.goes_by()
        s.says("running", "unpaused")
        await s.goes_by()
        assert not s.holds()
        assert not s.world.saved().lent

    scene_of(tmp_path, what, lends=True)


def test_lent_lock_that_libvirt_takes_itself_is_no_longer_lent(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        await s.world.manager.acquire(s.owner, want(s.disk))
        await s.goes_by()
        assert not s.world.saved().lent
        s.says("running", "unpaused")
        await s.release()
        await s.goes_by()
        assert not s.holds()

    scene_of(tmp_path, what, lends=True)


def test_next_daemon_takes_back_what_was_lent_also_without_a_connection(tmp_path: Path) -> None:
    async def what(s: Scene) -> None:
        await s.departed()
        s.world.manager.unregister(s.owner, holder=False, why="a test")
        s.world.journal.compact()
        await s.restart(lends=True)
        s.says("running", "unpaused")
        await s.goes_by()
        assert s.holds()

    scene_of(tmp_path, what, lends=True)


# --- the target ---


def arriving(status: Status, pid: int, phase: str = "finish3") -> None:
    status.says(f"vm{pid}", pid, "paused", "migration", "migration in", phase)


def test_target_waits_for_a_source_that_is_about_to_let_go(tmp_path: Path) -> None:
    async def scene() -> None:
        status = Status()
        w = World(tmp_path, status=status, acquire_wait_s=5)
        disk = w.disk()
        source, target = w.owner(1), w.owner(2)
        await w.manager.acquire(source, want(disk))
        arriving(status, 2)
        waiting = w.start(w.manager.acquire(target, want(disk)))
        await w.clock.advance(4)
        assert not waiting.done()
        await w.manager.release(source, Resource("", disk))
        await w.clock.advance(1)
        assert waiting.done()
        assert await waiting

    run(scene)


@pytest.mark.parametrize("phase", ["finish3", "prepare"])
def test_target_is_refused_in_the_end_and_others_at_once(tmp_path: Path, phase: str) -> None:
    async def scene() -> None:
        status = Status()
        w = World(tmp_path, status=status, acquire_wait_s=5)
        disk = w.disk()
        await w.manager.acquire(w.owner(1), want(disk))
        arriving(status, 2, phase)
        waiting = w.start(w.manager.acquire(w.owner(2), want(disk)))
        await w.clock.advance(4.5 if phase == "finish3" else 0)
        assert waiting.done() is (phase != "finish3")
        await w.clock.advance(1)
        with pytest.raises(ResourceBusy):
            await waiting
        assert [e.kind for e in w.events.recent()].count(ev.REFUSED) == 1

    run(scene)


def test_target_that_ends_while_it_waits_gets_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        status = Status()
        w = World(tmp_path, status=status, acquire_wait_s=5)
        disk = w.disk()
        source = w.owner(1)
        await w.manager.acquire(source, want(disk))
        arriving(status, 2)
        waiting = w.start(w.manager.acquire(w.owner(2), want(disk)))
        await w.clock.advance(1)
        w.processes.end(2)
        await w.manager.release(source, Resource("", disk))
        await w.clock.advance(1)
        with pytest.raises(Exception, match="2"):
            await waiting
        assert not locked(disk)

    run(scene)


# --- the journal ---


def test_lines_about_migrations_replay(tmp_path: Path) -> None:
    lines = (
        jn.OwnerLine(1, 7, 1, "web1", "", 1),
        jn.LockLine(1, "file", "/d", False, 2, ((1, 1),), 0.0),
        jn.ClaimLine(1, 1, "", "/d", 2),
    )
    departing = jn.DepartingLine(1, 1, "", "/d")
    claim = (1, Resource("", "/d"))

    def saved(*more: jn.Line) -> SavedState:
        w = World(tmp_path)
        journal = Journal(w.file, boot=BOOT, host=HOST, snapshot=list)
        return replay(journal.image([*lines, *more]))

    assert saved(departing).locks[1].departing == {claim}
    assert saved(departing, jn.ClaimLine(1, 1, "", "/d", 2)).locks[1].departing == set()
    assert not saved(departing, jn.UnclaimLine(1, 1, "", "/d")).locks
    assert (
        saved(jn.DepartingLine(1, 1, "", "/e"), jn.DepartingLine(9, 1, "", "/d")).locks[1].departing == set()
    )
    lent = jn.LentLine(1, "", "/e", 2, True)
    assert saved(lent).lent == {(1, Resource("", "/e")): (Mode.EXCLUSIVE, True)}
    assert saved(lent, jn.LentOverLine(1, "", "/e")).lent == {}
    assert saved(lent, jn.OwnerGoneLine(1)).lent == {}
    assert saved(departing, lent).is_whole


def test_poweroff_in_the_domain_comes_before_the_configuration(tmp_path: Path) -> None:
    async def scene() -> None:
        w = World(tmp_path, on_lock_lost=LockFailureAction.PAUSE)
        owner: Owner = w.owner(1)
        await w.recovery.act(owner, "poweroff")
        await w.clock.advance(60)
        assert not w.processes.is_running(1)
        assert not w.libvirt.asked

    run(scene)

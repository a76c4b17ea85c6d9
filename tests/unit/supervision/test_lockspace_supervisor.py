"""A keeper on threads that never run by themselves: one term at a time, whatever the thread of the one before still does."""

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.protocol.simulated import SimulatedDisk, World
from tests.unit.supervision.rig import TIMING, RecordedWatchdog

from holdfast.model import Instant
from holdfast.protocol.membership import Membership
from holdfast.protocol.types import Generation, HostId, IoFailed
from holdfast.supervision import lockspace_news
from holdfast.supervision.host_identity import HostIdentity, JoinPlan
from holdfast.supervision.incarnation_copies import IncarnationCopies
from holdfast.supervision.join_errors import Hindrance, NotJoined, NotOpened
from holdfast.supervision.lease_monitor import LeaseMonitor
from holdfast.supervision.lockspace_news import LockspaceNews
from holdfast.supervision.lockspace_port import LockspaceSpec
from holdfast.supervision.lockspace_supervisor import (
    RESUME_WAIT_S,
    LockspaceState,
    LockspaceSupervisor,
)
from holdfast.supervision.lockspace_use import LockspaceUse, User
from holdfast.supervision.renewal import Left, Lost
from holdfast.system.block_io.blocking_ports import Interrupted, run_blocking
from holdfast.system.block_io.renewal_threads import Life
from holdfast.system.files.lockspace_locks import SystemSpaceLocks
from holdfast.system.files.state_file import StateFile


class Threads:
    """Counts the lives that were begun; they end when the test says so."""

    def __init__(self) -> None:
        self.ends: list[Callable[[object], None]] = []
        self.lives: list[Life] = []

    def start_on_disk(self, name: str, path: str, life: Life, on_end: Callable[[object], None]) -> None:
        self.lives.append(life)
        self.ends.append(on_end)

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()


class PassingClock:
    """A sleep makes the time pass at once."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def now(self) -> Instant:
        return Instant(1000.0 + self.slept_s)

    def wall(self) -> float:
        return 1_700_000_000.0 + self.slept_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s += seconds


DOUBT_S = 12.0
"""How long a rig that is in use does not know what is held: as long as anybody sleeps in these tests."""


class Rig:
    """A keeper that has joined, as far as it knows."""

    def __init__(
        self,
        place: Path,
        *,
        why_not: Callable[[], str] = lambda: "",
        in_use: bool = False,
        begin: Callable[[LockspaceSupervisor], None] = LockspaceSupervisor.start,
    ) -> None:
        self.host = host = World(1, size_bytes=0).host("alpha")
        self.threads = Threads()
        self.clock = PassingClock()
        self.waiting: list[Coroutine[Any, Any, object]] = []
        self.lost: list[str] = []
        self.over: list[str] = []
        self.watchdog = RecordedWatchdog(host)
        self.supervisor = LockspaceSupervisor(
            LockspaceSpec(name="A", path="/ls", host_id=HostId(1), hosts_max=None, timing=TIMING),
            lease_monitor=LeaseMonitor(clock=host.clock, watchdog=self.watchdog),
            threads=self.threads,
            clock=self.clock,
            copies=IncarnationCopies("A", [StateFile(str(place / "term"))]),
            use=LockspaceUse(
                "A", SystemSpaceLocks(str(place / "host")).of("A"), User("b", "/run/a", "/var/a")
            ),
            identity=HostIdentity(node="alpha", boot="b", machine="m"),
            token=lambda: "0" * 12,
            in_use=lambda: in_use,
            lease_writes=lambda: lambda: False,
            spawn=self.waiting.append,
            report=self.read,
            may_start=why_not,
            is_in_doubt=lambda: in_use and self.clock.slept_s < DOUBT_S,
        )
        begin(self.supervisor)

    def read(self, news: LockspaceNews) -> None:
        if isinstance(news, lockspace_news.Lost):
            self.lost.append(news.reason)
        elif isinstance(news, lockspace_news.Over):
            self.over.append(news.lockspace)

    def wait(self) -> None:
        """Whatever waits for a time has it pass, until it ends or another waits."""
        while self.waiting:
            run_blocking(self.waiting.pop(0))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.supervisor._become(LockspaceState.JOINED, "")
    yield rig
    for work in rig.waiting:
        work.close()


def test_a_lost_lockspace_is_joined_again_when_the_thread_of_the_lost_term_has_ended(rig: Rig) -> None:
    rig.supervisor.heart_stopped()
    rig.supervisor.users_gone()
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.ABSENT, 1)
    assert "last renewal" in rig.supervisor.reason
    rig.threads.ends[0](Lost("too late"))
    assert (rig.supervisor.state, len(rig.threads.ends), len(rig.lost)) == (LockspaceState.JOINING, 2, 1)


def test_a_lost_lockspace_whose_thread_has_ended_is_joined_again_at_once(rig: Rig) -> None:
    rig.threads.ends[0](Lost("somebody else has written this host's record"))
    assert rig.supervisor.state is LockspaceState.LOST
    rig.supervisor.users_gone()
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 2)


def test_whoever_leaves_while_the_lost_term_ends_does_not_join_again(rig: Rig) -> None:
    rig.supervisor.heart_stopped()
    rig.supervisor.users_gone()
    rig.supervisor.leave()
    rig.threads.ends[0](Lost("too late"))
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.LEFT, 1)
    rig.supervisor.join()
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 2)


def test_what_was_lost_while_it_was_left_is_not_joined_beside_its_thread(rig: Rig) -> None:
    rig.supervisor.leave()
    rig.supervisor._lost("not renewed in time")
    rig.supervisor.users_gone()
    assert rig.supervisor.state is LockspaceState.LEFT
    rig.supervisor.join()
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.ABSENT, 1)
    rig.threads.ends[0](Left(released=False, reason="lost"))
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 2)


def test_a_join_that_fails_leaves_nobody_waiting_for_its_thread(rig: Rig) -> None:
    rig.supervisor._become(LockspaceState.JOINING, "")
    rig.threads.ends[0](NotJoined("the host id is held"))
    rig.supervisor.leave()
    rig.supervisor.join()
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 2)


def member(host_id: int = 1) -> Membership:
    return Membership(
        lockspace=None,  # type: ignore[arg-type]
        host_id=HostId(host_id),
        generation=Generation(4),
        bounds=lambda: TIMING,
        may_write=lambda: True,
        view=lambda _: None,  # type: ignore[arg-type,return-value]
    )


def test_no_new_lock_may_depend_on_an_incarnation_that_is_not_written_down(tmp_path: Path) -> None:
    in_the_way = tmp_path / "term.new"
    in_the_way.mkdir()
    rig = Rig(tmp_path)
    rig.supervisor._become(LockspaceState.JOINING, "")
    rig.supervisor._joined(JoinPlan(HostId(1), "alpha.x", TIMING), member())
    assert isinstance(rig.supervisor.membership(), Membership), "what is held already goes on"
    assert "term" in rig.supervisor.refuses_new()
    assert len(rig.waiting) == 1
    in_the_way.rmdir()
    rig.wait()
    assert rig.supervisor.refuses_new() == ""
    assert rig.supervisor.has_earlier_life


def test_no_new_lock_may_depend_on_a_lease_whose_watchdog_is_not_armed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    monkeypatch.setattr(rig.supervisor._lease_monitor, "why_unarmed", lambda: "the watchdog is not armed")
    rig.supervisor._become(LockspaceState.JOINING, "")
    rig.supervisor._joined(JoinPlan(HostId(1), "alpha.x", TIMING), member())
    assert isinstance(rig.supervisor.membership(), Membership), "what is held already goes on"
    assert rig.supervisor.refuses_new() == "the watchdog is not armed"


def test_vms_of_an_incarnation_that_no_copy_remembers_are_not_stopped_before_storage_was_searched(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, in_use=True)
    assert rig.lost == []
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 1)
    assert rig.supervisor.resuming


def test_lockspace_that_was_lost_in_doubt_is_read_again_until_it_is_proven_that_no_vm_depends_on_it(
    tmp_path: Path,
) -> None:
    """One storage error at the start, and it would have stayed lost until the next reboot (found by seed 246)."""
    rig = Rig(tmp_path, in_use=True)
    rig.threads.ends[0](NotJoined("storage failed"))
    assert (rig.supervisor.state, len(rig.lost)) == (LockspaceState.LOST, 1)
    rig.wait()
    assert len(rig.threads.ends) == 2, "one reading at a time"
    rig.threads.ends[1](False)
    assert (rig.supervisor.state, rig.over) == (LockspaceState.LOST, [])
    rig.clock.slept_s = 0.0
    rig.supervisor._spawn(rig.supervisor._look_until_over(None, None, rig.supervisor._life))  # type: ignore[arg-type]
    rig.wait()
    rig.threads.ends[2](True)
    assert rig.over == ["A"]


def test_incarnation_that_was_given_back_is_reported_over_before_it_counts_as_lost(tmp_path: Path) -> None:
    """The doubt about it would have kept the lockspace lost for good (found by seed 86)."""
    rig = Rig(tmp_path, in_use=True)
    rig.threads.ends[0](NotJoined("it was given back", is_over=True))
    assert rig.over == ["A"]
    for work in rig.waiting:
        work.close()


def test_incarnation_that_is_over_and_unused_is_no_failure_to_join(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """A client of sanlock removes a lockspace, initializes it and adds it again: nothing is wrong with that."""
    caplog.set_level("INFO")
    rig.supervisor._become(LockspaceState.JOINING, "")
    rig.supervisor._resuming = True
    rig.threads.ends[0](NotJoined("host id 1 has been given back"))
    assert [
        (each.levelname, each.getMessage()) for each in caplog.records if "given back" in each.getMessage()
    ] == [
        (
            "INFO",
            "lockspace A: not resumed, as nothing depends on the last incarnation: host id 1 has been given back",
        )
    ]
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 2)
    rig.threads.ends[1](NotJoined("storage failed"))
    assert ("WARNING", "lockspace A is not joined: storage failed") in [
        (each.levelname, each.getMessage()) for each in caplog.records
    ]


@pytest.mark.parametrize("in_use", [False, True])
def test_watchdog_that_an_earlier_daemon_left_armed_is_stopped_where_no_lease_is_used(
    tmp_path: Path, in_use: bool
) -> None:
    """Nothing would feed it, as its lease can't be renewed: this host would be reset in vain."""
    rig = Rig(tmp_path, in_use=in_use)
    rig.watchdog.left_fd = 7
    rig.threads.ends[0](IoFailed(5))
    assert (rig.watchdog.disarmed_at is None) == in_use
    for work in rig.waiting:
        work.close()


def test_watchdog_is_not_stopped_while_vms_of_other_directories_may_depend_on_it(tmp_path: Path) -> None:
    other = LockspaceUse("A", SystemSpaceLocks(str(tmp_path / "host")).of("A"), User("b", "/run/b", "/var/b"))
    assert other.take(resuming=False) == ""
    rig = Rig(tmp_path)
    rig.watchdog.left_fd = 7
    rig.threads.ends[0](NotJoined("it is used by another daemon"))
    assert rig.watchdog.disarmed_at is None
    for work in rig.waiting:
        work.close()


class LeftMeanwhile(SimulatedDisk):
    """A read from it is interrupted: the lockspace is being left."""

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        raise Interrupted


def test_lockspace_that_is_left_before_it_is_joined_has_not_failed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.supervisor._become(LockspaceState.JOINING, "")
    rig.supervisor.leave()
    ended = run_blocking(rig.threads.lives[0](LeftMeanwhile(rig.host), rig.host.clock, lambda: None))
    rig.threads.ends[0](ended)
    assert rig.supervisor.state is LockspaceState.LEFT
    assert "unexpected" not in caplog.text


class Predecessor:
    """A request of an earlier daemon that is inside for so many questions more."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> str:
        self.left -= 1
        return "a request is inside" if self.left >= 0 else ""


def test_nothing_is_begun_while_a_request_of_an_earlier_daemon_may_land(tmp_path: Path) -> None:
    rig = Rig(tmp_path, why_not=Predecessor(3))
    assert (rig.supervisor.state, rig.supervisor.reason) == (LockspaceState.ABSENT, "a request is inside")
    assert not rig.threads.ends
    assert not rig.supervisor.resuming, "the start would wait for it, and all others with it"
    rig.wait()
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 1)


def test_owners_are_not_left_for_long_on_a_term_that_can_not_be_gone_on_with_yet(tmp_path: Path) -> None:
    """It is not renewed meanwhile, and its age can't be read."""
    rig = Rig(tmp_path, why_not=Predecessor(1000), in_use=True)
    rig.wait()
    assert rig.supervisor.state is LockspaceState.LOST
    assert rig.lost == ["its last term could not be resumed in time: a request is inside"]
    assert rig.clock.slept_s <= max(RESUME_WAIT_S, 2 * TIMING.io_timeout_s) + 2
    assert not rig.threads.ends


def test_a_lockspace_lost_over_a_request_of_an_earlier_daemon_is_joined_again_only_after_it(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, why_not=Predecessor(60), in_use=True)
    rig.wait()
    rig.supervisor.users_gone()
    assert rig.supervisor.state is LockspaceState.ABSENT
    assert not rig.threads.ends
    rig.wait()
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 1)


def test_keeper_that_leaves_and_joins_while_a_request_may_land_begins_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, why_not=Predecessor(3))
    rig.supervisor.leave()
    assert rig.supervisor.state is LockspaceState.LEFT
    rig.supervisor.join()
    rig.wait()
    assert (rig.supervisor.state, len(rig.threads.ends)) == (LockspaceState.JOINING, 1)


class Once:
    """A keeper that tries once; `ends` counts how often the end of the try was reported."""

    def __init__(self, place: Path, *, why_not: Callable[[], str] = lambda: "") -> None:
        self.ends = 0
        self.rig = Rig(place, why_not=why_not, begin=lambda supervisor: supervisor.try_once(self.end))
        self.supervisor, self.threads = self.rig.supervisor, self.rig.threads

    def end(self) -> None:
        self.ends += 1

    def facts(self) -> tuple[LockspaceState, NotJoined | None, int, int]:
        """State, failure, reported ends, begun threads."""
        keeper = self.supervisor
        return keeper.state, keeper.failure, self.ends, len(self.threads.ends)

    def has_ended(self) -> bool:
        return self.supervisor.has_ended


def test_a_single_try_that_fails_is_the_last_and_says_why(tmp_path: Path) -> None:
    once = Once(tmp_path)
    assert once.facts() == (LockspaceState.JOINING, None, 0, 1)
    failed = NotJoined("no such id", cause=Hindrance.HOST_ID)
    once.threads.ends[0](failed)
    once.rig.wait()
    assert once.facts() == (LockspaceState.LEFT, failed, 1, 1)
    assert once.has_ended()


def test_a_single_try_whose_storage_can_not_be_opened_says_so(tmp_path: Path) -> None:
    once = Once(tmp_path)
    once.threads.ends[0](IoFailed(2))
    failure = once.supervisor.failure
    assert failure is not None
    assert failure.cause == NotOpened(2)


def test_a_lockspace_that_is_tried_once_is_not_joined_again_after_a_loss(tmp_path: Path) -> None:
    once = Once(tmp_path)
    use = once.supervisor.use
    assert not use.take(resuming=False)
    once.supervisor._become(LockspaceState.JOINED, "")
    once.supervisor.heart_stopped()
    once.supervisor.users_gone()
    assert once.supervisor.state is LockspaceState.LEFT
    assert not once.has_ended()  # its thread may still write, so no other daemon of this host may join either
    assert use.descriptor() is not None
    once.threads.ends[0](Lost("too late"))
    once.rig.wait()
    assert once.has_ended()
    assert use.descriptor() is None
    assert len(once.threads.ends) == 1


def test_a_loss_that_ends_behind_its_thread_lets_other_daemons_of_this_host_join(tmp_path: Path) -> None:
    once = Once(tmp_path)
    assert not once.supervisor.use.take(resuming=False)
    once.threads.ends[0](Lost("somebody else has written this host's record"))
    once.supervisor.users_gone()
    assert once.has_ended()
    assert once.supervisor.use.descriptor() is None


def test_leaving_before_anything_was_begun_ends_the_single_try(tmp_path: Path) -> None:
    once = Once(tmp_path, why_not=lambda: "an earlier daemon hangs")
    once.supervisor.leave()
    failure = once.supervisor.failure
    assert failure is not None
    assert (failure.cause, once.ends) == (Hindrance.BROKEN_OFF, 1)
    for work in once.rig.waiting:
        work.close()

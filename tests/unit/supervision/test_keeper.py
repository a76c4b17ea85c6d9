"""A keeper on threads that never run by themselves: one term at a time, whatever the thread of the one before still does."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.protocol.simulated import World
from tests.unit.supervision.rig import TIMING, RecordedWatchdog

from holdfast.protocol.words import HostId
from holdfast.supervision.heartbeat import Heartbeat
from holdfast.supervision.host_terms import HostIdentity
from holdfast.supervision.join_refusals import NotJoined
from holdfast.supervision.keeper import KeeperNews, KeeperState, LockspaceKeeper, LockspaceSpec
from holdfast.supervision.lockspace import Left, Lost
from holdfast.system.lease_threads import Life
from holdfast.system.memory_file import MemoryFile


class Threads:
    """Counts the lives that were begun; they end when the test says so."""

    def __init__(self) -> None:
        self.ends: list[Callable[[object], None]] = []

    def start_on_disk(self, name: str, path: str, life: Life, on_end: Callable[[object], None]) -> None:
        self.ends.append(on_end)

    def tell(self, callback: Callable[[], None]) -> None:
        callback()


class Rig:
    """A keeper that has joined, as far as it knows."""

    def __init__(self, place: Path) -> None:
        host = World(1, size_bytes=0).host("alpha")
        self.threads = Threads()
        self.lost: list[str] = []
        self.keeper = LockspaceKeeper(
            LockspaceSpec(name="A", path="/ls", host_id=HostId(1), hosts_max=None, timing=TIMING),
            heartbeat=Heartbeat(clock=host.clock, watchdog=RecordedWatchdog(host)),
            threads=self.threads,
            clock=host.clock,  # type: ignore[arg-type]
            memory=MemoryFile(str(place / "term")),
            identity=HostIdentity(node="alpha", boot="b", machine="m"),
            token=lambda: "0" * 12,
            in_use=lambda: False,
            lease_writes=lambda: lambda: False,
            spawn=lambda work: work.close(),
            news=KeeperNews(on_lost=lambda _, reason: self.lost.append(reason)),
        )
        self.keeper.start()
        self.keeper._become(KeeperState.JOINED, "")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_lost_lockspace_is_joined_again_when_the_thread_of_the_lost_term_has_ended(rig: Rig) -> None:
    rig.keeper.heart_stopped()
    rig.keeper.users_are_gone()
    assert (rig.keeper.state, len(rig.threads.ends)) == (KeeperState.ABSENT, 1)
    assert "last renewal" in rig.keeper.reason
    rig.threads.ends[0](Lost("too late"))
    assert (rig.keeper.state, len(rig.threads.ends), len(rig.lost)) == (KeeperState.JOINING, 2, 1)


def test_a_lost_lockspace_whose_thread_has_ended_is_joined_again_at_once(rig: Rig) -> None:
    rig.threads.ends[0](Lost("somebody else has written this host's record"))
    assert rig.keeper.state is KeeperState.LOST
    rig.keeper.users_are_gone()
    assert (rig.keeper.state, len(rig.threads.ends)) == (KeeperState.JOINING, 2)


def test_whoever_leaves_while_the_lost_term_ends_does_not_join_again(rig: Rig) -> None:
    rig.keeper.heart_stopped()
    rig.keeper.users_are_gone()
    rig.keeper.leave()
    rig.threads.ends[0](Lost("too late"))
    assert (rig.keeper.state, len(rig.threads.ends)) == (KeeperState.LEFT, 1)
    rig.keeper.join()
    assert (rig.keeper.state, len(rig.threads.ends)) == (KeeperState.JOINING, 2)


def test_what_was_lost_while_it_was_left_is_not_joined_beside_its_thread(rig: Rig) -> None:
    rig.keeper.leave()
    rig.keeper._lost("not renewed in time")
    rig.keeper.users_are_gone()
    assert rig.keeper.state is KeeperState.LEFT
    rig.keeper.join()
    assert (rig.keeper.state, len(rig.threads.ends)) == (KeeperState.ABSENT, 1)
    rig.threads.ends[0](Left(released=False, reason="lost"))
    assert (rig.keeper.state, len(rig.threads.ends)) == (KeeperState.JOINING, 2)


def test_a_join_that_fails_leaves_nobody_waiting_for_its_thread(rig: Rig) -> None:
    rig.keeper._become(KeeperState.JOINING, "")
    rig.threads.ends[0](NotJoined("the host id is held"))
    rig.keeper.leave()
    rig.keeper.join()
    assert (rig.keeper.state, len(rig.threads.ends)) == (KeeperState.JOINING, 2)

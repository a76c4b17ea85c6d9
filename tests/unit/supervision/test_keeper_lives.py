"""A keeper whose renewal threads really run, in simulated time: what it says and does while the event loop is behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.protocol.simulated import SimulatedDisk
from tests.unit.supervision.rig import TIMING, Supervised, record_of, world_with_lockspaces

from holdfast.protocol.membership import Membership
from holdfast.protocol.types import HostId
from holdfast.supervision.host_identity import HostIdentity
from holdfast.supervision.incarnation_copies import IncarnationCopies
from holdfast.supervision.lockspace_port import LockspaceSpec, NotAMember
from holdfast.supervision.lockspace_supervisor import (
    LockspaceState,
    LockspaceSupervisor,
)
from holdfast.supervision.lockspace_use import LockspaceUse, User
from holdfast.system.block_io.renewal_threads import Life
from holdfast.system.files.lockspace_locks import SystemSpaceLocks
from holdfast.system.files.state_file import StateFile

JOINED_BY_S = 1000.0
"""Far more than joining takes."""


class Rig:
    """A keeper over the shared disk. `behind`: news for the event loop waits until it is `heard`."""

    def __init__(self, place: Path) -> None:
        self.world = world_with_lockspaces()
        self.supervised = Supervised(self.world, "alpha")
        self.host = self.supervised.host
        self.disk = SimulatedDisk(self.host)
        self.behind = False
        self._news: list[Callable[[], None]] = []
        self.lease_write_under_way = False
        self.supervisor = LockspaceSupervisor(
            LockspaceSpec(name="A", path="/ls", host_id=HostId(1), hosts_max=None, timing=TIMING),
            lease_monitor=self.supervised.lease_monitor,
            threads=self,
            clock=self.host.clock,  # type: ignore[arg-type]
            copies=IncarnationCopies("A", [StateFile(str(place / "term"))]),
            use=LockspaceUse(
                "A", SystemSpaceLocks(str(place / "host")).of("A"), User("b", "/run/a", "/var/a")
            ),
            identity=HostIdentity(node="alpha", boot="b", machine="m"),
            token=lambda: "0" * 12,
            in_use=lambda: False,
            lease_writes=lambda: lambda: self.lease_write_under_way,
            spawn=self.host.spawn,
            report=lambda _: None,
        )

    # --- the port of threads ---

    def start_on_disk(self, name: str, path: str, life: Life, on_end: Callable[[object], None]) -> None:
        async def whole() -> None:
            result = await life(self.disk, self.host.clock, lambda: None)
            self.call_soon(lambda: on_end(result))

        self.host.spawn(whole())

    def call_soon(self, callback: Callable[[], None]) -> None:
        if self.behind:
            self._news.append(callback)
        else:
            callback()

    def joined(self) -> LockspaceSupervisor:
        self.supervisor.start()
        while self.supervisor.state is not LockspaceState.JOINED:
            assert self.world.now < JOINED_BY_S, self.supervisor.reason
            self.passed(1)
        return self.supervisor

    def passed(self, seconds: float) -> None:
        self.world.run(until=self.world.now + seconds)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_lease_that_has_failed_is_no_membership_although_the_event_loop_has_not_heard_of_it(
    rig: Rig,
) -> None:
    supervisor = rig.joined()
    assert isinstance(supervisor.membership(), Membership)
    rig.behind = True
    rig.disk.cut = True
    rig.passed(TIMING.fail_s + 1)
    assert supervisor.state is LockspaceState.JOINED, "the news is still under way"
    absent = supervisor.membership()
    assert isinstance(absent, NotAMember)
    assert "has just been lost" in str(absent)


def test_a_lockspace_is_not_left_while_a_write_to_a_lease_may_still_land(rig: Rig) -> None:
    """The next host that claims the id has the same blocks: ours would land on top of theirs (ADR 0129)."""
    supervisor = rig.joined()
    rig.lease_write_under_way = True
    supervisor.leave()
    before = record_of(rig.world, 1).timestamp
    rig.passed(10 * TIMING.renewal_s)
    assert not record_of(rig.world, 1).is_free
    assert record_of(rig.world, 1).timestamp > before, "it is renewed meanwhile"
    rig.lease_write_under_way = False
    rig.passed(10 * TIMING.renewal_s)
    assert record_of(rig.world, 1).is_free
    assert supervisor.state is LockspaceState.LEFT

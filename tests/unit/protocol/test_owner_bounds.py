"""When an owner may be taken over, to the second: of hosts with other io_timeouts, by reads that take their time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.unit.protocol.simulated import Host, SimulatedDisk, World

from holdfast.ondisk import areas
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.host_block import Dblock, HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_outcomes import LockspaceLost
from holdfast.protocol.paxos_release import Lease, Mode, release
from holdfast.protocol.ports import Disk
from holdfast.protocol.takeover import Busy, HostUnknown, MayTakeOver, OwnerVerdict, may_take_over
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, HostTimestamp, Instant, IoFailed, ignore_wait

OUR_TIMING = Timing(1, 60)
"""Dead 68 s."""
SLOWER_IO_S = 2
SLOWER_DEAD_S = OUR_TIMING.of_host(SLOWER_IO_S).dead_s
US, OWNER = HostId(1), HostId(2)


class DiskThatTakesItsTime:
    """Another disk, each read of which is answered so many seconds late."""

    def __init__(self, host: Host, took_s: float) -> None:
        self._host, self._took_s = host, took_s
        self._disk = SimulatedDisk(host)

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        seen = await self._disk.read(offset_bytes, length_bytes, timeout_s=timeout_s)
        await self._host.clock.sleep(self._took_s)
        return seen

    async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        return await self._disk.write(offset_bytes, content, timeout_s=timeout_s)

    def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
        return self._disk.in_flight(offset_bytes, length_bytes)

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        await self._disk.settled(offset_bytes, length_bytes)


class Scene:
    """Host 1 asks for a lease that host 2 owns; host 2 is silent."""

    def __init__(self, *, io_timeout_s: int = 1, took_s: float = 0.0) -> None:
        self.world = World(1, size_bytes=2 * MIB)
        self.host = self.world.host()
        area, first = areas.lockspace_area(DEFAULT, "LS", 1)
        self._put(0, first + area[len(first) :])
        self.record = DeltaLease(
            geometry=DEFAULT,
            space_name=PaddedName.of("LS"),
            io_timeout_s=io_timeout_s,
            owner_id=OWNER,
            generation=1,
            host_name=PaddedName.of("beta"),
            timestamp=500,
        )
        self._put(DEFAULT.delta_offset_bytes(OWNER), self.record.sector())
        self.leader = replace(
            areas.fresh_leader(DEFAULT, "LS", "R", 8),
            owner_id=OWNER,
            owner_generation=1,
            lver=3,
            timestamp=500,
            write_id=OWNER,
            write_generation=1,
        )
        self._put(MIB, self.leader.sector())
        self.disk: Disk = DiskThatTakesItsTime(self.host, took_s)
        self.area = LeaseArea(self.disk, MIB, DEFAULT, "LS", "R")
        self.view = HostView(host_id=OWNER, state=HostState.UNKNOWN)

    def _put(self, at: int, content: bytes) -> None:
        self.world.content[at : at + len(content)] = content

    def shows(self, **changes: Any) -> None:
        """The owner's record changes so, on storage."""
        self.record = replace(self.record, **changes)
        self._put(DEFAULT.delta_offset_bytes(OWNER), self.record.sector())

    def member(self, host_id: HostId = US, may_write: Callable[[], bool] = lambda: True) -> Membership:
        return Membership(
            LockspaceArea(self.disk, 0, DEFAULT, "LS"),
            host_id,
            Generation(1),
            lambda: OUR_TIMING,
            may_write,
            lambda _: self.view,
        )

    def seen_unchanged_for(self, seconds: float) -> None:
        """Our looks have shown the owner's record as it is for so long."""
        self.view = HostView(
            host_id=OWNER,
            state=HostState.FAIL,
            generation=Generation(1),
            timestamp=HostTimestamp(500),
            io_timeout_s=self.record.io_timeout_s,
            unchanged_since=Instant(self.host.clock.now() - seconds),
            unchanged_s=seconds,
        )

    def verdict(self, *, wait: bool = False) -> OwnerVerdict:
        return self.host.run(
            may_take_over(
                self.area,
                self.member(),
                self.host.clock,
                self.leader,
                wait=wait,
                on_wait=ignore_wait,
            )
        )


def test_an_owner_with_a_greater_io_timeout_is_waited_for_by_its_own_bound() -> None:
    s = Scene(io_timeout_s=SLOWER_IO_S)
    verdict = s.verdict()
    assert isinstance(verdict, HostUnknown)
    assert verdict.dead_in_s > OUR_TIMING.dead_s
    begun = s.world.now
    assert isinstance(s.verdict(wait=True), MayTakeOver)
    assert s.world.now - begun > SLOWER_DEAD_S > OUR_TIMING.dead_s


def test_an_owner_is_taken_over_only_by_a_read_that_began_after_its_bound() -> None:
    """A read that began before may show what the disk held before: the owner may have renewed since."""
    s = Scene(took_s=1.5)
    s.seen_unchanged_for(OUR_TIMING.dead_s - 0.5)
    verdict = s.verdict()
    assert isinstance(verdict, HostUnknown), "the read ended after the bound, but began before it"
    assert 0 <= verdict.dead_in_s <= 0.5
    s.seen_unchanged_for(OUR_TIMING.dead_s + 0.5)
    assert isinstance(s.verdict(), MayTakeOver)


def test_an_owner_that_renewed_during_our_wait_is_alive() -> None:
    s = Scene()
    s.seen_unchanged_for(OUR_TIMING.dead_s + 1)
    s._put(DEFAULT.delta_offset_bytes(OWNER), replace(s.record, timestamp=501).sector())
    assert isinstance(s.verdict(), Busy)


def test_a_leader_is_not_freed_when_the_lease_on_the_host_id_fails_between_read_and_write() -> None:
    """Two asks before two writes: the second is the only one that a pause in between leaves."""
    s = Scene()
    own = HostBlock(dblock=Dblock(mbal=2, bal=2, inp=OWNER, inp2=1, inp3=500, lver=3))
    answers = iter((True, False))
    member = s.member(OWNER, lambda: next(answers))
    lease = Lease(Mode.EXCLUSIVE, s.leader, own, owns_leader=True)
    assert s.host.run(release(s.area, member, s.host.clock, lease)) == LockspaceLost()
    assert Leader.decode(bytes(s.world.content[MIB : MIB + 512])) == s.leader

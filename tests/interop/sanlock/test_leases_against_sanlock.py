"""A real sanlock daemon is host 1, the shipping protocol code is host 2; both use one lockspace and the
same leases.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.interop.sanlock.daemon import Holder, SanlockDaemon, installed_version
from tests.interop.sanlock.direct import blank_file, direct, dump
from tests.interop.sanlock.plain_file import OurHost

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.leader import Leader
from holdfast.protocol import (
    delta_lease,
    lease_area,
    lockspace_area,
    paxos_lease,
    paxos_release,
    paxos_request,
)
from holdfast.protocol.host_status import HostState
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.paxos_lease import SharedBy
from holdfast.protocol.paxos_release import Lease, Released
from holdfast.protocol.takeover import Busy
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId

pytestmark = pytest.mark.interop

# Small, so that joining takes seconds, yet 16 s of a stalled machine do not end a lease.
IO_TIMEOUT_S = 2
THEIRS, OURS = 1, 2


@dataclass
class Shared:
    """The two hosts and where their leases are."""

    daemon: SanlockDaemon
    ours: OurHost
    directory: Path

    def new_lease(self, name: str, *, formatted_by_us: bool) -> tuple[LeaseArea, str]:
        """A lease of its own for each test: our area and their name for it."""
        path = blank_file(self.directory / name, MIB)
        area = self.ours.lease(path, name)
        if formatted_by_us:
            made = self.ours.do(lease_area.init(area))
            assert isinstance(made, lease_area.LeaseInitialised)
        else:
            direct("init", "-r", f"LS1:{name}:{path}:0")
        return area, f"LS1:{name}:{path}:0"

    def exclusive(self, area: LeaseArea) -> paxos_lease.AcquireOutcome:
        ours = self.ours
        return ours.do(paxos_lease.acquire_exclusive(area, ours.member, ours.clock, ours.rng, wait=True))

    def shared(self, area: LeaseArea) -> paxos_lease.AcquireOutcome:
        ours = self.ours
        return ours.do(paxos_lease.acquire_shared(area, ours.member, ours.clock, ours.rng, wait=True))

    def release(self, area: LeaseArea, lease: Lease) -> None:
        ours = self.ours
        assert isinstance(ours.do(paxos_release.release(area, ours.member, ours.clock, lease)), Released)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    directory = tmp_path_factory.mktemp("sl")
    path = blank_file(directory / "ls", MIB)
    timing = Timing(IO_TIMEOUT_S)
    ours = OurHost(path, DEFAULT, OURS, timing)
    ours.do(lockspace_area.init(ours.disk, 0, DEFAULT, "LS1", io_timeout_s=IO_TIMEOUT_S))
    daemon = SanlockDaemon(directory, "the-real-one")
    try:
        joining = ours.begin_join()
        daemon.client("add_lockspace", "-s", f"LS1:{THEIRS}:{path}:0", "-o", str(IO_TIMEOUT_S))
        ours.joined(joining.result(60))
        yield Shared(daemon, ours, directory)
        assert not ours.lost
        assert isinstance(ours.leave(), delta_lease.Released)
    finally:
        daemon.stop()
        ours.close()


def lease_of(outcome: paxos_lease.AcquireOutcome) -> Lease:
    assert isinstance(outcome, Lease), outcome
    return outcome


def holder_of(outcome: Holder | str) -> Holder:
    assert isinstance(outcome, Holder), outcome
    return outcome


def test_a_lease_that_we_hold_is_shown_with_its_owner_and_refused_by_sanlock(both: Shared) -> None:
    area, name = both.new_lease("held-by-us", formatted_by_us=True)
    lease = lease_of(both.exclusive(area))
    path = both.directory / "held-by-us"
    (line,) = dump(path, 0, MIB)
    assert (line.resource, line.owner_id, line.generation) == ("held-by-us", OURS, 1)
    assert (line.timestamp, line.lver) == (lease.leader.timestamp, "1")
    refused = both.daemon.hold(name)
    assert isinstance(refused, str), "sanlock acquired what we hold"
    both.release(area, lease)
    theirs = holder_of(both.daemon.hold(name))
    theirs.release()


def test_a_lease_that_sanlock_holds_is_busy_for_us_and_free_after_its_release(both: Shared) -> None:
    area, name = both.new_lease("held-by-them", formatted_by_us=False)
    theirs = holder_of(both.daemon.hold(name))
    refused = both.exclusive(area)
    assert isinstance(refused, Busy), refused
    assert (refused.leader.owner_id, refused.host_name) == (THEIRS, "the-real-one")
    assert isinstance(both.shared(area), Busy)
    theirs.release()
    lease = lease_of(both.exclusive(area))
    assert lease.lver > refused.leader.lver
    both.release(area, lease)


def test_both_share_a_lease_and_neither_gets_it_alone(both: Shared) -> None:
    area, name = both.new_lease("shared", formatted_by_us=True)
    theirs = holder_of(both.daemon.hold(f"{name}:SH"))
    lease = lease_of(both.shared(area))
    assert both.daemon.client("status").count("SH") == 1
    ours = both.ours
    upgraded = ours.do(paxos_lease.upgrade(area, ours.member, ours.clock, ours.rng, lease))
    assert isinstance(upgraded, SharedBy)
    assert upgraded.hosts == {THEIRS: 1}
    theirs.release()
    assert isinstance(both.daemon.hold(name), str), "sanlock acquired alone what we share"
    both.release(area, lease)
    holder_of(both.daemon.hold(name)).release()


def test_the_lease_goes_back_and_forth_and_each_version_is_used_once(both: Shared) -> None:
    area, name = both.new_lease("relay", formatted_by_us=False)
    for turn in range(5):
        lease = lease_of(both.exclusive(area))
        assert lease.lver == 2 * turn + 1
        both.release(area, lease)
        holder_of(both.daemon.hold(name)).release()
    leader = both.ours.do(area.read_leader(HostId(OURS), 1))
    assert isinstance(leader, Leader)
    assert leader.is_free
    assert leader.lver == 10


def test_each_host_sees_the_other_alive(both: Shared) -> None:
    def seen() -> str:
        return both.daemon.client("host_status", "-s", "LS1")

    deadline = both.ours.clock.now() + 60
    while (view := both.ours.table.view(HostId(THEIRS), both.ours.clock.now())).state is not HostState.LIVE:
        assert both.ours.clock.now() < deadline
        both.ours.do(both.ours.clock.sleep(0.5))
    assert view.name == "the-real-one"
    assert view.io_timeout_s == IO_TIMEOUT_S
    (line,) = (line for line in seen().splitlines() if line.split()[:1] == [str(OURS)])
    assert int(line.split()[2]) > 0


def test_sanlock_obeys_a_request_that_we_write(both: Shared) -> None:
    area, name = both.new_lease("requested", formatted_by_us=True)
    theirs = holder_of(both.daemon.hold(name))
    asked = both.ours.do(paxos_request.request(area, both.ours.member, paxos_request.Force.GRACEFUL))
    assert isinstance(asked, paxos_request.Requested)
    assert asked.notify == THEIRS
    both.ours.notified.add(asked.notify)
    try:
        assert theirs.wait_ended(60) != 0
    finally:
        both.ours.notified.clear()
        theirs.end()
    outcome = both.exclusive(area)
    while isinstance(outcome, Busy):
        outcome = both.exclusive(area)
    both.release(area, lease_of(outcome))


def test_what_a_shorter_host_name_leaves_of_a_longer_one_is_ignored(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("sl")
    path = blank_file(directory / "ls", MIB)
    direct("init", "-s", f"LS1:0:{path}:0", "-o", "1")
    for name in ("a-rather-long-host-name", "short"):
        daemon = SanlockDaemon(directory, name)
        daemon.client("add_lockspace", "-s", f"LS1:1:{path}:0", "-o", "1")
        daemon.client("rem_lockspace", "-s", f"LS1:1:{path}:0")
        daemon.stop()
    ours = OurHost(path, DEFAULT, OURS, Timing(1))
    try:
        record = ours.do(ours.lockspace.read_record(HostId(1), 1))
        assert isinstance(record, DeltaLease)
        assert record.is_free
        assert record.host_name.text == "short"
        # Since 3.9 sanlock fills the field with zeros.
        left = b"short" if installed_version() >= (3, 9) else b"short\0er-long-host-name"
        assert record.host_name.field.rstrip(b"\0") == left
    finally:
        ours.close()

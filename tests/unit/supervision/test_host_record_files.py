"""What hosts say of themselves: who is kept out for it, who is reported, and that nothing else depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.unit.protocol.simulated import World
from tests.unit.supervision.rig import put_record, record_of, world_with_lockspaces

from holdfast import __version__
from holdfast.ondisk import host_record
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.host_record import HostRecord
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX, PaddedName
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId
from holdfast.supervision.host_identity import HostIdentity, Incarnation
from holdfast.supervision.host_records import HostRecords
from holdfast.system.block_io.blocking_ports import run_blocking
from holdfast.system.files.host_record_files import NO_PLACE

ME = HostIdentity("beta.example.org", "boot-b", "")
TIMING = Timing(10, 10)
TERM = Incarnation(
    lockspace="A",
    host_id=2,
    generation=5,
    host_name="beta.example.org.0123456789ab",
    boot="boot-b",
    machine="",
    io_timeout_s=10,
    fire_timeout_s=10,
)
ALPHA = HostRecord(
    lockspace="A",
    host_id=1,
    generation=7,
    host_name="alpha.ba9876543210",
    node="alpha.example.org",
    version="0.9",
    boot="boot-a",
    io_timeout_s=10,
    fire_timeout_s=60,
)


class Files:
    """Records in memory. `failing`: why nothing can be read or written."""

    def __init__(self, *records: HostRecord) -> None:
        self.raw = {record.host_id: host_record.encode(record) for record in records}
        self.failing = ""
        self.reads = 0

    async def read_all(self) -> Mapping[int, bytes] | str:
        self.reads += 1
        return self.failing or dict(self.raw)

    async def replace(self, host_id: int, raw: bytes) -> str:
        if not self.failing:
            self.raw[host_id] = raw
        return self.failing


class Clock:
    """A sleep calls `then`."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.slept = 0.0
        self._then = then

    def now(self) -> Any:
        return self.slept

    def wall(self) -> float:
        return self.slept

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self._then()


def records_of(files: Files) -> HostRecords:
    records = HostRecords("A", "/srv/A", files, ME)
    run_blocking(records.refresh())
    return records


def world_of_alpha(**changes: Any) -> World:
    """Alpha's delta lease as its record is about."""
    world = world_with_lockspaces()
    record = replace(
        record_of(world, 1),
        owner_id=1,
        generation=7,
        host_name=PaddedName.of(ALPHA.host_name, HOST_NAME_BYTES_MAX),
        timestamp=5,
    )
    put_record(world, 1, replace(record, **changes))
    return world


def misfit(
    world: World, records: HostRecords, timing: Timing = TIMING, own: Incarnation | None = None
) -> str:
    host = world.host("beta")
    area = LockspaceArea(host.disk, 0, DEFAULT, "A")
    return host.run(records.misfit(area, timing, own))


def view(**changes: Any) -> HostView:
    seen: dict[str, Any] = {
        "host_id": HostId(1),
        "state": HostState.LIVE,
        "name": ALPHA.host_name,
        "generation": Generation(7),
    }
    return HostView(**seen | changes)


def test_host_with_another_fire_timeout_is_kept_out_and_the_other_one_is_named() -> None:
    why = misfit(world_of_alpha(), records_of(Files(ALPHA)))
    assert "host alpha.example.org (host_id 1) 60 s, and this host 10 s" in why
    assert "set fire_timeout_s to the same" in why
    assert "/srv/A.host-1" in why
    assert misfit(world_of_alpha(), records_of(Files(ALPHA)), Timing(10, 60)) == ""


@pytest.mark.parametrize(
    "changes",
    [{"timestamp": 0}, {"generation": 8}, {"host_name": PaddedName.of("gamma.ba9876543210", 47)}],
)
def test_record_of_a_host_that_left_or_of_another_term_keeps_nobody_out(changes: dict[str, Any]) -> None:
    assert misfit(world_of_alpha(**changes), records_of(Files(ALPHA))) == ""


def test_own_last_term_keeps_nobody_out() -> None:
    own = msgspec.structs.replace(TERM, host_id=1, host_name=ALPHA.host_name)
    assert misfit(world_of_alpha(), records_of(Files(ALPHA)), own=own) == ""


@pytest.mark.parametrize("raw", [b"", b"{}", host_record.encode(ALPHA)[:-9], b"\0" * 512])
def test_record_that_can_not_be_believed_says_nothing(raw: bytes) -> None:
    files = Files()
    files.raw[1] = raw
    records = records_of(files)
    assert misfit(world_of_alpha(), records) == ""
    assert records.of(view()) is None
    assert records.report([view()], 10) == ""


def test_record_in_the_place_of_another_host_or_lockspace_says_nothing() -> None:
    files = Files()
    files.raw[1] = host_record.encode(msgspec.structs.replace(ALPHA, host_id=2))
    assert records_of(files).of(view()) is None
    other = Files(msgspec.structs.replace(ALPHA, lockspace="B"))
    assert records_of(other).of(view()) is None


def test_record_counts_for_the_term_that_is_seen_and_no_other() -> None:
    records = records_of(Files(ALPHA))
    assert records.of(view()) == ALPHA
    assert records.of(view(generation=Generation(8))) is None
    assert records.of(view(name="gamma.ba9876543210")) is None


def test_host_that_is_in_already_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    records = records_of(Files(ALPHA))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert "host alpha.example.org (host_id 1) 60 s" in records.report([view()], 10)
    assert caplog.text.count("watchdogs differ") == 1
    assert records.report([view()], 60) == ""


def tended(
    files: Files, rounds: int, term: Incarnation = TERM, views: tuple[HostView, ...] = ()
) -> HostRecords:
    left = [rounds]
    records = HostRecords("A", "/srv/A", files, ME)

    def then() -> None:
        left[0] -= 1

    clock = Clock(then)
    run_blocking(records.tend(term, views=lambda: views, is_present=lambda: left[0] > 0, clock=clock))
    return records


def test_host_says_its_whole_name_version_boot_and_fire_timeout() -> None:
    files = Files()
    tended(files, 1)
    said = host_record.decode(files.raw[2])
    assert said is not None
    assert (said.node, said.version, said.boot) == ("beta.example.org", __version__, "boot-b")
    assert (said.fire_timeout_s, said.generation, said.host_name) == (10, 5, TERM.host_name)


def test_record_that_can_not_be_written_is_said_once_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = Files()
    files.failing = "No space left on device"
    with caplog.at_level(logging.WARNING):
        records = tended(files, 5)
        assert caplog.text.count("No space left on device") == 1
    assert records.unpublished == "No space left on device"
    assert 2 not in files.raw


def test_others_are_read_until_each_has_said_something_that_can_be_believed() -> None:
    files = Files(ALPHA)
    records = tended(files, 5, views=(view(), view(host_id=HostId(3), state=HostState.FREE)))
    assert files.reads == 1
    assert "alpha.example.org" in records.misfits
    silent = Files()
    tended(silent, 5, views=(view(),))
    assert silent.reads == 5


def test_host_with_sanlock_is_reported_where_this_one_counts_less_than_sixty_seconds() -> None:
    files = Files()
    files.failing = NO_PLACE  # on a block device too
    sanlock = view(name="3f1c-uuid.gamma")
    records = tended(files, 2, views=(sanlock,))
    assert "host 3f1c-uuid.gamma (host_id 1), which has sanlock, 60 s, and this host 10 s" in records.misfits
    assert "60 beside sanlock" in records.misfits
    assert tended(files, 2, views=(replace(sanlock, state=HostState.DEAD),)).misfits == ""
    assert tended(files, 2, msgspec.structs.replace(TERM, fire_timeout_s=60), (sanlock,)).misfits == ""


def test_on_a_block_device_nothing_is_said_and_nobody_is_asked_twice() -> None:
    files = Files()
    files.failing = NO_PLACE
    records = tended(files, 5, views=(view(),))
    assert files.reads == 0
    assert not records.has_place

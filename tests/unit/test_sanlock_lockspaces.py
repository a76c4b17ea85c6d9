"""Lockspaces of sanlock's clients: what ADD, INQ, REM, SET_CONFIG, SET_EVENT and SHUTDOWN answer, and what they ask for."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from tests.support.sanlock_engine import FakeDaemon, FakeLockspaces, host_view, view_of

from holdfast.frontends.sanlock.engine_ports import NO_USES, Uses
from holdfast.frontends.sanlock.host_events import HostEvents
from holdfast.frontends.sanlock.join_results import of_not_joined
from holdfast.frontends.sanlock.lockspace_commands import REMOVING_SHOWN_S, LockspaceCommands
from holdfast.frontends.sanlock.lockspace_questions import LOG_BYTES_MAX, LockspaceQuestions
from holdfast.frontends.sanlock.lockspace_records import host_record
from holdfast.ondisk.areas import fresh_delta_lease
from holdfast.ondisk.delta import NO_EVENT, Event
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.types import Generation, HostId, IoFailed
from holdfast.supervision.join_errors import Hindrance, NotJoined, NotOpened
from holdfast.supervision.lockspace_port import LockspaceSpec
from holdfast.supervision.named_lockspace import Removal, Standing
from holdfast.supervision.renewal import RenewalTimes
from holdfast.testing.fakes import SimulatedClock, settle
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import (
    AddFlag,
    ConfigOrder,
    GetHostsFlag,
    HostFlag,
    LockspaceFlag,
    RemoveFlag,
    SetEventFlag,
)
from holdfast.wire.sanlock.flags import HostState as Shown
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import VERSION_5, RecordType, keys_of

LS = s.Lockspace.of("LS", 1, "/ls")
ABSENT = s.Lockspace.of("NEW", 1, "/new")
WAIT = 1
IO_TIMEOUT_DEFAULT_S = 10


class Leases:
    """What `LockspaceCommands` asks of `ClientLeases`."""

    def __init__(self) -> None:
        self.used: list[str] = []
        self.orphaned: list[str] = []

    def lockspaces(self) -> list[str]:
        return self.used

    def orphans(self, lockspace: str) -> list[tuple[str, str, None]]:
        return [("keeper", name, None) for name in self.orphaned]

    async def release_orphan(self, keeper: str, resource: str) -> None:
        self.orphaned.remove(resource)


class Host:
    """A host in LS."""

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.spaces = FakeLockspaces()
        self.spaces.known["LS"] = view_of("LS", "/ls")
        self.spaces.seen_hosts["LS"] = [host_view(1), host_view(2, state=HostState.DEAD)]
        self.leases = Leases()
        self.daemon = FakeDaemon()
        self.indexes: set[str] = set()
        self.gone: list[str] = []
        self.commands = LockspaceCommands(
            self.spaces,
            self.spaces,
            self.daemon,
            cast(Any, self.leases),
            cast(Any, self),
            clock=self.clock,
            index_in_use=lambda name: name in self.indexes,
            gone=self.gone.append,
        )
        self.questions = LockspaceQuestions(
            self.commands, self.spaces, self.daemon, clock=self.clock, resources=lambda _: ()
        )
        self.events = HostEvents(self.commands, self.spaces, clock=self.clock)

    def backend_of(self, lockspace: str) -> str:
        return f"leases of {lockspace}"

    async def add(self, lockspace: s.Lockspace, *, flags: int = 0, io_timeout_s: int = 0) -> int:
        return (await self.commands.add(r.AddLockspace(flags, io_timeout_s, lockspace))).result

    async def inquire(self, lockspace: s.Lockspace, flags: int = 0) -> int:
        return (await self.commands.inquire(r.InqLockspace(flags, lockspace))).result

    async def remove(self, lockspace: s.Lockspace, flags: int = 0) -> int:
        return (await self.commands.remove(r.RemLockspace(flags, lockspace))).result

    def config(self, order: int, seconds: int = 0, lockspace: s.Lockspace = LS) -> int:
        return self.commands.set_config(r.SetConfig(order, seconds, lockspace)).result

    async def event(self, event: s.HostEvent, flags: int = 0, lockspace: s.Lockspace = LS) -> int:
        return (await self.events.set(r.SetEvent(flags, lockspace, event))).result

    def called(self, what: str) -> list[tuple[object, ...]]:
        return [call[1:] for call in self.spaces.calls if call[0] == what]


def played(scene: Callable[[Host], Awaitable[None]]) -> None:
    async def go() -> None:
        await scene(Host())

    asyncio.run(go())


async def ends(task: asyncio.Task[int], host: Host, within_s: float = 5.0) -> int:
    for _ in range(int(within_s / 0.1)):
        if task.done():
            return task.result()
        await host.clock.advance(0.1)
    raise AssertionError("it has not ended")


def begun(work: Awaitable[int]) -> asyncio.Task[int]:
    return asyncio.ensure_future(cast(Any, work))


# --- ADD ---


def test_added_lockspace_is_joined_as_the_client_says() -> None:
    async def scene(host: Host) -> None:
        assert await host.add(s.Lockspace.of("NEW", 7, "/new", 4096), io_timeout_s=3) == Result.OK
        ((spec,),) = host.called("add")
        assert isinstance(spec, LockspaceSpec)
        assert (spec.name, spec.path, spec.offset_bytes, spec.host_id) == ("NEW", "/new", 4096, 7)
        assert (spec.timing.io_timeout_s, spec.timing.fire_timeout_s, spec.page_cache) == (3, 60, False)
        assert await host.add(ABSENT._replace(name=LS.name, disk=s.Disk("/z"))) == Result.EINVAL
        assert await host.add(s.Lockspace.of("ANY", 1, "/any")) == Result.OK
        (spec,) = host.called("add")[-1]
        assert isinstance(spec, LockspaceSpec)
        assert spec.timing.io_timeout_s == IO_TIMEOUT_DEFAULT_S

    played(scene)


def test_what_is_there_already_is_said_and_nothing_is_tried() -> None:
    async def scene(host: Host) -> None:
        for standing, result in (
            (Standing.JOINED, Result.EEXIST),
            (Standing.ADDING, Result.EINPROGRESS),
            (Standing.REMOVING, Result.EAGAIN),
        ):
            host.spaces.known["LS"] = view_of("LS", "/ls", standing=standing)
            assert await host.add(LS) == result
        for wrong in (
            LS._replace(host_id=3),
            LS._replace(disk=s.Disk("/other")),
            s.Lockspace.of("OTHER", 1, "/ls"),
            s.Lockspace.of("", 1, "/x"),
            s.Lockspace.of("X", 0, "/x"),
            s.Lockspace.of("X", 1, ""),
        ):
            assert await host.add(wrong) == Result.EINVAL
        assert await host.add(ABSENT, io_timeout_s=256) == Result.EINVAL
        assert await host.add(ABSENT, flags=AddFlag.NO_WATCHDOG) == Result.EINVAL
        assert host.called("add") == []

    played(scene)


def test_lockspace_is_added_in_the_background() -> None:
    async def scene(host: Host) -> None:
        host.spaces.joining.clear()
        assert await host.add(ABSENT, flags=AddFlag.ASYNC) == Result.OK
        assert await host.inquire(ABSENT) == Result.EINPROGRESS
        assert await host.add(ABSENT) == Result.EINPROGRESS
        waits = begun(host.inquire(ABSENT, WAIT))
        await host.clock.advance(3.0)
        assert not waits.done()
        host.spaces.joining.set()
        assert await ends(waits, host) == Result.OK
        assert await host.inquire(ABSENT._replace(host_id=0)) == Result.OK
        assert await host.inquire(ABSENT._replace(host_id=2)) == Result.ENOENT

    played(scene)


def fault(reason: Reason) -> Malformed:
    return Malformed("delta lease", reason, "x", "y")


@pytest.mark.parametrize(
    ("failure", "result"),
    [
        (NotJoined("", cause=NotOpened(errno.ENOENT)), Result.ENODEV),
        (NotJoined("", cause=IoFailed(errno.EMSGSIZE)), Result.ENODEV),
        (NotJoined("", cause=IoFailed(errno.ETIMEDOUT)), Result.AIO_TIMEOUT),
        (NotJoined("", cause=IoFailed(errno.ENXIO)), Result.EIO),
        (NotJoined("", cause=Hindrance.WATCHDOG), Result.WD_ERROR),
        (NotJoined("", cause=Hindrance.HOST_ID), Result.ADDLS_INVALID_HOSTID),
        (NotJoined("", cause=Hindrance.BROKEN_OFF), Result.FAILED),
        (NotJoined("", holder=fresh_delta_lease(DEFAULT, "LS")), Result.HOSTID_BUSY),
        (NotJoined("too slow"), Result.ERROR),
        (NotJoined("", cause=fault(Reason.MAGIC)), Result.LEADER_MAGIC),
        (NotJoined("", cause=fault(Reason.NEWER)), Result.LEADER_VERSION),
        (NotJoined("", cause=fault(Reason.LOCKSPACE_NAME)), Result.LEADER_LOCKSPACE),
        (NotJoined("", cause=fault(Reason.GEOMETRY)), Result.ADDLS_SIZES),
        (NotJoined("", cause=fault(Reason.SECTOR_SIZE)), Result.LEADER_SECTORSIZE),
        (NotJoined("", cause=fault(Reason.CHECKSUM)), Result.LEADER_CHECKSUM),
        (NotJoined("", cause=fault(Reason.CAW)), Result.WRONG_CAW),
    ],
    ids=str,
)
def test_failed_join_has_sanlocks_code(failure: NotJoined, result: Result) -> None:
    async def scene(host: Host) -> None:
        host.spaces.fails = failure
        assert await host.add(ABSENT) == result
        assert await host.inquire(ABSENT) == Result.ENOENT

    played(scene)


@pytest.mark.parametrize("hindrance", Hindrance)
def test_every_hindrance_has_a_code(hindrance: Hindrance) -> None:
    assert of_not_joined(NotJoined("", cause=hindrance)) < 0


@pytest.mark.parametrize(
    "reason", [each for each in Reason if each not in (Reason.OFFSET, Reason.RESOURCE_NAME)]
)
def test_every_fault_of_a_record_has_a_code_of_its_own(reason: Reason) -> None:
    assert of_not_joined(NotJoined("", cause=fault(reason))) not in (Result.OK, Result.ERROR)


# --- REM ---


def test_removed_lockspace_is_shown_leaving_for_a_moment() -> None:
    async def scene(host: Host) -> None:
        removal = begun(host.remove(LS))
        await settle()
        assert host.spaces.calls == [("stop", "LS"), ("remove", "LS")]
        await host.clock.advance(REMOVING_SHOWN_S / 2)
        assert host.commands.backend_of("LS") is None, "nobody may acquire there any more"
        assert await host.add(LS) == Result.EAGAIN
        assert await host.inquire(LS) == Result.EINPROGRESS, "it is left already"
        assert not removal.done()
        assert await ends(removal, host) == Result.OK
        assert host.gone == ["LS"]
        assert await host.inquire(LS) == Result.ENOENT
        assert await host.remove(LS) == Result.ENOENT
        assert cast(object, host.commands.backend_of("LS")) == "leases of LS"

    played(scene)


def test_removal_shows_itself_while_storage_takes_its_time() -> None:
    async def scene(host: Host) -> None:
        left = asyncio.Event()
        remove = host.spaces.remove

        async def slowly(named: Any) -> Removal:
            await left.wait()
            return await remove(named)

        host.spaces.remove = slowly  # type: ignore[method-assign]
        assert await host.remove(LS, RemoveFlag.ASYNC) == Result.OK
        await settle()
        assert await host.inquire(LS) == Result.EINPROGRESS
        assert await host.remove(LS) == Result.EINPROGRESS
        (shown,) = host.questions.lockspaces().lockspaces
        assert shown.flags == LockspaceFlag.REM
        assert host.questions.hosts(r.GetHosts(0, LS)).result == Result.ENOENT
        left.set()
        await host.clock.advance(2 * REMOVING_SHOWN_S)
        assert await host.inquire(LS) == Result.ENOENT

    played(scene)


def test_clients_are_stopped_and_orphans_released_before_it_is_left() -> None:
    async def scene(host: Host) -> None:
        host.spaces.stopping.clear()
        host.leases.orphaned = ["R1", "R2"]
        removal = begun(host.remove(LS))
        await host.clock.advance(5.0)
        assert (host.spaces.calls, host.leases.orphaned) == ([("stop", "LS")], ["R1", "R2"])
        assert await host.inquire(LS) == Result.OK
        host.spaces.stopping.set()
        assert await ends(removal, host) == Result.OK
        assert host.leases.orphaned == []
        assert host.called("remove") == [("LS",)]

    played(scene)


def test_use_keeps_a_lockspace_until_it_is_taken_back() -> None:
    async def scene(host: Host) -> None:
        assert host.config(ConfigOrder.USED) == Result.OK
        removal = begun(host.remove(LS))
        await host.clock.advance(30.0)
        assert not removal.done()
        assert await host.inquire(LS) == Result.OK
        assert host.config(ConfigOrder.UNUSED) == Result.OK
        assert await ends(removal, host) == Result.OK

    played(scene)


def test_orphans_keep_a_lockspace_only_if_that_is_asked_for() -> None:
    async def scene(host: Host) -> None:
        host.leases.orphaned = ["R1"]
        assert host.config(ConfigOrder.USED_BY_ORPHANS) == Result.OK
        assert host.spaces.marks["LS"] == Uses(used_by_orphans=True)
        removal = begun(host.remove(LS))
        await host.clock.advance(30.0)
        assert (removal.done(), host.leases.orphaned) == (False, ["R1"])
        assert host.config(ConfigOrder.UNUSED_BY_ORPHANS) == Result.OK
        assert await ends(removal, host) == Result.OK
        assert host.spaces.marks["LS"] == NO_USES

    played(scene)


def test_nothing_is_stopped_while_others_depend_on_the_lockspace(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(host: Host) -> None:
        host.spaces.in_the_way["LS"] = "web1 has a lease there"
        assert await host.remove(LS) == Result.EBUSY
        assert host.spaces.calls == []
        assert "web1 has a lease there" in caplog.text
        host.spaces.in_the_way.clear()
        host.leases.used = ["sanlock:LS"]
        assert await host.remove(LS, RemoveFlag.UNUSED) == Result.EBUSY
        host.leases.used.clear()
        host.indexes.add("LS")
        assert await host.remove(LS) == Result.EBUSY
        assert host.spaces.calls == []

    played(scene)


def test_others_that_come_while_clients_are_stopped_keep_the_lockspace() -> None:
    async def scene(host: Host) -> None:
        host.spaces.stopping.clear()
        host.leases.orphaned = ["R1"]
        removal = begun(host.remove(LS))
        await settle()
        host.spaces.in_the_way["LS"] = "web1 has a lease there"
        host.spaces.stopping.set()
        assert await ends(removal, host) == Result.EBUSY
        assert (host.called("remove"), host.leases.orphaned) == ([], ["R1"])
        assert await host.inquire(LS) == Result.OK

    played(scene)


@pytest.mark.parametrize(
    ("removal", "result"),
    [
        (Removal.BUSY, Result.EBUSY),
        (Removal.REMOVING, Result.EINPROGRESS),
        (Removal.ABSENT, Result.ENOENT),
    ],
)
def test_removal_that_is_refused_is_said(removal: Removal, result: Result) -> None:
    async def scene(host: Host) -> None:
        host.spaces.removal = removal
        assert await ends(begun(host.remove(LS)), host) == result
        assert await host.inquire(LS) == Result.OK
        assert host.gone == []

    played(scene)


def test_lockspace_that_is_being_added_is_removed_without_stopping_anybody() -> None:
    async def scene(host: Host) -> None:
        host.spaces.known["LS"] = view_of("LS", "/ls", standing=Standing.ADDING)
        assert await ends(begun(host.remove(LS)), host) == Result.OK
        assert host.spaces.calls == [("remove", "LS")]

    played(scene)


# --- SET_CONFIG, EXAMINE, SET_EVENT ---


def test_marks_are_for_joined_lockspaces() -> None:
    async def scene(host: Host) -> None:
        assert host.config(ConfigOrder.USED, lockspace=ABSENT) == Result.ENOENT
        assert host.config(99) == Result.EINVAL
        assert host.config(ConfigOrder.IO_TIMEOUT, 3) == Result.EINVAL, "sanlock 3 does not know it"
        host.daemon.version = 0x05010100
        assert host.config(ConfigOrder.IO_TIMEOUT, 0) == Result.EINVAL
        assert host.config(ConfigOrder.IO_TIMEOUT, 256) == Result.EINVAL
        assert host.config(ConfigOrder.IO_TIMEOUT, 3) == Result.OK
        assert host.called("io_timeout") == [("LS", 3)]
        host.spaces.known["LS"] = replace(view_of("LS", "/ls"), failing=True)
        assert host.config(ConfigOrder.USED) == Result.ENOSPC
        assert host.spaces.marks == {}

    played(scene)


def test_examine_answers_0_always() -> None:
    async def scene(host: Host) -> None:
        resource = s.Resource.of("LS", "R1")
        assert host.commands.examine(LS).result == Result.OK
        assert host.commands.examine(resource).result == Result.OK
        assert host.called("examine") == [("LS", ""), ("LS", "R1")]

    played(scene)


def test_event_is_posted_and_its_host_notified() -> None:
    async def scene(host: Host) -> None:
        assert await host.event(s.HostEvent(2, 5, 0xABC, 0xDEF)) == Result.OK
        assert host.called("event") == [("LS", Event(5, 0xABC, 0xDEF))]
        assert host.called("notify") == [("LS", 2)]
        assert await host.event(s.HostEvent(2, 6, 0xABC, 1)) == Result.OK, "its number is the same"
        assert await host.event(s.HostEvent(2, 5, 1, 1)) == Result.EBUSY
        assert await host.event(s.HostEvent(3)) == Result.OK, "no event takes the other one back"
        assert host.called("event")[-1] == ("LS", NO_EVENT)
        assert await host.event(s.HostEvent(2, 5, 0xABC, 0xDEF)) == Result.OK
        assert await host.event(s.HostEvent(2, 5, 1, 1), SetEventFlag.REPLACE_EVENT) == Result.OK
        await host.clock.advance(6.1)
        assert await host.event(s.HostEvent(2, 5, 2, 2)) == Result.OK, "the other one has had its time"
        for host_id in (0, 2001):
            assert await host.event(s.HostEvent(host_id)) == Result.EINVAL
        assert await host.event(s.HostEvent(1), lockspace=ABSENT) == Result.ENOENT

    played(scene)


def test_flags_of_an_event() -> None:
    async def scene(host: Host) -> None:
        assert await host.event(s.HostEvent(2, 0, 7, 8), SetEventFlag.CUR_GENERATION) == Result.OK
        assert host.called("event") == [("LS", Event(1, 7, 8))]
        assert await host.event(s.HostEvent(2), SetEventFlag.CLEAR_EVENT) == Result.OK
        assert host.called("event")[1:] == [("LS", NO_EVENT)]
        assert host.called("notify") == [("LS", 2)]
        assert await host.event(s.HostEvent(2), SetEventFlag.CLEAR_HOSTID) == Result.OK
        assert host.called("notify_no_more") == [("LS", 2)]
        assert len(host.called("event")) == 2
        host.spaces.seen_hosts["LS"].append(host_view(3))
        assert await host.event(s.HostEvent(2, 1, 7, 8), SetEventFlag.ALL_HOSTS) == Result.OK
        assert host.called("notify")[1:] == [("LS", 2), ("LS", 3)]

    played(scene)


# --- questions ---


def test_hosts_are_listed_as_they_were_seen() -> None:
    async def scene(host: Host) -> None:
        def asked(host_id: int, flags: int = 0) -> list[tuple[int, int, int]]:
            found = host.questions.hosts(r.GetHosts(flags, LS._replace(host_id=host_id)))
            assert found.result == Result.OK
            return [(each.host_id, each.timestamp, each.flags) for each in found.hosts]

        dead = Shown.DEAD | HostFlag.DEAD_BY_TIME
        host.spaces.seen_hosts["LS"].append(host_view(4, state=HostState.FREE, timestamp=0))
        assert asked(0) == [(1, 50, Shown.LIVE), (2, 50, dead)]
        assert asked(0, GetHostsFlag.LOCAL) == [(1, 50, Shown.LIVE)]
        assert asked(4) == [(4, 0, Shown.FREE)]
        assert asked(5) == [(5, 0, Shown.FREE)]
        assert asked(2001) == []
        host.spaces.seen_hosts["LS"] = [replace(host_view(2, state=HostState.DEAD), marked_by=(1, 1))]
        assert asked(2) == [(2, 50, Shown.DEAD | HostFlag.DEAD_EXT)]
        host.spaces.seen_hosts.clear()
        assert host.questions.hosts(r.GetHosts(0, LS)).result == Result.EAGAIN
        assert host.questions.hosts(r.GetHosts(0, ABSENT)).result == Result.ENOENT

    played(scene)


def test_lists_have_sanlocks_order_and_words() -> None:
    async def scene(host: Host) -> None:
        for name, standing in (("B", Standing.ADDING), ("C", Standing.REMOVING), ("D", Standing.JOINED)):
            host.spaces.known[name] = view_of(name, f"/{name}", standing=standing)
        host.spaces.marks["LS"] = Uses(used=True)
        found = host.questions.lockspaces().lockspaces
        assert [(each.name.text, each.flags) for each in found] == [("D", 0), ("LS", 0), ("C", 2), ("B", 1)]
        status = host.questions.status()
        assert [each.words["list"] for each in status.lockspaces] == ["spaces", "spaces", "add", "rem"]
        assert [each.words["space_id"] for each in status.lockspaces] == ["4", "1", "2", "3"]
        assert status.lockspaces[1].words["external_used"] == "1"
        assert status.daemon.words["version_str"] == status.daemon.words["version_num"] == "3.9.5"
        assert status.daemon.words["version_hex"] == "03090500"

    played(scene)


def test_hosts_and_history_are_records() -> None:
    async def scene(host: Host) -> None:
        host.spaces.history["LS"] = [RenewalTimes(10), RenewalTimes(12, 1, 2, 3, 4)]
        hosts = host.questions.host_status(r.HostStatus(LS))
        assert [(each.type, each.data32, each.data64) for each in hosts.records] == [
            (RecordType.HOST, 1, 50),
            (RecordType.HOST, 2, 50),
        ]
        assert hosts.records[0].words["owner_name"] == "host-1"
        assert "dead_ext" not in hosts.records[0].words, "that is of sanlock 5"
        history = host.questions.renewal(r.Renewal(LS))
        assert (history.data2, [each.data64 for each in history.records]) == (1, [10, 12])
        assert history.records[1].text == "timestamp=12 read_ms=1 write_ms=2 next_timeouts=3 next_errors=4"
        assert host.questions.host_status(r.HostStatus(ABSENT)).result == Result.ENOSPC
        assert host.questions.renewal(r.Renewal(ABSENT)).result == Result.ENOSPC
        assert host.questions.event_lockspace(LS).result == Result.OK
        assert host.questions.event_lockspace(ABSENT).result == Result.ENOENT

    played(scene)


def test_host_that_is_marked_as_dead_is_shown_so_to_clients_of_sanlock_5() -> None:
    marked = HostView(host_id=HostId(2), state=HostState.DEAD, generation=Generation(7), marked_by=(1, 3))
    for own_host_id, wrote in ((1, "7"), (3, "0")):
        words = host_record(marked, own_host_id, VERSION_5).words
        assert tuple(words) == keys_of(RecordType.HOST, VERSION_5)
        assert (words["dead_ext"], words["found_dead_ext_gen"], words["wrote_dead_ext_gen"]) == (
            "1",
            "7",
            wrote,
        )
        assert (words["host_flags"], words["host_state"]) == ("0x15", "DEAD")
    alive = host_record(HostView(host_id=HostId(2), state=HostState.LIVE), 1, VERSION_5).words
    assert (alive["dead_ext"], alive["host_flags"], alive["host_state"]) == ("0", "0x3", "LIVE")


def test_log_is_cut_at_its_beginning() -> None:
    async def scene(host: Host) -> None:
        host.daemon.log = b"old" + b"n" * LOG_BYTES_MAX
        assert host.questions.log_dump().text == b"n" * LOG_BYTES_MAX

    played(scene)


# --- SHUTDOWN ---


def test_daemon_ends_only_without_lockspaces() -> None:
    async def scene(host: Host) -> None:
        assert await host.commands.shut_down(force=False) == Result.EBUSY
        host.spaces.known.clear()
        host.daemon.stays = "libvirt's VMs have locks"
        assert await host.commands.shut_down(force=True) == Result.EBUSY
        assert host.daemon.ended == 0
        host.daemon.stays = ""
        assert await host.commands.shut_down(force=False) == Result.OK
        assert host.daemon.ended == 1

    played(scene)


def test_forced_end_leaves_all_lockspaces_first() -> None:
    async def scene(host: Host) -> None:
        host.spaces.known["B"] = view_of("B", "/b")
        removal = begun(host.remove(LS))  # somebody else is at it
        await settle()
        end = begun(host.commands.shut_down(force=True))
        assert await ends(end, host) == Result.OK
        assert (host.spaces.known, host.daemon.ended) == ({}, 1)
        assert await removal == Result.OK

    played(scene)


def test_forced_end_stops_nobody_if_one_lockspace_has_to_stay(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(host: Host) -> None:
        host.spaces.known["B"] = view_of("B", "/b")
        host.spaces.in_the_way["B"] = "it is configured"
        assert await host.commands.shut_down(force=True) == Result.EBUSY
        assert (host.spaces.calls, host.daemon.ended) == ([], 0)
        assert "it is configured" in caplog.text

    played(scene)

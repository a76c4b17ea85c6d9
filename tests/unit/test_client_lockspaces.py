"""Lockspaces that clients add and remove, over the host's real ones; threads end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.unit.supervision.test_lockspace_supervisor import PassingClock, Threads

from holdfast.daemon.client_backends import ClientBackends
from holdfast.daemon.client_lockspaces import ClientLockspaces
from holdfast.daemon.lockspaces import HostLockspaces, LeaseHostPorts
from holdfast.manager.journal_kinds import SanlockLockspaceLine
from holdfast.manager.lock_registry import LockRegistry
from holdfast.protocol.timing import Timing
from holdfast.supervision.host_identity import REMOVED, HostIdentity, Incarnation, decode_term, encode_term
from holdfast.supervision.join_errors import Hindrance, NotJoined
from holdfast.supervision.lockspace_port import LockspacePort, LockspaceSpec, WatchdogSpec
from holdfast.supervision.lockspace_supervisor import LockspaceState
from holdfast.supervision.named_lockspace import Named, Removal, Standing
from holdfast.supervision.renewal import Left, Lost
from holdfast.system.files.lockspace_locks import SystemSpaceLocks
from holdfast.system.files.state_file import StateFile
from holdfast.system.watchdog.device import NoWatchdog

NONE = WatchdogSpec("none", "", 60)


class YieldingClock(PassingClock):
    """Lets the other tasks run while the time passes."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await asyncio.sleep(0)


def spec(name: str = "A", *, path: str = "/a", host_id: int = 1) -> LockspaceSpec:
    return LockspaceSpec(name=name, path=path, host_id=host_id, hosts_max=None, timing=Timing(10, 60))


def named(name: str = "A", *, path: str = "/a", offset: int = 0, host_id: int = 1) -> Named:
    return Named(name, path, offset, host_id)


class Backends:
    """Which lockspaces have a backend for clients' leases."""

    def __init__(self) -> None:
        self.there: set[str] = set()

    def add(self, presence: LockspacePort) -> None:
        self.there.add(presence.name)

    def remove(self, lockspace: str) -> None:
        self.there.discard(lockspace)


class Book:
    """What the journal says clients have added."""

    def __init__(self) -> None:
        self.added: dict[str, SanlockLockspaceLine] = {}
        self.remembered: dict[str, str] = {}

    def lockspace_added(self, line: SanlockLockspaceLine) -> None:
        self.added[line.name] = line

    def lockspace_removed(self, name: str) -> None:
        self.added.pop(name, None)

    def remember(self, lockspace: str, state: str) -> None:
        self.remembered[lockspace] = state


class Host:
    """A host of which `configured` are lockspaces of a backend; `used` are the backends that owners depend on."""

    def __init__(self, place: Path, *configured: LockspaceSpec) -> None:
        self.threads = Threads()
        self.hearts = 0
        self.used: set[str] = set()
        clock = YieldingClock()
        ports = LeaseHostPorts(
            threads=self.threads,
            start_heart=self._start_heart,
            heart_clock=clock,
            watchdog=lambda _, __: NoWatchdog(),
            storage=cast(Any, None),
            writes_in_flight=lambda _: lambda: False,
            incarnation_files=lambda name: [StateFile(str(place / f"term-{name}"))],
            copied_lockspaces=lambda: [path.name.removeprefix("term-") for path in place.glob("term-*")],
            space_locks=SystemSpaceLocks(str(place / "host")),
            directories=("/run/a", "/var/a"),
            identities=cast(Any, None),
            rng=cast(Any, None),
            token=lambda: "0" * 12,
            generation_min=lambda: 1,
            reread_s=0.0,
        )
        self.host = HostLockspaces(
            ports=ports,
            clock=clock,
            identity=HostIdentity(node="alpha", boot="b", machine="m"),
            in_use=self._in_use,
        )
        for each in configured:
            self.host.ports().lockspace(each, "disks", NONE)
        self.backends = Backends()
        self.book = Book()
        self.clients = ClientLockspaces(
            self.host,
            backends=cast(ClientBackends, self.backends),
            book=cast(LockRegistry, self.book),
            clock=clock,
            watchdog=NONE,
        )

    def _start_heart(self, life: Coroutine[Any, Any, None], on_end: Callable[[object], None]) -> None:
        life.close()
        self.hearts += 1

    def _in_use(self, backends: Iterable[str]) -> bool:
        return bool(self.used & set(backends))

    async def joined(self, wanted: LockspaceSpec | None = None) -> None:
        """A client has added it, as far as its supervisor knows."""
        adding = asyncio.ensure_future(self.clients.add(wanted or spec()))
        await asyncio.sleep(0)
        supervisor = self.host.supervisors[-1]
        supervisor._become(LockspaceState.JOINED, "")
        supervisor._first_try_done()
        assert await adding is None

    async def refusal(self) -> Removal | None:
        """Of a removal by a client; None if it is under way instead."""
        removing = asyncio.ensure_future(self.clients.remove(named()))
        await asyncio.sleep(0)
        return removing.result() if removing.done() else None


def test_the_first_lockspace_of_a_host_starts_the_lease_monitor_and_the_second_does_not(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.host.start()
        assert host.hearts == 0
        await host.joined()
        await host.joined(spec("B", path="/b"))
        assert host.hearts == 1

    asyncio.run(scene())


def test_a_client_sees_a_lockspace_while_it_is_added_and_what_conflicts_with_it(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        seen = host.clients.standing
        assert seen(named()) is Standing.ABSENT
        adding = asyncio.ensure_future(host.clients.add(spec()))
        await asyncio.sleep(0)
        assert seen(named()) is seen(named(host_id=0)) is Standing.ADDING
        for other in (named(host_id=2), named(path="/b"), named(offset=1 << 20), named("B")):
            assert seen(other) is Standing.OTHER
        assert await host.clients.add(spec()) is Standing.ADDING
        assert await host.clients.add(spec("B")) is Standing.OTHER
        failed = NotJoined("out of range", cause=Hindrance.HOST_ID)
        host.threads.ends[0](failed)
        assert await adding == failed
        assert seen(named()) is Standing.ABSENT
        assert not host.host.supervisors

    asyncio.run(scene())


def test_an_unused_lockspace_of_a_client_is_left_and_can_be_added_again(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.joined()
        assert await host.clients.add(spec()) is Standing.JOINED
        removing = asyncio.ensure_future(host.clients.remove(named()))
        await asyncio.sleep(0)
        assert host.clients.standing(named()) is Standing.REMOVING
        assert await host.clients.remove(named()) is Removal.REMOVING
        assert await host.clients.add(spec()) is Standing.REMOVING
        host.threads.ends[0](Left(released=True))
        assert await removing is Removal.DONE
        assert await host.clients.remove(named()) is Removal.ABSENT
        await host.joined()

    asyncio.run(scene())


def test_a_lockspace_on_which_owners_depend_is_not_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.joined()
        host.used.add("sanlock:A")
        assert await host.refusal() is Removal.BUSY
        assert host.clients.standing(named()) is Standing.JOINED

    asyncio.run(scene())
    assert "owners depend on it" in caplog.text


def test_a_configured_lockspace_is_no_clients_to_remove(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        host = Host(tmp_path, spec())
        host.host.supervisors[0]._become(LockspaceState.JOINED, "")
        assert await host.clients.add(spec()) is Standing.JOINED
        assert await host.refusal() is Removal.BUSY
        assert host.clients.standing(named()) is Standing.JOINED

    asyncio.run(scene())
    assert "it is configured" in caplog.text


def test_an_add_that_is_removed_meanwhile_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        adding = asyncio.ensure_future(host.clients.add(spec()))
        await asyncio.sleep(0)
        removing = asyncio.ensure_future(host.clients.remove(named()))
        await asyncio.sleep(0)
        assert not adding.done()
        broken_off = NotJoined("joining was broken off", cause=Hindrance.BROKEN_OFF)
        host.threads.ends[0](broken_off)
        assert (await adding, await removing) == (broken_off, Removal.DONE)

    asyncio.run(scene())


def test_a_lost_lockspace_is_being_removed_until_its_thread_has_ended(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.joined()
        supervisor = host.host.supervisors[0]
        supervisor.heart_stopped()
        assert host.clients.standing(named()) is Standing.JOINED  # its owners are being stopped
        host.host.users_gone("A")
        assert host.clients.standing(named()) is Standing.REMOVING
        assert await host.clients.add(spec()) is Standing.REMOVING
        host.threads.ends[0](Lost("the heartbeat stopped"))
        assert host.clients.standing(named()) is Standing.ABSENT
        await host.joined()

    asyncio.run(scene())


def test_a_lock_of_this_host_that_is_still_held_is_that_of_the_next_one_of_its_name(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.joined()
        assert not host.host.supervisors[0].use.take(resuming=False)
        held = host.host.supervisors[0].use.descriptor()
        removing = asyncio.ensure_future(host.clients.remove(named()))
        await asyncio.sleep(0)
        host.threads.ends[0](Left(released=False, reason="its storage hangs"))
        assert await removing is Removal.DONE
        await host.joined()
        assert held is not None
        assert host.host.space_locks() == {"A": held}

    asyncio.run(scene())


def test_what_a_client_adds_is_in_the_journal_until_it_is_left(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.joined()
        assert host.book.added.keys() == host.backends.there == {"A"}
        removing = asyncio.ensure_future(host.clients.remove(named()))
        await asyncio.sleep(0)
        host.threads.ends[0](Left(released=True))
        assert await removing is Removal.DONE
        assert not host.book.added
        assert not host.backends.there

    asyncio.run(scene())


def test_a_try_that_fails_leaves_nothing_in_the_journal(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        adding = asyncio.ensure_future(host.clients.add(spec()))
        await asyncio.sleep(0)
        assert host.book.added.keys() == {"A"}  # before it is joined
        host.threads.ends[0](NotJoined("no"))
        assert isinstance(await adding, NotJoined)
        assert not host.book.added
        assert not host.backends.there

    asyncio.run(scene())


def test_the_next_daemon_joins_again_what_a_client_had_added_and_a_loss_is_its_end(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.joined()
        after = Host(tmp_path)
        after.clients.restore(host.book.added)
        assert after.backends.there == {"A"}
        assert after.host.supervisors[0].spec == spec()
        starting = asyncio.ensure_future(after.host.start())
        await asyncio.sleep(0)
        await starting
        assert after.hearts == 1
        assert after.clients.standing(named()) is Standing.ADDING
        after.host.supervisors[0]._become(LockspaceState.JOINED, "")
        after.host.supervisors[0]._retries = False  # as `_joined` leaves it
        after.host.supervisors[0].heart_stopped()
        after.host.users_gone("A")
        after.threads.ends[0](Lost("the heartbeat stopped"))
        assert after.clients.standing(named()) is Standing.ABSENT

    asyncio.run(scene())


def test_a_lockspace_that_is_configured_now_is_not_a_clients_any_more(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.joined()
        after = Host(tmp_path, spec())
        after.clients.restore(host.book.added)
        after.clients.serve_configured()
        assert after.backends.there == {"A"}
        assert after.host.backends_of("A") == {"disks", "sanlock:A"}
        assert await after.refusal() is Removal.BUSY

    asyncio.run(scene())


def left_copy(place: Path, name: str, **changes: object) -> None:
    """As an earlier daemon has written it."""
    term = Incarnation(
        lockspace=name,
        host_id=1,
        generation=7,
        host_name="alpha.0123456789ab",
        boot="b",
        machine="m",
        io_timeout_s=10,
        fire_timeout_s=60,
        joined_at=100.0,
        clients_place="0:/a",
    )
    StateFile(str(place / f"term-{name}")).replace(
        encode_term(msgspec.structs.replace(term, **changes)).encode()
    )


def test_copies_name_what_clients_had_added_in_this_boot(tmp_path: Path) -> None:
    left_copy(tmp_path, "A", clients_place="1048576:/a%20b")
    left_copy(tmp_path, "of-an-earlier-boot", boot="a")
    left_copy(tmp_path, "configured", clients_place="")
    left_copy(tmp_path, "was-left", clients_place=REMOVED)
    left_copy(tmp_path, "configured-now")
    host = Host(tmp_path, spec("configured-now"))
    found = host.host.copied_of_clients()
    assert found.keys() == {"A"}
    host.clients.restore(found)
    restored = host.host.supervisors[-1]
    assert restored.spec == replace(spec(path="/a b"), offset_bytes=1 << 20)
    assert restored.has_earlier_life
    assert host.backends.there == {"A"}
    assert host.host.may_be_clients("A")
    assert not host.host.may_be_clients("was-left")
    assert not host.host.may_be_clients("of-an-earlier-boot")


def test_the_place_is_in_the_copies_from_the_join_until_it_is_left(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        await host.joined()
        copies = host.host.supervisors[0]._copies
        assert copies.clients_place() == "0:/a"
        left_copy(tmp_path, "A")
        removing = asyncio.ensure_future(host.clients.remove(named()))
        await asyncio.sleep(0)
        assert host.host.copied_of_clients() == {}, "it is there still"
        host.threads.ends[0](Left(released=True))
        assert await removing is Removal.DONE
        assert host.host.copied_of_clients() == {}
        carried = decode_term(host.book.remembered["A"].encode())
        assert carried is not None, "the journal's copy says so, too"
        assert carried.clients_place == REMOVED

    asyncio.run(scene())

"""The port `LvLocks`: the cluster in memory and the real host's one, over lvmlockd's socket, keep the same contract.

LVM's commands are a stand-in that takes and gives up locks by that socket, as LVM does; there is no device-mapper here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from holdfast.backends.lvm.host_locks import HostLvLocks, lock_of
from holdfast.backends.lvm.lvm_commands import LvmCommands
from holdfast.backends.lvm.ports import LvId, LvLocks, Problem, Refused, Volume
from holdfast.model import Mode
from holdfast.system.block_io.lease_files import SystemLeaseStorage
from holdfast.system.block_io.worker_pool import WorkerPool
from holdfast.system.files.mapped_device import NotMapped
from holdfast.system.files.storage_executor import InlineStorage
from holdfast.system.host.commands import Ended
from holdfast.system.lvm import lvmlockd_client as lvmlockd
from holdfast.system.lvm.lvmlockd_client import HeldElsewhere, LvmlockdClient, LvmlockdError
from holdfast.testing.fake_lvmlockd import FakeLvmlockd, Modes
from holdfast_sim.volumes.shared_locks import HostLocks, SharedLocks, volume_named

EX, SH = Mode.EXCLUSIVE, Mode.SHARED
VOLUME = dataclasses.replace(
    volume_named("lv1"),
    id=LvId("AAAAAA-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa", "BBBBBB-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb"),
)


class Pair(Protocol):
    """Two hosts of one volume group."""

    one: LvLocks
    two: LvLocks
    volume: Volume

    def opens(self, *, closes: bool = False) -> None:
        """A process of the first host opens the device."""

    def fails(self, problem: Problem) -> None:
        """lvmlockd of the first host."""

    def close(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._cluster = SharedLocks(["h1", "h2"])
        self.one: LvLocks = HostLocks(self._cluster, "h1")
        self.two: LvLocks = HostLocks(self._cluster, "h2")
        self.volume = VOLUME

    def opens(self, *, closes: bool = False) -> None:
        self._cluster.hosts["h1"].open[self.volume.id] = 0 if closes else 1

    def fails(self, problem: Problem) -> None:
        self._cluster.hosts["h1"].failing = problem

    def close(self) -> None: ...


class Lvm:
    """`lvchange` and the device of one host."""

    def __init__(self, client: LvmlockdClient, volume: Volume) -> None:
        self._client = client
        self._volume = volume
        self.active = self.open = False

    def uuid(self, path: str) -> str | NotMapped:
        if not self.active:
            return NotMapped("is not there", missing=True)
        return "LVM-" + (self._volume.id.vg_uuid + self._volume.id.lv_uuid).replace("-", "")

    async def run(self, command: Sequence[str], timeout_s: float) -> Ended:
        if command[0] == "lvmconfig":
            return Ended(5, "  Configuration node local/host_id not found")
        assert (command[0], command[2]) == ("lvchange", f"{self._volume.vg_name}/{self._volume.lv_name}")
        modes = {
            "-aey": lvmlockd.Mode.EXCLUSIVE,
            "-asy": lvmlockd.Mode.SHARED,
            "-an": lvmlockd.Mode.UNLOCKED,
        }
        mode = modes[command[1]]
        if mode is lvmlockd.Mode.UNLOCKED and self.open:
            return Ended(5, "  Logical volume vg/lv1 in use.")
        try:
            self._client.lock_lv(lock_of(self._volume), mode)
        except HeldElsewhere:
            return Ended(5, "  LV locked by other host: vg/lv1\n  Failed to lock logical volume vg/lv1.")
        except LvmlockdError:
            if mode is lvmlockd.Mode.UNLOCKED:  # as the real one does without lvmlockd
                self.active = False
                return Ended(5, "  Reading VG vg without a lock.\n  Failed to unlock logical volume vg/lv1.")
            return Ended(
                5, "  WARNING: lvmlockd process is not running.\n  Cannot access VG vg due to failed lock."
            )
        self.active = mode is not lvmlockd.Mode.UNLOCKED
        return Ended(0, "")


class OverTheSocket:
    def __init__(self, place: Path) -> None:
        self.volume = VOLUME
        modes = Modes(place / "modes")
        self._pool = WorkerPool("test")
        self._clients: list[LvmlockdClient] = []
        paths = [place / "1.socket", place / "2.socket"]
        self._daemons = [FakeLvmlockd(path, modes, number, ["vg"]) for number, path in enumerate(paths, 1)]
        self._lvm = [Lvm(self._client(path), self.volume) for path in paths]
        locks: list[LvLocks] = [
            HostLvLocks(
                client=lambda path=path: self._client(path),  # type: ignore[misc]
                commands=LvmCommands(lvm),
                devices=lvm,
                storage=InlineStorage(),
                leases=SystemLeaseStorage(self._pool),
            )
            for path, lvm in zip(paths, self._lvm, strict=True)
        ]
        self.one, self.two = locks

    def _client(self, path: Path) -> LvmlockdClient:
        client = LvmlockdClient(str(path), timeout_s=5.0)
        self._clients.append(client)
        return client

    def opens(self, *, closes: bool = False) -> None:
        self._lvm[0].open = not closes

    def fails(self, problem: Problem) -> None:
        match problem:
            case Problem.LOCKSPACE_INACTIVE:
                self._daemons[0].vgs.clear()
            case Problem.STORAGE_FAILED:
                self._daemons[0].killed_vgs.add("vg")
            case _:
                self._daemons[0].close()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for daemon in self._daemons:
            daemon.close()
        self._pool.close()


@pytest.fixture(params=["in memory", "over the socket"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place:
        made: Pair = InMemory() if request.param == "in memory" else OverTheSocket(Path(place))
        yield made
        made.close()


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def go() -> None:
        await scene()

    asyncio.run(go())


def problem(answer: object) -> Problem | None:
    return answer.problem if isinstance(answer, Refused) else None


def test_activation_takes_the_lock_and_deactivation_gives_it_up(pair: Pair) -> None:
    async def scene() -> None:
        v = pair.volume
        assert (await pair.one.query(v), pair.one.is_active(v)) == (None, False)
        for mode in (EX, SH):
            assert await pair.one.activate(v, mode) is None
            assert (await pair.one.query(v), pair.one.is_active(v)) == (mode, True)
            assert await pair.one.deactivate(v) is None
        assert (await pair.one.query(v), pair.one.is_active(v)) == (None, False)

    play(scene)


def test_exclusive_beside_nothing_and_shared_beside_shared(pair: Pair) -> None:
    async def scene() -> None:
        v = pair.volume
        assert await pair.one.activate(v, EX) is None
        for mode in (EX, SH):
            assert problem(await pair.two.activate(v, mode)) is Problem.HELD_ELSEWHERE
        assert not pair.two.is_active(v)
        assert await pair.one.lock(v, SH) is None
        assert await pair.two.activate(v, SH) is None
        for locks in (pair.one, pair.two):
            assert problem(await locks.lock(v, EX)) is Problem.HELD_ELSEWHERE
            assert await locks.query(v) is SH
        assert await pair.one.deactivate(v) is None
        assert await pair.two.lock(v, EX) is None
        assert await pair.two.lock(v, EX) is None  # it is so already
        assert await pair.two.query(v) is EX

    play(scene)


def test_device_that_is_open_is_not_deactivated(pair: Pair) -> None:
    async def scene() -> None:
        v = pair.volume
        assert await pair.one.activate(v, EX) is None
        pair.opens()
        assert problem(await pair.one.deactivate(v)) is Problem.IN_USE
        assert (await pair.one.query(v), pair.one.is_active(v)) == (EX, True)
        pair.opens(closes=True)
        assert await pair.one.deactivate(v) is None

    play(scene)


@pytest.mark.parametrize(
    "wrong",
    [Problem.LOCKSPACE_INACTIVE, Problem.STORAGE_FAILED, Problem.NO_ANSWER],
    ids=lambda each: each.name,
)
def test_lvmlockd_that_fails_is_an_answer_and_nothing_is_deactivated(pair: Pair, wrong: Problem) -> None:
    async def scene() -> None:
        v = pair.volume
        assert await pair.one.activate(v, EX) is None
        pair.fails(wrong)
        assert problem(await pair.one.query(v)) is wrong
        assert problem(await pair.one.lock(v, SH)) is wrong
        assert problem(await pair.one.deactivate(v)) is wrong
        assert pair.one.is_active(v)
        assert problem(await pair.two.activate(v, EX)) is Problem.HELD_ELSEWHERE

    play(scene)


def test_lease_is_not_read_while_this_hosts_own_lock_would_look_like_anothers() -> None:
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place:
        pair = OverTheSocket(Path(place))

        async def scene() -> None:
            seen = await pair.one.lease(pair.volume)
            assert isinstance(seen, Refused)
            assert "this host's id in LVM is not known" in seen.detail

        play(scene)
        pair.close()

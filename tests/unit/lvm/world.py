"""Hosts of a shared volume group without libvirt: status files are what a test writes, and time is simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from tests.unit.manager.world import run

from holdfast.backends.lvm.hook_calls import HookCalls
from holdfast.backends.lvm.host_volumes import HostVolumes
from holdfast.backends.lvm.ports import Problem, Refused, Volume
from holdfast.backends.lvm.reconciler import Reconciler
from holdfast.backends.lvm.volumes import Volumes
from holdfast.backends.lvm.write_grants import WriteGrants
from holdfast.backends.lvm.write_rules import Holding, Vm
from holdfast.model import Mode, ProcessId
from holdfast.system.libvirt.domains import Disk, Domain, Survey
from holdfast.system.libvirt.status_words import IN, OUT
from holdfast.testing.fakes import SimulatedClock, settle
from holdfast_sim.volumes.shared_locks import HostLocks, SharedLocks, volume_named
from holdfast_sim.volumes.site import NoDevices

LV1 = volume_named("lv1")
LIBVIRTD = ProcessId(100, 1)
EX, SH = Mode.EXCLUSIVE, Mode.SHARED
V1 = "uuid-v1"


class MemoryRecord:
    def __init__(self) -> None:
        self.raw = b""
        self.full = False

    def read(self) -> bytes:
        return self.raw

    def replace(self, raw: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.raw = raw


class Reports:
    """LVM's, of whichever volume; without a text it refuses."""

    def __init__(self) -> None:
        self.text = ""
        self.asked: list[str] = []

    async def report(self, path: str) -> str | Refused:
        self.asked.append(path)
        return self.text or Refused(Problem.FAILED, "Failed to find logical volume")


class Status:
    """The status files of one host."""

    def __init__(self) -> None:
        self.files: dict[str, Domain] = {}
        self.unread: tuple[str, ...] = ()

    def survey(self) -> Survey:
        return Survey(tuple(self.files.values()), self.unread)

    def says(
        self,
        state: str,
        reason: str = "booted",
        job: str = "",
        phase: str = "",
        *,
        name: str = "v1",
        pid: int = 7,
        shareable: bool = False,
        disk: Volume = LV1,
    ) -> None:
        disks = (Disk(str(disk), shareable),)
        self.files[name] = Domain(name, f"uuid-{name}", disks, frozenset(), pid, state, job, phase, reason)

    def gone(self, name: str = "v1") -> None:
        self.files.pop(name, None)


class Host:
    """One host; `restarted` is its next daemon."""

    def __init__(self, name: str, cluster: SharedLocks, clock: SimulatedClock) -> None:
        self.name, self.cluster, self.clock = name, cluster, clock
        self.status, self.record, self.reports = Status(), MemoryRecord(), Reports()
        self.locks = HostLocks(cluster, name)
        self.failures: list[str] = []
        self.libvirtd_lives = True
        self.other_hook = ""
        self.restarted()

    def restarted(self) -> None:
        volumes = Volumes(NoDevices(), self.reports)
        volumes.remember(LV1)
        self.host = HostVolumes(
            status=self.status,
            volumes=volumes,
            locks=self.locks,
            record=self.record,
            clock=self.clock,
            lives=lambda _: self.libvirtd_lives,
            other_hook=lambda: self.other_hook,
        )
        self.reconciler = Reconciler(self.host, on_lockfailure=self._failed)
        self.hook = HookCalls(self.host, self.reconciler)
        self.grants = WriteGrants(self.host)

    async def _failed(self, holding: Holding, why: str) -> None:
        self.failures.append(f"{holding.name}: {why}")

    @property
    def mode(self) -> Mode | None:
        return self.cluster.holders(LV1).get(self.name)

    @property
    def is_active(self) -> bool:
        return self.locks.is_active(LV1)

    def opens(self, *, closes: bool = False) -> None:
        """QEMU opens or closes the device."""
        self.cluster.hosts[self.name].open[LV1.id] = 0 if closes else 1

    async def passes(self) -> bool:
        return await self.reconciler.settle_all()

    # --- what libvirt does, step by step ---

    async def starts(self, pid: int = 7) -> None:
        assert await self.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == ""
        self.status.says("paused", "starting up", "start", pid=pid)
        self.opens()
        assert await self.acquires(pid) == ""
        self.status.says("running", pid=pid)
        await self.passes()

    async def acquires(self, pid: int = 7, mode: Mode = EX) -> str:
        return await self.asks(Vm(V1, pid), "v1", mode)

    async def asks(self, vm: Vm, name: str, mode: Mode = EX) -> str:
        """The text of the refusal; empty: granted."""
        return str(await self.grants.acquire(vm, name, LV1, mode) or "")

    def releases(self, pid: int = 7) -> object:
        return self.grants.let_go(Vm(V1, pid), LV1)

    async def ends(self) -> None:
        """QEMU has ended, and libvirt calls the hook."""
        self.opens(closes=True)
        self.status.gone()
        await self.hook.release(V1)


class World:
    """Hosts h1 and h2, and h3 if asked for."""

    def __init__(self, count: int = 2) -> None:
        names = [f"h{number}" for number in range(1, count + 1)]
        self.clock = SimulatedClock()
        self.cluster = SharedLocks(names)
        self.hosts = [Host(name, self.cluster, self.clock) for name in names]

    @property
    def modes(self) -> list[Mode | None]:
        return [host.mode for host in self.hosts]

    async def migrates(self) -> tuple[Host, Host]:
        """A VM runs on h1, and its migration to h2 is in its live phase."""
        source, target = self.hosts[:2]
        await source.starts()
        await self.arrives(source, target)
        return source, target

    async def arrives(self, source: Host, target: Host) -> None:
        """Up to the live phase of a migration."""
        source.status.says("running", "booted", OUT, "begin3")
        await source.passes()
        assert target.hook.migrate(V1, LIBVIRTD, {LV1: EX}) == ""
        assert await target.hook.prepare(V1, LIBVIRTD, {LV1: EX}) == ""
        target.status.says("paused", "starting up", IN, "prepare", pid=9)
        target.opens()
        source.status.says("running", "booted", OUT, "perform3")
        await source.passes()
        await target.passes()

    def stops(self, source: Host) -> None:
        """The switch-over: the guest has stopped, and libvirt releases its disk."""
        source.status.says("paused", "migration", OUT, "perform3")
        source.releases()

    async def within(self, answer: Coroutine[Any, Any, str], seconds: float) -> str:
        """The answer of a call that waits for time to pass."""
        task = asyncio.ensure_future(answer)
        await settle()
        await self.clock.advance(seconds)
        assert task.done(), f"no answer within {seconds} s"
        return task.result()


def scene(count: int = 2) -> Callable[[Callable[[World], Awaitable[None]]], Callable[[], None]]:
    """A test with a world of so many hosts, on an event loop of its own."""

    def made(body: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
        def test() -> None:
            async def go() -> None:
                await body(World(count))

            run(go)

        test.__name__, test.__doc__ = body.__name__, body.__doc__
        return test

    return made

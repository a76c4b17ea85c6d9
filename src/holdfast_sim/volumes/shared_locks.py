"""lvmlockd and LVM of a cluster, in memory: one lock per volume, devices per host, and the port `LvLocks` of each.

What the real ones do (libvirt-hooks-lvm.md 3): exclusive beside nothing, shared beside shared; the locks of a host that
has died stay until the others call it dead; a lock that is given up for an active volume leaves it without protection,
which is a violation here; a request may be carried out although its answer never comes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from holdfast.backends.lvm.ports import LeaseSeen, LvId, Problem, Refused, Volume
from holdfast.model import Mode


def volume_named(name: str, vg: str = "vg") -> Volume:
    """A volume of a shared volume group."""
    return Volume(
        id=LvId(f"uuid-{vg}", f"uuid-{name}"),
        vg_name=vg,
        lv_name=name,
        lock_type="sanlock",
        vg_lock_args="1.0.0:lvmlock",
        lv_lock_args="1.0.0:70254592",
    )


async def _at_once(_: str) -> None:
    """No time passes."""


@dataclass(slots=True)
class Host:
    """One host's part. `failing`: what its lvmlockd answers instead; `open`: processes that have a device open."""

    name: str
    devices: set[LvId] = field(default_factory=set)
    open: dict[LvId, int] = field(default_factory=dict)
    failing: Problem | None = None


class SharedLocks:
    """The locks of all volumes. `violated` gets a sentence on what must never happen."""

    def __init__(self, hosts: Iterable[str], violated: Callable[[str], None] | None = None) -> None:
        self.hosts = {name: Host(name) for name in hosts}
        self._held: dict[LvId, dict[str, Mode]] = {}
        self._violated = violated or self._raise

    @staticmethod
    def _raise(what: str) -> None:
        raise AssertionError(what)

    def holders(self, volume: Volume) -> dict[str, Mode]:
        """Mode by host, of those that hold it."""
        return dict(self._held.get(volume.id, {}))

    def take(self, host: str, volume: Volume, mode: Mode | None) -> Refused | None:
        """Have or, with None, give up the lock of a volume."""
        held = self._held.setdefault(volume.id, {})
        if mode is None:
            if volume.id in self.hosts[host].devices:
                self._violated(f"{host} gives up the lock of {volume}, which is active there")
            held.pop(host, None)
            return None
        others = {name: other for name, other in held.items() if name != host}
        if others and Mode.EXCLUSIVE in (mode, *others.values()):
            return Refused(Problem.HELD_ELSEWHERE)
        held[host] = mode
        return None

    def died(self, host: str) -> None:
        """A host has lost its power: its devices are gone, its locks stay."""
        self.hosts[host].devices.clear()
        self.hosts[host].open.clear()

    def called_dead(self, host: str) -> None:
        """The others have waited long enough for that host."""
        for held in self._held.values():
            held.pop(host, None)


class HostLocks:
    """`LvLocks` of one host. `passes` is awaited before and after each request is carried out, with its name."""

    def __init__(
        self, cluster: SharedLocks, host: str, passes: Callable[[str], Awaitable[None]] = _at_once
    ) -> None:
        self._cluster = cluster
        self._host = cluster.hosts[host]
        self._passes = passes
        self.asked: list[str] = []
        """Each request, in order."""

    async def _begins(self, what: str) -> Refused | None:
        self.asked.append(what)
        await self._passes(what)
        return Refused(self._host.failing) if self._host.failing is not None else None

    async def _ends(self, what: str, answer: Refused | None) -> Refused | None:
        await self._passes(what)
        return Refused(Problem.NO_ANSWER) if self._host.failing is Problem.NO_ANSWER else answer

    async def query(self, volume: Volume) -> Mode | Refused | None:
        if refused := await self._begins(f"query {volume.lv_name}"):
            return refused
        held = self._cluster.holders(volume).get(self._host.name)
        return await self._ends("query", None) or held

    async def lock(self, volume: Volume, mode: Mode) -> Refused | None:
        what = f"lock {volume.lv_name} {Mode(mode).word if mode is not None else 'un'}"
        if refused := await self._begins(what):
            return refused
        return await self._ends(what, self._cluster.take(self._host.name, volume, mode))

    async def activate(self, volume: Volume, mode: Mode) -> Refused | None:
        what = f"activate {volume.lv_name} {mode.word}"
        if refused := await self._begins(what):
            return refused
        refused = self._cluster.take(self._host.name, volume, mode)
        if refused is None:
            self._host.devices.add(volume.id)
        return await self._ends(what, refused)

    async def deactivate(self, volume: Volume) -> Refused | None:
        what = f"deactivate {volume.lv_name}"
        if refused := await self._begins(what):
            return refused
        if self._host.open.get(volume.id):
            return await self._ends(what, Refused(Problem.IN_USE))
        self._host.devices.discard(volume.id)
        self._cluster.take(self._host.name, volume, None)
        return await self._ends(what, None)

    async def lease(self, volume: Volume) -> LeaseSeen | Refused:
        what = f"lease {volume.lv_name}"
        self.asked.append(what)
        await self._passes(what)
        held = self._cluster.holders(volume)
        others = tuple(sorted(name for name in held if name != self._host.name))
        return LeaseSeen(max(held.values()) if held else None, others)

    def is_active(self, volume: Volume) -> bool:
        return volume.id in self._host.devices

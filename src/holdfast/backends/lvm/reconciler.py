"""The reconciler of one host: holds each volume in the mode that the roles of its VMs call for (`modes`).

It is level-triggered: each pass reads the status files, lvmlockd and the devices, makes at most one request per volume, and
remembers nothing of the pass. It runs on news of a status file, after a call of the hook, and by a timer while something
was refused. So it may be killed at any moment: the next daemon's first pass goes on from what is there.

    source S                        volume            target T
    status file: migration out ─►   S sh
                                                      hook: migrate, prepare: waits until another host has it shared
                                    S sh, T sh   ◄─   … then activates it shared; QEMU opens it to read
    STOP, RELEASE: yielded          S sh, T sh        ACQUIRE in finish3: granted; the guest runs
    status file gone: deactivates   T sh
                                    T ex         ◄─   owner: asks until it is granted

Whether a VM may write is decided here as well (`write_rules`), on what this host holds at that moment. Design and crash
table: libvirt-hooks-lvm.md 2.3 to 2.5, ADR 0209.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress

from holdfast.backends.lvm.claims import add_missing_grants
from holdfast.backends.lvm.host_volumes import TRY_S_MAX, TRY_S_MIN, HostVolumes, disks_of
from holdfast.backends.lvm.modes import UNUSED, Step, step
from holdfast.backends.lvm.ports import LvId, Problem, Refused, Volume
from holdfast.backends.lvm.roles import role, runs
from holdfast.backends.lvm.write_rules import Holding, Vm, by_status
from holdfast.model import Instant, Mode
from holdfast.system import eager_tasks
from holdfast.system.libvirt.domains import Domain

log = logging.getLogger(__name__)

IDLE_S = 5.0
"""Between two passes without news: inotify may lose some."""
ASK_AGAIN_S = 60.0
"""Between two questions to LVM about a disk that is no volume of a shared group: it may become one."""
PATHS_MAX = 10_000
UNFINISHED_S = 60.0
"""A hand-over that takes longer is shown to the operator."""

OnLockFailure = Callable[[Holding, str], Awaitable[None]]


class Reconciler:
    """`on_lockfailure` gets a VM that runs here while another host has its volume."""

    def __init__(self, host: HostVolumes, *, on_lockfailure: OnLockFailure) -> None:
        self._host = host
        self._on_lockfailure = on_lockfailure
        self._refused: dict[LvId, tuple[float, str]] = {}
        """Since when a volume could not be brought into its mode, and why."""
        self._asked: dict[str, float] = {}
        """By path of a disk that is no volume, or not known as one: when LVM may be asked again."""
        self._failed: set[tuple[LvId, Vm]] = set()
        """What `on_lockfailure` has been called for."""

    def problems(self) -> list[str]:
        """What does not come right by itself within its time, in sentences."""
        host, now = self._host, self._host.clock.now()
        return [
            *(
                f"{host.kept.volumes[lv]}: not yet as its VMs need it, for {now - since:.0f} s: {why}"
                for lv, (since, why) in self._refused.items()
                if now - since > UNFINISHED_S and lv in host.kept.volumes
            ),
            *(
                f"libvirt's status file of {name} has the {words}, which this version does not know: its volumes are held "
                "as for a VM that does not migrate, and its migrations are refused"
                for name, words in host.not_understood.items()
            ),
            *(f"{path} can't be read: no volume is deactivated meanwhile" for path in host.unread),
            *(
                [f"the record of volumes is not understood: {host.record_damaged}"]
                if host.record_damaged
                else []
            ),
        ]

    def changed(self, _: str = "") -> None:
        """A status file may have changed."""
        self._host.news.set()

    async def run(self) -> None:
        """Passes until the task is cancelled."""
        pause_s, idle_until = TRY_S_MIN, self._host.clock.now()
        while True:
            if self._host.news.is_set() or self._host.clock.now() >= idle_until:
                self._host.news.clear()
                pause_s, idle_until = TRY_S_MIN, Instant(self._host.clock.now() + IDLE_S)
                await self.settle_all()
            else:
                pause_s = min(2 * pause_s, TRY_S_MAX)
                await self._settle_each(
                    [self._host.kept.volumes[lv] for lv in self._refused if lv in self._host.kept.volumes]
                )
            await self._news_within(pause_s if self._refused else IDLE_S)

    async def _news_within(self, seconds: float) -> None:
        """Returns on news, or after that time."""
        news = asyncio.ensure_future(self._host.news.wait())
        timer = asyncio.ensure_future(self._host.clock.sleep(seconds))
        try:
            await asyncio.wait((news, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (news, timer):
                each.cancel()
                with suppress(asyncio.CancelledError):
                    await each

    async def settle_all(self) -> bool:
        """One pass over all volumes of VMs here, and all that were activated for one; whether each is as it should be."""
        survey = self._host.look()
        add_missing_grants(self._host, survey)
        for path in {path for domain in survey.domains for path in disks_of(domain)}:
            if not self._host.is_ours(path):
                continue
            volume = self._host.volumes.at(path)
            if volume is None:
                self._find(path)
            elif volume.id not in self._host.kept.volumes:
                self._host.kept.volumes[volume.id] = volume
                self._host.saved()
        return await self._settle_each(list(self._host.kept.volumes.values())) and not survey.unread

    def _find(self, path: str) -> None:
        """Have LVM asked which volume that is, beside the passes: it may take long, and most disks are none."""
        now = self._host.clock.now()
        if now < self._asked.get(path, now):
            return
        self._asked[path] = now + ASK_AGAIN_S
        if len(self._asked) > PATHS_MAX:
            self._asked.clear()

        async def find() -> None:
            found = await self._host.volumes.find(path)
            if isinstance(found, Volume):
                self._host.news.set()

        eager_tasks.start(find())

    async def _settle_each(self, volumes: Collection[Volume]) -> bool:
        # All at once: a volume group whose storage hangs must not keep the others waiting.
        return all(await asyncio.gather(*map(self.settle, volumes)))

    async def settle(self, volume: Volume) -> bool:
        """One step for one volume; whether it is as it should be, as far as this host can have it."""
        async with self._host.alone(volume):
            return await self._settle_alone(volume)

    async def _settle_alone(self, volume: Volume) -> bool:
        held = await self._host.locks.query(volume)
        # Only now: while lvmlockd was asked, libvirt went on.
        want, uses = self._host.want(volume)
        active = self._host.locks.is_active(volume)
        if not active and not volume.has_own_lock:
            held = None if not isinstance(held, Refused) else held
        todo = step(want, held, active=active)
        refused: Refused | None = None
        match todo:
            case Step.NONE:
                if want in UNUSED:
                    self._host.forget(volume)
            case Step.WAIT:
                refused = held if isinstance(held, Refused) else None
            case Step.LOCK_EXCLUSIVE:
                refused = await self._host.locks.lock(volume, Mode.EXCLUSIVE)
            case Step.LOCK_SHARED:
                refused = await self._host.locks.lock(volume, Mode.SHARED)
            case Step.ACTIVATE_EXCLUSIVE:
                refused = await self._host.activate(volume, Mode.EXCLUSIVE)
            case Step.ACTIVATE_SHARED:
                refused = await self._host.activate(volume, Mode.SHARED)
            case Step.DEACTIVATE:
                refused = await self._host.deactivate(volume)
                if refused is None:
                    self._host.forget(volume)
        await self._settle_grants(volume, None if isinstance(held, Refused) else (held, refused), uses)
        if refused is None:
            self._refused.pop(volume.id, None)
            return True
        since, _ = self._refused.get(volume.id, (self._host.clock.now(), ""))
        self._refused[volume.id] = (since, f"{todo.value}: {refused}")
        return False

    async def _settle_grants(
        self,
        volume: Volume,
        seen: tuple[Mode | None, Refused | None] | None,
        uses: Mapping[Vm, tuple[Domain, Mode]],
    ) -> None:
        """Grants by what the status files say. `seen`: the lock before this pass, and what refused more of it; None: nobody
        knows.
        """
        for holding in list(self._host.kept.holdings.get(volume.id, ())):
            if holding.vm.is_program:
                await self._settle_loss(volume, holding, seen)
                continue
            if holding.vm not in uses:
                continue  # `_want` has dropped it, or its file can't be read
            domain, _ = uses[holding.vm]
            grant = by_status(holding.grant, role(domain), runs=runs(domain))
            if grant is None:
                self._host.drop(volume.id, holding.vm)
                self._host.saved()
                continue
            if grant is not holding.grant:
                log.warning(
                    "VM %s runs on here: its migration failed, and %s was never given up",
                    holding.name,
                    volume,
                )
                self._host.hold(volume, dataclasses.replace(holding, grant=grant))
                self._host.saved()
            if runs(domain):
                await self._settle_loss(volume, holding, seen)

    async def _settle_loss(
        self, volume: Volume, holding: Holding, seen: tuple[Mode | None, Refused | None] | None
    ) -> None:
        """Report a writer whose volume another host has, once."""
        held, refused = seen if seen is not None else (None, None)
        is_lost = held is None and refused is not None and refused.problem is Problem.HELD_ELSEWHERE
        if is_lost and (volume.id, holding.vm) not in self._failed:
            self._failed.add((volume.id, holding.vm))
            why = f"this host has no lock on {volume} any more, and can't take it back: {refused}"
            log.critical("LOCK LOST: %s runs here, and %s", holding.name or f"pid {holding.vm.pid}", why)
            await self._on_lockfailure(holding, why)

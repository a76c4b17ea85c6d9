"""libvirt's hook over volumes: active before libvirt looks for the device, deactivated when nothing of the VM runs.

    migrate    the VM arrives: remembered, refused if a volume of it can't be active on two hosts
    prepare    arrives: waits until another host shares the volume (the VM's source, which saw its own libvirt begin), then
               activates it shared. Starts: activates it exclusively (shared, where all hosts have it active), or is
               refused at once, with the holder's name
    release    what no other VM here uses is deactivated

libvirt checks for the device after `prepare`, and before any other call (libvirt-hooks-lvm.md 0.6, 2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from holdfast.backends.lvm.host_volumes import TRY_S_MIN, HostVolumes, held_here
from holdfast.backends.lvm.kept import Announced
from holdfast.backends.lvm.modes import UNUSED
from holdfast.backends.lvm.ports import Refused, Volume
from holdfast.backends.lvm.reconciler import Reconciler
from holdfast.model import Mode, ProcessId

HANDOVER_WAIT_S = 20.0
"""How long `prepare` of an arriving VM waits for its source to share, by default and at most. The hook ends after 30 s, and
so do libvirt's clients: a refusal has to come before that, and an activation after the wait takes up to 7.5 s.
"""


class HookCalls:
    """What the hook asks for, by UUID of the VM and by the libvirtd that calls it."""

    def __init__(
        self, host: HostVolumes, reconciler: Reconciler, *, handover_wait_s: float = HANDOVER_WAIT_S
    ) -> None:
        self._host = host
        self._reconciler = reconciler
        self._handover_wait_s = handover_wait_s

    def migrate(self, uuid: str, libvirtd: ProcessId, volumes: Mapping[Volume, Mode]) -> str:
        """A VM is about to arrive; empty, or why it can't."""
        if volumes and (not_alone := self.why_not_alone()):
            return not_alone
        for volume, mode in volumes.items():
            if volume.why_not_shared and mode is Mode.EXCLUSIVE:
                return not_live(volume)
        now = self._host.clock.now()
        self._host.kept.announced[uuid] = Announced(arrives=True, libvirtd=libvirtd, answered_at=now)
        return self._host.saved()

    async def prepare(self, uuid: str, libvirtd: ProcessId, volumes: Mapping[Volume, Mode]) -> str:
        """Have the volumes of a VM active before libvirt looks for them; empty, or why the VM must not be started. Whatever
        it answers, libvirt calls `release` if the VM comes to nothing.
        """
        if volumes and (not_alone := self.why_not_alone()):
            return not_alone
        before = self._host.kept.announced.get(uuid)
        arrives = before is not None and before.arrives
        announced = Announced(arrives, libvirtd, [volume.id for volume in volumes])
        self._host.kept.announced[uuid] = announced
        for volume in volumes:
            self._host.kept.volumes[volume.id] = volume
        if failed := self._host.saved():
            return failed
        why = await self._prepared(uuid, announced, volumes)
        announced.answered_at = self._host.clock.now()
        return self._host.saved() or why

    def why_not_alone(self) -> str:
        """Why no VM with volumes may come: another hook would deactivate them under its disks. Empty without one."""
        file = self._host.other_hook()
        return file and (
            f"{file} is a hook that activates and deactivates volumes as well, so neither knows what the other has done: "
            "remove it on each host while no VM with a volume runs there, and restart libvirt (holdfast doctor --only "
            "HF136; docs/shared-lvm.md)"
        )

    async def _prepared(self, uuid: str, announced: Announced, volumes: Mapping[Volume, Mode]) -> str:
        until = self._host.clock.now() + self._handover_wait_s

        def is_over() -> str:
            """Why nothing is activated any more; empty while the VM is announced."""
            self._host.look()
            return "" if self._host.kept.announced.get(uuid) is announced else "libvirt has given it up"

        for volume, mode in volumes.items():
            if announced.arrives and mode is Mode.EXCLUSIVE:
                why = await self._arrives(volume, until, is_over)
            else:
                why = await self._starts(uuid, volume, mode, is_over)
            if why:
                return why
        return ""

    async def _arrives(self, volume: Volume, until: float, is_over: Callable[[], str]) -> str:
        """Activate a volume shared as soon as another host shares it; that host's guest still runs."""
        if volume.why_not_shared:
            return not_live(volume)
        while True:
            lease = await self._host.locks.lease(volume)
            why = ""
            if isinstance(lease, Refused):
                why = f"its lease can't be read: {lease}"
            elif lease.mode is Mode.SHARED and lease.others:
                async with self._host.alone(volume):
                    if over := is_over():
                        return over
                    refused = await self._host.activate(volume, Mode.SHARED)
                if refused is None:
                    return ""
                why = str(refused)
            elif lease.others:
                why = f"{lease.whose}, which does not hand over: is holdfastd running there?"
            else:
                why = "no other host holds it, so the VM's source has no lock on it: is holdfastd running there?"
            if self._host.clock.now() >= until:
                return f"{volume} is not shared for the migration within {self._handover_wait_s:g} s: {why}"
            await self._host.clock.sleep(TRY_S_MIN)

    async def _starts(self, uuid: str, volume: Volume, mode: Mode, is_over: Callable[[], str]) -> str:
        """Activate a volume for a VM that runs nowhere else, at once or not at all."""
        if volume.why_not_shared:
            mode = Mode.EXCLUSIVE
        lock_mode = self._host.lock_mode(volume, mode)
        async with self._host.alone(volume):
            for holding in self._host.holdings_on(volume):
                if holding.vm.uuid != uuid and Mode.EXCLUSIVE in (mode, holding.mode):
                    return held_here(volume, holding)
            if lock_mode is Mode.SHARED:
                lease = await self._host.locks.lease(volume)
                if not isinstance(lease, Refused) and lease.mode is Mode.EXCLUSIVE and lease.others:
                    # sanlock would try 8 times, for some 5 s.
                    return f"{volume} is {lease.whose}"
            held = await self._host.locks.query(volume)
            if over := is_over():
                return over
            if self._host.locks.is_active(volume):
                if held is Mode.EXCLUSIVE or (held is lock_mode):
                    return ""
                refused = await self._host.locks.lock(volume, lock_mode)
            else:
                refused = await self._host.activate(volume, lock_mode)
            return "" if refused is None else (await self._host.refusal(volume, refused))[0]

    async def release(self, uuid: str, libvirtd: ProcessId | None = None) -> None:
        """Nothing of that VM runs here: give up what nobody else here uses. Never fails; what is refused is tried again.

        `libvirtd`: the one that says so; what another one has announced that lives is not its business.
        """
        before = self._host.kept.announced.get(uuid)
        if before is None or libvirtd in (None, before.libvirtd) or not self._host.lives(before.libvirtd):
            self._host.kept.announced.pop(uuid, None)
        self._host.saved()
        for volume in list(self._host.kept.volumes.values()):
            if self._host.want(volume)[0] in UNUSED:
                await self._reconciler.settle(volume)
        self._host.news.set()


def not_live(volume: Volume) -> str:
    """The refusal of a migration of a volume that only one host can have active."""
    return f"{volume} can't be migrated live: {volume.why_not_shared}; shut the VM down and start it there"

"""What operators order of volumes: list, activate, deactivate, and what becomes of VMs whose volume group is lost.

An order never weakens what a VM has. A volume is deactivated only when it is proven that no VM of this host uses it, and by
LVM, which refuses while a process has the device open. A volume that an operator has activated is *pinned*: it stays until
a VM uses it, from when on it follows that VM, or until it is deactivated by order (ADR 0221).
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.backends.lvm.host_volumes import HostVolumes, held_here
from holdfast.backends.lvm.ports import Problem, Volume
from holdfast.backends.lvm.ports import Refused as NotDone
from holdfast.backends.lvm.reconciler import OnLockFailure
from holdfast.backends.lvm.roles import role
from holdfast.backends.lvm.volumes import NoVolume
from holdfast.backends.lvm.write_rules import Grant, Holding
from holdfast.errors import Refused
from holdfast.model import Mode
from holdfast.system.libvirt.domains import Domain

OPERATOR = ""
"""For whom a volume is pinned that was activated for no VM."""
LOST = "the storage of its volume group's leases is lost"


@dataclass(frozen=True, slots=True)
class VolumeUse:
    """One VM, or program, with a volume on this host."""

    name: str
    pid: int
    role: str
    writes: bool
    """Whether it may write now, by the grants."""


@dataclass(frozen=True, slots=True)
class VolumeSeen:
    """One volume on this host."""

    volume: Volume
    held: str
    """`exclusive`, `shared`, empty, or why lvmlockd does not say."""
    known: bool
    """Whether `held` is lvmlockd's answer."""
    active: bool
    pinned: str | None
    """For which VM (a UUID), or `OPERATOR`; None: for nobody."""
    uses: tuple[VolumeUse, ...]


class VolumeOrders:
    """Of one host. Refusals are raised, as `Refused` with one sentence."""

    def __init__(self, host: HostVolumes) -> None:
        self._host = host

    async def seen(self) -> list[VolumeSeen]:
        """Every volume that this daemon has to do with."""
        return [await self._seen(volume) for volume in list(self._host.kept.volumes.values())]

    async def _seen(self, volume: Volume) -> VolumeSeen:
        answer = await self._host.locks.query(volume)
        _, uses = self._host.want(volume)
        writers = {
            holding.vm
            for holding in self._host.kept.holdings.get(volume.id, ())
            if holding.grant is Grant.HELD
        }
        users = [
            VolumeUse(domain.name, vm.pid, role(domain).value, vm in writers)
            for vm, (domain, _) in uses.items()
        ]
        users += [
            VolumeUse(each.name, each.vm.pid, "program", each.vm in writers)
            for each in self._host.kept.holdings.get(volume.id, ())
            if each.vm.is_program
        ]
        known = not isinstance(answer, NotDone)
        held = str(answer) if isinstance(answer, NotDone) else answer.word if answer is not None else ""
        return VolumeSeen(
            volume=volume,
            held=held,
            known=known,
            active=self._host.locks.is_active(volume),
            pinned=self._host.kept.pinned.get(volume.id),
            uses=tuple(users),
        )

    async def activate(self, path: str, vm: str) -> bool:
        """Have a volume active, exclusively unless all hosts have it active, for a VM that runs here (by name or UUID), or
        for nobody yet (empty). Returns False if it was so already.
        """
        volume = await self._find(path)
        mode = self._host.lock_mode(volume, Mode.EXCLUSIVE)
        pin = OPERATOR if not vm else self._running(vm).uuid
        async with self._host.alone(volume):
            _, uses = self._host.want(volume)
            others = [domain for domain, _ in uses.values() if domain.uuid != pin]
            if others:
                raise Refused(reason=f"{volume} is a disk of VM {others[0].name} on this host")
            for holding in self._host.holdings_on(volume):
                if holding.vm.is_program or holding.vm.uuid != pin:
                    raise Refused(reason=held_here(volume, holding))
            if uses:
                return False
            was_active = self._host.locks.is_active(volume)
            held = await self._host.locks.query(volume)
            if isinstance(held, NotDone):
                raise Refused(reason=f"{volume}: {held}")
            before = self._host.kept.pinned.get(volume.id)
            # First, or a pass of the reconciler would deactivate it at once.
            self._host.kept.volumes.setdefault(volume.id, volume)
            self._host.kept.pinned[volume.id] = pin
            if failed := self._host.saved():
                self._put_back(volume, before)
                raise Refused(reason=failed)
            refused = None
            if not was_active:
                refused = await self._host.activate(volume, mode)
            elif held is not mode:
                refused = await self._host.locks.lock(volume, mode)
            if refused is not None:
                self._put_back(volume, before)
                self._host.news.set()
                raise Refused(reason=(await self._host.refusal(volume, refused))[0])
            return not (was_active and held is mode)

    async def deactivate(self, path: str) -> None:
        """Have a volume inactive here, and its lock given up."""
        volume = await self._find(path)
        async with self._host.alone(volume):
            _, uses = self._host.want(volume)
            if self._host.unread or self._host.record_damaged:
                doubt = ", ".join(self._host.unread) or "the record of volumes"
                raise Refused(
                    reason=f"{volume}: whether a VM uses it is not known, as {doubt} can't be read; nothing is deactivated"
                )
            for domain, _ in uses.values():
                raise Refused(reason=f"{volume} is a disk of VM {domain.name} on this host")
            for holding in self._holders(volume):
                raise Refused(reason=held_here(volume, holding))
            if any(volume.id in each.volumes for each in self._host.kept.announced.values()):
                raise Refused(reason=f"{volume} is a disk of a VM that is being started on this host")
            before = self._host.kept.pinned.pop(volume.id, None)
            refused = await self._host.deactivate(volume)
            if refused is None and self._host.locks.is_active(volume):
                refused = NotDone(Problem.IN_USE, "a VM has come to use it meanwhile")
            if refused is not None:
                self._put_back(volume, before)
                raise Refused(reason=f"{volume}: {refused}")
            self._host.forget(volume)
            self._host.saved()

    async def group_lost(self, vg_name: str, on_lockfailure: OnLockFailure) -> list[str]:
        """lvmlockd can't keep the locks of a group: apply each VM's `on_lockfailure`; what was done, in sentences."""
        done: list[str] = []
        for volume in [each for each in self._host.kept.volumes.values() if each.vg_name == vg_name]:
            _, uses = self._host.want(volume)
            holders = {holding.vm: holding for holding in self._holders(volume)}
            for vm, (domain, mode) in uses.items():
                if vm.pid:
                    holders.setdefault(vm, Holding(vm, domain.name, mode, Grant.HELD))
            for holding in holders.values():
                await on_lockfailure(holding, LOST)
                done.append(f"{volume}: {holding.name or 'program'} (pid {holding.vm.pid}): {LOST}")
        return done

    def _holders(self, volume: Volume) -> list[Holding]:
        """By the grants and by the manager's claims."""
        found = list(self._host.holdings_on(volume))
        for path, holding in self._host.claims():
            at = self._host.volumes.at(path)
            if at is not None and at.id == volume.id and all(each.vm != holding.vm for each in found):
                found.append(holding)
        return found

    async def _find(self, path: str) -> Volume:
        if not self._host.is_ours(path):
            raise Refused(reason=f"no rule of the configuration gives {path} to driver lvm")
        found = await self._host.volumes.find(path)
        if isinstance(found, NoVolume):
            raise Refused(reason=str(found))
        if isinstance(found, NotDone):
            raise Refused(reason=f"{path}: {found}")
        return found

    def _running(self, vm: str) -> Domain:
        for domain in self._host.look().domains:
            if vm in (domain.name, domain.uuid):
                return domain
        raise Refused(reason=f"no VM {vm} runs on this host, by libvirt's status files")

    def _put_back(self, volume: Volume, before: str | None) -> None:
        if before is None:
            self._host.kept.pinned.pop(volume.id, None)
        else:
            self._host.kept.pinned[volume.id] = before
        self._host.saved()

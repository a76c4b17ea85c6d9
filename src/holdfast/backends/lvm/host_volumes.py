"""What this host knows of its volumes: who uses each, what is remembered of them, and one request at a time for each.

Status files are read when they are needed, never remembered. `kept` is what can't be read again; it is written before
the deed that it allows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from holdfast.backends.lvm.kept import Announced, Kept, NotUnderstood, Record, decode
from holdfast.backends.lvm.modes import UNUSED, Use, Want, wanted
from holdfast.backends.lvm.ports import LeaseSeen, LvId, LvLocks, Problem, Refused, Volume
from holdfast.backends.lvm.roles import Role, role, runs, unknown_words
from holdfast.backends.lvm.volumes import Volumes
from holdfast.backends.lvm.write_rules import Holding, Vm
from holdfast.model import Mode, ProcessId
from holdfast.system.clock import Clock
from holdfast.system.libvirt.domains import Domain, Survey, SurveyedStatus

log = logging.getLogger(__name__)

TRY_S_MIN, TRY_S_MAX = 0.2, 2.0
"""Between two tries of what was refused; each one costs the others who use this storage a few requests."""


ANNOUNCED_S = 120.0
"""So long after `prepare` an announced VM has a status file, unless nothing came of it and `release` found no daemon. If it
is later, its start fails for want of the device, and is free to be tried again.
"""


class HostVolumes:
    """`lives`: whether a libvirtd that has announced a VM still runs. `news` is set when a pass over all is due."""

    def __init__(
        self,
        *,
        status: SurveyedStatus,
        volumes: Volumes,
        locks: LvLocks,
        record: Record,
        clock: Clock,
        lives: Callable[[ProcessId], bool],
        other_hook: Callable[[], str] = lambda: "",
    ) -> None:
        self.other_hook = other_hook
        """The file of another hook that activates and deactivates what VMs use; empty if there is none."""
        self.volumes = volumes
        self.locks = locks
        self.clock = clock
        self.news = asyncio.Event()
        self.unread: tuple[str, ...] = ()
        """Status files that could not be read at the last look."""
        self.not_understood: dict[str, str] = {}
        """By VM: words of its status file that are not known; it counts as the owner of its disks."""
        self.kept = Kept()
        self.record_damaged = ""
        self.is_ours: Callable[[str], bool] = lambda _: True
        """Whether the disk at a path is one for this driver, by the rules of the configuration."""
        self.claims: Callable[[], Iterable[tuple[str, Holding]]] = lambda: ()
        """By path: who writes by the manager's claims, without those that depart (`claims`)."""
        self.shares_all = False
        """`activation = "shared"`: all hosts have their volumes active, and the guard says who may write."""
        self.guard: Callable[[Vm, Volume], Mode | None] | None = None
        """The mode in which a VM has its guard lease of a volume now, if it has it; None: no guard is configured."""
        self._status = status
        self._record = record
        self.lives = lives
        self._one_at_a_time: dict[LvId, asyncio.Lock] = {}
        self._commands: dict[str, asyncio.Lock] = {}
        """By volume group: LVM's commands wait for each other anyway, by its lock on the group."""
        try:
            self.kept = decode(record.read())
        except (NotUnderstood, OSError) as e:
            self.record_damaged = str(e)
            log.error("the record of volumes is not understood, so none of them is deactivated: %s", e)
        # The hook failed with the daemon that it had asked, so libvirt has given up.
        self.kept.announced = {
            uuid: each for uuid, each in self.kept.announced.items() if each.answered_at is not None
        }
        for volume in self.kept.volumes.values():
            volumes.remember(volume)

    # --- the guard, and volumes that all hosts have active ---

    def shares(self, volume: Volume) -> bool:
        """Whether all hosts may have it active at any time."""
        return self.shares_all and not volume.why_not_shared

    def lock_mode(self, volume: Volume, mode: Mode) -> Mode:
        """The mode in which this host has to hold it for a VM that uses it so."""
        return Mode.SHARED if self.shares(volume) else mode

    def misses_guard(self, vm: Vm, volume: Volume, mode: Mode) -> bool:
        """Whether a VM that uses a volume so should have a guard lease, and has none or a weaker one."""
        if self.guard is None:
            return False
        lease = self.guard(vm, volume)
        return lease is None or lease < mode

    def _is_unguarded(self, volume: Volume, uses: Mapping[Vm, tuple[Domain, Mode]]) -> bool:
        """Whether a guest runs with it here, or may without any call of libvirt's, and misses its guard lease. One that only
        reads it has none: libvirt asks for no lock.
        """
        granted = self.kept.holdings.get(volume.id, ())
        running = [
            (vm, mode)
            for vm, (domain, mode) in uses.items()
            if runs(domain) and role(domain) is not Role.LEFT
            if any(is_of(domain, each.vm) for each in granted) or self._may_write(domain, volume)
        ]
        running += [(each.vm, each.mode) for each in granted if each.vm.is_program]
        return any(self.misses_guard(vm, volume, mode) for vm, mode in running)

    def _may_write(self, domain: Domain, volume: Volume) -> bool:
        found = (self.volumes.at(disk.path) for disk in domain.disks)
        return any(each is not None and each.id == volume.id for each in found)

    # --- who uses what, by libvirt ---

    def want(self, volume: Volume) -> tuple[Want, Mapping[Vm, tuple[Domain, Mode]]]:
        """What this host should hold of a volume by what libvirt's files say now, and who uses it."""
        survey = self.look()
        uses: dict[Vm, tuple[Domain, Mode]] = {}
        for domain in survey.domains:
            modes = [
                mode
                for path, mode in disks_of(domain).items()
                if (found := self.volumes.at(path)) is not None and found.id == volume.id
            ]
            vm = Vm(domain.uuid, domain.pid or 0)
            # A disk that is being attached, or an image that a block job uses, is not in the file.
            modes += [each.mode for each in self.kept.holdings.get(volume.id, ()) if is_of(domain, each.vm)]
            if modes:
                uses[vm] = (domain, max(modes))
        if not survey.unread:
            for holding in list(self.kept.holdings.get(volume.id, ())):
                if not holding.vm.is_program and not any(
                    is_of(domain, holding.vm) for domain in survey.domains
                ):
                    self.drop(volume.id, holding.vm)  # its process has ended
                    self.saved()
        announced = any(volume.id in each.volumes for each in self.kept.announced.values())
        roles = [Use(role(domain), mode) for domain, mode in uses.values()]
        roles += [
            Use(Role.OWNER, each.mode) for each in self.kept.holdings.get(volume.id, ()) if each.vm.is_program
        ]
        doubt = bool(survey.unread) or bool(self.record_damaged)
        pinned = self._is_pinned(volume, bool(roles), survey)
        return (
            wanted(
                roles,
                announced=announced or pinned,
                doubt=doubt,
                one_host=bool(volume.why_not_shared),
                shares=self.shares(volume),
                unguarded=self._is_unguarded(volume, uses),
            ),
            uses,
        )

    def _is_pinned(self, volume: Volume, is_used: bool, survey: Survey) -> bool:
        """Whether an operator's order keeps it active. The order ends when somebody uses the volume, which decides from then
        on, or when the VM has ended for which it was given.
        """
        pin = self.kept.pinned.get(volume.id)
        if pin is None:
            return False
        has_ended = pin and not survey.unread and pin not in {domain.uuid for domain in survey.domains}
        if is_used or has_ended:
            del self.kept.pinned[volume.id]
            self.saved()
            return False
        return True

    def runs_here(self, volume: Volume, vm: Vm, mode: Mode) -> Domain | None:
        """Another VM of this host whose guest runs with the volume, by its status file, and that excludes this one: its
        grant is gone if the record was lost.
        """
        for other, (domain, used) in self.want(volume)[1].items():
            if is_of(domain, vm) or Mode.EXCLUSIVE not in (mode, used) or not other.pid:
                continue
            if runs(domain) and role(domain) is not Role.LEFT:
                return domain
        return None

    def look(self) -> Survey:
        """The status files; announced VMs that have one now, or whose libvirtd has ended, are announced no more."""
        survey = self._status.survey()
        self.unread = survey.unread
        there = {domain.uuid for domain in survey.domains}
        over = [
            uuid
            for uuid, each in self.kept.announced.items()
            if (uuid in there and each.volumes)
            or (not survey.unread and (not self.lives(each.libvirtd) or self._is_overdue(each)))
        ]
        for uuid in over:
            del self.kept.announced[uuid]
        if over:
            self.saved()
        self.not_understood = {
            domain.name: words for domain in survey.domains if (words := unknown_words(domain))
        }
        return survey

    def _is_overdue(self, announced: Announced) -> bool:
        at = announced.answered_at
        return at is not None and self.clock.now() - at > ANNOUNCED_S

    def domain_of(self, vm: Vm) -> Domain | None:
        return next((each for each in self._status.survey().domains if is_of(each, vm)), None)

    def role_of(self, vm: Vm) -> Role:
        domain = self.domain_of(vm)
        return role(domain) if domain is not None else Role.OWNER

    def holdings_on(self, volume: Volume) -> tuple[Holding, ...]:
        """The grants of VMs that live."""
        self.want(volume)
        return tuple(self.kept.holdings.get(volume.id, ()))

    # --- one request at a time ---

    def alone(self, volume: Volume) -> asyncio.Lock:
        return self._one_at_a_time.setdefault(volume.id, asyncio.Lock())

    async def activate(self, volume: Volume, mode: Mode) -> Refused | None:
        async with self._commands.setdefault(volume.vg_name, asyncio.Lock()):
            # What is not remembered would never be deactivated.
            if self.kept.volumes.setdefault(volume.id, volume) is volume and (failed := self.saved()):
                return Refused(Problem.FAILED, failed)
            return await self.locks.activate(volume, mode)

    async def deactivate(self, volume: Volume) -> Refused | None:
        async with self._commands.setdefault(volume.vg_name, asyncio.Lock()):
            if self.want(volume)[0] not in UNUSED:  # a VM was announced while another command ran
                return None
            return await self.locks.deactivate(volume)

    async def refusal(self, volume: Volume, refused: Refused) -> tuple[str, LeaseSeen | None]:
        """A refusal in one sentence, and the volume's lease if that shows other hosts."""
        if refused.problem is Problem.HELD_ELSEWHERE:
            lease = await self.locks.lease(volume)
            if not isinstance(lease, Refused) and lease.others:
                return f"{volume} is {lease.whose}", lease
        return f"{volume}: {refused}", None

    # --- what is remembered ---

    def hold(self, volume: Volume, holding: Holding) -> None:
        others = [each for each in self.kept.holdings.get(volume.id, ()) if each.vm != holding.vm]
        self.kept.holdings[volume.id] = [*others, holding]
        self.kept.volumes.setdefault(volume.id, volume)

    def drop(self, lv: LvId, vm: Vm) -> None:
        left = [each for each in self.kept.holdings.get(lv, ()) if each.vm != vm]
        if left:
            self.kept.holdings[lv] = left
        else:
            self.kept.holdings.pop(lv, None)

    def forget(self, volume: Volume) -> None:
        """It is not active here, or stays so with nobody, and nobody has announced that it will be used."""
        if volume.id in self.kept.volumes and self.want(volume)[0] in UNUSED:
            del self.kept.volumes[volume.id]
            self.saved()

    def saved(self) -> str:
        """Write the record; empty, or why it can't be written."""
        try:
            self._record.replace(self.kept.encode())
        except OSError as e:
            log.error("the record of volumes can't be written: %s", e)
            return f"the record of volumes can't be written: {e.strerror or e}"
        return ""


def held_here(volume: Volume, holding: Holding) -> str:
    """A refusal that names a VM of this host."""
    return f"{volume} is held by VM {holding.name} (pid {holding.vm.pid}) on this host"


def is_of(domain: Domain, vm: Vm) -> bool:
    """Whether a status file is of that process; it may have been written before there was one."""
    return domain.uuid == vm.uuid and domain.pid in (None, 0, vm.pid)


def disks_of(domain: Domain) -> dict[str, Mode]:
    """The disks of a VM that may be volumes, with the mode in which it uses each."""
    found = dict.fromkeys(domain.readonly, Mode.SHARED)
    for disk in domain.disks:
        found[disk.path] = Mode.SHARED if disk.shareable else Mode.EXCLUSIVE
    return {path: mode for path, mode in found.items() if path.startswith("/dev/")}

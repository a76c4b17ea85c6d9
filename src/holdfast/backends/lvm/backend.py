"""The `lvm` driver: a disk is a logical volume of a shared volume group, and its lock is the one that lvmlockd has of it.

    libvirt's hook    `arrives`, `prepare`, `ended`    active before libvirt looks for the device       hook_calls
    ACQUIRE, RELEASE  a held lock: `KnowsWriters`       which VM may write, asked for at each ACQUIRE    write_grants
    status files      `begin`: a task of its own        this host's mode follows the roles of its VMs    reconciler

With a guard each lock here has a second one beside it, a lease of what the disk is in the guard's lockspace. The manager
takes that first and gives it back last (`manager/identity_locks`, ADR 0232); no grant is given without it.

To release a lock here is to forget its writer: the volume stays this host's until nothing of the VM runs. So a restart has
nothing to take again, and a lock of the journal is adopted as soon as its volume is known.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from holdfast.backends.base import (
    Capabilities,
    Creation,
    HeldElsewhere,
    OwnerNote,
    SavedLock,
)
from holdfast.backends.lease_backend import LeaseBackend
from holdfast.backends.lvm import ports
from holdfast.backends.lvm.claims import add_missing_grants, end_programs
from holdfast.backends.lvm.hook_calls import HookCalls, not_live
from holdfast.backends.lvm.host_volumes import HostVolumes
from holdfast.backends.lvm.ports import Problem, Volume
from holdfast.backends.lvm.reconciler import OnLockFailure, Reconciler
from holdfast.backends.lvm.volume_orders import VolumeOrders
from holdfast.backends.lvm.volumes import NoVolume
from holdfast.backends.lvm.write_grants import Denied, WriteGrants
from holdfast.backends.lvm.write_rules import Holding, Vm
from holdfast.errors import Refused
from holdfast.model import LVMLOCKD, AcquireRequest, Holder, Mode, ProcessId, Protection, Resource
from holdfast.system import eager_tasks
from holdfast.system.files.ofd_lock import FileKey, IoFailed
from holdfast.system.libvirt.domains import WatchedStatus

log = logging.getLogger(__name__)

VOLUME_KEY_DEVICE = -3
"""The `device` of a key that stands for a volume: no file has it, nor has a block device (-1) or a lease (-2)."""
AGAIN_S = 5.0
"""After a pass that failed by a bug of ours: the next one reads everything again."""
PROTECTION_NOTE = (
    'driver "lvm" is experimental: whether the watchdog resets a host that loses its leases is not checked'
)
NOT_SERVED = "volumes are not served here: this is no daemon of a host with LVM"


DiskKey = Callable[[str], Awaitable[FileKey | None]]


class VolumeLock:
    """A volume that this host holds; also the `Candidate` for it, as its lock is known before it is taken."""

    def __init__(
        self, volume: Volume, keys: tuple[FileKey, ...], host: HostVolumes, grants: WriteGrants
    ) -> None:
        self.path = str(volume)
        self.create = False
        self.keys = keys
        self._volume = volume
        self._host = host
        self._grants = grants

    async def take(self, mode: Mode, note: OwnerNote) -> VolumeLock | HeldElsewhere:
        """See `Candidate`. Raises `Refused`."""
        refused = await self.ask_again(mode, note)
        return self if refused is None else refused

    async def abandon(self) -> None:
        """See `Candidate`."""

    async def ask_again(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | None:
        """See `KnowsWriters`. Raises `Refused` if LVM or lvmlockd fails."""
        if note.libvirtd:
            return await self._is_prepared(mode)
        denied = await self._grants.acquire(_vm(note), note.owner.name, self._volume, mode)
        return None if denied is None else _refusal(denied)

    async def _is_prepared(self, mode: Mode) -> HeldElsewhere | None:
        """Whether `prepare` has it for a VM without a process, which gets its grant when that asks."""
        held = await self._host.locks.query(self._volume)
        if isinstance(held, ports.Refused):
            raise Refused(reason=f"{self._volume}: {held}")
        if held is None or held < self._host.lock_mode(self._volume, mode):
            has = held.word if held is not None else "not"
            raise Refused(
                reason=f"{self._volume} is held {has} on this host, and the VM needs it {mode.word}: a migration of it is "
                "under way, or was not finished"
            )
        return None

    def owner_left(self, note: OwnerNote) -> None:
        """See `KnowsWriters`."""
        if not note.libvirtd:
            self._grants.let_go(_vm(note), self._volume)
            self._host.news.set()

    def descriptor(self) -> int | None:
        """See `Held`: lvmlockd has the lock."""
        return None

    async def convert(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | None:
        """See `Held`. To shared, it is the reconciler that gives up what nobody needs."""
        return await self.ask_again(mode, note)

    async def release(self) -> None:
        """See `Held`."""
        self.release_nowait()

    def release_nowait(self) -> bool:
        """See `Held`. A program whose end no daemon saw has left by now."""
        for holding in self._grants.of(self._volume):
            if holding.vm.is_program:
                self._grants.let_go(holding.vm, self._volume)
        self._host.news.set()
        return True

    def forget(self) -> None:
        """See `Held`."""


class LvmBackend:
    """The backend of a host; one, as a host has one lvmlockd. `host` None: it is made, and serves nothing."""

    capabilities = Capabilities(
        cross_host=True,
        shared_mode=True,
        converts=True,
        survives_restart=True,
        fenced=False,
        names_foreign_holders=True,
        by_path_alone=True,
    )

    def __init__(
        self,
        name: str,
        host: HostVolumes | None,
        *,
        handover_wait_s: float,
        acquire_wait_s: float,
        disk_key: DiskKey | None = None,
        guard: str = "",
        shares: bool = False,
    ) -> None:
        """`disk_key`: of the device at a path, None while it is not there: another rule may lock it under another path;
        `guard`: the name of the backend in which each VM has a lease of its volume as well, empty: none; `shares`: all hosts
        have their volumes active, which needs a guard.
        """
        self.name = name
        self.guard_name = guard
        self.guard: LeaseBackend | None = None
        """That backend, once all are made."""
        self._shares = shares
        self._disk_key = disk_key
        self.on_lockfailure: OnLockFailure = _nobody_acts
        self._host = host
        self._task: asyncio.Task[None] | None = None
        self._unwatch: Callable[[], None] | None = None
        if host is not None:
            host.shares_all = shares
            host.guard = _no_lease if guard else None
            self._reconciler = Reconciler(host, on_lockfailure=self._failed)
            self._hook = HookCalls(host, self._reconciler, handover_wait_s=handover_wait_s)
            self._grants = WriteGrants(host, acquire_wait_s=acquire_wait_s)
            self._orders = VolumeOrders(host)

    @property
    def orders(self) -> VolumeOrders:
        """Operators'. Raises `Refused` where no volumes are served."""
        if self._host is None:
            raise Refused(reason=NOT_SERVED)
        return self._orders

    @property
    def host(self) -> HostVolumes:
        """Raises `Refused` where none is served."""
        if self._host is None:
            raise Refused(reason=NOT_SERVED)
        return self._host

    async def _failed(self, holding: Holding, why: str) -> None:
        await self.on_lockfailure(holding, why)

    # --- locks ---

    async def open(self, resource: Resource, *, create: Creation) -> VolumeLock | IoFailed:
        """See `Backend`. Raises `Refused` for what is no volume of a shared volume group."""
        host = self.host
        if resource.lockspace:
            raise Refused(
                reason=f"driver lvm locks volumes by their paths, and '{resource}' is a name in a lockspace: remove "
                "file_lockspace_dir, lvm_lockspace_dir and scsi_lockspace_dir from qemu-lockd.conf"
            )
        found = await host.volumes.find(resource.name)
        if isinstance(found, NoVolume):
            raise Refused(reason=str(found))
        if isinstance(found, ports.Refused):
            raise Refused(reason=f"{resource.name}: {found}")
        disk = await self._disk_key(resource.name) if self._disk_key is not None else None
        return self._lock(found, *([disk] if disk is not None else ()))

    def _lock(self, volume: Volume, *of_disk: FileKey) -> VolumeLock:
        return VolumeLock(volume, (key_of(volume), *of_disk), self.host, self._grants)

    def take_nowait(self, resource: Resource, mode: Mode) -> None:
        """See `Backend`."""

    async def adopt(self, saved: SavedLock, fd: int | None) -> VolumeLock:
        """See `Backend`. Raises `Refused` while nobody knows which volume that is."""
        for path in (saved.path, saved.resource.name):
            if (known := self.host.volumes.at(path)) is not None:
                return self._lock(known)
        found = await self.host.volumes.find(saved.path)
        if not isinstance(found, Volume):
            raise Refused(reason=f"{saved.path}: {found}")
        return self._lock(found)

    def protection(self, path: str) -> tuple[Protection, str]:
        """See `Backend`. With a guard that of its leases: no VM writes without one."""
        return self._with_guard(self.guard.protection(path) if self.guard is not None else None)

    def promised(self) -> tuple[Protection, str]:
        """What `protection` is once the guard's lockspace is joined."""
        return self._with_guard(self.guard.promised() if self.guard is not None else None)

    def _with_guard(self, of_guard: tuple[Protection, str] | None) -> tuple[Protection, str]:
        if of_guard is None:
            return Protection.CROSS_HOST, PROTECTION_NOTE
        level, why = of_guard
        if level < Protection.CROSS_HOST and not self._shares:
            return Protection.CROSS_HOST, why
        return level, why

    def lock_path(self, resource: Resource) -> str:
        """See `Backend`."""
        volume = self._host.volumes.at(resource.name) if self._host is not None else None
        return resource.name if volume is None else str(volume)

    # --- libvirt's hook ---

    def arrives(self, uuid: str, libvirtd: ProcessId) -> str:
        """`migrate`: a VM is about to arrive; empty, or why that can't be remembered."""
        return self._hook.migrate(uuid, libvirtd, {})

    async def why_not_live(self, wants: Sequence[AcquireRequest]) -> str:
        """`migrate`: a disk that can't be active on two hosts, or a hook that is in the way, in a sentence. What is not
        known now, `prepare` refuses.
        """
        host = self.host
        ours = [want for want in wants if not want.resource.lockspace and host.is_ours(want.resource.name)]
        if ours and (not_alone := self._hook.why_not_alone()):
            return not_alone
        for want in ours:
            found = await host.volumes.find(want.resource.name)
            if isinstance(found, Volume) and found.why_not_shared and want.mode is Mode.EXCLUSIVE:
                return not_live(found)
        return ""

    async def prepare(self, uuid: str, libvirtd: ProcessId, wants: Sequence[AcquireRequest]) -> str:
        """`prepare`: have those disks active that are this driver's; empty, or why the VM must not be started."""
        host = self.host
        ours = [want for want in wants if not want.resource.lockspace and host.is_ours(want.resource.name)]
        found = await asyncio.gather(*(host.volumes.find(want.resource.name) for want in ours))
        volumes: dict[Volume, Mode] = {}
        for want, volume in zip(ours, found, strict=True):
            if isinstance(volume, NoVolume):
                return str(volume)
            if isinstance(volume, ports.Refused):
                return f"{want.resource.name}: {volume}"
            volumes[volume] = max(want.mode, volumes.get(volume, want.mode))
        return await self._hook.prepare(uuid, libvirtd, volumes) if volumes else ""

    async def ended(self, uuid: str, libvirtd: ProcessId) -> None:
        """`release`: nothing of that VM runs here."""
        await self._hook.release(uuid, libvirtd)

    async def group_lost(self, vg_name: str) -> list[str]:
        """The locks of a volume group can't be kept; see `VolumeOrders`."""
        return await self.orders.group_lost(vg_name, self._failed)

    # --- the daemon's life ---

    def adopted(self, *, journal_is_whole: bool) -> None:
        """The last daemon's claims are in the table, and nobody is served yet."""
        if self._host is not None:
            add_missing_grants(self._host, self._host.look())
            if journal_is_whole:
                end_programs(self._host, {holding.vm for _, holding in self._host.claims()})

    def begin(self, status: object) -> None:
        """Reconcile from now on."""
        if self._host is None:
            return
        if isinstance(status, WatchedStatus):
            self._unwatch = status.watch(self._reconciler.changed)
        self._task = eager_tasks.keep_watch(self._runs(), "volumes are not reconciled any more")

    async def _runs(self) -> None:
        while True:
            try:
                await self._reconciler.run()
            except Exception:
                log.exception("a pass over the volumes failed; the next one in %g s", AGAIN_S)
            await self.host.clock.sleep(AGAIN_S)

    def stop(self) -> None:
        """The next daemon goes on from what is there."""
        if self._unwatch is not None:
            self._unwatch()
        if self._task is not None:
            self._task.cancel()
        self._unwatch = self._task = None

    def problems(self) -> list[str]:
        """What operators have to know."""
        return self._reconciler.problems() if self._host is not None else []


def key_of(volume: Volume) -> FileKey:
    """The key of a volume in the lock table: 63 bits of a digest of its UUIDs, so that it fits the journal."""
    digest = hashlib.sha256("\0".join(volume.id).encode("utf-8", "surrogateescape")).digest()
    return FileKey(VOLUME_KEY_DEVICE, int.from_bytes(digest[:8], "big") >> 1)


def _no_lease(_: Vm, __: Volume) -> None:
    """The default until the daemon is built."""


async def _nobody_acts(_: Holding, __: str) -> None:
    """The default until the daemon is built."""


def _vm(note: OwnerNote) -> Vm:
    return Vm(note.owner.uuid, note.pid)


def _refusal(denied: Denied) -> HeldElsewhere:
    """Raises `Refused` where nobody else is known to have it."""
    if denied.here is not None:
        vm = denied.here.vm
        return HeldElsewhere((Holder(name=denied.here.name, uuid=vm.uuid, pid=vm.pid),))
    if (lease := denied.lease) is not None:
        mode, since = lease.mode if lease.mode is Mode.SHARED else None, ""
        if lease.held_s is not None:
            since = f"exclusively for {lease.held_s:.0f} s or longer"
        return HeldElsewhere(
            tuple(
                Holder(host=host, mode=mode, source="lease", program=LVMLOCKD, remark=since)
                for host in lease.others
            )
        )
    if denied.refused is not None and denied.refused.problem is Problem.HELD_ELSEWHERE:
        return HeldElsewhere((Holder(remark=str(denied.refused)),))
    raise Refused(reason=str(denied))
